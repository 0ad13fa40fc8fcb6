"""Writes the files of prepared data: one unit at a time, then the index and the summary over all."""

import hashlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from shoal.data.packing import pack
from shoal.data.summary import (
    INDEX,
    META,
    REJECTED,
    TRAIN,
    VALIDATION,
    File,
    Index,
    PreparedSummary,
    UnitSummary,
)  # fmt: skip
from shoal.data.template import Encoded
from shoal.storage import Storage, join

EXAMPLES = 10
"""Rejected rows that a summary keeps."""


class UnitWriter:
    """Collects one unit's tokens in local files; memory holds the index alone."""

    def __init__(self, folder: Path, unit: int, vocab_size: int):
        """`vocab_size`: of the tokenizer, which decides how many bytes a token takes."""
        self.folder, self.name, self.unit = folder, f"shard-{unit:05d}", unit
        self.dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 2**16 else "uint32"
        self.highest_token = -1
        self._dtype = np.dtype(self.dtype).newbyteorder("<")
        self._input_ids = (folder / f"{self.name}.input_ids.bin").open("wb")
        self._loss_mask = (folder / f"{self.name}.loss_mask.bin").open("wb")
        self._columns: list[list[int]] = [[] for _ in Index.DTYPES]
        self._offset = 0

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._input_ids.close()
        self._loss_mask.close()

    def add(self, row: int, pieces: list[Encoded], split: int) -> None:
        """One accepted row: usually one piece, several of a long text."""
        for number, piece in enumerate(pieces):
            length = len(piece.input_ids)
            self.highest_token = max(self.highest_token, int(piece.input_ids.max()))
            self._input_ids.write(piece.input_ids.astype(self._dtype).tobytes())
            self._loss_mask.write(piece.loss_mask.astype(np.uint8).tobytes())
            entry = (
                self.unit, row, number if len(pieces) > 1 else -1, self._offset, length,
                int(piece.loss_mask[1:].sum()), split,
            )  # fmt: skip
            for column, value in zip(self._columns, entry, strict=True):
                column.append(value)
            self._offset += length

    def upload(self, storage: Storage, url: str) -> tuple[File, File, File]:
        """Writes the unit's files to `url` and gives (input_ids, loss_mask, index)."""
        self._input_ids.close()
        self._loss_mask.close()
        index = self.folder / f"{self.name}.index.npz"
        index.write_bytes(Index.of(self._columns).dump())
        return tuple(_upload(storage, path, url) for path in (self._path("input_ids"), self._path("loss_mask"), index))  # type: ignore[return-value]

    def _path(self, column: str) -> Path:
        return self.folder / f"{self.name}.{column}.bin"


def _upload(storage: Storage, path: Path, url: str) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    storage.upload(path, join(url, path.name))
    return File(name=path.name, size=path.stat().st_size, sha256=digest)


def rejected_name(unit: int) -> str:
    """Where a unit's rejected rows lie until all units are done."""
    return f"shard-{unit:05d}.{REJECTED}"


def publish(
    storage: Storage, url: str, units: list[UnitSummary], digest: str, format: str, sequence_length: int
) -> PreparedSummary:
    """Writes the index over all units and then `meta.json`; of two processes that do so at once, both succeed."""
    index = Index.concatenate([Index.load(storage.read(join(url, unit.index.name))) for unit in units])
    data = index.dump()
    storage.write(join(url, INDEX), data)
    train, validation = index.select(index.split == TRAIN), index.select(index.split == VALIDATION)
    rejected: dict[str, int] = {}
    for unit in units:
        for cause, count in unit.rejected.items():
            rejected[cause] = rejected.get(cause, 0) + count
    found = PreparedSummary(
        digest=digest,
        format=format,
        sequence_length=sequence_length,
        dtype=units[0].dtype,
        highest_token=max(unit.highest_token for unit in units),
        rows=sum(unit.rows for unit in units),
        samples=len(train.length),
        validation_samples=len(validation.length),
        tokens=int(train.length.sum(dtype=np.int64)),
        validation_tokens=int(validation.length.sum(dtype=np.int64)),
        targets=int(train.targets.sum(dtype=np.int64)),
        validation_targets=int(validation.targets.sum(dtype=np.int64)),
        packed_rows=len(pack(train.length, np.arange(len(train.length)), sequence_length)),
        rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        examples=tuple(example for unit in units for example in unit.examples)[:EXAMPLES],
        units=tuple(units),
        index=File(name=INDEX, size=len(data), sha256=hashlib.sha256(data).hexdigest()),
    )
    # it exists when another process prepared the same at the same time: the shards are a function of the digest
    with suppress(FileExistsError):
        storage.write(join(url, META), found.model_dump_json(indent=1).encode(), if_absent=True)
    return found
