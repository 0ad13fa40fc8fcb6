"""Several real hosts on one machine: namespaces on a bridge that lives in a namespace itself, so that nothing outside
hears of them. A host can lose its power and its cable; what it had on its disk is there when it comes back.
"""

import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".shoal" / "hosts"
"""Below the repository: /tmp is each host's own."""
NETWORK = "10.77.0"
SWITCH = f"{NETWORK}.1"
UP_S = 20.0
PR_SET_PDEATHSIG = 1


def missing() -> str | None:
    """Why this machine cannot have hosts, None when it can."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"`{program}` is missing (package {package})"
    name = f"shoal{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    alone = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    tried = subprocess.run(["ip", "netns", "exec", name, *alone], capture_output=True, text=True)
    _ip("netns", "del", name)
    return f"unshare fails: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Host:
    """One machine; `init` is its process 1 as the outside sees it, None while its power is off."""

    name: str
    number: int
    network: "Network"
    init: psutil.Process | None = None
    entered: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{NETWORK}.{10 + self.number}"

    @property
    def folder(self) -> Path:
        """Its disk; `tmp` in it is what it sees as /tmp."""
        return self.network.folder / self.name

    @property
    def space(self) -> str:
        return f"{self.network.name}-{self.name}"

    def power_on(self) -> None:
        """Process 1 comes up, with nothing else; what was on the disk is there."""
        assert self.init is None, f"{self.name} is on"
        alone = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        command = ["ip", "netns", "exec", self.space, *alone]
        command += [sys.executable, str(Path(__file__).with_name("host_init.py")), self.name, str(self.folder)]
        with (self.folder / "init.log").open("ab") as log:
            outer = _spawn(command, stdout=subprocess.PIPE, stderr=log)
        assert outer.stdout and outer.stdout.readline() == b"up\n", f"{self.name} did not come up"
        (self.init,) = psutil.Process(outer.pid).children()
        self.entered.append(outer)
        self.plug()

    def power_off(self) -> None:
        """At once and in silence: nobody hears a farewell from its connections."""
        assert self.init is not None, f"{self.name} is off"
        self.unplug()
        self.init.kill()
        for one in self.entered:
            one.wait(UP_S)
        self.init, self.entered = None, []

    def unplug(self) -> None:
        """The cable is out: no packet comes or goes, and nobody is told."""
        _ip("-n", self.network.name, "link", "set", f"port{self.number}", "down")

    def plug(self) -> None:
        _ip("-n", self.network.name, "link", "set", f"port{self.number}", "up")

    def command(self, *arguments: str) -> list[str]:
        """`arguments` as a command on this host."""
        assert self.init is not None, f"{self.name} is off"
        inside = ["nsenter", "--target", str(self.init.pid), "--net", "--uts", "--ipc", "--mount", "--pid", "--"]
        return [*inside, *arguments]

    def environment(self) -> dict[str, str]:
        """Of whatever runs here: this host's home, nothing of the caller's but where programs are."""
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/tmp/home", "LANG": "C.UTF-8", **self.network.environment}

    def run(self, *arguments: str, timeout_s: float = 120) -> str:
        """What a command on this host says. Raises CalledProcessError."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{self.name}: {' '.join(arguments)}\n{done.stdout}"
        return done.stdout

    def processes(self, beginning: str) -> list[psutil.Process]:
        """Those whose command line begins so, oldest first, with the outside's pids."""
        assert self.init is not None, f"{self.name} is off"
        found = []
        for one in self.init.children(recursive=True):
            try:
                if " ".join(one.cmdline()).startswith(beginning):
                    found.append(one)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=psutil.Process.create_time)


@dataclass
class Network:
    """A switch and its hosts; programs that belong to no host run at the switch."""

    name: str
    folder: Path
    hosts: dict[str, Host]
    environment: dict[str, str]

    def at_switch(self, *arguments: str) -> list[str]:
        """`arguments` as a command that has the switch's address, SWITCH, and the machine's own files."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]


@contextmanager
def network(names: Sequence[str], environment: Mapping[str, str]) -> Iterator[Network]:
    """Hosts that are on, and know each other by name. Everything is gone afterwards, whatever happened."""
    _clear()
    name = f"shoal{os.getpid()}"
    made = Network(name, PLACE / f"{name}-{secrets.token_hex(2)}", {}, dict(environment))
    try:
        _ip("netns", "add", name)
        for command in (
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {SWITCH}/24 dev br0",
            "link set br0 up",
        ):
            _ip("-n", name, *command.split())
        made.hosts = {each: Host(each, number, made) for number, each in enumerate(names)}
        known = "".join(f"{host.address} {host.name}\n" for host in made.hosts.values())
        for host in made.hosts.values():
            (host.folder / "tmp" / "home").mkdir(parents=True)
            (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{SWITCH} store\n{known}")
            (host.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # where nobody listens: refused at once
            _connect(host)
            host.power_on()
        yield made
    finally:
        for host in made.hosts.values():
            if host.init is not None:
                host.power_off()
        _forget(name)
        shutil.rmtree(made.folder, ignore_errors=True)


def _connect(host: Host) -> None:
    """A cable from the host's eth0 to the switch's port."""
    _ip("netns", "add", host.space)
    switch, port = host.network.name, f"port{host.number}"
    _ip("-n", switch, "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", host.space)
    _ip("-n", switch, "link", "set", port, "master", "br0", "up")
    _ip("-n", host.space, "link", "set", "lo", "up")
    _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.space, "link", "set", "eth0", "up")


def _clear() -> None:
    """What processes that were killed left behind: their hosts died with them, names and folders did not."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for pid in {int(found[1]) for found in re.finditer(r"^shoal(\d+)", listed, re.M)}:
        if not psutil.pid_exists(pid) or pid == os.getpid():
            _forget(f"shoal{pid}")
    for left in PLACE.glob("shoal*-*"):
        if not psutil.pid_exists(int(left.name[len("shoal") :].partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)


def _forget(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for space in (line.split()[0] for line in listed.splitlines() if line.strip()):
        if space == name or space.startswith(f"{name}-"):
            _ip("netns", "del", space)


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that ends when this one does, with its words in `log`."""
    with log.open("ab") as out:
        return _spawn(command, stdout=out, stderr=subprocess.STDOUT, env=dict(environment))


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM, timeout_s: float = 20) -> None:
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)


def until(met: Callable[[], object], what: str, timeout_s: float = 120, every_s: float = 0.2) -> None:
    """Waits until `met()` is true. Raises AssertionError naming `what` when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:g} s"
        time.sleep(every_s)


def _spawn(command: Sequence[str], **options: Any) -> Any:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent, **options
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
