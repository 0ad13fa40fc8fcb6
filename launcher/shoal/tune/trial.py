"""A trial as Ray Tune drives it: each result is one point of the metric, of a run that trains beside.

The actor is reused from trial to trial (`reset_config`), and with it its slot of workers. What lies in the store decides
how a trial begins: one that has ended tells its points again and ends as it did; one that was under way tells them and
goes on from its newest checkpoint; any other is written down and begins.

Population based training (`save`, `restore`): a trial that takes over another's weights ends, and a new trial with
a number and a run of its own, whose plan names that checkpoint as its parent, goes on at its place.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import tune

from shoal.backends.inline import quiet
from shoal.backends.ray_train import Entry
from shoal.plan.types import Parent, Plan
from shoal.runs import RunFolder
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage
from shoal.train import manifest
from shoal.train.world import Event
from shoal.tune.board import Point, best, comparable
from shoal.tune.folder import Origin, SweepFolder, SweepPlan, TrialEnd
from shoal.tune.known import look_up, successor
from shoal.tune.sitting import Sitting
from shoal.tune.slot import Slot, slot_for
from shoal.tune.space import apply, settled, trial_count

POLL_S = 0.5
"""How often a trial tells of its steps, and hears whether it must leave."""
SAVE_S = 300.0
"""How long a checkpoint for another trial may take; then an older one is given."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep are given."""

    plan: SweepPlan
    profile: ClusterProfile
    """Of one trial: its workers are a number."""
    post: str
    """The name of the actor that trials and driver hear of each other through."""
    entry: Entry | None = None
    """Stands in for train.entry.run."""


