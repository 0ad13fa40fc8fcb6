"""A run on a cluster of real hosts, hurt in every way: what is lost, what is read twice, how long until it trains again.

    python benchmarks/faults.py                        the whole table (about 20 minutes)
    python benchmarks/faults.py --only worker,cable    some of it
    python benchmarks/faults.py --soak                 30 kills at random moments in one run

Three hosts in network namespaces, a Ray cluster over them, SeaweedFS beside them (tests/support/hosts.py; needs root).
Workers write down which samples they take, from outside of the code under test; the trajectory that counts is compared
with that of a run that nobody touched, by sample id and by loss. Kills are SIGKILL, a power-off kills a host's process
1, a cut cable takes the switch's port down. The last line printed is one JSON object.
"""

import argparse
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from materials import BENCH, ROOT
from running import finish

sys.path.insert(0, str(ROOT / "tests" / "support"))

import tiny
from hosts import missing, until
from ray_hosts import RAY_PORT, RayHosts, ray_hosts
from trajectories import uneven_epochs
from trials import Hurt, Ran, Trial, Trials

STEPS, LONG, EVERY, BATCH, ROWS = 60, 200, 5, 7, 300
SAVES_HIT = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9)
"""Seconds after a save's first file appears on a host's disk."""
STORE_AWAY_S = 60.0
GRACE_S = 20.0
CLOSE = 1e-4
DRAIN = """
import time, ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
ray.init(address="{address}", log_to_driver=False)
(node,) = [one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeManagerAddress"] == "{node}"]
reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
accepted, why = GcsClient(address="{address}").drain_node(node, reason, "spot", int(1000 * (time.time() + {grace_s})))
assert accepted, why
"""
CACHE = "/tmp/home/.shoal"
DISK = "300m"
SOAK_KILLS = 30
SOAK_PAUSE_S = (0.0, 24.0)
"""Between two kills; a group is up again after about half of that."""


@dataclass(frozen=True)
class Fault:
    """One way to be hurt."""

    name: str
    what: str
    hurt: Hurt
    profile: dict[str, object]
    restart: bool
    """The second host is started anew afterwards."""
    steps: int = STEPS


def kill_worker(trial: Trial) -> None:
    trial.until_checkpoint(EVERY)
    _victim(trial).kill()
    trial.hurt()
    trial.until_again()


def kill_raylet(trial: Trial) -> None:
    trial.until_checkpoint(EVERY)
    (raylet,) = [one for one in trial.cluster.network["two"].processes("/") if one.name() == "raylet"]
    raylet.kill()
    trial.hurt()
    trial.until_again()


def kill_driver(trial: Trial) -> None:
    trial.until_checkpoint(EVERY)
    trial.driver.kill()
    trial.hurt()
    trial.command.end()
    trial.submit_again()


def cut_cable(trial: Trial) -> None:
    trial.until_checkpoint(EVERY)
    trial.cluster.network["two"].unplug()
    trial.hurt()
    trial.until_again()


def power_off(trial: Trial) -> None:
    trial.until_checkpoint(EVERY)
    trial.cluster.network["two"].power_off()
    trial.hurt()
    trial.until_again()


def store_away(trial: Trial) -> None:
    trial.until_checkpoint(EVERY)
    trial.cluster.store.stop()
    trial.hurt()
    time.sleep(STORE_AWAY_S)
    trial.cluster.store.start()


def fill_disk(trial: Trial) -> None:
    """A run that needs the disk ends with an answer, and is submitted again with space; any other takes no notice."""
    trial.until_checkpoint(EVERY)
    host = trial.cluster.network["two"]
    host.run("sh", "-c", f"dd if=/dev/zero of={CACHE}/fill bs=1M 2>/dev/null || true")
    trial.hurt()
    if not trial.command.end():
        return
    assert "free space" in trial.command.said, trial.command.said
    host.run("rm", f"{CACHE}/fill")
    trial.submit_again()


def terminate(trial: Trial) -> None:
    """The notice that a cloud gives: SIGTERM to a host's workers, and 20 s later its power is off."""
    trial.until_checkpoint(EVERY)
    host = trial.cluster.network["two"]
    for there, worker in trial.cluster.workers():
        if there is host:
            worker.send_signal(signal.SIGTERM)
    trial.hurt()
    time.sleep(GRACE_S)
    host.power_off()
    trial.until_again()


