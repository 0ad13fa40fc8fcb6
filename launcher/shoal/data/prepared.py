"""Prepared data as columns that the node's processes share, and samples read when they are asked for."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from shoal.data.access import Request, Shards
from shoal.data.cache import CACHE_BYTES, LOOK_AGAIN_S, Fetcher, Shelf
from shoal.data.summary import COLUMNS, TRAIN, VALIDATION, PreparedSummary, column_name, load_column, summary
from shoal.errors import DataError, Problem, StorageError
from shoal.rows.template import Encoded
from shoal.storage import Fault, Storage, absolute, join

EAGER = ("length", "targets", "unit", "offset", "crc")
"""Columns that every reader needs; the others are fetched when they are asked for."""

RATE_KNOWN_S = 0.3
"""So long after whole shards have begun to arrive it is known how fast they do."""


class Index:
    """What is known of each sample of one split: arrays with one entry per sample, mapped from this node's files."""

    def __init__(self, load: Callable[[str], np.ndarray]):
        """`load` gives a column by its name."""
        self._load = load

    @cached_property
    def unit(self) -> np.ndarray:
        """int32: position in PreparedSummary.units."""
        return self._load("unit")

    @cached_property
    def source(self) -> np.ndarray:
        """int16: number of the SourcePlan, those to train on first."""
        return self._load("source")

    @cached_property
    def row(self) -> np.ndarray:
        """int64: line or row of the source object, from 1."""
        return self._load("row")

    @cached_property
    def piece(self) -> np.ndarray:
        """int32: piece of the row, from 0; -1 where the row is one sample."""
        return self._load("piece")

    @cached_property
    def offset(self) -> np.ndarray:
        """int64: first byte in the unit's shard."""
        return self._load("offset")

    @cached_property
    def length(self) -> np.ndarray:
        """int32: tokens."""
        return self._load("length")

    @cached_property
    def targets(self) -> np.ndarray:
        """int32: supervised tokens that are predicted."""
        return self._load("targets")

    @cached_property
    def crc(self) -> np.ndarray:
        """uint32: checksum of the record."""
        return self._load("crc")


