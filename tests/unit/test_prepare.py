import gzip
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from preparations import contents, data_plan, jsonl, numbered, source, write_sources
from transformers import AutoTokenizer

from shoal.data import prepare as prepare_module
from shoal.data.order import count_steps
from shoal.data.prepare import batches, prepare, summary
from shoal.data.prepared import Prepared
from shoal.data.progress import Progress, duration
from shoal.data.summary import UnitSummary
from shoal.errors import DataError, ModelError
from shoal.plan.types import Plan
from shoal.rows import sources as sources_module
from shoal.storage import Fault, Storage


@pytest.fixture
def make(tmp_path, tokenizer_folder):
    """A plan over source files given as {name: bytes}, all under tmp_path."""

    def make(sources: dict[str, bytes], **data) -> Plan:
        objects = write_sources(tmp_path, sources)
        held_out, format = data.pop("held_out", "nothing"), data.pop("format", "prompt-completion")
        train = [one for one in objects if not one.url.endswith(held_out)]
        validation = [one for one in objects if one.url.endswith(held_out)]
        return data_plan(
            tmp_path,
            tokenizer_folder,
            (source(train, format=format),),
            (source(validation, format=format),) if validation else (),
            **data,
        )

    return make


def plan_with(plan: Plan, **data) -> Plan:
    """The same plan with other options of its data."""
    trajectory = plan.trajectory
    changed = trajectory.model_copy(update={"data": trajectory.data.model_copy(update=data)})
    return plan.model_copy(update={"trajectory": changed})


def placed(plan: Plan, url: Path) -> Plan:
    """The same plan with its prepared data elsewhere."""
    return plan.model_copy(update={"storage": plan.storage.model_copy(update={"prepared": str(url)})})


def opened(plan: Plan) -> Prepared:
    return Prepared.open(Storage(), plan.storage.prepared, Path(plan.storage.cache))


def test_rows_of_all_objects_become_samples_with_their_place(make):
    plan = make({"a.jsonl": jsonl(*numbered(0, 1)), "b.jsonl": jsonl(*numbered(2))})
    found = prepare(plan, Storage())
    assert (found.rows, found.samples, found.validation_samples, found.rejected) == (3, 3, 0, {})
    assert summary(Storage(), plan.storage.prepared) == found
    prepared = opened(plan)
    tokenizer = AutoTokenizer.from_pretrained(plan.trajectory.model.base)
    for index, document in enumerate(prepared.read(range(3))):
        assert tokenizer.decode(document.input_ids[document.loss_mask]) == f"number {index}<|im_end|>"
    assert [prepared.sample_id(index).rpartition("/")[0].rpartition("/")[2] for index in range(3)] == [
        "a.jsonl", "a.jsonl", "b.jsonl",
    ]  # fmt: skip
    assert found.tokens == prepared.lengths.sum() and found.targets == prepared.targets.sum()


def test_the_same_digest_is_prepared_once(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(5)))})
    prepare(plan, Storage())

    def refuse(function, tasks):
        raise AssertionError("nothing is left to do")

    assert prepare(plan, Storage(), run=refuse).samples == 5


def test_bad_rows_are_counted_kept_apart_and_told(make, tmp_path):
    rows = numbered(*range(4))
    bad = [b'{"prompt": \n', {"prompt": "x"}, {"prompt": "x", "completion": ""}, b'{"prompt": "\xff"}\n',
           {"prompt": "x", "completion": "long " * 99}, {"prompt": 3, "completion": "y"}, b"[1]\n"]  # fmt: skip
    plan = make({"a.jsonl": jsonl(*rows[:2], *bad, *rows[2:])}, max_rejected=0.7)
    found = prepare(plan, Storage())
    assert found.rejected == {
        "wrong-type": 2, "empty-answer": 1, "invalid-utf8": 1, "malformed": 1, "missing-field": 1, "overlength": 1,
    }  # fmt: skip
    assert (found.rows, found.samples) == (11, 4)
    kept = [json.loads(line) for line in (tmp_path / "prepared/d1/rejected.jsonl").read_text().splitlines()]
    assert sorted(one["line"] for one in kept) == [3, 4, 5, 6, 7, 8, 9]
    assert all(one["object"].endswith("a.jsonl") and one["cause"] and one["detail"] for one in kept)
    assert {"prompt": "x"} in [one["row"] for one in kept]


