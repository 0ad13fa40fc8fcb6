"""From the rows of a survey to its figures."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal import __version__
from shoal.data.prepared import Prepared
from shoal.plan.types import DataPlan
from shoal.rows.formats import REMEDIES
from shoal.survey import figures
from shoal.survey.duplicates import largest, repeated
from shoal.survey.figures import Pair, Survey
from shoal.survey.surveyed import Alike, Surveyed
from shoal.survey.units import Counts

SHOWN = 5
REPEATED_PROMPTS = 3
"""Different prompts from which on one answer is worth a line."""
BARS = 20
WIDTHS = sorted(step * 10**power for step in (1, 2, 5) for power in range(10))
"""Of a bar, in tokens."""


def findings(data: DataPlan, rows: Surveyed, prepared: Prepared | None, sampled: float, threshold: float) -> Survey:
    """The figures of these rows, of which a share `sampled` has signatures."""
    summary = prepared.summary if prepared else None
    encoded = rows.encoded(prepared)
    train, held = encoded & ~rows.held_out, encoded & rows.held_out
    copied = rows.exact(train)
    rejected = _rejected(rows, prepared)
    return Survey(
        shoal=__version__,
        digest=data.digest,
        prepared=prepared.url if prepared else None,
        rows=sum(unit.rows for unit in rows.counts),
        accepted=int(encoded.sum()),
        sources=_sources(data, rows.counts),
        rejected=rejected,
        train=_split(summary.samples, summary.tokens, summary.targets) if summary else None,
        validation=_split(summary.validation_samples, summary.validation_tokens, summary.validation_targets)
        if summary and summary.validation_samples
        else None,
        turns=_summed(unit.turns for unit in rows.counts),
        lengths=_lengths(prepared, data.overlength) if prepared else None,
        packing=_packing(prepared) if prepared else None,
        exact_duplicates=_exact(rows, copied, train),
        near_duplicates=_near(rows, train & (copied < 0), threshold, sampled),
        answers=_answers(rows, train, sum(one.rows for one in rejected if one.cause == "empty-answer")),
        leakage=_leakage(rows, train, held, threshold) if held.any() else None,
        languages=_languages(rows),
        ids=_ids(rows, train),
    )


def _sources(data: DataPlan, counts: Sequence[Counts]) -> tuple[figures.SourceFigures, ...]:
    found = []
    for number, source in enumerate((*data.train, *data.validation)):
        mine = [unit for unit in counts if unit.source == number]
        found.append(
            figures.SourceFigures(
                split="train" if number < len(data.train) else "validation",
                path=source.path,
                format=source.format,
                weight=source.weight,
                objects=len(source.objects),
                bytes=sum(one.size for one in source.objects),
                rows=sum(unit.rows for unit in mine),
                accepted=sum(unit.accepted for unit in mine),
                other_formats=_summed(unit.other_formats for unit in mine),
            )
        )
    return tuple(found)


def _rejected(rows: Surveyed, prepared: Prepared | None) -> tuple[figures.Rejection, ...]:
    """Causes with the most rows first; those that only encoding finds come from the prepared data."""
    examples: dict[str, list[tuple[figures.Place, str]]] = {}
    for unit, before in zip(rows.counts, rows.before, strict=True):
        for cause, some in unit.examples.items():
            kept = examples.setdefault(cause, [])
            kept += [(figures.Place(object=unit.url, line=line + before), detail) for line, detail in some]
    counts = _summed(unit.rejected for unit in rows.counts)
    if prepared:
        counts = prepared.summary.rejected
        for one in prepared.summary.examples:
            if all(one.cause not in unit.rejected for unit in rows.counts):
                kept = examples.setdefault(one.cause, [])
                kept.append((figures.Place(object=one.object, line=one.line), one.detail))
    return tuple(
        figures.Rejection(
            cause=cause, rows=count, remedy=REMEDIES[cause], examples=tuple(examples.get(cause, ())[:SHOWN])
        )
        for cause, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    )


def _split(samples: int, tokens: int, targets: int) -> figures.SplitFigures:
    share = targets / max(tokens, 1)
    return figures.SplitFigures(samples=samples, tokens=tokens, targets=targets, supervised_share=share)


def _lengths(prepared: Prepared, overlength: str) -> figures.Lengths | None:
    lengths, limit = prepared.lengths, prepared.summary.sequence_length
    if not len(lengths):
        return None
    low, median, p90, p99, high = np.percentile(lengths, [0, 50, 90, 99, 100], method="lower").tolist()
    width = next(width for width in WIDTHS if high // width - low // width < BARS)
    heights = np.bincount(lengths // width)[low // width :]
    bars = [
        figures.Bar(low=place * width, high=(place + 1) * width - 1, count=count)
        for place, count in enumerate(heights.tolist(), low // width)
    ]
    at_limit = int((lengths == limit).sum())
    return figures.Lengths(
        min=low,
        median=median,
        p90=p90,
        p99=p99,
        max=high,
        mean=float(lengths.mean(dtype=np.float64)),
        histogram=tuple(bars),
        at_limit=at_limit,
        truncated=at_limit if overlength == "truncate" else 0,
        sequence_length=limit,
    )


def _packing(prepared: Prepared) -> figures.Packing | None:
    found = prepared.summary
    if not found.packed_rows:
        return None
    full = found.tokens / (found.packed_rows * found.sequence_length)
    return figures.Packing(rows=found.packed_rows, efficiency=full)


def _exact(rows: Surveyed, of: np.ndarray, train: np.ndarray) -> figures.ExactDuplicates:
    count = int((of >= 0).sum())
    return figures.ExactDuplicates(
        rows=count,
        groups=len(np.unique(of[of >= 0])),
        share=count / max(int(train.sum()), 1),
        largest=tuple(figures.Copies(rows=many, first=rows.place(row)) for row, many in largest(of, SHOWN)),
    )


def _near(rows: Surveyed, among: np.ndarray, threshold: float, sampled: float) -> figures.NearDuplicates:
    alike, compared = rows.near(among, threshold)
    return figures.NearDuplicates(
        threshold=threshold,
        compared=compared,
        sampled=sampled,
        rows=len(alike.row),
        share=len(alike.row) / max(compared, 1),
        examples=_pairs(rows, alike),
    )


def _answers(rows: Surveyed, train: np.ndarray, empty: int) -> figures.Answers:
    chosen = np.flatnonzero(train)
    found = repeated(rows.rows["answer"][chosen], rows.rows["prompt"][chosen])
    worth = min(SHOWN, int((found.prompts >= REPEATED_PROMPTS).sum()))
    shown = zip(found.row[:worth].tolist(), found.prompts[:worth].tolist(), found.rows[:worth].tolist(), strict=True)
    return figures.Answers(
        empty=empty,
        repeated_rows=int(found.rows.sum()),
        repeated=tuple(
            figures.RepeatedAnswer(prompts=prompts, rows=many, example=rows.place(int(chosen[row]), "answer"))
            for row, prompts, many in shown
        ),
    )


def _leakage(rows: Surveyed, train: np.ndarray, held: np.ndarray, threshold: float) -> figures.Leakage:
    exact, exact_of = rows.same("content", train, held)
    asked, _ = rows.same("prompt", train, held)
    rest = held.copy()
    rest[exact] = False
    alike = rows.across(train, rest, threshold)
    near_rows, first = np.unique(alike.of, return_index=True)
    new = ~np.isin(asked, exact)
    shown = [
        Alike(exact, exact_of, np.ones(len(exact), np.float32)),
        Alike(near_rows, alike.row[first], alike.similarity[first]),
    ]
    return figures.Leakage(
        held_out=int(held.sum()),
        exact=len(exact),
        near=len(near_rows),
        near_compared=int(rest[rows.places].sum()),
        prompt=int(new.sum()),
        examples=tuple(pair for some in shown for pair in _pairs(rows, some)),
    )


def _ids(rows: Surveyed, train: np.ndarray) -> figures.Ids | None:
    chosen = np.flatnonzero(train & (rows.rows["id"] != 0))
    if not len(chosen):
        return None
    order = chosen[np.lexsort((chosen, rows.rows["id"][chosen]))]
    ids = rows.rows["id"][order]
    again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    pairs = Alike(order[again], order[again - 1], np.zeros(len(again), np.float32))
    return figures.Ids(rows=len(chosen), duplicates=len(again), examples=_pairs(rows, pairs))


def _languages(rows: Surveyed) -> figures.Languages:
    prompts, answers, differ, sampled = Counter[str](), Counter[str](), 0, 0
    for pair, count in _summed(unit.languages for unit in rows.counts).items():
        asked, answered = pair.split()
        prompts[asked] += count
        answers[answered] += count
        sampled += count
        differ += count if asked != answered and "und" not in (asked, answered) else 0
    examples = [
        (figures.Place(object=unit.url, line=line + before), asked, answered)
        for unit, before in zip(rows.counts, rows.before, strict=True)
        for line, asked, answered in unit.differ
    ]
    return figures.Languages(
        sampled=sampled,
        prompts=dict(prompts.most_common()),
        answers=dict(answers.most_common()),
        differ=differ,
        examples=tuple(examples[:SHOWN]),
    )


def _pairs(rows: Surveyed, alike: Alike) -> tuple[Pair, ...]:
    """The first few."""
    columns = (alike.row[:SHOWN].tolist(), alike.of[:SHOWN].tolist(), alike.similarity[:SHOWN].tolist())
    return tuple(
        Pair(row=rows.place(row), of=rows.place(of), similarity=round(similarity, 3))
        for row, of, similarity in zip(*columns, strict=True)
    )


def _summed(counts: Any) -> dict[Any, int]:
    """One counter of many, most first."""
    total: Counter[Any] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items(), key=lambda item: (-item[1], str(item[0]))))
