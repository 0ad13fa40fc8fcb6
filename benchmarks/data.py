"""Rows read per second from object storage, shuffled, next to datasets, mosaicml-streaming and litdata.

    python benchmarks/data.py            450,000 rows: 1 GB of text; two rounds of all, alternating
    python benchmarks/data.py --quick    8,000 rows (19 MB), one round: shows that all runs

All read the same rows of tokens (corpus.py, stored.py) from the embedded SeaweedFS, each in its own format and as its guide
says for shuffled reading: two processes, each with batches of 64 rows, with a fresh local cache. A round reads one epoch,
and then, in fresh processes on another fresh cache, goes on from the state that was saved in the middle of it. Shoal reads
a tenth of the rows as well: its memory must not grow with the data. CPU-seconds and memory are of the readers' processes and
their children; the store runs beside them on the same cores. `peak_memory_mb` counts the pages of mapped files, which the
kernel takes back when it needs them; `held_memory_mb` does not. A row of Shoal's carries its mask of targets besides its
tokens, and its checksum is verified; the others' carry their tokens alone.

A reader shuffles globally when a batch of 64 draws from at least three quarters as many source objects as 64 rows drawn
at random would. The last line printed is one JSON object; `ratio` holds Shoal's rows/s over each other's.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from corpus import FOLDER, LONGEST, rows
from materials import ROOT, environment, readers
from running import finish, memories
from stored import OBJECTS, READERS, STORE, make, url

from shoal.store import connection, serving

WORKERS = 2
BATCH = 64
RESUMED = 50
"""Batches that are read after a resume, and compared with those of the epoch that went on."""
LOOK_S = 0.05
GOALS = {"rows_per_s": 2.0, "rows_per_cpu_s": 2.0, "first_batch_s": 2.0, "resume_s": 1.0, "held_memory_growth": 1.1}
TENTH = 10
"""Shoal reads so much less data for comparison: fewer objects, of the same size."""
SCRIPTS = {"datasets": "read_datasets", "mosaicml-streaming": "read_mosaicml", "litdata": "read_litdata"}


def start(reader: str, count: int, objects: int, folder: Path, *more: str) -> list[subprocess.Popen]:
    """The processes of one reader, each with its own log and report under `folder`."""
    store = connection(STORE)
    script = ROOT / "benchmarks" / "peers" / f"{SCRIPTS.get(reader, 'read_shoal')}.py"
    python = str(readers()) if reader in SCRIPTS else sys.executable
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(WORKERS):
        env = environment(
            S3_ENDPOINT_URL=store.endpoint,
            AWS_ACCESS_KEY_ID=store.access_key,
            AWS_SECRET_ACCESS_KEY=store.secret_key,
            AWS_REGION="us-east-1",
            HF_HOME=str(folder / "cache" / "hf"),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            WORLD_SIZE=str(WORKERS),
            LOCAL_WORLD_SIZE=str(WORKERS),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            GLOBAL_RANK=str(rank),
        )
        command = [
            python,
            str(script),
            "--url",
            url(reader, count, objects),
            "--objects",
            str(objects),
            "--rank",
            str(rank),
        ]
        command += ["--workers", str(WORKERS), "--batch-size", str(BATCH), "--cache", str(folder / "cache")]
        command += ["--store", STORE.folder, "--longest", str(LONGEST), "--report", str(folder / f"{rank}.json")]
        command += ["--began", repr(time.time()), *(part.replace("RANK", str(rank)) for part in more)]
        with (folder / f"{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    return processes


def read(reader: str, count: int, objects: int, folder: Path, *more: str) -> dict:
    """Runs one reader to its end; what its processes report together. Raises RuntimeError when one fails."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "cache").mkdir(parents=True)
    processes, peaks, held = start(reader, count, objects, folder, *more), {}, {}
    while any(process.poll() is None for process in processes):
        for process in processes:
            _look(process.pid, peaks, held)
        time.sleep(LOOK_S)
        if any(process.poll() for process in processes):  # the others would wait for it
            for process in processes:
                process.kill()
    for rank, process in enumerate(processes):
        if process.wait():
            tail = (folder / f"{rank}.log").read_text(errors="replace")[-1500:]
            raise RuntimeError(f"{reader}, process {rank}: exit status {process.returncode}\n{tail}")
    shutil.rmtree(folder / "cache")
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    numbers = [np.load(folder / f"{rank}.npy") for rank in range(WORKERS)]
    sizes = [np.load(folder / f"{rank}.sizes.npy") for rank in range(WORKERS)]
    found = {key: max(report[key] for report in reports) for key in reports[0]}
    for key in ("cpu_seconds", "cpu_seconds_with_start", "tokens"):
        found[key] = sum(report[key] for report in reports)
    read_rows = int(sum(map(len, numbers)))
    return found | {
        "rows": read_rows,
        "rows_per_s": read_rows / found["seconds"],
        "rows_per_s_with_start": read_rows / found["seconds_with_start"],
        "tokens_per_s": found["tokens"] / found["seconds"],
        "rows_per_cpu_s": read_rows / found["cpu_seconds"],
        "missed": count - len(np.unique(np.concatenate(numbers))),
        "repeated": read_rows - len(np.unique(np.concatenate(numbers))),
        "peak_memory_mb": sum(peaks.values()) / 1e6,
        "held_memory_mb": sum(held.values()) / 1e6,
        "objects_per_batch": _objects_per_batch(numbers, sizes, count),
        "batches": [np.split(one, np.cumsum(size)[:-1]) for one, size in zip(numbers, sizes, strict=True)],
    }


