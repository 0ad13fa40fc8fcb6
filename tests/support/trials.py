"""A tiny job on a cluster of real hosts, hurt while it trains, and what became of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from command import Command, write
from jobs import job, write_rows
from ray_hosts import BUCKET, RayHosts
from trajectories import Taken, furthest, losses, repeated, taken, wrong_samples

Hurt = Callable[["Trial"], None]


@dataclass
class Ran:
    """One run's folder as files, and what its workers read."""

    folder: Path
    read: list[Taken]
    said: str
    began: float
    """Seconds since the epoch."""

    @property
    def losses(self) -> dict[int, float]:
        return {step: loss for step, loss in losses(self.folder).items() if step <= len(self.read)}

    def first(self, steps: int) -> "Ran":
        """So many steps of it."""
        return replace(self, read=self.read[:steps])

    @property
    def repeated(self) -> int:
        """Steps that were taken more than once."""
        return repeated(self.read)

    def wrong_samples(self, untouched: "Ran") -> int:
        """Samples read too often or not at all in the trajectory that counts."""
        return wrong_samples(self.read, untouched.read)

    def furthest_loss(self, untouched: "Ran") -> float:
        return furthest(self.losses, untouched.losses)

    def pause_after(self, moment: float) -> float:
        """The longest that any step waited for its turn from then on, in seconds."""
        times = sorted(one.time for one in self.read if one.time > moment)
        return max((after - before for before, after in zip([moment, *times], times, strict=False)), default=0.0)


@dataclass
class Trial:
    """A run that goes on: what a test may read of it and do to it."""

    cluster: RayHosts
    folder: Path
    arguments: tuple[str, ...]
    command: Command
    fault_at: float = 0.0
    """When it was hurt, in seconds since the epoch."""
    hurts: int = 0

    def until_checkpoint(self, step: int) -> None:
        """Training, with a checkpoint of `step`."""
        self.command.until("up (process")
        self.command.until(f"checkpoint of step {step} ")

    def hurt(self) -> None:
        """Call this at the moment of the fault."""
        self.fault_at = time.time()

    def until_again(self) -> None:
        """The driver has heard of it, and a new group is up."""
        self.command.until("up (process", 180)

    @property
    def driver(self) -> psutil.Process:
        """The command itself, below what entered the host."""
        (driver,) = psutil.Process(self.command.process.pid).children()
        return driver

    def submit_again(self) -> None:
        """The very same command once more: the one that counts from now on."""
        self.command = self.cluster.shoal(*self.arguments, folder=self.folder)


class Trials:
    """One job on one cluster, run again and again."""

    def __init__(self, cluster: RayHosts, model: Path, rows: int = 90, **sections: Any):
        files = cluster.network.folder / "files"
        files.mkdir()
        cluster.store.ask("upload", f"{model}/", f"s3://{BUCKET}/tiny/")
        cluster.store.ask("upload", str(write_rows(files / "rows.jsonl", rows)), f"s3://{BUCKET}/rows.jsonl")
        made = job(f"s3://{BUCKET}/tiny", f"s3://{BUCKET}/rows.jsonl", **sections)
        self.cluster, self.job = cluster, write(files / "job.yaml", made)

    def untouched(self, steps: int) -> Ran:
        """So many steps in one process, without Ray: what every other run is held against."""
        options = ("--set", f"train.max_steps={steps}", "--set", "checkpoint.every_steps=100000")
        return self.run(f"untouched-{steps}", lambda trial: None, *options, kind="inline", workers=1)

    def begin(self, name: str, *options: str, **changes: Any) -> Trial:
        """`shoal run` at the head; `changes` replace fields of the profile."""
        folder = self.cluster.network.folder / "runs" / name
        folder.mkdir(parents=True)
        place = self.cluster.profile(folder / "ray.yaml", **changes)
        arguments = ("run", self.job, "--on", place, "--run-id", name, "--json", *options)
        return Trial(self.cluster, folder, arguments, self.cluster.shoal(*arguments, folder=folder))

    def run(
        self,
        name: str,
        hurt: Hurt = lambda trial: None,
        *options: str,
        status: int = 0,
        end_s: float = 240,
        **changes: Any,
    ) -> Ran:
        """A whole run, hurt on its way; the command leaves with `status`."""
        began = time.time()
        trial = self.begin(name, *options, **changes)
        hurt(trial)
        assert trial.command.end(end_s) == status, trial.command.said
        self.cluster.store.fetch(trial.command.json["folder"], trial.folder)
        return Ran(trial.folder, taken(self.cluster.record, began), trial.command.said, began)
