"""Source objects to token shards, once per digest: read, parse, encode, mark, split, write.

The work is cut into units, which depend on the objects alone; each leaves its own files, its summary last, so that a
second run goes on from the units that are done. What comes out is the same whoever did which unit, and when.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from shoal.data.cache import scratch
from shoal.data.progress import Progress, Told
from shoal.data.publish import publish
from shoal.data.shards import Unit, UnitWriter, finished
from shoal.data.summary import REJECTED, TRAIN, VALIDATION, PreparedSummary, UnitSummary, summary
from shoal.errors import DataError, ModelError, Problem, StorageError
from shoal.plan.types import DataPlan, ModelPlan, Plan, SourceObject
from shoal.rows.chat import TrainOn
from shoal.rows.formats import REMEDIES, Rejected, fingerprint, parse
from shoal.rows.sources import Row, parts, rows
from shoal.rows.template import Encoder
from shoal.spec.cluster import S3Spec
from shoal.spec.job import Format
from shoal.storage import Fault, Storage, absolute, join
from shoal.storage.local import answering

__all__ = ["PreparedSummary", "Recipe", "Task", "prepare", "prepare_unit", "summary", "tasks"]

BATCH_ROWS = 256
"""Rows tokenised in one call."""
BATCH_CHARACTERS = 2**22
"""Fewer rows are tokenised in one call when they are as long as this together."""


@dataclass(frozen=True)
class Recipe:
    """What all units of one preparation share. Picklable and hashable: plans as JSON."""

    model: str
    """A ModelPlan."""
    s3: str
    """An S3Spec."""
    url: str
    """Folder of the prepared data."""
    cache: str
    sequence_length: int
    overlength: str
    train_on: TrainOn
    chat_template: str | None
    validation_fraction: float


@dataclass(frozen=True)
class Task:
    """One unit of work. Picklable."""

    unit: Unit
    format: Format
    columns: tuple[tuple[str, str], ...]
    held_out: bool
    """All of it is for validation."""


@dataclass(frozen=True)
class Passed:
    """How far a unit is, and what the store did wrong meanwhile."""

    unit: int
    rows: int
    bytes: int
    faults: tuple[Fault, ...] = ()


Work = Callable[[Task], Iterator[Passed | UnitSummary]]
Run = Callable[[Work, Iterable[Task]], Iterable[Passed | UnitSummary]]
"""Does each task somewhere and gives what comes of them, in whatever order."""


def here(work: Work, todo: Iterable[Task]) -> Iterator[Passed | UnitSummary]:
    """One task after another, in this process."""
    return chain.from_iterable(map(work, todo))


def prepare(plan: Plan, storage: Storage, run: Run = here, report: Told | None = None) -> PreparedSummary:
    """Makes sure that the plan's data lie prepared at plan.storage.prepared; `run` does the units of work.

    Raises DataError when no sample is left or more rows are rejected than data.max_rejected allows, ModelError when
    the model does not know every token.
    """
    url, data = plan.storage.prepared, plan.trajectory.data
    found = summary(storage, url)
    if found is None:
        found = _prepare(plan, storage, run, report or (lambda event: None))
    if problems := refusals(found, data, url):
        raise DataError(*problems)
    if found.highest_token >= (vocab_size := plan.trajectory.model.vocab_size):
        what = f"its tokenizer writes token {found.highest_token}, the model knows those below {vocab_size}"
        raise ModelError(Problem("model.base", what, "use the tokenizer that belongs to the model"))
    return found


def _prepare(plan: Plan, storage: Storage, run: Run, report: Told) -> PreparedSummary:
    url, data = plan.storage.prepared, plan.trajectory.data
    every = tasks(data)
    done = finished(storage, url, [task.unit for task in every])
    progress = Progress(report, {task.unit.number: task.unit.bytes for task in every})
    for unit in done.values():
        progress.found(unit.unit, unit.rows)
    todo = [task for task in every if task.unit.number not in done]
    heard = storage.on_fault or (lambda fault: None)
    for one in run(partial(prepare_unit, _recipe(plan, storage.s3)), todo):
        if isinstance(one, Passed):
            progress.passed(one.unit, one.rows, one.bytes)
            for fault in one.faults:
                heard(fault)
            continue
        done[one.unit] = one
        progress.passed(one.unit, one.rows, None)
        if one.rows == 0 and one.parts == 1:
            progress.note(f"{one.url} holds no rows")
    progress.tell()
    cache = Path(absolute(plan.storage.cache))
    with answering(str(cache)), scratch(cache, "preparing") as folder:
        units = [done[task.unit.number] for task in every]
        return publish(storage, url, units, data.digest, data.formats, data.sequence_length, folder)


def refusals(found: PreparedSummary, data: DataPlan, url: str) -> list[Problem]:
    """Why these data cannot be trained on; empty when they can."""
    share = found.rejected_rows / max(found.rows, 1)
    if found.rows == 0:
        objects = ", ".join(dict.fromkeys(unit.url for unit in found.units))
        return [Problem("data.train", f"no rows in {objects:.300}", "check the location and the files")]
    if found.samples and share <= data.max_rejected:
        return []
    listed = f"all are listed in {join(url, REJECTED)}"
    if share > data.max_rejected:
        what = f"{found.rejected_rows:,} of {found.rows:,} rows ({share:.1%}) are rejected, "
        head = Problem(
            "data.train",
            f"{what}data.max_rejected allows {data.max_rejected:.1%}",
            f"{listed}; mend them, or raise data.max_rejected",
        )
    else:
        head = Problem("data.train", "no sample is left to train on", f"add rows or hold out fewer; {listed}")
    causes = [
        Problem(cause, f"{count:,} {'row' if count == 1 else 'rows'}", REMEDIES[cause])
        for cause, count in found.rejected.items()
    ]
    examples = [Problem(f"{one.object}:{one.line}", f"{one.cause}: {one.detail}") for one in found.examples[:3]]
    return [head, *causes, *examples]


def tasks(data: DataPlan) -> list[Task]:
    """The units of work: every source's every object, in parts; they depend on the plan alone."""
    found: list[Task] = []
    for number, source in enumerate((*data.train, *data.validation)):
        columns, held_out = tuple(sorted(source.columns.items())), number >= len(data.train)
        for one in source.objects:
            count = parts(one)
            found += [
                Task(Unit(len(found) + part, number, one, part, count), source.format, columns, held_out)
                for part in range(count)
            ]
    return found


