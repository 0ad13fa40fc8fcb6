"""What the data are: the objects with their etags, the format of the first rows, and estimates of rows and tokens."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from shoal.data.summary import VERSION
from shoal.errors import DataError, Problem, ShoalError, StorageError
from shoal.facts.files import digest
from shoal.facts.types import SourceFacts
from shoal.plan.types import SourceObject
from shoal.rows.formats import (
    REMEDIES,
    Completion,
    Conversation,
    Preference,
    Rejected,
    Sample,
    Text,
    check_columns,
    detect,
    parse,
)
from shoal.rows.sources import SUFFIXES, Row, is_readable
from shoal.rows.sources import rows as read_rows
from shoal.spec.job import DataSpec, Format, SourceSpec
from shoal.storage import ObjectInfo, Storage
from shoal.storage.objects import MAGIC

SAVED = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
"""What `datasets` writes beside the rows of a saved data set."""
HEADS = 4
"""Objects whose first rows are read."""
EXAMPLES = 3
"""Rejected rows that are shown."""
HEAD_BYTES = 256 << 10
"""Bytes read of each of them, as stored: enough that reading ahead does not spoil the estimate."""
PARQUET_ROWS = 100
"""Rows read of a Parquet object, which knows its number of rows."""
CHARACTERS_PER_TOKEN = 4
TURN_TOKENS = 5
"""What a chat template adds to a message."""
TEMPLATE_TOKENS = 8
"""What a chat template adds to a conversation besides."""


@dataclass(frozen=True)
class _Head:
    """The beginning of one object."""

    source: SourceObject
    rows: list[tuple[int, Row]]
    """(line, row)"""
    total: float
    """Rows of the whole object, as far as can be told."""
    exact: bool


@dataclass(frozen=True)
class _Opened:
    """Stands in for a storage when an object is open already, so that the position in it can be asked."""

    stream: BinaryIO

    def open(self, url: str) -> BinaryIO:
        return self.stream


def listed(given: str | SourceSpec | Sequence[str | SourceSpec], field: str) -> list[tuple[str, SourceSpec]]:
    """Every source that a field of the job names, each with its own dotted name."""
    if isinstance(given, str | SourceSpec):
        given, names = [given], [field]
    else:
        names = [f"{field}[{number}]" for number in range(len(given))]
    specs = [SourceSpec(path=one) if isinstance(one, str) else one for one in given]
    return list(zip(names, specs, strict=True))


def locate(pattern: str, where: str, storage: Storage) -> tuple[list[SourceObject], str]:
    """The readable objects of one location, and what to say of the others.

    Raises DataError (StorageError when the store refuses) at the field `where`.
    """
    try:
        return _expand(pattern, storage)
    except ShoalError as error:
        raise type(error)(*(_at(where, problem) for problem in error.problems)) from error


def _expand(pattern: str, storage: Storage) -> tuple[list[SourceObject], str]:
    folder = pattern if pattern.endswith("/") else f"{pattern}/"
    objects = storage.list(pattern)
    if not objects and not MAGIC.intersection(pattern):
        if not storage.exists(folder):
            try:
                storage.info(pattern)
            except StorageError as missing:
                raise DataError(*missing.problems) from missing
        objects = storage.list(folder)
    if not objects:
        fix = "check the name and the pattern; `shoal store ls` lists what is in the object store"
        raise DataError(Problem(pattern, "no object fits", fix))
    _one_split(pattern, objects)
    readable = [one for one in objects if is_readable(one.url) and _name(one) not in SAVED]
    if not readable:
        kinds = ", ".join(SUFFIXES)
        raise DataError(
            Problem(objects[0].url, "is no kind of file Shoal reads", f"use {kinds} (or .gz, .zst of these)")
        )
    others = sum(_name(one) not in SAVED for one in objects) - len(readable)
    note = f"{others} object(s) of other kinds are left out of {pattern}" if others else ""
    return [SourceObject(url=one.url, size=one.size, etag=one.etag) for one in readable], note


def _name(one: ObjectInfo) -> str:
    return one.url.rpartition("/")[2]


def _one_split(pattern: str, objects: Sequence[ObjectInfo]) -> None:
    """Refuses a saved DatasetDict as a whole: its splits are not to be mixed."""
    if any(_name(one) == "dataset_dict.json" for one in objects):
        splits = sorted({one.url.rpartition("/")[0] for one in objects if _name(one) == "state.json"})
        fix = f"name one of them: {', '.join(splits)}"
        raise DataError(Problem(pattern, f"holds {len(splits)} splits of a saved DatasetDict", fix))


def _at(where: str, problem: Problem | str) -> Problem:
    if isinstance(problem, str):
        return Problem(where, problem)
    return Problem(where, f"{problem.where}: {problem.what}", problem.fix)


def source_facts(
    spec: SourceSpec, objects: Sequence[SourceObject], data: DataSpec, where: str, storage: Storage
) -> SourceFacts:
    """Reads the first rows of up to HEADS objects, spread over all. Raises DataError when their format is not known."""
    columns = data.columns if spec.columns is None else spec.columns
    format = data.format if spec.format is None else spec.format
    check_columns(columns, f"{where}.columns" if spec.columns else "data.columns")
    filled = [one for one in objects if one.size]
    step = max(1, len(filled) / HEADS)
    chosen = [filled[int(number * step)] for number in range(min(HEADS, len(filled)))]
    heads = [_head(one, storage) for one in chosen]
    rows = [row for head in heads for _, row in head.rows]
    if not any(isinstance(row, dict) for row in rows):
        raise DataError(*_unreadable(objects, heads, where))
    kind = detect(rows, where, columns) if format == "auto" else format
    samples = [_sample(row, kind, columns) for row in rows]
    tokens = tuple(_tokens(sample) for sample in samples if not isinstance(sample, Rejected))
    if not tokens:
        raise DataError(*_unfit(heads, kind, columns, where))
    read = sum(one.size for one in chosen)
    total = sum(head.total for head in heads) * (sum(one.size for one in filled) / read if read else 0)
    exact = len(chosen) == len(filled) and all(head.exact for head in heads)
    return SourceFacts(spec.path, tuple(objects), kind, columns, spec.weight, round(total), exact, tokens)


def _sample(row: Row, kind: Format, columns: dict[str, str]) -> Sample | Rejected:
    return row if isinstance(row, Rejected) else parse(row, kind, columns)


def _unreadable(objects: Sequence[SourceObject], heads: Sequence[_Head], field: str) -> list[Problem]:
    """What to say when nothing that was read is a row."""
    fix = "put rows there, or name another location"
    if not any(head.rows for head in heads):
        more = f" (and {len(objects) - 1} more)" if len(objects) > 1 else ""
        return [Problem(field, f"{objects[0].url}{more} is empty", fix)]
    seen = sum(len(head.rows) for head in heads)
    what = "the first row cannot be read" if seen == 1 else f"none of the first {seen} rows can be read"
    return [Problem(field, what, REMEDIES["malformed"]), *_examples(heads, lambda row: row)]


def _unfit(heads: Sequence[_Head], kind: Format, columns: dict[str, str], field: str) -> list[Problem]:
    """What to say when there are rows and none is a sample."""

    def read(row: Row) -> Sample | Rejected:
        return _sample(row, kind, columns)

    seen = sum(len(head.rows) for head in heads)
    causes = Counter(one.cause for head in heads for _, row in head.rows if isinstance(one := read(row), Rejected))
    what = "the first row does not read" if seen == 1 else f"none of the first {seen} rows reads"
    fix = REMEDIES[causes.most_common(1)[0][0]]
    return [Problem(field, f"{what} as {kind}", fix), *_examples(heads, read)]


def _examples(heads: Sequence[_Head], read: Callable[[Row], object]) -> list[Problem]:
    """The first rejected rows, each with its object and line."""
    found: list[Problem] = []
    for head in heads:
        for line, row in head.rows:
            one = read(row)
            if isinstance(one, Rejected) and len(found) < EXAMPLES:
                found.append(Problem(f"{head.source.url}:{line}", f"{one.cause}: {one.detail}"))
    return found


def _head(source: SourceObject, storage: Storage) -> _Head:
    """The first rows, and from the bytes that they took how many the object has."""
    if source.url.lower().endswith(".parquet"):
        return _parquet_head(source, storage)
    rows: list[tuple[int, Row]] = []
    with storage.open(source.url) as stream:
        position = 0
        for line, row in read_rows(cast(Storage, _Opened(stream)), source):
            # Reading runs ahead of the rows in blocks: where a new block begins, the rows so far fill the ones before.
            if stream.tell() > position >= HEAD_BYTES:
                return _Head(source, rows, len(rows) * source.size / position, exact=False)
            position = stream.tell()
            rows.append((line, row))
    return _Head(source, rows, len(rows), exact=True)


def _parquet_head(source: SourceObject, storage: Storage) -> _Head:
    import pyarrow
    from pyarrow import parquet

    with storage.open(source.url) as stream:
        try:
            file = parquet.ParquetFile(stream)
            batch = next(file.iter_batches(batch_size=PARQUET_ROWS), None)
        except pyarrow.ArrowException as error:
            what = f"cannot be read as Parquet ({' '.join(str(error).split()):.120})"
            raise DataError(Problem(source.url, what, "write it again")) from error
        rows = list(enumerate(batch.to_pylist(), 1)) if batch else []
        return _Head(source, rows, file.metadata.num_rows, exact=True)


def _tokens(sample: Sample) -> int:
    match sample:
        case Conversation(messages):
            texts = [message.content for message in messages]
        case Completion(prompt, completion):
            texts = [prompt, completion]
        case Preference():
            texts = [message.content for message in (*sample.prompt, *sample.chosen)]
        case Text(text):
            return len(text) // CHARACTERS_PER_TOKEN + 1
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN + TURN_TOKENS * len(texts) + TEMPLATE_TOKENS


def data_digest(
    data: DataSpec,
    train: Sequence[SourceFacts],
    validation: Sequence[SourceFacts],
    chat_template: str | None,
    tokenizer_digest: str,
) -> str:
    """32 hex digits; equal digests mean equal shards. Weights are not in it: they move the order alone."""
    share = data.validation if isinstance(data.validation, float | int) else 0.0
    options = (share, tokenizer_digest, chat_template, data.sequence_length, data.overlength, data.train_on, VERSION)
    return digest([*_identity(train), "validation", *_identity(validation), *options])


def _identity(sources: Sequence[SourceFacts]) -> Iterator[object]:
    for source in sources:
        yield from ("source", source.format, sorted(source.columns.items()))
        yield from (part for one in source.objects for part in (one.url, one.etag, one.size))
