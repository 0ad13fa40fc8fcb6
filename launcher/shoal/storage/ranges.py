"""From the byte ranges that are wanted to the requests that are sent. Pure functions over integers."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]
"""(start, end), end exclusive."""

GAP = 64 << 10
"""Ranges nearer than this are fetched by one request: reading so much more costs no more than asking again, measured on
a store without latency, where asking is cheapest."""
PIECE = 8 << 20
"""The most bytes that one request asks for, so that a failed one is soon made good."""


def requests(wanted: Iterable[Range], gap: int = GAP, piece: int = PIECE) -> list[Range]:
    """Ranges that cover all of `wanted` (none empty), sorted, disjoint, none longer than `piece`."""
    merged: list[Range] = []
    for start, end in sorted(wanted):
        if merged and start - merged[-1][1] <= gap and max(end, merged[-1][1]) - merged[-1][0] <= piece:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif not merged or end > merged[-1][1]:
            merged.append((max(start, merged[-1][1]) if merged else start, end))
    return [part for start, end in merged for part in split(start, end, piece)]


def split(start: int, end: int, piece: int = PIECE) -> list[Range]:
    """[start, end) in parts of at most `piece`."""
    return [(first, min(first + piece, end)) for first in range(start, end, piece)]


def cut(wanted: Range, sent: Sequence[Range], bodies: Sequence[memoryview]) -> bytes:
    """The bytes of one wanted range out of the bodies of `requests`; fewer where a body is short."""
    start, end = wanted
    if start >= end:
        return b""
    number = bisect_right(sent, start, key=lambda one: one[0]) - 1
    parts = []
    while number < len(sent) and sent[number][0] < end:
        first = sent[number][0]
        part = bodies[number][max(0, start - first) : end - first]
        parts.append(part)
        if len(bodies[number]) < sent[number][1] - first:
            break
        number += 1
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
