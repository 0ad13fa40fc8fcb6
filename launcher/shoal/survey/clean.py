"""Writes a cleaned copy of a data set: the rows as they were, in their order, and a record of what left and why.

The folder holds `record.json`, written last, `removed.jsonl`, and the rows as compressed JSON lines: beside these for one
source, in `source-N/` for several. While it is made it holds `making.json`, from which a second run goes on.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError

from shoal import __version__
from shoal.data.cache import scratch
from shoal.data.prepare import Passed, Task, same_object, tasks
from shoal.data.prepared import Prepared
from shoal.data.progress import Told
from shoal.data.summary import REJECTED
from shoal.errors import DataError, Problem
from shoal.plan.types import DataPlan, SourceObject
from shoal.rows.sources import rows as read_rows
from shoal.spec.base import Frozen
from shoal.spec.cluster import S3Spec
from shoal.spec.job import Format
from shoal.storage import Storage, absolute, join
from shoal.storage.local import answering
from shoal.survey import near
from shoal.survey.removals import CAUSES, KEPT, Options, Removals
from shoal.survey.surveyed import Surveyed

VERSION = 1
"""Of the set that is written; raise it whenever the same rows would give another."""
RECORD, MAKING, REMOVED = "record.json", "making.json", "removed.jsonl"
PART = "part-{:05d}.jsonl.zst"


class CleanedSource(Frozen):
    """One source, and where its cleaned rows lie."""

    path: str
    cleaned: str
    """A glob, for data.train."""
    format: Format
    columns: dict[str, str]
    weight: float
    objects: tuple[SourceObject, ...]
    rows: int
    kept: int


class Cleaned(Frozen):
    """`record.json`."""

    version: int = VERSION
    shoal: str
    key: str
    """Of everything that the set follows from: equal keys, equal sets."""
    data: str
    """Digest of the prepared data that said which rows can be learnt from."""
    options: Options
    signatures: dict[str, int]
    """How near copies were told."""
    location: str
    rows: int
    kept: int
    removed: dict[str, int]
    """Rows by cause; all are in removed.jsonl."""
    sources: tuple[CleanedSource, ...]


@dataclass(frozen=True)
class Recipe:
    """What all units of one cleaning share. Picklable."""

    s3: S3Spec
    cache: str
    survey: str
    """Folder of the survey."""


@dataclass(frozen=True)
class Part:
    """One unit of work. Picklable."""

    task: Task
    lines: bytes
    """The lines to keep, by lines of the part: int64, ascending."""
    to: str


Work = Callable[[Part], Iterator[Passed]]
Run = Callable[[Work, Iterable[Part]], Iterable[Passed]]


def key(data: DataPlan, options: Options) -> str:
    """16 hex digits. Options that have no say are left out."""
    chosen = options.model_dump(exclude=set() if options.near or options.drop_leaks else {"threshold"})
    body = [VERSION, data.digest, _signatures(), sorted(chosen.items())]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


def _signatures() -> dict[str, int]:
    return {"permutations": near.PERMUTATIONS, "seed": near.SEED, "shingle_words": near.SHINGLE_WORDS}


def made(storage: Storage, location: str, data: DataPlan, options: Options) -> Cleaned | None:
    """The record of this very set, when it lies there. Raises DataError when something else does."""
    wanted, fix = key(data, options), "name an empty location"
    for one in (*data.train, *data.validation):
        inside = next((item.url for item in one.objects if item.url.startswith(absolute(join(location, "")))), None)
        if inside:
            raise DataError(Problem("--to", f"{location} holds data that are read: {inside}", fix))
    if storage.exists(join(location, RECORD)):
        try:
            found = Cleaned.model_validate_json(storage.read(join(location, RECORD)))
        except ValidationError:
            found = None
        if found is None or found.key != wanted:
            raise DataError(Problem("--to", f"{location} holds a set that was made from other data or options", fix))
        return found
    if storage.exists(join(location, MAKING)):
        if json.loads(storage.read(join(location, MAKING))).get("key") != wanted:
            what = f"{location} holds a set of other data or options that was never finished"
            raise DataError(Problem("--to", what, "delete it, or name an empty location"))
    elif storage.exists(join(location, "")):
        raise DataError(Problem("--to", f"{location} holds other files", fix))
    return None


def clean(
    data: DataPlan,
    rows: Surveyed,
    prepared: Prepared,
    gone: Removals,
    options: Options,
    location: str,
    cache: str,
    run: Run,
    on_event: Told,
) -> Cleaned:
    """Writes the set to `location`, which `made` has found free."""
    storage, wanted = rows.storage, key(data, options)
    storage.write(join(location, MAKING), json.dumps({"key": wanted}).encode())
    work = [task for task in tasks(data) if task.unit.source < len(data.train)]
    recipe = Recipe(storage.s3, cache, rows.url)
    progress = _Progress(on_event, [rows.counts[task.unit.number].rows for task in work])
    for one in run(partial(write_part, recipe), list(_parts(storage, data, rows, gone, location, work))):
        progress.passed(one)
    counts = _write_removed(rows, prepared, gone, location, len(data.train), Path(absolute(cache)))
    sources = tuple(_source(data, rows, gone, location, number) for number in range(len(data.train)))
    record = Cleaned(
        shoal=__version__,
        key=wanted,
        data=data.digest,
        options=options,
        signatures=_signatures(),
        location=location,
        rows=sum(one.rows for one in sources),
        kept=sum(one.kept for one in sources),
        removed=counts,
        sources=sources,
    )
    storage.write(join(location, RECORD), record.model_dump_json(indent=1).encode())
    storage.delete(join(location, MAKING))
    return record


def _folder(location: str, data: DataPlan, source: int) -> str:
    return location if len(data.train) == 1 else join(location, f"source-{source}")


def _source(data: DataPlan, rows: Surveyed, gone: Removals, location: str, number: int) -> CleanedSource:
    source = data.train[number]
    mine = [place for place, unit in enumerate(rows.counts) if unit.source == number]
    kept = sum(int((gone.cause[rows.firsts[place] : rows.firsts[place + 1]] == KEPT).sum()) for place in mine)
    return CleanedSource(
        path=source.path,
        cleaned=join(_folder(location, data, number), "*.jsonl.zst"),
        format=source.format,
        columns=source.columns,
        weight=source.weight,
        objects=source.objects,
        rows=sum(rows.counts[place].rows for place in mine),
        kept=kept,
    )


def _parts(
    storage: Storage, data: DataPlan, rows: Surveyed, gone: Removals, location: str, work: Sequence[Task]
) -> Iterator[Part]:
    """The parts that are not there yet; of units that lose every row there is none."""
    there = {one.url for one in storage.list(absolute(join(location, "")))}
    numbers = Counter[int]()
    for task in work:
        unit = task.unit
        to = join(_folder(location, data, unit.source), PART.format(numbers[unit.source]))
        numbers[unit.source] += 1
        mine = slice(rows.firsts[unit.number], rows.firsts[unit.number + 1])
        lines = rows.rows["line"][mine][gone.cause[mine] == KEPT] - rows.before[unit.number]
        if len(lines) and absolute(to) not in there:
            yield Part(task, lines.astype("<i8").tobytes(), to)


def write_part(recipe: Recipe, part: Part) -> Iterator[Passed]:
    """Writes the rows to keep of one unit; the same part always writes the same bytes."""
    import pyarrow

    storage, unit = Storage(recipe.s3), part.task.unit
    same_object(storage, unit.object)
    keep = iter(np.frombuffer(part.lines, "<i8").tolist())
    cache = Path(absolute(recipe.cache))
    with answering(str(cache)), scratch(cache, "cleaning") as folder:
        path = folder / "part"
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            wanted = next(keep, None)
            for line, row in read_rows(storage, unit.object, unit.part, unit.parts):
                if line == wanted:
                    out.write(_line(cast(dict[str, Any], row)))
                    wanted = next(keep, None)
        assert wanted is None, "a row that was surveyed is gone"
        same_object(storage, unit.object)
        storage.upload(path, part.to)
    yield Passed(unit.number, 0, 0)


def _line(row: dict[str, Any]) -> bytes:
    """One row as JSON; what JSON has no word for, such as a date of a column file, becomes its text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # lone surrogates in a field that nobody reads
        return json.dumps(row, default=str).encode() + b"\n"


