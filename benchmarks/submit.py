"""Seconds from `shoal run` on a machine outside to the driver's first line, next to `ray job submit` of a no-op.

    python benchmarks/submit.py            five rounds of each, in turns
    python benchmarks/submit.py --quick    one round

A real cluster of one node with its dashboard (tests/support/submitting.py), whose nodes have another Shoal: ours is
sent along. Each command begins as a process and ends when the first line that the driver wrote is on its output; what the
driver does then is no matter, and it is stopped. `first`: a cluster that this machine has never seen, looked at by a job
of its own, Shoal's code sent. `http`: the no-op through the job API alone, without a command line around it: the floor.
The last line printed is one JSON object; `ratio.ray_job_submit` is our median over that of `ray job submit`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from materials import BENCH, ROOT
from running import finish

sys.path.insert(0, str(ROOT / "tests" / "support"))

import tiny
from submitting import DASHBOARD, Head, head

from shoal.spec.cluster import S3Spec
from shoal.store import serving
from shoal.submit.dashboard import Dashboard
from shoal.submit.package import package

FOLDER = BENCH / "submit"
GOAL = 1.2
SAID = "a line of the driver"


def until(
    command: Sequence[str], environment: dict[str, str], met: Callable[[list[str]], bool]
) -> tuple[float, list[str]]:
    """(seconds from its start until its lines fulfil `met`, the lines); the command is killed then."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if met(lines):
            break
    seconds = time.monotonic() - began
    assert met(lines), "\n".join(lines)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()
    return seconds, lines


def ours(cluster: Head, name: str) -> tuple[float, str]:
    """(seconds, what was sent in words): `planning` comes twice, from here and then from the driver."""
    place, job = str(FOLDER / "profile.yaml"), str(FOLDER / "job.yaml")
    command = [sys.executable, "-m", "shoal", "run", job, "--on", place, "--run-id", name]
    seconds, lines = until(command, cluster.environment, lambda lines: sum("planning: " in line for line in lines) == 2)
    (handed,) = (line for line in lines if " is job " in line)
    _over(cluster, name)
    return seconds, handed.rpartition("(")[2].rstrip(")")


def bare(cluster: Head, name: str) -> float:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", cluster.address, "--submission-id", name, "--", "echo", SAID]
    there = {**cluster.environment, "PYTHONPATH": str(DASHBOARD)}
    seconds, _ = until(command, there, lambda lines: lines[-1:] == [SAID])
    _over(cluster, name)
    return seconds


def http(cluster: Head, name: str) -> float:
    dashboard = Dashboard(cluster.address)
    began = time.monotonic()
    dashboard.submit(f"echo '{SAID}'", name, {}, {})
    heard = ""
    for text in dashboard.tail(name):
        heard += text
        if f"\n{SAID}\n" in f"\n{heard}":
            return time.monotonic() - began
    raise AssertionError(heard)


def _over(cluster: Head, name: str) -> None:
    dashboard = Dashboard(cluster.address)
    while (job := dashboard.job(name)) is not None and not job.ended:
        dashboard.stop(name)
        time.sleep(0.5)


def measure(cluster: Head, rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each contender by round, and what was sent at the first time and afterwards."""
    times: dict[str, list[float]] = {"shoal": [], "first": [], "ray_job_submit": [], "http": []}
    sent: dict[str, str] = {}
    bare(cluster, "warm")  # once unmeasured: files are in the page cache, the head has an idle worker
    for number in range(rounds):
        shutil.rmtree(cluster.folder / "cache" / "clusters", ignore_errors=True)
        seconds, said = ours(cluster, f"first-{number}")
        times["first"].append(seconds)
        sent.setdefault("first", said)
        seconds, sent["afterwards"] = ours(cluster, f"shoal-{number}")
        times["shoal"].append(seconds)
        times["ray_job_submit"].append(bare(cluster, f"bare-{number}"))
        times["http"].append(http(cluster, f"http-{number}"))
        told = ", ".join(f"{name} {taken[-1]:.1f} s" for name, taken in times.items())
        print(f"round {number + 1}: {told}", flush=True)
    return times, sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each is started (5)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/submit.json")
    given = parser.parse_args()
    rounds = 1 if given.quick else given.rounds
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "another" / "shoal").mkdir(parents=True)
    (FOLDER / "another" / "shoal" / "__init__.py").write_text('__version__ = "0.0.0"\n')
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    model = tiny.llama(FOLDER / "tiny-llama", tiny.tokenizer(FOLDER / "tokenizer", tiny.gguf()))
    s3 = S3Spec(server="embedded", folder=str(FOLDER / "store"))
    with serving(s3), head(s3, FOLDER, model, path=FOLDER / "another") as cluster:
        cluster.profile(FOLDER / "profile.yaml")
        cluster.job(FOLDER / "job.yaml")
        times, sent = measure(cluster, rounds)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    others = ("ray_job_submit", "http")
    ratio = {name: round(middle["shoal"] / middle[name], 3) for name in others}
    finish(
        {
            "name": "submit",
            "value": round(middle["shoal"], 2),
            "unit": "seconds from the command to the driver's first line",
            "against": {name: round(middle[name], 2) for name in others},
            "ratio": ratio,
            "goal": {"ray_job_submit": GOAL},
            "met": ratio["ray_job_submit"] <= GOAL,
            "repeats": rounds,
            "quick": given.quick,
            "first": round(middle["first"], 2),
            "package_bytes": len(package().data),
            "sent": sent,
            "rounds": times,
        },
        given.out,
    )


if __name__ == "__main__":
    main()
