"""`shoal run --run-id` as a scheduler uses it: the very same command, however the one before it ended."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command import Command, write
from jobs import job, profile, write_rows

STEPS = 40


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path) -> list[str]:
    spec = job(
        tiny_model,
        write_rows(tmp_path / "rows.jsonl"),
        train={"num_train_epochs": 20, "max_steps": STEPS, "eval_steps": 1000},
        checkpoint={"every_steps": 2, "keep": 3},
    )
    place = write(tmp_path / "here.yaml", profile(tmp_path))
    return ["run", write(tmp_path / "job.yaml", spec), "--on", place, "--run-id"]


def ended(arguments: list[str], folder: Path) -> tuple[int, dict[str, Any], str]:
    again = Command([*arguments, "--json"], folder)
    status = again.end()
    return status, again.json if status in (0, 130, 143) else {}, again.said


def test_a_driver_that_was_killed_is_replaced_by_the_same_command(tmp_path: Path, command: list[str]) -> None:
    status, whole, said = ended([*command, "whole"], tmp_path)
    assert status == 0, said

    first = Command([*command, "nightly-7"], tmp_path)
    first.until("checkpoint of step 4 ")
    first.process.kill()
    first.end()
    second = Command([*command, "nightly-7"], tmp_path)
    second.until("checkpoint of step 10 ")
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == 143, second.said
    status, done, said = ended([*command, "nightly-7"], tmp_path)
    assert status == 0, said
    assert (done["run"], done["state"], done["step"]) == ("nightly-7", "finished", STEPS)
    assert done["folder"] == str(tmp_path / "runs" / "nightly-7")
    found, expected = losses(Path(done["folder"])), losses(Path(whole["folder"]))
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    assert found == pytest.approx(expected, abs=1e-6)

    status, again, said = ended([*command, "nightly-7"], tmp_path)
    assert (status, again["state"]) == (0, "finished")
    assert "is finished already" in said
