"""Where a plan happens: inline (this process) or an embedded Ray. A backend prepares, trains, and hands events back."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from shoal.plan.types import Plan
from shoal.train.world import Event, Result

if TYPE_CHECKING:
    from shoal.data.prepare import PreparedSummary
    from shoal.storage import Storage

Task = TypeVar("Task")
Done = TypeVar("Done")
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Answer(Generic[Done]):
    """What one node made of a piece of work."""

    node: str
    """Its name; empty for this process."""
    address: str
    value: Done | None
    """None when it failed."""
    error: str
    """Why it did; empty otherwise."""
    at: float
    """When the answer arrived here, in seconds since the epoch."""
    slots: dict[str, float] = field(default_factory=dict)
    """CPUs and GPUs that Ray gives out there; empty where there is no Ray."""


class Backend(Protocol):
    """What launch asks of a place to run. Users' mistakes come out as the ShoalError that was raised, wherever it was."""

    def start(self) -> None:
        """Begin to come up, without waiting: facts and plan are gathered meanwhile."""
        ...

    def prepare(self, plan: Plan, storage: "Storage", on_event: OnEvent) -> "PreparedSummary":
        """Tokenise the plan's data into shards, unless they are there."""
        ...

    def map(self, work: Callable[[Task], Iterator[Done]], todo: Iterable[Task]) -> Iterator[Done]:
        """Do each task somewhere and give what comes of any of them, as it comes.

        `work` is picklable and gives equally many items whenever it does the same task again.
        """
        ...

    def everywhere(self, work: Callable[[int, int], Done], gpus: int = 0) -> list[Answer[Done]]:
        """`work(number, count)` once on every node at once, taking `gpus` there; how each did. `work` is picklable."""
        ...

    def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
        """Run the counted plan to its end, or to a checkpoint soon after `stop` is set.

        Raises: ShoalError as a worker raised it; TrainingError when workers died too often.
        """
        ...

    def close(self) -> None:
        """Let everything go."""
        ...
