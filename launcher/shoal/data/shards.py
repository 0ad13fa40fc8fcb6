"""Writes one unit of prepared data: a shard of records, their index, the rejected rows; and tells which units are done."""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import ValidationError

from shoal.data.records import checksum, to_record
from shoal.data.summary import SPLITS, Example, File, TokenType, UnitSummary, shard_name, unit_name
from shoal.plan.types import SourceObject
from shoal.rows.formats import Rejected
from shoal.rows.template import Encoded
from shoal.storage import Storage, join

EXAMPLES = 10
"""Rejected rows that a summary keeps."""
REQUESTS = 16
"""Small objects that are read side by side."""

ENTRY = np.dtype(
    [("row", "<i8"), ("piece", "<i4"), ("length", "<i4"), ("targets", "<i4"), ("crc", "<u4"), ("split", "u1")]
)
"""A unit's index: one of these per record, in the shard's order. `row` counts lines from 1 within the unit's part."""
_PACK = struct.Struct("<qiiiIB").pack


@dataclass(frozen=True)
class Unit:
    """What one unit of work reads: a source object, or one part of a large one."""

    number: int
    source: int
    """Number of its SourcePlan."""
    object: SourceObject
    part: int = 0
    parts: int = 1

    @property
    def bytes(self) -> int:
        """About how much it reads."""
        return self.object.size // self.parts


class UnitWriter:
    """Collects one unit in local files; memory holds nothing that grows with it."""

    def __init__(self, folder: Path, unit: Unit, vocab_size: int):
        """`vocab_size`: of the tokenizer, which decides how many bytes a token takes."""
        self.unit = unit
        self.dtype: TokenType = "uint16" if vocab_size <= 2**16 else "uint32"
        self._dtype = np.dtype(self.dtype).newbyteorder("<")
        self._shard = (folder / shard_name(unit.number)).open("wb")
        self._index = (folder / f"shard-{unit.number:05d}.index").open("wb")
        self._apart = (folder / f"shard-{unit.number:05d}.rejected.jsonl").open("w")
        self._highest_token = -1
        self._rows = 0
        self._samples = [0] * len(SPLITS)
        self._rejected = Counter[str]()
        self._examples: list[Example] = []

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in (self._shard, self._index, self._apart):
            file.close()

    def add(self, line: int, pieces: list[Encoded], split: int) -> None:
        """One accepted row: usually one piece, several of a long text."""
        self._rows += 1
        self._samples[split] += len(pieces)
        for number, piece in enumerate(pieces):
            record = to_record(piece, self._dtype)
            targets = int(np.count_nonzero(piece.loss_mask[1:]))
            place = number if len(pieces) > 1 else -1
            self._highest_token = max(self._highest_token, int(piece.input_ids.max()))
            self._shard.write(record)
            self._index.write(_PACK(line, place, len(piece.input_ids), targets, checksum(record), split))

    def reject(self, line: int, row: dict[str, Any] | None, why: Rejected) -> None:
        """One row that is set apart; `row` where it could be read as one."""
        self._rows += 1
        self._rejected[why.cause] += 1
        example = Example(cause=why.cause, object=self.unit.object.url, line=line, detail=why.detail)
        if len(self._examples) < EXAMPLES:
            self._examples.append(example)
        self._apart.write(json.dumps({**example.model_dump(), "row": row}, default=str) + "\n")

    def upload(self, storage: Storage, url: str, lines: int) -> UnitSummary:
        """Writes the unit's files to the folder `url`, its summary last. `lines`: of the part, blank ones included."""
        files = [self._shard, self._index, *([self._apart] if self._rejected else [])]
        for file in files:
            file.close()
        shard, index, *apart = [upload(storage, Path(file.name), url) for file in files]
        unit = self.unit
        summary = UnitSummary(
            unit=unit.number,
            source=unit.source,
            url=unit.object.url,
            etag=unit.object.etag,
            part=unit.part,
            parts=unit.parts,
            lines=lines,
            rows=self._rows,
            rejected=dict(sorted(self._rejected.items())),
            examples=tuple(self._examples),
            dtype=self.dtype,
            highest_token=self._highest_token,
            samples=(self._samples[0], self._samples[1]),
            shard=shard,
            index=index,
            apart=apart[0] if apart else None,
        )
        storage.write(join(url, unit_name(unit.number)), summary.model_dump_json(indent=1).encode())
        return summary


def upload(storage: Storage, path: Path, url: str) -> File:
    """One local file into the folder `url`, under its own name."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    storage.upload(path, join(url, path.name))
    return File(name=path.name, size=path.stat().st_size, sha256=digest)


def finished(storage: Storage, url: str, units: Sequence[Unit]) -> dict[int, UnitSummary]:
    """By number, those of `units` that an earlier preparation completed in the folder `url`, all their files there."""
    sizes = {one.url.rpartition("/")[2]: one.size for one in storage.list(join(url, ""))}
    begun = [unit for unit in units if unit_name(unit.number) in sizes]
    with ThreadPoolExecutor(REQUESTS) as threads:
        texts = threads.map(lambda unit: storage.read(join(url, unit_name(unit.number))), begun)
        found = zip(begun, _summaries(texts), strict=True)
        return {unit.number: summary for unit, summary in found if summary is not None and _is_of(summary, unit, sizes)}


def _summaries(texts: Iterator[bytes]) -> Iterator[UnitSummary | None]:
    for text in texts:
        try:
            yield UnitSummary.model_validate_json(text)
        except ValidationError:  # of another version, or damaged: the unit is made again
            yield None


def _is_of(summary: UnitSummary, unit: Unit, sizes: dict[str, int]) -> bool:
    made = (summary.unit, summary.source, summary.url, summary.etag, summary.part, summary.parts)
    files = [summary.shard, summary.index, *([summary.apart] if summary.apart else [])]
    wanted = (unit.number, unit.source, unit.object.url, unit.object.etag, unit.part, unit.parts)
    return made == wanted and all(sizes.get(file.name) == file.size for file in files)
