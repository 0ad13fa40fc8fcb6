"""A global batch whose loss or gradient is no number, kept whole in the run folder: what it took to get there again."""

import json
import math
from collections.abc import Callable

from shoal.data.order import Order
from shoal.data.prepared import Prepared
from shoal.data.reader import StepBatch
from shoal.errors import Problem, StorageError, TrainingError
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.collective import exchange, from_main
from shoal.train.manifest import Progress
from shoal.train.world import Event, World

MAX_IN_A_ROW = 10
"""Steps in a row that `train.on_nan: skip` leaves out; with one more the weights themselves must be broken."""
SHOWN = 8


class NonFinite(ArithmeticError):
    """`what` of a step, its loss or its gradient, is infinite or no number; the weights are as they were before it."""

    def __init__(self, what: str, value: float):
        super().__init__(what, value)
        self.what, self.value = what, value


Keep = Callable[[NonFinite, StepBatch, list[float]], str | None]
"""`keep` for one run; collective."""


def skipped(error: NonFinite, batch: StepBatch, progress: Progress, order: Order, prepared: Prepared) -> Event:
    """What is told of a step that was left out."""
    return {
        "kind": "skipped",
        "step": batch.step,
        "what": error.what,
        "value": str(error.value),
        "in_a_row": progress.skipped_in_a_row,
        "total": progress.skipped,
        "samples": sample_ids(batch.step, order, prepared),
    }


def refusal(
    error: NonFinite, step: int, order: Order, prepared: Prepared, kept: str | None, in_a_row: int
) -> TrainingError:
    """The answer that ends the run. `kept`: where the batch lies; None when the store would not take it."""
    before = f", as were the {in_a_row} steps before it, which were skipped" if in_a_row else ""
    what = f"the {error.what} of the global batch is {error.value}{before}; the weights were not touched"
    where = f"; the whole batch is in {kept}" if kept else ""
    samples = sample_ids(step, order, prepared)
    shown = ", ".join(samples[:SHOWN])
    fix = f"lower optimizer.learning_rate, or look at its {len(samples)} samples: {shown} ...{where}"
    return TrainingError(Problem(f"step {step}", what, fix))


def sample_ids(step: int, order: Order, prepared: Prepared) -> list[str]:
    """Of the global batch, in order."""
    return [prepared.sample_id(int(sample)) for row in order.batch(order.locate(step)) for sample in row]


def keep(
    error: NonFinite,
    batch: StepBatch,
    losses: list[float],
    prepared: Prepared,
    folder: RunFolder,
    storage: Storage,
    world: World,
) -> str | None:
    """Writes the batch of all ranks as one JSON document; collective. Returns its url, None when it cannot be written.

    `losses`: sums over the targets of this rank's micro-batches. Each micro-batch says its rank, its loss and its samples
    with their token ids and which of them are targets, so that the step can be computed again without the data.
    """
    ids = iter(batch.samples.tolist())
    own = [
        {
            "rank": world.rank,
            "loss_sum": loss if math.isfinite(loss) else str(loss),
            "samples": [
                {
                    "id": prepared.sample_id(next(ids)),
                    "input_ids": document.input_ids.tolist(),
                    "loss_mask": document.loss_mask.astype(int).tolist(),
                }
                for document in micro.documents
            ],
        }
        for micro, loss in zip(batch.micro_batches, losses, strict=True)
    ]
    every = [micro for rank in exchange(world, own) for micro in rank]

    def write() -> str | None:
        body = {
            "run": folder.id,
            "step": batch.step,
            "epoch": batch.epoch,
            "what": error.what,
            "value": str(error.value),
            "targets": batch.targets,
            "micro_batches": every,
        }
        try:
            storage.write(folder.replay(batch.step), json.dumps(body).encode())
        except StorageError:
            return None
        return folder.replay(batch.step)

    return from_main(world, write)
