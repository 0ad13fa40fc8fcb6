"""One trajectory: the same job gives the same losses whatever the workers, the micro-batch, the ZeRO stage, or a resume."""

import json
from itertools import product
from pathlib import Path

import pytest
from jobs import job, planned, profile, write_rows
from ranks import run_ranks

from shoal.plan.types import Plan

WORKER = Path(__file__).parent / "trajectory_worker.py"
BATCH_SIZE = 7
"""Divisible by none of the worlds, so that every layout deals unevenly."""


def run(folder: Path, world: int, plans: list[Plan], stop_at: int = 0, monkeypatch: pytest.MonkeyPatch | None = None):
    """{name: what each plan's run reported}, by real gloo processes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, made in enumerate(plans):
        path = folder / f"{number}.json"
        path.write_text(made.model_dump_json())
        paths.append(str(path))
    out = folder / "out"
    out.mkdir(exist_ok=True)
    if monkeypatch:
        monkeypatch.setenv("STOP_AT", str(stop_at))
    run_ranks(WORKER, world, str(out), *paths)
    return [json.loads((out / f"{number}.json").read_text()) for number in range(len(plans))]


def layouts(tmp: Path, model: Path, world: int, combinations: list[tuple[int, int]], **sections) -> list[Plan]:
    """One plan per (ZeRO stage, micro-batch), each with a run folder of its own."""
    rows = tmp / "rows.jsonl"
    if not rows.exists():
        write_rows(rows)
    plans = []
    for stage, micro in combinations:
        spec = job(
            model,
            rows,
            **sections,
            deepspeed={"stage": stage},
            train={"batch_size": BATCH_SIZE, "micro_batch_size": micro, "max_steps": 6},
        )
        plans.append(
            planned(
                spec,
                profile(tmp, world, "inline" if world == 1 else "local"),
                f"tiny-20260101-000000-w{world}s{stage}m{micro}",
            )
        )
    return plans


def same(found: dict[str, float], expected: dict[str, float], allowed: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    worst = max(abs(found[step] - expected[step]) for step in expected)
    assert worst < allowed, f"{worst}: {found} {expected}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trajectory")


@pytest.fixture(scope="module")
def reference(folder: Path, tiny_model: Path) -> dict:
    """One worker, ZeRO 0, the whole batch in one micro-batch."""
    return run(folder / "reference", 1, layouts(folder, tiny_model, 1, [(0, BATCH_SIZE)]))[0]


@pytest.mark.parametrize(
    ("world", "combinations"),
    [
        (1, [(0, 1), (1, 2), (2, 4), (3, 2)]),
        (2, list(product((0, 1, 2, 3), (1, 2, 4)))),
        (3, [(0, 1), (1, 4), (2, 2), (3, 1)]),
        (4, [(0, 2), (3, 1)]),
    ],
)
def test_losses_do_not_depend_on_the_layout(
    folder: Path, tiny_model: Path, reference: dict, world: int, combinations: list[tuple[int, int]]
):
    assert max(reference["norms"].values()) > 1.0, "no step is clipped"
    assert len(reference["losses"]) == 6 and reference["losses"]["6"] < reference["losses"]["1"]
    for found in run(folder / f"world{world}", world, layouts(folder, tiny_model, world, combinations)):
        same(found["losses"], reference["losses"])
        same(found["evaluations"], reference["evaluations"])
        same(found["norms"], reference["norms"], 1e-3)


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [
        ("full", (2, 2, 2), (1, 3, 4)),
        ("full", (1, 0, 7), (2, 3, 1)),
        ("full", (2, 3, 1), (2, 1, 2)),
        ("lora", (2, 0, 2), (1, 2, 4)),
    ],
)
def test_a_run_goes_on_in_another_layout(
    folder: Path, tiny_model: Path, method: str, before: tuple, after: tuple, monkeypatch: pytest.MonkeyPatch
):
    """Told to stop at step 3 under (workers, stage, micro-batch) `before`, which all ranks agree on with the next step;
    resumed under `after`: the uninterrupted losses."""
    where = folder / f"resume-{method}-{before}-{after}".replace(" ", "")
    (whole,) = run(where / "whole", 1, [only(folder, tiny_model, (1, 0, 4), method, f"whole{before}{after}")])
    first = only(folder, tiny_model, before, method, f"{before}{after}")
    then = only(folder, tiny_model, after, method, f"{before}{after}")
    (begun,) = run(where / "before", before[0], [first], 3, monkeypatch)
    assert begun["stopped"] and list(begun["losses"]) == ["1", "2", "3", "4"]
    (ended,) = run(where / "after", after[0], [then], 0, monkeypatch)
    assert list(ended["losses"]) == ["5", "6"]
    same(begun["losses"] | ended["losses"], whole["losses"])


def only(folder: Path, model: Path, layout: tuple[int, int, int], method: str, name: str) -> Plan:
    world, stage, micro = layout
    (made,) = layouts(folder, model, world, [(stage, micro)], method=method)
    safe = "".join(c if c.isalnum() else "-" for c in f"{method}{name}").lower()
    return made.model_copy(
        update={"storage": made.storage.model_copy(update={"run": str(folder / "runs" / safe)}), "run_id": safe}
    )