class TrialActor(tune.Trainable):
    """A process that carries out one trial after another. `shared` is set in a subclass that the sweep makes."""

    shared: Shared

    def setup(self, config: dict[str, Any]) -> None:
        quiet()
        plan, profile = self.shared.plan, self.shared.profile
        self.spec = plan.spec
        self.storage = Storage(profile.storage.s3)
        self.folder = SweepFolder.of(self.storage, profile.storage.runs, plan.sweep_id)
        self.post = ray.get_actor(self.shared.post)
        self.slot: Slot = slot_for(profile, self.shared.entry)
        self.slot.alone = self._alone
        self.slot.still_s = self._still_s
        self.slot.start()
        self.events: deque[Event] = deque()
        self.sitting: Sitting | None = None
        self._prepare(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._prepare(new_config)
        return True

    def cleanup(self) -> None:
        self._leave()
        self.slot.close()

    def step(self) -> Result:
        if not self.is_announced:
            self.is_announced = True
            own = {"trial": self.number, "run": self.known.trial.run, "params": self.known.trial.params}
            self.events.append({"kind": "trial", **own})
            self._tell()
        if self.earlier:
            return self._result(self.earlier.popleft())
        if self.known.end is not None:
            return self._last(self.known.end, told=True)
        if self.sitting is None:
            if leaving := self._tell():
                return self._left(leaving)
            self.sitting = self._sit_down()
        return self._next(self.sitting)

    def save_checkpoint(self, checkpoint_dir: str) -> Result:
        """Where another trial, or this one after a pause, can go on: a checkpoint of this trial's run."""
        sitting, told = self.sitting, self.points[-1].step if self.points else 0
        deadline = time.monotonic() + SAVE_S
        if sitting is not None and not sitting.over and sitting.saved < told:
            self.slot.save()
            while not sitting.over and sitting.saved < told and time.monotonic() < deadline:
                time.sleep(POLL_S / 10)
        found = manifest.newest(self.storage, self.folder.run(self.number))
        own = {"number": self.number, "run": self.known.trial.run, "told": told}
        if found is None:
            return {**own, "step": 0, "tokens": 0}
        is_last = sitting is not None and 0 < sitting.steps <= found.step
        return {**own, "step": found.step, "tokens": found.tokens, "is_last": is_last}

    def load_checkpoint(self, checkpoint: Result | None) -> None:
        """After a pause this trial goes on; with another's checkpoint a new one begins at its place, unless that one's
        training was over: then there is nothing left to do with other numbers, and this trial goes on as well."""
        assert checkpoint is not None
        if checkpoint["run"] == self.known.trial.run:
            self.points = [one for one in self.known.points if one.step <= checkpoint["told"]]
            self.earlier = deque(one for one in self.known.points if one.step > checkpoint["told"])
        elif checkpoint["step"] and not checkpoint["is_last"]:
            self._take_over(checkpoint)

    def _prepare(self, config: dict[str, Any]) -> None:
        """What is known of the trial whose turn it is, before anything of it begins."""
        self.place, self.params = int(self.trial_name), settled(config)
        population = self.spec.scheduler == "pbt"
        self.known = look_up(self.folder, self.place, self.spec.metric, population)
        self.is_announced = False
        self.points: list[Point] = []
        self.held: Point | None = None
        self.earlier: deque[Point] = deque()
        if population:
            self.points += self.known.points  # it forgets: what trials do from now on is what counts
        else:
            self.earlier += self.known.points
        if self.known.is_through and not self.known.end and self.earlier:
            self.held = self.earlier.pop()  # the run was through, and nobody heard of it

    @property
    def number(self) -> int:
        return self.known.trial.number

    def _take_over(self, checkpoint: Result) -> None:
        origin = Origin(checkpoint["run"], checkpoint["step"], checkpoint["tokens"])
        before = self._make_end("stopped", "")
        self.known = successor(self.folder, trial_count(self.spec) + 1, self.place, self.params, origin)
        why = f"pbt: trial {self.number} goes on at its place, with the weights of trial {checkpoint['number']}"
        self.events.append({"kind": "replaced", "end": {**vars(before), "why": why}})
        self.points, self.earlier, self.held, self.is_announced = [], deque(), None, False

    def _sit_down(self) -> Sitting:
        known = self.known
        sitting = Sitting(
            job=apply(self.shared.plan.job, known.trial.params),
            profile=self.shared.profile,
            storage=self.storage,
            backend=self.slot,
            run_id=known.trial.run,
            metric=self.spec.metric,
            amend=self._amended,
            after=self.points[-1] if self.points else known.start,
            tell=self.events.append,
            waited_s=lambda: self.slot.waited_s,
        )
        sitting.start()
        return sitting

    def _amended(self, plan: Plan) -> Plan:
        """The plan with what trials share, and with its parent, where the trial begins with another's checkpoint."""
        shared = plan.storage.model_copy(update={"baselines": self.folder.baselines})
        plan = plan.model_copy(update={"storage": shared})
        origin = self.known.trial.origin
        if origin is None:
            return plan
        run = RunFolder(self.storage, f"{plan.storage.run.rpartition('/')[0]}/{origin.run}")
        trajectory = plan.trajectory.model_copy(update={"parent": Parent(run=run.url, step=origin.step)})
        return plan.model_copy(update={"trajectory": trajectory})

    def _next(self, sitting: Sitting) -> Result:
        """Waits for the next point. The one of the last step is told when the run is over: it is the trial's result."""
        told = time.monotonic()
        leaving = ""
        while not sitting.over:
            point = sitting.next(POLL_S / 2)
            if time.monotonic() - told > POLL_S:
                told = time.monotonic()
                leaving = self._tell() or leaving
                if leaving:
                    sitting.stop.set()
            if point is not None and point.step >= sitting.steps:
                self.held = point
            elif point is not None:
                self._tell()
                return self._result(point)
        return self._over(sitting, leaving)

    def _over(self, sitting: Sitting, leaving: str) -> Result:
        ended = sitting.ended
        assert ended is not None
        if ended.outcome is not None and ended.outcome.result.state == "finished":
            value = ended.outcome.result.loss if self.spec.metric == "validation.loss" else None
            if self.held is not None:
                self.points.append(self.held)
            return self._last(self._make_end("finished", "", value))
        if ended.outcome is not None or ended.can_go_on:
            return self._left(leaving or ended.why)
        return self._last(self._make_end("failed", ended.why))

    def _make_end(
        self, state: Literal["finished", "stopped", "failed"], why: str, value: float | None = None
    ) -> TrialEnd:
        sitting, last = self.sitting, self.points[-1] if self.points else self.known.start
        seconds, start_s = (sitting.seconds, sitting.start_s) if sitting else (0.0, None)
        metric = self.points[-1].value if self.points else None
        return TrialEnd(
            number=self.number,
            state=state,
            why=why,
            metric=metric if value is None else value,
            best=best(self.points, self.spec.mode),
            step=max(sitting.step if sitting else 0, last.step if last else 0),
            tokens=max(sitting.tokens if sitting else 0, last.tokens if last else 0),
            seconds=round(self.known.seconds + seconds, 3),
            start_s=None if start_s is None else round(start_s, 3),
            retries=sitting.retries if sitting else 0,
        )

    def _result(self, point: Point) -> Result:
        self.points.append(point)
        end = self._make_end("stopped", "")
        return self._said(end, step=point.step, tokens=point.tokens) | {
            "metric": comparable(point.value, self.spec.mode)
        }

    def _last(self, end: TrialEnd, told: bool = False) -> Result:
        """The end of the trial. `told`: it stands in the store already. One that failed has no value."""
        said = self._said(end, step=end.step, tokens=end.tokens) | {"done": True, "told": told}
        self._tell()
        return (
            said
            if end.state == "failed" or end.metric is None
            else said | {"metric": comparable(end.metric, self.spec.mode)}
        )

    def _left(self, why: str) -> Result:
        """The trial leaves, and can go on."""
        end = self._make_end("stopped", why)
        self._tell()
        return self._said(end, step=end.step, tokens=end.tokens) | {"done": True, "left": why}

    def _said(self, end: TrialEnd, step: int, tokens: int) -> Result:
        """What every result says. To a scheduler the tokens before the origin count as well."""
        origin = self.known.trial.origin
        return {"step": step, "tokens": tokens + (origin.tokens if origin else 0), "end": vars(end)}

    def _leave(self) -> None:
        """Tune has ended the trial: its run saves and leaves. How far it came in the end is told to the driver."""
        sitting, self.sitting = self.sitting, None
        if sitting is not None and not sitting.over:
            sitting.leave()
            while (point := sitting.next(0)) is not None:
                self.points.append(point)
            self.sitting = sitting
            self.events.append({"kind": "left", "end": vars(self._make_end("stopped", ""))})
            self.sitting = None
        self._tell()

    def _tell(self) -> str:
        """What happened since the last time; of steps the newest alone. Answers why the trial must leave, if it must."""
        taken = [self.events.popleft() for _ in range(len(self.events))]
        steps = [event for event in taken if event["kind"] == "step"]
        kept = [event for event in taken if event["kind"] not in ("step", "storage")] + steps[-1:]
        sitting = self.sitting
        if sitting is not None:
            seconds = self.known.seconds + sitting.seconds
            kept.append({"kind": "spent", "step": sitting.step, "tokens": sitting.tokens, "seconds": seconds})
        leaving: Any = ray.get(self.post.tell.remote([{"trial": self.number, **event} for event in kept]))
        return leaving

    def _still_s(self) -> float:
        still_s: Any = ray.get(self.post.still_s.remote())
        return still_s

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        while not ray.get(self.post.take.remote(digest, self.number)):
            time.sleep(POLL_S)
        try:
            yield
        finally:
            ray.get(self.post.give_back.remote(self.number))
