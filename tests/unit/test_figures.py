"""What `shoal report` says of a run, from rows alone."""

import json

import pytest

from shoal.record.report import figures
from shoal.record.rows import Record, Row


def step(number: int, loss: float, seconds: float = 2.0, **more: object) -> Row:
    time = f"2026-11-21T10:00:{number:02}.000+00:00"
    body = {"kind": "step", "step": number, "loss": loss, "tokens": 100, "seconds": seconds, "data_seconds": 0.5}
    return {"time": time, "attempt": 1, **body, **more}


def event(kind: str, **fields: object) -> Row:
    return {"time": "2026-11-21T10:00:30.000+00:00", "attempt": 1, "kind": kind, **fields}


RECORD = Record(
    events=[
        event("storage", operation="get", what="no connection", url="s3://b/x"),
        event("storage", operation="get", what="slow: 6.1 s for 5 bytes", url="s3://b/y"),
        event("storage", operation="get", what="slow: 7.4 s for 9 bytes", url="s3://b/z"),
        event("checkpoint", step=2, bytes=100, stall_seconds=0.2, upload_mb_per_s=50.0),
        event("checkpoint", step=4, bytes=100, seconds=0.4),
        event("failure", cause="process died", message="worker 1 died", rank=1),
        event("note", message="going on from the checkpoint of step 2"),
        event("note", message="going on from the checkpoint of step 2"),
    ],
    metrics=[
        {**step(1, 3.0), "kind": "eval", "step": 0, "loss": 3.5},
        step(1, 3.0),
        step(2, 2.0),
        step(4, 2.5, 4.0, covers={"steps": 2, "seconds": 6.0, "data_seconds": 1.5}),
    ],
)


def test_losses_speed_and_saves() -> None:
    found = figures(RECORD, planned_steps=10)
    assert (found.step, found.steps) == (4, 10)
    assert (found.losses.first, found.losses.last, found.losses.smallest) == (3.0, 2.5, 2.0)
    assert found.losses.held_out == ((0, 3.5),)
    speed = found.throughput
    assert (speed.tokens, speed.tokens_per_s, speed.step_s) == (300, 300 / 8, 2.0)
    assert speed.data_share == pytest.approx(2.5 / 10)
    assert (found.saves.count, found.saves.bytes, found.saves.upload_mb_per_s) == (2, 100, 50.0)
    assert found.saves.stall_s == pytest.approx(0.3)


def test_what_went_wrong_is_counted_by_kind() -> None:
    found = figures(RECORD, planned_steps=10)
    assert found.faults == {"get: slow": 2, "get: no connection": 1}
    assert [failure["message"] for failure in found.failures] == ["worker 1 died"]
    assert found.notes == ("going on from the checkpoint of step 2",)


def test_a_run_that_has_written_nothing_has_figures() -> None:
    found = figures(Record([], []), planned_steps=10)
    assert json.loads(json.dumps(found.as_json()))["step"] == 0
    assert found.throughput.tokens_per_s is None
