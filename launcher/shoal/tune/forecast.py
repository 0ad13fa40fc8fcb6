"""What a sweep would do, and every reason why it would not work: before anything is taken. Needs neither torch nor Ray."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoal.data.prepare import refusals
from shoal.data.summary import summary
from shoal.errors import DataError, Problem, ShoalError, SpecError, StorageError, together
from shoal.facts.gather import gather
from shoal.facts.types import Facts
from shoal.plan.planner import plan
from shoal.plan.types import Plan
from shoal.runs import list_runs
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.spec.sweep import SweepSpec
from shoal.storage import Storage
from shoal.tune.checks import combined, idle_problems, place_problems, report_problems
from shoal.tune.space import Params, apply, at_once, candidates, combinations, trial_count, trial_profile

MOST_PLANS = 256
"""Points of the space that are planned before a sweep starts."""
MOST_RUNS = 30
"""Earlier runs that are looked at for one that was as fast as a trial will be."""
HELD_OUT = ("model.", "data.", "task")
"""Fields that change what a validation loss is measured on, or in what tokens."""


Refused = tuple[Params, ShoalError]
"""A point, and why it has no plan."""


@dataclass(frozen=True)
class Span:
    """From the least to the most over the points that were planned."""

    low: int
    high: int

    @classmethod
    def of(cls, values: Iterable[int]) -> "Span":
        found = list(values)
        return cls(min(found), max(found))

    def __str__(self) -> str:
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Forecast:
    """A whole sweep, at most: a scheduler or a budget may end it sooner."""

    trials: int
    concurrent: int | None
    """Trials at once; None: as many as the cluster has room for."""
    workers: int
    """Of each trial."""
    planned: int
    """Points of the space that were planned, all of them sound."""
    whole: bool
    """These are all there are."""
    steps: Span
    """Of one trial."""
    tokens: Span
    steps_estimate: bool
    """The steps are an estimate: the data were not prepared before."""
    tokens_estimate: bool
    all_steps: Span
    all_tokens: Span
    preparations: int
    """Data sets that are prepared for all trials together."""
    tokens_per_s: float | None
    """Of one trial, as an earlier run of this shape had it; None when there is none."""
    measured_on: str | None
    """That run."""
    hours: float | None
    """Of all trials, added up, training alone."""
    cost: float | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def forecast(spec: SweepSpec, job: JobSpec, profile: ClusterProfile, storage: Storage) -> Forecast:
    """The forecast. Raises: ShoalError; SpecError with every mistake of the sweep and of the plans that it can make."""
    params = candidates(spec, MOST_PLANS)
    mine = trial_profile(spec, profile)
    plans, wrong = planned(job, params, mine, storage)
    found = [*place_problems(spec, profile), *(report_problems(spec, plans) if plans else ())]
    found += [] if wrong else idle_problems(spec, params, plans)
    refuse(found, wrong, len(params))
    trials = trial_count(spec)
    whole = combinations(spec) == len(plans)
    steps = Span.of(one.trajectory.steps.value for one in plans)
    tokens = Span.of(one.trajectory.tokens.value for one in plans)
    exact = whole and spec.search == "grid" and trials == len(plans)
    speed = measured(storage, profile.storage.runs, plans[0])
    all_tokens = _total(tokens, [one.trajectory.tokens.value for one in plans], trials, exact)
    hours = all_tokens.high / speed[0] / 3600 if speed else None
    price = profile.price_per_worker_hour
    return Forecast(
        trials=trials,
        concurrent=concurrent(spec, profile),
        workers=mine.max_workers,
        planned=len(plans),
        whole=whole,
        steps=steps,
        tokens=tokens,
        steps_estimate=any(one.trajectory.steps.estimate for one in plans),
        tokens_estimate=any(one.trajectory.tokens.estimate for one in plans),
        all_steps=_total(steps, [one.trajectory.steps.value for one in plans], trials, exact),
        all_tokens=all_tokens,
        preparations=len({one.trajectory.data.digest for one in plans}),
        tokens_per_s=speed[0] if speed else None,
        measured_on=speed[1] if speed else None,
        hours=hours,
        cost=hours * mine.max_workers * price if hours is not None and price else None,
        notes=(*_notes(spec, steps, tokens), *_length_notes(plans)),
    )


def planned(
    job: JobSpec, params: Iterable[Params], profile: ClusterProfile, storage: Storage
) -> tuple[list[Plan], list[Refused]]:
    """A plan for each point, and each reason why there is none. Model and data are looked at once for each that is named."""
    known: dict[str, Facts | ShoalError] = {}
    prepared: dict[tuple[str, float], list[Problem]] = {}
    plans: list[Plan] = []
    wrong: list[Refused] = []
    for one in params:
        try:
            trial = apply(job, one)
            made = plan(trial, profile, _facts(trial, profile, storage, known), job.name)
            if refused := _refused(made, storage, prepared):
                raise DataError(*refused)
            plans.append(made)
        except StorageError:
            raise
        except ShoalError as error:
            wrong.append((one, error))
    return plans, wrong


def _refused(made: Plan, storage: Storage, known: dict[tuple[str, float], list[Problem]]) -> list[Problem]:
    """Why the plan's data cannot be trained on, where they were prepared before; empty where nobody knows yet."""
    data = made.trajectory.data
    key = (data.digest, data.max_rejected)
    if key not in known:
        found = summary(storage, made.storage.prepared)
        known[key] = refusals(found, data, made.storage.prepared)[:1] if found else []
    return known[key]


