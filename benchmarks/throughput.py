"""Tokens per CPU-second of a run of Shoal, next to a bare loop on the same batches and to TRL on the same rows.

    python benchmarks/throughput.py            all contenders, interleaved, three rounds
    python benchmarks/throughput.py --quick    one round of short steps, to see that everything runs

SmolLM2-135M in fp32, LoRA r=16 on all linear layers, Alpaca rows to 512 tokens, two workers of one thread, four rows each
per step. Real (non-padding) tokens per CPU-second of the workers at steady state: a measure that holds on a busy machine.
The last line printed is one JSON object; `ratio` holds Shoal's figure over each other's.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import batches
from materials import BENCH, ROOT, alpaca, environment, smollm2, trl
from running import finish, rows, run, shoal

WORKERS = 2
FOLDER = BENCH / "throughput"
HERE = ROOT / "benchmarks"
GOALS = {"bare": 0.95, "trl": 2.2}
MEMORY_GOAL_GB = 7.0
CONTENDERS = ("shoal", "bare", "trl", "trl_packing", "bare_fused")


@dataclass(frozen=True)
class Figures:
    """One contender in one round, at steady state; memory is that of its largest worker, loading included."""

    tokens_per_cpu_s: float
    targets_per_cpu_s: float
    tokens_per_s: float
    targets_per_s: float
    tokens: int
    peak_memory_gb: float
    first_loss: float | None
    """Loss of step 1, where the contender tells it: the bare loop must do the very work that Shoal does."""


def job(given: argparse.Namespace) -> dict:
    return {
        "name": "throughput",
        "model": {"base": str(smollm2())},
        "method": "lora",
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"},
        "data": {"train": str(alpaca()), "sequence_length": 512, "packing": True, "max_rejected": 0.05},
        "train": {
            "num_train_epochs": 10,
            "max_steps": given.warmup + given.steps,
            "batch_size": WORKERS * given.micro_batch,
            "micro_batch_size": given.micro_batch,
            "dtype": "fp32",
            "self_check": True,
        },
        "checkpoint": {"every_steps": 100_000},
    }


def run_shoal(given: argparse.Namespace, log: Path) -> Figures:
    """Also leaves the batches that the bare loop takes."""
    ran, folder = shoal(job(given), FOLDER, log)
    batches.write(FOLDER / "batches.npz", batches.of_run(folder, given.warmup + given.steps))
    return figures(rows(folder / "metrics.jsonl", "step"), given.warmup, max(ran.peaks))


def run_bare(given: argparse.Namespace, log: Path, *more: str) -> Figures:
    arguments = ["--model", str(smollm2()), "--batches", str(FOLDER / "batches.npz"), *more]
    return torchrun(Path(sys.executable), HERE / "bare_loop.py", arguments, given.warmup, log, tokens_are_global=True)


def run_trl(given: argparse.Namespace, log: Path, *more: str) -> Figures:
    # Unpacked rows carry less than half the tokens of packed ones: twice the steps measure about as many tokens.
    steps = given.warmup + given.steps * (1 if more else 2)
    arguments = ["--model", str(smollm2()), "--rows", str(alpaca()), "--steps", str(steps)]
    arguments += ["--micro-batch", str(given.micro_batch), *more]
    return torchrun(trl(), HERE / "peers" / "trl_sft.py", arguments, given.warmup, log, tokens_are_global=False)


def torchrun(
    python: Path, script: Path, arguments: list[str], warmup: int, log: Path, *, tokens_are_global: bool
) -> Figures:
    """Runs `script` on two processes of one thread, and joins what its ranks report."""
    report = log.with_suffix(".json")
    command = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS)]
    ran = run([*command, str(script), *arguments, "--report", str(report)], log, environment())
    ranks = [json.loads(report.with_suffix(f".{rank}.json").read_text())["steps"] for rank in range(WORKERS)]
    steps = []
    for parts in zip(*ranks, strict=True):
        joined = {key: sum(part[key] for part in parts) for key in ("tokens", "targets", "cpu_seconds")}
        if tokens_are_global:
            joined |= {key: parts[0][key] for key in ("tokens", "targets")}
            joined["loss"] = sum(part["loss_part"] for part in parts)
        steps.append(joined | {"step": parts[0]["step"], "seconds": max(part["seconds"] for part in parts)})
    return figures(steps, warmup, max(ran.peaks))


def figures(steps: list[dict], warmup: int, peak: int) -> Figures:
    steady = [step for step in steps if step["step"] > warmup]
    assert steady, "no step after the warm-up"
    sums = {key: sum(step[key] for step in steady) for key in ("tokens", "targets", "seconds", "cpu_seconds")}
    return Figures(
        tokens_per_cpu_s=sums["tokens"] / sums["cpu_seconds"],
        targets_per_cpu_s=sums["targets"] / sums["cpu_seconds"],
        tokens_per_s=sums["tokens"] / sums["seconds"],
        targets_per_s=sums["targets"] / sums["seconds"],
        tokens=sums["tokens"],
        peak_memory_gb=peak / 1e9,
        first_loss=steps[0].get("loss"),
    )


def require_equal_work(ours: Figures, theirs: Figures) -> None:
    if ours.first_loss is not None and theirs.first_loss is not None:
        error = abs(ours.first_loss - theirs.first_loss) / ours.first_loss
        assert error < 1e-4, f"the first step's loss is {ours.first_loss} in Shoal and {theirs.first_loss} beside it"


RUNNERS = {
    "shoal": run_shoal,
    "bare": run_bare,
    "bare_fused": lambda given, log: run_bare(given, log, "--fuse-adapters"),
    "trl": run_trl,
    "trl_packing": lambda given, log: run_trl(given, log, "--packing"),
}


def summary(found: dict[str, list[Figures]], given: argparse.Namespace) -> dict:
    """The result: medians over rounds; ratios are taken within a round, where the machine was in one mood."""

    def median(name: str, field: str) -> float:
        return round(statistics.median(getattr(each, field) for each in found[name]), 3)

    others = [name for name in found if name != "shoal"]
    rates = {name: [each.tokens_per_cpu_s for each in found[name]] for name in found}
    ratio = {
        name: round(
            statistics.median(ours / theirs for ours, theirs in zip(rates["shoal"], rates[name], strict=True)), 3
        )
        for name in others
    }
    memory = {name: round(max(each.peak_memory_gb for each in found[name]), 2) for name in found}
    goals = {name: goal for name, goal in GOALS.items() if name in ratio}
    return {
        "name": "throughput",
        "value": median("shoal", "tokens_per_cpu_s"),
        "unit": "real tokens per CPU-second of the workers",
        "against": {name: median(name, "tokens_per_cpu_s") for name in others},
        "ratio": ratio,
        "goal": goals | {"peak_memory_gb": MEMORY_GOAL_GB},
        "met": all(ratio[name] >= goal for name, goal in goals.items()) and memory["shoal"] < MEMORY_GOAL_GB,
        "repeats": given.rounds,
        "quick": given.quick,
        "peak_memory_gb": memory,
        "targets_per_cpu_s": {name: median(name, "targets_per_cpu_s") for name in found},
        "tokens_per_s": {name: median(name, "tokens_per_s") for name in found},
        "targets_per_s": {name: median(name, "targets_per_s") for name in found},
        "rounds": {name: [asdict(each) for each in found[name]] for name in found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs, interleaved (3)")
    parser.add_argument("--warmup", type=int, default=2, help="first steps left out (2)")
    parser.add_argument(
        "--steps", type=int, default=4, help="steps measured (4; TRL without packing takes twice as many)"
    )
    parser.add_argument("--micro-batch", type=int, default=4, help="rows per worker and step (4)")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=CONTENDERS[:-1], help="contenders beside shoal"
    )
    parser.add_argument("--quick", action="store_true", help="one round of two one-row steps: shows that all runs")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/throughput.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.warmup, given.steps, given.micro_batch = 1, 1, 1, 1
    chosen = [name for name in CONTENDERS if name == "shoal" or name in given.only]
    found: dict[str, list[Figures]] = {name: [] for name in chosen}
    for number in range(given.rounds):
        # Turned by one each round, so that none always follows the same one; Shoal opens, since it makes the batches.
        others = chosen[1:]
        turn = number % max(1, len(others))
        for name in ["shoal", *others[turn:], *others[:turn]]:
            measured = RUNNERS[name](given, FOLDER / "logs" / f"{name}-{number}.log")
            found[name].append(measured)
            require_equal_work(found["shoal"][-1], measured)
            print(f"round {number + 1} {name}: {json.dumps(asdict(measured))}", flush=True)
    finish(summary(found, given), given.out)


if __name__ == "__main__":
    main()