def _write_removed(
    rows: Surveyed, prepared: Prepared, gone: Removals, location: str, sources: int, cache: Path
) -> dict[str, int]:
    """removed.jsonl, in the order of the data; rows by cause, most first."""
    counts = Counter[str]()
    merged = heapq.merge(_dropped(rows, gone), _rejected(rows, prepared, sources), key=lambda one: one[0])
    with answering(str(cache)), scratch(cache, "removed") as folder:
        path = folder / REMOVED
        with path.open("w", encoding="utf-8") as file:
            for _, entry in merged:
                counts[entry["cause"]] += 1
                file.write(json.dumps(entry) + "\n")
        rows.storage.upload(path, join(location, REMOVED))
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


Entry = tuple[tuple[int, int], dict[str, Any]]
"""(unit, line), and a line of removed.jsonl."""


def _dropped(rows: Surveyed, gone: Removals) -> Iterator[Entry]:
    for row in np.flatnonzero(gone.cause >= 0).tolist():
        of, line = rows.where(int(gone.of[row]))
        url, mine = rows.where(row)
        entry = {"object": url, "line": mine, "cause": CAUSES[gone.cause[row]], "of": {"object": of, "line": line}}
        unit = int(np.searchsorted(rows.firsts, row, side="right")) - 1
        yield (unit, mine), entry | {"similarity": round(float(gone.similarity[row]), 3)}


def _rejected(rows: Surveyed, prepared: Prepared, sources: int) -> Iterator[Entry]:
    """Rows that preparation set apart, as its own list has them, of the sources to train on."""
    starts: dict[str, list[tuple[int, int]]] = {}
    for place, unit in enumerate(rows.counts):
        if unit.source < sources:
            starts.setdefault(unit.url, []).append((rows.before[place], place))
    with rows.storage.open(join(prepared.url, REJECTED)) as stored:
        for text in stored:
            one = json.loads(text)
            parts = starts.get(one["object"])
            if parts is not None:
                unit = max(place for before, place in parts if before < one["line"])
                kept = {name: one[name] for name in ("object", "line", "cause", "detail")}
                yield (unit, one["line"]), kept


class _Progress:
    """Says how many rows are written."""

    def __init__(self, report: Told, rows: Sequence[int]):
        self._report, self._parts, self._done = report, len(rows), 0

    def passed(self, part: Passed) -> None:
        self._done += 1
        detail = f"{self._done} of {self._parts} parts written"
        self._report({"kind": "phase", "phase": "cleaning", "detail": detail})
