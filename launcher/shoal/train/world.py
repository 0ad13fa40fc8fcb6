"""What a worker is told about the world and what it is told to do next: the whole surface between train/ and a backend."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class World:
    """One worker's place among all. The process group is up before `run` is called when size > 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


class Directive(Enum):
    """What a report answers: go on, save a checkpoint at this step's end, or save and leave."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


Event = dict[str, Any]
"""One thing that happened. `kind` says which: phase, step, eval, checkpoint, note, answer, export, result."""

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