def test_too_many_bad_rows_are_refused_with_causes_examples_and_what_to_change(make, tmp_path):
    plan = make({"a.jsonl": jsonl(*numbered(*range(6)), b"{\n", {"prompt": "x"}, b"}\n", b"]\n")}, max_rejected=0.3)
    with pytest.raises(DataError) as caught:
        prepare(plan, Storage())
    text = str(caught.value)
    assert "4 of 10 rows (40.0%) are rejected, data.max_rejected allows 30.0%" in text
    assert "rejected.jsonl" in text
    assert "malformed: 3 rows; correct or remove these lines" in text
    assert "missing-field: 1 row; fill the field" in text
    assert text.count(f"{tmp_path}/a.jsonl:") == 3
    with pytest.raises(DataError, match=r"40\.0%"):
        prepare(plan, Storage())
    assert prepare(plan_with(plan, max_rejected=0.5), Storage()).samples == 6


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_data_are_told(make, content):
    with pytest.raises(DataError, match=r"no rows in .*a\.jsonl"):
        prepare(make({"a.jsonl": content}), Storage())


def test_an_empty_object_among_others_is_told(make):
    events = []
    prepare(make({"a.jsonl": jsonl(*numbered(1)), "b.jsonl": b""}), Storage(), report=events.append)
    assert next(event["message"] for event in events if event["kind"] == "note").endswith("b.jsonl holds no rows")


def test_the_held_out_share_is_by_content_and_stable_when_data_grow(make):
    def held_out(count: int, digest: str) -> set[str]:
        plan = make({"a.jsonl": jsonl(*numbered(*range(count)))}, validation_fraction=0.2, digest=digest)
        found = prepare(plan, Storage())
        prepared = opened(plan)
        ids = prepared.read_validation(range(found.validation_samples))
        assert found.samples + found.validation_samples == count
        return {str(document.input_ids.tolist()) for document in ids}

    few, many = held_out(200, "d1"), held_out(400, "d2")
    assert 20 < len(few) < 60
    assert few < many


def test_objects_of_their_own_are_held_out_whole(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(5))), "v.jsonl": jsonl(*numbered(6, 7))}, held_out="v.jsonl")
    found = prepare(plan, Storage())
    assert (found.samples, found.validation_samples) == (5, 2)


def test_nothing_left_to_train_on_is_told(make):
    with pytest.raises(DataError, match="no sample is left to train on"):
        prepare(make({"v.jsonl": jsonl(*numbered(6, 7))}, held_out="v.jsonl"), Storage())


def test_a_long_text_becomes_pieces(make):
    plan = make({"a.jsonl": jsonl({"text": "word " * 200})}, format="text", sequence_length=32)
    found = prepare(plan, Storage())
    assert found.rows == 1 and found.samples > 5
    assert opened(plan).sample_id(1).endswith("a.jsonl/1/1")


def test_a_tokenizer_of_another_model_is_refused(make):
    with pytest.raises(ModelError, match="knows those below 100"):
        prepare(make({"a.jsonl": jsonl(*numbered(1))}, vocab_size=100), Storage())


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(sources_module, "PART_BYTES", 4000)


def test_a_large_object_in_parts_gives_the_same_samples_and_lines(make, tmp_path, monkeypatch):
    bad = [b"\n", b"{\n", {"prompt": "x"}]
    rows = [row for number in range(300) for row in (*numbered(number), *(bad if number % 50 == 0 else []))]

    def samples(digest: str) -> tuple:
        plan = make({"a.jsonl": jsonl(*rows), "b.jsonl": jsonl(*rows[:7])}, digest=digest, max_rejected=0.1)
        found = prepare(plan, Storage())
        prepared = opened(plan)
        count = len(prepared.lengths)
        pairs = [(prepared.sample_id(i), one.input_ids.tolist()) for i, one in enumerate(prepared.read(range(count)))]
        apart = (tmp_path / "prepared" / digest / "rejected.jsonl").read_text().splitlines()
        return pairs, found.rejected, found.rows, found.examples, [json.loads(row) for row in apart]

    whole = samples("d1")
    monkeypatch.setattr(sources_module, "PART_BYTES", 3000)
    assert samples("d2") == whole
    assert max(unit.parts for unit in summary(Storage(), str(tmp_path / "prepared/d2")).units) == 4
    assert [one["line"] for one in whole[4]][:4] == [3, 4, 56, 57]


def shuffled(function, tasks):
    """All tasks at once, their results in another order."""
    generators = [function(task) for task in tasks]
    random.Random(5).shuffle(generators)
    while generators:
        generator = random.Random(len(generators)).choice(generators)
        try:
            yield next(generator)
        except StopIteration:
            generators.remove(generator)


def test_what_is_written_does_not_depend_on_who_was_first(make, tmp_path, small_parts):
    rows = [*numbered(*range(200)), b"{\n", *numbered(*range(200, 300))]
    plan = make({"a.jsonl": jsonl(*rows), "b.jsonl": jsonl(*rows[:20])}, validation_fraction=0.2)
    prepare(plan, Storage())
    prepare(placed(plan, tmp_path / "other"), Storage(), run=shuffled)
    one, other = contents(Path(plan.storage.prepared)), contents(tmp_path / "other")
    assert len(one) > 20 and one == other


