"""The journal: nothing lost, and after a resume no step twice."""

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
from stand_in import make_plan
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shoal.errors import StorageError
from shoal.runs import RunFolder
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.train import journal as module
from shoal.train.journal import Journal


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def folder(tmp_path: Path, storage: Storage) -> RunFolder:
    return RunFolder(storage, str(tmp_path / "run"))


def rows(storage: Storage, url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read(url).splitlines()]


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": number,
        "loss": loss,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_s": 100.0,
        "seconds": 4.0,
    }


def evaluation(number: int, loss: float = 2.0) -> dict[str, Any]:
    return {"kind": "eval", "step": number, "loss": loss, "perplexity": 7.4, "targets": 10}


def scalars(folder: RunFolder, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(folder.tensorboard)
    board.Reload()
    return [(event.step, round(event.value, 4)) for event in board.Scalars(tag)]


def test_rows_and_scalars(tmp_path: Path, folder: RunFolder, storage: Storage):
    journal = Journal(make_plan(tmp_path), folder, storage)
    journal.record({"kind": "phase", "phase": "training"})
    journal.record(evaluation(0))
    journal.record(step(1, 3.0))
    journal.close()
    first, second = rows(storage, folder.metrics)
    assert (first["kind"], second["step"], second["attempt"]) == ("eval", 1, 1)
    assert second["time"].endswith("+00:00")
    assert [row["kind"] for row in rows(storage, folder.events)] == ["phase"]
    assert scalars(folder, "train/loss") == [(1, 3.0)]
    assert scalars(folder, "validation/perplexity") == [(0, 7.4)]
    assert not (tmp_path / "cache" / "scratch" / make_plan(tmp_path).run_id / "journal").exists()


def test_a_resume_drops_what_lies_beyond_the_checkpoint(tmp_path: Path, folder: RunFolder, storage: Storage):
    plan = make_plan(tmp_path)
    journal = Journal(plan, folder, storage)
    for number in range(1, 6):
        journal.record(step(number, loss=10.0 + number))
    journal.record(evaluation(3, 5.0))
    journal.close()
    # The process died while writing: half a row.
    storage.write(folder.metrics, storage.read(folder.metrics) + b'{"kind": "step", "st')

    journal = Journal(plan, folder, storage)
    journal.record({"kind": "note", "message": "going on"})
    journal.flush()
    assert len(storage.read(folder.metrics).splitlines()) == 7, "untouched until it is known from where the run goes on"
    journal.resume(3)
    journal.record(evaluation(3, 6.0))
    for number in (4, 5):
        journal.record(step(number, loss=20.0 + number))
    journal.close()

    found = rows(storage, folder.metrics)
    steps = [(row["step"], row["loss"], row["attempt"]) for row in found if row["kind"] == "step"]
    assert steps == [(1, 11.0, 1), (2, 12.0, 1), (3, 13.0, 1), (4, 24.0, 2), (5, 25.0, 2)]
    assert [(row["step"], row["loss"]) for row in found if row["kind"] == "eval"] == [(3, 6.0)]
    assert scalars(folder, "train/loss") == [(1, 11.0), (2, 12.0), (3, 13.0), (4, 24.0), (5, 25.0)]
    note, thrown = rows(storage, folder.events)
    assert (note["attempt"], thrown["attempt"]) == (2, 2)
    assert (thrown["kind"], thrown["of"], thrown["steps"], thrown["seconds"]) == ("repeated", 1, 2, 8.0)
    assert thrown["until"] < note["time"]


def test_a_start_from_nothing_drops_all_steps(tmp_path: Path, folder: RunFolder, storage: Storage):
    """A run that died before its first checkpoint starts again."""
    plan = make_plan(tmp_path)
    for _ in range(2):
        journal = Journal(plan, folder, storage)
        journal.record(evaluation(0))
        journal.record(step(1))
        journal.close()
    assert [(row["kind"], row["step"], row["attempt"]) for row in rows(storage, folder.metrics)] == [
        ("eval", 0, 2),
        ("step", 1, 2),
    ]
    assert len(scalars(folder, "train/loss")) == 1


def test_an_attempt_failed_when_it_was_told_or_its_steps_were_lost(tmp_path: Path, folder: RunFolder, storage: Storage):
    plan = make_plan(tmp_path)
    failure = {"kind": "failure", "time": "2026-01-01T00:00:00+00:00", "message": "worker 0 died"}
    ends = [
        [],  # its driver was killed with it: its steps are lost, and nobody told
        [failure | {"cause": "process died", "attempt": 2}],
        [failure | {"cause": "preempted", "attempt": 3}],
        [],
    ]
    found = []
    for attempt, end in enumerate(ends, 1):
        journal = Journal(plan, folder, storage)
        if attempt > 1:
            journal.resume(attempt - 1 if attempt > 2 else 0)
        found.append(journal.failed_attempts())
        journal.record(step(attempt))
        for event in end:
            journal.record(event)
        journal.close()
    assert found == [0, 1, 2, 2]


def test_what_json_cannot_say_is_null(tmp_path: Path, folder: RunFolder, storage: Storage):
    journal = Journal(make_plan(tmp_path), folder, storage)
    journal.record(evaluation(1) | {"perplexity": float("inf"), "loss": float("nan")})
    journal.close()
    assert rows(storage, folder.metrics)[0]["perplexity"] is None


def test_rows_reach_the_store_by_themselves(
    tmp_path: Path, folder: RunFolder, storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "UPLOAD_EVERY_S", 0.01)
    journal = Journal(make_plan(tmp_path), folder, storage)
    journal.record(step(1))
    while not storage.exists(folder.metrics):
        time.sleep(0.01)
    assert rows(storage, folder.metrics)[0]["step"] == 1
    journal.close()


def test_a_store_that_fails_for_a_while_loses_nothing(
    tmp_path: Path, folder: RunFolder, storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    journal = Journal(make_plan(tmp_path), folder, storage)
    journal.record(step(1))
    with monkeypatch.context() as broken:

        def refuse(*_: object, **__: object) -> None:
            raise StorageError("the store is away")

        broken.setattr(storage, "write", refuse)
        with pytest.raises(StorageError):
            journal.flush()
    journal.close()
    assert rows(storage, folder.metrics)[0]["step"] == 1


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_append", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line(tmp_path: Path, folder: RunFolder, storage: Storage):
    journal = Journal(make_plan(tmp_path), folder, storage)
    with pytest.raises(StorageError, match="journal cannot be written: No space left on device; free space") as caught:
        journal.record({"kind": "note", "message": "x"})
    assert len(str(caught.value).splitlines()) == 1
    journal._dirty.add(journal._events)
    with pytest.raises(StorageError, match="No space left"):
        journal.close()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_does_not_hide_what_went_wrong_first(tmp_path: Path, folder: RunFolder, storage: Storage):
    journal = Journal(make_plan(tmp_path), folder, storage)
    journal._dirty.add(journal._events)
    with pytest.raises(ZeroDivisionError):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            journal.record({"kind": "error", "message": "x"})
            raise
        finally:
            journal.close()


def test_on_the_object_store(tmp_path: Path, s3: S3Spec):
    storage, plan = Storage(s3), make_plan(tmp_path)
    folder = RunFolder(storage, f"s3://shoal/{tmp_path.name}")
    for attempt in (1, 2):
        journal = Journal(plan, folder, storage)
        if attempt == 2:
            journal.resume(1)
        journal.record(step(attempt))
        journal.close()
    assert [(row["step"], row["attempt"]) for row in rows(storage, folder.metrics)] == [(1, 1), (2, 2)]
    assert len(storage.list(folder.tensorboard)) == 1, "the scalars of the first attempt are in the second one's file"
    storage.download(folder.tensorboard, tmp_path / "run" / "tensorboard")
    assert scalars(RunFolder(storage, str(tmp_path / "run")), "train/loss") == [(1, 1.0), (2, 1.0)]
