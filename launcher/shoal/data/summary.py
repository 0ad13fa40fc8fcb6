"""What a folder of prepared data holds: its `meta.json`, its index, and the names of its files."""

import io
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from pydantic import ValidationError

from shoal.errors import DataError, Problem
from shoal.spec.base import Frozen
from shoal.storage import Storage, join

VERSION = 1
META = "meta.json"
"""Written last: the data are prepared when it exists."""
INDEX = "index.npz"
REJECTED = "rejected.jsonl"
TRAIN, VALIDATION = 0, 1


class File(Frozen):
    """One file of the folder."""

    name: str
    size: int
    sha256: str


class Example(Frozen):
    """One rejected row."""

    cause: str
    object: str
    line: int
    detail: str


class UnitSummary(Frozen):
    """What one unit of work found: one source object, or one of the equal parts that a large one is read in."""

    unit: int
    url: str
    rows: int
    """Rows read, rejected ones included; blank lines are no rows."""
    rejected: dict[str, int]
    """Rejected rows by cause."""
    examples: tuple[Example, ...]
    """The first rejected rows."""
    dtype: Literal["uint16", "uint32"]
    highest_token: int
    """-1 without a sample."""
    input_ids: File
    loss_mask: File
    index: File


class PreparedSummary(Frozen):
    """`meta.json`."""

    version: int = VERSION
    digest: str
    format: str
    sequence_length: int
    dtype: Literal["uint16", "uint32"]
    """Type of the tokens, little-endian."""
    highest_token: int
    """The model must have more tokens than this."""
    rows: int
    """Rows read from all objects, rejected ones included."""
    samples: int
    """Samples to train on: accepted rows, or the pieces of long texts."""
    validation_samples: int
    tokens: int
    """Tokens of the samples to train on."""
    validation_tokens: int
    targets: int
    """Supervised tokens that are predicted: the first token of a sample never is."""
    validation_targets: int
    packed_rows: int
    """Rows of sequence_length that packing makes of the samples to train on, in every epoch."""
    rejected: dict[str, int]
    """Rejected rows by cause."""
    examples: tuple[Example, ...]
    """The first rejected rows."""
    units: tuple[UnitSummary, ...]
    index: File

    @property
    def rejected_rows(self) -> int:
        return sum(self.rejected.values())


@dataclass(frozen=True)
class Index:
    """Where each sample lies. Every field is an array with one entry per sample."""

    unit: np.ndarray
    """int32: position in PreparedSummary.units."""
    row: np.ndarray
    """int64: line or row of the source object, from 1."""
    piece: np.ndarray
    """int32: piece of the row, from 0; -1 where the row is one sample."""
    offset: np.ndarray
    """int64: first token in the unit's files."""
    length: np.ndarray
    """int32: tokens."""
    targets: np.ndarray
    """int32: supervised tokens that are predicted."""
    split: np.ndarray
    """uint8: TRAIN or VALIDATION."""

    DTYPES = ("<i4", "<i8", "<i4", "<i8", "<i4", "<i4", "u1")

    @classmethod
    def of(cls, columns: list[list[int]] | list[np.ndarray]) -> "Index":
        """From one sequence per field."""
        return cls(*(np.asarray(column, dtype) for column, dtype in zip(columns, cls.DTYPES, strict=True)))

    @classmethod
    def concatenate(cls, parts: list["Index"]) -> "Index":
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def load(cls, data: bytes) -> "Index":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(*(arrays[field.name] for field in fields(cls)))

    def dump(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()

    def select(self, mask: np.ndarray) -> "Index":
        return Index(*(getattr(self, field.name)[mask] for field in fields(self)))


def summary(storage: Storage, url: str) -> PreparedSummary | None:
    """The summary of the prepared data at `url`; None when they are not prepared."""
    meta = join(url, META)
    if not storage.exists(meta):
        return None
    try:
        return PreparedSummary.model_validate_json(storage.read(meta))
    except ValidationError as error:
        fix = "delete the folder; it is prepared again"
        raise DataError(Problem(meta, "is not a summary that this version of Shoal reads", fix)) from error
