"""A scheduler's numbers in tokens seen, from what the job file says and what a trial takes. Pure."""

from dataclasses import dataclass

from shoal.plan.types import Plan
from shoal.spec.sweep import SweepSpec

RUNGS_BELOW = 2
"""How many rungs ASHA's first one lies below the end of a trial, unless the file says."""
QUARTER = 0.25


@dataclass(frozen=True)
class Pace:
    """What one trial takes, and when it is heard of."""

    tokens: int
    """Of a whole trial."""
    steps: int
    reports: int
    """Values of the metric after the first step."""

    @property
    def first(self) -> int:
        """About the tokens at the first report."""
        return max(1, self.tokens // max(1, self.reports))


def pace(plan: Plan, metric: str) -> Pace:
    """The pace of a trial with this plan."""
    trajectory = plan.trajectory
    steps = trajectory.steps.value
    every = plan.logging_steps
    if metric == "validation.loss":
        every = trajectory.eval_steps or trajectory.steps_per_epoch.value
    return Pace(trajectory.tokens.value, steps, -(-steps // max(1, every)))


def grace_period(spec: SweepSpec, one: Pace) -> int:
    """Tokens that a trial sees before asha or median may stop it; never less than up to its first report."""
    if spec.scheduler == "median":
        return _tokens(spec.median.grace_period, QUARTER, one)
    return _tokens(spec.asha.grace_period, spec.asha.reduction_factor**-RUNGS_BELOW, one)


def perturbation_interval(spec: SweepSpec, one: Pace) -> int:
    """Tokens between two moments at which pbt compares the trials."""
    return _tokens(spec.pbt.perturbation_interval, QUARTER, one)


def _tokens(given: float | None, share: float, one: Pace) -> int:
    """`given` is a share of a trial's tokens up to 1, else tokens."""
    if given is not None and given > 1:
        return round(given)
    return max(round((given or share) * one.tokens), one.first)