def test_sources_have_formats_columns_and_numbers_of_their_own(tmp_path, tokenizer_folder):
    a, b, c = write_sources(
        tmp_path,
        {
            "a.jsonl": jsonl(*numbered(0, 1)),
            "b.jsonl": jsonl({"body": "some text"}),
            "c.jsonl": jsonl(*numbered(7)),
        },
    )
    texts = source([b], format="text", columns={"text": "body"})
    plan = data_plan(tmp_path, tokenizer_folder, (source([a]), texts, source([a])), (source([c]),))
    found = prepare(plan, Storage())
    prepared = opened(plan)
    assert found.format == "prompt-completion, text"
    assert prepared.sources.tolist() == [0, 0, 1, 2, 2]
    assert prepared.validation.source.tolist() == [3]
    assert [one.input_ids.tolist() for one in prepared.read([0, 1])] == [
        one.input_ids.tolist() for one in prepared.read([3, 4])
    ]


KILLED = """
import pickle, sys, time
from pathlib import Path
from shoal.data import prepare as module
from shoal.storage import Fault, Storage

plan = pickle.loads(Path(sys.argv[1]).read_bytes())
slowly = module.rows

def rows(storage, source, part, parts):
    if source.url.endswith("c.jsonl"):
        time.sleep(600)
    return slowly(storage, source, part, parts)

module.rows = rows
module.prepare(plan, Storage())
"""


def test_a_killed_preparation_goes_on_from_what_it_finished(make, tmp_path, monkeypatch):
    names = ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    plan = make({name: jsonl(*numbered(*range(30)), b"{\n") for name in names}, max_rejected=0.1)
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "plan")])
    url = Path(plan.storage.prepared)
    try:
        while not (url / "unit-00001.json").exists() or not list(Path(plan.storage.cache).glob("preparing-*")):
            assert child.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert summary(Storage(), str(url)) is None
    seen, read = [], prepare_module.rows
    monkeypatch.setattr(
        prepare_module, "rows", lambda storage, one, *part: seen.append(one.url[-7:]) or read(storage, one, *part)
    )
    events = []
    prepare(plan, Storage(), report=events.append)
    assert seen == ["c.jsonl", "d.jsonl"]
    assert "2 of 4 parts were done before" in events[-1]["detail"] and events[-1]["rows"] == 4 * 31
    assert not list(Path(plan.storage.cache).glob("preparing-*/"))
    monkeypatch.undo()
    prepare(placed(plan, tmp_path / "other"), Storage())
    assert contents(url) == contents(tmp_path / "other")


@pytest.mark.parametrize("what", ["shard-00000.bin", "shard-00000.index", "unit-00000.json"])
def test_a_unit_is_done_when_all_its_files_are_whole(make, tmp_path, what):
    plan = make({"a.jsonl": jsonl(*numbered(0, 1)), "b.jsonl": jsonl(*numbered(2))})
    prepare(plan, Storage())
    url = Path(plan.storage.prepared)
    whole = contents(url)
    (url / "meta.json").unlink()
    (url / what).write_bytes((url / what).read_bytes()[:-1])
    done = []

    def watched(function, tasks):
        for task in tasks:
            done.append(task.unit.number)
            yield from function(task)

    prepare(plan, Storage(), run=watched)
    assert done == [0] and contents(url) == whole


def test_progress_is_told(make):
    events = []
    prepare(make({"a.jsonl": jsonl(*numbered(*range(600)))}), Storage(), report=events.append)
    assert {(event["kind"], event["phase"]) for event in events} == {("phase", "preparing")}
    assert events[-1]["detail"].startswith("600 rows, ")
    assert events[-1]["rows"] == 600 and events[-1]["eta_s"] == 0


