"""Checkpoints: equal on any number of workers, and never chosen while anything of them is missing."""

import pickle
import resource
import threading
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from safetensors import safe_open
from stand_in import Heard, StandIn, make_plan, tiny_llama

from shoal.errors import ModelError, SpecError, StorageError
from shoal.runs import RunFolder
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.train import checkpoint, saving, upload
from shoal.train.checkpoint import cut, deal
from shoal.train.manifest import Best, Manifest, Progress, doomed, require_resumable
from shoal.train.saving import Saver
from shoal.train.world import World

WORKER = Path(__file__).parent / "checkpoint_worker.py"


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def folder(tmp_path: Path, storage: Storage) -> RunFolder:
    return RunFolder(storage, str(tmp_path / "run"))


@pytest.fixture
def engine() -> StandIn:
    return StandIn(tiny_llama())


def save(
    engine: StandIn, tmp_path: Path, folder: RunFolder, storage: Storage, step: int | Progress, keep: int = 100
) -> Manifest:
    """A save that is waited for."""
    plan = make_plan(tmp_path, method="full")
    plan = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update={"keep": keep})})
    progress = at_step(step) if isinstance(step, int) else step
    saver = Saver(engine, plan, folder, storage, World(), Heard(), progress)
    saver.save(progress)
    manifest = saver.finish()
    assert manifest is not None
    return manifest


def at_step(step: int, **fields: object) -> Progress:
    return Progress(step=step, epoch=0, batch=step, tokens=step * 10, seconds=1.0, **fields)


def files(tmp_path: Path, folder: RunFolder, step: int) -> list[Path]:
    return sorted(Path(folder.manifest(step)).parent.iterdir())


def test_states_survive_any_change_of_world(tmp_path: Path):
    run_ranks(WORKER, 2, "save", str(tmp_path), "1")
    run_ranks(WORKER, 1, "load", str(tmp_path))
    run_ranks(WORKER, 3, "load", str(tmp_path))


def test_saved_again_the_standing_checkpoint_is_kept(
    tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn
):
    save(engine, tmp_path, folder, storage, 1)
    before = {path.name: path.stat().st_mtime_ns for path in files(tmp_path, folder, 1) if "part" in path.name}
    better = at_step(1, best=Best(step=1, loss=2.0))
    other = StandIn(tiny_llama(seed=5))
    manifest = save(other, tmp_path, folder, storage, better)
    assert {path.name: path.stat().st_mtime_ns for path in files(tmp_path, folder, 1) if "part" in path.name} == before
    assert manifest.best == Best(step=1, loss=2.0)
    assert checkpoint.newest(storage, folder) == manifest


@pytest.mark.parametrize("damage", ["missing part", "short part", "no manifest", "cut manifest", "empty manifest"])
def test_half_written_is_skipped_for_the_one_before(
    tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn, damage: str
):
    save(engine, tmp_path, folder, storage, 1)
    manifest = save(engine, tmp_path, folder, storage, 2)
    part = Path(folder.manifest(2)).parent / manifest.parts[-1].file
    stated = Path(folder.manifest(2))
    match damage:
        case "missing part":
            part.unlink()
        case "short part":
            part.write_bytes(part.read_bytes()[:-1])
        case "no manifest":
            stated.unlink()
        case "cut manifest":
            stated.write_bytes(stated.read_bytes()[:100])
        case "empty manifest":
            stated.write_bytes(b"")
    notes: list[str] = []
    found = checkpoint.newest(storage, folder, notes.append)
    assert found is not None and found.step == 1
    assert len(notes) == 1 and "step 2" in notes[0]
    # Saved again, the step makes way for a whole one, and nothing of the broken one stays.
    again = save(engine, tmp_path, folder, storage, 2)
    assert checkpoint.newest(storage, folder) == again
    assert {p.name for p in files(tmp_path, folder, 2)} == {"manifest.json", *(p.file for p in again.parts)}


def test_no_checkpoint_at_all(folder: RunFolder, storage: Storage):
    assert checkpoint.newest(storage, folder) is None
    assert checkpoint.retain(storage, folder, keep=1) == []


