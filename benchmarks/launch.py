"""Seconds from the command to the first optimizer step, next to a bare Ray TorchTrainer on the same batch.

    python benchmarks/launch.py            five rounds of both, alternating
    python benchmarks/launch.py --quick    one round

Both load SmolLM2-135M with a LoRA adapter into DeepSpeed on two Ray workers and take one step on the same rows. Data is
prepared, the model lies on the disk in both; Shoal reads its files, plans, and proves the model with its self-check before.
The last line printed is one JSON object; `ratio.bare` is Shoal's median over the bare script's.
"""

import argparse
import json
import shutil
import statistics
import sys
from datetime import datetime
from pathlib import Path

import batches
from materials import BENCH, ROOT, alpaca, environment, smollm2
from running import finish, rows, run, shoal

FOLDER = BENCH / "launch"
GOAL = 1.2


def job(given: argparse.Namespace) -> dict:
    return {
        "name": "launch",
        "model": {"base": str(smollm2())},
        "method": "lora",
        "data": {"train": str(alpaca()), "sequence_length": 512, "packing": True, "max_rejected": 0.05},
        "train": {"max_steps": 1, "batch_size": given.batch_size, "dtype": "fp32", "self_check": True},
    }


def run_shoal(given: argparse.Namespace, log: Path) -> tuple[float, dict[str, float]]:
    """(seconds to the end of step 1, seconds at which each phase began)."""
    ran, folder = shoal(job(given), FOLDER, log)
    (first,) = (row for row in rows(folder / "metrics.jsonl", "step") if row["step"] == 1)
    phases = {row["phase"]: _at(row) - ran.began for row in reversed(rows(folder / "events.jsonl", "phase"))}
    plan = json.loads((folder / "plan.json").read_text())
    (FOLDER / "deepspeed.json").write_text(json.dumps(plan["layout"]["deepspeed"]))
    batches.write(FOLDER / "batches.npz", batches.of_run(folder, 1))
    return _at(first) - ran.began, phases


def run_bare(given: argparse.Namespace, log: Path) -> float:
    stamp = FOLDER / "stamp.json"
    stamp.unlink(missing_ok=True)
    files = {"--batches": FOLDER / "batches.npz", "--deepspeed": FOLDER / "deepspeed.json", "--stamp": stamp}
    arguments = [str(part) for pair in files.items() for part in pair]
    arguments += ["--model", str(smollm2()), "--storage", str(FOLDER / "ray")]
    shutil.rmtree(FOLDER / "ray", ignore_errors=True)
    ran = run([sys.executable, str(ROOT / "benchmarks" / "bare_launch.py"), *arguments], log, environment())
    return json.loads(stamp.read_text())["time"] - ran.began


def _at(row: dict) -> float:
    """When a row was written, in seconds since the epoch."""
    return datetime.fromisoformat(row["time"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each is started (5)")
    parser.add_argument("--batch-size", type=int, default=2, help="rows of 512 tokens in the step (2: one per worker)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/launch.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds = 1
    # Once unmeasured each: data is prepared, files are in the page cache, DeepSpeed's and Python's caches are filled.
    run_shoal(given, FOLDER / "logs" / "shoal-warm.log")
    run_bare(given, FOLDER / "logs" / "bare-warm.log")
    ours: list[float] = []
    bare: list[float] = []
    for number in range(given.rounds):
        seconds, phases = run_shoal(given, FOLDER / "logs" / f"shoal-{number}.log")
        ours.append(seconds)
        bare.append(run_bare(given, FOLDER / "logs" / f"bare-{number}.log"))
        began = {name: round(at, 1) for name, at in phases.items()}
        print(f"round {number + 1}: shoal {ours[-1]:.1f} s, bare {bare[-1]:.1f} s; phases began at {began}", flush=True)
    ratio = statistics.median(ours) / statistics.median(bare)
    finish(
        {
            "name": "launch",
            "value": round(statistics.median(ours), 2),
            "unit": "seconds from the command to the end of the first optimizer step",
            "against": {"bare": round(statistics.median(bare), 2)},
            "ratio": {"bare": round(ratio, 3)},
            "goal": {"bare": GOAL},
            "met": ratio <= GOAL,
            "repeats": given.rounds,
            "quick": given.quick,
            "rounds": {"shoal": ours, "bare": bare},
        },
        given.out,
    )


if __name__ == "__main__":
    main()
