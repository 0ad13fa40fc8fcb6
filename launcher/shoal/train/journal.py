"""Rank 0's record of a run: metrics.jsonl, events.jsonl and TensorBoard scalars.

Rows are appended to local files at once. Object stores cannot append, so a small thread uploads whole files now and
then, seldom enough that uploading takes a small share of the time however long they grow. After a resume, what lies
beyond the checkpoint is dropped, its steps and seconds told in a `repeated` event, and TensorBoard's scalars are rebuilt
from the rows that stay: no step shows twice.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import Problem, StorageError
from shoal.plan.types import Plan
from shoal.record.rows import Row, line, parse, stamp
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.manifest import scratch_folder
from shoal.train.world import Event

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRIC_KINDS = ("step", "eval")
UPLOAD_EVERY_S = 5.0
UPLOAD_SHARE = 0.05
"""An upload that takes t seconds is followed by a pause of at least t / UPLOAD_SHARE."""
SCALARS = {
    "step": {
        "loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "grad_norm": "train/grad_norm",
        "tokens_per_s": "train/tokens_per_s",
    },
    "eval": {"loss": "validation/loss", "perplexity": "validation/perplexity"},
}


class Journal:
    """One attempt's journal. All methods are called from the training thread, `flush` from any; close it at the end.

    Earlier metrics stay as they are until the first row of this attempt, or until `resume`, whichever comes first.
    """

    def __init__(self, plan: Plan, folder: RunFolder, storage: Storage):
        self._folder, self._storage = folder, storage
        self._scratch = scratch_folder(plan) / "journal"
        self._metrics, self._events = self._scratch / "metrics.jsonl", self._scratch / "events.jsonl"
        self._board = self._scratch / "tensorboard"
        self._urls = {self._metrics: folder.metrics, self._events: folder.events}
        shutil.rmtree(self._scratch, ignore_errors=True)
        with self._on_disk():
            self._board.mkdir(parents=True)
        self._earlier = {path: self._stored(url) for path, url in self._urls.items()}
        self.attempt = 1 + max((row.get("attempt", 0) for rows in self._earlier.values() for row in rows), default=0)
        with self._on_disk():
            self._events.write_text("".join(line(row) for row in self._earlier[self._events]))
        self._known: set[tuple[str, int]] = set()
        self._writer: SummaryWriter | None = None
        self._board_is_ours = False
        self._dirty: set[Path] = set()
        self._rows_lock, self._upload_lock = threading.Lock(), threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._upload_now_and_then, name="journal", daemon=True)
        self._thread.start()

    def resume(self, step: int) -> None:
        """Keep earlier metrics up to `step`, and drop what lies beyond: the run goes on from there."""
        with self._rows_lock, self._on_disk():
            self._begin(step)

    def catch_up(self, events: Iterable[Event]) -> None:
        """Write down what an earlier attempt had no time for; what stands there already is known by its kind and time."""
        known = {(row["kind"], row["time"]) for row in self._earlier[self._events]}
        for event in events:
            if (event["kind"], event["time"]) not in known:
                self.record(event)

    def failed_attempts(self) -> int:
        """Earlier attempts that a failure ended, or whose steps were lost: with a driver, for example."""
        with self._rows_lock, self._on_disk():
            events = parse(self._events.read_bytes())
        told = {row["attempt"] for row in events if row["kind"] == "failure" and row["cause"] != "preempted"}
        return len(told | {row["of"] for row in events if row["kind"] == "repeated"})

    def record(self, event: Event) -> None:
        """Write one event with the time and the attempt: step and eval rows as metrics, everything else as events.

        Raises StorageError when the local disk takes no more, unless another error is being told or on its way out.
        """
        with self._beside(sys.exc_info()[1]):
            self._record(event)

    def _record(self, event: Event) -> None:
        row = {"time": stamp(), "attempt": self.attempt, **event}
        with self._rows_lock, self._on_disk():
            if event["kind"] in METRIC_KINDS:
                if self._writer is None:
                    self._begin(after_step=0)
                self._record_metric(row)
            else:
                _append(self._events, row)
                self._dirty.add(self._events)

    def flush(self) -> None:
        """Upload everything, TensorBoard included; at checkpoints and at the end. Raises StorageError."""
        with self._on_disk():
            self._upload()
            if self._writer is None:
                return
            self._writer.flush()
            where = self._folder.tensorboard.rstrip("/") + "/"
            with self._upload_lock:
                if not self._board_is_ours:
                    self._storage.delete(where)
                    self._board_is_ours = True
                self._storage.upload(self._board, where)

    def close(self) -> None:
        """Flush and stop; the local files go. Raises StorageError, unless another error is on its way out already."""
        leaving = sys.exc_info()[1]
        self._closing.set()
        self._thread.join()
        try:
            with self._beside(leaving), self._on_disk():
                try:
                    self.flush()
                finally:
                    if self._writer is not None:
                        self._writer.close()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @contextlib.contextmanager
    def _beside(self, leaving: BaseException | None) -> Iterator[None]:
        """What went wrong first is what a person must hear of."""
        try:
            yield
        except StorageError:
            if leaving is None:
                raise

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """A full disk is an answer to a person: one line that says where."""
        try:
            yield
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            what = f"the journal cannot be written: {error.strerror or error}"
            fix = "free space, or set storage.cache"
            raise StorageError(Problem(str(self._scratch), what, fix)) from None

    def _stored(self, url: str) -> list[dict[str, Any]]:
        return parse(self._storage.read(url)) if self._storage.exists(url) else []

    def _begin(self, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        earlier = self._earlier.pop(self._metrics)
        kept = [row for row in earlier if row["step"] <= after_step]
        self._metrics.write_text("".join(line(row) for row in kept))
        for event in thrown([row for row in earlier if row["step"] > after_step], after_step):
            _append(self._events, {"time": stamp(), "attempt": self.attempt, **event})
            self._dirty.add(self._events)
        self._dirty.add(self._metrics)
        self._known = {(row["kind"], row["step"]) for row in kept}
        self._writer = SummaryWriter(str(self._board))
        for row in kept:
            self._scalars(row)

    def _record_metric(self, row: dict[str, Any]) -> None:
        key = (row["kind"], row["step"])
        if key in self._known:
            # A resumed run may measure the step it starts from again: the new row takes the earlier one's place.
            rows = [old for old in parse(self._metrics.read_bytes()) if (old["kind"], old["step"]) != key]
            self._metrics.write_text("".join(line(old) for old in rows))
        else:
            self._known.add(key)
            self._scalars(row)
        _append(self._metrics, row)
        self._dirty.add(self._metrics)

    def _scalars(self, row: dict[str, Any]) -> None:
        assert self._writer is not None
        at = datetime.fromisoformat(row["time"]).timestamp()
        for field, tag in SCALARS[row["kind"]].items():
            if row.get(field) is not None:
                self._writer.add_scalar(tag, row[field], row["step"], walltime=at)

    def _upload(self) -> None:
        with self._upload_lock:
            with self._rows_lock:
                contents = {path: path.read_bytes() for path in self._dirty}
                self._dirty = set()
            try:
                for path, data in contents.items():
                    self._storage.write(self._urls[path], data)
            except StorageError:
                with self._rows_lock:
                    self._dirty |= contents.keys()
                raise

    def _upload_now_and_then(self) -> None:
        pause = UPLOAD_EVERY_S
        while not self._closing.wait(pause):
            started = time.monotonic()
            # After an error the rows stay dirty: the next upload takes them along, and flush says what is wrong.
            with contextlib.suppress(OSError):
                self._upload()
            pause = max(UPLOAD_EVERY_S, (time.monotonic() - started) / UPLOAD_SHARE)


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(line(row))


def thrown(dropped: Sequence[Row], after_step: int) -> list[Row]:
    """What a resume from `after_step` throws away, one event for each attempt that had made it: steps, and seconds."""
    steps = [row for row in dropped if row["kind"] == "step"]
    found = []
    for attempt in sorted({row["attempt"] for row in steps}):
        own = [row for row in steps if row["attempt"] == attempt]
        last = max(row["step"] for row in own)
        first = min(row["step"] - row.get("covers", {"steps": 1})["steps"] + 1 for row in own)
        event = {"kind": "repeated", "of": attempt, "steps": last - max(first, after_step + 1) + 1}
        seconds = sum(row.get("covers", row).get("seconds", 0.0) for row in own)
        found.append(event | {"seconds": seconds, "until": max(row["time"] for row in own)})
    return found