def _look(pid: int, peaks: dict[int, int], held: dict[int, int]) -> None:
    """The kernel keeps each process's own high-water mark of all its pages; of those without a file it is looked for."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member, memory in memories(family):
        peaks[member] = memory["VmHWM"]
        held[member] = max(held.get(member, 0), memory["RssAnon"])


def _objects_per_batch(numbers: list[np.ndarray], sizes: list[np.ndarray], count: int) -> float:
    """Mean over full batches: from how many source objects (equal parts of the rows) a batch draws."""
    found = []
    for one, size in zip(numbers, sizes, strict=True):
        objects = (one * OBJECTS) // count
        found += [len(np.unique(part)) for part in np.split(objects, np.cumsum(size)[:-1]) if len(part) == BATCH]
    return statistics.mean(found)


def measure(reader: str, count: int, objects: int, folder: Path) -> dict:
    """An epoch, and the resume in the middle of it."""
    half = count // (WORKERS * BATCH) // 2
    whole = read(reader, count, objects, folder, "--save", str(folder / "RANK.state"), "--save-after", str(half))
    resumed = read(reader, count, objects, folder, "--resume", str(folder / "RANK.state"), "--stop-after", str(RESUMED))
    went_on = [batches[half : half + RESUMED] for batches in whole.pop("batches")]
    again = resumed.pop("batches")
    alike = sum(
        np.array_equal(a, b)
        for one, other in zip(went_on, again, strict=True)
        for a, b in zip(one, other, strict=False)
    )
    return whole | {
        "resume_s": resumed["opened_to_first_batch_s"],
        "resume_with_start_s": resumed["first_batch_s"],
        "resumed_batches_alike": alike / sum(map(len, went_on)),
    }


def summary(found: dict[str, list[dict]], failures: dict[str, str], given: argparse.Namespace) -> dict:
    """Medians over rounds; ratios are taken within a round, where the machine was in one mood."""

    def median(name: str, field: str, digits: int = 2) -> float:
        return round(statistics.median(each[field] for each in found[name]), digits)

    def ratio(name: str, field: str) -> float:
        pairs = zip(found["shoal"], found[name], strict=True)
        return round(statistics.median(ours[field] / theirs[field] for ours, theirs in pairs), 2)

    names = [name for name in READERS if name in found]
    others = names[1:]
    drawn = OBJECTS * (1 - (1 - 1 / OBJECTS) ** BATCH)
    globally = {name: median(name, "objects_per_batch") >= 0.75 * drawn for name in names}
    peers = [name for name in others if globally[name]]
    best = {field: min(ratio(name, field) for name in peers) for field in ("rows_per_s", "rows_per_cpu_s") if peers}
    growth = {
        field: round(median("shoal", field) / median("shoal_tenth", field), 3)
        for field in ("held_memory_mb", "peak_memory_mb")
    }
    ours = {field: median("shoal", field, 3) for field in ("first_batch_s", "resume_s")}
    fields = (
        "rows_per_s", "rows_per_s_with_start", "tokens_per_s", "rows_per_cpu_s", "import_s", "first_batch_s",
        "opened_to_first_batch_s", "resume_s", "resume_with_start_s", "resumed_batches_alike", "peak_memory_mb",
        "held_memory_mb", "objects_per_batch", "missed", "repeated",
    )  # fmt: skip
    made = rows(given.rows)
    return {
        "name": "data",
        "value": round(median("shoal", "rows_per_s")),
        "unit": "rows per second of two processes, shuffled",
        "against": {name: round(median(name, "rows_per_s")) for name in others},
        "ratio": {name: ratio(name, "rows_per_s") for name in others},
        "ratio_of_rows_per_cpu_s": {name: ratio(name, "rows_per_cpu_s") for name in others},
        "ratio_to_fastest_that_shuffles_globally": best,
        "goal": GOALS,
        "met": bool(best)
        and all(best[field] >= GOALS[field] for field in best)
        and all(ours[field] < GOALS[field] for field in ours)
        and growth["held_memory_mb"] <= GOALS["held_memory_growth"],
        "repeats": given.rounds,
        "quick": given.quick,
        "shuffles_globally": globally,
        "objects_per_random_batch": round(drawn, 2),
        "memory_growth": growth,
        "readers": {name: {field: median(name, field, 3) for field in fields} for name in [*names, "shoal_tenth"]},
        "data": {"rows": given.rows, "tokens": int(made.starts[-1]), "text_bytes": made.text_bytes, "objects": OBJECTS},
        "failures": failures,
        "rounds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="times each reads, interleaved (2)")
    parser.add_argument("--rows", type=int, default=450_000, help="rows of the data (450,000: 1 GB of text)")
    parser.add_argument("--only", nargs="+", choices=READERS[1:], default=READERS[1:], help="readers beside shoal")
    parser.add_argument("--quick", action="store_true", help="one round of 8,000 rows: shows that all runs")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/data.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.rows = 1, 8_000
    wanted = ("shoal", *(name for name in READERS if name in given.only))
    with serving(STORE):
        tenth = (given.rows // TENTH, OBJECTS // TENTH)
        failures = make(wanted, given.rows) | make(("shoal",), *tenth)
        order = [(name, name, given.rows, OBJECTS) for name in wanted if name not in failures]
        order.append(("shoal_tenth", "shoal", *tenth))
        found: dict[str, list[dict]] = {name: [] for name, *_ in order}
        for number in range(given.rounds):
            turn = number % len(order)
            for name, reader, count, objects in [*order[turn:], *order[:turn]]:
                found[name].append(measure(reader, count, objects, FOLDER / "reading" / name))
                print(f"round {number + 1} {name}: {json.dumps(found[name][-1])}", flush=True)
    finish(summary(found, failures, given), given.out)


if __name__ == "__main__":
    main()
