"""A remote object as a seekable stream that reads ahead."""

import io
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, BinaryIO

PIECE = 8 << 20
"""Bytes per request, and of the buffer in front."""
AHEAD = 3
"""Pieces that are on their way while one is being read: one request alone does not fill the line."""

Fetch = Callable[[int, int], Any]
"""The bytes [start, end) of the object, as any buffer."""


def stream(size: int, fetch: Fetch, executor: Executor) -> BinaryIO:
    """An object of `size` bytes as a buffered stream; memory: AHEAD + 2 pieces."""
    return io.BufferedReader(_Ahead(size, fetch, executor), PIECE)


class _Ahead(io.RawIOBase):
    """Keeps a window of pieces on their way behind the place that is read; a jump out of it starts a new one."""

    def __init__(self, size: int, fetch: Fetch, executor: Executor):
        self._size, self._fetch, self._executor = size, fetch, executor
        self._place = 0
        self._last_end = -1
        self._window: deque[tuple[int, int, Future[Any]]] = deque()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def close(self) -> None:
        self._drop()
        super().close()

    def readall(self) -> bytes:
        rest = bytearray(max(0, self._size - self._place))
        view, done = memoryview(rest), 0
        while done < len(rest):
            done += self.readinto(view[done:])
        return bytes(rest)

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._place)
        if wanted <= 0:
            return 0
        start, end, data = self._piece(ahead=self._place == self._last_end or wanted > PIECE)
        count = min(wanted, end - self._place)
        offset = self._place - start
        buffer[:count] = memoryview(data)[offset : offset + count]
        self._place += count
        self._last_end = self._place
        return count

    def _piece(self, ahead: bool) -> tuple[int, int, Any]:
        """The piece that holds the present place; with `ahead`, those after it are asked for as well."""
        while self._window and not self._window[0][0] <= self._place < self._window[0][1]:
            self._window.popleft()[2].cancel()
        while len(self._window) < (AHEAD + 1 if ahead else 1):
            start = self._window[-1][1] if self._window else self._place
            if start >= self._size:
                break
            end = min(start + PIECE, self._size)
            self._window.append((start, end, self._executor.submit(self._fetch, start, end)))
        start, end, future = self._window[0]
        try:
            return start, end, future.result()
        except OSError:
            # Who reads again after an error asks the store again.
            self._drop()
            raise

    def _drop(self) -> None:
        while self._window:
            self._window.popleft()[2].cancel()
