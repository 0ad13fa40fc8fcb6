"""Sweep folders as a sweep leaves them, written by hand: what the leaderboard, the page and `best` read."""

import json
import math
from pathlib import Path
from typing import Any

from shoal import __version__
from shoal.record.rows import line
from shoal.spec.load import parse_job
from shoal.storage import Storage
from shoal.tune.folder import SWEEP_VERSION, SweepFolder, SweepPlan, Trial, TrialEnd
from shoal.tune.space import apply

JOB = """
name: fish
model: {base: some/model}
method: full
data: {train: rows.jsonl, validation: 0.1}
train: {batch_size: 4, max_steps: 16, eval_steps: 4}
"""
SPACE = {"optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]}, "train.batch_size": [4, 8]}
SWEEP_ID = "fish-20260101-000000-abcd"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 5e-3)


def sweep_plan(space: dict[str, Any] | None = None, text: str = JOB, **sweep: Any) -> SweepPlan:
    body = json.dumps({"space": space or SPACE, "trials": len(RATES), "scheduler": "asha", "workers": 1, **sweep})
    job = parse_job(f"{text}sweep: {body}\n", "fish.yaml")
    assert job.sweep
    return SweepPlan(
        version=SWEEP_VERSION, shoal=__version__, sweep_id=SWEEP_ID, made="2026-01-01T00:00:00+00:00", spec=job.sweep,
        job=apply(job, {}),
    )  # fmt: skip


def write_sweep(runs: Path, plan: SweepPlan | None = None) -> SweepFolder:
    """Eight trials: the best finished, others stopped at their second evaluation, one failed, one not at its end."""
    plan = plan or sweep_plan()
    folder = SweepFolder.of(Storage(), str(runs), plan.sweep_id)
    folder.write_plan(plan)
    for number, rate in enumerate(RATES, 1):
        params = {
            field: rate if field.endswith("rate") else (one.values or [])[number % 2]
            for field, one in plan.spec.dimensions.items()
        }
        run = folder.run(number)
        folder.write_trial(Trial(number, params, run.id, "2026-01-01T00:00:00+00:00"))
        worth = 2 + abs(math.log10(rate / 4e-3))
        whole = worth < 2.7
        if number == 7:
            folder.write_end(TrialEnd(number, "failed", "out of memory", None, None, 2, 200, 9.0, 3.0, 1))
            continue
        steps = 16 if whole else 8
        rows = [{"kind": "eval", "step": 0, "loss": 8.0}]
        for step in range(1, steps + 1):
            rows.append({"kind": "step", "step": step, "loss": 3.0, "tokens": 100})
            if step % 4 == 0:
                rows.append({"kind": "eval", "step": step, "loss": worth + 4 / step})
        folder.storage.write(run.metrics, "".join(map(line, rows)).encode())
        job = apply(plan.job, params)
        folder.storage.write(run.job, json.dumps(job.model_dump(mode="json", exclude_unset=True)).encode())
        if number == 2:
            continue
        last = worth + 4 / steps
        state, why = ("finished", "") if whole else ("stopped", "asha")
        folder.write_end(TrialEnd(number, state, why, last, last, steps, 100 * steps, 20.0, 3.0, 0))
        if whole:
            export = f"{run.url}/export/model"
            folder.storage.write(f"{export}/weights.txt", f"of trial {number}".encode())
            result = {"state": "finished", "step": steps, "loss": last, "train_loss": last, "export": export}
            folder.storage.write(run.result, json.dumps(result).encode())
    return folder
