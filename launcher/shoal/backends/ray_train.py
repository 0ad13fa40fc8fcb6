"""A plan on Ray Train, whichever Ray it is: an embedded one (ray_local.py) or a running cluster (ray_cluster.py).

One thread owns Ray for the life of the process: `ray.init` runs there while the driver plans, `fit` blocks there while
the main thread listens to signals and drains the mailbox. (Ray's processes die with the thread that started them, so
that thread must live as long as the process; and Ray installs its own signal handlers when it runs on the main thread.)

The trainer is Ray Train's DataParallelTrainer with a process group of our own making rather than TorchTrainer, which
imports torch into the driver and into the controller: four seconds before the first worker starts.
"""

import math
import os
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any, TypeVar

from shoal.backends import Answer, OnEvent
from shoal.backends.group import beside, trainer
from shoal.plan.types import Layout, Plan
from shoal.spec.cluster import ClusterProfile, WorkersSpec
from shoal.train.world import Event, Report, Result, World

if TYPE_CHECKING:
    from shoal.data.prepare import PreparedSummary
    from shoal.storage import Storage

Task = TypeVar("Task")
Done = TypeVar("Done")
Entry = Callable[[Plan, World, Report], Result]

DRAIN_INTERVAL_S = 0.2
TASKS_PER_CPU = 2
"""How many tasks wait at Ray: enough that no CPU does, few enough that memory does not grow with their number."""
SHUTDOWN_S = 5.0

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a run and a dead worker are noticed this soon
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the mailbox watches, and the group leaves by itself
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative locations mean the same in the driver and in the workers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1",  # NCCL peers on one machine must see each other's devices
}
"""Read by Ray when it starts; a value that the user has set wins. A kind of Ray may have more."""

RAY = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray")


class RayTrain(ABC):
    """Workers as processes of a Ray; a killed one is replaced up to `plan.max_failures` times."""

    place: str
    """Where the workers are, in words."""
    environment: Mapping[str, str] = {}
    """What this kind of Ray reads beside RAY_ENVIRONMENT."""

    def __init__(self, profile: ClusterProfile, entry: Entry | None = None) -> None:
        """`entry` stands in for train.entry.run."""
        self.profile = profile
        self.entry = entry
        self.up: Future[str] | None = None
        self.fit: Future[Any] | None = None

    @abstractmethod
    def connect(self) -> str:
        """Bring Ray up, or join it, in the thread that owns it. Returns the folder of its logs. Raises: ClusterError."""
        ...

    @abstractmethod
    def await_room(self, on_event: OnEvent) -> None:
        """Wait until there is room for the profile's workers. Raises: ClusterError when there is none."""
        ...

    @abstractmethod
    def require_room(self, down_s: float) -> None:
        """A run has had no group of workers for so long. Raises: ClusterError when that is too long."""
        ...

    def start(self) -> None:
        self.up = RAY.submit(self.connect)

    def prepare(self, plan: Plan, storage: "Storage", on_event: OnEvent) -> "PreparedSummary":
        from shoal.data.prepare import prepare

        self._logs()
        self.await_room(on_event)
        return prepare(plan, storage, run=self.map, report=on_event)

    def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
        on_event({"kind": "phase", "phase": "starting", "detail": _workers(plan.layout, self.place)})
        logs = self._logs()
        self.await_room(on_event)
        scratch = tempfile.mkdtemp(prefix="shoal-")  # Ray Train writes its own bookkeeping there; nothing of ours
        try:
            mailbox = RAY.submit(_mailbox, plan.hang_timeout_s).result()
            self.fit = RAY.submit(_fit, plan, mailbox, self.entry, self.profile, scratch)
            return self._follow(self.fit, mailbox, on_event, stop, plan.run_id, logs)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _follow(
        self, fit: "Future[Any]", mailbox: Any, on_event: OnEvent, stop: threading.Event, run_id: str, logs: str
    ) -> Result:
        """Hand events on until the run is over; the main thread stays free for signals.

        Raises: what a worker raised, if it was meant for a person; TrainingError for workers that died too often.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError
        from ray.train import TrainingFailedError

        from shoal.backends.failures import ray_failed, unwrap

        pids: dict[int, int] = {}
        failure: Event | None = None
        down_since: float | None = time.monotonic()
        try:
            over = False
            while not over:
                if down_since is not None:
                    self.require_room(time.monotonic() - down_since)
                over = self.over(fit, mailbox)
                for event in ray.get(mailbox.drain.remote(stop.is_set())):
                    pids = event.get("pids", pids)
                    if event["kind"] == "failure":
                        failure, down_since = event, time.monotonic()
                    elif "pids" in event:
                        down_since = None
                    on_event(event)
            return self.outcome(fit, mailbox)
        except TrainingFailedError as error:
            raise unwrap(error, run_id, logs, pids, failure) from None
        except RayTaskError:
            raise  # a bug of ours
        except RayError as error:
            raise ray_failed(error, logs) from error

    def over(self, fit: "Future[Any]", mailbox: Any) -> bool:
        """Whether there will be no more events; waits a little."""
        return bool(wait_for([fit], timeout=DRAIN_INTERVAL_S).done)

    def outcome(self, fit: "Future[Any]", mailbox: Any) -> Result:
        """What rank 0 returned, once it is over. Raises what a worker raised."""
        import ray

        ray.kill(mailbox)
        return fit.result()

    def close(self) -> None:
        """Ray goes down. Its agents outlive it by a minute unless it goes in order, which takes a second or two.

        Nobody waits for a Ray that is still starting, or busy with a run that was left by force.
        """
        if self.up is None:
            return
        idle = self.up.done() and (self.fit is None or self.fit.done())
        self.up = self.fit = None
        down = RAY.submit(_shutdown)
        if idle:
            wait_for([down], timeout=SHUTDOWN_S)

    def _logs(self) -> str:
        """Wait until Ray is up; the folder of its logs."""
        assert self.up is not None, "start() comes first"
        return self.up.result()

    def map(self, work: Callable[[Task], Iterator[Done]], todo: Iterable[Task]) -> Iterator[Done]:
        """Does each task in a Ray task and gives what comes of any of them, as it comes; a ShoalError comes out as itself.

        A task that is lost with its process is done again, so `work` must give equally many items each time.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        from shoal.backends.failures import ray_failed
        from shoal.backends.inline import quiet

        waiting = deque(todo)
        if not waiting:
            return
        logs = self._logs()

        def each(task: Any) -> Iterator[Done]:
            quiet()  # of tokenizers' threads as well: a task has one CPU
            # Ray sends values into the generator, which no other iterator takes
            for item in work(task):  # noqa: UP028
                yield item

        remote: Any = ray.remote(num_cpus=1, num_returns="streaming")(each)
        window = max(1, math.ceil(ray.cluster_resources().get("CPU", 1) * TASKS_PER_CPU))
        running: list[Any] = []
        try:
            while waiting or running:
                while waiting and len(running) < window:
                    running.append(remote.remote(waiting.popleft()))
                ready: Any = ray.wait(running, num_returns=1, fetch_local=False)[0][0]
                try:
                    item: Any = ray.get(next(ready))
                except StopIteration:
                    running.remove(ready)
                else:
                    yield item
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise ray_failed(error, logs) from error
        finally:
            for one in running:
                ray.cancel(one)

    def everywhere(self, work: Callable[[int, int], Done], gpus: int = 0) -> list[Answer[Done]]:
        self._logs()
        from shoal.backends.nodes import everywhere

        return everywhere(work, gpus)