def test_a_flipped_bit_is_found_at_loading(tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn):
    manifest = save(engine, tmp_path, folder, storage, 1)
    part = Path(folder.manifest(1)).parent / manifest.parts[0].file
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="not what the manifest says"):
        checkpoint.load(engine, manifest, make_plan(tmp_path), folder, storage, World())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn):
    manifest = save(engine, tmp_path, folder, storage, 1)
    with pytest.raises(ModelError, match=r"lacks 1 parameters, lm_head.weight"):
        untied = StandIn(tiny_llama(tied=False))
        checkpoint.load(untied, manifest, make_plan(tmp_path), folder, storage, World())


def test_bytes_stored_are_the_states_once(tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn):
    manifest = save(engine, tmp_path, folder, storage, 1)
    states = sum(tensor.nbytes for tensor in engine.states().values())
    assert states < manifest.bytes < states * 1.02 + 20_000


def test_two_writers_of_one_step_never_mix(
    tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn, monkeypatch: pytest.MonkeyPatch
):
    """A second group that did not notice the first one writes the same step: the first manifest stands, whole."""
    other = StandIn(tiny_llama(seed=3))
    publish = upload.publish

    def beaten(*arguments: object) -> Manifest:
        monkeypatch.setattr(upload, "publish", publish)
        save(other, tmp_path, folder, storage, 1)
        return publish(*arguments)

    monkeypatch.setattr(upload, "publish", beaten)
    manifest = save(engine, tmp_path, folder, storage, 1)
    assert checkpoint.newest(storage, folder) == manifest
    fresh = StandIn(tiny_llama(seed=8))
    checkpoint.load(fresh, manifest, make_plan(tmp_path), folder, storage, World())
    assert all(torch.equal(tensor, other.states()[key]) for key, tensor in fresh.states().items())


def test_another_trajectory_is_named(tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn):
    manifest = save(engine, tmp_path, folder, storage, 1)
    require_resumable(manifest, make_plan(tmp_path, method="full"))
    with pytest.raises(SpecError) as caught:
        require_resumable(manifest, make_plan(tmp_path, method="full", batch_size=8, seed=3))
    assert "batch_size: 8 in this plan, 4 in the checkpoint" in str(caught.value)
    assert "seed: 3 in this plan, 17" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn):
    for step in (1, 2, 3, 4, 5):
        save(engine, tmp_path, folder, storage, step)
    Path(folder.manifest(5)).unlink()
    Path(folder.manifest(3)).unlink()
    assert checkpoint.retain(storage, folder, keep=1, best_step=1) == [2, 3]
    left = {int(path.name) for path in Path(folder.manifest(1)).parent.parent.iterdir()}
    assert left == {1, 4, 5}, "5 may be one that is being written"
    newest = checkpoint.newest(storage, folder)
    assert newest is not None and newest.step == 4


def test_retention_takes_the_manifest_first(
    tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn, monkeypatch: pytest.MonkeyPatch
):
    save(engine, tmp_path, folder, storage, 1)
    save(engine, tmp_path, folder, storage, 2)
    deleted: list[str] = []
    monkeypatch.setattr(storage, "delete", deleted.append)
    checkpoint.retain(storage, folder, keep=1)
    assert deleted[0].endswith("manifest.json") and len(deleted) == 2


@given(st.sets(st.integers(1, 50)), st.sets(st.integers(1, 50)), st.integers(1, 4), st.none() | st.integers(1, 50))
def test_doomed_never_takes_what_is_needed(complete: set[int], half: set[int], keep: int, best: int | None):
    gone = set(doomed(complete, complete | half, keep, best))
    assert best not in gone
    if complete:
        assert not gone & set(sorted(complete)[-keep:])
        assert all(step < max(complete) for step in gone)
    else:
        assert not gone


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 9))
def test_dealing_is_even(sizes: list[int], workers: int):
    owners = deal(sizes, workers)
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(workers)]
    assert len(owners) == len(sizes) and set(owners) <= set(range(workers))
    assert max(loads) - min(loads) <= max(sizes, default=0)


@given(st.lists(st.tuples(st.integers(0, 1000), st.sets(st.integers(0, 3))), max_size=30))
def test_dealing_keeps_to_those_who_hold_it(dealt: list[tuple[int, set[int]]]):
    owners = deal([size for size, _ in dealt], 4, [holders for _, holders in dealt])
    assert all(not holders or owner in holders for owner, (_, holders) in zip(owners, dealt, strict=True))


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 300))
def test_parts_are_filled_in_order(sizes: list[int], limit: int):
    counts = cut(sizes, limit)
    assert sum(counts) == len(sizes) and 0 not in counts
    ends = list(accumulate(counts, initial=0))
    filled = [sum(sizes[start:end]) for start, end in pairwise(ends)]
    assert all(part >= limit for part in filled[:-1])
    assert all(part - sizes[end - 1] < limit for part, end in zip(filled, ends[1:], strict=True))


