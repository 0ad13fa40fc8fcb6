"""A sweep without its running: space, params, pace, leaderboard, page, the best."""

import json
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sweeps import JOB, RATES, SWEEP_ID, sweep_plan, write_sweep

from shoal.cli.standing import sweep_standing
from shoal.errors import ShoalError, SpecError
from shoal.record.rows import append
from shoal.spec.cluster import ClusterProfile
from shoal.spec.load import parse_job
from shoal.spec.sweep import SweepSpec
from shoal.storage import Storage
from shoal.tune import chart
from shoal.tune.best import copy_export, winning
from shoal.tune.board import board
from shoal.tune.checks import idle_problems, place_problems
from shoal.tune.folder import SweepFolder, find_sweep, list_sweeps
from shoal.tune.importance import importance
from shoal.tune.live import Trials, table
from shoal.tune.pace import Pace, grace_period, perturbation_interval
from shoal.tune.page import page
from shoal.tune.space import apply, at_once, candidates, combinations, grid, settled, trial_count
from shoal.tune.table import board_table

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def spec(space: dict[str, Any], **fields: Any) -> SweepSpec:
    return SweepSpec.model_validate({"space": space, **fields})


def shown(what: Any, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as said:
        console.print(what)
    return said.get()


# Space


def test_a_dimension_that_was_written_out_in_full_reads_back_as_itself() -> None:
    spec = SweepSpec.model_validate({"space": {"lora.r": {"randint": [4, 64]}}})
    back = SweepSpec.model_validate(spec.model_dump(mode="json"))
    assert (back.dimensions["lora.r"].kind, back.dimensions["lora.r"].numbers) == ("randint", [4, 64])


def test_a_grid_has_every_combination_once() -> None:
    one = spec({"lora.r": [8, 16], "method": {"grid": ["lora", "full"]}}, search="grid")
    found = list(grid(one))
    assert len(found) == combinations(one) == trial_count(one) == 4
    assert found[0] == {"lora.r": 8, "method": "lora"} and found[1]["method"] == "full"


def test_a_range_has_no_number_of_combinations_and_a_default_of_trials() -> None:
    one = spec({"lora.r": [8, 16], "optimizer.learning_rate": {"loguniform": [1e-5, 1e-3]}})
    assert combinations(one) is None
    assert trial_count(one) == 16
    assert trial_count(one.model_copy(update={"trials": 3})) == 3


@pytest.mark.parametrize(
    ("kind", "fields", "count"),
    [
        ("local", {"workers": 2}, 4),
        ("local", {"workers": 2, "max_concurrent": 3}, 3),
        ("local", {"workers": 2, "max_concurrent": 6}, 4),  # resumed where there is less room
        ("local", {"workers": 2, "trials": 2}, 2),
        ("local", {}, 1),
        ("ray", {"workers": 2}, 4),
        ("ray", {"workers": 2, "max_concurrent": 6}, 6),  # those without room wait for an autoscaler
        ("ray", {"workers": 2, "max_concurrent": 60}, 16),
    ],
)
def test_trials_at_once_are_what_the_file_says_or_the_profile_s_workers_suffice_for(
    kind: str, fields: dict[str, Any], count: int
) -> None:
    one = spec({"optimizer.learning_rate": {"uniform": [0, 1]}}, **fields)
    assert at_once(one, ClusterProfile.model_validate({"kind": kind, "workers": 8})) == count


def test_a_space_is_looked_at_by_its_values_and_its_corners() -> None:
    one = spec({"lora.r": [8, 16, 64], "optimizer.learning_rate": {"loguniform": [1e-5, 1e-3]}})
    assert len(candidates(one, 256)) == 6
    ends = {point["train.seed"] for point in candidates(spec({"train.seed": {"randint": [3, 9]}}), 256)}
    assert ends == {3, 8}


@given(st.integers(2, 9), st.integers(2, 5), st.integers(12, 60))
def test_of_a_large_space_each_value_is_looked_at(fields: int, values: int, limit: int) -> None:
    one = spec({f"data.columns.f{index}": list(range(values)) for index in range(fields)})
    found = candidates(one, limit)
    assert len(found) <= max(limit, values**fields if values**fields <= limit else limit)
    assert len({str(point) for point in found}) == len(found)
    if limit >= 2 + fields * (values - 1):
        seen = {(field, value) for point in found for field, value in point.items()}
        assert len(seen) == fields * values


def test_params_go_into_a_job_as_a_file_would_say_them() -> None:
    import numpy

    job = sweep_plan().job
    params = {"optimizer.learning_rate": numpy.float64(1e-3), "train.batch_size": 8.0, "lora.r": numpy.int64(4)}
    made = apply(job, params)
    assert made == parse_job(
        JOB.replace("batch_size: 4", "batch_size: 8") + "lora: {r: 4}\noptimizer: {learning_rate: 1e-3}\n", "x"
    )
    assert type(settled(params)["lora.r"]) is int and settled({"train.batch_size": 7.5}) == {"train.batch_size": 7.5}
    assert apply(job, {}) == job and job.sweep is None


def test_a_value_that_the_field_refuses_is_told() -> None:
    with pytest.raises(SpecError, match=r"lora.r: is 0; allowed: a whole number from 1"):
        apply(sweep_plan().job, {"lora.r": 0})


def test_a_field_of_the_space_is_set_from_the_command_line_by_its_whole_name() -> None:
    job = parse_job(JOB, "x", ["sweep.space.optimizer.learning_rate=[1e-4, 1e-3]", "sweep.trials=2"])
    assert job.sweep and job.sweep.space == {"optimizer.learning_rate": [1e-4, 1e-3]}


# Pace


@pytest.mark.parametrize(
    ("fields", "grace"),
    [
        ({"scheduler": "asha"}, 100),
        ({"scheduler": "asha", "asha": {"grace_period": 0.5}}, 450),
        ({"scheduler": "asha", "asha": {"grace_period": 250}}, 250),
        ({"scheduler": "asha", "asha": {"reduction_factor": 30}}, 90),
        ({"scheduler": "median"}, 225),
        ({"scheduler": "median", "median": {"grace_period": 1}}, 900),
    ],
)
def test_grace_is_told_in_tokens_and_lasts_to_the_first_report(fields: dict[str, Any], grace: int) -> None:
    one = Pace(tokens=900, steps=90, reports=10)
    assert grace_period(spec({"lora.r": [1]}, **fields), one) == grace
    assert perturbation_interval(spec({"lora.r": [1]}), one) == 225


# Where it runs


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"kind": "local", "workers": 2}, ""),
        ({"kind": "ray", "workers": {"min": 1, "max": 4}}, ""),
        ({"kind": "inline"}, "kind: inline is this process alone"),
        ({"kind": "ray", "workers": 2, "address": "http://head:8265"}, ""),
        ({"kind": "kuberay", "workers": 2}, ""),
        ({"kind": "ray", "workers": 1}, "sweep.workers: 2 for each trial, but the profile has 1"),
    ],
)
def test_a_place_that_cannot_hold_a_sweep_is_told(profile: dict[str, Any], said: str) -> None:
    found = list(place_problems(spec({"lora.r": [1]}, workers=2), ClusterProfile.model_validate(profile)))
    assert " ".join(map(str, found)).startswith(said) and bool(found) == bool(said)


