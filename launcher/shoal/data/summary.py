"""What a folder of prepared data holds: its `meta.json`, its columns, and the names of its files."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from shoal.errors import DataError, Problem
from shoal.spec.base import Frozen
from shoal.storage import Storage, join

VERSION = 2
"""Of the preparation: part of the data's digest, so raise it whenever the same rows would give other files."""
META = "meta.json"
"""Written last: the data are prepared when it exists."""
REJECTED = "rejected.jsonl"
TRAIN, VALIDATION = 0, 1
SPLITS = ("train", "validation")

TokenType = Literal["uint16", "uint32"]

COLUMNS = {
    "unit": np.dtype("<i4"),
    "source": np.dtype("<i2"),
    "row": np.dtype("<i8"),
    "piece": np.dtype("<i4"),
    "offset": np.dtype("<i8"),
    "length": np.dtype("<i4"),
    "targets": np.dtype("<i4"),
    "crc": np.dtype("<u4"),
}
"""What is known of each sample of a split, one file of plain numbers each; see prepared.Index for what they mean."""


def shard_name(unit: int) -> str:
    """A unit's records, end to end."""
    return f"shard-{unit:05d}.bin"


def unit_name(unit: int) -> str:
    """A unit's summary, written when its other files are there: the unit is done when it exists."""
    return f"unit-{unit:05d}.json"


def column_name(split: int, column: str) -> str:
    return f"{SPLITS[split]}.{column}.bin"


def load_column(folder: Path, split: int, column: str) -> np.ndarray:
    """A column out of a local folder, mapped rather than read."""
    path = folder / column_name(split, column)
    # an empty file cannot be mapped
    return np.memmap(path, COLUMNS[column], "r") if path.stat().st_size else np.empty(0, COLUMNS[column])


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
    """What one unit of work found: one source object, or one part of a large one."""

    unit: int
    source: int
    """Number of its SourcePlan: those to train on first, then those for validation."""
    url: str
    etag: str
    part: int
    parts: int
    """Of this object."""
    lines: int
    """Physical lines of the part, blank ones included: what later parts of the object count on from."""
    rows: int
    """Rows read, rejected ones included; blank lines are no rows."""
    rejected: dict[str, int]
    """Rejected rows by cause."""
    examples: tuple[Example, ...]
    """The first rejected rows, by lines of the part. Left out of the summary of all units, which has its own."""
    dtype: TokenType
    highest_token: int
    """-1 without a sample."""
    samples: tuple[int, int]
    """To train on, and held out."""
    shard: File
    index: File
    """One shards.ENTRY per sample, by lines of the part."""
    apart: File | None
    """The rejected rows, as JSON lines; None without any."""


class PreparedSummary(Frozen):
    """`meta.json`. Lines and rows count from the beginning of their object."""

    version: int = VERSION
    digest: str
    format: str
    sequence_length: int
    dtype: TokenType
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
    """Rows of sequence_length that packing makes of the samples to train on, each taken once."""
    rejected: dict[str, int]
    """Rejected rows by cause."""
    examples: tuple[Example, ...]
    """The first rejected rows."""
    units: tuple[UnitSummary, ...]
    columns: tuple[File, ...]

    @property
    def rejected_rows(self) -> int:
        return sum(self.rejected.values())

    @property
    def shard_bytes(self) -> int:
        return sum(unit.shard.size for unit in self.units)

    @property
    def column_bytes(self) -> int:
        return sum(column.size for column in self.columns)


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