@pytest.mark.parametrize("room", [0, 150_000, 10**9])
def test_what_is_saved_is_what_was_there_when_training_stood_still(
    tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn, monkeypatch: pytest.MonkeyPatch, room: int
):
    """With room in memory for none, some or all of the parts, and training that goes on before any is uploaded."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100_000)
    monkeypatch.setattr(saving, "memory_room", lambda ranks: room)
    gate, upload_one = threading.Event(), storage.upload
    monkeypatch.setattr(storage, "upload", lambda *given: (gate.wait(60), upload_one(*given)))
    saver = Saver(engine, make_plan(tmp_path, method="full"), folder, storage, World(), Heard(), at_step(0))
    engine.train(1)
    then = engine.states()
    saver.save(at_step(1))
    engine.train(2)
    assert checkpoint.newest(storage, folder) is None
    gate.set()
    manifest = saver.finish()
    assert manifest is not None and len(manifest.parts) > 3
    fresh = StandIn(tiny_llama(seed=8))
    checkpoint.load(fresh, manifest, make_plan(tmp_path), folder, storage, World())
    assert all(torch.equal(tensor, then[key]) for key, tensor in fresh.states().items())
    assert not all(torch.equal(tensor, then[key]) for key, tensor in engine.states().items())
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_an_adapter_is_saved_without_its_base(tmp_path: Path, folder: RunFolder, storage: Storage):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    manifest = save(StandIn(model), tmp_path, folder, storage, 1)
    with safe_open(folder.checkpoint(1) + manifest.parts[0].file, framework="pt") as part:
        names = list(part.keys())
    assert names and all("lora_" in name for name in names)
    header = 200 * len(names)
    assert 12 * trained < manifest.bytes < 12 * trained + header
    assert 12 * trained + header < 4 * sum(p.numel() for p in model.parameters())


def test_old_ones_go_when_the_new_one_stands_and_not_before(
    tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn, monkeypatch: pytest.MonkeyPatch
):
    for step in (1, 2, 3):
        save(engine, tmp_path, folder, storage, step, keep=1)
        assert steps_there(folder) == {step}
    gate, upload_one = threading.Event(), storage.upload
    monkeypatch.setattr(storage, "upload", lambda *given: (upload_one(*given), gate.wait(60)))
    plan = make_plan(tmp_path, method="full")
    saver = Saver(engine, plan, folder, storage, World(), Heard(), at_step(3))
    saver.save(at_step(4))
    assert checkpoint.retain(storage, folder, keep=1) == []
    gate.set()
    saver.finish()
    assert steps_there(folder) == {3, 4}, "keep is 2 in this plan"


def steps_there(folder: RunFolder) -> set[int]:
    return {int(path.name) for path in Path(folder.checkpoints).iterdir()}


def test_a_full_disk_is_one_line(tmp_path: Path, folder: RunFolder, storage: Storage, engine: StandIn):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            save(engine, tmp_path, folder, storage, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.newest(storage, folder) is None
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_on_the_object_store(tmp_path: Path, s3: S3Spec, engine: StandIn):
    storage = Storage(s3)
    folder = RunFolder(storage, f"s3://shoal/{tmp_path.name}")
    first = save(engine, tmp_path, folder, storage, 1)
    assert save(engine, tmp_path, folder, storage, 1).parts == first.parts
    engine.train(1)
    second = save(engine, tmp_path, folder, storage, 2)
    assert checkpoint.newest(storage, folder) == second
    with pytest.raises(FileExistsError):
        storage.write(folder.manifest(2), b"another", if_absent=True)
    storage.delete(folder.checkpoint(2) + second.parts[0].file)
    assert checkpoint.newest(storage, folder) == first
    fresh = StandIn(tiny_llama(seed=8))
    checkpoint.load(fresh, first, make_plan(tmp_path), folder, storage, World())
    assert not torch.equal(fresh.states()["model.norm.weight::param"], engine.states()["model.norm.weight::param"])
    save(engine, tmp_path, folder, storage, 2)
    assert checkpoint.retain(storage, folder, keep=1) == [1]
    assert [item.url for item in storage.list(folder.checkpoint(1))] == []
