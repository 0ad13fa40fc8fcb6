"""Prepared data of given samples, without tokenizer or source objects."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from shoal.data.publish import publish
from shoal.data.shards import Unit, UnitWriter
from shoal.data.summary import TRAIN, PreparedSummary
from shoal.plan.types import SourceObject
from shoal.rows.formats import Rejected
from shoal.rows.template import Encoded
from shoal.storage import Storage

Line = tuple[list[Encoded], int] | Rejected
"""One row: its pieces and their split, or why it is set apart."""


def encoded(*ids: int) -> Encoded:
    """Odd tokens are learnt."""
    return Encoded(np.array(ids, np.int64), np.array([number % 2 == 1 for number in ids]))


def document(number: int, length: int) -> Encoded:
    """Says its own number in every token; learns all but its first third."""
    mask = np.zeros(length, np.bool_)
    mask[length // 3 :] = True
    return Encoded(np.full(length, number, np.int64), mask)


def write_prepared(
    storage: Storage,
    url: str,
    units: Sequence[Sequence[Line]],
    sequence_length: int = 32,
    vocab_size: int = 50_000,
    digest: str = "d1",
    format: str = "text",
) -> PreparedSummary:
    """Each unit is one object `object-N`, its lines counted from 1."""
    summaries = []
    for number, lines in enumerate(units):
        unit = Unit(number, 0, SourceObject(url=f"object-{number}", size=1, etag="e"))
        with tempfile.TemporaryDirectory() as folder, UnitWriter(Path(folder), unit, vocab_size) as writer:
            for line, row in enumerate(lines, 1):
                if isinstance(row, Rejected):
                    writer.reject(line, {"line": line}, row)
                else:
                    writer.add(line, *row)
            summaries.append(writer.upload(storage, url, len(lines)))
    with tempfile.TemporaryDirectory() as folder:
        return publish(storage, url, summaries, digest, format, sequence_length, Path(folder))


def of_lengths(lengths: Sequence[int], held_out: int = 0, units: int = 2) -> list[list[Line]]:
    """Document i has lengths[i] tokens, each of them i; the last `held_out` are held out."""
    rows: list[Line] = [
        ([document(number, length)], int(number >= len(lengths) - held_out)) for number, length in enumerate(lengths)
    ]
    assert TRAIN == 0
    edges = [len(rows) * number // units for number in range(units + 1)]
    return [rows[start:stop] for start, stop in pairwise(edges)]
