"""The complete DeepSpeed configuration, and what of it a job may set itself.

Names as in https://www.deepspeed.ai/docs/config-json/ and deepspeed/runtime/zero/config.py of 0.19.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from shoal.errors import Problem
from shoal.plan.layout import Deal, Method, Offload, Stage

Config = dict[str, Any]
WHERE = "deepspeed.config"
NEVER = 1_000_000_000
"""steps_per_print: DeepSpeed's own lines are off."""

_ORDER = "which rows a step reads is decided by the data and train sections"
_SAME = "it would make what is learnt depend on the layout"
DECIDED = {
    "train_batch_size": "set train.batch_size",
    "train_micro_batch_size_per_gpu": "set train.micro_batch_size",
    "gradient_accumulation_steps": "set train.micro_batch_size; accumulation follows from it and train.batch_size",
    "managed_gradient_accumulation": "set train.micro_batch_size; the worker owns the boundary of a step",
    "gradient_clipping": "set optimizer.max_grad_norm",
    "optimizer": "set the job's optimizer section",
    "scheduler": "set optimizer.lr_scheduler_type",
    "bf16": "set train.dtype",
    "bfloat16": "set train.dtype",
    "fp16": "set train.dtype; fp16 is not supported",
    "amp": "set train.dtype",
    "data_types": "set train.dtype",
    "torch_autocast": "set train.dtype",
    "activation_checkpointing": "set train.gradient_checkpointing",
    "checkpoint": "set the job's checkpoint section",
    "zero_allow_untested_optimizer": "leave it out: the worker brings AdamW itself",
    "zero_force_ds_cpu_optimizer": "leave it out: the worker brings AdamW itself",
    "gradient_allreduce_op": "leave it out: losses are divided by the step's global targets",
    "zero_optimization.stage": "set deepspeed.stage",
    "zero_optimization.offload_optimizer.device": "set deepspeed.offload",
    "zero_optimization.offload_param.device": "set deepspeed.offload",
    "zero_optimization.cpu_offload": "set deepspeed.offload",
    "zero_optimization.cpu_offload_param": "set deepspeed.offload",
    "zero_optimization.zero_quantized_weights": f"leave it out: {_SAME}",
    "zero_optimization.zero_quantized_gradients": f"leave it out: {_SAME}",
    "zero_optimization.elastic_checkpoint": "leave it out: checkpoints of Shoal fit every number of workers",
    "compression_training": f"leave it out: {_SAME}",
    "progressive_layer_drop": f"leave it out: {_SAME}",
    "curriculum_learning": f"leave it out: {_ORDER}",
    "data_efficiency": f"leave it out: {_ORDER}",
    "dataloader_drop_last": f"leave it out: {_ORDER}",
    "elasticity": "leave it out: train.batch_size stays the same on every number of workers",
}
"""What the plan decides itself, and what to do instead."""

FREE = frozenset(
    {
        "communication_data_type",
        "prescale_gradients",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "log_level",
        "steps_per_print",
        "wall_clock_breakdown",
        "memory_breakdown",
        "flops_profiler",
        "comms_logger",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "aio",
        "zero_optimization",
    }
)
"""Sections of DeepSpeed that are a job's own."""

ZERO_FREE = frozenset(
    {
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "offload_param",
        "offload_optimizer",
        "sub_group_size",
        "cpu_offload_use_pin_memory",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
        "ignore_unused_parameters",
        "round_robin_gradients",
        "parameter_alignment",
        "zero_hpz_partition_size",
        "memory_efficient_linear",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
    }
)
"""Options of zero_optimization that are a job's own."""


def config(
    *,
    deal: Deal,
    workers: int,
    stage: Stage,
    offload: Offload,
    device: str,
    method: Method,
    dtype: str,
    max_grad_norm: float,
) -> Config:
    """Everything that the plan decides; DeepSpeed's defaults hold for the rest."""
    # DeepSpeed overlaps only where it owns partitioned gradients, and on a CPU there is no second stream.
    zero: Config = {"stage": stage, "overlap_comm": device == "cuda" and stage >= 2}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    if offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": device == "cuda"}
    chosen: Config = {
        "train_micro_batch_size_per_gpu": deal.micro_batch_size,
        "gradient_accumulation_steps": deal.accumulation,
        "train_batch_size": deal.micro_batch_size * deal.accumulation * workers,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
    }
    # Adapters are fp32 on a bf16 base: DeepSpeed's bf16 would cast them, so their dtypes stay the worker's own.
    if method == "full" and dtype == "bf16":
        chosen |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return chosen


def merged(chosen: Config, raw: Mapping[str, Any]) -> Config:
    """`raw` on top of `chosen`. What `raw` leaves `auto` stays as it was."""
    result = dict(chosen)
    for key, value in raw.items():
        if isinstance(value, Mapping):
            under = result.get(key)
            result[key] = merged(under if isinstance(under, dict) else {}, value)
        elif value != "auto":
            result[key] = value
    return {key: value for key, value in result.items() if key in chosen or value != {}}


def problems(chosen: Config, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What `raw` may not say: options that contradict the plan, and names that DeepSpeed does not have."""
    yield from _unknown(raw, "", FREE)
    zero = raw.get("zero_optimization", {})
    if isinstance(zero, Mapping):
        yield from _unknown(zero, "zero_optimization.", ZERO_FREE)
    else:
        yield Problem(f"{WHERE}.zero_optimization", f"{zero!r} is no section", "write its options under it")
    if isinstance(zero, Mapping) and zero.get("overlap_comm") is True and chosen["zero_optimization"]["stage"] < 2:
        what = f"true needs stage 2 or 3, deepspeed.stage is {chosen['zero_optimization']['stage']}"
        yield Problem(f"{WHERE}.zero_optimization.overlap_comm", what, "leave it out: the plan overlaps where it can")
    for path, value in _leaves(raw, ""):
        decided = next((key for key in DECIDED if path == key or path.startswith(f"{key}.")), None)
        if decided is None or value == "auto":
            continue
        planned = _at(chosen, path)
        if value != planned:
            says = "" if planned is None else f", the plan says {planned!r}"
            yield Problem(f"{WHERE}.{path}", f"{value!r} contradicts the plan{says}", DECIDED[decided])


def _unknown(section: Mapping[str, Any], prefix: str, free: frozenset[str]) -> Iterator[Problem]:
    known = free | {key.removeprefix(prefix).split(".")[0] for key in DECIDED if key.startswith(prefix)}
    for key in section:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            fix = f"did you mean {near[0]}?" if near else "leave it out"
            yield Problem(f"{WHERE}.{prefix}{key}", "no option of DeepSpeed that Shoal passes on", fix)


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _at(chosen: Config, path: str) -> Any:
    """The planned value; what the plan does not switch on is off."""
    value: Any = chosen
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        name = path.rpartition(".")[2]
        return {"enabled": False, "device": "none"}.get(name)
    return value
