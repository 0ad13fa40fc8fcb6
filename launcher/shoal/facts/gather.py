"""Facts: what is there, asked of files, stores and the hub. The network is used here, and nowhere in planning."""

from collections.abc import Callable
from typing import TypeVar

from shoal.data.summary import summary
from shoal.errors import DataError, Problem, ShoalError, together
from shoal.facts.adapter import adapter_facts
from shoal.facts.data import data_digest, listed, locate, source_facts
from shoal.facts.model import model_facts
from shoal.facts.types import Counts, DataFacts, Facts, ModelFacts, SourceFacts
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
    held = data.validation
    names = {
        "train": listed(data.train, "data.train"),
        "validation": [] if isinstance(held, int | float) else listed(held, "data.validation"),
    }
    found: dict[str, list[SourceFacts]] = {"train": [], "validation": []}
    places: dict[str, str] = {}
    notes: list[str] = []
    for split, sources in names.items():
        for where, spec in sources:
            objects = _try(lambda where=where, spec=spec: locate(spec.path, where, storage), errors)
            if objects is None:
                continue
            notes += [f"{where}: {objects[1]}"] if objects[1] else []
            mine = [one for one in objects[0] if places.setdefault(one.url, where) == where]
            if len(mine) < len(objects[0]):
                taken = next(one.url for one in objects[0] if places[one.url] != where)
                _try(lambda where=where, taken=taken: _apart(where, places[taken], taken), errors)
                continue
            facts = _try(
                lambda where=where, spec=spec, mine=mine: source_facts(spec, mine, data, where, storage), errors
            )
            found[split] += [facts] if facts else []
    location = data.chat_template
    template = _try(lambda: _template(location, storage), errors) if location else None
    if errors:
        raise together(errors)
    if model is None:
        return None
    train, validation = tuple(found["train"]), tuple(found["validation"])
    digest = data_digest(data, train, validation, template, model.tokenizer_digest)
    prepared = summary(storage, join(profile.storage.prepared, digest))
    plain = prepared and all(source.weight == 1 for source in train)
    return DataFacts(
        train=train,
        validation=validation,
        chat_template=template,
        digest=digest,
        counts=Counts(prepared.samples, prepared.packed_rows, prepared.tokens) if prepared and plain else None,
        notes=tuple(notes),
    )


def _apart(where: str, other: str, url: str) -> None:
    """Refuses an object that two sources name: which weight, or which split, would be its own?"""
    fix = "name each object once"
    if where.startswith("data.validation") != other.startswith("data.validation"):
        fix = "a loss on what was trained on says nothing: keep them apart"
    raise DataError(Problem(where, f"{url} is in {other} too", fix))


def _template(location: str, storage: Storage) -> str:
    text = storage.read(location)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise DataError(Problem("data.chat_template", f"{location} is not UTF-8 text", "name a Jinja file")) from error
