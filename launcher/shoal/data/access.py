"""Samples out of shards: from whole files on this node where they are, else by ranges from the store; each one checked."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from shoal.data.cache import Shelf
from shoal.data.records import Records, checksum, record_bytes
from shoal.errors import DataError, Problem
from shoal.rows.template import Encoded
from shoal.storage import Storage, join

GAP_BYTES = 64 * 2**10
"""Ranges closer than this are read as one: a request costs more than so many bytes."""
REQUESTS, REQUESTS_MEANWHILE = 32, 8
"""Shards whose ranges are read side by side; and while whole ones are on their way, for which more would only stand in
the way."""
OPEN_FILES = 256
ON_NODE, ON_WAY = "on this node", "as they came from the store"
TRIES = 3
"""How often a damaged record is read before it is given up."""

Tell = Callable[[str, str, int], None]
"""Told (url, what, attempt) when a record is damaged."""


@dataclass(frozen=True)
class Wanted:
    """Records to read, one entry each."""

    units: list[int]
    offsets: list[int]
    sizes: list[int]
    """Bytes."""
    lengths: np.ndarray
    """Tokens."""
    checksums: list[int]


@dataclass
class _Ranges:
    """What is on its way from one shard: blocks of bytes, and which of the wanted records they hold."""

    places: list[int]
    begins: np.ndarray
    """int64: where each block begins, sorted."""
    blocks: "Future[list[bytes]]"


@dataclass(frozen=True)
class Request:
    """Samples that are being read; `Shards.take` waits for them."""

    wanted: Wanted
    local: list[int]
    """Places in `wanted` of records whose shard is on this node."""
    ranges: list[_Ranges] = field(default_factory=list)

    def is_ready(self) -> bool:
        return all(one.blocks.done() for one in self.ranges)


class Shards:
    """The shards of one folder of prepared data, for any number of threads."""

    def __init__(
        self,
        storage: Storage,
        url: str,
        names: list[str],
        dtype: np.dtype,
        path: Callable[[str], str | None],
        shelf: Shelf | None,
        tell: Tell,
    ):
        """`names`: of the shards. `path`: where a shard lies on this node, None while it does not; `shelf`: whose
        damaged files may be dropped, since the store has them too."""
        self._storage, self._url, self._names, self._dtype = storage, url, names, dtype
        self._path, self._shelf, self._tell = path, shelf, tell
        self._opened: dict[int, int] = {}
        self._opening = threading.Lock()
        requests = REQUESTS_MEANWHILE if shelf is not None and shelf.keeps_whole else REQUESTS
        self._threads = ThreadPoolExecutor(requests, thread_name_prefix="ranges")

    def __del__(self) -> None:
        for file in self._opened.values():
            os.close(file)

    def request(self, units: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, checksums: np.ndarray) -> Request:
        """Begins to read records; all arrays have one entry per record. Never waits and never fails: `take` does."""
        sizes = record_bytes(lengths, self._dtype)
        wanted = Wanted(units.tolist(), offsets.tolist(), sizes.tolist(), lengths, checksums.tolist())
        asked: list[int] = np.unique(units).tolist()
        far = [unit for unit in asked if unit not in self._opened and self._path(self._names[unit]) is None]
        if not far:
            return Request(wanted, list(range(len(units))))
        request = Request(wanted, np.flatnonzero(~np.isin(units, far)).tolist())
        for number in far:
            places = np.flatnonzero(units == number)
            ranges = coalesce(offsets[places], offsets[places] + sizes[places], GAP_BYTES)
            blocks = self._threads.submit(self._storage.read_ranges, join(self._url, self._names[number]), ranges)
            begins = np.array([begin for begin, _ in ranges])
            request.ranges.append(_Ranges(places.tolist(), begins, blocks))
        return request

    def take(self, request: Request) -> list[Encoded]:
        """The samples, in the order asked for.

        Raises StorageError when the store refuses, DataError for a record that is damaged however often it is read.
        """
        wanted, records = request.wanted, Records(request.wanted.lengths, self._dtype)
        if request.local:
            self._read_local(wanted, request.local, records)
        for one in request.ranges:
            blocks = [memoryview(block) for block in one.blocks.result()]
            offsets = [wanted.offsets[place] for place in one.places]
            holders = np.searchsorted(one.begins, offsets, side="right") - 1
            for place, holder in zip(one.places, holders.tolist(), strict=True):
                start = wanted.offsets[place] - int(one.begins[holder])
                records.put(place, blocks[holder][start : start + wanted.sizes[place]])
        if damaged := records.unsound(wanted.checksums):
            local = frozenset(request.local)
            for place in damaged:
                records.put(place, self._again(wanted, place, ON_NODE if place in local else ON_WAY))
        return records.samples()

    def _read_local(self, wanted: Wanted, places: Sequence[int], records: Records) -> None:
        opened = self._opened
        with self._opening:  # a file must not be closed while another thread reads from it
            for place in places:
                unit = wanted.units[place]
                # what is gone since, or cut short, is found by its checksum; so is what a failing disk does not give
                with suppress(OSError):
                    file = opened[unit] if unit in opened else self._open(unit)
                    os.preadv(file, records.room(place), wanted.offsets[place])

    def _open(self, unit: int) -> int:
        path = self._path(self._names[unit])
        if path is None:
            raise FileNotFoundError(self._names[unit])
        if len(self._opened) >= OPEN_FILES:
            self._close(next(iter(self._opened)))
        self._opened[unit] = os.open(path, os.O_RDONLY)
        return self._opened[unit]

    def _close(self, unit: int) -> None:
        if unit in self._opened:
            os.close(self._opened.pop(unit))

    def _again(self, wanted: Wanted, place: int, where: str) -> bytes:
        """A record that was damaged, from the store; a damaged file of this node's is not used again."""
        unit, start = wanted.units[place], wanted.offsets[place]
        stop = start + wanted.sizes[place]
        name = self._names[unit]
        url = join(self._url, name)
        if self._shelf is not None and where == ON_NODE:
            with self._opening:
                self._close(unit)
            self._shelf.drop(name)
        for attempt in range(1, TRIES + 1):
            self._tell(url, f"bytes {start} to {stop} are damaged {where}", attempt)
            (record,) = self._storage.read_ranges(url, [(start, stop)])
            if checksum(record) == wanted.checksums[place]:
                return record
            where = ON_WAY
        what = f"bytes {start} to {stop} are damaged: their checksum is wrong however often they are read"
        raise DataError(Problem(url, what, "delete the folder of these prepared data and run again"))


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
