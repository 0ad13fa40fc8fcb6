"""Surveys a data set: its units wherever `run` does them, then the figures; or gives what an earlier survey found."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from shoal import __version__
from shoal.data.cache import scratch
from shoal.data.prepare import Passed, Task, tasks
from shoal.data.prepared import Prepared
from shoal.data.progress import EVERY_S, Told
from shoal.plan.types import DataPlan
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage, absolute, join
from shoal.storage.local import answering
from shoal.survey import figures, near
from shoal.survey.figures import Survey
from shoal.survey.findings import findings
from shoal.survey.surveyed import Surveyed
from shoal.survey.units import VERSION, Counts, Recipe, finished, survey_unit

Work = Callable[[Task], Iterator[Passed | Counts]]
Run = Callable[[Work, Iterable[Task]], Iterable[Passed | Counts]]
"""Does each task somewhere and gives what comes of them, in whatever order."""

SURVEY = "survey.json"
NEAR_ROWS = 1_000_000
"""Rows above which near duplicates are looked for among a share of them: 512 bytes each."""
SPOKEN_ROWS = 2_000
"""Rows whose languages are told."""


def recipe(data: DataPlan, s3: S3Spec, prepared: str, rows: int, near_rows: int | None = NEAR_ROWS) -> Recipe:
    """A survey of about `rows` rows; near duplicates are looked for among `near_rows` of them (None: all)."""
    compared = min(1.0, near_rows / max(rows, 1)) if near_rows else 1.0
    spoken = min(1.0, SPOKEN_ROWS / max(rows, 1))
    key = json.dumps([VERSION, near.PERMUTATIONS, near.SEED, near.SHINGLE_WORDS, compared, spoken])
    url = join(prepared, "survey", hashlib.sha256(key.encode()).hexdigest()[:8])
    return Recipe(s3, url, data.validation_fraction, compared, spoken)


def survey_units(chosen: Recipe, data: DataPlan, run: Run, on_event: Told) -> list[Counts]:
    """Surveys all units, in their order; those of an earlier survey are taken as they are."""
    every = tasks(data)
    done = finished(Storage(chosen.s3), chosen.url, [task.unit for task in every])
    passed = {unit: counts.rows for unit, counts in done.items()}
    told = 0.0
    for one in run(partial(survey_unit, chosen), [task for task in every if task.unit.number not in done]):
        passed[one.unit] = one.rows
        if isinstance(one, Counts):
            done[one.unit] = one
        if time.monotonic() - told > EVERY_S or len(done) == len(every):
            told = time.monotonic()
            detail = f"{sum(passed.values()):,} rows, {len(done)} of {len(every)} parts"
            on_event({"kind": "phase", "phase": "surveying", "detail": detail})
    return [done[task.unit.number] for task in every]


def survey(
    data: DataPlan,
    chosen: Recipe,
    prepared: Prepared | None,
    storage: Storage,
    cache: str,
    threshold: float,
    run: Run,
    on_event: Told,
) -> Survey:
    """The survey of these data; what an earlier one found is taken as it is.

    `prepared` is None for data that cannot be encoded: figures that need tokens are left out.
    """
    found = _known(storage, join(chosen.url, SURVEY), threshold)
    if found is None:
        counts = survey_units(chosen, data, run, on_event)
        on_event({"kind": "phase", "phase": "surveying", "detail": "looking for copies"})
        folder = Path(absolute(cache))
        with answering(str(folder)), scratch(folder, "survey") as local:
            rows = Surveyed(storage, chosen.url, counts, local)
            found = findings(data, rows, prepared, chosen.compared, threshold)
        storage.write(join(chosen.url, SURVEY), found.model_dump_json(indent=1).encode())
    # names and weights may change while the rows stay the same
    plans = [*data.train, *data.validation]
    updates = [{"path": plan.path, "weight": plan.weight} for plan in plans]
    sources = tuple(one.model_copy(update=new) for one, new in zip(found.sources, updates, strict=True))
    return found.model_copy(update={"sources": sources})


def _known(storage: Storage, url: str, threshold: float) -> Survey | None:
    if not storage.exists(url):
        return None
    try:
        found = Survey.model_validate_json(storage.read(url))
    except ValidationError:
        return None
    current = (figures.VERSION, __version__, threshold)
    return found if (found.version, found.shoal, found.near_duplicates.threshold) == current else None
