"""Steps and tokens of a run: exact when the data were prepared before, estimated from the first rows otherwise."""

import math
from dataclasses import dataclass

from shoal.facts.types import DataFacts, SourceFacts
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
    samples, tokens, alone = 0.0, 0.0, 0.0
    for source in facts.train:
        lengths = _lengths(source, data)
        each = source.rows * source.weight * (1 - share) / max(len(source.sample_tokens), 1)
        samples += len(lengths) * each
        tokens += sum(lengths) * each
        # Two samples over half a row never share one.
        alone += sum(length > limit / 2 for length in lengths) * each
    rows = max(tokens / (limit * PACKED_SHARE), alone) if data.packing else samples
    return Epoch(math.ceil(rows), round(tokens), exact=False)


def _lengths(source: SourceFacts, data: DataSpec) -> list[int]:
    """Estimated tokens of each sample that the source's first rows make."""
    limit = data.sequence_length
    if source.format == "text":
        return [piece for tokens in source.sample_tokens for piece in _pieces(tokens, limit)]
    if data.overlength == "truncate":
        return [min(tokens, limit) for tokens in source.sample_tokens]
    return [tokens for tokens in source.sample_tokens if tokens <= limit]


def too_long(facts: DataFacts, sequence_length: int) -> float:
    """Estimated share of rows over sequence_length; running text is split and has none."""
    rows = sum(source.rows for source in facts.train)
    over = sum(
        source.rows * sum(tokens > sequence_length for tokens in source.sample_tokens) / len(source.sample_tokens)
        for source in facts.train
        if source.sample_tokens and source.format != "text"
    )
    return over / rows if rows else 0.0


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
