"""Saving behind training: when, what the training thread waits for, and what is told of it."""

import secrets
import shutil
import time
from typing import Protocol

from shoal.errors import Problem, ShoalError, StorageError
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.checkpoint import States, snapshot
from shoal.train.collective import exchange, from_main, raise_first
from shoal.train.interval import FIRST_STEPS, interval_steps, mean_time_between_failures
from shoal.train.manifest import Manifest, Progress
from shoal.train.parts import memory_room, share_folder
from shoal.train.upload import AWAY_S, Saved, Shipment, Upload
from shoal.train.world import Event, World

LEAVING_S = 60.0
"""A run that ends with an error waits so long for the save under way."""


class Voice(Protocol):
    def phase(self, phase: str, detail: str = "") -> None: ...

    def tell(self, event: Event, *, record: bool = True) -> None: ...

    def flush(self) -> None:
        """Called from the uploading thread: the rows up to a checkpoint are in the store before it is."""
        ...


class Saver:
    """One rank's checkpoints, of which one at most is on its way to the store: the next save waits for it.

    `save` and `finish` are collective, and raise what went wrong on any rank on every rank; so is making one.
    """

    def __init__(
        self,
        engine: States,
        plan: Plan,
        folder: RunFolder,
        storage: Storage,
        world: World,
        voice: Voice,
        start: Progress,
        failures: int = 0,
    ):
        """`failures`: attempts at this run that failed so far, known on rank 0."""
        self._engine, self._plan, self._folder, self._world, self._voice = engine, plan, folder, world, voice
        self._storage = storage.patient(AWAY_S)
        self._scratch = share_folder(plan, world.rank)
        self._attempt = from_main(world, lambda: secrets.token_hex(3))
        self._every = plan.checkpoint.every_steps
        self._due = start.step + FIRST_STEPS
        self._since, self._saves, self._failures = start, 0, failures
        self._upload: Upload | None = None
        self._stalled = self._waited = self._upload_s = 0.0
        self._told = True

    def due(self, step: int) -> bool:
        """Whether a save is due after `step`; the same on every rank."""
        return step % self._every == 0 if isinstance(self._every, int) else step >= self._due

    def save(self, progress: Progress) -> None:
        """Takes the snapshot of `progress.step`, which is uploaded while training goes on."""
        began = time.perf_counter()
        self._voice.phase("saving", f"step {progress.step}")
        self._wait()
        self._waited = time.perf_counter() - began
        self._saves += 1
        # A step may be saved anew, by a later attempt: no name is ever used twice.
        token = f"{self._attempt}{self._saves}"
        room = memory_room(self._world.local_size)
        parts, error = snapshot(self._engine, self._world, self._scratch, token, room)
        every = self._next_interval(progress, time.perf_counter() - began - self._waited)
        answers = exchange(self._world, (error, every))
        if any(error for error, _ in answers):
            self._clear()
        raise_first(error for error, _ in answers)
        # Rank 0's clock decides for all.
        self._due, self._since = progress.step + answers[0][1], progress
        shipment = Shipment(
            self._plan,
            self._folder,
            self._storage,
            progress,
            parts,
            token,
            self._world.rank,
            self._world.size,
        )
        self._told = False
        self._upload = Upload(shipment, self._voice.flush)
        self._stalled = time.perf_counter() - began
        self._voice.phase("training")

    def tell(self) -> None:
        """Tells of a checkpoint that has come to stand since the last call; nothing on other ranks than 0."""
        upload = self._upload
        if not self._told and upload and upload.stands.done() and upload.stands.exception() is None:
            self._tell(upload.stands.result())

    def finish(self) -> Manifest | None:
        """Waits until the save under way stands, and returns it; None where there is none."""
        if self._upload is not None:
            self._voice.phase("saving", "until it is in the store")
        return self._wait()

    def _wait(self) -> Manifest | None:
        upload = self._upload
        if upload is None:
            return None
        try:
            error = upload.sent.exception()
            errors = exchange(self._world, None if error is None else _answer(error))
            if error is not None:
                raise error
            raise_first(errors)
            saved = from_main(self._world, upload.stands.result)
        except BaseException:
            upload.cancel()
            raise
        finally:
            self._upload = None
            self._clear()
        self._upload_s = saved.upload_seconds
        if not self._told:
            self._tell(saved)
        return saved.manifest

    def leave(self) -> None:
        """Gives the save under way a last chance when the run ends with an error that all ranks raise."""
        if self._upload is not None:
            self._upload.cancel(LEAVING_S)
            self.tell()
            self._clear()

    def _next_interval(self, progress: Progress, stall_s: float) -> int:
        step_s = (progress.seconds - self._since.seconds) / max(1, progress.step - self._since.step)
        if step_s <= 0:
            return FIRST_STEPS
        expected_s = 3600 * self._plan.checkpoint.mean_time_between_failures_h
        between_s = mean_time_between_failures(expected_s, progress.seconds, self._failures)
        return interval_steps(step_s, stall_s, between_s, self._upload_s)

    def _tell(self, saved: Saved) -> None:
        self._told = True
        self._voice.tell(
            {
                "kind": "checkpoint",
                "step": saved.manifest.step,
                "bytes": saved.manifest.bytes,
                "stall_seconds": self._stalled,
                "waited_seconds": self._waited,
                "upload_seconds": saved.upload_seconds,
                "upload_mb_per_s": saved.manifest.bytes / 1e6 / saved.upload_seconds,
            }
        )

    def _clear(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)


def _answer(error: BaseException) -> ShoalError:
    """What the other ranks raise: they cannot be sent any exception."""
    return error if isinstance(error, ShoalError) else StorageError(Problem("checkpoint", repr(error)))