def test_a_field_that_does_something_at_one_point_is_not_idle() -> None:
    asked = spec({"method": ["full", "lora"], "lora.r": [8, 16], "train.micro_batch_size": [1, 2]})
    points = candidates(asked, 256)
    plans = [
        SimpleNamespace(trajectory_digest=f"{one['method']}{one['lora.r'] * (one['method'] == 'lora')}")
        for one in points
    ]

    def idle(known: int) -> list[str]:
        return [one.where for one in idle_problems(asked, points[:known], cast(Any, plans[:known]))]

    assert idle(len(points)) == ["sweep.space.train.micro_batch_size"]
    assert idle(4) == ["sweep.space.lora.r", "sweep.space.train.micro_batch_size"], (
        "all that there is with method: full"
    )
    assert idle(7) == [], "of corners alone nothing is said"


# Leaderboard


def test_the_leaderboard_merges_ends_and_runs(tmp_path: Path) -> None:
    found = board(write_sweep(tmp_path))
    assert [row.state for row in found.rows].count("finished") == 4
    assert found.winner and found.winner.number == 8
    assert [row.number for row in found.ranked][:4] == [8, 4, 5, 3]
    assert found.ranked[-1].state == "failed"
    unfinished = found.rows[1]
    assert (unfinished.state, unfinished.step, unfinished.tokens, unfinished.seconds) == ("unfinished", 8, 800, None)
    assert unfinished.metric == unfinished.best == unfinished.curve[-1].value < unfinished.curve[0].value == 8.0
    said = shown(board_table(found, 160), width=160)
    assert "tried again 1x with a smaller micro-batch: out of memory" in said and "asha" in said
    narrow = shown(board_table(found, 60), width=60)
    assert all(narrow.count(state) >= 1 for state in ("finished", "stopped", "failed", "unfinished", "2.3469"))
    assert "trial 6: asha" in narrow
    assert found.as_json()["winner"] == 8


