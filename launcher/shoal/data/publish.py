"""Makes one data set of finished units: columns over all samples, all rejected rows in one file, and `meta.json` last.

Everything passes by in the units' order, a few at a time, so memory does not grow with the data; what comes out is a
function of the units alone, however many processes made them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shoal.data.packing import packed_rows
from shoal.data.records import record_bytes
from shoal.data.shards import ENTRY, EXAMPLES, REQUESTS, upload
from shoal.data.summary import (
    COLUMNS,
    META,
    REJECTED,
    SPLITS,
    TRAIN,
    VALIDATION,
    Example,
    PreparedSummary,
    UnitSummary,
    column_name,
    load_column,
)  # fmt: skip
from shoal.errors import DataError, Problem
from shoal.storage import Storage, join

_FROM_ENTRY = ("piece", "length", "targets", "crc")
"""Columns that an index has as they are."""


@dataclass
class _Totals:
    tokens: int = 0
    targets: int = 0


def publish(
    storage: Storage,
    url: str,
    units: Sequence[UnitSummary],
    digest: str,
    format: str,
    sequence_length: int,
    folder: Path,
) -> PreparedSummary:
    """Completes the prepared data at `url`; of two processes that do so at once, both succeed.

    `units`: all of them, in the order of their numbers. `folder`: an empty local one, for files on their way.
    """
    before = lines_before(units)
    train, validation = _write_columns(storage, url, units, before, folder)
    columns = [
        upload(storage, folder / column_name(split, name), url) for split in range(len(SPLITS)) for name in COLUMNS
    ]
    _write_rejected(storage, url, units, before, folder / REJECTED)
    rejected: dict[str, int] = {}
    for unit in units:
        for cause, count in unit.rejected.items():
            rejected[cause] = rejected.get(cause, 0) + count
    lengths = load_column(folder, TRAIN, "length")
    found = PreparedSummary(
        digest=digest,
        format=format,
        sequence_length=sequence_length,
        dtype=units[0].dtype,
        highest_token=max(unit.highest_token for unit in units),
        rows=sum(unit.rows for unit in units),
        samples=sum(unit.samples[TRAIN] for unit in units),
        validation_samples=sum(unit.samples[VALIDATION] for unit in units),
        tokens=train.tokens,
        validation_tokens=validation.tokens,
        targets=train.targets,
        validation_targets=validation.targets,
        packed_rows=packed_rows(lengths, sequence_length),
        rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        examples=_examples(units, before),
        units=tuple(unit.model_copy(update={"examples": ()}) for unit in units),
        columns=tuple(columns),
    )
    # it exists when another process prepared the same at the same time: all files are a function of the digest
    with suppress(FileExistsError):
        storage.write(join(url, META), found.model_dump_json(indent=1).encode(), if_absent=True)
    return found


def lines_before(units: Sequence[UnitSummary]) -> list[int]:
    """Per unit the lines of its object's earlier parts."""
    passed: dict[tuple[int, str], int] = {}
    before = []
    for unit in units:
        key = (unit.source, unit.url)
        before.append(passed.get(key, 0) if unit.part else 0)
        passed[key] = before[-1] + unit.lines
    return before


def _write_columns(
    storage: Storage, url: str, units: Sequence[UnitSummary], before: Sequence[int], folder: Path
) -> tuple[_Totals, _Totals]:
    totals = (_Totals(), _Totals())
    with ExitStack() as stack:
        files: list[dict[str, BinaryIO]] = []
        for split in range(len(SPLITS)):
            opened: dict[str, BinaryIO] = {
                name: stack.enter_context((folder / column_name(split, name)).open("wb")) for name in COLUMNS
            }
            files.append(opened)
        for number, (unit, entries) in enumerate(_indices(storage, url, units)):
            sizes = record_bytes(entries["length"], np.dtype(unit.dtype))
            computed = {"offset": np.cumsum(sizes) - sizes, "row": entries["row"] + before[number]}
            for split, (opened, total) in enumerate(zip(files, totals, strict=True)):
                mine = entries["split"] == split
                count = int(np.count_nonzero(mine))
                columns = {name: entries[name][mine] for name in _FROM_ENTRY}
                columns |= {name: values[mine] for name, values in computed.items()}
                columns |= {"unit": np.full(count, number), "source": np.full(count, unit.source)}
                for name, values in columns.items():
                    opened[name].write(values.astype(COLUMNS[name]).tobytes())
                total.tokens += int(columns["length"].sum(dtype=np.int64))
                total.targets += int(columns["targets"].sum(dtype=np.int64))
    return totals


def _indices(storage: Storage, url: str, units: Sequence[UnitSummary]) -> Iterator[tuple[UnitSummary, np.ndarray]]:
    """Each unit with its ENTRYs, read a few at a time."""

    def read(unit: UnitSummary) -> np.ndarray:
        where = join(url, unit.index.name)
        data = storage.read(where)
        if hashlib.sha256(data).hexdigest() != unit.index.sha256:
            raise DataError(Problem(where, "its checksum is wrong", "delete it and run again: it is made anew"))
        return np.frombuffer(data, ENTRY)

    with ThreadPoolExecutor(REQUESTS) as threads:
        for first in range(0, len(units), REQUESTS):
            some = units[first : first + REQUESTS]
            yield from zip(some, threads.map(read, some), strict=True)


def _examples(units: Sequence[UnitSummary], before: Sequence[int]) -> tuple[Example, ...]:
    found = (
        example.model_copy(update={"line": example.line + lines})
        for unit, lines in zip(units, before, strict=True)
        for example in unit.examples
    )
    return tuple(example for example, _ in zip(found, range(EXAMPLES), strict=False))


def _write_rejected(
    storage: Storage, url: str, units: Sequence[UnitSummary], before: Sequence[int], path: Path
) -> None:
    """One file over all units, in their order, a row in memory at a time."""
    with path.open("wb") as file:
        for unit, lines in zip(units, before, strict=True):
            if unit.apart is None:
                continue
            with storage.open(join(url, unit.apart.name)) as stored:
                for text in stored:
                    if lines:
                        row = json.loads(text)
                        text = json.dumps({**row, "line": row["line"] + lines}).encode() + b"\n"
                    file.write(text)
    storage.upload(path, join(url, REJECTED))
