"""A trial as Ray Tune drives it: each result is one point of the metric, of a run that trains beside.

The actor is reused from trial to trial (`reset_config`), and with it its slot of workers. What lies in the store decides
how a trial begins: one that has ended tells its points again and ends as it did; one that was under way tells them and
goes on from its newest checkpoint; any other is written down and begins.
"""

import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from ray import tune

from shoal.record import rows
from shoal.record.ledger import ledger
from shoal.record.rows import stamp
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage, absolute, join
from shoal.train.world import Event
from shoal.tune.board import Point, best, curve
from shoal.tune.folder import SweepFolder, SweepPlan, Trial, TrialEnd
from shoal.tune.post import post_name
from shoal.tune.sitting import Sitting
from shoal.tune.slot import Slot, slot_for
from shoal.tune.space import apply, settled

POLL_S = 0.5
"""How often a trial tells of its steps, and hears whether it must leave."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep are given."""

    plan: SweepPlan
    profile: ClusterProfile
    """Of one trial: its workers are a number."""


def end_of(result: Result) -> TrialEnd:
    """The end that the last result of a trial says."""
    return TrialEnd(**result["end"])


class TrialActor(tune.Trainable):
    """A process that carries out one trial after another. `shared` is set in a subclass that the sweep makes."""

    shared: Shared

    def setup(self, config: dict[str, Any]) -> None:
        import ray

        from shoal.backends.inline import quiet

        quiet()
        plan, profile = self.shared.plan, self.shared.profile
        self.storage = Storage(profile.storage.s3)
        self.folder = SweepFolder(self.storage, join(absolute(profile.storage.runs), plan.sweep_id))
        self.post = ray.get_actor(post_name(plan.sweep_id))
        self.slot: Slot = slot_for(profile)
        self.slot.alone = self._alone
        self.slot.start()
        self._prepare(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._prepare(new_config)
        return True

    def step(self) -> Result:
        if self.earlier:
            return self._result(self.earlier.popleft())
        if self.recorded is not None:
            return self._last(self.recorded, told=True)
        if self.sitting is None:
            if leaving := self._tell():
                return self._left(leaving)
            self._sit_down()
        return self._next(cast(Sitting, self.sitting))

    def cleanup(self) -> None:
        self._leave()
        self.slot.close()

    def _prepare(self, params: dict[str, Any]) -> None:
        """What is known of the trial whose turn it is, before anything of it begins."""
        self.number = int(self.trial_name)
        self.params = settled(params)
        self.sitting: Sitting | None = None
        self.events: deque[Event] = deque()
        self.held: Point | None = None
        self.leaving = ""
        self.points: list[Point] = []
        recorded = self._recorded()
        self.trial = recorded or Trial(self.number, self.params, self.folder.run_id(self.number), stamp())
        self.recorded = self._end() if recorded else None
        record = rows.read(self.folder.run(self.number)) if recorded else rows.Record([], [])
        book = ledger(record.events, record.metrics)
        self.seconds_before = book.total - book.seconds["down"]
        last = self.recorded.step if self.recorded else None
        found = curve(record, self.shared.plan.spec.metric)
        self.earlier = deque(one for one in found if one.step and (last is None or one.step <= last))
        if recorded and not self.recorded and self.earlier and self.storage.exists(self.folder.run(self.number).result):
            self.held = self.earlier.pop()  # the run is through, and the driver died before it heard of it

    def _recorded(self) -> Trial | None:
        url = self.folder.trial(self.number)
        return Trial(**json.loads(self.storage.read(url))) if self.storage.exists(url) else None

    def _end(self) -> TrialEnd | None:
        url = self.folder.end(self.number)
        return TrialEnd(**json.loads(self.storage.read(url))) if self.storage.exists(url) else None

    def _sit_down(self) -> None:
        if not self.storage.exists(self.folder.trial(self.number)):
            self.folder.write_trial(self.trial)
        self.sitting = Sitting(
            job=apply(self.shared.plan.job, self.trial.params),
            profile=self.shared.profile,
            storage=self.storage,
            backend=self.slot,
            run_id=self.trial.run,
            metric=self.shared.plan.spec.metric,
            amend=lambda plan: plan,
            after=self.points[-1] if self.points else None,
            tell=self.events.append,
        )
        self.sitting.start()

    def _next(self, sitting: Sitting) -> Result:
        """Waits for the next point. The one of the last step is told when the run is over: it is the trial's result."""
        told = time.monotonic()
        while not sitting.over:
            point = sitting.next(POLL_S / 2)
            if time.monotonic() - told > POLL_S:
                told = time.monotonic()
                self.leaving = self._tell()
                if self.leaving:
                    sitting.stop.set()
            if point is not None and point.step >= sitting.steps:
                self.held = point
            elif point is not None:
                self._tell()
                return self._result(point)
        return self._over(sitting)

    def _over(self, sitting: Sitting) -> Result:
        ended = sitting.ended
        assert ended is not None
        if ended.outcome is not None and ended.outcome.result.state == "finished":
            value = ended.outcome.result.loss if self.shared.plan.spec.metric == "validation.loss" else None
            if self.held is not None:
                self.points.append(self.held)
            return self._last(self._make_end("finished", "", value))
        if ended.outcome is not None or ended.can_go_on:
            return self._left(self.leaving or ended.why)
        return self._last(self._make_end("failed", ended.why))

    def _make_end(self, state: Any, why: str, value: float | None = None) -> TrialEnd:
        sitting = self.sitting
        last = self.points[-1] if self.points else None
        seconds = sitting.seconds if sitting else 0.0
        return TrialEnd(
            number=self.number,
            state=state,
            why=why,
            metric=value if value is not None else (last.value if last else None),
            best=best(self.points, self.shared.plan.spec.mode),
            step=max(sitting.step if sitting else 0, last.step if last else 0),
            tokens=max(sitting.tokens if sitting else 0, last.tokens if last else 0),
            seconds=round(self.seconds_before + seconds, 3),
            start_s=round(sitting.start_s, 3) if sitting and sitting.start_s is not None else None,
            retries=sitting.retries if sitting else 0,
        )

    def _result(self, point: Point) -> Result:
        self.points.append(point)
        end = self._make_end("stopped", "")
        return {"metric": point.value, "tokens": point.tokens, "step": point.step, "end": vars(end)}

    def _last(self, end: TrialEnd, told: bool = False) -> Result:
        """The end of the trial. `told`: it stands in the store already. One that failed has no value."""
        self._tell()
        said = {"done": True, "tokens": end.tokens, "step": end.step, "end": vars(end), "told": told}
        return said if end.state == "failed" or end.metric is None else said | {"metric": end.metric}

    def _left(self, why: str) -> Result:
        """The trial leaves, and can go on."""
        end = self._make_end("stopped", why)
        self._tell()
        return {"done": True, "tokens": end.tokens, "step": end.step, "end": vars(end), "left": why}

    def _leave(self) -> None:
        """Tune has ended the trial: its run saves and leaves. How far it came in the end is told to the driver."""
        sitting = self.sitting
        if sitting is None:
            return
        if not sitting.over:
            sitting.leave()
            while (point := sitting.next(0)) is not None:
                self.points.append(point)
            end = self._make_end("stopped", "")
            self.events.append({"kind": "left", "end": vars(end)})
        self._tell()
        self.sitting = None

    def _tell(self) -> str:
        """What happened since the last time; of steps the newest alone. Answers why the trial must leave, if it must."""
        import ray

        taken = [self.events.popleft() for _ in range(len(self.events))]
        steps = [event for event in taken if event["kind"] == "step"]
        kept = [event for event in taken if event["kind"] not in ("step", "storage")] + steps[-1:]
        sitting = self.sitting
        if sitting is not None:
            totals = {"step": sitting.step, "tokens": sitting.tokens, "seconds": self.seconds_before + sitting.seconds}
            kept.append({"kind": "spent", **totals})
        leaving: Any = ray.get(self.post.tell.remote([{**event, "trial": self.number} for event in kept]))
        return leaving

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        import ray

        while not ray.get(self.post.take.remote(digest, self.number)):
            time.sleep(POLL_S)
        try:
            yield
        finally:
            ray.get(self.post.give_back.remote(self.number))
