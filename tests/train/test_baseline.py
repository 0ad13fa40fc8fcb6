"""What one trial finds out before its first step another takes over, and its losses are those it has alone, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import job, planned, profile, write_rows
from plans import small_plan
from ranks import run_ranks

from shoal.plan.types import Plan
from shoal.record import rows
from shoal.record.rows import Row
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.baseline import Baseline, Shelf
from shoal.train.world import World

WORKER = Path(__file__).parent / "trajectory_worker.py"
RATES = {"first": 5e-3, "second": 1e-2, "alone": 1e-2}


def trial(plan: Plan, folder: Path) -> Plan:
    """The plan as a sweep's."""
    storage = plan.storage.model_copy(update={"baselines": f"{folder}/baselines/"})
    return plan.model_copy(update={"storage": storage})


def events(plan: Plan) -> list[Row]:
    return rows.read(RunFolder(Storage(), plan.storage.run)).events


def test_a_trial_that_takes_over_what_another_found_trains_as_it_does_alone(tmp_path: Path, tiny_model: Path) -> None:
    """Two ranks, ZeRO 2; dropout, so that a random state that differs would show."""
    data = write_rows(tmp_path / "rows.jsonl")
    plans: dict[str, Plan] = {}
    for name, rate in RATES.items():
        spec = job(
            tiny_model,
            data,
            method="lora",
            lora={"lora_dropout": 0.3},
            deepspeed={"stage": 2},
            train={"max_steps": 5, "eval_steps": 2, "self_check": True},
            optimizer={"learning_rate": rate, "max_grad_norm": 100 * rate},
        )
        made = planned(spec, profile(tmp_path, 2, "local"), f"{name}-20260101-000000-0000")
        plans[name] = made if name == "alone" else trial(made, tmp_path)
        (tmp_path / name).write_text(plans[name].model_dump_json())
    (tmp_path / "out").mkdir()
    run_ranks(WORKER, 2, str(tmp_path / "out"), *(str(tmp_path / name) for name in plans))
    found: dict[str, Any] = {name: json.loads((tmp_path / "out" / name).read_text()) for name in plans}

    assert found["second"] == found["alone"], "losses, held-out losses and norms of all steps"
    assert found["first"]["evaluations"]["0"] == found["second"]["evaluations"]["0"]
    assert found["first"]["losses"]["5"] != found["second"]["losses"]["5"]
    done = {name: {one.get("phase") for one in events(plan)} for name, plan in plans.items()}
    assert all("checking" in done[name] for name in ("first", "alone")) and "checking" not in done["second"]
    assert any(plans["first"].run_id in one.get("message", "") for one in events(plans["second"]))
    assert len(list((tmp_path / "baselines").iterdir())) == 1


@pytest.mark.parametrize("text", [b"", b'{"key": "', b"[]", b"\xff\xfe", b'{"run": "other", "held_out": [1.0, 5]}'])
def test_what_is_not_whole_is_not_relied_on_and_written_anew(tmp_path: Path, text: bytes) -> None:
    shelf = Shelf.of(trial(small_plan(tmp_path), tmp_path), World(), Storage())
    assert shelf.read() is None
    shelf.storage.write(shelf.url, text)
    assert shelf.read() is None
    shelf.write("run", (2.5, 40))
    assert shelf.read() == Baseline(key=shelf.key, run="run", held_out=(2.5, 40))


def test_what_another_plan_found_is_not_taken_over(tmp_path: Path) -> None:
    one, other = (trial(small_plan(tmp_path, self_check=check), tmp_path) for check in (True, False))
    mine, theirs = (Shelf.of(plan, World(), Storage()) for plan in (one, other))
    theirs.write("run", (2.5, 40))
    assert theirs.read() and not mine.read()
    mine.storage.write(mine.url, theirs.storage.read(theirs.url))
    assert mine.read() is None


def test_a_loss_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    shelf = Shelf.of(trial(small_plan(tmp_path), tmp_path), World(), Storage())
    shelf.write("run", (float("nan"), 40))
    assert shelf.read() is None
    shelf.write("run", None)
    found = shelf.read()
    assert found and found.held_out is None, "nothing is held out, and the self-check has passed"
