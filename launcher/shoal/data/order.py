"""What is read when: pure integer functions of (lengths, seed, epoch), blind to ranks, worlds and clocks."""

import heapq
from dataclasses import dataclass

import numpy as np

from shoal.data.packing import Rows, pack
from shoal.plan.types import Trajectory

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Cursor:
    """A global batch: `batch` counts from 0 within `epoch`, which counts from 0."""

    epoch: int
    batch: int


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The mixing function of SplitMix64 (Steele, Lea, Flood 2014), a bijection on uint64[n]."""
    mixed = values + np.uint64(_GOLDEN)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_order(count: int, *key: int) -> np.ndarray:
    """A permutation (int64[count]) that depends on `key` alone: indices sorted by their hash."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = splitmix64(state ^ np.uint64(part & _MASK))
    # a bijection of distinct numbers has no ties, so any sort gives the same permutation
    return np.argsort(splitmix64(state + np.arange(count, dtype=np.uint64)))


class Order:
    """The sequence of global batches of a split. Holds the rows of the newest epoch only."""

    def __init__(
        self,
        lengths: np.ndarray,
        targets: np.ndarray,
        seed: int,
        batch_size: int,
        sequence_length: int,
        packing: bool,
    ):
        """`lengths` and `targets`: int32[n], tokens and supervised tokens per sample; batch_size in rows."""
        self.lengths, self.targets = lengths, targets
        self.seed, self.batch_size = seed, batch_size
        self.sequence_length, self.packing = sequence_length, packing
        self._epoch: tuple[int, Rows] = (0, self._pack(0))
        self.batches = -(-len(self._epoch[1]) // batch_size)
        """Global batches of every epoch: packing gives each epoch equally many rows."""

    def epoch(self, number: int) -> Rows:
        """The rows of epoch `number` (from 0), in the order they are trained on."""
        held, rows = self._epoch
        if held != number:
            rows = self._pack(number)
            self._epoch = (number, rows)
        return rows

    def steps(self, epochs: int, max_steps: int | None) -> int:
        """Optimizer steps of the whole run."""
        steps = epochs * self.batches
        return steps if max_steps is None else min(steps, max_steps)

    def locate(self, step: int) -> Cursor:
        """Where step `step` (the first is 1) reads; step b x batches is the last of its epoch."""
        assert step >= 1
        return Cursor(*divmod(step - 1, self.batches))

    def batch(self, cursor: Cursor) -> list[np.ndarray]:
        """The rows (each int64 sample indices) of one global batch; the last one of an epoch may be short."""
        rows = self.epoch(cursor.epoch)
        first = cursor.batch * self.batch_size
        return [rows.row(number) for number in range(first, min(first + self.batch_size, len(rows)))]

    def tokens(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        epochs, batches = divmod(steps, self.batches)
        total = epochs * int(self.lengths.sum(dtype=np.int64))
        if batches:
            rows = self.epoch(epochs)
            total += int(self.lengths[rows.samples[: rows.offsets[batches * self.batch_size]]].sum(dtype=np.int64))
        return total

    def _pack(self, epoch: int) -> Rows:
        order = hash_order(len(self.lengths), self.seed, epoch, 0)
        if not self.packing:
            return Rows(order, np.arange(len(order) + 1))
        rows = pack(self.lengths, order, self.sequence_length)
        return rows.take(hash_order(len(rows), self.seed, epoch, 1))


@dataclass(frozen=True)
class Steps:
    """What a run takes, exactly."""

    steps: int
    steps_per_epoch: int
    tokens: int


def count_steps(lengths: np.ndarray, trajectory: Trajectory) -> Steps:
    """Counts a run over samples of these lengths (int32[n]); no samples make no steps."""
    if not len(lengths):
        return Steps(0, 0, 0)
    data = trajectory.data
    order = Order(lengths, lengths, trajectory.seed, trajectory.batch_size, data.sequence_length, data.packing)
    steps = order.steps(trajectory.num_train_epochs, trajectory.max_steps)
    return Steps(steps, order.batches, order.tokens(steps))


def deal(row_lengths: list[int], workers: int, micro_batch_size: int) -> list[list[list[int]]]:
    """Deals one global batch: for each rank its micro-batches, each a list of row positions.

    Every rank has equally many micro-batches; those past a rank's rows are empty (zero weight). Ranks get the same
    number of rows, give or take one, and about equally many tokens: the longest row goes to the lightest rank that
    still has room. Within a rank rows go from long to short, so that ranks work on similar lengths at a time.
    """
    few, more = divmod(len(row_lengths), workers)
    lightest = [(0, rank) for rank in range(workers)]
    dealt: list[list[int]] = [[] for _ in range(workers)]
    for position in sorted(range(len(row_lengths)), key=lambda position: (-row_lengths[position], position)):
        tokens, rank = heapq.heappop(lightest)
        while len(dealt[rank]) >= few + (more > 0):  # full for good: `more` only falls
            tokens, rank = heapq.heappop(lightest)
        more -= len(dealt[rank]) == few
        dealt[rank].append(position)
        heapq.heappush(lightest, (tokens + row_lengths[position], rank))
    steps = -(-max(map(len, dealt)) // micro_batch_size)
    return [[rows[step * micro_batch_size : (step + 1) * micro_batch_size] for step in range(steps)] for rows in dealt]
