"""Facts: what is there, asked of files, stores and the hub. The network is used here, and nowhere in planning."""

from collections.abc import Callable
from typing import TypeVar

from shoal.data.summary import summary
from shoal.errors import DataError, Problem, ShoalError, together
from shoal.facts.adapter import adapter_facts
from shoal.facts.data import data_digest, locate, split_facts
from shoal.facts.model import model_facts
from shoal.facts.types import Counts, DataFacts, Facts, ModelFacts, SplitFacts
from shoal.plan.types import SourceObject
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import DataSpec, JobSpec
from shoal.storage import Storage, join

Found = TypeVar("Found")


def gather(job: JobSpec, profile: ClusterProfile, storage: Storage) -> Facts:
    """All facts that planning `job` needs.

    Raises one ShoalError with every problem of model, adapter and data.
    """
    errors: list[ShoalError] = []
    model = _try(lambda: model_facts(job.model, storage), errors)
    adapter, runs = job.model.adapter, profile.storage.runs
    start = _try(lambda: adapter_facts(adapter, runs, storage), errors) if adapter else None
    data = _try(lambda: _data(job.data, model, profile, storage), errors)
    if errors:
        raise together(errors)
    assert model and data
    return Facts(model, start, data)


def _try(get: Callable[[], Found], errors: list[ShoalError]) -> Found | None:
    try:
        return get()
    except ShoalError as error:
        errors.append(error)
        return None


def _data(data: DataSpec, model: ModelFacts | None, profile: ClusterProfile, storage: Storage) -> DataFacts | None:
    """None when the data are sound but the model is not known, so that they have no digest."""
    errors: list[ShoalError] = []
    train = _try(lambda: locate(data.train, "data.train", storage), errors)
    held = data.validation
    other = None if isinstance(held, int | float) else held
    validation = _try(lambda: locate(other, "data.validation", storage), errors) if other else None
    if train and validation:
        _try(lambda: _apart(train[0], validation[0]), errors)
    train_facts = _try(lambda: split_facts(train[0], data.format, "data.train", storage), errors) if train else None
    validation_facts: tuple[SplitFacts, str] | None = None
    if validation:
        kind = train_facts[1] if train_facts else data.format
        validation_facts = _try(lambda: split_facts(validation[0], kind, "data.validation", storage), errors)
    if errors:
        raise together(errors)
    assert train and train_facts
    if model is None:
        return None
    held_out = validation[0] if validation else []
    digest = data_digest(data, train[0], held_out, train_facts[1], model.tokenizer_digest)
    prepared = summary(storage, join(profile.storage.prepared, digest))
    return DataFacts(
        train=train_facts[0],
        validation=validation_facts[0] if validation_facts else None,
        format=train_facts[1],
        digest=digest,
        counts=Counts(prepared.samples, prepared.packed_rows, prepared.tokens) if prepared else None,
        notes=(*train[1], *(validation[1] if validation else ())),
    )


def _apart(train: list[SourceObject], validation: list[SourceObject]) -> None:
    both = sorted({one.url for one in train} & {one.url for one in validation})
    if both:
        what = f"{len(both)} object(s) are in data.train too, {both[0]} first"
        raise DataError(Problem("data.validation", what, "a loss on what was trained on says nothing: keep them apart"))
