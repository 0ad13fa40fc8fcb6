"""One plan on as many workers as there happen to be: 2, then 1, then 2 again, with the losses of one that never changed."""

import json
from itertools import product
from pathlib import Path

import pytest
from jobs import job, planned, profile, write_rows
from ranks import run_ranks

from shoal.plan.types import Plan

Losses = dict[str, float]
WORKER = Path(__file__).parent / "trajectory_worker.py"
SIZES = ((2, 3), (1, 5), (2, 0))
"""(workers, the step at which they are told to stop), one group after the other."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


def plans(folder: Path, model: Path, workers: int) -> list[Plan]:
    """Full and LoRA under ZeRO 2 and 3, planned for so many workers."""
    rows = write_rows(folder / "rows.jsonl")
    made = []
    for method, stage in product(("full", "lora"), (2, 3)):
        train = {"batch_size": 7, "micro_batch_size": 2, "max_steps": 8}
        spec = job(model, rows, method=method, deepspeed={"stage": stage}, train=train)
        place = profile(folder, workers, "inline" if workers == 1 else "local")
        made.append(planned(spec, place, f"tiny-20260101-000000-{method}{stage}w{workers}"))
    return made


def run(folder: Path, workers: int, made: list[Plan], stop_at: int, monkeypatch: pytest.MonkeyPatch) -> list[Losses]:
    """The losses of each plan's run, told to stop at `stop_at`; 0: to its end."""
    (folder / "out").mkdir(parents=True)
    paths = [folder / f"{number}.json" for number in range(len(made))]
    for path, one in zip(paths, made, strict=True):
        path.write_text(one.model_dump_json())
    monkeypatch.setenv("STOP_AT", str(stop_at))
    run_ranks(WORKER, workers, str(folder / "out"), *map(str, paths))
    return [json.loads((folder / "out" / path.name).read_text())["losses"] for path in paths]


def test_a_group_may_change_its_size(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(folder / "whole", 1, plans(folder, tiny_model, 1), 0, monkeypatch)
    elastic = plans(folder, tiny_model, 2)
    losses: list[Losses] = [{} for _ in elastic]
    for number, (workers, stop_at) in enumerate(SIZES):
        for known, found in zip(losses, run(folder / f"{number}", workers, elastic, stop_at, monkeypatch), strict=True):
            assert found and not found.keys() & known.keys()
            known |= found
    for found, expected in zip(losses, whole, strict=True):
        assert list(found) == list(expected) == [str(step) for step in range(1, 9)]
        assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
