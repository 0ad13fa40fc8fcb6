"""The rows of a whole survey as columns on this node's disk, and which of them are copies of which."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from shoal.data.prepared import Index, Prepared
from shoal.storage import Storage, join
from shoal.survey import near
from shoal.survey.duplicates import copies, twins
from shoal.survey.figures import Place
from shoal.survey.units import ROW, TEXT, Counts, names

BLOCK = 1 << 16
"""Signatures copied at once: 32 MiB."""


@dataclass(frozen=True)
class Alike:
    """For each row that resembles another: int64 rows, float32 similarities (1: an exact copy)."""

    row: np.ndarray
    of: np.ndarray
    similarity: np.ndarray


class Surveyed:
    """All accepted rows, in the order of the data; arrays are mapped from `folder`, which the caller keeps."""

    def __init__(self, storage: Storage, url: str, counts: Sequence[Counts], folder: Path):
        """`counts`: of all units, in their order; `url`: the folder of the survey."""
        self.storage, self.url, self.counts, self.folder = storage, url, counts, folder
        self.rows = np.zeros(0, ROW)
        """ROW[n], lines counted from the beginning of the object."""
        self.places = np.zeros(0, np.int64)
        """int64[m]: rows whose signatures are kept."""
        self.signatures = np.zeros((0, near.PERMUTATIONS), np.uint32)
        """uint32[m, PERMUTATIONS]"""
        self.firsts = np.cumsum([0, *(unit.accepted for unit in counts)])
        """int64[units + 1]: the first row of each unit."""
        self.before = list(_lines_before(counts))
        """Per unit the lines of its object's earlier parts."""
        self._load()

    def _load(self) -> None:
        files = (self.folder / "rows", self.folder / "places", self.folder / "signatures")
        with files[0].open("wb") as rows, files[1].open("wb") as places, files[2].open("wb") as signatures:
            for unit, first, lines in zip(self.counts, self.firsts.tolist(), self.before, strict=False):
                _, mine, signed, _ = names(unit.unit)
                found = np.load(io.BytesIO(self.storage.read(join(self.url, mine))))
                found["line"] += lines
                rows.write(found.tobytes())
                with np.load(io.BytesIO(self.storage.read(join(self.url, signed)))) as arrays:
                    places.write((arrays["places"] + first).tobytes())
                    signatures.write(arrays["signatures"].tobytes())
        if files[0].stat().st_size:
            self.rows = np.memmap(files[0], ROW, "r")
        if files[1].stat().st_size:
            self.places = np.memmap(files[1], np.int64, "r")
            self.signatures = np.memmap(files[2], np.uint32, "r").reshape(-1, near.PERMUTATIONS)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def held_out(self) -> np.ndarray:
        """bool[n]"""
        return np.array(self.rows["held_out"])

    def encoded(self, prepared: Prepared | None) -> np.ndarray:
        """bool[n]: rows that preparation made samples of; all, where nothing is prepared."""
        if prepared is None:
            return np.ones(len(self), np.bool_)
        there = [(unit.url, unit.part) for unit in prepared.summary.units]
        assert there == [(unit.url, unit.part) for unit in self.counts], "prepared and surveyed units differ"
        kept = np.zeros(len(self), np.bool_)
        for number in range(len(self.counts)):
            mine = slice(self.firsts[number], self.firsts[number + 1])
            lines = [_lines_of(index, number) for index in (prepared.train, prepared.validation)]
            kept[mine] = np.isin(self.rows["line"][mine], np.concatenate(lines))
        return kept

    def place(self, row: int, field: str = "prompt") -> Place:
        """Where a row stands, with the beginning of its `prompt` or `answer` (of its words, where it has none)."""
        unit = int(np.searchsorted(self.firsts, row, side="right")) - 1
        url, start = join(self.url, names(self.counts[unit].unit)[3]), (row - int(self.firsts[unit])) * TEXT.itemsize
        (found,) = self.storage.read_ranges(url, [(start, start + TEXT.itemsize)])
        text = np.frombuffer(found, TEXT)[0]
        said = bytes(text[field] or text["answer"]).decode(errors="ignore")
        return Place(object=self.counts[unit].url, line=int(self.rows["line"][row]), text=said)

    def where(self, row: int) -> tuple[str, int]:
        """Object and line."""
        unit = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return self.counts[unit].url, int(self.rows["line"][row])

    def exact(self, among: np.ndarray) -> np.ndarray:
        """int64[n]: for each row of `among` (bool[n]) the first of them with the same content; -1 for firsts and others."""
        chosen = np.flatnonzero(among)
        of = copies(self.rows["content"][chosen])
        whole = np.full(len(self), -1, np.int64)
        whole[chosen] = np.where(of >= 0, chosen[of] if len(chosen) else of, -1)
        return whole

    def near(self, among: np.ndarray, threshold: float) -> tuple[Alike, int]:
        """Rows of `among` (bool[n]) that resemble an earlier one that stays, and how many were compared."""
        chosen, found = self._signed(among, "near")
        of, alike = near.first_kept(near.links(found, threshold), len(chosen))
        gone = np.flatnonzero(of >= 0)
        return Alike(chosen[gone], chosen[of[gone]], alike[gone]), len(chosen)

    def across(self, train: np.ndarray, held: np.ndarray, threshold: float) -> Alike:
        """Pairs (a row of `train`, one of `held`: bool[n]) that resemble each other."""
        chosen, found = self._signed(train | held, "across")
        pairs = near.links(found, threshold, held[chosen])
        return Alike(chosen[pairs.row], chosen[pairs.of], pairs.similarity)

    def same(self, field: str, train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows of `held`, the first row of `train` with the same content, prompt or id)."""
        mine, others = np.flatnonzero(held), np.flatnonzero(train)
        found = twins(self.rows[field][mine], self.rows[field][others])
        hit = found >= 0
        return mine[hit], others[found[hit]]

    def _signed(self, among: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `among` that have signatures, and these."""
        kept = np.flatnonzero(among[self.places])
        chosen = np.asarray(self.places[kept])
        if len(kept) == len(self.places):
            return chosen, self.signatures
        if not len(kept):
            return chosen, np.zeros((0, near.PERMUTATIONS), np.uint32)
        found = np.memmap(self.folder / name, np.uint32, "w+", shape=(len(kept), near.PERMUTATIONS))
        for start in range(0, len(kept), BLOCK):
            block = slice(start, start + BLOCK)
            found[block] = self.signatures[kept[block]]
        return chosen, found


def _lines_before(counts: Sequence[Counts]) -> Iterator[int]:
    passed = 0
    for unit in counts:
        passed = passed if unit.part else 0
        yield passed
        passed += unit.lines


def _lines_of(index: Index, unit: int) -> np.ndarray:
    """A unit's samples lie together, units in their order."""
    return index.row[slice(*np.searchsorted(index.unit, [unit, unit + 1]))]
