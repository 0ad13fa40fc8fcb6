"""Ray Tune's schedulers that stop trials, told each point of each trial once: in a sweep that is resumed, too."""

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, MedianStoppingRule, TrialScheduler

from shoal.tune.board import Point, comparable
from shoal.tune.known import Known

Result = dict[str, Any]


class Past:
    """A trial of before, as its scheduler knows it."""

    def __init__(self, known: Known) -> None:
        self.trial_id = f"past-{known.trial.number}"
        self.is_over = known.end is not None
        self.stopped_at: int | None = None
        """The step of the point at which it was stopped, as the sweep was left: its end was not written down yet."""


class Recalling(FIFOScheduler):
    """A scheduler of Tune's, and what it knew when the sweep was left.

    Trials tell their points again when a sweep is resumed, in whatever order they come up. The scheduler has heard all
    of them by then, in the order of their times, as it did at first: who has ended stays as it ended, who has not goes
    on, unless it was about to be stopped, and what is new is judged beside the same values as without a resume.
    """

    def __init__(self, own: TrialScheduler, known: Sequence[Known], metric: str, mode: str, time: str) -> None:
        super().__init__()
        self.own, self.value, self.mode, self.time = own, metric, mode, time
        self.heard: dict[str, int] = {}
        """The last step that was heard of each trial."""
        super().set_search_properties(metric, mode)
        own.set_search_properties(metric, mode)
        self.past = {name(one): Past(one) for one in known if one.points}
        for past in self.past.values():
            own.on_trial_add(None, past)  # pyright: ignore[reportArgumentType]
        told = [(point.time, one.trial.number, point.step, name(one), point) for one in known for point in one.points]
        for *_, trial, point in sorted(told):
            self._recall(trial, point)

    def _recall(self, trial: str, point: Point) -> None:
        past = self.past[trial]
        if past.stopped_at is not None:
            return  # its run was ahead, and nobody has heard of that
        # The median rule judges whatever it hears of a trial that is not complete, and takes no verdict back.
        hear: Any = self.own.on_trial_complete if isinstance(self.own, MedianStoppingRule) else self.own.on_trial_result
        verdict = hear(None, past, {self.time: point.tokens, self.value: comparable(point.value, self.mode)})
        self.heard[trial] = point.step
        if verdict == self.STOP and not past.is_over:
            past.stopped_at = point.step

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # they are known already

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if str(trial) not in self.past:
            self.own.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Result) -> str:
        if self._is_new(trial, result):
            return self.own.on_trial_result(tune_controller, self._known(trial), result)
        past = self.past.get(str(trial))
        return self.STOP if past and result["step"] == past.stopped_at else self.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Result) -> None:
        past = self.past.get(str(trial))
        if self._is_new(trial, result) and not (past and past.is_over):
            self.own.on_trial_complete(tune_controller, self._known(trial), result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.own.on_trial_error(tune_controller, self._known(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.own.on_trial_remove(tune_controller, self._known(trial))

    def _known(self, trial: Any) -> Any:
        return self.past.get(str(trial), trial)

    def _is_new(self, trial: Any, result: Result) -> bool:
        """Whether it says something that was not heard before; one that leaves or fails has no value."""
        new = self.value in result and result["step"] > self.heard.get(str(trial), 0)
        if new:
            self.heard[str(trial)] = result["step"]
        return new


def name(known: Known) -> str:
    """What Tune calls the trial."""
    return f"{known.trial.number:04d}"
