"""Ctrl-C and SIGTERM in a command that watches what happens elsewhere."""

import signal
import sys
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Leaving:
    """Ctrl-C and SIGTERM for a command that only watches: they never touch the run by themselves.

    Before there is anything to watch, a signal leaves at once. Afterwards the first is for `asked`; a second leaves.
    """

    def __init__(self) -> None:
        self.watching = False
        self.asked = False
        self._number = signal.SIGINT
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        return 128 + self._number

    @property
    def may_ask(self) -> bool:
        """Whether somebody sits there: Ctrl-C at a terminal. Without one, and on SIGTERM, a watcher detaches."""
        return self._number == signal.SIGINT and sys.stdin.isatty() and sys.stderr.isatty()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._number = signal.Signals(number)
        if self.asked or not self.watching:
            raise KeyboardInterrupt
        self.asked = True
