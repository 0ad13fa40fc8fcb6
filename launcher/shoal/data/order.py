"""What is read when: pure integer functions of (lengths, seed, epoch), blind to ranks, worlds and clocks."""

import heapq
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.data.hashing import blocks, hash_order
from shoal.data.mixing import Mixing
from shoal.data.packing import Packing, longest_first
from shoal.plan.types import Trajectory


@dataclass(frozen=True)
class Cursor:
    """A global batch: `batch` counts from 0 within `epoch`, which counts from 0."""

    epoch: int
    batch: int


@dataclass(frozen=True)
class Rows:
    """The rows of one epoch, in the order they are trained on."""

    samples: np.ndarray
    """int32[n]: every sample of the epoch; without packing a row each, with packing from long to short."""
    packing: Packing | None
    order: np.ndarray
    """int32[rows]: the packed rows in the order they are trained on; empty without packing."""

    def __len__(self) -> int:
        return len(self.samples) if self.packing is None else self.packing.rows

    def row(self, number: int) -> np.ndarray:
        """The samples (int64) of row `number`."""
        parts = [slice(number, number + 1)] if self.packing is None else self.packing.parts(self.order[number])
        return np.concatenate([self.samples[part] for part in parts]).astype(np.int64)


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
        sources: np.ndarray | None = None,
        weights: Sequence[float] = (),
    ):
        """`lengths` and `targets`: int32[n], tokens and supervised tokens per sample; batch_size in rows.

        `sources`: int[n], the position in `weights` of each sample's source; without it every epoch reads every sample
        once. The last global batch of an epoch may be short: no row is left out, none is read twice, and the batch counts
        by its own targets. Epochs of fractional weights may differ in their number of batches, down to none.
        """
        self.lengths, self.targets = lengths, targets
        self.seed, self.batch_size = seed, batch_size
        self.sequence_length, self.packing = sequence_length, packing
        self._mixing = Mixing(len(lengths), sources, weights, seed)
        self._rows: list[int] = []
        """Of the first epochs; those of one period of the mixing suffice."""
        self._tokens: list[int] = [0]
        self._batches: list[int] = [0]
        """In all epochs before each, and before the next that nobody asked for yet."""
        self._counting = threading.Lock()
        """The reader's thread asks as well as the loop's."""
        self._packed: tuple[int, Packing] | None = None
        self._held: tuple[int, Rows] | None = None

    def epoch(self, number: int) -> Rows:
        """The rows of epoch `number` (from 0)."""
        held = self._held
        if held is None or held[0] != number:
            held = self._held = None  # never two at a time
            held = self._held = (number, self._make(number))
        return held[1]

    def batches_of(self, epoch: int) -> int:
        """Global batches of epoch `epoch`."""
        return -(-self._rows_of(epoch) // self.batch_size)

    def steps(self, epochs: int, max_steps: int | None) -> int:
        """Optimizer steps of the whole run."""
        whole, part = divmod(epochs, self._mixing.period)
        self._count(self._mixing.period if whole else part, enough=max_steps)
        counted = min(epochs, len(self._rows))
        if max_steps is not None and self._batches[counted] >= max_steps:
            return max_steps
        steps = whole * self._batches[-1] + self._batches[part] if whole else self._batches[part]
        return steps if max_steps is None else min(steps, max_steps)

    def locate(self, step: int) -> Cursor:
        """Where step `step` (the first is 1) reads."""
        assert step >= 1 and len(self.lengths)
        self._count(self._mixing.period, enough=step)
        periods, batches = divmod(step - 1, self._batches[-1])
        epoch = bisect_right(self._batches, batches) - 1
        return Cursor(periods * self._mixing.period + epoch, batches - self._batches[epoch])

    def batch(self, cursor: Cursor) -> list[np.ndarray]:
        """The rows (each int64 sample indices) of one global batch; the last one of an epoch may be short.

        It takes the cursor alone: nothing of earlier epochs or batches.
        """
        rows = self.epoch(cursor.epoch)
        first = cursor.batch * self.batch_size
        return [rows.row(number) for number in range(first, min(first + self.batch_size, len(rows)))]

    def tokens(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        if not steps:
            return 0
        last = self.locate(steps)
        periods, epoch = divmod(last.epoch, self._mixing.period)
        before = periods * self._tokens[-1] + self._tokens[epoch]
        rows = (last.batch + 1) * self.batch_size
        if rows >= self._rows[epoch]:
            return before + self._tokens[epoch + 1] - self._tokens[epoch]
        if not self.packing:
            return before + int(self.lengths[self.epoch(last.epoch).samples[:rows]].sum(dtype=np.int64))
        packing = self._pack(last.epoch)
        return before + packing.tokens(self._sequence(packing, last.epoch)[:rows])

    def _rows_of(self, epoch: int) -> int:
        epoch %= self._mixing.period
        self._count(epoch + 1)
        return self._rows[epoch]

    def _count(self, epochs: int, enough: int | None = None) -> None:
        """Counts the first `epochs` epochs, at most until they hold `enough` batches, from their histograms of lengths."""
        with self._counting:
            while len(self._rows) < epochs and (enough is None or self._batches[-1] < enough):
                epoch = len(self._rows)
                counts = self._mixing.histogram(epoch, self.lengths)
                rows = self._pack(epoch, counts).rows if self.packing else int(counts.sum())
                self._tokens.append(self._tokens[-1] + int(counts @ np.arange(len(counts))))
                self._batches.append(self._batches[-1] - (-rows // self.batch_size))
                self._rows.append(rows)

    def _pack(self, epoch: int, counts: np.ndarray | None = None) -> Packing:
        """The packing of an epoch; `counts` is its histogram of lengths, where it is at hand."""
        epoch %= self._mixing.period
        packed = self._packed
        if packed is None or packed[0] != epoch:
            counts = self._mixing.histogram(epoch, self.lengths) if counts is None else counts
            packed = self._packed = (epoch, Packing(counts, self.sequence_length))
        return packed[1]

    def _sequence(self, packing: Packing, epoch: int) -> np.ndarray:
        """int32[rows]: the packed rows as they are trained on."""
        return hash_order(packing.rows, self.seed, epoch, 1)

    def _make(self, epoch: int) -> Rows:
        order = hash_order(self._mixing.size(epoch), self.seed, epoch, 0)
        if not self._mixing.plain:
            entries = self._mixing.entries(epoch)
            for block in blocks(len(order)):
                order[block] = entries[order[block]]
        if not self.packing:
            return Rows(order, None, np.empty(0, np.int32))
        packing = self._pack(epoch)
        return Rows(longest_first(self.lengths, order, packing.histogram), packing, self._sequence(packing, epoch))


@dataclass(frozen=True)
class Steps:
    """What a run takes, exactly."""

    steps: int
    steps_per_epoch: int
    """Of the first epoch: with fractional weights others may take one more or less."""
    tokens: int


def count_steps(lengths: np.ndarray, trajectory: Trajectory, sources: np.ndarray | None = None) -> Steps:
    """Counts a run over samples of these lengths (int32[n]) and sources (int[n]: their positions in data.train).

    No samples make no steps.
    """
    if not len(lengths):
        return Steps(0, 0, 0)
    data = trajectory.data
    weights = [source.weight for source in data.train]
    order = Order(
        lengths, lengths, trajectory.seed, trajectory.batch_size, data.sequence_length, data.packing, sources, weights
    )
    steps = order.steps(trajectory.num_train_epochs, trajectory.max_steps)
    return Steps(steps, order.batches_of(0), order.tokens(steps))


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
