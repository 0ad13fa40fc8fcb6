"""How a global batch is dealt over workers, micro-batches and ZeRO stages: integers in, integers out."""

from dataclasses import dataclass
from typing import Literal

from shoal.plan.types import Layout

Stage = Literal[0, 1, 2, 3]
Method = Literal["full", "lora", "qlora"]
Offload = Literal["none", "optimizer", "parameters"]

FORWARD_TOKENS = {"cpu": 2048, "cuda": 8192}
"""About the tokens that one forward pass takes when micro_batch_size is `auto`."""
WITHOUT_BF16 = frozenset({"K80", "P4", "P100", "T4", "V100"})
"""GPU types, as Ray names them, older than bf16 arithmetic."""


@dataclass(frozen=True)
class Deal:
    """How every worker takes its rows of a full step."""

    micro_batch_size: int
    accumulation: int
    idle_rows: int


def deal(batch_size: int, workers: int, micro_batch_size: int | None, forward_rows: int) -> Deal:
    """The deal of `batch_size` rows over `workers`.

    Without a given micro-batch it is the smallest one that needs no more forward passes than one of `forward_rows`.
    """
    rows = -(-batch_size // workers)
    if micro_batch_size is None:
        passes = -(-rows // max(1, forward_rows))
        micro_batch_size = -(-rows // passes)
    accumulation = -(-rows // micro_batch_size)
    return Deal(micro_batch_size, accumulation, workers * accumulation * micro_batch_size - batch_size)


def resized(placed: Layout, batch_size: int, workers: int) -> Layout:
    """`placed` with the rows dealt over so many workers as there are: the micro-batch stays, the accumulation follows."""
    if workers == placed.workers:
        return placed
    return _dealt(placed, workers, deal(batch_size, workers, placed.micro_batch_size, 1))


def halved(placed: Layout, batch_size: int) -> Layout | None:
    """`placed` with half the rows in a forward pass, and more passes instead; None where it is one row already."""
    if placed.micro_batch_size == 1:
        return None
    return _dealt(placed, placed.workers, deal(batch_size, placed.workers, -(-placed.micro_batch_size // 2), 1))


def _dealt(placed: Layout, workers: int, now: Deal) -> Layout:
    sizes = {
        "train_micro_batch_size_per_gpu": now.micro_batch_size,
        "gradient_accumulation_steps": now.accumulation,
        "train_batch_size": now.micro_batch_size * now.accumulation * workers,
    }
    changes = {
        "workers": workers,
        "micro_batch_size": now.micro_batch_size,
        "accumulation": now.accumulation,
        "idle_rows": now.idle_rows,
    }
    return placed.model_copy(update={**changes, "deepspeed": {**placed.deepspeed, **sizes}})


def even_batch_sizes(batch_size: int, workers: int, micro_batch_size: int | None, forward_rows: int) -> list[int]:
    """The nearest smaller and the nearest larger batch size that leave no row slot idle."""
    slots = workers * (micro_batch_size or 1)
    around = (range(batch_size, 0, -1), range(batch_size, batch_size + slots + 1))
    found = (
        next((size for size in sizes if not deal(size, workers, micro_batch_size, forward_rows).idle_rows), None)
        for sizes in around
    )
    return [size for size in found if size is not None]


def forward_rows(device: Literal["cpu", "cuda"], sequence_length: int) -> int:
    """Rows of one forward pass."""
    return max(1, FORWARD_TOKENS[device] // sequence_length)


def stage(asked: Literal["auto"] | Stage, method: Method, workers: int, offload: Offload, dtype: str) -> Stage:
    """The ZeRO stage. Adapters are small: sharing their states costs more than it saves."""
    if asked != "auto":
        return asked
    if offload == "parameters":
        return 3
    if offload == "optimizer":
        return 2
    # In bf16 DeepSpeed accumulates gradients in fp32 under ZeRO only, even with one worker.
    if method == "full" and (workers > 1 or dtype == "bf16"):
        return 2
    return 0


def dtype(asked: Literal["auto", "fp32", "bf16"], device: str, accelerator_type: str | None) -> Literal["fp32", "bf16"]:
    """bf16 where the hardware has it, fp32 elsewhere."""
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" and accelerator_type not in WITHOUT_BF16 else "fp32"
