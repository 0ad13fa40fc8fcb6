"""Which rows are copies of which: pure functions over fingerprints (uint64, 0 for nothing to compare)."""

from dataclasses import dataclass

import numpy as np


def copies(content: np.ndarray) -> np.ndarray:
    """int64[n]: the first row with the same content as row i; -1 where i is the first, or has nothing to compare."""
    order = np.argsort(content, kind="stable")
    content = content[order]
    first = np.append(True, content[1:] != content[:-1])[: len(order)]
    heads = order[first][np.cumsum(first) - 1] if len(order) else order
    of = np.empty(len(order), np.int64)
    of[order] = np.where(first | (content == 0), -1, heads)
    return of


def largest(of: np.ndarray, count: int) -> list[tuple[int, int]]:
    """(row, copies with itself) of the rows with the most copies; `of` as from `copies`."""
    firsts, copied = np.unique(of[of >= 0], return_counts=True)
    order = np.lexsort((firsts, -copied))[:count]
    return list(zip(firsts[order].tolist(), (copied[order] + 1).tolist(), strict=True))


@dataclass(frozen=True)
class Repeated:
    """Answers to several prompts, most prompts first. All int64."""

    row: np.ndarray
    """The first row with the answer."""
    prompts: np.ndarray
    """Different prompts that it answers."""
    rows: np.ndarray


def repeated(answer: np.ndarray, prompt: np.ndarray) -> Repeated:
    """Answers (uint64[n]) that stand behind at least two different prompts (uint64[n])."""
    some = np.flatnonzero(answer)
    order = some[np.lexsort((some, prompt[some], answer[some]))]
    mine, asked = answer[order], prompt[order]
    first = np.append(True, mine[1:] != mine[:-1])[: len(order)]
    new_prompt = first | np.append(True, asked[1:] != asked[:-1])[: len(order)]
    group = np.cumsum(first) - 1
    prompts, rows = np.bincount(group, new_prompt).astype(np.int64), np.bincount(group)
    row = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(row, group, order)
    many = np.flatnonzero(prompts > 1)
    many = many[np.lexsort((row[many], -prompts[many]))]
    return Repeated(row[many], prompts[many], rows[many])


def twins(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
    """int64[len(mine)]: the first place in `others` (uint64[m]) of each of `mine` (uint64[n]); -1 where there is none."""
    if not len(others):
        return np.full(len(mine), -1, np.int64)
    values, places = np.unique(others, return_index=True)
    found = np.minimum(np.searchsorted(values, mine), len(values) - 1)
    return np.where((values[found] == mine) & (mine != 0), places[found], -1)
