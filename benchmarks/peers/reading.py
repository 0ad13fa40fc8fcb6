"""What the readers of benchmarks/data.py have in common: one process that reads batches and says how that went."""

import argparse
import json
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """A reader that was opened and, where a state is given, put back to it."""

    def batches(self) -> Iterator[Sequence[np.ndarray]]:
        """Rows of tokens, `given.batch_size` at a time."""
        ...

    def state(self) -> Any:
        """Where it stands, in a form that can be pickled."""
        ...


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="s3:// folder of the rows in this reader's format")
    parser.add_argument("--objects", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True, help="of each process")
    parser.add_argument("--cache", type=Path, required=True, help="the node's folder, shared by its processes")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument(
        "--began", type=float, required=True, help="when the process was started, in seconds since 1970"
    )
    parser.add_argument("--store", help="folder of the embedded store, for Shoal")
    parser.add_argument("--longest", type=int, help="tokens of the longest row, for Shoal")
    parser.add_argument("--resume", type=Path, help="a state to go on from")
    parser.add_argument("--save", type=Path, help="where the state is written after --save-after batches")
    parser.add_argument("--save-after", type=int, default=0)
    parser.add_argument("--stop-after", type=int, default=0, help="batches; 0: the rest of the epoch")
    return parser.parse_args()


def restored(given: argparse.Namespace) -> Any:
    """The state to go on from, None for the beginning."""
    return pickle.loads(given.resume.read_bytes()) if given.resume else None


def run(given: argparse.Namespace, open_source: Any) -> None:
    """Called when everything is imported: opens the source, reads, and writes the report."""
    imported, cpu_imported = time.time(), _cpu_seconds()
    source: Source = open_source(given)
    times: list[float] = []
    numbers: list[np.ndarray] = []
    tokens = saving = 0.0
    for rows in source.batches():
        times.append(time.time())
        tokens += sum(len(row) for row in rows)
        numbers.append(np.array([int(row[0]) << 16 | int(row[1]) for row in rows], np.int64))
        if given.save and len(times) == given.save_after:
            given.save.write_bytes(pickle.dumps(source.state()))
            saving = time.time() - times[-1]
        if len(times) == given.stop_after:
            break
    np.save(given.report.with_suffix(".npy"), np.concatenate(numbers))
    np.save(given.report.with_suffix(".sizes.npy"), np.array([len(batch) for batch in numbers]))
    body = {
        "import_s": imported - given.began,
        "first_batch_s": times[0] - given.began,
        "opened_to_first_batch_s": times[0] - imported,
        "seconds": times[-1] - imported - saving,
        "seconds_with_start": times[-1] - given.began - saving,
        "cpu_seconds": _cpu_seconds() - cpu_imported,
        "cpu_seconds_with_start": _cpu_seconds(),
        "tokens": int(tokens),
    }
    given.report.write_text(json.dumps(body))


def _cpu_seconds() -> float:
    """User and system, of this process and of its children that have ended."""
    return sum(os.times()[:4])