def set_environment(more: Mapping[str, str]) -> None:
    """What Ray reads when it is imported and started; afterwards the display alone speaks."""
    for name, value in (RAY_ENVIRONMENT | dict(more)).items():
        os.environ.setdefault(name, value)
    import ray._private.worker

    # Ray prints what its daemons have to say of a lost worker on stdout, log_to_driver or not; stdout is the display's.
    ray._private.worker._worker_logs_enabled = False


def _workers(layout: Layout, place: str) -> str:
    elastic = f"{layout.min_workers} to " if layout.min_workers < layout.workers else ""
    return f"{elastic}{layout.workers} worker{'s' if layout.workers > 1 else ''} on {place}"


def _shutdown() -> None:
    import ray

    ray.shutdown()


def _mailbox(hang_timeout_s: float) -> Any:
    """One that is started again, whatever becomes of its process."""
    from shoal.backends.mailbox import Mailbox

    return beside(Mailbox, hang_timeout_s, max_restarts=-1, max_task_retries=-1)


def _fit(plan: Plan, mailbox: Any, entry: Entry | None, profile: ClusterProfile, scratch: str) -> Result:
    """Blocks until the run is over; rank 0's return value."""
    from shoal.backends.elastic import Resizes
    from shoal.backends.failures import Failures
    from shoal.backends.ray_worker import work

    callbacks: list[Any] = [Failures(mailbox, plan.max_failures, plan.max_preemptions)]
    if isinstance(profile.workers, WorkersSpec):
        callbacks.append(Resizes(mailbox))
    config = {"plan": plan.model_dump_json(), "mailbox": mailbox, "entry": entry}
    budget = (plan.max_failures, plan.max_preemptions)
    result = trainer(work, config, profile, plan.run_id, budget, callbacks, scratch).fit().return_value
    assert isinstance(result, Result), "rank 0 returned no result"
    return result
