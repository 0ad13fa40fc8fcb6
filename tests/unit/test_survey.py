"""Surveys of small data sets with planted defects; nothing is tokenised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparations import contents, jsonl, source, write_sources

from shoal.backends.inline import Inline
from shoal.errors import DataError
from shoal.plan.types import DataPlan, SourcePlan
from shoal.rows import sources
from shoal.rows.samples import Completion, Conversation, Message, Preference, Text
from shoal.storage import Storage
from shoal.survey import run as surveying
from shoal.survey import units as survey
from shoal.survey.figures import Survey
from shoal.survey.units import Recipe, view

GIVEN = {
    "validation_fraction": 0.0, "train_on": "assistant", "chat_template": None, "sequence_length": 64,
    "packing": True, "overlength": "reject", "max_rejected": 0.01, "digest": "d1",
}  # fmt: skip


def rows(count: int) -> list[dict[str, Any]]:
    """Different from each other in every word but few."""
    return [
        {"prompt": f"what is {n} of {n * 7}?", "completion": " ".join(f"w{n}x{i}" for i in range(60))}
        for n in range(count)
    ]


def data(*train: SourcePlan, **fields: Any) -> DataPlan:
    return DataPlan(train=train, **{"validation": (), **GIVEN, **fields})


def told(folder: Path, plan: DataPlan, near_rows: int | None = None, threshold: float = 0.8, run: Any = None) -> Survey:
    storage = Storage()
    chosen = surveying.recipe(plan, storage.s3, str(folder / "prepared"), 100, near_rows)
    return surveying.survey(
        plan, chosen, None, storage, str(folder / "cache"), threshold, run or Inline().map, lambda event: None
    )


def written(folder: Path, name: str, *lines: dict[str, Any] | bytes, **fields: Any) -> SourcePlan:
    return source(write_sources(folder, {name: jsonl(*lines)}), path=name, **fields)


def test_clean_rows_have_nothing_to_tell(tmp_path):
    found = told(tmp_path, data(written(tmp_path, "a.jsonl", *rows(30))))
    assert (found.rows, found.accepted, found.turns) == (30, 30, {1: 30})
    assert (found.exact_duplicates.rows, found.near_duplicates.rows, found.near_duplicates.compared) == (0, 0, 30)
    assert (found.rejected, found.answers.repeated, found.leakage, found.ids) == ((), (), None, None)
    assert found.lengths is None and found.train is None


def test_copies_are_counted_once_and_shown_with_their_place(tmp_path):
    first, second, third = rows(3)
    nearly = {**second, "completion": second["completion"].replace("w1x3 ", "another ")}
    found = told(tmp_path, data(written(tmp_path, "a.jsonl", first, second, first, third, first, nearly)))
    assert (found.exact_duplicates.rows, found.exact_duplicates.groups) == (2, 1)
    (largest,) = found.exact_duplicates.largest
    assert (largest.rows, largest.first.line, largest.first.text) == (3, 1, "what is 0 of 0?")
    (pair,) = found.near_duplicates.examples
    assert (pair.row.line, pair.of.line) == (6, 2)
    assert 0.8 <= pair.similarity < 1
    assert found.near_duplicates.rows == 1
    assert found.near_duplicates.compared == 4


def test_the_threshold_moves_what_is_near_and_units_are_not_read_again(tmp_path):
    first = rows(1)[0]
    nearly = {**first, "completion": first["completion"].replace("w0x3 ", "another ")}
    plan = data(written(tmp_path, "a.jsonl", first, nearly))
    assert told(tmp_path, plan).near_duplicates.rows == 1

    def refuse(work: Any, todo: Any) -> Any:
        assert not list(todo), "a unit that was done is read again"
        return iter(())

    assert told(tmp_path, plan, threshold=0.99, run=refuse).near_duplicates.rows == 0
    assert told(tmp_path, plan, threshold=0.99, run=None).near_duplicates.threshold == 0.99


def test_leaks_are_exact_near_or_of_the_prompt_alone(tmp_path):
    train = rows(10)
    nearly = {**train[2], "completion": train[2]["completion"].replace("w2x3 ", "another ")}
    other = {"prompt": f"  {train[3]['prompt'].upper()}\n", "completion": "something else altogether"}
    held = [train[1], nearly, other, {"prompt": "unseen", "completion": "never asked before"}]
    plan = data(written(tmp_path, "a.jsonl", *train), validation=(written(tmp_path, "v.jsonl", *held),))
    leak = told(tmp_path, plan).leakage
    assert leak is not None
    assert (leak.held_out, leak.exact, leak.near, leak.prompt) == (4, 1, 1, 2)
    assert [(pair.row.line, pair.of.line) for pair in leak.examples] == [(1, 2), (2, 3)]
    assert leak.examples[0].row.object.endswith("v.jsonl") and leak.examples[0].of.object.endswith("a.jsonl")


def test_a_share_that_is_held_out_keeps_exact_copies_together(tmp_path):
    plan = data(written(tmp_path, "a.jsonl", *rows(60), *rows(60)), validation_fraction=0.3)
    leak = told(tmp_path, plan).leakage
    assert leak is not None
    assert (leak.exact, leak.near, leak.prompt) == (0, 0, 0)
    assert 10 < leak.held_out < 70


def test_one_answer_to_many_prompts_is_told_once_per_prompt(tmp_path):
    sorry = [
        {"prompt": f"question {n % 5} here", "completion": "I am  SORRY." if n else "I am sorry."} for n in range(8)
    ]
    found = told(tmp_path, data(written(tmp_path, "a.jsonl", *rows(4), *sorry)))
    (one,) = found.answers.repeated
    assert (one.prompts, one.rows, one.example.text, one.example.line) == (5, 8, "I am sorry.", 5)
    assert found.answers.repeated_rows == 8


def test_rejected_rows_have_causes_examples_and_remedies_and_other_formats_are_named(tmp_path):
    lines = [*rows(3), {"prompt": "x", "completion": ""}, b"{broken\n", {"text": "another format"}]
    found = told(tmp_path, data(written(tmp_path, "a.jsonl", *lines)))
    assert {one.cause: one.rows for one in found.rejected} == {"empty-answer": 1, "malformed": 1, "other-format": 1}
    assert all(one.remedy and one.examples for one in found.rejected)
    assert {one.cause: one.examples[0][0].line for one in found.rejected}["other-format"] == 6
    assert found.sources[0].other_formats == {"text": 1}
    assert found.answers.empty == 1
    assert (found.rows, found.accepted) == (6, 3)


def test_nothing_but_bad_rows_and_nothing_at_all(tmp_path):
    found = told(tmp_path, data(written(tmp_path, "a.jsonl", b"{broken\n"), written(tmp_path, "b.jsonl", b"\n")))
    assert (found.rows, found.accepted, found.exact_duplicates.rows, found.near_duplicates.compared) == (1, 0, 0, 0)


def test_ids_that_come_twice(tmp_path):
    lines = [{**row, "id": number % 4} for number, row in enumerate(rows(6))]
    ids = told(tmp_path, data(written(tmp_path, "a.jsonl", *lines, rows(7)[6]))).ids
    assert ids is not None
    assert (ids.rows, ids.duplicates) == (6, 2)
    assert {(pair.row.line, pair.of.line) for pair in ids.examples} == {(5, 1), (6, 2)}


def test_languages_of_both_roles_and_rows_where_they_differ(tmp_path):
    english = "The quick brown fox jumps over the lazy dog while the sun is shining."
    german = "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne scheint."
    lines = [
        {"prompt": english, "completion": english.replace("fox", "cat")},
        {"prompt": german, "completion": english},
        {"prompt": english, "completion": "42"},
    ]
    spoken = told(tmp_path, data(written(tmp_path, "a.jsonl", *lines))).languages
    assert spoken.prompts == {"en": 2, "de": 1}
    assert spoken.answers == {"en": 2, "und": 1}
    assert spoken.differ == 1
    ((place, asked, answered),) = spoken.examples
    assert (place.line, asked, answered) == (2, "de", "en")


def test_preference_rows_are_surveyed_though_nothing_trains_on_them(tmp_path):
    good = [{"prompt": f"ask {n}", "chosen": f"yes {n} and more", "rejected": f"no {n} at all"} for n in range(4)]
    bad = {"prompt": "ask", "chosen": "same", "rejected": "same"}
    found = told(tmp_path, data(written(tmp_path, "p.jsonl", *good, good[1], bad, format="preference")))
    assert (found.rows, found.accepted, found.exact_duplicates.rows) == (6, 5, 1)
    assert [one.cause for one in found.rejected] == ["same-answers"]


def test_parts_of_an_object_and_any_order_of_work_give_the_same_survey(tmp_path, monkeypatch):
    lines = [*rows(200), b"\n", *rows(50), b"{broken\n", *rows(3)]
    plan = data(written(tmp_path, "a.jsonl", *lines), written(tmp_path, "b.jsonl", *rows(20)))
    whole = told(tmp_path / "whole", plan)
    monkeypatch.setattr(sources, "PART_BYTES", 3000)

    def backwards(work: Any, todo: Any) -> Any:
        return (one for task in reversed(list(todo)) for one in work(task))

    parted = told(tmp_path / "parted", plan, run=backwards)
    assert len(list((tmp_path / "parted").rglob("unit-*.json"))) > 5
    assert parted.exact_duplicates.rows == 73
    assert parted == whole


def test_a_survey_goes_on_from_the_units_that_are_done(tmp_path):
    plan = data(*(written(tmp_path, f"{name}.jsonl", *rows(5)) for name in "abc"))
    worked = []

    def two(work: Any, todo: Any) -> Any:
        for place, task in enumerate(todo):
            worked.append(task.unit.number)
            yield from work(task)
            if len(worked) == 2 and place == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told(tmp_path, plan, run=two)
    assert told(tmp_path, plan, run=two).rows == 15
    assert worked == [0, 1, 2]


def test_the_same_survey_writes_the_same_bytes(tmp_path):
    plan = data(written(tmp_path, "a.jsonl", *rows(20), *rows(3)))
    found = []
    for name in ("one", "two"):
        told(tmp_path / name, plan)
        (folder,) = (tmp_path / name / "prepared" / "survey").iterdir()
        found.append(contents(folder))
    assert found[0] == found[1]
    assert "survey.json" in found[0]


def test_an_object_that_is_replaced_is_refused(tmp_path):
    plan = data(written(tmp_path, "a.jsonl", *rows(5)))
    (tmp_path / "a.jsonl").write_bytes(jsonl(*rows(6)))
    with pytest.raises(DataError, match="was replaced"):
        told(tmp_path, plan)


def test_above_a_number_of_rows_near_copies_are_looked_for_on_a_share_that_keeps_them_together(tmp_path):
    lines = rows(400)
    nearly = [{**row, "completion": row["completion"].replace("x3 ", "y ")} for row in lines]
    plan = data(written(tmp_path, "a.jsonl", *lines, *nearly))
    every = told(tmp_path, plan).near_duplicates
    some = told(tmp_path, plan, near_rows=25).near_duplicates
    assert (every.compared, every.sampled, some.sampled) == (800, 1.0, 0.25)
    assert 120 < some.compared < 280
    # chosen apart, a pair in sixteen would be seen whole; chosen by what they share, most of one in four are
    assert some.share > 0.75 * every.share > 0.3


def test_names_and_weights_are_those_of_the_plan_though_the_survey_is_kept(tmp_path):
    one = written(tmp_path, "a.jsonl", *rows(5))
    told(tmp_path, data(one))
    again = told(tmp_path, data(one.model_copy(update={"weight": 2.0, "path": "renamed"})))
    assert (again.sources[0].weight, again.sources[0].path) == (2.0, "renamed")


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (Text("running"), ("", "", "running", 0)),
        (Completion("ask", "answer"), ("ask", "answer", "ask\nanswer", 1)),
        (
            Conversation(
                (Message("system", "long rules"), Message("user", "one"), Message("assistant", "two"),
                 Message("user", "three"), Message("assistant", "four"))
            ),
            ("one", "four", "one\ntwo\nthree\nfour", 2),
        ),
        (
            Preference((Message("user", "ask"),), (Message("assistant", "good"),), (Message("assistant", "bad"),)),
            ("ask", "good", "ask\ngood\nbad", 1),
        ),
    ],
)  # fmt: skip
def test_what_is_compared_leaves_the_systems_words_out(sample, expected):
    seen = view(sample)
    assert (seen.prompt, seen.answer, seen.words, seen.turns) == expected


def test_units_hold_a_bounded_number_of_bytes_per_row(tmp_path):
    plan = data(written(tmp_path, "a.jsonl", *rows(300)))
    told(tmp_path, plan)
    (folder,) = (tmp_path / "prepared" / "survey").iterdir()
    size = sum(len(content) for content in contents(folder).values())
    assert size < 300 * (survey.ROW.itemsize + survey.TEXT.itemsize + 4 * 128 + 8) + 10_000
    assert survey.ROW.itemsize <= 48


def test_a_recipe_names_its_folder_by_what_units_hold():
    plan = data(source([]))
    storage = Storage()
    some, all_of_them, other = (
        surveying.recipe(plan, storage.s3, "x", count, limit) for count, limit in ((10, 5), (10, None), (20, 10))
    )
    assert isinstance(some, Recipe)
    assert len({some.url, all_of_them.url}) == 2
    assert some.url == other.url
    assert json.dumps(np.float64(some.compared)) == "0.5"
