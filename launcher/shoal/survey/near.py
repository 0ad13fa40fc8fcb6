"""Near duplicates: MinHash signatures of word shingles (rensa's), and pairs of them by locality-sensitive hashing.

Two rows share each number of their signatures with the probability of their Jaccard similarity, so equal numbers of 128
estimate it, give or take 0.03. Rows are compared where they share a whole band of numbers (Leskovec, Rajaraman, Ullman:
Mining of Massive Datasets, chapter 3), found by sorting, so that memory is a few numbers per row and the pairs are a
function of the signatures alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 128
SEED = 1
BLANK = np.uint32(2**32 - 1)
SHINGLE_WORDS = 3
"""Words that follow each other and count as one feature: long enough that common words do not make rows alike."""
THRESHOLD = 0.8
RECALL = 0.99
"""Share of the pairs at the threshold that bands must find."""
PIVOTS = 8
"""Rows of one band's group that the others are compared with: what keeps a group of a million alike rows cheap."""
BLOCK = 1 << 16
"""Pairs of signatures compared at once: 64 MiB."""

# scripts without spaces between words: each character is a word
_ALONE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s.,;:!?\"'’‘“”„«»¿¡…—。，、！？：；「」『』《》]")
"""Signs are words too, for `5 + 3` is not `5 - 3`; those that only close a sentence are not."""


def shingles(text: str) -> list[str]:
    """Each SHINGLE_WORDS words that follow each other, in lower case; all of a shorter text, nothing of one without."""
    words = _WORD.findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)]


def signatures(texts: Sequence[str]) -> np.ndarray:
    """uint32[len(texts), PERMUTATIONS]; all BLANK for a text without words."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

    if not texts:
        return np.empty((0, PERMUTATIONS), np.uint32)
    found = RMinHash.digests_from_token_sets([shingles(text) for text in texts], PERMUTATIONS, SEED)
    return np.array(found, np.uint32)


def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float32[n]: estimated Jaccard similarity of uint32[n, PERMUTATIONS] with the same of `right`, row by row."""
    return (left == right).mean(axis=1, dtype=np.float32)


def band_rows(threshold: float) -> int:
    """Numbers in a band: as many as still find RECALL of the pairs at the threshold."""
    fitting = [
        rows for rows in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= RECALL
    ]
    return max(fitting, default=1)


@dataclass(frozen=True)
class Links:
    """Pairs of rows that are alike, sorted: `row[i]` resembles the earlier or held-out row `of[i]`."""

    row: np.ndarray
    """int64[pairs]"""
    of: np.ndarray
    """int64[pairs]"""
    similarity: np.ndarray
    """float32[pairs]: estimated."""


def links(found: np.ndarray, threshold: float, pivots: np.ndarray | None = None) -> Links:
    """Pairs of rows of `found` (uint32[n, PERMUTATIONS], in order) at least `threshold` alike.

    Without `pivots` each row is compared with earlier ones; with them (bool[n]) every other row is compared with the
    rows that are marked. At most PIVOTS rows of a band's group are compared with the rest of it.
    """
    width, count = band_rows(threshold), np.int64(max(len(found), 1))
    pairs, new = np.empty(0, np.int64), list[np.ndarray]()  # row x count + of; each once in `pairs`
    for band in range(PERMUTATIONS // width):
        new += [row * count + of for row, of in _band(found, band * width, width, threshold, pivots)]
        if sum(map(len, new)) > max(len(pairs), BLOCK) or (new and band == PERMUTATIONS // width - 1):
            pairs, new = _distinct([pairs, *new]), []
    row, of = pairs // count, pairs % count
    return Links(row, of, _compare(found, row, of))


def _band(
    found: np.ndarray, start: int, width: int, threshold: float, pivots: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows that share this band: of each group of rows the first is compared with the rest, then the next."""
    keys = _keys(found[:, start : start + width])
    # rows in order, but pivots first where there are some
    order = np.argsort(keys, kind="stable") if pivots is None else np.lexsort((~pivots, keys))
    keys = keys[order]
    for _ in range(PIVOTS):
        same = keys[1:] == keys[:-1]
        shared = np.append(same, False) | np.insert(same, 0, False)
        order, keys = order[shared[: len(order)]], keys[shared[: len(order)]]  # groups of one are done
        if not len(order):
            return
        first = np.concatenate(([True], keys[1:] != keys[:-1]))
        heads = order[first][np.cumsum(first) - 1]
        waiting = ~first if pivots is None else ~first & pivots[heads]  # a group without pivots is done
        compared = waiting if pivots is None else waiting & ~pivots[order]
        linked = np.zeros(len(order), np.bool_)
        linked[compared] = _compare(found, order[compared], heads[compared]) >= threshold
        yield order[linked], heads[linked]
        waiting &= ~linked
        order, keys = order[waiting], keys[waiting]


def _distinct(parts: list[np.ndarray]) -> np.ndarray:
    """Sorted, each once: np.unique's hashing takes five times as long here."""
    values = np.sort(np.concatenate(parts))
    return values[np.append(values[1:] != values[:-1], True)] if len(values) else values


def _keys(band: np.ndarray) -> np.ndarray:
    """uint64[n]: one number for each row of uint32[n, width]."""
    key = np.zeros(len(band), np.uint64)
    for column in band.T:
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _compare(found: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    alike = np.empty(len(left), np.float32)
    for start in range(0, len(left), BLOCK):
        block = slice(start, start + BLOCK)
        alike[block] = similarity(found[left[block]], found[right[block]])
    return alike


def first_kept(pairs: Links, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` rows, (of, similarity): the kept row that each is left out for, -1 for those kept (int64, float32).

    Rows are judged in their order: one that resembles a kept row goes. Not one goes for the sake of another that went.
    """
    of, alike = np.full(count, -1, np.int64), np.zeros(count, np.float32)
    for row, other, how in zip(pairs.row.tolist(), pairs.of.tolist(), pairs.similarity.tolist(), strict=True):
        if of[row] < 0 and of[other] < 0:
            of[row], alike[row] = other, how
    return of, alike
