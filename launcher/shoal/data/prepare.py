"""Source objects to token shards, once per digest: read, parse, encode, mark, split, write."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from shoal.data.formats import REMEDIES, Rejected, Sample, fingerprint, parse
from shoal.data.shards import EXAMPLES, UnitWriter, publish, rejected_name
from shoal.data.sources import rows
from shoal.data.summary import (
    REJECTED,
    TRAIN,
    VALIDATION,
    Example,
    PreparedSummary,
    UnitSummary,
    summary,
)  # fmt: skip
from shoal.data.template import Encoder
from shoal.errors import DataError, ModelError, Problem
from shoal.plan.types import DataPlan, ModelPlan, Plan, SourceObject
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage, absolute, join
from shoal.storage.local import answering

__all__ = ["PreparedSummary", "Task", "prepare", "prepare_object", "summary"]

BATCH_ROWS = 256
"""Rows tokenised in one call."""
PART_BYTES = 16 * 2**20
"""Larger objects are prepared in parts of about this size."""
MAX_PARTS = 16
COMPRESSED = (".gz", ".zst", ".parquet")
COMPRESSION_RATIO = 4

Run = Callable[[Callable[["Task"], UnitSummary], Iterable["Task"]], Iterable[UnitSummary]]


@dataclass(frozen=True)
class Task:
    """One unit of work: a source object, or one part of a large one. Picklable."""

    unit: int
    source: SourceObject
    part: int
    parts: int
    held_out: bool
    """All of the object is for validation."""
    model: ModelPlan
    data: DataPlan
    url: str
    """Folder of the prepared data."""
    cache: str
    s3: S3Spec


def prepare(
    plan: Plan, storage: Storage, run: Run = map, report: Callable[[dict[str, Any]], Any] | None = None
) -> PreparedSummary:
    """Makes sure that the plan's data lie prepared at plan.storage.prepared; `run` maps over the units of work.

    Raises DataError when no sample is left or more rows are rejected than data.max_rejected allows, ModelError when
    the model does not know every token.
    """
    url, data = plan.storage.prepared, plan.trajectory.data
    found = summary(storage, url)
    if found is None:
        progress = _Progress(report or (lambda event: None))
        # workers cannot call back into this process, so there units are what is counted
        work = partial(prepare_object, progress=progress.rows) if run is map else prepare_object
        units = []
        for unit in run(work, _tasks(plan, storage.s3)):
            units.append(unit)
            if run is not map:
                progress.rows(unit.rows)
            if unit.rows == 0:
                progress.note(f"{unit.url} holds no rows")
        progress.tell()
        _join_rejected(storage, url, units, Path(absolute(plan.storage.cache)))
        found = publish(storage, url, units, data.digest, data.format, data.sequence_length)
    if problems := refusals(found, data, url):
        raise DataError(*problems)
    if found.highest_token >= (vocab_size := plan.trajectory.model.vocab_size):
        what = f"its tokenizer writes token {found.highest_token}, the model knows those below {vocab_size}"
        raise ModelError(Problem("model.base", what, "use the tokenizer that belongs to the model"))
    return found


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


def prepare_object(task: Task, progress: Callable[[int], None] | None = None) -> UnitSummary:
    """Prepares one unit and uploads its files; the same task always writes the same bytes.

    Raises DataError when the object is no longer the one that the plan was made for.
    """
    storage, data = Storage(task.s3), task.data
    _same_object(storage, task.source)
    tokenizer = _tokenizer(task.model.model_dump_json(), task.cache, task.s3.model_dump_json())
    encoder = Encoder(tokenizer, data.sequence_length, data.overlength)
    counts, examples, read = Counter[str](), [], 0
    cache = Path(absolute(task.cache))
    with answering(str(cache)):
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix="preparing-") as folder,
            UnitWriter(Path(folder), task.unit, len(tokenizer)) as writer,
            (Path(folder) / REJECTED).open("w") as apart,
        ):
            found = rows(storage, task.source, task.part, task.parts)
            while batch := list(islice(found, BATCH_ROWS)):
                for line, row, rejected in _encode(batch, encoder, writer, task):
                    counts[rejected.cause] += 1
                    example = Example(cause=rejected.cause, object=task.source.url, line=line, detail=rejected.detail)
                    examples += [example] if len(examples) < EXAMPLES else []
                    apart.write(json.dumps({**example.model_dump(), "row": row}, default=str) + "\n")
                read += len(batch)
                if progress is not None:
                    progress(len(batch))
            apart.close()
            _same_object(storage, task.source)  # it may have been replaced while it was read
            if counts:
                storage.upload(Path(folder) / REJECTED, join(task.url, rejected_name(task.unit)))
            input_ids, loss_mask, index = writer.upload(storage, task.url)
    return UnitSummary(
        unit=task.unit,
        url=task.source.url,
        rows=read,
        rejected=dict(counts),
        examples=tuple(examples),
        dtype=writer.dtype,
        highest_token=writer.highest_token,
        input_ids=input_ids,
        loss_mask=loss_mask,
        index=index,
    )


def _same_object(storage: Storage, source: SourceObject) -> None:
    """The digest under which the rows are kept stands for what the plan saw, and for nothing that came later."""
    found = storage.info(source.url)
    if (found.size, found.etag) != (source.size, source.etag):
        raise DataError(Problem(source.url, "was replaced since the plan was made", "run the job again"))


def _encode(
    batch: list[tuple[int, dict[str, Any] | Rejected]], encoder: Encoder, writer: UnitWriter, task: Task
) -> Iterator[tuple[int, dict[str, Any] | None, Rejected]]:
    """Writes what can be learnt from; gives (line, row, why) of the others."""
    kept: list[tuple[int, dict[str, Any], Sample]] = []
    for line, row in batch:
        if isinstance(row, Rejected):
            yield line, None, row
            continue
        sample = parse(row, task.data.format)
        if isinstance(sample, Rejected):
            yield line, row, sample
        else:
            kept.append((line, row, sample))
    encoded = encoder.encode([sample for _, _, sample in kept])
    for (line, row, sample), pieces in zip(kept, encoded, strict=True):
        if isinstance(pieces, Rejected):
            yield line, row, pieces
            continue
        held_out = task.held_out or fingerprint(sample) < task.data.validation_fraction * 2**64
        writer.add(line, pieces, VALIDATION if held_out else TRAIN)


def _tasks(plan: Plan, s3: S3Spec) -> list[Task]:
    data = plan.trajectory.data
    sources = [(source, False) for source in data.train] + [(source, True) for source in data.validation]
    parts = [(source, held_out, part) for source, held_out in sources for part in range(_parts(source))]
    return [
        Task(
            unit, source, part, _parts(source), held_out, plan.trajectory.model, data,
            plan.storage.prepared, plan.storage.cache, s3,
        )
        for unit, (source, held_out, part) in enumerate(parts)
    ]  # fmt: skip


def _parts(source: SourceObject) -> int:
    """Depends on the object alone: the same digest always has the same shards."""
    ratio = COMPRESSION_RATIO if source.url.lower().endswith(COMPRESSED) else 1
    return max(1, min(MAX_PARTS, source.size * ratio // PART_BYTES))


@lru_cache(maxsize=1)
def _tokenizer(model_json: str, cache: str, s3_json: str) -> Any:
    """Once per process; the arguments are text because a cache's keys must be hashable."""
    from shoal.models import load_tokenizer, tokenizer_folder

    model, s3 = ModelPlan.model_validate_json(model_json), S3Spec.model_validate_json(s3_json)
    return load_tokenizer(tokenizer_folder(model, Storage(s3), Path(absolute(cache))), model.trust_remote_code)


def _join_rejected(storage: Storage, url: str, units: list[UnitSummary], cache: Path) -> None:
    """One file over all units, in their order."""
    with answering(str(cache)):
        cache.mkdir(parents=True, exist_ok=True)
    with answering(str(cache)), tempfile.NamedTemporaryFile(dir=cache, prefix="rejected-") as file:
        for unit in units:
            if unit.rejected:
                file.write(storage.read(join(url, rejected_name(unit.unit))))
        file.flush()
        storage.upload(Path(file.name), join(url, REJECTED))


class _Progress:
    """Says how many rows are done, twice a second at most."""

    def __init__(self, report: Callable[[dict[str, Any]], Any]):
        self._report, self._done = report, 0
        self._began = self._told = time.monotonic()
        self._report({"kind": "phase", "phase": "preparing", "detail": "loading the tokenizer"})

    def rows(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._told > 0.5:
            self.tell()

    def note(self, message: str) -> None:
        self._report({"kind": "note", "message": message})

    def tell(self) -> None:
        self._told = now = time.monotonic()
        detail = f"{self._done:,} rows, {self._done / (now - self._began):,.0f} rows/s"
        self._report({"kind": "phase", "phase": "preparing", "detail": detail})