def test_what_is_left_is_told_from_the_bytes_that_are_read(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("shoal.data.progress.time.monotonic", lambda: now[0])
    events = []
    progress = Progress(events.append, {0: 1000, 1: 1000, 2: 2000})
    progress.found(0, 50)
    now[0] += 10
    progress.passed(1, 20, 500)
    assert events[-1]["detail"] == "70 rows, 2 rows/s, 50 s left, 1 of 3 parts were done before"
    now[0] += 10
    progress.passed(1, 40, None)
    assert events[-1]["eta_s"] == 40.0
    assert [duration(seconds) for seconds in (89, 600, 7200, 12000)] == ["89 s", "10 min", "2 h 0 min", "3 h 20 min"]


def test_what_the_store_does_wrong_meanwhile_is_told_to_whoever_prepares(make, monkeypatch):
    read = prepare_module.rows

    def rows(storage, *arguments):
        storage.on_fault(Fault(url="s3://b/a", operation="get", what="is too busy", attempt=1, wait_s=0.5))
        return read(storage, *arguments)

    monkeypatch.setattr(prepare_module, "rows", rows)
    heard = []
    plan = make({"a.jsonl": jsonl(*numbered(*range(600))), "b.jsonl": jsonl(*numbered(1))})
    prepare(plan, Storage(on_fault=heard.append))
    assert [fault.what for fault in heard] == ["is too busy"] * 2


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_an_object(make):
    rows = [
        {"text": f"{number} and some more"} if number % 10 == 0 else b"{bad" * 25 + b"\n" for number in range(100_000)
    ]
    plan = make({"a.jsonl.gz": gzip.compress(jsonl(*rows), 1)}, format="text", max_rejected=1.0)
    del rows
    (task,) = prepare_module.tasks(plan.trajectory.data)
    seen = []
    for item in prepare_module.prepare_unit(prepare_module._recipe(plan, plan.storage.s3), task):
        if isinstance(item, UnitSummary) or item.rows % 10_240 == 0:
            seen.append(resident_bytes())
    assert item.rows == 100_000 and len(seen) == 10
    assert seen[-1] - seen[0] < 8 * 2**20


def test_long_rows_are_tokenised_a_few_at_a_time():
    rows = [(number, {"messages": [{"content": "x" * 2**20}]}) for number in range(10)]
    assert [len(batch) for batch in batches(rows)] == [4, 4, 2]
    assert [len(batch) for batch in batches([(1, {"text": "x"})] * 600)] == [256, 256, 88]


def test_a_file_among_the_prepared_that_is_damaged_is_told(make):
    plan = make({"a.jsonl": jsonl(*numbered(0, 1))})
    prepare(plan, Storage())
    url = Path(plan.storage.prepared)
    (url / "meta.json").unlink()
    index = url / "shard-00000.index"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-00000.index: its checksum is wrong; delete it"):
        prepare(plan, Storage())


def test_two_preparing_the_same_at_once_both_succeed(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(300)))})
    prepare_module._encoder.cache_clear()
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        found = [future.result() for future in [pool.submit(prepare, plan, Storage()) for _ in range(2)]]
    assert found == [summary(Storage(), plan.storage.prepared)] * 2
    assert len(opened(plan).read(range(300))) == 300


def test_units_of_work_cross_processes(make):
    plan = make({"a.jsonl": jsonl(*numbered(0, 1)), "b.jsonl": jsonl(*numbered(2))})

    def elsewhere(function, tasks):
        for task in tasks:
            for item in pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(task))):
                yield pickle.loads(pickle.dumps(item))

    assert prepare(plan, Storage(), run=elsewhere).samples == 3


def test_steps_are_counted_exactly(make):
    plan = make({"a.jsonl": jsonl(*numbered(*range(50)))})
    found = prepare(plan, Storage())
    counted = count_steps(opened(plan).lengths, plan.trajectory)
    assert counted.steps_per_epoch == -(-found.packed_rows // 4)
    assert counted.steps == 2 * counted.steps_per_epoch
    assert counted.tokens == 2 * found.tokens


def test_of_many_parts_each_notices_a_replaced_object(make, small_parts):
    plan = make({"a.jsonl": jsonl(*numbered(*range(300)))})
    path = Path(plan.trajectory.data.train[0].objects[0].url)

    def replaces(function, tasks):
        for number, task in enumerate(tasks):
            if number == 2:
                path.write_bytes(jsonl(*numbered(*range(300, 600))))
            yield from function(task)

    with pytest.raises(DataError, match="was replaced since the plan was made"):
        prepare(plan, Storage(), run=replaces)
    assert summary(Storage(), plan.storage.prepared) is None


@pytest.mark.parametrize("when", ["before", "while"])
def test_an_object_that_was_replaced_is_not_taken_for_the_planned_one(make, monkeypatch, when):
    plan = make({"a.jsonl": jsonl(*numbered(1, 2, 3))})
    path = Path(plan.trajectory.data.train[0].objects[0].url)
    read = prepare_module.rows

    def replaced(*arguments):
        found = read(*arguments)
        path.write_bytes(jsonl(*numbered(1, 2, 3, 4)))
        return found

    if when == "before":
        path.write_bytes(jsonl(*numbered(1, 2, 3, 4)))
    else:
        monkeypatch.setattr(prepare_module, "rows", replaced)
    with pytest.raises(DataError, match=f"{path}: was replaced since the plan was made; run the job again"):
        prepare(plan, Storage())
    assert summary(Storage(), plan.storage.prepared) is None
