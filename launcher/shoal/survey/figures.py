"""What `shoal check` finds in a data set: the document of `--json`, whose names stay as they are."""

from typing import Literal

from shoal.spec.base import Frozen
from shoal.spec.job import Format

VERSION = 1

Split = Literal["train", "validation"]


class Place(Frozen):
    """One row, with the beginning of what it says."""

    object: str
    line: int
    """From 1; in Parquet, Arrow and JSON arrays: the row."""
    text: str = ""

    def __str__(self) -> str:
        return f"{self.object}:{self.line}"


class Pair(Frozen):
    """A row that resembles another."""

    row: Place
    of: Place
    similarity: float
    """1 for an exact copy; else the estimated Jaccard similarity of their words, three by three."""


class SourceFigures(Frozen):
    """One source of the job file."""

    split: Split
    path: str
    format: Format
    weight: float
    objects: int
    bytes: int
    """As stored."""
    rows: int
    accepted: int
    """Rows that parse; encoding may still set some apart."""
    other_formats: dict[str, int]
    """Rows that are of another format than the source's, by their own."""


class Rejection(Frozen):
    """Rows set apart for one cause."""

    cause: str
    rows: int
    remedy: str
    examples: tuple[tuple[Place, str], ...]
    """The first ones, each with what was found."""


class SplitFigures(Frozen):
    """Samples of one split, as encoded."""

    samples: int
    """Accepted rows, or the pieces of long texts."""
    tokens: int
    targets: int
    """Supervised tokens."""
    supervised_share: float
    """targets / tokens"""


class Bar(Frozen):
    """One bar of a histogram: values from `low` up to `high`, both included."""

    low: int
    high: int
    count: int


class Lengths(Frozen):
    """Tokens per sample to train on."""

    min: int
    median: int
    p90: int
    p99: int
    max: int
    mean: float
    histogram: tuple[Bar, ...]
    at_limit: int
    """Samples of exactly sequence_length tokens."""
    truncated: int
    """Those of them that were cut, with data.overlength: truncate (or are just as long)."""
    sequence_length: int


class Packing(Frozen):
    """How full packed rows are."""

    rows: int
    """Rows of sequence_length per pass over the samples."""
    efficiency: float
    """tokens / (rows x sequence_length)"""


class Steps(Frozen):
    """What the job makes of the data."""

    steps_per_epoch: int
    steps: int
    tokens: int
    """Of the whole run."""


class Copies(Frozen):
    """Rows with one content."""

    rows: int
    first: Place


class ExactDuplicates(Frozen):
    """Rows of which an earlier row of the same split is an exact copy."""

    rows: int
    """Without the first of each group: what deduplication takes away."""
    groups: int
    share: float
    """rows / accepted rows"""
    largest: tuple[Copies, ...]


class NearDuplicates(Frozen):
    """Rows to train on that resemble an earlier one, exact copies aside."""

    threshold: float
    compared: int
    """Different contents that were compared."""
    sampled: float
    """Share of the contents that was compared: 1 is all."""
    rows: int
    """Of those compared."""
    share: float
    """rows / compared"""
    examples: tuple[Pair, ...]


class RepeatedAnswer(Frozen):
    """One answer to several prompts."""

    prompts: int
    """Different prompts."""
    rows: int
    example: Place
    """With the answer."""


class Answers(Frozen):
    empty: int
    """Rows rejected for an empty answer."""
    repeated_rows: int
    """Rows whose last answer is also the answer to another prompt."""
    repeated: tuple[RepeatedAnswer, ...]
    """Those with the most prompts."""


class Leakage(Frozen):
    """Held-out rows that training sees."""

    held_out: int
    exact: int
    """Held-out rows that are in train as they are."""
    near: int
    """Held-out rows, of those compared, with a near copy in train, exact ones aside."""
    near_compared: int
    prompt: int
    """Held-out rows whose prompt is in train with another answer."""
    examples: tuple[Pair, ...]


class Languages(Frozen):
    """What languages are written, told from a sample of the rows."""

    sampled: int
    prompts: dict[str, int]
    """Rows by the language of their prompts; `und` where it could not be told."""
    answers: dict[str, int]
    differ: int
    """Rows whose prompt and answer are, both surely, in different languages."""
    examples: tuple[tuple[Place, str, str], ...]
    """Such rows, with both languages."""


class Ids(Frozen):
    """Rows that carry an `id`."""

    rows: int
    duplicates: int
    """Rows whose id an earlier row of the same split has."""
    examples: tuple[Pair, ...]


class Advice(Frozen):
    """What a person should look at, and what to do about it."""

    code: str
    what: str
    fix: str


class Survey(Frozen):
    """One data set."""

    version: int = VERSION
    shoal: str
    digest: str
    """Of the prepared data."""
    prepared: str | None
    """Where they lie; None where the rows cannot be encoded yet."""
    note: str = ""
    """What was left out, and why."""
    rows: int
    accepted: int
    sources: tuple[SourceFigures, ...]
    rejected: tuple[Rejection, ...]
    train: SplitFigures | None
    validation: SplitFigures | None
    turns: dict[int, int]
    """Rows by their number of answers; running text has none."""
    lengths: Lengths | None
    packing: Packing | None
    exact_duplicates: ExactDuplicates
    near_duplicates: NearDuplicates
    answers: Answers
    leakage: Leakage | None
    """None when nothing is held out."""
    languages: Languages
    ids: Ids | None
    """None when no row has one."""
    warnings: tuple[Advice, ...] = ()
    steps: Steps | None = None
    """None where the rows cannot be encoded."""
