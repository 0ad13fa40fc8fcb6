"""Steps and tokens of a run: exact when the data were prepared before, estimated from the first rows otherwise."""

import math
from dataclasses import dataclass

from shoal.facts.types import DataFacts
from shoal.plan.types import Count
from shoal.spec.job import DataSpec, JobSpec

PACKED_SHARE = 0.97
"""Share of a packed row that is filled; measured rows are 0.95 to 0.99 full."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training samples."""

    rows: int
    """Packed sequences when packing, else samples."""
    tokens: int
    exact: bool


@dataclass(frozen=True)
class Amount:
    """What a whole run takes."""

    steps: Count
    steps_per_epoch: Count
    tokens: Count


def epoch(facts: DataFacts, data: DataSpec) -> Epoch:
    """The rows and tokens of one epoch."""
    done = facts.counts
    if done is not None:
        return Epoch(done.packed_rows if data.packing else done.samples, done.tokens, exact=True)
    limit = data.sequence_length
    share = float(data.validation) if isinstance(data.validation, int | float) else 0.0
    samples = facts.train.rows * (1 - share)
    seen = facts.train.sample_tokens
    if not seen:
        return Epoch(0, 0, exact=False)
    if facts.format == "text":
        lengths = [piece for tokens in seen for piece in _pieces(tokens, limit)]
    elif data.overlength == "truncate":
        lengths = [min(tokens, limit) for tokens in seen]
    else:
        lengths = [tokens for tokens in seen if tokens <= limit]
    each = samples / len(seen)
    tokens = sum(lengths) * each
    if not data.packing:
        return Epoch(math.ceil(len(lengths) * each), round(tokens), exact=False)
    # Two samples over half a row never share one.
    alone = sum(length > limit / 2 for length in lengths) * each
    rows = max(tokens / (limit * PACKED_SHARE), alone)
    return Epoch(math.ceil(rows), round(tokens), exact=False)


def too_long(facts: DataFacts, sequence_length: int) -> float:
    """Estimated share of rows over sequence_length."""
    seen = facts.train.sample_tokens
    return sum(tokens > sequence_length for tokens in seen) / len(seen) if seen else 0.0


def amount(one: Epoch, job: JobSpec) -> Amount:
    """Steps, steps per epoch and tokens of the run."""
    steps_per_epoch = max(1, -(-one.rows // job.train.batch_size))
    all_steps = job.train.num_train_epochs * steps_per_epoch
    steps = min(all_steps, job.train.max_steps or all_steps)
    whole = steps % steps_per_epoch == 0
    tokens = round(one.tokens * steps / steps_per_epoch)
    return Amount(
        Count(value=steps, estimate=not one.exact),
        Count(value=steps_per_epoch, estimate=not one.exact),
        Count(value=tokens, estimate=not (one.exact and whole)),
    )


def warmup_steps(steps: int, warmup_ratio: float) -> int:
    """As transformers' TrainingArguments.get_warmup_steps: rounded up; but never the whole run, whose rate would be 0."""
    return min(math.ceil(steps * warmup_ratio), max(steps - 1, 0))


def _pieces(tokens: int, limit: int) -> list[int]:
    whole, rest = divmod(tokens, limit)
    return [limit] * whole + ([rest] if rest else [])
