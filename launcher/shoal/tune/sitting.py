"""One sitting of a trial: its run in a thread of this process, and the points of its metric as they come."""

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal import launch
from shoal.backends import Backend
from shoal.errors import ClusterError, ShoalError, StorageError
from shoal.launch import Outcome
from shoal.plan.layout import halved
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.storage import Storage
from shoal.train.world import Event
from shoal.tune.board import Point

AWAY = (StorageError, ClusterError)
"""What says nothing of the trial: it can go on once the place is well again."""
MOST_RETRIES = 1
"""Times a trial that ran out of memory is tried again with half the micro-batch."""


@dataclass(frozen=True)
class Ended:
    """How a sitting ended."""

    outcome: Outcome | None
    """None when it raised."""
    why: str
    """What it raised, in one line; empty otherwise."""
    can_go_on: bool
    """It raised, and that was not the trial's own fault."""


@dataclass
class Sitting:
    """`hear` is called from the run's thread, everything else from the owner's."""

    job: JobSpec
    profile: ClusterProfile
    storage: Storage
    backend: Backend
    run_id: str
    metric: str
    amend: Callable[[Plan], Plan]
    after: Point | None
    """The last point that was told before this sitting."""
    tell: Callable[[Event], None]
    waited_s: Callable[[], float] = lambda: 0.0
    """How long the backend's runs have waited for room so far: that time is not the trial's."""
    stop: threading.Event = field(default_factory=threading.Event)
    points: "queue.SimpleQueue[Point]" = field(default_factory=queue.SimpleQueue)
    retries: int = 0
    began: float = field(default_factory=time.monotonic)
    start_s: float | None = None
    """Until the first step of this sitting."""
    step: int = 0
    tokens: int = 0
    """Of this trial, all sittings together."""
    steps: int = 0
    saved: int = 0
    """The step of the newest checkpoint of this sitting."""
    ended: Ended | None = None
    _seen: dict[int, int] = field(default_factory=dict)
    """step -> tokens until then."""
    _logging_steps: int = 1
    _layout_of_one_row: bool = False

    def __post_init__(self) -> None:
        if self.after is not None:
            self.step, self.tokens = self.after.step, self.after.tokens
        self._seen[self.step] = self.tokens
        self._before_s = self.waited_s()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.run_id, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the run is over and all its points are taken."""
        return not self._thread.is_alive() and self.points.empty()

    def next(self, timeout_s: float) -> Point | None:
        """The next point; None when none comes in time."""
        try:
            return self.points.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def leave(self) -> None:
        """The run finishes its step, saves and leaves; returns when it has."""
        self.stop.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began - (self.waited_s() - self._before_s)

    def _run(self) -> None:
        try:
            self.ended = Ended(self._sit(), "", False)
        except ShoalError as error:
            self.ended = Ended(None, str(error).splitlines()[0], isinstance(error, AWAY))
        except Exception as error:  # noqa: BLE001  this thread's edge: the trial has failed, and the others go on
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            self.tell({"kind": "note", "message": message, "stack": traceback.format_exc()})
            self.ended = Ended(None, message, False)

    def _sit(self) -> Outcome:
        amend = self.amend
        while True:
            try:
                return launch.run(
                    self.job, self.profile, self.storage, self.backend, self.hear, self.stop, self.run_id, amend
                )
            except ShoalError as error:
                if not _out_of_memory(error) or self.retries == MOST_RETRIES or self._layout_of_one_row:
                    raise
                self.retries += 1
                amend = lambda plan: _smaller(self.amend(plan))  # noqa: E731
                message = f"{error.problems[0]}: once more with half the micro-batch"
                self.tell({"kind": "failure", "cause": "out of memory", "message": message, "final": False})

    def hear(self, event: Event) -> None:
        match event["kind"]:
            case "run":
                plan = event["plan"]
                self.steps = plan.trajectory.steps.value
                self._logging_steps = plan.logging_steps
                self._layout_of_one_row = plan.layout.micro_batch_size == 1
            case "step":
                if self.start_s is None:
                    self.start_s = self.seconds
                self._count(event["step"], event["tokens"])
                logged = event["step"] % self._logging_steps == 0 or event["step"] == event["steps"]
                if self.metric == "train.loss" and logged and event["loss"] is not None:
                    self._point(event["step"], event["loss"])
            case "checkpoint":
                self.saved = max(self.saved, event["step"])
            case "eval" if self.metric == "validation.loss":
                self._point(event["step"], event["loss"])
        if event["kind"] != "run":
            self.tell(event)

    def _count(self, step: int, tokens: int) -> None:
        """A resumed run does steps again that were counted before, and leaves out those between the last point and its
        checkpoint: steps are about alike."""
        if step > self.step:
            self.step, self.tokens = step, self.tokens + tokens * (step - self.step)
            self._seen[step] = self.tokens

    def _point(self, step: int, value: float) -> None:
        if step > (self.after.step if self.after else 0):
            self.points.put(Point(step, self._seen.get(step, self.tokens), value))


def _out_of_memory(error: ShoalError) -> bool:
    return any(getattr(problem, "where", "") == "memory" for problem in error.problems)


def _smaller(plan: Plan) -> Plan:
    layout = halved(plan.layout, plan.trajectory.batch_size)
    return plan if layout is None else plan.model_copy(update={"layout": layout})