def drain(trial: Trial) -> None:
    """The same notice given to Ray, as a Kubernetes pod's preStop does: no new group begins on a node that goes."""
    trial.until_checkpoint(EVERY)
    cluster = trial.cluster
    host = cluster.network["two"]
    head = f"{cluster.head.address}:{RAY_PORT}"
    script = DRAIN.format(address=head, node=host.address, grace_s=GRACE_S)
    cluster.head.run(sys.executable, "-c", script)
    trial.hurt()
    time.sleep(GRACE_S)
    host.power_off()
    trial.until_again()


def kill_during_saves(trial: Trial) -> None:
    for number, delay in enumerate(SAVES_HIT):
        trial.command.until("up (process", 180)
        trial.command.until("checkpoint of step ")
        _await_save(trial)
        time.sleep(delay)
        workers = trial.cluster.workers()
        workers[number % len(workers)][1].kill()
        if not number:
            trial.hurt()
    trial.until_again()


def soak(trial: Trial) -> None:
    """Workers killed at random moments, while they train, save or start."""
    chance = random.Random(17)
    trial.until_checkpoint(EVERY)
    for number in range(SOAK_KILLS):
        time.sleep(chance.uniform(*SOAK_PAUSE_S))
        until(lambda: trial.cluster.workers() or trial.command.process.poll() is not None, "a worker", 180)
        workers = trial.cluster.workers()
        if not workers:
            return
        chance.choice(workers)[1].kill()
        trial.hurts += 1
        print(f"kill {number + 1}", flush=True)


FAULTS = [
    Fault("worker", "kill -9 of a worker", kill_worker, {}, False),
    Fault("raylet", "kill -9 of a raylet, a spare node there", kill_raylet, {}, True),
    Fault("driver", "kill -9 of the driver, submitted again at once", kill_driver, {}, False),
    Fault("cable", "link down, a spare node there", cut_cable, {}, True),
    Fault("host", "power off, a spare node there", power_off, {}, True),
    Fault("store", f"store down for {STORE_AWAY_S:.0f} s", store_away, {}, False),
    Fault("disk", "disk full; submitted again with space where the run ends over it", fill_disk, {}, True),
    Fault("sigterm", f"SIGTERM to the workers of a host, its power off {GRACE_S:.0f} s later", terminate, {}, True),
    Fault("drain", f"a host's node drained, its power off {GRACE_S:.0f} s later", drain, {}, True),
    Fault(
        "saves", f"kill -9 at {len(SAVES_HIT)} moments of saves", kill_during_saves, {"max_failures": 15}, False, LONG
    ),
]


def measured(fault: Fault, trials: Trials, untouched: Ran) -> dict[str, object]:
    """One row of the table."""
    seen: list[Trial] = []

    def hurt(trial: Trial) -> None:
        seen.append(trial)
        fault.hurt(trial)

    row: dict[str, object] = {"fault": fault.name, "what": fault.what}
    try:
        ran = trials.run(fault.name, hurt, *_steps(fault.steps), end_s=600, **fault.profile)
    except AssertionError as error:
        said = str(error).splitlines()
        return {**row, "completed": False, "samples_wrong": None, "said": said[-8:]}
    untouched = untouched.first(fault.steps)
    loss = ran.furthest_loss(untouched)
    return {
        **row,
        "completed": True,
        "steps_lost": ran.repeated,
        "samples_wrong": ran.wrong_samples(untouched),
        "recovered_s": round(ran.pause_after(seen[0].fault_at), 1),
        "loss_difference": loss,
        "loss_equal": loss < CLOSE,
    }


def soaked(trials: Trials, untouched: Ran, steps: int) -> dict[str, object]:
    """Many kills in one run that completes; whether each epoch's samples were read once each."""
    seen: list[Trial] = []

    def hurt(trial: Trial) -> None:
        seen.append(trial)
        soak(trial)

    ran = trials.run("soak", hurt, *_steps(steps), end_s=1800, max_failures=SOAK_KILLS + 10)
    begun = ran.first(LONG)
    return {
        "kills": seen[0].hurts,
        "completed": len(ran.read) == steps,
        "steps": steps,
        "steps_lost": ran.repeated,
        "epochs": ran.read[-1].epoch + 1,
        "samples_wrong": uneven_epochs(ran.read),
        "samples_wrong_in_first_steps": begun.wrong_samples(untouched),
        "loss_difference_in_first_steps": begun.furthest_loss(untouched),
        "seconds": round(ran.read[-1].time - ran.began, 1),
    }


