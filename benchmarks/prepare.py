"""Rows prepared per second by one and by two workers, and the memory of a worker when an object is ten times as large.

    python benchmarks/prepare.py            24,000 rows, three rounds of both, alternating
    python benchmarks/prepare.py --quick    800 rows, one round: shows that all runs

Alpaca's rows, each with a number of its own, lie as JSON lines in the embedded SeaweedFS; Ray tasks read them, render the chat
template, tokenise, and write shards back to the same store. The clock runs from the call to prepared data; a few rows were
prepared before, so that the workers' processes are up and hold the tokenizer, as in the middle of a large preparation. Driver,
Ray and store share the workers' cores; CPU-seconds are of the driver and all processes that it started.

For memory one object holds a tenth of the rows and another all of them, compressed, so that each is read in one part. The last
line printed is one JSON object; `ratio` holds the rows/s of two workers over those of one.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import sys
import time
from itertools import cycle
from pathlib import Path

import psutil
from materials import BENCH, alpaca, smollm2
from running import finish, run

from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.store import serving

FOLDER = BENCH / "prepare"
STORE = S3Spec(server="embedded", folder=str(FOLDER / "store"))
OBJECTS = 16
GOALS = {"one worker": 1.8, "memory": 1.1}


def upload(count: int) -> dict[str, str]:
    """Puts the rows into the store, once, and says where each set lies."""
    storage = Storage(STORE)
    folder = f"s3://shoal/prepare-rows-{count}"
    if not storage.exists(f"{folder}/done"):
        given = [json.loads(line) for line in alpaca().read_text().splitlines()]
        numbered = zip(range(count), cycle(given), strict=False)
        lines = [json.dumps(row | {"instruction": f"{number}: {row['instruction']}"}) for number, row in numbered]
        for part in range(OBJECTS):
            mine = lines[count * part // OBJECTS : count * (part + 1) // OBJECTS]
            storage.write(f"{folder}/parts/{part:02d}.jsonl", "\n".join(mine).encode())
            storage.write(f"{folder}/warm/{part:02d}.jsonl", lines[part].encode())
        for name, some in (("small", lines[: count // 10]), ("large", lines)):
            storage.write(f"{folder}/{name}.jsonl.gz", gzip.compress("\n".join(some).encode(), 1))
        storage.write(f"{folder}/done", b"")
    return {
        "parts": f"{folder}/parts/*.jsonl",
        "warm": f"{folder}/warm/*.jsonl",
        "small": f"{folder}/small.jsonl.gz",
        "large": f"{folder}/large.jsonl.gz",
    }


def measure(source: str, warm: str, workers: int, name: str) -> dict:
    """One preparation in a fresh process; the memory is of its largest process, which is a worker."""
    out = FOLDER / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [
        sys.executable,
        __file__,
        "--source",
        source,
        "--warm",
        warm,
        "--workers",
        str(workers),
        "--out",
        str(out),
    ]
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | {"HF_HUB_OFFLINE": "1"}
    ran = run(command, FOLDER / "logs" / f"{name}.log", env)
    return json.loads(out.read_text()) | {"peak_mb": round(ran.peaks[0] / 1e6, 1)}


def one(source: str, warm: str, workers: int) -> dict:
    """Prepares in this process's Ray, which has so many CPUs, under a folder that is gone afterwards."""
    from shoal.backends.ray_local import RayLocal
    from shoal.launch import plan_job
    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec

    os.cpu_count = lambda: workers  # what the backend gives Ray
    prepared = f"s3://shoal/prepared-{os.getpid()}"
    places = {"runs": "s3://shoal/runs", "prepared": prepared, "cache": str(FOLDER / "cache"), "s3": STORE}
    profile = ClusterProfile.model_validate({"kind": "local", "workers": workers, "storage": places})
    jobs = [
        JobSpec.model_validate(
            {
                "name": "prepare",
                "model": {"base": str(smollm2())},
                "data": {"train": train, "sequence_length": 1024, "overlength": "truncate"},
            }
        )
        for train in (warm, source)
    ]
    storage = Storage(STORE)
    backend = RayLocal(profile)
    backend.start()
    first, plan = (plan_job(job, profile, storage) for job in jobs)
    try:
        backend.prepare(first, storage, lambda event: None)
        began, cpu = time.perf_counter(), cpu_seconds()
        found = backend.prepare(plan, storage, lambda event: None)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        again = time.perf_counter()
        backend.prepare(plan, storage, lambda event: None)
        again = time.perf_counter() - again
    finally:
        storage.delete(f"{prepared}/")
        backend.close()
    return {
        "rows_per_s": found.rows / seconds,
        "rows_per_cpu_s": found.rows / cpu,
        "seconds": seconds,
        "rows": found.rows,
        "again_s": again,
    }


def cpu_seconds() -> float:
    """Of this process and all that it started."""
    me = psutil.Process()
    times = [one.cpu_times() for one in [me, *me.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each is run, interleaved (3)")
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--quick", action="store_true", help="one round of 800 rows: shows that all runs")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/prepare.json")
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.source:
        given.out.write_text(json.dumps(one(given.source, given.warm, given.workers)))
        return
    if given.quick:
        given.rounds, given.rows = 1, 800
    shutil.rmtree(FOLDER / "cache", ignore_errors=True)
    found: dict[str, list[dict]] = {"one": [], "two": [], "small": [], "large": []}
    with serving(STORE):
        where = upload(given.rows)
        work = {"one": ("parts", 1), "two": ("parts", 2), "small": ("small", 1), "large": ("large", 1)}
        for number in range(given.rounds):
            turn = number % len(work)
            for name in [*list(work)[turn:], *list(work)[:turn]]:
                source, workers = work[name]
                found[name].append(measure(where[source], where["warm"], workers, f"{name}-{number}"))
                print(f"round {number + 1} {name}: {json.dumps(found[name][-1])}", flush=True)
    finish(summary(found, given), given.out)


def summary(found: dict[str, list[dict]], given: argparse.Namespace) -> dict:
    """Medians over rounds; ratios are taken within a round, where the machine was in one mood."""

    def median(name: str, field: str) -> float:
        return statistics.median(one[field] for one in found[name])

    def ratio(name: str, other: str, field: str) -> float:
        pairs = zip(found[name], found[other], strict=True)
        return round(statistics.median(a[field] / b[field] for a, b in pairs), 3)

    ratios = {"one worker": ratio("two", "one", "rows_per_s")}
    growth = ratio("large", "small", "peak_mb")
    return {
        "name": "prepare",
        "value": round(median("two", "rows_per_s")),
        "unit": "rows per second, two workers",
        "against": {"one worker": round(median("one", "rows_per_s"))},
        "ratio": ratios,
        "ratio_of_rows_per_cpu_s": {"one worker": ratio("two", "one", "rows_per_cpu_s")},
        "goal": GOALS,
        "met": ratios["one worker"] >= GOALS["one worker"] and growth <= GOALS["memory"],
        "repeats": given.rounds,
        "quick": given.quick,
        "rows": given.rows,
        "peak_mb_of_a_worker": {"one object": median("large", "peak_mb"), "a tenth of it": median("small", "peak_mb")},
        "memory_growth": growth,
        "prepared_already_s": round(median("two", "again_s"), 3),
        "rounds": found,
    }


if __name__ == "__main__":
    main()
