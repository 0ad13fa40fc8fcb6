"""Combinations of job, place and facts that cannot work: each is a problem with its way out."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from shoal.errors import Problem
from shoal.facts.types import AdapterFacts, Facts, ModelFacts
from shoal.plan import places
from shoal.plan.layout import WITHOUT_BF16, Stage
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec, LoraSpec

LORA_FIELDS = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora")


def problems(job: JobSpec, profile: ClusterProfile, facts: Facts, stage: Stage, dtype: str) -> Iterator[Problem]:
    """All impossible combinations; `stage` and `dtype` are the resolved ones."""
    device = "cuda" if profile.resources_per_worker.gpu else "cpu"
    yield from places.problems(profile)
    yield from places.unreachable(profile, facts)
    yield from _place(job, profile, device, dtype)
    yield from _zero(job, facts.model, stage, dtype)
    yield from _data(job, facts)
    yield from _modules(job, facts.model)
    yield from _start(job, facts.adapter)
    if facts.model.quantised:
        what = f"{job.model.base} is stored quantised ({facts.model.quantised}), which training cannot start from"
        yield Problem(
            "model.base", what, "name the model's full-precision weights; method: qlora quantises them itself"
        )


def _place(job: JobSpec, profile: ClusterProfile, device: str, dtype: str) -> Iterator[Problem]:
    gpu = profile.resources_per_worker.accelerator_type
    if gpu and device == "cpu":
        what = f"{gpu}, but resources_per_worker.gpu is 0"
        yield Problem("resources_per_worker.accelerator_type", what, "set gpu: 1, or leave accelerator_type out")
    yield from places.shared_gpu(profile, profile.max_workers)
    if dtype == "bf16" and device == "cuda" and gpu in WITHOUT_BF16:
        yield Problem("train.dtype", f"bf16, but a {gpu} has no bf16", "set train.dtype: fp32")
    if job.model.attn_implementation == "flash_attention_2":
        if device == "cpu":
            yield Problem(
                "model.attn_implementation", "flash_attention_2 needs a GPU", "use auto, sdpa or eager on a CPU"
            )
        elif dtype == "fp32":
            yield Problem(
                "model.attn_implementation", "flash_attention_2 needs bf16", "set train.dtype: bf16, or use sdpa"
            )


def _zero(job: JobSpec, model: ModelFacts, stage: Stage, dtype: str) -> Iterator[Problem]:
    offload = job.deepspeed.offload
    if offload == "parameters" and stage != 3:
        yield Problem(
            "deepspeed.offload", f"parameters needs stage 3, deepspeed.stage is {stage}", "set stage: 3 or auto"
        )
    if offload == "optimizer" and stage == 0:
        fix = "set stage: 1, 2, 3 or auto"
        yield Problem("deepspeed.offload", "optimizer needs stage 1 or more, deepspeed.stage is 0", fix)
    if job.method == "qlora" and stage == 3:
        # Sound only where the 4-bit storage type is the model's dtype, and nobody has proven that on a GPU yet.
        fix = "set deepspeed.stage: 2, which shares gradients and states; the 4-bit base is small"
        yield Problem("deepspeed.stage", "3 would split a 4-bit base, which is not proven to train right", fix)
    if model.num_experts and stage == 3:
        what = (
            f"3 with {model.architecture}, whose {model.num_experts} experts would leave workers waiting for each other"
        )
        yield Problem("deepspeed.stage", what, "set deepspeed.stage: 2")
    if job.method == "full" and dtype == "bf16" and stage == 0:
        what = "0 in bf16 would accumulate gradients in bf16"
        yield Problem(
            "deepspeed.stage", what, "set stage: 1, 2 or auto, which accumulate in fp32; or train.dtype: fp32"
        )


def _data(job: JobSpec, facts: Facts) -> Iterator[Problem]:
    longest = facts.model.max_position_embeddings
    if longest and job.data.sequence_length > longest:
        what = f"{job.data.sequence_length} is more than the model's max_position_embeddings, {longest}"
        yield Problem("data.sequence_length", what, f"use at most {longest}")
    formats = {source.format for source in (*facts.data.train, *facts.data.validation)}
    if "messages" in formats and not (facts.model.chat_template or job.data.chat_template):
        what = f"messages need a chat template, and the tokenizer of {job.model.base} has none"
        fix = "name one in data.chat_template, start from the model's instruct version, or use prompt-completion rows"
        yield Problem("data.format", what, fix)
    if "preference" in formats:
        fix = "learn the better answers: data.format: prompt-completion with data.columns: {completion: chosen}"
        yield Problem("data.format", "preference rows are read, but no method learns from preferences yet", fix)
    for source in facts.data.validation:
        if source.weight != 1:
            yield Problem(
                "data.validation", f"{source.path} has a weight, and evaluation reads each sample once", "drop it"
            )
    if not has_validation(job):
        fix = "set data.validation to a share, such as 0.05, or to a location"
        if job.train.load_best_model_at_end:
            yield Problem("train.load_best_model_at_end", "there is no validation to tell the best by", fix)
        if job.train.early_stopping_patience:
            yield Problem("train.early_stopping_patience", "there is no validation to stop by", fix)


def has_validation(job: JobSpec) -> bool:
    """Whether anything is held out."""
    return bool(job.data.validation)


def _modules(job: JobSpec, model: ModelFacts) -> Iterator[Problem]:
    """Names in `lora` that fit no tensor of the model. Experts are renamed when they are loaded, so they are not judged."""
    if job.method == "full" or not model.matrices or model.num_experts:
        return
    leaves = sorted({name.rpartition(".")[2] for name in model.matrices})
    named = (
        []
        if job.lora.target_modules == "all-linear"
        else [("target_modules", name) for name in job.lora.target_modules]
    )
    for field, name in [*named, *(("modules_to_save", name) for name in job.lora.modules_to_save)]:
        if any(module == name or module.endswith(f".{name}") for module in model.matrices):
            continue
        if field == "modules_to_save" and ("norm" in name or "." in name):
            continue  # norms are vectors, and blocks have no weight of their own
        near = get_close_matches(name, leaves, 1, 0.7)
        fix = f"did you mean {near[0]}?" if near else f"it has {', '.join(leaves)}"
        yield Problem(f"lora.{field}", f"{name} is no layer of {model.architecture}", fix)


def _start(job: JobSpec, adapter: AdapterFacts | None) -> Iterator[Problem]:
    """Whether what `model.adapter` holds goes with the method and the lora section."""
    if adapter is None:
        return
    if job.method == "full" and adapter.lora is not None:
        yield Problem("model.adapter", f"{adapter.location} is an adapter, and method is full", "set method: lora")
    if job.method != "full" and adapter.lora is None:
        fix = "name it in model.base instead, or set method: full"
        yield Problem("model.adapter", f"{adapter.location} is a full model, and method is {job.method}", fix)
    if job.method == "full" or adapter.lora is None:
        return
    held = adapter_lora(adapter.lora)
    for field in sorted(job.lora.model_fields_set - {"target_modules"}):
        asked, found = getattr(job.lora, field), getattr(held, field)
        if asked != found:
            yield Problem(
                f"lora.{field}", f"{asked}, but {adapter.location} has {found}", f"leave it out, or set {found}"
            )


def adapter_lora(config: dict[str, Any]) -> LoraSpec:
    """The lora section that an adapter_config.json amounts to."""
    values = {field: config[field] for field in LORA_FIELDS if config.get(field) is not None}
    targets = values.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        values["target_modules"] = [targets]
    elif isinstance(targets, list):
        values["target_modules"] = sorted(targets)
    return LoraSpec.model_validate(values)
