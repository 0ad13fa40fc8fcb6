"""Samples packed per second, next to TRL's best-fit-decreasing packing of the same lengths.

    python benchmarks/packing.py            10 million samples, three rounds of all, alternating
    python benchmarks/packing.py --quick    100,000 samples, one round

Lengths like those of Alpaca's rows, log-normal with a floor, in rows of 2,048 tokens. Shoal's time is that of a new epoch:
from lengths in memory until any row of any global batch can be named; `walk_s` is what naming all of them takes on top.
TRL's is that of `pack_dataset(strategy="bfd")` as its SFTTrainer calls it ("trl", a thousand samples at a time) and over
all samples at once ("trl_whole", which is what fills rows). One process, one thread each. Where TRL is foreseen to take
more than ten minutes or 60% of the free memory, the tenth part of the samples is compared, for Shoal as well.
The last line printed is one JSON object; `ratio` holds Shoal's samples/s over each other's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from materials import BENCH, ROOT, environment, trl
from running import finish

SEQUENCE_LENGTH = 2048
BATCH_SIZE = 64
LIMIT_S = 600
GOALS = {"trl": 10.0, "trl_whole": 10.0}
EFFICIENCY_GOAL = 0.999
FOLDER = BENCH / "packing"


def lengths(count: int) -> Path:
    """int32[count] in a file: median 75, mean 113, a tail to the longest row."""
    path = FOLDER / f"lengths-{count}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = 30 + np.random.default_rng(17).lognormal(np.log(45), 1.1, count)
        np.save(path, np.clip(drawn, 1, SEQUENCE_LENGTH).astype(np.int32))
    return path


def measure_shoal(path: Path, count: int) -> dict:
    """In a process of its own, so that its peak memory is its own."""
    from shoal.data.order import Cursor, Order

    found = np.load(path)[:count]
    before = peak_bytes()
    began, cpu = time.perf_counter(), time.process_time()
    order = Order(found, found, 17, BATCH_SIZE, SEQUENCE_LENGTH, True)
    order.batch(Cursor(0, 0))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_bytes()
    began, seen = time.perf_counter(), 0
    for batch in range(order.batches_of(0)):
        seen += sum(len(row) for row in order.batch(Cursor(0, batch)))
    assert seen == count
    rows = len(order.epoch(0))
    return {
        "samples": count,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "walk_s": time.perf_counter() - began,
        "rows": rows,
        "efficiency": int(found.sum(dtype=np.int64)) / (rows * SEQUENCE_LENGTH),
        "peak_bytes": peak,
        "bytes_before": before,
    }


def peak_bytes() -> int:
    """This program's own high-water mark; getrusage's would begin at that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def run(name: str, path: Path, count: int) -> dict:
    """What one contender says of itself in a fresh process."""
    if name == "shoal":
        command = [sys.executable, __file__, "--measure", str(path), "--count", str(count)]
    else:
        command = [str(trl()), str(ROOT / "benchmarks" / "peers" / "trl_packing.py"), "--lengths", str(path)]
        command += ["--count", str(count), "--sequence-length", str(SEQUENCE_LENGTH)]
        command += ["--whole"] if name == "trl_whole" else []
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def comparable(probe: dict) -> tuple[bool, str]:
    """Whether ten times the samples of `probe` can be asked of it, and why."""
    seconds = 10 * probe["seconds"]
    needed = probe["bytes_imported"] + 10 * (probe["peak_bytes"] - probe["bytes_imported"])
    free = psutil.virtual_memory().available
    why = (
        f"foreseen for ten times {probe['samples']:,}: {seconds:.0f} s, {needed / 1e9:.1f} of {free / 1e9:.1f} GB free"
    )
    return seconds < LIMIT_S and needed < 0.6 * free, why


def summary(
    found: dict[str, list[dict]], sizes: dict[str, int], why: dict[str, str], given: argparse.Namespace
) -> dict:
    """Medians over rounds; ratios are taken within a round, and at the size that the other was measured at."""

    def median(key: str, field: str) -> float:
        return statistics.median(each[field] for each in found[key])

    def ratio(name: str, field: str, more: str | None = None) -> float:
        ours = found["shoal"] if sizes[name] == given.samples else found["shoal_small"]
        mine = [each[field] + (each[more] if more else 0) for each in ours]
        return round(statistics.median(a[field] / b for a, b in zip(found[name], mine, strict=True)), 2)

    others = [name for name in GOALS if name in found]
    per_sample = [(each["peak_bytes"] - each["bytes_before"]) / each["samples"] for each in found["shoal"]]
    ratios = {name: ratio(name, "seconds") for name in others}
    efficiency = {name: round(median(name, "efficiency"), 5) for name in ["shoal", *others]}
    return {
        "name": "packing",
        "value": round(given.samples / median("shoal", "seconds")),
        "unit": "samples per second",
        "against": {name: round(sizes[name] / median(name, "seconds")) for name in others},
        "ratio": ratios,
        "goal": GOALS | {"efficiency": EFFICIENCY_GOAL},
        "met": all(ratios[name] >= GOALS[name] for name in others) and efficiency["shoal"] >= EFFICIENCY_GOAL,
        "repeats": given.rounds,
        "quick": given.quick,
        "samples": {"shoal": given.samples} | sizes,
        "why_samples": why,
        "seconds": {name: round(median(name, "seconds"), 3) for name in ["shoal", *others]},
        "walk_s": round(median("shoal", "walk_s"), 3),
        "ratio_with_walk": {name: ratio(name, "seconds", "walk_s") for name in others},
        "ratio_of_cpu_seconds": {name: ratio(name, "cpu_seconds") for name in others},
        "efficiency": efficiency,
        "bytes_per_sample_beyond_lengths": round(max(per_sample), 1),
        "peak_memory_gb": {
            name: round(max(r["peak_bytes"] for r in found[name]) / 1e9, 2) for name in ["shoal", *others]
        },
        "rounds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each runs, interleaved (3)")
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="one round of 100,000 samples: shows that all runs")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/packing.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure_shoal(given.measure, given.count)))
        return
    if given.quick:
        given.rounds, given.samples = 1, 100_000
    path, small = lengths(given.samples), given.samples // 10
    sizes, why = {}, {}
    for name in GOALS:
        whole, why[name] = comparable(run(name, path, small))
        sizes[name] = given.samples if whole else small
        print(f"{name}: {why[name]}", flush=True)
    order = [("shoal", given.samples), *sizes.items()]
    if small in sizes.values():
        order.append(("shoal_small", small))
    found: dict[str, list[dict]] = {name: [] for name, _ in order}
    for number in range(given.rounds):
        turn = number % len(order)
        for name, count in [*order[turn:], *order[:turn]]:
            found[name].append(run(name.removesuffix("_small"), path, count))
            print(f"round {number + 1} {name}: {json.dumps(found[name][-1])}", flush=True)
    finish(summary(found, sizes, why, given), given.out)


if __name__ == "__main__":
    main()
