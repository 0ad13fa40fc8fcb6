"""A sweep's space as pure functions: params -> the job of a trial; the combinations; a sample of them to look at."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from shoal.spec.cluster import ClusterProfile
from shoal.spec.explain import Fields
from shoal.spec.job import JobSpec
from shoal.spec.load import job_of
from shoal.spec.space import job_with, takes_whole
from shoal.spec.sweep import DEFAULT_TRIALS, WHOLE, Dimension, SweepSpec

Params = dict[str, Any]
"""Dotted field of the job -> the value that a trial has there."""
SHOWN_VALUE = 24
"""Characters of a value in a table."""


def settled(params: Params) -> Params:
    """The params as a job file can hold them: Python's own numbers, whole ones where the field takes no fraction."""
    fields = Fields("job")
    return {field: _plain(value, takes_whole(fields, tuple(field.split(".")))) for field, value in params.items()}


def _plain(value: Any, whole: bool) -> Any:
    value = value.item() if hasattr(value, "item") else value  # a number of numpy's, as samplers give them
    if whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def apply(job: JobSpec, params: Params) -> JobSpec:
    """The job with the params in place and without `sweep`. Raises: SpecError when a field refuses its value."""
    value = job.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    for field, setting in settled(params).items():
        value = job_with(value, field.split("."), setting)
    return job_of(value, said(params))


def said(params: Params) -> str:
    """`optimizer.learning_rate=0.0001 lora.r=8`."""
    return " ".join(f"{field}={brief(value)}" for field, value in params.items())


def brief(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(brief, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {brief(one)}" for key, one in value.items()) + "}"
    return str(value)


def cells(params: Params) -> dict[str, str]:
    """The params as a table has them: column -> a few characters. A section has a column for each of its fields."""
    found: dict[str, str] = {}
    for field, value in params.items():
        if isinstance(value, dict) and value:
            found |= cells({f"{field}.{key}": inside for key, inside in value.items()})
        else:
            found[field] = cut(brief(value))
    return found


def columns(trials: Sequence[Params]) -> list[str]:
    """The columns that the params of all trials take together, those of one field side by side."""
    fields = dict.fromkeys(field for params in trials for field in params)
    parts = ({field: params[field]} for field in fields for params in trials if field in params)
    return list(dict.fromkeys(column for part in parts for column in cells(part)))


def cut(text: str) -> str:
    """As much of it as a table or an axis has room for."""
    return text if len(text) <= SHOWN_VALUE else f"{text[: SHOWN_VALUE - 3]}..."


def combinations(spec: SweepSpec) -> int | None:
    """How many there are; None where a field's values have no end."""
    lists = [dimension.values for dimension in spec.dimensions.values()]
    return math.prod(len(values) for values in lists if values) if all(lists) else None


def grid(spec: SweepSpec) -> Iterator[Params]:
    """Every combination of a space of lists, the last field changing first."""
    lists = {field: dimension.values or [] for field, dimension in spec.dimensions.items()}
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def trial_count(spec: SweepSpec) -> int:
    """How many trials there will be at most."""
    if spec.trials is not None:
        return spec.trials
    return (combinations(spec) or DEFAULT_TRIALS) if spec.search == "grid" else DEFAULT_TRIALS


def candidates(spec: SweepSpec, limit: int) -> list[Params]:
    """Params to judge a space by, about `limit` at most: all of a finite space that is not larger; else every listed
    value and both ends of every range beside the others' first, and corners drawn with the sweep's seed."""
    kinds = {field: looked_at(dimension) for field, dimension in spec.dimensions.items()}
    if math.prod(map(len, kinds.values())) <= limit:
        return [dict(zip(kinds, values, strict=True)) for values in itertools.product(*kinds.values())]
    first = {field: values[0] for field, values in kinds.items()}
    last = {field: values[-1] for field, values in kinds.items()}
    found = [first, last, *({**first, field: value} for field, values in kinds.items() for value in values[1:])][:limit]
    draw = random.Random(spec.seed)  # noqa: S311  no secret
    found += [{field: draw.choice(values) for field, values in kinds.items()} for _ in range(limit - len(found))]
    return [one for index, one in enumerate(found) if one not in found[:index]]


def looked_at(dimension: Dimension) -> list[Any]:
    """The listed values, or both ends of a range."""
    if dimension.values is not None:
        return dimension.values
    low, high = dimension.numbers[:2]
    return [low, high - 1] if dimension.kind in WHOLE else [low, high]


def trial_profile(spec: SweepSpec, profile: ClusterProfile) -> ClusterProfile:
    """Where one trial trains: the profile with the trial's own number of workers."""
    return profile if spec.workers is None else profile.model_copy(update={"workers": spec.workers})


def at_once(spec: SweepSpec, profile: ClusterProfile) -> int:
    """Trials at once: as the file says, else as many as the profile's workers suffice for. On a cluster those whose nodes
    are not there yet wait for them."""
    trials = trial_count(spec)
    claimed = max(1, profile.max_workers // (spec.workers or profile.max_workers))
    if spec.max_concurrent == "auto":
        return min(claimed, trials)
    return min(spec.max_concurrent, trials, claimed if profile.kind == "local" else trials)
