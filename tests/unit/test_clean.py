"""Cleaned sets of small data, prepared with the real tokenizer."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from preparations import contents, data_plan, jsonl, source, write_sources

from shoal.backends.inline import Inline
from shoal.data.cache import scratch
from shoal.data.prepare import prepare
from shoal.data.prepared import Prepared
from shoal.errors import DataError
from shoal.plan.types import Plan
from shoal.rows import sources
from shoal.storage import Storage
from shoal.survey.clean import Cleaned, clean, key, made
from shoal.survey.removals import Options, removals
from shoal.survey.run import recipe, survey_units
from shoal.survey.surveyed import Surveyed

ALL = Options(dedupe=True, near=True, drop_leaks=True)


def quiet(event: dict[str, Any]) -> None:
    pass


def row(number: int, **changes: Any) -> dict[str, Any]:
    answer = " ".join(f"w{number}x{i}" for i in range(60))
    return {"prompt": f"what is {number}?", "completion": answer, **changes}


def nearly(number: int, word: int = 3) -> dict[str, Any]:
    return row(number, completion=row(number)["completion"].replace(f"w{number}x{word} ", "another "))


def cleaned(plan: Plan, options: Options, to: Path, run: Any = None) -> Cleaned:
    storage, data, cache = Storage(), plan.trajectory.data, plan.storage.cache
    prepare(plan, storage)
    prepared = Prepared.open(storage, plan.storage.prepared, Path(cache))
    if found := made(storage, str(to), data, options):
        return found
    chosen = recipe(data, storage.s3, plan.storage.prepared, 10, None)
    counts = survey_units(chosen, data, Inline().map, quiet)
    with scratch(Path(cache), "cleaning") as folder:
        rows = Surveyed(storage, chosen.url, counts, folder)
        gone = removals(rows, prepared, len(data.train), options)
        return clean(data, rows, prepared, gone, options, str(to), cache, run or Inline().map, quiet)


def kept(to: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(to.rglob("*.jsonl.zst")):
        with pyarrow.CompressedInputStream(str(path), "zstd") as stream:
            found += [json.loads(line) for line in stream.read().splitlines()]
    return found


def removed(to: Path) -> list[tuple[int, str, int | None]]:
    """(line, cause, line of the row it is a copy of)"""
    lines = [json.loads(line) for line in (to / "removed.jsonl").read_text().splitlines()]
    return [(one["line"], one["cause"], one.get("of", {}).get("line")) for one in lines]


def planned(folder: Path, tokenizer: Path, *lines: dict[str, Any] | bytes, **fields: Any) -> Plan:
    objects = write_sources(folder, {"a.jsonl": jsonl(*lines)})
    given = {"sequence_length": 1024, "max_rejected": 1.0, **fields}
    return data_plan(folder, tokenizer, (source(objects),), **given)


def test_the_first_of_each_stays_and_the_record_says_what_left_and_why(tmp_path, tokenizer_folder):
    lines = [
        row(0, id=5, extra={"ü": [1, None]}),
        row(1),
        b"\n",
        row(0),
        nearly(1),
        row(2, completion=""),
        b"{broken\n",
        row(3),
    ]
    plan, to = planned(tmp_path, tokenizer_folder, *lines), tmp_path / "out"
    found = cleaned(plan, ALL, to)
    assert kept(to) == [lines[0], lines[1], lines[7]]
    assert removed(to) == [
        (4, "duplicate", 1), (5, "near-duplicate", 2), (6, "empty-answer", None), (7, "malformed", None)
    ]  # fmt: skip
    assert (found.rows, found.kept, sum(found.removed.values())) == (7, 3, 4)
    assert found == Cleaned.model_validate_json((to / "record.json").read_bytes())
    assert found.sources[0].objects == plan.trajectory.data.train[0].objects
    assert sorted(path.name for path in to.iterdir()) == ["part-00000.jsonl.zst", "record.json", "removed.jsonl"]


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        (Options(), [0, 1, 0, -1, 2]),
        (Options(dedupe=True), [0, 1, -1, 2]),
        (Options(dedupe=True, near=True), [0, 1, 2]),
        (Options(dedupe=True, near=True, threshold=0.99), [0, 1, -1, 2]),
    ],
)
def test_only_what_is_asked_for_leaves(tmp_path, tokenizer_folder, options, stay):
    lines = [row(0), row(1), row(0), nearly(1), row(2)]
    cleaned(planned(tmp_path, tokenizer_folder, *lines), options, tmp_path / "out")
    assert kept(tmp_path / "out") == [nearly(1) if number < 0 else row(number) for number in stay]


def test_a_row_that_cannot_be_learnt_from_takes_no_copy_with_it(tmp_path, tokenizer_folder):
    # the first is too long to be encoded; the second, nearly the same, is the one that stays
    longer = row(0, completion=row(0)["completion"] + " " + "0" * 40)
    plan = planned(tmp_path, tokenizer_folder, longer, row(0), sequence_length=350)
    found = cleaned(plan, ALL, tmp_path / "out")
    assert found.removed == {"overlength": 1}
    assert kept(tmp_path / "out") == [row(0)]


def test_what_is_held_out_elsewhere_leaves_train(tmp_path, tokenizer_folder):
    train, held = write_sources(
        tmp_path,
        {"a.jsonl": jsonl(*map(row, range(5)), row(1)), "v.jsonl": jsonl(row(1), nearly(3), row(9))},
    )
    plan = data_plan(tmp_path, tokenizer_folder, (source([train]),), (source([held]),), sequence_length=1024)
    found = cleaned(plan, Options(drop_leaks=True), tmp_path / "out")
    assert kept(tmp_path / "out") == [row(0), row(2), row(4)]
    assert removed(tmp_path / "out") == [(2, "held-out", 1), (4, "near-held-out", 2), (6, "held-out", 1)]
    assert "v.jsonl" in (tmp_path / "out" / "removed.jsonl").read_text()
    assert found.rows == 6


def test_of_a_share_that_is_held_out_near_copies_leave_train_and_held_out_rows_stay(tmp_path, tokenizer_folder):
    lines = [one for number in range(40) for one in (row(number), nearly(number))]
    plan, to = planned(tmp_path, tokenizer_folder, *lines, validation_fraction=0.3), tmp_path / "out"
    found = cleaned(plan, Options(drop_leaks=True), to)
    assert set(found.removed) == {"near-held-out"}
    assert found.removed["near-held-out"] > 5
    prepared = Prepared.open(Storage(), plan.storage.prepared, tmp_path)
    held_out = set(prepared.validation.row.tolist())
    gone = removed(to)
    assert all(line not in held_out and of in held_out for line, _, of in gone)
    again = planned(tmp_path, tokenizer_folder, *kept(to), validation_fraction=0.3, digest="d2")
    assert cleaned(again, Options(drop_leaks=True), tmp_path / "again").removed == {}


def test_a_cleaned_set_has_nothing_left_to_clean(tmp_path, tokenizer_folder):
    lines = [row(0), nearly(0, 5), nearly(0, 9), row(1), row(1), row(2, completion="")]
    cleaned(planned(tmp_path, tokenizer_folder, *lines), ALL, tmp_path / "out")
    again = planned(tmp_path, tokenizer_folder, *kept(tmp_path / "out"), digest="d2")
    assert cleaned(again, ALL, tmp_path / "again").removed == {}


def test_several_sources_keep_their_folders_formats_and_weights(tmp_path, tokenizer_folder):
    one, other = write_sources(
        tmp_path,
        {
            "a.jsonl": jsonl(row(0), row(1)),
            "b.csv": b"ask,answer\nwhat is 0?," + row(0)["completion"].encode() + b"\nelse,other words\n",
        },
    )
    columns = {"prompt": "ask", "completion": "answer"}
    train = (source([one], path="a"), source([other], path="b", columns=columns, weight=2.0))
    found = cleaned(data_plan(tmp_path, tokenizer_folder, train, sequence_length=1024), ALL, tmp_path / "out")
    assert [(one.path, one.weight, one.columns, one.kept) for one in found.sources] == [
        ("a", 1.0, {}, 2), ("b", 2.0, columns, 1)
    ]  # fmt: skip
    assert kept(tmp_path / "out" / "source-1") == [{"ask": "else", "answer": "other words"}]
    assert found.sources[1].cleaned == str(tmp_path / "out" / "source-1" / "*.jsonl.zst")


def test_parts_in_any_order_write_the_same_rows(tmp_path, tokenizer_folder, monkeypatch):
    lines = [*map(row, range(30)), b"\n", *map(row, range(10, 40)), b"{broken\n"]
    cleaned(planned(tmp_path, tokenizer_folder, *lines), ALL, tmp_path / "whole")
    monkeypatch.setattr(sources, "PART_BYTES", 3000)

    def backwards(work: Any, todo: Any) -> Any:
        return (one for task in reversed(list(todo)) for one in work(task))

    cleaned(planned(tmp_path, tokenizer_folder, *lines, digest="d2"), ALL, tmp_path / "parted", backwards)
    assert len(list((tmp_path / "parted").glob("part-*"))) > 3
    assert kept(tmp_path / "parted") == kept(tmp_path / "whole") == [row(number) for number in range(40)]
    assert removed(tmp_path / "parted") == removed(tmp_path / "whole")


def test_the_same_set_is_not_made_twice_and_nothing_else_is_overwritten(tmp_path, tokenizer_folder):
    plan, to = planned(tmp_path, tokenizer_folder, row(0), row(0)), tmp_path / "out"
    first = cleaned(plan, ALL, to)
    before = contents(to)
    assert cleaned(plan, ALL, to, run=lambda work, todo: pytest.fail("it is made again")) == first
    assert contents(to) == before
    with pytest.raises(DataError, match="other data or options"):
        cleaned(plan, Options(dedupe=True), to)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        cleaned(plan, ALL, tmp_path / "mine")
    with pytest.raises(DataError, match="holds data that are read"):
        cleaned(plan, ALL, tmp_path)


def test_a_set_that_was_not_finished_is_gone_on_with(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 3000)
    plan, to = planned(tmp_path, tokenizer_folder, *map(row, range(30))), tmp_path / "out"

    def two(work: Any, todo: Any) -> Any:
        for place, task in enumerate(todo):
            if place == 2:
                raise KeyboardInterrupt
            yield from work(task)

    with pytest.raises(KeyboardInterrupt):
        cleaned(plan, ALL, to, run=two)
    assert not (to / "record.json").exists()
    with pytest.raises(DataError, match="never finished"):
        cleaned(plan, Options(dedupe=True), to)
    before = {path: path.stat().st_mtime_ns for path in to.glob("part-*")}
    assert len(before) == 2
    cleaned(plan, ALL, to)
    assert kept(to) == [row(number) for number in range(30)]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert not (to / "making.json").exists()


def test_equal_sets_have_equal_keys(tmp_path, tokenizer_folder):
    data = planned(tmp_path, tokenizer_folder, row(0)).trajectory.data
    assert key(data, Options(dedupe=True)) == key(data, Options(dedupe=True, threshold=0.5))
    assert key(data, Options(dedupe=True, near=True)) != key(data, Options(dedupe=True, near=True, threshold=0.5))
    assert key(data, ALL) != key(data.model_copy(update={"digest": "other"}), ALL)
