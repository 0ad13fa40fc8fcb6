"""The plan as a person reads it. Later sections (memory, time, cost) are one more entry in SECTIONS."""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shoal.plan.types import Plan, SourceObject

Rows = Iterator[tuple[str, str]]
NAME_WIDTH = 12
SHOWN_OBJECTS = 3


def table(plan: Plan) -> RenderableType:
    """All sections, one under the other; values wrap, nothing is cut."""
    parts: list[RenderableType] = [Text(plan.run_id, style="bold")]
    for title, rows in SECTIONS.items():
        parts += [Text(f"\n{title}", style="bold cyan"), _grid(rows(plan))]
    if plan.notes:
        parts += [Text("\nnotes", style="bold yellow")]
        parts += [Padding(Text(note), (0, 0, 0, 2)) for note in plan.notes]
    return Group(*parts)


def _grid(rows: Rows) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=NAME_WIDTH + 2, style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(f"  {name}"), Text(value))
    return grid


def _model(plan: Plan) -> Rows:
    model = plan.trajectory.model
    yield "base", model.base + (f" at {model.revision[:12]}" if model.revision else "")
    yield "what", f"{model.architecture}, {_short(model.num_parameters)} parameters, {model.num_hidden_layers} layers"
    if model.adapter:
        yield "start from", model.adapter
    yield "method", _method(plan)


def _method(plan: Plan) -> str:
    trajectory = plan.trajectory
    lora = trajectory.lora
    if lora is None:
        return f"full, {trajectory.dtype}"
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    adapter = f"r {lora.r}, alpha {lora.lora_alpha:g}, on {targets}"
    saved = f", with {', '.join(lora.modules_to_save)} in full" if lora.modules_to_save else ""
    base = f"{trajectory.quantization.bnb_4bit_quant_type} base" if trajectory.quantization else trajectory.dtype
    return f"{trajectory.method}: {adapter}{saved}; {base}"


def _data(plan: Plan) -> Rows:
    data = plan.trajectory.data
    for source in data.train:
        weight = f", each sample {source.weight:g} times an epoch" if source.weight != 1 else ""
        yield "train", f"{source.format}: {_objects(source.objects)}{weight}"
    if data.validation:
        yield "validation", _objects([one for source in data.validation for one in source.objects])
    elif data.validation_fraction:
        yield "validation", f"{data.validation_fraction:.1%} of the samples, by their hash"
    else:
        yield "validation", "none"
    packing = "packed" if data.packing else "one sample a row"
    learnt = {"assistant": "the answers are learnt", "last": "last answers are learnt", "all": "every token is learnt"}
    yield "rows", f"to {data.sequence_length:,} tokens, {packing}, {learnt[data.train_on]}"


def _training(plan: Plan) -> Rows:
    trajectory, optimizer = plan.trajectory, plan.trajectory.optimizer
    epochs = trajectory.num_train_epochs
    yield "steps", f"{trajectory.steps}; {epochs} epoch{'s' if epochs > 1 else ''} of {trajectory.steps_per_epoch}"
    yield "tokens", str(trajectory.tokens)
    yield "batch", f"{trajectory.batch_size} rows, seed {trajectory.seed}"
    rate = f"{optimizer.learning_rate:g} {optimizer.lr_scheduler_type}"
    yield "rate", f"{rate}, {optimizer.warmup_steps} warmup step{'s' if optimizer.warmup_steps != 1 else ''}"
    clip = f"clipped to {optimizer.max_grad_norm:g}" if optimizer.max_grad_norm else "not clipped"
    yield "optimizer", f"AdamW, weight decay {optimizer.weight_decay:g}, gradient {clip}"
    every = f"every {trajectory.eval_steps} steps" if trajectory.eval_steps else "at the start and after each epoch"
    if trajectory.data.validation or trajectory.data.validation_fraction:
        patience = trajectory.early_stopping_patience
        best = ", the best is exported" if trajectory.load_best_model_at_end else ""
        yield "evaluation", every + (f", stops after {patience} without a better loss" if patience else "") + best
    saved = plan.checkpoint
    every = f"every {saved.every_steps} steps"
    if saved.every_steps == "auto":
        every = f"as often as pays with a failure every {saved.mean_time_between_failures_h:g} h"
    yield "checkpoints", f"{every}, the newest {saved.keep} are kept"


def _layout(plan: Plan) -> Rows:
    layout = plan.layout
    elastic = f"{layout.min_workers} to " if layout.min_workers < layout.workers else ""
    yield "workers", f"{elastic}{layout.workers} on {'GPUs' if layout.device == 'cuda' else 'CPU'}"
    idle = f", {layout.idle_rows} idle" if layout.idle_rows else ""
    yield (
        "micro-batch",
        f"{layout.micro_batch_size} x {layout.accumulation} accumulation x {layout.workers} workers{idle}",
    )
    offload = f", {layout.offload} offloaded" if layout.offload != "none" else ""
    recompute = ", gradient checkpointing" if layout.gradient_checkpointing else ""
    yield "ZeRO", f"stage {layout.stage}{offload}{recompute}"
    yield "attention", layout.attn_implementation


def _places(plan: Plan) -> Rows:
    yield "run", plan.storage.run
    yield "prepared", plan.storage.prepared
    yield "cache", plan.storage.cache


SECTIONS: dict[str, Callable[[Plan], Rows]] = {
    "model": _model,
    "data": _data,
    "training": _training,
    "layout": _layout,
    "places": _places,
}


def _objects(objects: Sequence[SourceObject]) -> str:
    size = sum(one.size for one in objects)
    first = ", ".join(one.url for one in objects[:SHOWN_OBJECTS])
    more = f" and {len(objects) - SHOWN_OBJECTS} more" if len(objects) > SHOWN_OBJECTS else ""
    return f"{first}{more} ({_bytes(size)})"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
