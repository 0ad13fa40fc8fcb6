"""One save's way to the store, behind training: a thread per rank, and rank 0's writes the manifest last.

Each rank's thread writes what is still in memory to the node's disk, takes the digests, uploads the parts, and then a
small receipt that names them. Rank 0's waits until every rank's receipt is there and every part of it is listed with its
size, and only then publishes the manifest, by conditional put; what was uploaded for a save that never came so far is
cleared away by the next one. So the threads need no word from each other but the store's own listing, and a process
killed at any moment leaves a complete checkpoint or none.

A store that is away is asked again for AWAY_S, each attempt told through `Storage.on_fault`. What fails for good waits
for the training thread: `Saver` raises it on every rank.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter

from shoal.errors import Problem, StorageError
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage, join
from shoal.train.manifest import (
    Manifest,
    Part,
    Progress,
    library_versions,
    publish,
    retain,
    standing,
    trajectory_of,
)
from shoal.train.parts import LocalPart

AWAY_S = 600.0
"""A store that is away for longer fails the save."""
FIRST_POLL_S, LONGEST_POLL_S = 0.05, 2.0
"""Rank 0 lists the others' receipts so often; doubling."""

_PARTS = TypeAdapter(tuple[Part, ...])


class Cancelled(Exception):
    """The run leaves without waiting for this save."""


@dataclass(frozen=True)
class Saved:
    """A save that stands."""

    manifest: Manifest
    upload_seconds: float
    """From the end of the snapshot to the manifest."""


@dataclass(frozen=True)
class Shipment:
    """What is uploaded for one save, and where: the same on every rank but for `rank` and `parts`."""

    plan: Plan
    folder: RunFolder
    storage: Storage
    """One that waits for a store that is away."""
    progress: Progress
    parts: Sequence[LocalPart]
    token: str
    """In the names of everything uploaded for this save, and of nothing else."""
    rank: int
    ranks: int

    @property
    def where(self) -> str:
        return self.folder.checkpoint(self.progress.step)

    def send(self, cancelled: threading.Event) -> None:
        """This rank's parts, then their receipt."""
        for part in self.parts:
            part.write()
        sent = []
        for part in self.parts:
            _go_on(cancelled)
            sent.append(part.measured())
            self.storage.upload(part.path, join(self.where, part.path.name))
        self.storage.write(join(self.where, self._receipt(self.rank)), _PARTS.dump_json(tuple(sent)))

    def publish(self, cancelled: threading.Event, before: Callable[[], None]) -> Manifest:
        """Rank 0: once all parts are there, calls `before`, makes the checkpoint exist, and deletes old ones.

        A complete checkpoint of the same step and trajectory is kept as it is, and ours makes way.
        """
        parts = self._all_parts(cancelled)
        before()
        manifest = standing(self.storage, self.folder, self.plan, self.progress)
        if manifest is None:
            manifest = publish(self.storage, self.folder, self._manifest(parts))
        else:
            for name in [*(part.file for part in parts), *map(self._receipt, range(self.ranks))]:
                self.storage.delete(join(self.where, name))
        best = self.progress.best if self.plan.trajectory.load_best_model_at_end else None
        retain(self.storage, self.folder, self.plan.checkpoint.keep, best.step if best else None)
        return manifest

    def _receipt(self, rank: int) -> str:
        return f"receipt-{rank:03d}-{self.token}.json"

    def _all_parts(self, cancelled: threading.Event) -> tuple[Part, ...]:
        pause = FIRST_POLL_S
        receipts: dict[str, tuple[Part, ...]] = {}
        wanted = [self._receipt(rank) for rank in range(self.ranks)]
        while True:
            _go_on(cancelled)
            listed = {one.url.rsplit("/", 1)[-1]: one.size for one in self.storage.list(self.where.rstrip("/") + "/")}
            for name in wanted:
                if name in listed and name not in receipts:
                    receipts[name] = _PARTS.validate_json(self.storage.read(join(self.where, name)))
            if len(receipts) == self.ranks:
                parts = tuple(part for name in wanted for part in receipts[name])
                self._require_all(parts, listed)
                return parts
            cancelled.wait(pause)
            pause = min(2 * pause, LONGEST_POLL_S)

    def _require_all(self, parts: Sequence[Part], listed: dict[str, int]) -> None:
        """A receipt is written after its parts, so a part that a listing with the receipt lacks is not on its way."""
        wrong = [part.file for part in parts if listed.get(part.file) != part.size]
        if wrong:
            what = f"{', '.join(wrong)} went missing or came cut short after the upload"
            raise StorageError(Problem(self.where, what, "see what else writes there"))

    def _manifest(self, parts: tuple[Part, ...]) -> Manifest:
        return Manifest(
            **self.progress.model_dump(),
            run_id=self.plan.run_id,
            trajectory_digest=self.plan.trajectory_digest,
            trajectory=trajectory_of(self.plan),
            parts=parts,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=library_versions(),
        )


class Upload:
    """A shipment under way in a thread of its own; it begins at once. The thread dies with the process."""

    def __init__(self, shipment: Shipment, before_publishing: Callable[[], None]):
        self.sent: Future[None] = Future()
        """Done when this rank's share is in the store."""
        self.stands: Future[Saved] = Future()
        """Rank 0: done when the checkpoint exists."""
        self._cancelled = threading.Event()
        self._began = time.perf_counter()
        self._thread = threading.Thread(
            target=self._run, args=(shipment, before_publishing), name="checkpoint", daemon=True
        )
        self._thread.start()

    def cancel(self, patience_s: float = 0.0) -> None:
        """Ends what is under way between two requests, after waiting so long for it to come to its own end."""
        self._thread.join(patience_s)
        self._cancelled.set()

    def _run(self, shipment: Shipment, before_publishing: Callable[[], None]) -> None:
        try:
            shipment.send(self._cancelled)
            self.sent.set_result(None)
            if shipment.rank == 0:
                manifest = shipment.publish(self._cancelled, before_publishing)
                self.stands.set_result(Saved(manifest, time.perf_counter() - self._began))
        except BaseException as error:  # noqa: BLE001 - a thread's edge: the training thread raises it
            (self.stands if self.sent.done() else self.sent).set_exception(error)


def _go_on(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise Cancelled