def prepare_unit(recipe: Recipe, task: Task) -> Iterator[Passed | UnitSummary]:
    """Prepares one unit and uploads its files; the same task always writes the same bytes, and gives as many items.

    Raises DataError when the object is no longer the one that the plan was made for.
    """
    source = task.unit.object
    storage = _Metered(S3Spec.model_validate_json(recipe.s3), source)
    same_object(storage, source)
    encoder, vocab_size = _encoder(replace(recipe, url="", validation_fraction=0.0))
    cache = Path(absolute(recipe.cache))
    with (
        answering(str(cache)),
        scratch(cache, "preparing") as folder,
        UnitWriter(folder, task.unit, vocab_size) as writer,
    ):
        found, read = rows(storage, source, task.unit.part, task.unit.parts), 0
        try:
            for batch in batches(found):
                _write(batch, encoder, writer, task, recipe.validation_fraction)
                read += len(batch)
                yield storage.passed(task.unit, read)
        except (StorageError, DataError):
            same_object(storage, source)  # when it was replaced while it was read, that is what is told
            raise
        same_object(storage, source)
        done = writer.upload(storage, recipe.url, found.lines)
        yield storage.passed(task.unit, read)
        yield done


def batches(found: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    """The rows, some at a time: BATCH_ROWS, or fewer long ones."""
    batch: list[tuple[int, Row]] = []
    size = 0
    for line, row in found:
        batch.append((line, row))
        size += characters(row)
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def characters(value: object) -> int:
    """How much text a row holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list) else 1


def same_object(storage: Storage, source: SourceObject) -> None:
    """The digest under which the rows are kept stands for what the plan saw, and for nothing that came later."""
    found = storage.info(source.url)
    if (found.size, found.etag) != (source.size, source.etag):
        raise DataError(Problem(source.url, "was replaced since the plan was made", "run the job again"))


def _write(batch: list[tuple[int, Row]], encoder: Encoder, writer: UnitWriter, task: Task, fraction: float) -> None:
    columns = dict(task.columns)
    parsed = [row if isinstance(row, Rejected) else parse(row, task.format, columns) for _, row in batch]
    encoded = iter(encoder.encode([sample for sample in parsed if not isinstance(sample, Rejected)]))
    for (line, row), sample in zip(batch, parsed, strict=True):
        pieces = sample if isinstance(sample, Rejected) else next(encoded)
        if isinstance(sample, Rejected) or isinstance(pieces, Rejected):
            assert isinstance(pieces, Rejected)
            writer.reject(line, None if isinstance(row, Rejected) else row, pieces)
            continue
        held_out = task.held_out or fingerprint(sample) < fraction * 2**64
        writer.add(line, pieces, VALIDATION if held_out else TRAIN)


def _recipe(plan: Plan, s3: S3Spec) -> Recipe:
    data = plan.trajectory.data
    return Recipe(
        model=plan.trajectory.model.model_dump_json(),
        s3=s3.model_dump_json(),
        url=plan.storage.prepared,
        cache=plan.storage.cache,
        sequence_length=data.sequence_length,
        overlength=data.overlength,
        train_on=data.train_on,
        chat_template=data.chat_template,
        validation_fraction=data.validation_fraction,
    )


@lru_cache(maxsize=1)
def _encoder(recipe: Recipe) -> tuple[Encoder, int]:
    """An encoder and its tokenizer's size, once per process."""
    from shoal.models import load_tokenizer, tokenizer_folder

    model, s3 = ModelPlan.model_validate_json(recipe.model), S3Spec.model_validate_json(recipe.s3)
    folder = tokenizer_folder(model, Storage(s3), Path(absolute(recipe.cache)))
    tokenizer = load_tokenizer(folder, model.trust_remote_code)
    encoder = Encoder(tokenizer, recipe.sequence_length, recipe.overlength, recipe.train_on, recipe.chat_template)
    return encoder, len(tokenizer)


class _Metered(Storage):
    """Knows how far the one object that is read through it has been read, and reads no other in its place."""

    def __init__(self, s3: S3Spec, source: SourceObject):
        self._faults: list[Fault] = []
        super().__init__(s3, self._faults.append)
        self._etag = source.etag
        self._ranges = 0
        self._stream: BinaryIO | None = None

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str | None = None) -> list[bytes]:
        found = super().read_ranges(url, ranges, etag=etag or self._etag)
        self._ranges += sum(map(len, found))
        return found

    def open(self, url: str, *, etag: str | None = None) -> BinaryIO:
        self._stream = super().open(url, etag=etag or self._etag)
        return self._stream

    def passed(self, unit: Unit, rows: int) -> Passed:
        """The faults are those since the last call."""
        read = self._ranges if self._stream is None or self._stream.closed else self._stream.tell()
        faults = tuple(self._faults)
        del self._faults[: len(faults)]
        return Passed(unit.number, rows, min(read, unit.bytes), faults)
