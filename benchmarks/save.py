"""Seconds that training stands still per checkpoint: with the upload behind training, and waiting for it, in turns.

    python benchmarks/save.py            the quickstart's job as an adapter (8 saves of each kind) and in full (4)
    python benchmarks/save.py --quick    2 saves of each kind

jobs/quickstart.yaml on SmolLM2-135M and two Ray workers, with the embedded SeaweedFS as the store. Every second save of
the same run waits until its checkpoint stands, as a synchronous save would; the benchmark makes it so, it is no feature.
The last line printed is one JSON object: `value` is the median stall of the adapter's saves; `ratio.synchronous` sets it
against the median synchronous save, `ratio.step` against the median step. `slowed` is what uploading takes from the steps
beside it: seconds that they took longer than steps without, per save. The same for full fine-tuning under `full`.
"""

import argparse
import functools
import shutil
import statistics
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from materials import BENCH, ROOT, alpaca, smollm2
from running import finish

from shoal import launch
from shoal.backends.ray_local import RayLocal
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.spec.load import load_job
from shoal.storage import Storage
from shoal.store import serving
from shoal.train.world import Event, Report, Result, World

FOLDER = BENCH / "save"
GOAL = {"synchronous": 0.1, "step": 1.0}
EVERY = {"lora": 2, "full": 3}
"""Steps between saves: enough that an upload is over before the next one."""


def alternating(plan: Plan, world: World, report: Report) -> Result:
    """The worker, whose every second save waits for its upload; the first one warms up and counts for neither."""
    from shoal.train import entry
    from shoal.train.saving import Saver

    behind = Saver.save
    saves = 0

    @functools.wraps(behind)
    def save(self: Saver, progress: Any) -> None:
        nonlocal saves
        saves += 1
        began = time.perf_counter()
        behind(self, progress)
        if saves % 2:
            self.finish()
        seconds = time.perf_counter() - began
        report_alone = report if world.is_main else lambda event: None
        report_alone({"kind": "saved", "step": progress.step, "synchronous": saves % 2 == 1, "seconds": seconds})

    Saver.save = save
    return entry.run(plan, world, report)


def job(method: str, rounds: int) -> JobSpec:
    saves = 2 * rounds + 1
    changes = {
        "method": method,
        "model.base": smollm2(),
        "data.train": alpaca(),
        "data.format": "auto",
        "data.max_rejected": 1,
        "data.validation": 0,
        "train.num_train_epochs": 100,
        "train.max_steps": EVERY[method] * saves + 1,
        "train.self_check": "false",
        "checkpoint.every_steps": EVERY[method],
        "checkpoint.keep": 1,
        "prompts": "[]",
    }
    return load_job(ROOT / "jobs" / "quickstart.yaml", [f"{name}={value}" for name, value in changes.items()])


def place() -> ClusterProfile:
    storage = {
        "runs": "s3://shoal/runs",
        "prepared": "s3://shoal/prepared",
        "cache": str(FOLDER / "cache"),
        "s3": {"server": "embedded", "folder": str(FOLDER / "store")},
    }
    return ClusterProfile.model_validate({"kind": "local", "workers": 2, "storage": storage})


def measured(method: str, rounds: int) -> dict[str, Any]:
    """Runs the job until the last counted save and sums up what was told."""
    events: list[Event] = []
    stop = threading.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        if event["kind"] == "saved":
            print(
                f"{method}: step {event['step']}, {event['seconds']:.2f} s, synchronous {event['synchronous']}",
                flush=True,
            )
        if sum(one["kind"] == "saved" for one in events) > 2 * rounds:
            stop.set()

    profile = place()
    with serving(profile.storage.s3), closing(RayLocal(profile, alternating)) as backend:
        backend.start()
        storage = Storage(profile.storage.s3)
        launch.run(job(method, rounds), profile, storage, backend, on_event, stop)
        storage.delete(profile.storage.runs + "/")
    return summed(events, rounds)


def summed(events: list[Event], rounds: int) -> dict[str, Any]:
    told = {event["step"]: event for event in events if event["kind"] == "checkpoint"}
    saved = [event for event in events if event["kind"] == "saved"][1 : 2 * rounds + 1]
    behind = [told[event["step"]] for event in saved if not event["synchronous"]]
    waited = [event["seconds"] for event in saved if event["synchronous"]]
    beside, alone = steps(events, {event["step"] for event in behind})
    stall, synchronous, step = (
        statistics.median(found) for found in ([one["stall_seconds"] for one in behind], waited, alone)
    )
    return {
        "value": round(stall, 3),
        "against": {"synchronous": round(synchronous, 2), "step": round(step, 2)},
        "ratio": {"synchronous": round(stall / synchronous, 4), "step": round(stall / step, 4)},
        "slowed": round(statistics.median(sum(found) - step * len(found) for found in beside.values()), 2),
        "megabytes": round(behind[0]["bytes"] / 1e6, 1),
        "upload_mb_per_s": round(statistics.median(one["upload_mb_per_s"] for one in behind), 1),
        "rounds": {
            "stall": [round(one["stall_seconds"], 3) for one in behind],
            "synchronous": [round(one, 2) for one in waited],
        },
    }


def steps(events: list[Event], saves: set[int]) -> tuple[dict[int, list[float]], list[float]]:
    """Seconds of the steps beside the upload of each of `saves`, and of all others but the first two."""
    beside: dict[int, list[float]] = defaultdict(list)
    alone: list[float] = []
    uploading = None
    for event in events:
        if event["kind"] == "saved" and event["step"] in saves:
            uploading = event["step"]
            beside[uploading] = []
        elif event["kind"] == "step" and uploading is not None:
            beside[uploading].append(event["seconds"])
        elif event["kind"] == "step" and event["step"] > 2:
            alone.append(event["seconds"])
        elif event["kind"] == "checkpoint" and event["step"] == uploading:
            uploading = None
    return beside, alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=8, help="saves of each kind as an adapter, half as many in full (8)"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/save.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds = 2
    shutil.rmtree(FOLDER, ignore_errors=True)
    lora, full = measured("lora", given.rounds), measured("full", max(2, given.rounds // 2))
    met = all(kind["ratio"][name] < goal for kind in (lora, full) for name, goal in GOAL.items())
    finish(
        {
            "name": "save",
            "unit": "seconds that training stands still per checkpoint, the upload behind it",
            **lora,
            "full": full,
            "goal": GOAL,
            "met": met,
            "repeats": given.rounds,
            "quick": given.quick,
        },
        given.out,
    )


if __name__ == "__main__":
    main()
