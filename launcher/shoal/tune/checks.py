"""Sweeps that cannot work where they are to run: each mistake with its way out. Pure."""

import math
from collections.abc import Iterable, Iterator, Sequence

from shoal.errors import Problem
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.spec.sweep import SweepSpec
from shoal.tune.pace import grace_period, pace, perturbation_interval
from shoal.tune.space import Params, said

FEWEST_REPORTS = 2
"""Values of the metric that a scheduler needs of a whole trial: one to judge it by, and the end."""


def place_problems(spec: SweepSpec, profile: ClusterProfile) -> Iterator[Problem]:
    """What the profile cannot give."""
    if profile.kind == "inline":
        yield Problem("kind", "inline is this process alone, and a sweep needs Ray", "use --on local, or kind: ray")
        return
    room = profile.max_workers
    if spec.workers is not None and spec.workers > room:
        what = f"{spec.workers} for each trial, but the profile has {room}"
        yield Problem("sweep.workers", what, f"use at most {room}, or raise workers in the profile")
    elif profile.kind == "local" and isinstance(spec.max_concurrent, int):
        each = spec.workers or room
        if spec.max_concurrent * each > room:
            what = f"{spec.max_concurrent} trials of {each} worker{'s' * (each > 1)} at once, but the profile has {room} workers"
            fix = f"use at most {room // each}, or auto"
            fewer = room // spec.max_concurrent
            fix += f"; or set sweep.workers: {fewer}" if fewer else ""
            yield Problem("sweep.max_concurrent", what, fix)
    if spec.budget.cost is not None and profile.price_per_worker_hour is None:
        what = "the profile does not say what a worker costs"
        yield Problem("sweep.budget.cost", what, "add price_per_worker_hour to the profile, or use budget.hours")


def report_problems(spec: SweepSpec, plans: Sequence[Plan]) -> Iterator[Problem]:
    """A scheduler that would hear of a trial too seldom, or too late."""
    if spec.scheduler == "none":
        return
    fewest = min((pace(one, spec.metric) for one in plans), key=lambda one: one.reports)
    field = "train.eval_steps" if spec.metric == "validation.loss" else "train.logging_steps"
    if fewest.reports < FEWEST_REPORTS:
        what = f"{spec.scheduler} stops trials by what they report, and {spec.metric} comes once, at the end of a trial"
        fix = f"set {field} to {max(1, fewest.steps // 4)}, a quarter of its {fewest.steps:,} steps"
        yield Problem("sweep.scheduler", what, fix)
        return
    least = min((pace(one, spec.metric) for one in plans), key=lambda one: one.tokens)
    name, at = f"{spec.scheduler}.grace_period", grace_period(spec, least)
    if spec.scheduler == "pbt":
        name, at = "pbt.perturbation_interval", perturbation_interval(spec, least)
    if at >= least.tokens:
        what = f"{at:,} tokens, and a trial has {least.tokens:,}: nothing would be stopped"
        yield Problem(f"sweep.{name}", what, "use a share of a trial, such as 0.25")
    elif spec.scheduler == "asha":
        most = math.ceil(math.log(least.tokens / at, spec.asha.reduction_factor))
        if spec.asha.brackets > most:
            what = f"{spec.asha.brackets}, and a later bracket than {most} would judge no trial before its end"
            yield Problem("sweep.asha.brackets", what, f"use at most {most}, or a smaller asha.grace_period")


def idle_problems(spec: SweepSpec, points: Sequence[Params], plans: Sequence[Plan]) -> Iterator[Problem]:
    """Fields that change nothing that is learnt, wherever the others stand: `points` and their `plans`.

    Of a space of which only some points are known nothing is said: a field may do something elsewhere.
    """
    if math.prod(len({repr(point[field]) for point in points}) for field in spec.space) != len(points):
        return
    for field in spec.space:
        if field == "deepspeed" or field.startswith("deepspeed.config"):
            continue  # raw options may do anything
        learnt: dict[str, set[str]] = {}
        for point, one in zip(points, plans, strict=True):
            others = said({name: value for name, value in point.items() if name != field})
            learnt.setdefault(others, set()).add(one.trajectory_digest)
        if len(points) > len(learnt) and all(len(digests) == 1 for digests in learnt.values()):
            what = "changes nothing that is learnt: trials that differ in it alone would come to the same loss"
            yield Problem(f"sweep.space.{field}", what, "take it out")


def combined(wrong: Iterable[tuple[Params, Problem]], points: int) -> list[Problem]:
    """Each problem once, with the values that lead to it, unless all do."""
    found: dict[Problem, list[Params]] = {}
    for params, problem in wrong:
        found.setdefault(problem, []).append(params)
    told: list[Problem] = []
    for problem, at in found.items():
        if len(at) == points:
            told.append(problem)
            continue
        more = f" and {len(at) - 1} more of the {points} points looked at" if len(at) > 1 else ""
        told.append(Problem("sweep.space", f"gives {said(at[0])}{more}: {problem.where}: {problem.what}", problem.fix))
    return told
