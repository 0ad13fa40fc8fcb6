"""Why a worker group ended: a class of cause, and one line that names rank, node and last step. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

from shoal.backends.mailbox import Account
from shoal.backends.watch import SILENT_S, Beat
from shoal.errors import ShoalError, StorageError
from shoal.record.rows import stamp
from shoal.train.world import Event

Cause = Literal[
    "preempted", "hung", "out of memory", "node gone", "process died", "storage", "user error", "bug", "error"
]
"""`user error`: whatever a person can mend. `bug`: ours. `error`: raised by a library, and perhaps not again."""

OUR_MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError, ImportError, NotImplementedError)
"""Exceptions that come back each time the same code runs: starting the workers again would only repeat them."""

FULL = 0.95
"""Share of a node's memory in use at which a process that vanished was most likely killed for it."""
RAY_MEMORY = "running low on memory"
RAY_NODE = ("node has died", "node died", "node is dead", "node was terminated", "node failure")


@dataclass(frozen=True)
class Failure:
    """The end of one group."""

    cause: Cause
    ranks: tuple[int, ...]
    """Whom it began with; of several the first is told of."""
    node: str
    step: int | None
    """The last step that any rank is known to have done; None when nobody was heard of."""
    message: str
    attempt: int | None
    stack: str = ""


def classify(failures: Mapping[int, Exception], account: Account) -> Failure:
    """The verdict on a group. When a process is gone, the others' exceptions are its echo: they are not asked."""
    cause, ranks, what = _verdict(failures, account)
    first = account.beats.get(ranks[0])
    step = max((beat.step for beat in account.beats.values()), default=None)
    hang = account.hangs.get(ranks[0]) if cause == "hung" else None
    names = f"worker {', '.join(map(str, ranks))}"
    return Failure(
        cause=cause,
        ranks=ranks,
        node=first.node if first else "",
        step=step,
        message=hang.message if hang else f"{names} {what}{_where(first, step)}",
        attempt=next((beat.attempt for beat in account.beats.values() if beat.attempt is not None), None),
        stack=hang.stack if hang else "",
    )


def failure_event(failure: Failure, again: str | None) -> Event:
    """The event that tells of it. `again`: what is done about it; None when nothing is."""
    event: Event = {
        "kind": "failure",
        "time": stamp(),
        "cause": failure.cause,
        "rank": failure.ranks[0],
        "ranks": failure.ranks,
        "node": failure.node,
        "step": failure.step,
        "message": f"{failure.message}; {again}" if again else failure.message,
        "final": again is None,
    }
    if failure.attempt is not None:
        event["attempt"] = failure.attempt
    if failure.stack:
        event["stack"] = failure.stack
    return event


def lost(error: Exception) -> bool:
    """Whether a worker's process is gone, rather than having raised."""
    return isinstance(_inner(error), RayActorError) and not preempted(error)


def preempted(error: Exception) -> bool:
    """Whether a worker left because it was asked to, or went with a node that was drained: what Ray counts as preemption."""
    inner = _inner(error)
    return isinstance(inner, RayActorError) and inner.preempted


def final(failures: Mapping[int, Exception]) -> Exception | None:
    """The exception that no new try can mend, if there is one."""
    if any(lost(error) or preempted(error) for error in failures.values()):
        return None
    for kind in (ShoalError, OUR_MISTAKES):
        for _, error in sorted(failures.items()):
            if isinstance(error, kind):
                return error
    return None


def unsettled(failures: Mapping[int, Exception], account: Account, since_s: float) -> bool:
    """Whether it is too early to say who began: some raised `since_s` ago, and no heartbeat of the others came since.

    Or how: a process that hung is dead, and what it was found like is still on its way.
    """
    if account.ending:
        return True
    if final(failures) or account.hangs or any(lost(error) or preempted(error) for error in failures.values()):
        return False
    quiet = [silent for rank, silent in account.silent_s.items() if rank not in failures]
    return any(since_s < silent < SILENT_S for silent in quiet)


def _verdict(failures: Mapping[int, Exception], account: Account) -> tuple[Cause, tuple[int, ...], str]:
    left = tuple(sorted(rank for rank, error in failures.items() if preempted(error)))
    if left:
        asked = tuple(rank for rank, beat in sorted(account.beats.items()) if beat.asked_by)
        if asked:
            return "preempted", asked, f"was asked to leave by {account.beats[asked[0]].asked_by}"
        return "preempted", left, "left with its drained node"
    if account.hangs:
        return "hung", tuple(sorted(account.hangs)), ""
    gone = tuple(sorted(rank for rank, error in failures.items() if lost(error)))
    if gone:
        return _died(gone, " ".join(str(failures[rank]) for rank in gone), account)
    stuck = tuple(sorted(rank for rank, each in failures.items() if isinstance(each, WorkerHealthCheckTimeoutError)))
    if stuck:
        return "hung", stuck, "does not answer"
    error = final(failures)
    if error is None:
        silent = tuple(sorted(rank for rank, quiet in account.silent_s.items() if quiet >= SILENT_S))
        if silent and account.cut_off:
            return "node gone", tuple(sorted(account.cut_off)), "was cut off with its node"
        if silent:
            return _died(silent, "", account)
        rank, error = min(failures.items())
        return "error", (rank,), _raised(error)
    rank = next(rank for rank, each in sorted(failures.items()) if each is error)
    if not isinstance(error, ShoalError):
        return "bug", (rank,), _raised(error)
    if any(getattr(problem, "where", "") == "memory" for problem in error.problems):
        return "out of memory", (rank,), f"stopped: {_last_line(error)}"
    return "storage" if isinstance(error, StorageError) else "user error", (rank,), f"stopped: {_last_line(error)}"


def _died(ranks: tuple[int, ...], said: str, account: Account) -> tuple[Cause, tuple[int, ...], str]:
    memory = max((account.beats[rank].memory for rank in ranks if rank in account.beats), default=0.0)
    if RAY_MEMORY in said:
        return "out of memory", ranks, "died (this machine ran out of memory)"
    if any(words in said.lower() for words in RAY_NODE):
        return "node gone", ranks, "died with its node"
    if memory >= FULL:
        return "out of memory", ranks, f"died ({memory:.0%} of its memory was taken)"
    return "process died", ranks, "died"


def _where(beat: Beat | None, step: int | None) -> str:
    if beat is None:
        return ""
    return f" on {beat.node} after step {step}" if step else f" on {beat.node} while {beat.phase}"


def _raised(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"failed with {type(error).__name__}" + (f": {lines[-1]}" if lines else "")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _inner(error: Exception) -> object:
    return getattr(error, "health_check_failure", error)
