"""A sweep: one Ray, one preparation of the data, and Ray Tune over trials that are runs.

Tune's own state is scratch. What lasts lies in the store: each suggestion before its trial begins, each end, and the
trials' runs. A sweep that is resumed makes Tune anew: the same suggestions come again in the same order, trials tell
again what they told before, and go on where they were.
"""

import logging
import os
import random
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait as wait_for
from contextlib import closing, contextmanager, suppress
from itertools import count
from typing import Any, cast

from shoal import launch
from shoal.backends import OnEvent
from shoal.backends.group import beside
from shoal.backends.ray_train import RAY, Entry, RayTrain
from shoal.errors import ClusterError, Problem, ShoalError, SpecError, StorageError
from shoal.lease import held
from shoal.plan.types import Plan
from shoal.record import rows
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage
from shoal.train.world import Event
from shoal.tune.board import Board, board
from shoal.tune.folder import SweepFolder, SweepPlan, Trial, TrialEnd
from shoal.tune.room import concurrent, seat
from shoal.tune.space import Params, settled, trial_count, trial_profile

WAIT_S = 0.2
LEASE_S = launch.REPLACED_S
DEATHS = 3
"""Times that a trial's own process may die before the trial has failed."""
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that leaves reports none
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own state is thrown away
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_sweep(
    plan: SweepPlan,
    profile: ClusterProfile,
    storage: Storage,
    on_event: OnEvent,
    stop: threading.Event,
    backend: RayTrain | None = None,
) -> Board:
    """Carry out a new sweep; its leaderboard. `backend`: a Ray of the profile's that is up, and stays up afterwards.

    Raises: ShoalError; StorageError when there is a sweep of that id.
    """
    _require_ray(profile)
    folder = SweepFolder.of(storage, profile.storage.runs, plan.sweep_id)
    with held(folder.lease, on_lost=stop.set, on_asked=_asked(on_event, stop)):
        folder.write_plan(plan)
        with _failing(folder):
            return _drive(plan, folder, profile, storage, on_event, stop, backend)


def resume_sweep(
    folder: SweepFolder,
    profile: ClusterProfile,
    storage: Storage,
    on_event: OnEvent,
    stop: threading.Event,
    backend: RayTrain | None = None,
) -> Board:
    """Go on with a sweep: trials that ended are kept, the others continue. One that is finished is shown."""
    _require_ray(profile)
    plan = folder.read_plan()
    with held(folder.lease, on_lost=stop.set, wait_s=LEASE_S, on_asked=_asked(on_event, stop)):
        if _is_finished(folder):
            on_event(_begins(plan, folder))
            on_event({"kind": "note", "message": f"{folder.id} is finished already: there is nothing to do"})
            return board(folder)
        with _failing(folder):
            return _drive(plan, folder, profile, storage, on_event, stop, backend)


def _require_ray(profile: ClusterProfile) -> None:
    if profile.kind == "inline":
        fix = "use --on local, or kind: ray"
        raise SpecError(Problem("kind", "inline is this process alone, and a sweep needs Ray", fix))


@contextmanager
def _failing(folder: SweepFolder) -> Iterator[None]:
    """What ends a sweep is written down, where the store is not what ended it."""
    try:
        yield
    except StorageError:
        raise
    except ShoalError as error:
        said = {"error": type(error).__name__, "message": str(error)}
        with suppress(StorageError):
            rows.append(folder.lease, {"kind": "ended", "time": rows.stamp(), "state": "failed", **said})
        raise


def _asked(on_event: OnEvent, stop: threading.Event) -> Callable[[str], None]:
    def leave(by: str) -> None:
        on_event({"kind": "note", "message": f"{by} asks to stop: the trials that run save first"})
        stop.set()

    return leave


def _begins(plan: SweepPlan, folder: SweepFolder) -> Event:
    own = {"sweep": folder.id, "folder": folder.url}
    return {
        "kind": "sweep",
        **own,
        "metric": plan.spec.metric,
        "mode": plan.spec.mode,
        "trials": trial_count(plan.spec),
    }


def _is_finished(folder: SweepFolder) -> bool:
    end = rows.last_end(rows.read(folder.lease).events)
    return end is not None and end["state"] == "finished"