def test_a_loss_that_is_no_number_ranks_as_none(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    _, end = folder.read_trials()[7]
    assert end and end.number == 8
    folder.write_end(replace(end, metric=float("nan"), best=float("nan")))
    found = board(folder)
    assert found.winner and found.winner.number == 4 and found.score(found.rows[7]) is None
    json.loads(json.dumps(found.as_json(), allow_nan=False))


def test_the_largest_is_best_when_asked_for(tmp_path: Path) -> None:
    found = replace(board(write_sweep(tmp_path)), mode="max")
    assert found.winner and found.winner.number == 3


def test_a_row_that_speaks_for_several_steps_counts_them_all() -> None:
    from shoal.record.rows import Record
    from shoal.tune.board import curve

    step = {"kind": "step", "step": 4, "loss": 2.0, "tokens": 50, "covers": {"steps": 4, "seconds": 1.0}}
    assert curve(Record([], [step, {"kind": "eval", "step": 4, "loss": 1.0}]), "validation.loss")[0].tokens == 200


def test_what_is_written_once_stays(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    for again in (lambda: folder.write_plan(sweep_plan()), lambda: folder.write_trial(folder.read_trials()[0][0])):
        with pytest.raises(FileExistsError):
            again()
    assert folder.read_plan() == sweep_plan()
    assert folder.read_plan().job.model_fields_set == sweep_plan().job.model_fields_set
    assert parse_job(Storage().read(folder.job), "job.yaml").sweep == sweep_plan().spec


def test_a_sweep_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    assert find_sweep(Storage(), str(tmp_path), "fish").id == SWEEP_ID
    assert [one.id for one in list_sweeps(Storage(), str(tmp_path))] == [SWEEP_ID]
    with pytest.raises(SpecError, match=f"did you mean {SWEEP_ID}"):
        find_sweep(Storage(), str(tmp_path), "fihs")
    for run, told in (
        (f"{SWEEP_ID}-0003", f"is a trial, not a sweep; its sweep is {SWEEP_ID}"),
        ("cod", "is a run, not a"),
    ):
        Storage().write(f"{tmp_path}/{run}/plan.json", b"{}")
        with pytest.raises(SpecError, match=told):
            find_sweep(Storage(), str(tmp_path), run)


@pytest.mark.parametrize(
    ("file", "body", "told"),
    [
        ("sweep.json", '{"version": 9, "shoal": "9.0.0"}', "sweep.json: was written by shoal 9.0.0, and this is "),
        ("sweep.json", '{"version": 1, "sho', "sweep.json: is not whole"),
        ("trials/0001.end.json", '{"number": 1}', "0001.end.json: was written by another version of shoal"),
        ("trials/0001.json", "[]", "0001.json: is not whole"),
    ],
)
def test_what_another_shoal_wrote_is_told(tmp_path: Path, file: str, body: str, told: str) -> None:
    folder = write_sweep(tmp_path)
    (tmp_path / SWEEP_ID / file).write_text(body)
    with pytest.raises(SpecError) as caught:
        board(folder)
    assert told in str(caught.value)
    own = sweep_standing(folder, 0, [])
    assert (own.state, own.loss) == ("unreadable", None), "one such sweep does not hide the others"


# The best


def test_the_best_job_is_the_trials_own_and_needs_no_sweep(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    found = winning(folder)
    assert found.trial == 8 and found.value == pytest.approx(2.3469, abs=1e-3)
    job = parse_job(found.text, "best.yaml")
    assert job.sweep is None and job.name == "fish"
    assert job.optimizer.learning_rate == RATES[7] and job.train.batch_size == 4
    assert job == apply(folder.read_plan().job, found.params)
    assert copy_export(found, Storage(), tmp_path / "model").joinpath("weights.txt").read_text() == "of trial 8"
    with pytest.raises(SpecError, match="is there and not empty"):
        copy_export(found, Storage(), tmp_path / "model")
    assert found.export
    Storage().delete(f"{found.export}/")
    with pytest.raises(SpecError, match="trial 8 has no model: its run folder holds none any more"):
        copy_export(winning(folder), Storage(), tmp_path / "again")


def test_before_a_trial_has_finished_the_best_is_the_one_that_is_ahead(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    for number in range(1, 9):
        Storage().delete(folder.end(number))
        Storage().delete(folder.run(number).result)
    found = winning(folder)
    assert found.trial == 8 and found.export is None and "no trial of this sweep has finished" in found.words
    with pytest.raises(SpecError, match="trial 8 has no model: it did not finish"):
        copy_export(found, Storage(), tmp_path / "model")


def test_nothing_measured_has_no_best(tmp_path: Path) -> None:
    folder = SweepFolder.of(Storage(), str(tmp_path), SWEEP_ID)
    folder.write_plan(sweep_plan())
    with pytest.raises(SpecError, match=r"no trial has a validation.loss yet"):
        winning(folder)
    assert "none began" in shown(board_table(board(folder), 100))
    assert "Nothing was measured yet" in page(board(folder), folder.read_plan())


def test_a_value_of_several_lines_cannot_leave_the_comment(tmp_path: Path) -> None:
    space = {"model.revision": ["main\nname: other", "dev"], "optimizer.learning_rate": list(RATES)}
    folder = write_sweep(tmp_path, sweep_plan(space))
    text = winning(folder).text
    assert [line for line in text.splitlines() if line.startswith("name:")] == ["name: fish"]
    assert yaml.safe_load(text)["name"] == "fish"


# What mattered


def test_the_field_that_the_loss_follows_is_the_one_that_mattered(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    found = importance(board(folder), folder.read_plan().spec.dimensions)
    assert next(iter(found.shares)) == "optimizer.learning_rate"
    assert sum(found.shares.values()) == pytest.approx(1) and found.shares["optimizer.learning_rate"] > 0.6
    assert (found.trials, found.tokens) == (6, 800)


def test_a_number_is_the_same_with_a_point(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    found = board(folder)
    rows = [replace(row, params={field: float(value) for field, value in row.params.items()}) for row in found.rows]
    spaces = folder.read_plan().spec.dimensions
    assert importance(replace(found, rows=tuple(rows)), spaces) == importance(found, spaces)


def test_of_few_trials_nothing_is_said(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    found = board(folder)
    few = importance(replace(found, rows=found.rows[:3]), folder.read_plan().spec.dimensions)
    assert not few.shares and "it takes 6 trials that ended, and there are 2" in few.why_not


# The page


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def read_page(text: str) -> _Tags:
    parser = _Tags()
    parser.feed(text)
    return parser


def test_the_page_has_a_line_for_each_trial_and_needs_nothing_else(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    text = page(board(folder), folder.read_plan())
    found = read_page(text)
    assert found.tags.count("polyline") == 7 + 7  # one trial was never measured
    assert "script" not in found.tags and not {"src", "href", "onload"} & {name for name, _ in found.attributes}
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert text.count("<tr") == 1 + 8 + 2
    for words in ("PED-ANOVA", "shoal sweep best", "validation.loss over tokens", "default-src 'none'"):
        assert words in text


def test_a_hostile_name_is_text_on_the_page(tmp_path: Path) -> None:
    space = {"model.revision": [HOSTILE, "dev"], "optimizer.learning_rate": list(RATES)}
    plan = sweep_plan(space)
    folder = write_sweep(tmp_path, plan)
    hostile = board(folder)
    rows = tuple(
        replace(row, why=HOSTILE, state="failed" if row.number == 2 else row.state,
                params={"model.revision": HOSTILE, "optimizer.learning_rate": row.params["optimizer.learning_rate"]})
        for row in hostile.rows
    )  # fmt: skip
    text = page(replace(hostile, rows=rows, sweep=HOSTILE, metric=HOSTILE), plan)
    found = read_page(text)
    assert not {"script", "img"} & set(found.tags)
    assert "onerror" not in {name for name, _ in found.attributes}
    assert "&lt;script&gt;" in text


def test_a_diverged_trial_does_not_flatten_the_others() -> None:
    scale = chart.metric_scale([*(2 + index / 100 for index in range(99)), 1e9], "min")
    assert scale.high < 4 and scale.at(1e9) == 1.0


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.booleans())
def test_labels_lie_on_their_axis(low: float, factor: float, log: bool) -> None:
    scale = chart.numbers([low, low * factor], log)
    assert scale.labels and all(0 <= at <= 1 for at, _ in scale.labels)


# While it runs


def test_the_live_table_tells_what_became_of_each_trial() -> None:
    trials = Trials()
    params = {"optimizer.learning_rate": 1e-3}
    events = [
        {"kind": "sweep", "sweep": SWEEP_ID, "folder": "f", "metric": "validation.loss", "mode": "min", "trials": 8},
        {"kind": "trial", "trial": 1, "run": "r", "params": params},
        {"kind": "trial", "trial": 2, "run": "r", "params": params},
        {"kind": "phase", "trial": 2, "phase": "loading"},
        {"kind": "step", "trial": 1, "step": 4, "steps": 16, "loss": 2.5},
        {"kind": "eval", "trial": 1, "step": 4, "loss": 2.25},
        {"kind": "trial_end", "trial": 1, "state": "stopped", "why": "asha", "metric": 2.25, "step": 4},
    ]
    lines = []
    for event in events:
        trials.see(event)
        lines.append(trials.record(event))
    assert lines[1] == "trial 1: optimizer.learning_rate=0.001" and lines[3] is None
    assert lines[-1] == "trial 1: stopped at step 4, validation.loss 2.2500: asha"
    said = shown(table(trials))
    assert "2 of 8 trials: 1 running, 1 stopped" in said and "stopped  4/16  2.2500" in said and "loading" in said


def test_a_trial_that_never_began_has_an_end_all_the_same() -> None:
    trials, event = (
        Trials(),
        {"kind": "trial_end", "trial": 3, "state": "failed", "why": "its process died", "metric": None},
    )
    trials.see(event)
    assert trials.record(event) == "trial 3: failed at step 0: its process died"
    assert "failed" in shown(table(trials)) and "its process died" in shown(table(trials))


def test_a_section_of_the_space_is_a_column_for_each_of_its_fields(tmp_path: Path) -> None:
    sections = [{"learning_rate": 1e-3, "weight_decay": 0.5}, {"learning_rate": 1e-2}]
    names = ["a-long-name.jsonl", "another-long-name.jsonl"]
    plan = sweep_plan({"optimizer": sections, "data.train": [names, names[:1]]})
    folder = write_sweep(tmp_path, plan)
    found = board(folder)
    told = shown(board_table(found, 150), 150)
    heading, *rows = told.splitlines()[1:10]
    assert heading.split()[3:6] == ["learning_rate", "weight_decay", "train"]
    assert len(rows) == 8 and all(re.match(r" +[1-8] ", row) for row in rows), "one line a trial"
    assert "  [a-long-name.jsonl, a...  " in told
    made = page(found, plan)
    assert '<th class="n">optimizer.weight_decay</th>' in made and '<td class="n">0.5</td>' in made
    live = Trials()
    live.see({"kind": "trial", "trial": 1, "run": "r", "params": {"optimizer": sections[0]}})
    assert "weight_decay" in shown(table(live))


def test_what_ended_a_sweep_before_its_trials_is_kept(tmp_path: Path) -> None:
    from shoal.tune.sweep import run_sweep

    plan = sweep_plan()
    profile = ClusterProfile.model_validate({"kind": "local", "storage": {"runs": str(tmp_path)}})
    with pytest.raises(ShoalError, match="some/model") as caught:
        run_sweep(plan, profile, Storage(), lambda event: None, threading.Event(), cast(Any, object()))
    folder = find_sweep(Storage(), str(tmp_path), "fish")
    assert sweep_standing(folder, 0, []).state == "failed"
    found = board(folder)
    assert found.failed == str(caught.value)
    assert "failed: model.base: some/model" in shown(board_table(found, 100))
    assert "Failed: model.base: some/model" in page(found, plan)
    append(folder.lease, {"kind": "driver", "host": "a", "pid": 1})
    assert (board(folder).failed, sweep_standing(folder, 0, []).state) == ("", "started"), "it is driven once more"


# The list of runs


def test_a_sweep_is_one_line_of_the_list_and_goes_as_a_whole(tmp_path: Path) -> None:
    from shoal.cli.runs import chosen
    from shoal.cli.standing import survey

    folder = write_sweep(tmp_path)
    for number in range(1, 9):
        folder.storage.write(folder.run(number).plan, b"{}")
    folder.storage.write(folder.run(8).manifest(16), b"{}")
    folder.storage.write(folder.lease.events, b'{"kind":"ended","state":"finished"}\n')
    folder.storage.write(str(tmp_path / "mine" / "plan.json"), b"{}")
    found = survey(folder.storage, str(tmp_path))
    assert [one.id for one in found if one.sweep is None] == [SWEEP_ID, "mine"]
    assert sum(one.sweep == SWEEP_ID for one in found) == 8
    sweep = next(one for one in found if one.trials is not None)
    assert (sweep.trials, sweep.state, sweep.folder) == (8, "finished", folder.url)
    assert sweep.loss == pytest.approx(2.3469, abs=1e-3)
    assert len(sweep.folders) == 9 and sweep.checkpoint_bytes == 2
    assert [one.id for one in chosen([sweep], False, None, None, 0)] == [SWEEP_ID]
    assert {one.made for one in found} == {sweep.made, None}
