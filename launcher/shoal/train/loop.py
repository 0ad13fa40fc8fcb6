"""The loop: read a global batch, accumulate its exact gradient, step; evaluate and save when due.

Every decision that ranks must share (leave, save, stop early, a loss that is no number) follows from one small all-reduce
per step, so that no rank ever waits for a collective that another does not enter.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import distributed

from shoal.data.order import Order
from shoal.data.prepared import Prepared
from shoal.data.reader import Reader, StepBatch
from shoal.plan.types import Plan
from shoal.tasks import causal_lm
from shoal.train import replay, schedule
from shoal.train.collective import exchange
from shoal.train.engine import Engine, NotANumber
from shoal.train.manifest import Best, Progress
from shoal.train.replay import Keep, NonFinite
from shoal.train.saving import Saver
from shoal.train.world import Directive, Event, World

Item = TypeVar("Item")


class Voice(Protocol):
    """How the loop is heard and told what to do."""

    wish: Directive
    """What this rank was last asked to do."""

    @property
    def waiting(self) -> int:
        """What the store did wrong on this rank since it was last taken: so many events."""
        ...

    def faults(self) -> list[Event]: ...

    def tell(self, event: Event, *, record: bool = True) -> None: ...


WISHES = (Directive.SAVE, Directive.YIELD, Directive.STOP)
"""What a rank may ask of all, the strongest last."""


@dataclass
class Loop:
    """What training one plan on one rank needs; `progress` is where it stands."""

    plan: Plan
    world: World
    engine: Engine
    prepared: Prepared
    order: Order
    reader: Reader
    voice: Voice
    saver: Saver
    keep: Keep
    progress: Progress
    validation_loss: float | None = None
    """Of the newest evaluation, in nats per target."""
    train_loss: float | None = None
    """Of the newest step, in nats per target."""
    _clock: "Clock" = field(default_factory=lambda: Clock())

    @property
    def steps(self) -> int:
        return self.order.steps(self.plan.trajectory.num_train_epochs, self.plan.trajectory.max_steps)

    def run(self) -> Directive:
        """Trains from `progress` to the end; CONTINUE when the run is complete, STOP or YIELD when it left early.

        At step 0 the held-out loss is taken already.
        """
        rates = schedule.learning_rates(self.plan.trajectory.optimizer, self.steps)
        if self._exhausted():
            return Directive.CONTINUE
        self.voice.tell({"kind": "phase", "phase": "training", "detail": f"{self.steps} steps"})
        self._clock.start()
        for batch in self._clock.waiting(self.reader.steps(self.progress.step + 1, self.steps)):
            wish = self._step(batch, rates(batch.step))
            if self._evaluation_due() and self.take(*self.measure()):
                wish = Directive(max(wish.value, Directive.SAVE.value))
            last = self.progress.step == self.steps or self._exhausted()
            if last or wish != Directive.CONTINUE or self.saver.due(self.progress.step):
                self.saver.save(self.progress)
                self.voice.wish = Directive.CONTINUE
                self._clock.start()
            if last or wish in (Directive.STOP, Directive.YIELD):
                self.saver.finish()
                self.tell_faults()
                return Directive.CONTINUE if last else wish
            self.saver.tell()
            self.world.pulse.mark("waiting for data")
        return Directive.CONTINUE

    def _step(self, batch: StepBatch, learning_rate: float) -> Directive:
        """One optimizer step. A global batch without a target changes nothing, on every rank alike."""
        trajectory = self.plan.trajectory
        torch.manual_seed(_mixed(trajectory.seed, batch.step, self.world.rank))
        self.engine.train()
        losses: list[torch.Tensor] = []
        total = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        if batch.targets:
            for micro in batch.micro_batches:
                self.world.pulse.mark("computing")
                documents = causal_lm.collate(micro.documents, self.engine.device)
                losses.append(self.engine.accumulate(documents, batch.targets))
                total += losses[-1]
        loss, cpu_seconds, data_seconds, wish = self._agree(float(total))
        norm, moved = None, False
        try:
            if batch.targets:
                norm, moved = self._update(loss, learning_rate), True
        except NonFinite as error:
            self._skip(error, batch, losses)
        if moved:
            self.train_loss = loss / batch.targets
            self.progress = self.progress.model_copy(update={"skipped_in_a_row": 0})
        else:
            self.engine.set_step(batch.step)
        self.world.pulse.mark(step=batch.step)
        seconds = self._clock.lap()
        cursor = self.order.locate(batch.step + 1)
        self.progress = self.progress.model_copy(
            update={
                "step": batch.step,
                "epoch": cursor.epoch,
                "batch": cursor.batch,
                "tokens": self.progress.tokens + batch.tokens,
                "seconds": self.progress.seconds + seconds,
            }
        )
        self.voice.tell(
            {
                "kind": "step",
                "step": batch.step,
                "steps": self.steps,
                "epoch": batch.epoch,
                "loss": self.train_loss if moved else None,
                "learning_rate": learning_rate,
                "grad_norm": norm,
                "tokens": batch.tokens,
                "targets": batch.targets,
                "seconds": seconds,
                "data_seconds": data_seconds,
                "cpu_seconds": cpu_seconds,
                "tokens_per_s": batch.tokens / seconds,
            },
            record=batch.step % self.plan.logging_steps == 0 or batch.step == self.steps,
        )
        return wish

    def _agree(self, loss_sum: float) -> tuple[float, float, float, Directive]:
        """The step's global loss sum, the CPU seconds of all workers, the longest wait of any for its data, the strongest
        wish of any."""
        wish = max(self.voice.wish, self.world.pulse.wish, key=lambda one: one.value)
        waits = [0.0] * self.world.size  # each rank fills its own place, for a sum is all that is reduced
        waits[self.world.rank] = self._clock.wait_lap()
        asked = [*(wish == one for one in WISHES), self.voice.waiting]
        numbers = torch.tensor(
            [loss_sum, self._clock.cpu_lap(), *asked, *waits], dtype=torch.float64, device=self.engine.device
        )
        if self.world.size > 1:
            with self.world.pulse.collective():
                distributed.all_reduce(numbers)
        loss, cpu_seconds, save, leave, stop, faults, *waits = numbers.tolist()
        if faults:
            self.tell_faults()
        agreed = [one for one, asked in zip(WISHES, (save, leave, stop), strict=True) if asked]
        return loss, cpu_seconds, max(waits), agreed[-1] if agreed else Directive.CONTINUE

    def tell_faults(self) -> None:
        """Every rank's faults of the store reach rank 0's journal. All ranks call this together."""
        for rank, faults in enumerate(exchange(self.world, self.voice.faults())):
            for event in faults:
                self.voice.tell({**event, "rank": rank})

    def _update(self, loss: float, learning_rate: float) -> float | None:
        """Moves the weights; the gradient's norm. Raises NonFinite on every rank alike, with the weights as they were."""
        if not math.isfinite(loss):
            self.engine.discard()
            raise NonFinite("loss", loss)
        try:
            return self.engine.step(learning_rate)
        except NotANumber as error:
            raise NonFinite("gradient", error.args[0]) from None

    def _skip(self, error: NonFinite, batch: StepBatch, losses: list[torch.Tensor]) -> None:
        """Leaves the step out, or ends the run with its batch kept, as `train.on_nan` says."""
        before = self.progress.skipped_in_a_row
        if self.plan.trajectory.on_nan == "stop" or before == replay.MAX_IN_A_ROW:
            kept = self.keep(error, batch, [float(loss) for loss in losses])
            raise replay.refusal(error, batch.step, self.order, self.prepared, kept, before)
        self.progress = self.progress.model_copy(
            update={"skipped": self.progress.skipped + 1, "skipped_in_a_row": before + 1}
        )
        self.voice.tell(replay.skipped(error, batch, self.progress, self.order, self.prepared))

    def _evaluation_due(self) -> bool:
        step, every = self.progress.step, self.plan.trajectory.eval_steps
        if not self.holds_out:
            return False
        if step == self.steps:
            return True
        return step % every == 0 if every else self.progress.batch == 0

    @property
    def holds_out(self) -> bool:
        """Whether there is anything to evaluate on."""
        return len(self.prepared.validation_lengths) > 0

    def measure(self) -> tuple[float, int]:
        """(nats per target, targets) over the whole held-out split, each target counted once whatever the world."""
        self.voice.tell({"kind": "phase", "phase": "evaluating", "detail": f"step {self.progress.step}"})
        self.engine.eval()
        total, targets = 0.0, 0
        for micro in self.reader.validation():
            self.world.pulse.mark("evaluating")
            batch = causal_lm.collate(micro.documents, self.engine.device)
            total += float(self.engine.loss_sum(batch))
            targets += len(batch.labels)
        sums = torch.tensor([total, targets], dtype=torch.float64, device=self.engine.device)
        if self.world.size > 1:
            with self.world.pulse.collective():
                distributed.all_reduce(sums)
        self.engine.train()
        return float(sums[0] / sums[1]), int(sums[1])

    def take(self, loss: float, targets: int) -> bool:
        """Writes down and tells the held-out loss of this step; whether it deserves a checkpoint of its own."""
        self.validation_loss = loss
        self.voice.tell(
            {
                "kind": "eval",
                "step": self.progress.step,
                "loss": loss,
                "perplexity": math.exp(min(loss, 700)),
                "targets": targets,
            }
        )
        self.voice.tell({"kind": "phase", "phase": "training", "detail": f"{self.steps} steps"})
        self._clock.start()
        best = self.progress.best
        if self.progress.step == 0:
            self.progress = self.progress.model_copy(update={"base_loss": loss})
            return False
        better = math.isfinite(loss) and (best is None or loss < best.loss)
        self.progress = self.progress.model_copy(
            update={
                "best": Best(step=self.progress.step, loss=loss) if better else best,
                "evaluations_without_improvement": 0 if better else self.progress.evaluations_without_improvement + 1,
            }
        )
        return better and self.plan.trajectory.load_best_model_at_end

    def _exhausted(self) -> bool:
        patience = self.plan.trajectory.early_stopping_patience
        return patience is not None and self.progress.evaluations_without_improvement >= patience


class Clock:
    """Wall and CPU seconds since the last lap, evaluation and saving left out, and those spent waiting for data."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.wall, self.cpu, self.waited = time.perf_counter(), time.process_time(), 0.0

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items as they come; the wait for each is counted."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield item

    def lap(self) -> float:
        before, self.wall = self.wall, time.perf_counter()
        return self.wall - before

    def cpu_lap(self) -> float:
        before, self.cpu = self.cpu, time.process_time()
        return self.cpu - before

    def wait_lap(self) -> float:
        before, self.waited = self.waited, 0.0
        return before


def _mixed(seed: int, step: int, rank: int) -> int:
    """Dropout's seed: a function of the step, so that a resume draws what the uninterrupted run would have drawn."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63
