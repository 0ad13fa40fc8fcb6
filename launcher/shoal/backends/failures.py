"""What a failed worker group means: try again, or hand the answer to the person. Runs in Ray Train's controller."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from shoal.errors import Problem, ShoalError, TrainingError

OUR_MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError, ImportError, NotImplementedError)
"""Exceptions that come back each time the same code runs: starting the workers again would only repeat them."""

WORDS = 3
"""Lines of a dead worker's stderr that are told."""
WARNING = re.compile(r"\S+:\d+: \w*Warning: .*\n(  .*\n?)?")
"""What Python's warnings print: the place, the warning, the line of code."""


class Failures(UserCallback):
    """Raising here ends the run without another try; returning leaves it to FailureConfig(max_failures)."""

    def __init__(self, mailbox: Any, max_failures: int) -> None:
        self.mailbox = mailbox
        self.max_failures = max_failures
        self.failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        answer = final(worker_exceptions)
        if answer is not None:
            raise answer
        self.failures += 1
        if self.failures <= self.max_failures:
            again = f"starting again from the newest checkpoint (try {self.failures} of {self.max_failures})"
            self.mailbox.post.remote({"kind": "note", "message": f"{describe(worker_exceptions)}; {again}"})


def lost(error: Exception) -> bool:
    """Whether a worker's process is gone, rather than having raised."""
    return isinstance(getattr(error, "health_check_failure", error), RayActorError)


def final(failures: Mapping[int, Exception]) -> Exception | None:
    """The exception that no new try can mend, if there is one.

    When a process is gone, the others' exceptions are its echo: they are not asked.
    """
    if any(lost(error) for error in failures.values()):
        return None
    for kind in (ShoalError, OUR_MISTAKES):
        for _, error in sorted(failures.items()):
            if isinstance(error, kind):
                return error
    return None


def describe(failures: Mapping[int, Exception]) -> str:
    """One line: the lost workers if there are any, else the first rank's exception."""
    gone = {rank: str(error) for rank, error in sorted(failures.items()) if lost(error)}
    if gone:
        memory = any("running low on memory" in text for text in gone.values())
        return f"worker {', '.join(map(str, gone))} died" + (" (this machine ran out of memory)" if memory else "")
    rank, error = min(failures.items())
    lines = str(error).strip().splitlines()
    return f"worker {rank} failed with {type(error).__name__}" + (f": {lines[-1]}" if lines else "")


def unwrap(error: TrainingFailedError, run_id: str, logs: str, pids: Mapping[int, int]) -> Exception:
    """What the driver raises: the worker's own answer, our own bug as it was, or a TrainingError that says where to look.

    `logs`: Ray's log folder. `pids`: the newest group's process of each rank.
    """
    where = f"the workers' own words are in {logs}"
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, (ShoalError, *OUR_MISTAKES)):
            return cause
        return TrainingError(Problem("training", f"Ray could not run the workers: {_last_line(cause)}", where))
    if isinstance(error, WorkerGroupError):
        failures = error.worker_failures
        answer = final(failures)
        if answer is not None:
            return answer
        what = f"{describe(failures)}, more often than max_failures allows"
        fix = f"`shoal resume {run_id}` goes on from the last checkpoint; {where}"
        guilty = sorted(rank for rank, each in failures.items() if lost(each)) or sorted(failures)
        last = [
            Problem(f"worker {rank}, last words", line)
            for rank in guilty
            for line in last_words(Path(logs), pids.get(rank))
        ]
        return TrainingError(Problem("training", what, fix), *last)
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
