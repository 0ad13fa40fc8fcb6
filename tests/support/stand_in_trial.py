"""A trial without torch, for sweeps on a real Ray: steps that sleep, a loss that follows from the params, real files.

What a trial does is told by train.seed, so that one sweep can hold trials of every kind.
"""

import json
import math
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

from shoal.errors import Problem, TrainingError
from shoal.plan.types import Plan
from shoal.record.rows import line, parse, stamp
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.manifest import Manifest, at, newest, publish, trajectory_of
from shoal.train.world import Directive, Report, Result, World

STEPS, EVERY, TOKENS = 16, 4, 100
"""Of a whole trial; steps between evaluations; tokens of a step."""
BEST_RATE = 4e-3
STEP_S, SLOW_STEP_S = 0.05, 0.4

WELL, DIES, TOO_LARGE, MUCH_TOO_LARGE, BREAKS, SLOW = 1, 2, 3, 4, 5, 6
"""Kinds of trials, as their train.seed: a worker dies once; memory for half the micro-batch; for none; a bug; slow."""


def loss(learning_rate: float, step: int) -> float:
    return 2 + abs(math.log10(learning_rate / BEST_RATE)) + 4 / step


def steps_through(plan: Plan, world: World, report: Report) -> Result:
    storage, kind = Storage(plan.storage.s3), plan.trajectory.seed
    folder = RunFolder(storage, plan.storage.run)
    if kind == MUCH_TOO_LARGE or (kind == TOO_LARGE and plan.layout.micro_batch_size > 2):
        raise TrainingError(Problem("memory", f"{plan.layout.micro_batch_size} rows do not fit"))
    if kind == BREAKS:
        raise TypeError("a bug")
    found = newest(storage, folder)
    if found is None and plan.trajectory.parent is not None:
        parent = RunFolder(storage, plan.trajectory.parent.run)
        found = at(storage, parent, plan.trajectory.parent.step)
        assert found is not None, "the parent's checkpoint is there"
    first, tokens = (found.step, found.tokens) if found else (0, 0)
    begun = tokens
    rows = parse(storage.read(folder.metrics)) if storage.exists(folder.metrics) else []
    rows = [row for row in rows if row["step"] <= first]
    result = Result(
        state="stopped", step=first, steps=STEPS, tokens=tokens, seconds=1.0, base_loss=9.0, loss=None, train_loss=None,
        export=None, gate=None, answers=[],
    )  # fmt: skip
    for step in range(first + 1, STEPS + 1):
        time.sleep(SLOW_STEP_S if kind == SLOW else STEP_S)
        tokens += TOKENS
        if kind == DIES and step == EVERY + 2:
            _die_once(plan)
        event = {
            "kind": "step",
            "step": step,
            "steps": STEPS,
            "loss": 3.0,
            "tokens": TOKENS,
            "time": stamp(),
            "attempt": 1,
        }
        rows.append(event)
        wish = report(event)
        if step % EVERY == 0:
            value = loss(plan.trajectory.optimizer.learning_rate, step)
            rows.append({"kind": "eval", "step": step, "loss": value, "time": stamp(), "attempt": 1})
            storage.write(folder.metrics, "".join(map(line, rows)).encode())
            wish = max(
                wish,
                report({"kind": "eval", "step": step, "loss": value, "pid": os.getpid()}),
                key=lambda one: one.value,
            )
        if step % EVERY == 0 or wish != Directive.CONTINUE:
            storage.write(folder.metrics, "".join(map(line, rows)).encode())
            publish(storage, folder, _manifest(plan, step, tokens))
            report({"kind": "checkpoint", "step": step})
        if wish == Directive.STOP:
            return Result(**{**asdict(result), "step": step, "tokens": tokens})
    value = loss(plan.trajectory.optimizer.learning_rate, STEPS)
    ended = {**asdict(result), "state": "finished", "step": STEPS, "tokens": tokens - begun, "loss": value}
    storage.write(folder.result, json.dumps(ended).encode())
    return Result(**ended)


def _die_once(plan: Plan) -> None:
    marker = Path(plan.storage.cache) / f"{plan.run_id}-died"
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _manifest(plan: Plan, step: int, tokens: int) -> Manifest:
    return Manifest(
        step=step, epoch=0, batch=step, tokens=tokens, seconds=1.0, run_id=plan.run_id,
        trajectory_digest=plan.trajectory_digest, trajectory=trajectory_of(plan), parts=(), created=stamp(), versions={},
    )  # fmt: skip