class Prepared:
    """The prepared data of one folder; tokens come out as int64, masks as bool. For any number of threads."""

    def __init__(self, storage: Storage, url: str, found: PreparedSummary, shelf: Shelf | None):
        """`shelf`: this node's copies; None for data that lie on this node already, or whose disk takes nothing."""
        self.storage, self.url, self.summary = storage, url, found
        self._shelf = shelf
        self._fetcher: Fetcher | None = None
        self.train = Index(lambda column: self._column(TRAIN, column))
        self.validation = Index(lambda column: self._column(VALIDATION, column))
        self._shards = Shards(
            storage,
            url,
            [unit.shard.name for unit in found.units],
            np.dtype(found.dtype).newbyteorder("<"),
            _beside(url) if _is_local(url) else shelf.path if shelf else lambda name: None,
            shelf,
            lambda where, what, attempt: _tell(storage, where, what, attempt),
        )

    @classmethod
    def open(cls, storage: Storage, url: str, cache: Path, cache_bytes: int = CACHE_BYTES) -> "Prepared":
        """`cache`: folder of this node, which keeps no more than `cache_bytes` of all prepared data together.

        Raises DataError when nothing is prepared at `url`, StorageError when the store refuses.
        """
        found = summary(storage, url)
        if found is None:
            raise DataError(Problem(url, "no prepared data", "run the job again: they are prepared first"))
        if _is_local(url):
            return cls(storage, url, found, None)
        try:
            needed = found.shard_bytes + found.column_bytes
            shelf = Shelf(cache / "prepared", found.digest, needed, cache_bytes)
        except OSError as error:
            _tell(storage, str(cache), f"{error.strerror}: nothing is kept on this node", 1)
            shelf = None
        opened = cls(storage, url, found, shelf)
        with ThreadPoolExecutor(2 * len(EAGER)) as threads:
            splits = (opened.train, opened.validation)
            list(threads.map(lambda wanted: getattr(*wanted), [(split, name) for split in splits for name in EAGER]))
        return opened

    @property
    def lengths(self) -> np.ndarray:
        """int32[n]: tokens of each sample to train on."""
        return self.train.length

    @property
    def targets(self) -> np.ndarray:
        """int32[n]: supervised tokens that are predicted in each sample to train on."""
        return self.train.targets

    @property
    def sources(self) -> np.ndarray:
        """int16[n]: number of the SourcePlan of each sample to train on."""
        return self.train.source

    @property
    def validation_lengths(self) -> np.ndarray:
        return self.validation.length

    @property
    def validation_targets(self) -> np.ndarray:
        return self.validation.targets

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Encoded]:
        """Samples to train on, in the order asked for.

        Raises StorageError when the store refuses, DataError for a sample that is damaged however often it is read.
        """
        return self.take(self.request(indices))

    def read_validation(self, indices: Sequence[int] | np.ndarray) -> list[Encoded]:
        return self.take(self.request(indices, VALIDATION))

    def request(self, indices: Sequence[int] | np.ndarray, split: int = TRAIN) -> Request:
        """Begins to read samples, without waiting; `take` waits for them."""
        wanted = np.asarray(indices, np.int64)
        index = self.validation if split == VALIDATION else self.train
        return self._shards.request(index.unit[wanted], index.offset[wanted], index.length[wanted], index.crc[wanted])

    def take(self, request: Request) -> list[Encoded]:
        return self._shards.take(request)

    def keep(self) -> None:
        """Begins to fetch all shards to this node, where they fit; for those who will read most of them."""
        if self._fetcher is None and self._shelf is not None and self._shelf.keeps_whole and self.summary.units:
            files = [unit.shard for unit in self.summary.units]
            storage = self.storage
            self._fetcher = Fetcher(
                self._shelf, storage, self.url, files, lambda where, what: _tell(storage, where, what, 1)
            )

    @property
    def arriving(self) -> bool:
        """Whether whole shards are on their way to this node: ranges are then better left unasked."""
        return self._fetcher is not None and self._fetcher.is_at_work

    def let_arrive(self, patience_s: float) -> None:
        """Waits for the whole shards, unless that takes longer than `patience_s`."""
        began = time.monotonic()
        while self._fetcher is not None and self._fetcher.is_at_work:
            known = time.monotonic() - began > RATE_KNOWN_S
            if known and self._fetcher.left_s > patience_s:
                return
            time.sleep(LOOK_AGAIN_S / 4)

    def sample_id(self, index: int) -> str:
        """`object/row`, or `object/row/piece`: names a sample to train on whatever the order."""
        url, row = self.summary.units[self.train.unit[index]].url, self.train.row[index]
        return f"{url}/{row}" + (f"/{self.train.piece[index]}" if self.train.piece[index] >= 0 else "")

    def _column(self, split: int, column: str) -> np.ndarray:
        if _is_local(self.url):
            return load_column(Path(absolute(self.url)), split, column)
        name = column_name(split, column)
        (file,) = (one for one in self.summary.columns if one.name == name)
        if self._shelf is not None:
            try:
                self._shelf.fetch(self.storage, self.url, file)
                return load_column(self._shelf.folder, split, column)
            except StorageError:
                raise
            except OSError as error:
                _tell(self.storage, str(self._shelf.folder), f"{error.strerror}: {name} is held in memory", 1)
        return np.frombuffer(self.storage.read(join(self.url, name)), COLUMNS[column])


def _is_local(url: str) -> bool:
    return "://" not in url


def _beside(url: str) -> Callable[[str], str | None]:
    folder = absolute(url)
    return lambda name: join(folder, name)


def _tell(storage: Storage, where: str, what: str, attempt: int) -> None:
    if storage.on_fault is not None:
        storage.on_fault(Fault(url=where, operation="get", what=what, attempt=attempt, wait_s=0.0))