def _steps(count: int) -> tuple[str, str]:
    return "--set", f"train.max_steps={count}"


def _victim(trial: Trial) -> psutil.Process:
    return trial.cluster.workers()[-1][1]


def _await_save(trial: Trial) -> None:
    """Returns as soon as a file of a checkpoint appears on the disk of a host with workers."""
    names = ("one", "two")
    folders = [trial.cluster.network[name].folder / "tmp" / "home" / ".shoal" / "cache" / "scratch" for name in names]

    def files() -> set[Path]:
        return {path for folder in folders for path in folder.rglob("*.safetensors")}

    before = files()
    until(lambda: files() - before, "a save", 60, 0.002)


def _limit_disk(cluster: RayHosts) -> None:
    """The second host's cache becomes a small disk."""
    cluster.network["two"].run("sh", "-c", f"mkdir -p {CACHE} && mount -t tmpfs -o size={DISK} tmpfs {CACHE}")


def table(rows: list[dict[str, object]]) -> str:
    columns = ("fault", "completed", "steps_lost", "samples_wrong", "recovered_s", "loss_difference")
    lines = [" ".join(f"{column:>16}" for column in columns)]
    for row in rows:
        shown = [row.get(column) for column in columns]
        lines.append(" ".join(f"{f'{one:.2g}' if isinstance(one, float) else one!s:>16}" for one in shown))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults, with commas between: " + ", ".join(f.name for f in FAULTS))
    parser.add_argument("--soak", action="store_true", help=f"{SOAK_KILLS} kills in one run, and nothing else")
    parser.add_argument("--soak-steps", type=int, default=900)
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/faults.json")
    given = parser.parse_args()
    if why := missing():
        sys.exit(f"no hosts here: {why}")
    chosen = [fault for fault in FAULTS if not given.only or fault.name in given.only.split(",")]
    rows: list[dict[str, object]] = []
    found: dict[str, object] | None = None
    model = tiny.llama(BENCH / "tiny" / "llama", tiny.tokenizer(BENCH / "tiny" / "tokenizer", tiny.gguf()))
    sections = {
        "train": {"num_train_epochs": 10_000, "max_steps": STEPS, "batch_size": BATCH, "eval_steps": 1_000_000},
        # Constant, so that a longer run begins like a shorter one; small, so that rounding is not blown up on the way.
        "optimizer": {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0},
        # SeaweedFS 4.48 that was killed loses live objects when it clears deleted ones away: here none is deleted.
        "checkpoint": {"every_steps": EVERY, "keep": 1000},
    }
    with ray_hosts(("head", "one", "two"), cpus=2) as cluster:
        trials = Trials(cluster, model, ROWS, **sections)
        untouched = trials.run("untouched", lambda trial: None, *_steps(LONG))
        print(f"untouched: {untouched.read[-1].time - untouched.read[0].time:.1f} s for {LONG} steps", flush=True)
        if given.soak:
            found = soaked(trials, untouched, given.soak_steps)
        else:
            for fault in chosen:
                if fault.name == "disk":
                    _limit_disk(cluster)
                rows.append(measured(fault, trials, untouched))
                print(rows[-1], flush=True)
                if cluster.store.process is None:
                    cluster.store.start()
                if fault.restart:
                    cluster.restart("two")
            print(table(rows), flush=True)
    lost = [row["samples_wrong"] for row in rows]
    if found is not None:
        lost.append(found["samples_wrong"])
    value = sum(one for one in lost if isinstance(one, int))
    whole = all(row["completed"] and row.get("loss_equal") for row in rows)
    whole = whole and (found is None or bool(found["completed"]))
    result: dict[str, object] = {
        "name": "soak" if given.soak else "faults",
        "value": value,
        "unit": "samples lost or repeated in the trajectories that count, over the whole table",
        "against": {},
        "goal": 0,
        "met": value == 0 and whole,
        "faults": rows,
        "steps": STEPS,
        "checkpoint_every_steps": EVERY,
    }
    finish(result | ({"soak": found} if found else {}), given.out)


if __name__ == "__main__":
    main()
