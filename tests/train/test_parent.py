"""A run that begins with another's checkpoint: its weights, its moments, its place in the data, with another optimizer."""

import threading
from pathlib import Path

import pytest
from jobs import job, profile, write_rows

from shoal import launch
from shoal.backends.inline import Inline
from shoal.errors import SpecError
from shoal.launch import Outcome
from shoal.plan.types import Parent, Plan
from shoal.record import rows
from shoal.spec.job import JobSpec
from shoal.storage import Storage
from shoal.tune.board import curve

STEPS, SAVED = 12, 6


def spoken(folder: Path, model: Path, rate: float, **train: int) -> JobSpec:
    data = folder / "rows.jsonl"
    return job(
        model,
        data if data.exists() else write_rows(data),
        train={"num_train_epochs": 20, "max_steps": STEPS, "eval_steps": 3, **train},
        optimizer={"learning_rate": rate, "lr_scheduler_type": "constant", "warmup_steps": 0},
        checkpoint={"every_steps": SAVED},
    )


def trained(folder: Path, spec: JobSpec, run_id: str, parent: Parent | None = None) -> Outcome:
    def amend(plan: Plan) -> Plan:
        return plan.model_copy(update={"trajectory": plan.trajectory.model_copy(update={"parent": parent})})

    return launch.run(spec, profile(folder), Storage(), Inline(), lambda event: None, threading.Event(), run_id, amend)


def losses(outcome: Outcome) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows.read(outcome.folder).metrics if row["kind"] == "step"}


def test_a_run_with_a_parent_goes_on_as_the_parent_would_but_for_its_optimizer(
    tmp_path: Path, tiny_model: Path
) -> None:
    first = trained(tmp_path, spoken(tmp_path, tiny_model, 5e-3), "first")
    parent = Parent(run=first.folder.url, step=SAVED)
    assert (
        first.plan.trajectory_digest
        == trained(tmp_path, spoken(tmp_path, tiny_model, 5e-3), "first").plan.trajectory_digest
    )
    same = trained(tmp_path, spoken(tmp_path, tiny_model, 5e-3), "same", parent)
    slower = trained(tmp_path, spoken(tmp_path, tiny_model, 1e-4), "slower", parent)

    whole, later = losses(first), {step: loss for step, loss in losses(first).items() if step > SAVED}
    assert len(whole) == STEPS
    assert losses(same) == pytest.approx(later, abs=1e-6), "weights, moments, data: all as the parent had them"
    begun = losses(slower)
    assert begun[SAVED + 1] == pytest.approx(whole[SAVED + 1], abs=1e-6), "the weights and the batch are the parent's"
    assert begun[SAVED + 3] > whole[SAVED + 3] + 1e-3, "the rate is its own"
    assert same.result.loss == pytest.approx(first.result.loss, abs=1e-6)
    assert min(point.step for point in curve(rows.read(slower.folder), "validation.loss")) > SAVED
    assert len({one.plan.trajectory_digest for one in (first, same, slower)}) == 3


def test_a_parent_of_another_kind_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    first = trained(tmp_path, spoken(tmp_path, tiny_model, 5e-3), "first")
    parent = Parent(run=first.folder.url, step=SAVED)
    with pytest.raises(SpecError, match="batch_size: 5 in this plan, 7 in the checkpoint it begins with"):
        trained(tmp_path, spoken(tmp_path, tiny_model, 5e-3, batch_size=5), "other", parent)
