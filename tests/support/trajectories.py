"""What a run did, from the outside: the samples each rank took for each step, and the losses in the run folder."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Taken:
    """One step of the trajectory that counts: the newest group's that took it."""

    step: int
    epoch: int
    samples: tuple[str, ...]
    """Ids over all ranks, sorted."""
    workers: int
    times: int
    """How many groups took this step, the one that counts among them."""
    time: float
    """When its first rank took it, in seconds since the epoch."""


def taken(record: Path, after: float = 0.0) -> list[Taken]:
    """The trajectory that counts, from what was written down since `after` (seconds since the epoch).

    A group's part of a step counts only when every rank of it took the step.
    """
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for path in record.glob("*.jsonl"):
        for row in _rows(path):
            if row["time"] >= after:
                groups[row["step"], row["group"]].append(row)
    steps: dict[int, list[list[dict[str, Any]]]] = defaultdict(list)
    for (step, _), rows in groups.items():
        if sorted(row["rank"] for row in rows) == list(range(rows[0]["size"])):
            steps[step].append(rows)
    found = []
    for step, attempts in sorted(steps.items()):
        last = max(attempts, key=lambda rows: max(row["time"] for row in rows))
        samples = sorted(sample for row in last for sample in row["samples"])
        found.append(
            Taken(
                step, last[0]["epoch"], tuple(samples), last[0]["size"], len(attempts), min(row["time"] for row in last)
            )
        )
    return found


def wrong_samples(found: Sequence[Taken], wanted: Sequence[Taken]) -> int:
    """Samples that a run read too often or not at all, beside one that was never interrupted."""
    mine, theirs = ({one.step: one.samples for one in each} for each in (found, wanted))
    wrong = 0
    for step in mine.keys() | theirs.keys():
        left, right = list(mine.get(step, ())), list(theirs.get(step, ()))
        for sample in mine.get(step, ()):
            if sample in right:
                left.remove(sample)
                right.remove(sample)
        wrong += len(left) + len(right)
    return wrong


def uneven_epochs(found: Sequence[Taken]) -> int:
    """Samples that were not read once in each epoch that the run went through; of the last one, those read twice."""
    epochs: dict[int, Counter[str]] = defaultdict(Counter)
    for one in found:
        epochs[one.epoch].update(one.samples)
    every = set().union(*epochs.values())
    wrong = sum(count - 1 for read in epochs.values() for count in read.values())
    return wrong + sum(len(every - read.keys()) for epoch, read in epochs.items() if epoch < max(epochs))


def repeated(found: Sequence[Taken]) -> int:
    """Steps that were taken again."""
    return sum(one.times - 1 for one in found)


def losses(folder: Path) -> dict[int, float]:
    """Each step's loss in metrics.jsonl; a step that stands there twice is an error."""
    rows = [row for row in _rows(folder / "metrics.jsonl") if row["kind"] == "step"]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), f"steps are told twice or out of order: {steps}"
    return {row["step"]: row["loss"] for row in rows}


def furthest(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest difference of two loss curves; infinite when they are not of the same steps."""
    if one.keys() != other.keys():
        return float("inf")
    return max((abs(one[step] - other[step]) for step in one), default=float("inf"))


def _rows(path: Path) -> list[dict[str, Any]]:
    """A process that was killed may leave half a line at the end."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
