"""Which rows a cleaned set leaves out, and why: decided over the columns of a survey."""

from dataclasses import dataclass

import numpy as np

from shoal.data.prepared import Prepared
from shoal.spec.base import Frozen
from shoal.survey.near import THRESHOLD
from shoal.survey.surveyed import Surveyed

DUPLICATE, NEAR_DUPLICATE, HELD_OUT, NEAR_HELD_OUT = CAUSES = (
    "duplicate",
    "near-duplicate",
    "held-out",
    "near-held-out",
)
NOT_ENCODED = -2
KEPT = -1


class Options(Frozen):
    """What to leave out besides rows that cannot be learnt from."""

    dedupe: bool = False
    """Exact copies of an earlier row."""
    near: bool = False
    """Rows that resemble an earlier one."""
    drop_leaks: bool = False
    """Rows to train on that are held out too, exactly or nearly."""
    threshold: float = THRESHOLD
    """Jaccard similarity from which rows resemble each other."""


@dataclass(frozen=True)
class Removals:
    """One entry per accepted row."""

    cause: np.ndarray
    """int8[n]: position in CAUSES; KEPT, or NOT_ENCODED for rows that preparation set apart."""
    of: np.ndarray
    """int64[n]: the row that stays, or is held out, and that this one resembles; -1."""
    similarity: np.ndarray
    """float32[n]"""


def removals(rows: Surveyed, prepared: Prepared, train_sources: int, options: Options) -> Removals:
    """What goes of the rows of the first `train_sources` sources. The first of several copies stays.

    Rows that data.validation holds out as a share lie in these sources too: copies of theirs go as others do.
    """
    count = len(rows)
    cause, of = np.full(count, KEPT, np.int8), np.full(count, -1, np.int64)
    similarity = np.zeros(count, np.float32)
    encoded = rows.encoded(prepared)
    cause[~encoded] = NOT_ENCODED
    ours = np.repeat([unit.source < train_sources for unit in rows.counts], np.diff(rows.firsts))
    held = encoded & rows.held_out

    def stays() -> np.ndarray:
        return ours & (cause == KEPT)

    def drop(chosen: np.ndarray, others: np.ndarray, alike: np.ndarray | float, why: str) -> None:
        cause[chosen], of[chosen], similarity[chosen] = CAUSES.index(why), others, alike

    if options.dedupe or options.near:
        copies = rows.exact(stays())
        gone = np.flatnonzero(copies >= 0)
        drop(gone, copies[gone], 1.0, DUPLICATE)
    if options.drop_leaks:
        # the held-out rows are the ones that are looked up among those to train on
        train = stays() & ~rows.held_out
        leaked, others = rows.same("content", held, train)
        drop(leaked, others, 1.0, HELD_OUT)
        alike = rows.across(train & (cause == KEPT), held & (cause != CAUSES.index(DUPLICATE)), options.threshold)
        leaked, first = np.unique(alike.row, return_index=True)
        drop(leaked, alike.of[first], alike.similarity[first], NEAR_HELD_OUT)
    if options.near:
        alike, _ = rows.near(stays(), options.threshold)
        drop(alike.row, alike.of, alike.similarity, NEAR_DUPLICATE)
    return Removals(cause, of, similarity)
