"""Ctrl-C and SIGTERM: once asks training to leave in order, twice leaves at once. SIGUSR1 asks as often as it comes.

A pod or a batch job that must go may be told so by two at once, its job server and its scheduler; that is no hurry.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

import typer

from shoal.backends import OnEvent
from shoal.errors import ClusterError, Problem, StorageError
from shoal.train.world import Event

ASKED = "stopping: this step is finished and saved first; once more leaves at once (what was saved before stays)"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupts:
    """Handlers for as long as the block lasts. Until training begins there is nothing to save: once is enough."""

    def __init__(self, on_event: OnEvent) -> None:
        self.stop = threading.Event()
        self._on_event = on_event
        self.run: str | None = None
        """The run, or the sweep, that began to train."""
        self._number = signal.SIGINT
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """Exit status of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, or for SIGUSR1 in its place."""
        return 128 + (signal.SIGTERM if self._number == signal.SIGUSR1 else self._number)

    def on_event(self, event: Event) -> None:
        """Passes events on, and notices that training begins."""
        if event["kind"] in ("run", "sweep") and "trial" not in event:
            self.run = event[event["kind"]]
        self._on_event(event)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and self.stop.is_set():
            return
        self._number = signal.Signals(number)
        if self.run is None or self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()
        # The handler runs in the middle of whatever the main thread does, printing perhaps: another thread tells it.
        threading.Thread(target=self._on_event, args=({"kind": "note", "message": ASKED},), daemon=True).start()


@contextmanager
def driven(interrupts: Interrupts, resume: str, options: str) -> Iterator[None]:
    """How a driver is left by force, or by a store or room that went away: what began to train is kept, and `resume`,
    with its id and the `options`, goes on.

    Raises: typer.Exit with the status of the signal.
    """
    try:
        yield
    except KeyboardInterrupt:
        then = f"; go on with  {resume} {interrupts.run}{options}" if interrupts.run else ""
        typer.echo(f"left at once{then}", err=True)
        raise typer.Exit(interrupts.status) from None
    except (StorageError, ClusterError) as error:
        if interrupts.run is None:
            raise
        kept = Problem(interrupts.run, "is kept", f"go on with  {resume} {interrupts.run}{options}")
        raise type(error)(*error.problems, kept) from error
