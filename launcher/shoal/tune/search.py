"""A sweep's search and schedule, in Ray Tune's own classes."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, SearchGenerator
from ray.tune.search.basic_variant import BasicVariantGenerator

from shoal.spec.sweep import WHOLE, Dimension, SweepSpec
from shoal.tune.known import Known
from shoal.tune.pace import Pace, grace_period, perturbation_interval
from shoal.tune.recall import Recalling
from shoal.tune.space import Params

METRIC, TIME = "metric", "tokens"
"""Names of a result's fields: what trials are judged by, and what counts as time."""


def space(spec: SweepSpec) -> dict[str, Any]:
    """Dotted field -> Ray Tune's domain."""
    return {field: _domain(one.kind, getattr(one, one.kind)) for field, one in spec.dimensions.items()}


def _domain(kind: str, given: list[Any]) -> Any:
    if kind == "choice":
        return tune.choice(given)
    if kind == "grid":
        return tune.grid_search(given)
    return getattr(tune, kind)(*given)


def search(spec: SweepSpec, earlier: Sequence[Params], concurrent: int) -> SearchAlgorithm:
    """What suggests. `earlier`: the params of the trials so far, which it suggests again first, in their order.

    At random and over a grid the suggestions are a function of space and seed, so they come again by themselves.
    Optuna learns, so it is given the earlier ones; its generator then goes on from a seed that it has not used.
    """
    if spec.search == "optuna":
        from optuna import logging
        from ray.tune.search.optuna import OptunaSearch

        logging.set_verbosity(logging.ERROR)
        # It would rather store choices that are no lists; here nothing is stored.
        warnings.filterwarnings("ignore", "Choices for a categorical distribution", UserWarning)
        optuna = OptunaSearch(points_to_evaluate=list(earlier) or None, seed=spec.seed + len(earlier))
        return SearchGenerator(ConcurrencyLimiter(optuna, max_concurrent=concurrent))
    if spec.scheduler == "pbt":  # all of a population begin at once, and by now they are not what the seed gave
        return BasicVariantGenerator(points_to_evaluate=list(earlier), random_state=spec.seed + len(earlier))
    return BasicVariantGenerator(max_concurrent=concurrent, random_state=spec.seed)


def within(spec: SweepSpec, params: Params) -> Params:
    """PBT's changes, kept inside the space: a fifth more than the most may be what the field refuses."""
    return {field: _clipped(spec.dimensions[field], value) for field, value in params.items()}


def _clipped(one: Dimension, value: Any) -> Any:
    if one.values is not None:
        return value
    low, high, *steps = one.numbers
    inside = min(max(value, low), high - 1 if one.kind in WHOLE else high)
    return type(value)(round(inside / steps[0]) * steps[0] if steps else inside)


def samples(spec: SweepSpec, trials: int) -> int:
    """Tune's num_samples: times that a grid is gone through, or trials."""
    grids = math.prod(len(one.grid) for one in spec.dimensions.values() if one.grid)
    return math.ceil(trials / grids)


def scheduler(spec: SweepSpec, one: Pace, known: Sequence[Known] = ()) -> TrialScheduler:
    """What stops trials. `one`: the pace of a trial of the job as it stands; `known`: the trials before a resume."""
    match spec.scheduler:
        case "asha":
            grace = grace_period(spec, one)
            asha = ASHAScheduler(
                time_attr=TIME,
                max_t=max(one.tokens, grace),
                grace_period=grace,
                reduction_factor=spec.asha.reduction_factor,
                brackets=spec.asha.brackets,
                stop_last_trials=False,  # who comes to the end finishes: it is exported
            )
            return Recalling(asha, known, METRIC, spec.mode, TIME)
        case "median":
            median = MedianStoppingRule(
                time_attr=TIME,
                grace_period=grace_period(spec, one),
                min_samples_required=spec.median.min_samples_required,
                min_time_slice=math.inf,  # pyright: ignore[reportArgumentType]  trials never make way for others
            )
            return Recalling(median, known, METRIC, spec.mode, TIME)
        case "pbt":
            pbt = spec.pbt
            return PopulationBasedTraining(
                time_attr=TIME,
                perturbation_interval=perturbation_interval(spec, one),
                quantile_fraction=pbt.quantile_fraction,
                resample_probability=pbt.resample_probability,
                hyperparam_mutations={
                    field: one.choice if one.choice is not None else _domain(one.kind, one.numbers)
                    for field, one in spec.dimensions.items()
                },
                custom_explore_fn=lambda params: within(spec, params),
                log_config=False,
                require_attrs=False,  # a trial that leaves reports no metric
            )
        case "none":
            return FIFOScheduler()
