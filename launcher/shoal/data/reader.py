"""One rank's part of each global batch, read ahead of the step that needs it."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shoal.data.access import Request
from shoal.data.order import Order, deal
from shoal.data.prepared import Prepared
from shoal.data.summary import VALIDATION
from shoal.rows.template import Encoded

AHEAD_STEPS = 16
AHEAD_BYTES = 64 * 2**20
"""How far a rank reads ahead: so many steps, fewer when they could be larger together, but one in any case."""
PATIENCE_STEPS = 16
"""Whole shards are waited for when they arrive before so many steps could be read by ranges."""
TOKEN_BYTES = 9
"""An Encoded holds so many per token."""

Item = TypeVar("Item")


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
    samples: np.ndarray
    """int64[n]: this rank's, micro-batch after micro-batch."""


@dataclass(frozen=True)
class Part:
    """What one rank reads of a global batch."""

    samples: np.ndarray
    """int64[n]: micro-batch after micro-batch."""
    counts: list[int]
    """Samples of each micro-batch."""
    targets: int
    tokens: int


class Reader:
    """What rank `rank` of `workers` reads."""

    def __init__(self, prepared: Prepared, order: Order, rank: int, workers: int, micro_batch_size: int):
        self.prepared, self.order = prepared, order
        self.rank, self.workers, self.micro_batch_size = rank, workers, micro_batch_size

    def step(self, step: int) -> StepBatch:
        """This rank's part of step `step` (the first is 1)."""
        return self._finish(step, *self._begin(step))

    def steps(self, first: int, last: int) -> Iterator[StepBatch]:
        """Steps first..last, both included. What is read ahead is not consumed: a new call starts where it is told.

        Memory holds `ahead` steps, and the bytes of as many more on their way. What the store refuses is raised at the
        step that needs it.
        """
        yield from _ahead(self._produce(first, last), self.ahead)

    @property
    def ahead(self) -> int:
        """Steps that are read ahead."""
        rows = -(-self.order.batch_size // self.workers)
        return _fitting(rows * self.order.sequence_length)

    def validation(self) -> "Validation":
        """This rank's part of the held-out samples: each on one rank, equally many micro-batches on all.

        Read as they are asked for, so that memory does not grow with the split.
        """
        lengths, targets = self.prepared.validation_lengths, self.prepared.validation_targets
        if not len(lengths):
            return Validation(self.prepared, Part(np.empty(0, np.int64), [], 0, 0), 1)
        self.prepared.keep()
        # micro-batches of the whole split are dealt as one global batch
        order = Order(lengths, targets, 0, len(lengths), self.order.sequence_length, self.order.packing)
        part = _part(order, order.batch(order.locate(1)), self.rank, self.workers, self.micro_batch_size)
        return Validation(self.prepared, part, _fitting(self.micro_batch_size * self.order.sequence_length))

    def _produce(self, first: int, last: int) -> Iterator[StepBatch]:
        """Keeps the requests of several steps in flight; a step that has arrived is not kept waiting by planning.

        The first step is asked for alone, so that nothing stands in its way; so are those while whole shards arrive, which
        ranges of many steps would only slow down.
        """
        begun: deque[tuple[Part, Request]] = deque()
        took = 0.0
        for step in range(first, last + 1):
            asked = time.monotonic()
            if took and self.prepared.arriving:
                self.prepared.let_arrive(PATIENCE_STEPS * took)
            ahead = 1 if self.prepared.arriving else min(self.ahead, 2 * (step - first) + 1)
            while len(begun) < ahead and step + len(begun) <= last and not (begun and begun[0][1].is_ready()):
                begun.append(self._begin(step + len(begun)))
            read = self._finish(step, *begun.popleft())
            took = took or time.monotonic() - asked
            self.prepared.keep()
            yield read

    def _begin(self, step: int) -> tuple[Part, Request]:
        rows = self.order.batch(self.order.locate(step))
        part = _part(self.order, rows, self.rank, self.workers, self.micro_batch_size)
        return part, self.prepared.request(part.samples)

    def _finish(self, step: int, part: Part, request: Request) -> StepBatch:
        documents = iter(self.prepared.take(request))
        micro_batches = [MicroBatch([next(documents) for _ in range(count)]) for count in part.counts]
        return StepBatch(step, self.order.locate(step).epoch, part.targets, part.tokens, micro_batches, part.samples)


class Validation:
    """Micro-batches in turn, read ahead while one is computed."""

    def __init__(self, prepared: Prepared, part: Part, ahead: int):
        self._prepared, self._part, self._ahead = prepared, part, ahead

    def __len__(self) -> int:
        return len(self._part.counts)

    def __iter__(self) -> Iterator[MicroBatch]:
        return _ahead(self._produce(), self._ahead)

    def _produce(self) -> Iterator[MicroBatch]:
        micros = np.split(self._part.samples, np.cumsum(self._part.counts)[:-1]) if len(self) else []
        begun: deque[Request] = deque()
        for number in range(len(micros)):
            while len(begun) < self._ahead and number + len(begun) < len(micros):
                begun.append(self._prepared.request(micros[number + len(begun)], VALIDATION))
            yield MicroBatch(self._prepared.take(begun.popleft()))


def _part(order: Order, rows: list[np.ndarray], rank: int, workers: int, micro_batch_size: int) -> Part:
    """Deals a global batch, whose rows are given as sample indices."""
    samples = np.concatenate(rows)
    lengths = order.lengths[samples]
    starts = np.cumsum([0, *map(len, rows[:-1])])
    micros = deal(np.add.reduceat(lengths, starts).tolist(), workers, micro_batch_size)[rank]
    mine = [rows[row] for micro in micros for row in micro]
    return Part(
        samples=np.concatenate([np.empty(0, np.int64), *mine]),
        counts=[sum(len(rows[row]) for row in micro) for micro in micros],
        targets=int(order.targets[samples].sum(dtype=np.int64)),
        tokens=int(lengths.sum(dtype=np.int64)),
    )


def _fitting(tokens: int) -> int:
    """How many pieces of at most so many tokens are held ahead."""
    return max(1, min(AHEAD_STEPS, AHEAD_BYTES // (TOKEN_BYTES * tokens)))


def _ahead(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """The items in order, made in a thread, at most `ahead` before they are asked for; an exception comes in its place."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        asked: deque[Future[Item | None]] = deque(thread.submit(next, items, None) for _ in range(ahead))
        try:
            while (item := asked.popleft().result()) is not None:
                asked.append(thread.submit(next, items, None))
                yield item
        finally:
            for future in asked:
                future.cancel()
