"""The one door into training: a plan, a place among the workers, and somebody to report to."""

import json
import sys
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal import models
from shoal.data.order import Order
from shoal.data.prepared import Prepared
from shoal.data.reader import Reader
from shoal.errors import Problem, ShoalError, StorageError, TrainingError
from shoal.infer.generate import answers
from shoal.plan.layout import resized
from shoal.plan.types import Plan
from shoal.rows.template import Encoded
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train import checkpoint, replay, selfcheck
from shoal.train.baseline import Baseline, Shelf
from shoal.train.collective import from_main
from shoal.train.engine import Engine, place
from shoal.train.export import export
from shoal.train.heap import keep_memory
from shoal.train.journal import Journal
from shoal.train.loop import Loop
from shoal.train.manifest import Manifest, Progress
from shoal.train.model import build, load_base
from shoal.train.parts import clear_away
from shoal.train.saving import Saver
from shoal.train.voice import Voice
from shoal.train.world import Directive, Preempted, Report, Result, World

OUT_OF_MEMORY = "lower train.micro_batch_size, set train.gradient_checkpointing, or raise deepspeed.stage"
PROBE_ROWS = 3
PROBE_TOKENS = 64
START = Progress(step=0, epoch=0, batch=0, tokens=0, seconds=0.0)


def run(plan: Plan, world: World, report: Report) -> Result:
    """Trains `plan` from its newest complete checkpoint, or from the start, and exports the result.

    Every rank calls this with the same plan; `report` is called on rank 0 alone. Raises ShoalError for what a person can
    mend; it has then been told and written down.
    """
    if plan.layout.device == "cpu" and sys.platform == "linux":
        keep_memory()
    plain = Storage(plan.storage.s3)
    journal = Journal(plan, RunFolder(plain, plan.storage.run), plain) if world.is_main else None
    if journal is not None:
        world.pulse.attempt = journal.attempt
        journal.catch_up(world.earlier)
    voice = Voice(report, journal, world.pulse)
    storage = Storage(plan.storage.s3, voice.fault)
    folder = RunFolder(storage, plan.storage.run)
    try:
        return Worker(plan, world, storage, folder, voice).run()
    except torch.OutOfMemoryError as error:
        answer = TrainingError(Problem("memory", str(error).split("\n")[0], OUT_OF_MEMORY))
        voice.tell({"kind": "error", "message": str(answer)})
        raise answer from None
    except ShoalError as error:
        voice.tell({"kind": "error", "message": str(error)})
        raise
    finally:
        voice.close()


