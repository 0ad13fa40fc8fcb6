"""A proxy between Storage and a real store that does wrong on demand: slow, busy, cut off, cut short, changed.

Requests are forwarded as they came, Host included, so that signatures made for the proxy's address hold.
"""

import http.client
import io
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

What = Literal[
    "latency",  # the answer comes `seconds` late
    "busy",  # 503 SlowDown; the store never hears of it
    "reset",  # the connection is reset before any answer; the store never hears of it
    "lost-answer",  # the store does it, then the connection is reset before the answer
    "reset-within",  # reset in the middle of the body
    "short",  # the right Content-Length, half of the body, an orderly end
    "short-lied",  # half of the body, and a Content-Length that says so
    "flip",  # one bit of each byte of the body is another: whatever is cut out of it is damaged
    "call",  # `call` runs first, then all goes well
]


@dataclass
class Injection:
    """A fault for the requests that fit, the first `times` of every `every`-th."""

    what: What
    method: str = "GET"
    path: str = ""
    """Regular expression, searched in the request's path and query."""
    times: int = 1
    every: int = 1
    seconds: float = 0.0
    call: Callable[[], None] | None = None
    seen: int = 0
    struck: int = 0
    """Requests that met it."""

    def fits(self, method: str, path: str) -> bool:
        return method == self.method and re.search(self.path, path) is not None


@dataclass
class FaultyProxy:
    endpoint: str
    """http://127.0.0.1:PORT; to be signed for and asked instead of the store's own."""
    upstream: str
    injections: list[Injection] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """"METHOD PATH" of all that was asked."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(self, what: What, **options: object) -> Injection:
        injection = Injection(what, **options)  # type: ignore[arg-type]
        with self.lock:
            self.injections.append(injection)
        return injection

    def clear(self) -> None:
        with self.lock:
            self.injections.clear()

    def strikes(self, method: str, path: str) -> Injection | None:
        """The fault that this request meets, counted."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            for one in self.injections:
                if one.struck < one.times and one.fits(method, path):
                    one.seen += 1
                    if one.seen % one.every == 0:
                        one.struck += 1
                        return one
        return None


@contextmanager
def faulty(endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy before the store at `endpoint`; without injections it changes nothing."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}", endpoint)
    server.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away while it is answered is no news here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Stays silent: `FaultyProxy.requests` is the log."""

    def _relay(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.strikes(self.command, self.path)
        what = fault.what if fault else ""
        if what == "busy":
            self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
        elif what == "reset":
            self._reset()
        else:
            if fault and fault.what == "latency":
                time.sleep(fault.seconds)
            if fault and fault.call:
                fault.call()
            status, headers, answer = self._ask(proxy.upstream, body)
            if what == "lost-answer":
                self._reset()
            elif what in ("reset-within", "short"):
                self._answer(status, headers, answer[: len(answer) // 2], len(answer))
                if what == "short":
                    self.close_connection = True
                else:
                    # What was sent is to arrive before the reset does.
                    time.sleep(0.05)
                    self._reset()
            elif what == "short-lied":
                self._answer(status, headers, answer[: len(answer) // 2])
            elif what == "flip":
                self._answer(status, headers, bytes(byte ^ 1 for byte in answer))
            else:
                length = next((int(value) for name, value in headers if name.lower() == "content-length"), len(answer))
                self._answer(status, headers, answer, length)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _relay

    def _ask(self, upstream: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "connection":
                connection.putheader(name, value)
        connection.endheaders(body or None)
        reply = connection.getresponse()
        answer = reply.read()
        connection.close()
        return reply.status, reply.getheaders(), answer

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The socket is closed, and so reset, with the last of its files.
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        self.rfile, self.wfile = io.BytesIO(), io.BytesIO()
