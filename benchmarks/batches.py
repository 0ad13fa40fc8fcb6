"""The batches that contenders share: a .npz of every document a run trains on, by step, rank and micro-batch.

One flat table: document i is tokens[starts[i]:starts[i+1]], with a flag per token that says whether it is supervised.
`python benchmarks/batches.py RUN_FOLDER OUT.npz` writes what a run of Shoal reads, from its plan and its prepared data.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Documents:
    """Documents of one micro-batch: token ids (int64) and supervised flags (bool), each a list of (tokens,) arrays."""

    tokens: list[np.ndarray]
    supervised: list[np.ndarray]


def write(path: Path, steps: list[list[list[Documents]]]) -> None:
    """`steps[step][rank][micro]`; the file appears whole or not at all."""
    tokens, supervised, lengths, places = [], [], [], []
    shape = []
    for step, ranks in enumerate(steps):
        for rank, micros in enumerate(ranks):
            shape.append((step, rank, len(micros)))
            for micro, documents in enumerate(micros):
                for ids, flags in zip(documents.tokens, documents.supervised, strict=True):
                    tokens.append(ids)
                    supervised.append(flags)
                    lengths.append(len(ids))
                    places.append((step, rank, micro))
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        tokens=np.concatenate(tokens).astype(np.int32),
        supervised=np.concatenate(supervised).astype(bool),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        places=np.array(places, dtype=np.int32),
        shape=np.array(shape, dtype=np.int32),
    )
    part.replace(path)


class Batches:
    """What `write` wrote, read by one rank."""

    def __init__(self, path: Path):
        with np.load(path) as file:
            self._columns = {name: file[name] for name in file.files}
        self.steps = int(self._columns["shape"][:, 0].max()) + 1
        self.world = int(self._columns["shape"][:, 1].max()) + 1
        self._micros = {(step, rank): micros for step, rank, micros in self._columns["shape"].tolist()}

    def micro_batches(self, step: int, rank: int) -> list[Documents]:
        """This rank's micro-batches of a step (from 0); one without documents weighs nothing."""
        places, starts = self._columns["places"], self._columns["starts"]
        micros = [Documents([], []) for _ in range(self._micros[step, rank])]
        for row in np.flatnonzero((places[:, 0] == step) & (places[:, 1] == rank)):
            span = slice(starts[row], starts[row + 1])
            documents = micros[places[row, 2]]
            documents.tokens.append(self._columns["tokens"][span].astype(np.int64))
            documents.supervised.append(self._columns["supervised"][span])
        return micros

    def counts(self, step: int) -> tuple[int, int]:
        """(tokens, supervised targets) of the step over all ranks; a document's first token is nobody's target."""
        rows = np.flatnonzero(self._columns["places"][:, 0] == step)
        starts = self._columns["starts"]
        tokens = int((starts[rows + 1] - starts[rows]).sum())
        flags = self._columns["supervised"]
        return tokens, sum(int(flags[starts[row] + 1 : starts[row + 1]].sum()) for row in rows)


def of_run(folder: Path, steps: int) -> list[list[list[Documents]]]:
    """The first `steps` global batches of a run of Shoal, as its own reader deals them to its workers."""
    from shoal.data.order import Order
    from shoal.data.prepared import Prepared
    from shoal.data.reader import Reader
    from shoal.plan.types import Plan
    from shoal.storage import Storage

    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    trajectory, workers = plan.trajectory, plan.layout.workers
    prepared = Prepared.open(Storage(plan.storage.s3), plan.storage.prepared, Path(plan.storage.cache).expanduser())
    order = Order(
        prepared.lengths,
        prepared.targets,
        trajectory.seed,
        trajectory.batch_size,
        trajectory.data.sequence_length,
        trajectory.data.packing,
    )
    readers = [Reader(prepared, order, rank, workers, plan.layout.micro_batch_size) for rank in range(workers)]
    last = min(steps, order.steps(trajectory.num_train_epochs, trajectory.max_steps))
    return [
        [
            [
                Documents([d.input_ids for d in micro.documents], [d.loss_mask for d in micro.documents])
                for micro in reader.step(number).micro_batches
            ]
            for reader in readers
        ]
        for number in range(1, last + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="local run folder with plan.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10**9)
    given = parser.parse_args()
    write(given.out, of_run(given.run, given.steps))


if __name__ == "__main__":
    main()
