"""Under ZeRO-3 no rank holds the model, and still: exported whole, exported right, answering alike."""

import json
from pathlib import Path

import pytest
from jobs import job, planned, profile, write_rows
from ranks import run_ranks
from safetensors import safe_open

WORKER = Path(__file__).parent / "run_worker.py"


def run(tmp: Path, base: Path, method: str, workers: int, stage: int) -> dict:
    spec = job(
        base,
        write_rows(tmp / "rows.jsonl"),
        method=method,
        train={"max_steps": 3, "micro_batch_size": 2, "self_check": True},
        deepspeed={"stage": stage, "offload": "parameters" if stage == 3 and method == "full" else "none"},
        prompts=["the shoal turns?"],
    )
    made = planned(spec, profile(tmp, workers, "local"), f"zero-20260101-000000-{method}{workers}{stage}")
    path, out = tmp / "plan.json", tmp / "out.json"
    path.write_text(made.model_dump_json())
    run_ranks(WORKER, workers, str(out), str(path))
    return json.loads(out.read_text())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_zero3_gives_the_model_that_one_worker_gives(tmp_path: Path, tiny_model: Path, method: str):
    shared, alone = run(tmp_path, tiny_model, method, 2, 3), run(tmp_path, tiny_model, method, 1, 0)
    assert shared["gate"]["passed"] and alone["gate"]["passed"]
    assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    assert shared["answers"] == alone["answers"] and shared["answers"][0]["after"]
    theirs, ours = (dict(tensors(result["export"])) for result in (alone, shared))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.numel() and (value - theirs[name]).abs().max() < 1e-3, name


def tensors(folder: str):
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
