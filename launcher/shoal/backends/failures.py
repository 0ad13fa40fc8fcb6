"""What a failed worker group means: try again, or hand the answer to the person. Runs in Ray Train's controller."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import ControllerError, PreemptionError, TrainingFailedError, UserCallback, WorkerGroupError

from shoal.backends.causes import OUR_MISTAKES, Failure, classify, failure_event, final, lost, unsettled
from shoal.errors import Problem, ShoalError, TrainingError
from shoal.train.world import Event

WORDS = 3
"""Lines of a dead worker's stderr that are told."""
WARNING = re.compile(r"\S+:\d+: \w*Warning: .*\n(  .*\n?)?")
"""What Python's warnings print: the place, the warning, the line of code."""
ASK_S = 5.0
"""How long the mailbox may take to answer."""
SETTLE_S = 4.0
"""How long a verdict may wait for the heartbeats of ranks that did not raise."""


class Failures(UserCallback):
    """Raising here ends the run without another try; returning leaves it to FailureConfig, which counts the same way."""

    def __init__(self, mailbox: Any, max_failures: int, max_preemptions: int) -> None:
        self.mailbox = mailbox
        self.max_failures, self.max_preemptions = max_failures, max_preemptions
        self.failures = self.preemptions = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        failure = self._classify(worker_exceptions)
        answer = final(worker_exceptions)
        again = None if answer else self._again(failure)
        self._tell(failure, again)
        if answer is not None:
            raise answer
        if again is None:
            self.spent(failure)

    def spent(self, failure: Failure) -> None:
        """The budget is spent: FailureConfig has counted the same way, and ends the run."""

    def _classify(self, failures: Mapping[int, Exception]) -> Failure:
        began = time.monotonic()
        account: Any = ray.get(self.mailbox.account.remote(), timeout=ASK_S)
        while unsettled(failures, account, since_s := time.monotonic() - began) and since_s < SETTLE_S:
            time.sleep(0.3)
            account = ray.get(self.mailbox.account.remote(), timeout=ASK_S)
        return classify(failures, account)

    def _again(self, failure: Failure) -> str | None:
        """What is told of the next try; None when the budget is spent."""
        if failure.cause == "preempted":
            self.preemptions += 1
            told, count, most = "preemption", self.preemptions, self.max_preemptions
        else:
            self.failures += 1
            told, count, most = "try", self.failures, self.max_failures
        return f"starting again from the newest checkpoint ({told} {count} of {most})" if count <= most else None

    def _tell(self, failure: Failure, again: str | None) -> None:
        ray.get(self.mailbox.failed.remote(failure_event(failure, again)), timeout=ASK_S)


class TurnFailures(Failures):
    """Of a group that stays for one plan after another: each has the budget to itself, and it is counted here alone."""

    def __init__(self, mailbox: Any, max_failures: int, max_preemptions: int) -> None:
        super().__init__(mailbox, max_failures, max_preemptions)
        self.turn: int | None = None

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        turn: Any = ray.get(self.mailbox.on_turn.remote(), timeout=ASK_S)
        if turn is None:
            return  # a worker that waited is replaced: no plan has lost anything
        if turn != self.turn:
            self.turn, self.failures, self.preemptions = turn, 0, 0
        super().after_exception(run_context, worker_exceptions)

    def spent(self, failure: Failure) -> None:
        budget = "max_preemptions" if failure.cause == "preempted" else "max_failures"
        where = "memory" if failure.cause == "out of memory" else "training"
        raise TrainingError(Problem(where, f"{failure.message}, more often than {budget} allows"))


def unwrap(
    error: TrainingFailedError, run_id: str, logs: str, pids: Mapping[int, int], told: Event | None
) -> Exception:
    """What the driver raises: the worker's own answer, our own bug as it was, or a TrainingError that says where to look.

    `logs`: Ray's log folder. `pids`: the newest group's process of each rank. `told`: the newest failure's event.
    """
    where = f"the workers' own words are in {logs}"
    resume = f"`shoal resume {run_id}` goes on from the last checkpoint; {where}"
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, (ShoalError, *OUR_MISTAKES)):
            return cause
        return TrainingError(Problem("training", f"Ray could not run the workers: {_last_line(cause)}", resume))
    if isinstance(error, WorkerGroupError):
        failures = error.worker_failures
        answer = final(failures)
        if answer is not None:
            return answer
        budget = "max_preemptions" if told and told["cause"] == "preempted" else "max_failures"
        what = f"{told['message'] if told else _last_line(error)}, more often than {budget} allows"
        guilty = sorted(rank for rank, each in failures.items() if lost(each)) or sorted(failures)
        last = [
            Problem(f"worker {rank}, last words", line)
            for rank in (guilty if not told or told["cause"] != "hung" else ())  # whose stack is in the event
            for line in last_words(Path(logs), pids.get(rank))
        ]
        return TrainingError(Problem("training", what, resume), *last)
    if isinstance(error, PreemptionError):
        return TrainingError(Problem("training", "preempted, more often than max_preemptions allows", resume))
    return TrainingError(Problem("training", _last_line(error), where))


def ray_failed(error: RayError, logs: str) -> TrainingError:
    """Ray's own processes died, of too little memory for example: its first line says so, the rest is for its logs."""
    what = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TrainingError(Problem("ray", what, f"`shoal resume` goes on with what was saved; Ray's logs are in {logs}"))


def last_words(logs: Path, pid: int | None) -> list[str]:
    """The last lines that a worker's process wrote to stderr, at most WORDS of them; warnings are no cause of death."""
    lines = [
        line.strip()
        for path in sorted(logs.glob(f"worker-*-{pid}.err"))
        for line in WARNING.sub("", path.read_text(errors="replace")).splitlines()
        if line.strip() and not line.startswith(":")  # Ray's own marks
    ]
    return lines[-WORDS:]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