def _length_notes(plans: Sequence[Plan]) -> Iterator[str]:
    """Of sequence lengths for which rows will be left out, or cut: only preparation counts them."""
    yield from dict.fromkeys(note for one in plans for note in one.notes if note.startswith("data.sequence_length:"))


def refuse(found: Sequence[Problem], wrong: Sequence[Refused], points: int) -> None:
    """Raise all problems at once, if there are any. What is wrong at every point is the job's, and keeps its class."""
    errors: list[ShoalError] = [SpecError(*found)] if found else []
    told = combined([(params, _problem(said)) for params, error in wrong for said in error.problems], points)
    if told:
        everywhere = len(wrong) == points and len({type(error) for _, error in wrong}) == 1
        errors.append((type(wrong[0][1]) if everywhere else SpecError)(*told))
    if errors:
        raise together(errors)


def _facts(job: JobSpec, profile: ClusterProfile, storage: Storage, known: dict[str, Facts | ShoalError]) -> Facts:
    key = json.dumps([job.model.model_dump(mode="json"), job.data.model_dump(mode="json")], sort_keys=True)
    if key not in known:
        try:
            known[key] = gather(job, profile, storage)
        except ShoalError as error:
            known[key] = error
    found = known[key]
    if isinstance(found, ShoalError):
        raise found
    return found


def _problem(said: Problem | str) -> Problem:
    return said if isinstance(said, Problem) else Problem("sweep", said)


def concurrent(spec: SweepSpec, profile: ClusterProfile) -> int | None:
    """Trials at once; None where it is the more the more room a cluster has."""
    return None if profile.kind != "local" and spec.max_concurrent == "auto" else at_once(spec, profile)


def measured(storage: Storage, runs_url: str, like: Plan) -> tuple[float, str] | None:
    """Tokens per second of the newest finished run of this shape, and its id."""
    for run in reversed(list_runs(storage, runs_url)[-MOST_RUNS:]):
        try:
            if not storage.exists(run.result):
                continue
            result, then = json.loads(storage.read(run.result)), json.loads(storage.read(run.plan))
            if _shape(then) == _shape(like.model_dump(mode="json")) and result["seconds"] > 0 and result["tokens"]:
                return result["tokens"] / result["seconds"], run.id
        except (ValueError, KeyError, TypeError):
            continue  # a run of another version of Shoal
    return None


def _shape(plan: dict[str, Any]) -> list[Any]:
    """What a trial's speed follows from, more or less."""
    trajectory, layout = plan["trajectory"], plan["layout"]
    names = ("workers", "device", "micro_batch_size", "stage", "offload", "gradient_checkpointing")
    shared = (trajectory["model"]["digest"], trajectory["method"], trajectory["dtype"])
    return [*shared, trajectory["data"]["sequence_length"], *(layout[name] for name in names)]


def _total(each: Span, all_of: list[int], trials: int, exact: bool) -> Span:
    return Span(sum(all_of), sum(all_of)) if exact else Span(each.low * trials, each.high * trials)


def _notes(spec: SweepSpec, steps: Span, tokens: Span) -> Iterator[str]:
    trials, points = trial_count(spec), combinations(spec)
    if points is not None and points < trials and spec.scheduler != "pbt":
        yield f"sweep.trials: {trials}, more than the space has points ({points}): search: grid trains each once"
    compared = {"none": 1, "median": spec.median.min_samples_required + 1}.get(spec.scheduler, 2)
    if trials < compared:
        yield f"sweep.scheduler: {spec.scheduler} compares {compared} trials or more: with {trials} it stops none"
    for field in spec.space:
        if spec.metric == "validation.loss" and field.startswith(HELD_OUT):
            yield f"sweep.space.{field}: trials that differ in it may be measured on other tokens"
    if spec.mode == "max":
        yield f"sweep.mode: max looks for the largest {spec.metric}"
    for name in ("asha", "median", "pbt"):
        if name in spec.model_fields_set and spec.scheduler != name:
            yield f"sweep.{name}: has no effect with scheduler: {spec.scheduler}"
    for name, takes in (("tokens", tokens), ("steps", steps)):
        budget = getattr(spec.budget, name)
        if budget is not None and budget < takes.high:
            yield f"sweep.budget.{name}: {budget:,} is less than one trial takes ({takes})"