def _drive(
    plan: SweepPlan,
    folder: SweepFolder,
    profile: ClusterProfile,
    storage: Storage,
    on_event: OnEvent,
    stop: threading.Event,
    backend: RayTrain | None,
) -> Board:
    if backend is None:
        # A cluster has room for the sweep when it has for one trial; a Ray of our own is made for all at once.
        place = profile if profile.kind == "local" else trial_profile(plan.spec, profile)
        with closing(cast(RayTrain, launch.backend_for(place))) as backend:
            backend.start()
            return _drive(plan, folder, profile, storage, on_event, stop, backend)
    each = trial_profile(plan.spec, profile)
    each = each.model_copy(update={"workers": each.max_workers})
    on_event(_begins(plan, folder))
    rows.append(
        folder.lease, {"kind": "driver", "time": rows.stamp(), "host": socket.gethostname(), "pid": os.getpid()}
    )
    made = launch.prepared_plan(plan.job, each, storage, backend, on_event)
    earlier = folder.read_trials()
    many = concurrent(plan.spec, profile, each)
    scratch = tempfile.mkdtemp(prefix="shoal-sweep-")
    try:
        tuning = backend.fit = RAY.submit(
            _tune, plan, folder, each, made, earlier, backend.entry, many, scratch, on_event, stop
        )
        while not wait_for([tuning], timeout=WAIT_S).done:
            pass  # the main thread stays free for signals
        finished = tuning.result()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows.append(folder.lease, {"kind": "ended", "time": rows.stamp(), "state": "finished" if finished else "stopped"})
    return board(folder)


def _tune(
    plan: SweepPlan,
    folder: SweepFolder,
    each: ClusterProfile,
    made: Plan,
    earlier: Sequence[tuple[Trial, TrialEnd | None]],
    entry: Entry | None,
    many: int,
    scratch: str,
    on_event: OnEvent,
    stop: threading.Event,
) -> bool:
    """Blocks until all trials have ended or left; whether the sweep is finished. In the thread that owns Ray."""
    os.environ.update(TUNE_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the display alone speaks
    import numpy as np
    import ray

    from shoal.tune import search
    from shoal.tune.post import Post
    from shoal.tune.trial import Shared, TrialActor
    from shoal.tune.watch import BUDGET, STOPPED, Watch

    spec = plan.spec
    random.seed(spec.seed)  # ASHA's brackets and PBT's changes are drawn from the global generators
    np.random.seed(spec.seed)
    name = f"post-{folder.id}-{secrets.token_hex(4)}"
    post = beside(Post, name=name)
    suggests = search.search(spec, _suggested(earlier), many)
    price = (each.price_per_worker_hour or 0.0) * each.max_workers
    watch = Watch(spec, folder, post, suggests, price, each.wait_s, on_event, stop)
    taken = seat(many, population=spec.scheduler == "pbt")
    given = {"shared": Shared(plan, each, name, entry), "default_resource_request": classmethod(lambda *_: taken)}
    actor = type("TrialActor", (TrialActor,), given)
    _tuner(plan, folder, made, earlier, actor, suggests, watch, scratch).fit()
    watch.drain()
    ray.kill(post)
    if watch.left and watch.leaving != STOPPED:
        raise ClusterError(*(Problem(f"trial {number}", f"left: {why}") for number, why in sorted(watch.left.items())))
    return watch.leaving in ("", BUDGET) and len(watch.ended) == len(watch.began)


def _tuner(
    plan: SweepPlan,
    folder: SweepFolder,
    made: Plan,
    earlier: Sequence[tuple[Trial, TrialEnd | None]],
    actor: type,
    suggests: Any,
    watch: Any,
    scratch: str,
) -> Any:
    """The sweep as Tune's own `Tuner`. `suggests` is its searcher, `watch` hears of each trial."""
    from ray import tune

    from shoal.tune import search
    from shoal.tune.known import look_up
    from shoal.tune.pace import pace

    spec = plan.spec
    stopping = spec.scheduler in ("asha", "median")
    known = [look_up(folder, one.number, spec.metric, population=False) for one, _ in earlier if stopping]
    return tune.Tuner(
        actor,
        param_space=search.space(spec),
        tune_config=tune.TuneConfig(
            metric=search.METRIC,
            mode=spec.mode,
            search_alg=suggests,
            scheduler=search.scheduler(spec, pace(made, spec.metric), known),
            num_samples=search.samples(spec, trial_count(spec)),
            reuse_actors=True,
            trial_name_creator=_names(folder, [trial.number for trial, _ in earlier]),
            trial_dirname_creator=str,
        ),
        run_config=tune.RunConfig(
            name=folder.id,
            storage_path=scratch,
            callbacks=[watch],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _suggested(earlier: Sequence[tuple[Trial, TrialEnd | None]]) -> list[Params]:
    """What stands at the place of each suggestion now, in their order; nothing for one that never began."""
    found = {trial.place: trial.params for trial, _ in earlier}
    return [found.get(place, {}) for place in range(1, max(found, default=0) + 1)]


def _names(folder: SweepFolder, written: Sequence[int]) -> Callable[[Any], str]:
    """Names suggestions by their number, and writes down those that are not `written`."""
    numbers = count(1)

    def name(trial: Any) -> str:
        number = next(numbers)
        if number not in written:
            folder.write_trial(Trial(number, settled(trial.config), folder.run_id(number), rows.stamp()))
        return f"{number:04d}"

    return name
