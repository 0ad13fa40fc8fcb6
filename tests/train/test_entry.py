"""Whole runs in this process: the best weights, early stopping, a start from an earlier result, a loss that is no number."""

import json
from pathlib import Path

import pytest
from jobs import job, planned, profile, write_rows

from shoal.errors import TrainingError
from shoal.plan.types import Plan
from shoal.storage import Storage
from shoal.train import entry
from shoal.train.loop import Loop
from shoal.train.world import Directive, Event, Result, World


def run(made: Plan) -> tuple[Result, list[Event]]:
    events: list[Event] = []

    def report(event: Event) -> Directive:
        events.append(event)
        return Directive.CONTINUE

    return entry.run(made, World(), report), events


def plan(tmp: Path, folder: Path, run_id: str, **sections) -> Plan:
    return planned(job(folder, write_rows(tmp / "rows.jsonl"), **sections), profile(tmp), run_id)


def rows(made: Plan, kind: str) -> list[dict]:
    metrics = Storage().read(f"{made.storage.run}/metrics.jsonl").decode().splitlines()
    return [row for row in map(json.loads, metrics) if row["kind"] == kind]


def test_the_best_weights_are_exported_and_a_new_run_starts_from_them(tmp_path: Path, tiny_model: Path):
    """A rate far too high makes the held-out loss worse after a while: the run stops early and exports its best."""
    made = plan(
        tmp_path,
        tiny_model,
        "best-20260101-000000-0000",
        method="lora",
        train={
            "max_steps": 30,
            "num_train_epochs": 30,
            "eval_steps": 2,
            "early_stopping_patience": 2,
            "load_best_model_at_end": True,
        },
        optimizer={"learning_rate": 0.3, "lr_scheduler_type": "constant"},
        prompts=["the shoal?"],
    )
    result, _ = run(made)
    evaluations = {row["step"]: row["loss"] for row in rows(made, "eval") if row["step"] > 0}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert result.state == "finished" and result.step < 30, "patience 2 was not heeded"
    assert result.step == best + 4 and result.loss == evaluations[best]
    assert result.answers[0].keys() == {"prompt", "before", "after"}

    assert result.export is not None
    further = plan(
        tmp_path,
        tiny_model,
        "next-20260101-000000-0000",
        method="lora",
        model={"base": str(tiny_model), "adapter": result.export},
        train={"max_steps": 1},
    )
    _, events = run(further)
    start = next(event["loss"] for event in events if event["kind"] == "eval" and event["step"] == 0)
    assert start == pytest.approx(evaluations[best], abs=1e-5), "what was exported is not the best checkpoint"


def test_a_full_run_is_exported_whole_and_can_be_gone_on_from(tmp_path: Path, tiny_model: Path):
    made = plan(tmp_path, tiny_model, "full-20260101-000000-0000", train={"max_steps": 3, "self_check": True})
    result, events = run(made)
    assert result.gate and result.gate["passed"]
    assert any(event.get("message") == "self-check passed" for event in events)
    assert result.loss is not None and result.base_loss is not None and result.loss < result.base_loss
    further = plan(
        tmp_path,
        tiny_model,
        "more-20260101-000000-0000",
        model={"base": str(tiny_model), "adapter": result.export},
        train={"max_steps": 1},
    )
    _, again = run(further)
    start = next(event["loss"] for event in again if event["kind"] == "eval" and event["step"] == 0)
    assert start == pytest.approx(result.loss, abs=1e-5)


def test_a_loss_that_is_no_number_stops_before_the_weights_move(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    exact = Loop._agree

    def poisoned(self: Loop, loss_sum: float):
        return exact(self, float("nan") if self.progress.step == 1 else loss_sum)

    monkeypatch.setattr(Loop, "_agree", poisoned)
    made = plan(tmp_path, tiny_model, "nan-20260101-000000-0000", train={"max_steps": 4})
    with pytest.raises(TrainingError, match=r"step 2: the loss of the global batch is nan; .*rows\.jsonl/\d+"):
        run(made)
    assert [row["step"] for row in rows(made, "step")] == [1]