@dataclass
class Worker:
    """One rank of one run, from loading to the result."""

    plan: Plan
    world: World
    storage: Storage
    folder: RunFolder
    voice: Voice

    def run(self) -> Result:
        loop = self.load()
        try:
            ended = loop.run()
        except ShoalError:
            loop.saver.leave()
            raise
        if ended == Directive.STOP:
            return _result(loop, "stopped")
        if ended == Directive.YIELD:
            raise Preempted(f"left at step {loop.progress.step}, which is saved")
        return self._finish(loop)

    def load(self) -> Loop:
        """Everything up to the first step: data, model, self-check, engine, the newest checkpoint or the first loss."""
        plan, world = self.plan, self.world
        self.voice.phase("loading", plan.trajectory.model.base)
        prepared = Prepared.open(self.storage, plan.storage.prepared, self.cache, plan.storage.cache_bytes)
        data = plan.trajectory.data
        order = Order(
            prepared.lengths,
            prepared.targets,
            plan.trajectory.seed,
            plan.trajectory.batch_size,
            data.sequence_length,
            data.packing,
            prepared.sources,
            [source.weight for source in data.train],
        )
        if world.local_rank == 0:
            clear_away(plan)
        reader = Reader(prepared, order, world.rank, world.size, plan.layout.micro_batch_size)
        found = from_main(world, self._newest)
        shelf = Shelf.of(plan, world, self.storage) if plan.storage.baselines and found is None else None
        known = from_main(world, shelf.read) if shelf else None
        start = models.start_folder(plan.trajectory.model, self.storage, self.cache)
        model = build(plan, self.base, start, world)
        if plan.self_check and found is None and known is None:
            self._check(model, prepared, order)
        layout = resized(plan.layout, plan.trajectory.batch_size, world.size)
        engine = Engine(model, layout, plan.trajectory.optimizer, world)
        progress = self._restore(engine, *found) if found else START
        keep = partial(replay.keep, prepared=prepared, folder=self.folder, storage=self.storage, world=world)
        saver = Saver(
            engine, plan, self.folder, self.storage, world, self.voice, progress, self.voice.failed_attempts()
        )
        loop = Loop(plan, world, engine, prepared, order, reader, self.voice, saver, keep, progress)
        if known is not None:
            self._take_over(loop, known)
        elif found is None:
            self._measure(loop, shelf)
        return loop

    @cached_property
    def base(self) -> Path:
        """The base model's folder on this node."""
        return models.materialise(self.plan.trajectory.model, self.storage, self.cache)

    @property
    def cache(self) -> Path:
        return Path(self.plan.storage.cache).expanduser()

    def _newest(self) -> tuple[Manifest, str] | None:
        """The checkpoint to go on from and its run's folder: this run's newest, else the parent's that the plan names."""
        manifest = checkpoint.newest(
            self.storage, self.folder, lambda message: self.voice.tell({"kind": "note", "message": message})
        )
        if manifest is not None:
            checkpoint.require_resumable(manifest, self.plan)
            return manifest, self.folder.url
        parent = self.plan.trajectory.parent
        if parent is None:
            return None
        manifest = checkpoint.at(self.storage, RunFolder(self.storage, parent.run), parent.step)
        if manifest is None:
            what = f"the checkpoint of step {parent.step} that this run begins with is gone"
            raise StorageError(Problem(parent.run, what, "begin another run"))
        checkpoint.require_parent(manifest, self.plan)
        return manifest, parent.run

    def _check(self, model: Any, prepared: Prepared, order: Order) -> None:
        self.voice.phase("checking", "two of your batches on your model")
        device = place(self.plan.layout, self.world)
        figures = selfcheck.check(model.to(device), _first_documents(prepared, order), device)
        self.voice.tell({"kind": "note", "message": "self-check passed", "figures": figures})

    def _take_over(self, loop: Loop, known: Baseline) -> None:
        what = "self-check and held-out loss before step 1" if self.plan.self_check else "held-out loss before step 1"
        message = f"{what}: taken over from {known.run}, which is alike up to there"
        self.voice.tell({"kind": "note", "message": message})
        if known.held_out is not None:
            loop.take(*known.held_out)

    def _measure(self, loop: Loop, shelf: Shelf | None) -> None:
        """The held-out loss before the first step, for other trials as well where there are any."""
        held_out = loop.measure() if loop.holds_out else None
        if held_out is not None:
            loop.take(*held_out)
        if shelf is not None:
            from_main(self.world, lambda: shelf.write(self.plan.run_id, held_out))

    def _restore(self, engine: Engine, manifest: Manifest, run: str) -> Progress:
        self.voice.phase("loading", f"checkpoint of step {manifest.step}")
        checkpoint.load(engine, manifest, self.plan, RunFolder(self.storage, run), self.storage, self.world)
        engine.set_step(manifest.step)
        self.voice.resume(manifest.step)
        whose = "" if run == self.folder.url else f" of {RunFolder(self.storage, run).id}"
        self.voice.tell({"kind": "note", "message": f"going on from the checkpoint of step {manifest.step}{whose}"})
        return Progress(**manifest.model_dump(include=set(Progress.model_fields)))

    def _finish(self, loop: Loop) -> Result:
        """From the last step to a result: the best weights where asked for, the export and its gate, answers."""
        engine, progress = loop.engine, loop.progress
        model, template = self.plan.trajectory.model, self.plan.trajectory.data.chat_template
        tokenizer = models.load_tokenizer(self.base, model.trust_remote_code, template)
        step = progress.step
        best = progress.best
        if self.plan.trajectory.load_best_model_at_end and best and best.step != step:
            manifest = from_main(self.world, lambda: checkpoint.at(self.storage, self.folder, best.step))
            if manifest is None:
                message = f"the best checkpoint (step {best.step}) is gone: step {step} is exported instead"
                self.voice.tell({"kind": "note", "message": message})
            else:
                step, loop.validation_loss = best.step, best.loss
                checkpoint.load(engine, manifest, self.plan, self.folder, self.storage, self.world)
        if loop.validation_loss is None and loop.holds_out:
            loop.validation_loss, _ = loop.measure()
        self.voice.phase("exporting", f"the weights of step {step}")
        engine.eval()
        gate = export(
            plan=self.plan,
            engine=engine,
            base_folder=self.base,
            tokenizer=tokenizer,
            folder=self.folder,
            storage=self.storage,
            world=self.world,
            rows=_probe_rows(loop.prepared),
            live_logits=engine.logits,
            losses={"base": progress.base_loss, "result": loop.validation_loss},
            samples=len(loop.prepared.lengths),
        )
        self.voice.tell({"kind": "export", **gate})
        loop.tell_faults()
        told = self._answers(engine, tokenizer)
        for answer in told:
            self.voice.tell({"kind": "answer", **answer})
        result = _result(loop, "finished", export=gate["url"], gate=gate, told=told)
        if self.world.is_main:
            self.storage.write(self.folder.result, json.dumps(asdict(result), indent=1).encode())
        self.voice.tell({"kind": "result", **asdict(result)})
        return result

    def _answers(self, engine: Engine, tokenizer: Any) -> list[dict[str, str]]:
        """The job's prompts, answered greedily by base and result; on all ranks alike, since ZeRO-3 shares the weights."""
        prompts = self.plan.prompts
        if not prompts:
            return []
        self.voice.phase("exporting", "answering your prompts")
        after = answers(engine.model, tokenizer, prompts)
        if self.plan.trajectory.method != "full":
            before = answers(engine.model, tokenizer, prompts, base=True)
        else:
            before = from_main(
                self.world,
                lambda: answers(
                    load_base(self.plan.trajectory, self.base, "sdpa", place(self.plan.layout, self.world)),
                    tokenizer,
                    prompts,
                ),
            )
        return [
            {"prompt": prompt, "before": old, "after": new}
            for prompt, old, new in zip(prompts, before, after, strict=True)
        ]


def _first_documents(prepared: Prepared, order: Order) -> list[Encoded]:
    """Documents of the first two global batches: two from each."""
    documents: list[Encoded] = []
    for step in (1, 2):
        rows = order.batch(order.locate(step))
        documents += prepared.read(np.concatenate(rows)[:2])
    return documents


def _probe_rows(prepared: Prepared) -> list[np.ndarray]:
    """Token rows that the export is compared on."""
    return [
        document.input_ids[:PROBE_TOKENS]
        for document in prepared.read(np.arange(min(PROBE_ROWS, len(prepared.lengths))))
    ]


def _result(
    loop: Loop,
    state: str,
    export: str | None = None,
    gate: dict[str, Any] | None = None,
    told: list[dict[str, str]] | None = None,
) -> Result:
    return Result(
        state=state,
        step=loop.progress.step,
        steps=loop.steps,
        tokens=loop.progress.tokens,
        seconds=loop.progress.seconds,
        base_loss=loop.progress.base_loss,
        loss=loop.validation_loss,
        train_loss=loop.train_loss,
        skipped=loop.progress.skipped,
        export=export,
        gate=gate,
        answers=told or [],
    )
