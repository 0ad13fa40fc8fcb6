"""Why a group ended, from the exceptions that Ray hands over and the last heartbeats."""

from dataclasses import replace

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from shoal.backends.causes import classify, final, unsettled
from shoal.backends.mailbox import Account
from shoal.backends.watch import Beat, Hang
from shoal.errors import ModelError, Problem, ShoalError, StorageError, TrainingError

BEAT = Beat(
    rank=0, node="host-a", pid=1, phase="computing", step=7, marks=70, waiting=False, still_s=0.0, memory=0.5,
    asked_by="", attempt=3,
)  # fmt: skip
ECHO = RuntimeError("Connection closed by peer [10.0.0.2]")


def dead(said: str = "The actor died unexpectedly", preempted: bool = False) -> Exception:
    return WorkerHealthCheckFailedError("failed", RayActorError("", said, False, preempted))


def account(silent: dict[int, float] | None = None, hangs: dict[int, Hang] | None = None, **r1: object) -> Account:
    other = replace(BEAT, rank=1, node="host-b", step=6, **r1)  # type: ignore[arg-type]
    return Account({0: BEAT, 1: other}, {0: 0.2, 1: 0.2} | (silent or {}), hangs or {})


@pytest.mark.parametrize(
    ("failures", "known", "cause", "message"),
    [
        ({0: ECHO, 1: dead()}, account(), "process died", "worker 1 died on host-b after step 7"),
        (
            {1: dead("Task was killed due to the node running low on memory.")},
            account(),
            "out of memory",
            "worker 1 died (this machine ran out of memory) on host-b after step 7",
        ),
        (
            {1: dead()},
            account(memory=0.98),
            "out of memory",
            "worker 1 died (98% of its memory was taken) on host-b after step 7",
        ),
        (
            {1: dead("The actor died because its node has died.")},
            account(),
            "node gone",
            "worker 1 died with its node on host-b after step 7",
        ),
        (
            {0: RayActorError("", "left", False, True), 1: RayActorError("", "left", False, True)},
            account(asked_by="SIGTERM"),
            "preempted",
            "worker 1 was asked to leave by SIGTERM on host-b after step 7",
        ),
        (
            {1: dead(preempted=True)},
            account(),
            "preempted",
            "worker 1 left with its drained node on host-b after step 7",
        ),
        (
            {1: dead()},
            account(hangs={1: Hang(replace(BEAT, rank=1, node="host-b"), 7, 70.0, True, 1, "stopped by a signal")}),
            "hung",
            "worker 1 hangs on host-b after step 7 (its whole process stands, stopped by a signal): no progress for 70 s "
            "while 1 waits for it",
        ),
        (
            {1: WorkerHealthCheckTimeoutError("hanging")},
            account(),
            "hung",
            "worker 1 does not answer on host-b after step 7",
        ),
        ({0: ECHO}, account(silent={1: 3.0}), "process died", "worker 1 died on host-b after step 7"),
        (
            {0: ECHO},
            replace(account(silent={1: 3.0}), cut_off=frozenset({1})),
            "node gone",
            "worker 1 was cut off with its node on host-b after step 7",
        ),
        (
            {0: ECHO},
            account(),
            "error",
            "worker 0 failed with RuntimeError: Connection closed by peer [10.0.0.2] on host-a after step 7",
        ),
        (
            {0: ECHO, 1: StorageError(Problem("s3://b/c", "is away"))},
            account(),
            "storage",
            "worker 1 stopped: s3://b/c: is away on host-b after step 7",
        ),
        (
            {1: TrainingError(Problem("memory", "CUDA out of memory"))},
            account(),
            "out of memory",
            "worker 1 stopped: memory: CUDA out of memory on host-b after step 7",
        ),
        (
            {1: ModelError(Problem("model.base", "has no head"))},
            account(),
            "user error",
            "worker 1 stopped: model.base: has no head on host-b after step 7",
        ),
        ({1: KeyError("x")}, account(), "bug", "worker 1 failed with KeyError: 'x' on host-b after step 7"),
    ],
)
def test_each_end_has_its_cause_rank_node_and_step(
    failures: dict[int, Exception], known: Account, cause: str, message: str
) -> None:
    found = classify(failures, known)
    assert (found.cause, found.message) == (cause, message)
    assert found.attempt == 3


def test_a_worker_that_died_before_its_first_heartbeat_is_named_all_the_same() -> None:
    found = classify({1: dead()}, Account({}, {}, {}))
    assert (found.message, found.step, found.node, found.attempt) == ("worker 1 died", None, "", None)


def test_answers_and_bugs_are_final_and_lost_processes_are_not() -> None:
    answer, bug = ModelError(Problem("model.base", "has no head")), KeyError("x")
    assert final({0: ECHO, 1: answer}) is answer
    assert final({0: bug, 1: answer}) is answer
    assert final({0: ECHO, 1: bug}) is bug
    assert final({0: answer, 1: dead()}) is None, "an echo of the dead one"
    assert final({0: ECHO}) is None
    assert isinstance(answer, ShoalError)


def test_a_verdict_waits_for_the_heartbeats_of_those_who_did_not_raise() -> None:
    assert unsettled({0: ECHO}, account(silent={1: 0.2}), since_s=0.0)
    ended = replace(account(), ending=frozenset({0}))
    assert unsettled({0: dead()}, ended, since_s=0.0), "how it was found is not known yet"
    assert unsettled({0: ECHO}, account(silent={1: 1.7}), since_s=1.5)
    assert not unsettled({0: ECHO}, account(silent={1: 0.5}), since_s=1.5), "it lives"
    assert not unsettled({0: ECHO}, account(silent={1: 2.6}), since_s=1.5), "it is dead"
    assert not unsettled({0: ECHO, 1: dead()}, account(silent={1: 2.0}), since_s=0.0)
