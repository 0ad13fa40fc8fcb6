"""A group of workers that takes one trial after another, from inside a process of the sweep's Ray.

A run of its own starts processes, imports torch and brings a process group up before it reads a weight. A slot does that
once: its Ray Train run is a loop over the plans that its desk gives out (`ray_worker.work_on`). A group that fails is
started again by Ray Train and goes on with the plan that it was at; what no new try can mend ends the group, and the
next plan starts another.
"""

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from shoal.backends import OnEvent
from shoal.backends.group import beside, trainer
from shoal.backends.ray_cluster import RayCluster
from shoal.backends.ray_local import RayLocal
from shoal.backends.ray_train import RAY, Entry, RayTrain, set_environment
from shoal.errors import ShoalError
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.train.world import Result

if TYPE_CHECKING:
    from shoal.data.prepare import PreparedSummary
    from shoal.storage import Storage

FOLLOW_S = 0.1
"""How often the desk is asked whether a plan is done."""
HOME_S = 5.0
"""How long a group that is not needed any more may take to leave."""
UNLIMITED = (-1, -1)
"""Each plan's own budget is counted by TurnFailures."""


class Slot(RayTrain):
    """A backend whose workers stay from one `train` to the next."""

    def __init__(self, profile: ClusterProfile, entry: Entry | None = None) -> None:
        super().__init__(profile, entry)
        self.desk: Any = None
        self.scratch = ""
        self.alone: Callable[[str], AbstractContextManager[None]] = lambda digest: nullcontext()
        """Held while data of that digest are prepared."""
        self.still_s: Callable[[], float] = lambda: math.inf
        """For how long no trial of the sweep has taken a step."""
        self.stop = threading.Event()
        self._waited_s, self._waits_since = 0.0, math.nan

    @property
    def waited_s(self) -> float:
        """Spent waiting for room so far, by all plans together."""
        now = 0.0 if math.isnan(self._waits_since) else time.monotonic() - self._waits_since
        return self._waited_s + now

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waited_s, self._waits_since = self.waited_s, math.nan

    def connect(self) -> str:
        """This process is in that Ray already: where its logs are. It is a child of the cluster, not of the driver."""
        set_environment(self.environment)
        from ray._private.worker import _global_node

        assert _global_node is not None, "a slot is made in a process of Ray's"
        return _global_node.get_logs_dir_path()

    def prepare(self, plan: Plan, storage: "Storage", on_event: OnEvent) -> "PreparedSummary":
        """In this process: the trials that train hold all CPUs, and Ray would wait for one."""
        from shoal.data.prepare import prepare

        with self.alone(plan.trajectory.data.digest):
            return prepare(plan, storage, report=on_event)

    def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
        import ray

        self.stop = stop
        logs = self._logs()
        if self.fit is None or self.fit.done():
            self._bring_up(plan, on_event)
        assert self.fit is not None
        try:
            ray.get(self.desk.give.remote(plan.model_dump_json(), plan.hang_timeout_s))
            return self._follow(self.fit, self.desk, on_event, stop, plan.run_id, logs)
        except BaseException:
            if not self._stays():
                self._drop()
            raise

    def _stays(self) -> bool:
        """Whether the group, whose plan raised, waits for the next one."""
        import ray
        from ray.exceptions import RayError

        try:
            return self.fit is not None and not self.fit.done() and ray.get(self.desk.on_turn.remote()) is None
        except RayError:
            return False

    def _bring_up(self, plan: Plan, on_event: OnEvent) -> None:
        from shoal.backends.desk import Desk

        on_event({"kind": "phase", "phase": "starting", "detail": f"{plan.layout.workers} workers"})
        self._drop()
        with self._waiting():
            self.await_room(on_event)
        self.scratch = tempfile.mkdtemp(prefix="shoal-")
        self.desk = beside(Desk)
        self.fit = RAY.submit(_fit, self.desk, plan, self.entry, self.profile, self.scratch)

    def save(self) -> None:
        """Asks the run for a checkpoint; it is told of as any other."""
        self.desk.save.remote()

    def over(self, fit: "Future[Any]", mailbox: Any) -> bool:
        import ray

        return bool(wait_for([fit], timeout=FOLLOW_S).done) or ray.get(mailbox.result.remote()) is not None

    def outcome(self, fit: "Future[Any]", mailbox: Any) -> Result:
        import ray

        result = ray.get(mailbox.result.remote())
        if result is None:
            fit.result()
        if isinstance(result, ShoalError):
            raise result
        assert isinstance(result, Result), "the group left without a result"
        return result

    def close(self) -> None:
        """The group goes home."""
        import ray
        from ray.exceptions import RayError

        if self.desk is None or self.fit is None:
            return
        try:
            ray.get(self.desk.close.remote(), timeout=HOME_S)
            wait_for([self.fit], timeout=HOME_S)
        except RayError:
            pass  # whoever is left dies with this process
        self._drop()

    def _drop(self) -> None:
        import ray

        if self.desk is not None:
            ray.kill(self.desk)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.desk, self.fit, self.scratch = None, None, ""


class LocalSlot(Slot, RayLocal):
    """On an embedded Ray, which was made with room for all."""


class ClusterSlot(Slot, RayCluster):
    """On a cluster, where room may have to be waited for: for as long as others of the sweep train, since theirs comes free."""

    def is_too_long(self, waited_s: float) -> bool:
        return self.stop.is_set() or min(waited_s, self.still_s()) >= self.profile.wait_s


def slot_for(profile: ClusterProfile, entry: Entry | None = None) -> Slot:
    """The slot of one process; `start()` comes first, as with any backend."""
    return ClusterSlot(profile, entry) if profile.kind == "ray" else LocalSlot(profile, entry)


def _fit(desk: Any, plan: Plan, entry: Entry | None, profile: ClusterProfile, scratch: str) -> None:
    """Blocks for as long as the group is needed."""
    from shoal.backends.failures import TurnFailures
    from shoal.backends.ray_worker import work_on

    config = {"mailbox": desk, "entry": entry}
    counted = TurnFailures(desk, plan.max_failures, plan.max_preemptions)
    trainer(work_on, config, profile, plan.run_id, UNLIMITED, [counted], scratch).fit()
