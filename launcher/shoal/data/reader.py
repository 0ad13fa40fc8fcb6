"""One rank's part of each global batch, read ahead of the step that needs it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import overload

import numpy as np

from shoal.data.order import Order, deal
from shoal.data.prepared import Prepared
from shoal.data.template import Encoded

AHEAD = 2
"""Steps that are read ahead; memory holds so many steps of one rank."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at once; without documents it only keeps step with the others."""

    documents: list[Encoded]


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of an optimizer step; `targets` and `tokens` are of the whole global batch."""

    step: int
    """From 1."""
    epoch: int
    """From 0."""
    targets: int
    tokens: int
    micro_batches: list[MicroBatch]
    """Equally many on every rank."""


class Reader:
    """What rank `rank` of `workers` reads."""

    def __init__(self, prepared: Prepared, order: Order, rank: int, workers: int, micro_batch_size: int):
        self.prepared, self.order = prepared, order
        self.rank, self.workers, self.micro_batch_size = rank, workers, micro_batch_size

    def step(self, step: int) -> StepBatch:
        """This rank's part of step `step` (the first is 1)."""
        cursor = self.order.locate(step)
        rows = self.order.batch(cursor)
        samples = np.concatenate(rows)
        dealt = deal([int(self.order.lengths[row].sum()) for row in rows], self.workers, self.micro_batch_size)
        return StepBatch(
            step=step,
            epoch=cursor.epoch,
            targets=int(self.order.targets[samples].sum(dtype=np.int64)),
            tokens=int(self.order.lengths[samples].sum(dtype=np.int64)),
            micro_batches=_read(self.prepared.read, [[rows[row] for row in micro] for micro in dealt[self.rank]]),
        )

    def steps(self, first: int, last: int) -> Iterator[StepBatch]:
        """Steps first..last, both included. What is read ahead is not consumed: a new call starts where it is told."""
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
            ahead: deque[Future[StepBatch]] = deque()
            try:
                for step in range(first, last + 1):
                    while len(ahead) <= AHEAD and step + len(ahead) <= last:
                        ahead.append(thread.submit(self.step, step + len(ahead)))
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def validation(self) -> Sequence[MicroBatch]:
        """This rank's part of the held-out samples: each on one rank, equally many micro-batches on all.

        Read when they are asked for, so that memory does not grow with the split.
        """
        lengths = self.prepared.validation_lengths
        if not len(lengths):
            return []
        order = Order(
            lengths, self.prepared.validation_targets, 0, len(lengths), self.order.sequence_length, self.order.packing
        )
        rows = order.batch(order.locate(1))
        dealt = deal([int(lengths[row].sum()) for row in rows], self.workers, self.micro_batch_size)
        return _Lazy(self.prepared.read_validation, [[rows[row] for row in micro] for micro in dealt[self.rank]])


Read = Callable[[np.ndarray], list[Encoded]]


def _read(read: Read, micro_batches: list[list[np.ndarray]]) -> list[MicroBatch]:
    """Reads the samples of all micro-batches (lists of rows) at once."""
    micro_samples = [np.concatenate([np.empty(0, np.int64), *rows]) for rows in micro_batches]
    documents = iter(read(np.concatenate([np.empty(0, np.int64), *micro_samples])))
    return [MicroBatch([next(documents) for _ in samples]) for samples in micro_samples]


class _Lazy(Sequence[MicroBatch]):
    def __init__(self, read: Read, micro_batches: list[list[np.ndarray]]):
        self._of, self._micro_batches = read, micro_batches

    def __len__(self) -> int:
        return len(self._micro_batches)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> "_Lazy": ...
    def __getitem__(self, index: int | slice) -> "MicroBatch | _Lazy":
        if isinstance(index, slice):
            return _Lazy(self._of, self._micro_batches[index])
        return _read(self._of, [self._micro_batches[index]])[0]
