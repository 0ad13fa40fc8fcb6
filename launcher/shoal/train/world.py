"""What a worker is told about the world and what it is told to do next: the whole surface between train/ and a backend."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Directive(Enum):
    """What a worker is asked; the strongest wish of any rank holds for all, at the end of a step."""

    CONTINUE = 0
    SAVE = 1
    """Save a checkpoint and go on."""
    YIELD = 2
    """Save and leave this place: the run goes on elsewhere, at once."""
    STOP = 3
    """Save and leave: somebody resumes the run later."""


Event = dict[str, Any]
"""One thing that happened. `kind` says which: phase, step, eval, checkpoint, note, answer, export, result."""


class Preempted(Exception):
    """This group yielded at the end of a step, its checkpoint is complete; raised on every rank alike."""


LONG_PHASES = frozenset({"starting", "loading", "checking", "saving", "exporting"})
"""Phases that may rightly go on for long without a mark: a large model comes, or goes."""


class Pulse:
    """Where one rank is: written by the training thread, read by any other, at no cost to a step.

    All ranks run the same code, so they make the same marks in the same order: of ranks that stand still, those with the
    fewest marks are the ones that the others wait for.
    """

    def __init__(self) -> None:
        self.wish = Directive.CONTINUE
        """What this rank was asked from outside: by a signal, or by its node that goes."""
        self.asked_by = ""
        """Who asked, in words."""
        self.begin()

    def begin(self) -> None:
        """At the beginning of a run; a process may do one after another."""
        self.phase = "starting"
        self.step = 0
        """The last step whose update is done."""
        self.marks = 0
        self.waiting = False
        """Inside a collective of ours: this rank waits for others."""
        self.attempt: int | None = None
        """The journal's number of this attempt; rank 0 alone knows it."""
        self._at = time.monotonic()

    def mark(self, phase: str | None = None, step: int | None = None) -> None:
        """Something was done since the last mark."""
        self.phase = phase or self.phase
        self.step = self.step if step is None else step
        self.marks += 1
        self._at = time.monotonic()

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Around a collective: whoever is inside has done its part."""
        self.mark()
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False
            self.mark()

    def ask(self, wish: Directive, by: str) -> None:
        """A wish from outside; the strongest one stays. Any thread, and a signal's handler, may call this."""
        if wish.value > self.wish.value:
            self.asked_by, self.wish = by, wish

    @property
    def still_s(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self._at


@dataclass(frozen=True)
class World:
    """One worker's place among all. The process group is up before `run` is called when size > 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: str = ""
    """The host's name."""
    pulse: Pulse = field(default_factory=Pulse, compare=False, repr=False)
    """Where this rank is, for those who watch it."""
    earlier: tuple[Event, ...] = ()
    """Failures of earlier attempts that nobody may have written down; rank 0 does."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


Report = Callable[[Event], Directive]
"""Called by rank 0 for every event, always from the training thread; must return within milliseconds."""


@dataclass(frozen=True)
class Result:
    """How a run ended, as `result.json` keeps it."""

    state: str
    """`finished`, or `stopped` when it left early on request and can be resumed."""
    step: int
    steps: int
    tokens: int
    seconds: float
    base_loss: float | None
    """Validation loss before the first step, in nats per target; None without validation."""
    loss: float | None
    """Validation loss of what was exported."""
    train_loss: float | None
    export: str | None
    """Where the export lies; None when stopped."""
    gate: dict[str, Any] | None
    """The export gate's figures."""
    answers: list[dict[str, str]]
    """`prompt`, `before`, `after` for each prompt of the job."""
    skipped: int = 0
    """Steps left out because their loss or gradient was no number."""
