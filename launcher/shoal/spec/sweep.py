"""The `sweep` section of a job file: which fields are searched, by what, for how long. Names and meaning are Ray Tune's."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.spec.base import Frozen

Values = Annotated[list[Any], Field(min_length=1)]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
Steps = Annotated[list[float], Field(min_length=3, max_length=3)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]
DEFAULT_TRIALS = 16
MOST_TRIALS = 10_000


class Dimension(Frozen):
    """The values of one field: one of these."""

    choice: Values | None = None
    """One of these values, each as likely as any other; a plain list means the same."""
    grid: Values | None = None
    """Each of these values, for search: grid; a plain list means the same there."""
    uniform: Bounds | None = None
    """A number from low to high."""
    loguniform: Bounds | None = None
    """A number from low to high, each factor as likely as any other of its size."""
    quniform: Steps | None = None
    """As uniform, rounded to whole multiples of the third number."""
    qloguniform: Steps | None = None
    """As loguniform, rounded to whole multiples of the third number."""
    randint: WholeBounds | None = None
    """A whole number from low up to, and without, high."""
    lograndint: WholeBounds | None = None
    """As randint, each factor as likely as any other of its size."""

    @property
    def kind(self) -> str:
        """The one that is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any] | None:
        """The listed values; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def numbers(self) -> list[float]:
        """[low, high] or [low, high, q] of a range."""
        return getattr(self, self.kind)


KINDS = tuple(Dimension.model_fields)
LISTS = ("choice", "grid")
LOGARITHMIC = ("loguniform", "qloguniform", "lograndint")
WHOLE = ("randint", "lograndint")


class BudgetSpec(Frozen):
    """What all trials together may take. When any of it is spent no trial begins, and those that run are stopped."""

    tokens: int | None = Field(default=None, ge=1)
    """Tokens trained on."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    hours: float | None = Field(default=None, gt=0)
    """Hours of the trials, added up: two trials that run at once for an hour take two."""
    cost: float | None = Field(default=None, gt=0)
    """Worker-hours times the profile's price_per_worker_hour, in its currency."""


Amount = Annotated[float, Field(gt=0)]


class AshaSpec(Frozen):
    """Asynchronous successive halving: at rungs of tokens seen, the worse trials are stopped."""

    grace_period: Amount | None = None
    """Tokens before a trial may be stopped; up to 1 it is a share of a trial's tokens. Default: two rungs below the end."""
    reduction_factor: float = Field(default=3, gt=1)
    """Of so many trials that reach a rung one goes on."""
    brackets: int = Field(default=1, ge=1)
    """Brackets, each with a later first rung than the one before."""


class MedianSpec(Frozen):
    """A trial is stopped when its best is worse than the median of the others' running averages."""

    grace_period: Amount | None = None
    """Tokens before a trial may be stopped; up to 1 it is a share of a trial's tokens. Default: a quarter."""
    min_samples_required: int = Field(default=3, ge=1)
    """Trials that must have come as far before one is judged."""


class PbtSpec(Frozen):
    """Population based training: bad trials take over the weights of good ones, and change their numbers a little."""

    perturbation_interval: Amount | None = None
    """Tokens between two such moments; up to 1 it is a share of a trial's tokens. Default: a quarter."""
    quantile_fraction: float = Field(default=0.25, gt=0, le=0.5)
    """Share of trials at either end that give and take."""
    resample_probability: float = Field(default=0.25, ge=0, le=1)
    """How often a number is drawn anew rather than changed by a fifth."""


class SweepSpec(Frozen):
    space: Annotated[dict[str, Values | Dimension], Field(min_length=1)]
    """Dotted job field -> its values: a list, or one of choice, grid, uniform, loguniform, quniform, randint, ..."""
    metric: Literal["validation.loss", "train.loss"] = "validation.loss"
    """What trials are judged by, at each evaluation; train.loss at each logged step."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more of it is better."""
    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS)
    """How many; default: every combination of a grid, else 16."""
    search: Literal["random", "grid", "optuna"] = "random"
    """What suggests the values: at random, every combination once, or Optuna's TPE, which learns from what it saw."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """What stops trials early."""
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Trials at once; `auto`: as many as the profile's workers suffice for, on a cluster also what has room now."""
    workers: int | None = Field(default=None, ge=1, le=4096)
    """Workers of each trial; default: the profile's."""
    budget: BudgetSpec = BudgetSpec()
    """What all trials together may take."""
    seed: int = Field(default=17, ge=0, lt=2**32)
    """Seed of the suggestions; each trial's own seed is train.seed."""
    asha: AshaSpec = AshaSpec()
    """For scheduler: asha."""
    median: MedianSpec = MedianSpec()
    """For scheduler: median."""
    pbt: PbtSpec = PbtSpec()
    """For scheduler: pbt."""

    @property
    def dimensions(self) -> Mapping[str, Dimension]:
        """The space with plain lists written out: a grid's under search: grid, else choices."""
        kind = "grid" if self.search == "grid" else "choice"
        return {
            field: one if isinstance(one, Dimension) else Dimension.model_validate({kind: one})
            for field, one in self.space.items()
        }
