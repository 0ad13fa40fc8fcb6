"""Which of the searched fields mattered: Optuna's PED-ANOVA over the trials of a sweep, at equal tokens."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.spec.sweep import LOGARITHMIC, WHOLE, Dimension
from shoal.tune.board import Board, Standing

FEWEST = 6
"""Trials that it takes to say anything."""
GOOD = 0.34
"""Share of the trials that count as good."""


@dataclass(frozen=True)
class Importance:
    """Shares that sum to 1, the largest first; empty where nothing can be said."""

    shares: Mapping[str, float]
    trials: int
    tokens: int
    """Where in their curves the trials were compared."""
    why_not: str = ""


def importance(found: Board, dimensions: Mapping[str, Dimension]) -> Importance:
    """PED-ANOVA (Watanabe et al. 2023, arxiv.org/abs/2304.10255): how unlike the good trials' values are to all trials'.

    Trials that were stopped early count too: each by its value at the tokens that all of them reached.
    """
    rows = [row for row in found.rows if row.state in ("finished", "stopped") and _judged(row)]
    if len(rows) < FEWEST:
        return Importance({}, len(rows), 0, f"it takes {FEWEST} trials that ended, and there are {len(rows)}")
    tokens = min(row.curve[-1].tokens for row in rows)
    values = [value_at(row, tokens) for row in rows]
    if len(set(values)) == 1:
        return Importance({}, len(rows), tokens, "all trials came to the same value")
    shares = _ped_anova([row.params for row in rows], values, dimensions, found.mode)
    total = sum(shares.values())
    if not total:
        return Importance({}, len(rows), tokens, "the good trials are spread as all are")
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    return Importance({field: share / total for field, share in ordered}, len(rows), tokens)


def _judged(row: Standing) -> bool:
    return bool(row.curve) and row.curve[-1].step > 0


def value_at(row: Standing, tokens: int) -> float:
    """The metric when the trial had seen so many tokens: the last value up to there, or its first."""
    return [point.value for point in row.curve if point.tokens <= tokens or point is row.curve[0]][-1]


def _ped_anova(
    params: Sequence[Mapping[str, Any]], values: Sequence[float], dimensions: Mapping[str, Dimension], mode: str
) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is marked experimental
        study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
        distributions = {field: _distribution(one) for field, one in dimensions.items()}
        for each, value in zip(params, values, strict=True):
            known = {field: _point(each[field], dimensions[field]) for field in distributions}
            study.add_trial(optuna.trial.create_trial(params=known, distributions=distributions, value=value))
        judge = PedAnovaImportanceEvaluator(target_quantile=GOOD)
        return get_param_importances(study, evaluator=judge, normalize=False)


def _distribution(one: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.values is not None:
        return CategoricalDistribution([json.dumps(value) for value in one.values])
    low, high = one.numbers[:2]
    if one.kind in WHOLE:
        return IntDistribution(int(low), int(high) - 1, log=one.kind in LOGARITHMIC)
    return FloatDistribution(low, high, log=one.kind in LOGARITHMIC)


def _point(value: Any, one: Dimension) -> Any:
    """A value as its distribution takes it; perturbed ones may lie outside of the space."""
    if one.values is not None:
        same = [other for other in one.values if other == value]  # 8.0 is the 8 of the list
        return json.dumps(same[0] if same else min(one.values, key=lambda other: _distance(other, value)))
    low, high = one.numbers[:2]
    return min(max(value, low), high - 1 if one.kind in WHOLE else high)


def _distance(one: Any, other: Any) -> float:
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) if numbers else 1.0
