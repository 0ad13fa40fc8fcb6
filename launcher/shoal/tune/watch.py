"""The driver's ear at Ray Tune: what trials tell becomes events and records, a spent budget and a stop become orders."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from shoal.backends import OnEvent
from shoal.spec.sweep import SweepSpec
from shoal.tune.folder import SweepFolder, TrialEnd

DRAIN_S = 0.2
STOPPED, BUDGET, NO_ROOM = "the sweep was stopped", "budget", "there is no room"
"""Why all trials leave: the second alone is their end."""


class Watch(Callback):
    """All methods are called by Tune, in the thread of the sweep's driver."""

    def __init__(
        self,
        spec: SweepSpec,
        folder: SweepFolder,
        post: Any,
        search: SearchAlgorithm,
        worker_price: float,
        wait_s: float,
        tell: OnEvent,
        stop: threading.Event,
    ) -> None:
        """`worker_price`: of an hour of all workers of a trial. `wait_s`: how long the place may have room for none."""
        self.spec, self.folder, self.post, self.search = spec, folder, post, search
        self.worker_price, self.wait_s, self.tell, self.stop = worker_price, wait_s, tell, stop
        self.spent: dict[int, TrialEnd] = {}
        """What each trial took so far."""
        self.ended: dict[int, TrialEnd] = {}
        self.left: dict[int, str] = {}
        """Trials that can go on, and what the place could not give them."""
        self.began: set[int] = set()
        self.leaving = ""
        self.drained = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes itself down when it is made; nobody reads it."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.stop.is_set():
            self._leave(STOPPED)
        elif self._over_budget():
            self._leave(BUDGET)
        if time.monotonic() - self.drained > DRAIN_S:
            self.drain()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        end = TrialEnd(**result["end"])
        self.spent[end.number] = end

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.drain()
        result = trial.last_result or {}
        if "end" not in result:
            return  # it never began
        end = TrialEnd(**result["end"])
        if "left" in result:
            if self.leaving == BUDGET:
                self._end(replace(end, state="stopped", why=BUDGET))
            elif not self.leaving:
                self._let_go(end)
            return
        if "told" not in result:
            end = replace(end, state="stopped", why=self._why(end))
        self._end(end, known=result.get("told", False))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process died more often than it may."""
        self.drain()
        said = (trial.last_result or {}).get("end")
        number = int(str(trial))
        before = TrialEnd(**said) if said else TrialEnd(number, "failed", "", None, None, 0, 0, 0.0, None, 0)
        self._begin({"kind": "trial", "trial": before.number, "run": self.folder.run_id(before.number), "params": {}})
        why = "its process died" if trial.error_file is None else _last_line(trial)
        self._end(replace(before, state="failed", why=why))

    def drain(self) -> None:
        """Takes what the trials told since the last time."""
        self.drained = time.monotonic()
        for event in ray.get(self.post.drain.remote(self.leaving)):
            match event["kind"]:
                case "spent":
                    self._spend(event)
                case "left":
                    self._correct(TrialEnd(**event["end"]))
                case "replaced":
                    self._end(TrialEnd(**event["end"]))
                case "trial":
                    self._begin(event)
                case _:
                    self.tell(event)

    def _spend(self, event: dict[str, Any]) -> None:
        number = event["trial"]
        before = self.spent.get(number) or TrialEnd(number, "stopped", "", None, None, 0, 0, 0.0, None, 0)
        said = {name: event[name] for name in ("step", "tokens", "seconds")}
        self.spent[number] = replace(before, **said)

    def _correct(self, last: TrialEnd) -> None:
        """A trial that was stopped has left by now: how far it came in the end."""
        known = self.ended.get(last.number)
        if known is not None and known.state == "stopped":
            end = replace(known, step=last.step, tokens=last.tokens, seconds=last.seconds)
            self.ended[last.number] = self.spent[last.number] = end
            self.folder.write_end(end)

    def _begin(self, event: dict[str, Any]) -> None:
        if event["trial"] not in self.began:
            self.began.add(event["trial"])
            self.tell(event)

    def _end(self, end: TrialEnd, known: bool = False) -> None:
        self.ended[end.number] = self.spent[end.number] = end
        if not known:
            self.folder.write_end(end)
        told = {name: getattr(end, name) for name in ("state", "why", "metric", "step")}
        self.tell({"kind": "trial_end", "trial": end.number, **told})

    def _let_go(self, end: TrialEnd) -> None:
        """The trial's place failed it. Where no other trains either the next ones would fare alike: none begins."""
        self.left[end.number] = end.why
        self.tell({"kind": "failure", "trial": end.number, "message": f"left, and can go on: {end.why}"})
        still_s: Any = ray.get(self.post.still_s.remote())
        if still_s >= self.wait_s:
            self._leave(NO_ROOM)

    def _why(self, end: TrialEnd) -> str:
        value = "" if end.metric is None else f"{end.metric:.4f} "
        worse = {"asha": "worse than the trials that went on from there", "median": "worse than the median"}
        return f"{self.spec.scheduler}: {value}after {end.tokens:,} tokens is {worse.get(self.spec.scheduler, '')}"

    def _leave(self, why: str) -> None:
        if self.leaving:
            return
        self.leaving = why
        self.search.set_finished()
        if why == BUDGET:
            self.tell(
                {"kind": "note", "message": "the budget is spent: no trial begins, and those that run are stopped"}
            )

    def _over_budget(self) -> bool:
        budget, all_of = self.spec.budget, list(self.spent.values())
        hours = sum(one.seconds for one in all_of) / 3600
        spent = {
            "tokens": sum(one.tokens for one in all_of),
            "steps": sum(one.step for one in all_of),
            "hours": hours,
            "cost": hours * self.worker_price,
        }
        return any((limit := getattr(budget, name)) is not None and spent[name] >= limit for name in spent)


def _last_line(trial: Trial) -> str:
    lines = [line.strip() for line in Path(trial.error_file or "").read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "its process died"
