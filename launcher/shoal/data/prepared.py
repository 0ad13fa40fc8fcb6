"""Prepared data as arrays of lengths in memory, and tokens read from the store when they are asked for."""

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shoal.data.summary import TRAIN, VALIDATION, File, Index, PreparedSummary, UnitSummary, summary
from shoal.data.template import Encoded
from shoal.errors import DataError, Problem
from shoal.storage import Storage, absolute, join

WHOLE_FILE_BYTES = 256 * 2**20
"""Files up to this size are kept whole on the node; of larger ones just the asked ranges are read."""
CACHE_BYTES = 20 * 2**30
"""Prepared data above this size in all are read by ranges, so that a node's disk does not fill up."""
GAP_BYTES = 64 * 2**10
"""Ranges closer than this are read as one: a request costs more than so many bytes."""


@dataclass(frozen=True)
class _Column:
    """One kind of file, with one element per token."""

    file: File
    dtype: np.dtype


@dataclass(frozen=True)
class Prepared:
    """The prepared data of one folder; tokens come out as int64, masks as bool."""

    storage: Storage
    url: str
    folder: Path
    """Where this node keeps whole files."""
    summary: PreparedSummary
    train: Index
    validation: Index
    _mapped: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, storage: Storage, url: str, cache: Path) -> "Prepared":
        """Raises DataError when nothing is prepared at `url`, StorageError when the store refuses."""
        found = summary(storage, url)
        if found is None:
            raise DataError(Problem(url, "no prepared data", "run the job again: they are prepared first"))
        folder = cache / "prepared" / found.digest
        index = Index.load(_local(storage, url, found.index, folder).read_bytes())
        return cls(
            storage, url, folder, found, index.select(index.split == TRAIN), index.select(index.split == VALIDATION)
        )

    @property
    def lengths(self) -> np.ndarray:
        """int32[n]: tokens of each sample to train on."""
        return self.train.length

    @property
    def targets(self) -> np.ndarray:
        """int32[n]: supervised tokens that are predicted in each sample to train on."""
        return self.train.targets

    @property
    def validation_lengths(self) -> np.ndarray:
        return self.validation.length

    @property
    def validation_targets(self) -> np.ndarray:
        return self.validation.targets

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Encoded]:
        """Samples to train on, in the order asked for."""
        return self._read(self.train, np.asarray(indices, np.int64))

    def read_validation(self, indices: Sequence[int] | np.ndarray) -> list[Encoded]:
        return self._read(self.validation, np.asarray(indices, np.int64))

    def sample_id(self, index: int) -> str:
        """`object/row`, or `object/row/piece`: names a sample to train on whatever the order."""
        url, row = self.summary.units[self.train.unit[index]].url, self.train.row[index]
        return f"{url}/{row}" + (f"/{self.train.piece[index]}" if self.train.piece[index] >= 0 else "")

    def _read(self, index: Index, wanted: np.ndarray) -> list[Encoded]:
        tokens: list[np.ndarray] = [np.empty(0)] * len(wanted)
        masks = list(tokens)
        for number in np.unique(index.unit[wanted]):
            unit = self.summary.units[number]
            places = np.flatnonzero(index.unit[wanted] == number)
            starts = index.offset[wanted[places]]
            stops = starts + index.length[wanted[places]]
            for column, found in zip(self._columns(unit), (tokens, masks), strict=True):
                for place, piece in zip(places, self._slices(column, starts, stops), strict=True):
                    found[place] = piece
        return [Encoded(ids.astype(np.int64), mask.astype(np.bool_)) for ids, mask in zip(tokens, masks, strict=True)]

    def _columns(self, unit: UnitSummary) -> tuple[_Column, _Column]:
        tokens = np.dtype(self.summary.dtype).newbyteorder("<")
        return _Column(unit.input_ids, tokens), _Column(unit.loss_mask, np.dtype(np.uint8))

    def _slices(self, column: _Column, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Elements start..stop of the column's file for each pair."""
        if self._keeps_whole(column.file):
            whole = self._whole(column)
            return [whole[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        size = column.dtype.itemsize
        ranges = coalesce(starts * size, stops * size, GAP_BYTES)
        blocks = self.storage.read_ranges(join(self.url, column.file.name), ranges)
        begins = np.array([begin for begin, _ in ranges])
        slices = []
        for start, stop in zip((starts * size).tolist(), (stops * size).tolist(), strict=True):
            block = int(np.searchsorted(begins, start, side="right")) - 1
            begin = int(begins[block])
            slices.append(np.frombuffer(blocks[block], column.dtype, (stop - start) // size, start - begin))
        return slices

    def _keeps_whole(self, file: File) -> bool:
        if _is_local(self.url):
            return True
        total = sum(unit.input_ids.size + unit.loss_mask.size for unit in self.summary.units)
        return file.size <= WHOLE_FILE_BYTES and total <= CACHE_BYTES

    def _whole(self, column: _Column) -> np.ndarray:
        if column.file.name not in self._mapped:
            path = _local(self.storage, self.url, column.file, self.folder)
            self._mapped[column.file.name] = np.memmap(path, column.dtype, mode="r")
        return self._mapped[column.file.name]


def coalesce(starts: np.ndarray, stops: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Ranges (sorted, end exclusive) that cover all of start..stop, joined where less than `gap` lies between."""
    order = np.argsort(starts, kind="stable")
    ranges: list[tuple[int, int]] = []
    for start, stop in zip(starts[order].tolist(), stops[order].tolist(), strict=True):
        if ranges and start - ranges[-1][1] <= gap:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))
    return ranges


def _is_local(url: str) -> bool:
    return "://" not in url


def _local(storage: Storage, url: str, file: File, folder: Path) -> Path:
    """A path of the whole file on this node, fetched at most once per node and checked when fetched."""
    if _is_local(url):
        return Path(absolute(join(url, file.name)))
    path = folder / file.name
    if path.exists():  # it appears at once, and only when it is right
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{file.name}.lock"):
        if not path.exists():
            arriving = folder / f"{file.name}.arriving"
            storage.download(join(url, file.name), arriving)
            _verify(arriving, file, join(url, file.name))
            arriving.rename(path)
    return path


def _verify(path: Path, file: File, url: str) -> None:
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        path.unlink()
        raise DataError(Problem(url, "its checksum is wrong", "delete the folder of these prepared data and run again"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this node at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
