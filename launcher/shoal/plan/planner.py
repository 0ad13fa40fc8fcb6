"""plan(job, profile, facts): pure. Every default is decided here, and nothing is asked of clock, network or disk."""

from collections.abc import Iterator

from shoal import __version__
from shoal.errors import SpecError
from shoal.facts.types import Facts, SourceFacts
from shoal.plan import checks, deepspeed, estimate, layout
from shoal.plan.types import (
    CheckpointPlan,
    Count,
    DataPlan,
    Layout,
    ModelPlan,
    OptimizerPlan,
    Plan,
    SourcePlan,
    StoragePlan,
    Trajectory,
)
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec, LoraSpec
from shoal.storage import absolute, join

LEARNING_RATES = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4}
NO_WARMUP = "constant"
"""The one schedule in transformers that leaves warmup out."""


def plan(job: JobSpec, profile: ClusterProfile, facts: Facts, run_id: str) -> Plan:
    """The whole plan. Raises SpecError with every impossible combination."""
    device = "cuda" if profile.resources_per_worker.gpu else "cpu"
    dtype = layout.dtype(job.train.dtype, device, profile.resources_per_worker.accelerator_type)
    stage = layout.stage(job.deepspeed.stage, job.method, profile.max_workers, job.deepspeed.offload, dtype)
    micro = None if job.train.micro_batch_size == "auto" else job.train.micro_batch_size
    forward_rows = layout.forward_rows(device, job.data.sequence_length)
    deal = layout.deal(job.train.batch_size, profile.max_workers, micro, forward_rows)
    chosen = deepspeed.config(
        deal=deal,
        workers=profile.max_workers,
        stage=stage,
        offload=job.deepspeed.offload,
        device=device,
        method=job.method,
        dtype=dtype,
        max_grad_norm=job.optimizer.max_grad_norm,
    )
    found = [
        *checks.problems(job, profile, facts, stage, dtype),
        *deepspeed.problems(chosen, job.deepspeed.config),
    ]
    if found:
        raise SpecError(*found)
    trajectory = _trajectory(job, facts, dtype)
    placed = Layout(
        workers=profile.max_workers,
        min_workers=profile.min_workers,
        device=device,
        micro_batch_size=deal.micro_batch_size,
        accumulation=deal.accumulation,
        idle_rows=deal.idle_rows,
        stage=stage,
        offload=job.deepspeed.offload,
        gradient_checkpointing=job.train.gradient_checkpointing,
        attn_implementation=job.model.attn_implementation,
        deepspeed=deepspeed.merged(chosen, job.deepspeed.config),
    )
    return Plan(
        shoal=__version__,
        run_id=run_id,
        trajectory=trajectory,
        layout=placed,
        storage=StoragePlan(
            run=join(absolute(profile.storage.runs), run_id),
            prepared=join(absolute(profile.storage.prepared), facts.data.digest),
            cache=profile.storage.cache,
            cache_bytes=round(profile.storage.cache_gib * 2**30),
            s3=profile.storage.s3,
        ),
        checkpoint=CheckpointPlan(**job.checkpoint.model_dump()),
        merge=job.export.merge,
        logging_steps=job.train.logging_steps,
        self_check=job.train.self_check,
        prompts=tuple(job.prompts),
        max_failures=profile.max_failures,
        max_preemptions=profile.max_preemptions,
        hang_timeout_s=profile.hang_timeout_s,
        notes=tuple(_notes(job, facts, trajectory, placed, forward_rows)),
    )


def counted(plan: Plan, steps: int, steps_per_epoch: int, tokens: int) -> Plan:
    """The plan with exact counts, and the warmup that follows from them. The trajectory's digest stays the same."""
    optimizer = plan.trajectory.optimizer
    if optimizer.warmup_ratio is not None:
        warmup = estimate.warmup_steps(steps, optimizer.warmup_ratio)
        optimizer = optimizer.model_copy(update={"warmup_steps": warmup})
    counts = {
        "steps": Count(value=steps, estimate=False),
        "steps_per_epoch": Count(value=steps_per_epoch, estimate=False),
        "tokens": Count(value=tokens, estimate=False),
    }
    trajectory = plan.trajectory.model_copy(update={"optimizer": optimizer, **counts})
    return plan.model_copy(update={"trajectory": trajectory})


def _trajectory(job: JobSpec, facts: Facts, dtype: str) -> Trajectory:
    amount = estimate.amount(estimate.epoch(facts.data, job.data), job)
    return Trajectory(
        model=_model(job, facts),
        task=job.task,
        method=job.method,
        lora=_lora(job, facts),
        quantization=job.quantization if job.method == "qlora" else None,
        data=data_plan(job, facts),
        dtype="bf16" if dtype == "bf16" else "fp32",
        num_train_epochs=job.train.num_train_epochs,
        max_steps=job.train.max_steps,
        batch_size=job.train.batch_size,
        seed=job.train.seed,
        optimizer=_optimizer(job, amount.steps.value),
        steps=amount.steps,
        steps_per_epoch=amount.steps_per_epoch,
        tokens=amount.tokens,
        eval_steps=job.train.eval_steps,
        early_stopping_patience=job.train.early_stopping_patience,
        load_best_model_at_end=job.train.load_best_model_at_end,
        on_nan=job.train.on_nan,
    )


def _model(job: JobSpec, facts: Facts) -> ModelPlan:
    model = facts.model
    return ModelPlan(
        base=model.base,
        kind=model.kind,
        gguf=model.gguf,
        revision=model.revision,
        digest=model.digest,
        tokenizer_digest=model.tokenizer_digest,
        architecture=model.architecture,
        num_parameters=model.num_parameters,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=model.tie_word_embeddings,
        adapter=facts.adapter.location if facts.adapter else None,
        token=job.model.token,
        trust_remote_code=job.model.trust_remote_code,
    )


def _lora(job: JobSpec, facts: Facts) -> LoraSpec | None:
    """The adapter's own shape wins when there is one to go on from: checks made sure that the job does not differ."""
    if job.method == "full":
        return None
    if facts.adapter and facts.adapter.lora is not None:
        return checks.adapter_lora(facts.adapter.lora)
    return job.lora


def data_plan(job: JobSpec, facts: Facts) -> DataPlan:
    """What is read, and how: also where nothing could be trained on it yet."""
    data = job.data
    return DataPlan(
        train=tuple(map(_source, facts.data.train)),
        validation=tuple(map(_source, facts.data.validation)),
        validation_fraction=float(data.validation) if isinstance(data.validation, int | float) else 0.0,
        train_on=data.train_on,
        chat_template=facts.data.chat_template,
        sequence_length=data.sequence_length,
        packing=data.packing,
        overlength=data.overlength,
        max_rejected=data.max_rejected,
        digest=facts.data.digest,
    )


def _source(facts: SourceFacts) -> SourcePlan:
    return SourcePlan(
        path=facts.path, objects=facts.objects, format=facts.format, columns=facts.columns, weight=facts.weight
    )


def _optimizer(job: JobSpec, steps: int) -> OptimizerPlan:
    asked = job.optimizer
    ratio = asked.warmup_ratio if asked.warmup_steps is None else None
    given = asked.warmup_steps if ratio is None else estimate.warmup_steps(steps, ratio)
    warms = asked.lr_scheduler_type != NO_WARMUP
    return OptimizerPlan(
        learning_rate=asked.learning_rate or LEARNING_RATES[job.method],
        lr_scheduler_type=asked.lr_scheduler_type,
        warmup_steps=(given or 0) if warms else 0,
        warmup_ratio=ratio if warms else None,
        weight_decay=asked.weight_decay,
        max_grad_norm=asked.max_grad_norm,
        adam_beta1=asked.adam_beta1,
        adam_beta2=asked.adam_beta2,
        adam_epsilon=asked.adam_epsilon,
    )


def _notes(job: JobSpec, facts: Facts, trajectory: Trajectory, placed: Layout, forward_rows: int) -> Iterator[str]:
    if job.sweep is not None:
        yield "sweep: this is the job as it is written; `shoal sweep JOB --dry-run` says what its trials take"
    yield from facts.model.notes
    yield from facts.data.notes
    yield from _layout_notes(job, placed, trajectory, forward_rows)
    yield from _data_notes(job, facts, trajectory)
    yield from _lora_notes(job, trajectory)
    if job.optimizer.lr_scheduler_type == NO_WARMUP and job.optimizer.warmup_steps:
        yield "optimizer.warmup_steps: constant has no warmup; constant_with_warmup has"
    elif trajectory.optimizer.warmup_steps >= trajectory.steps.value:
        yield f"optimizer.warmup_steps: {trajectory.optimizer.warmup_steps} is the whole run; the rate never peaks"


def _layout_notes(job: JobSpec, placed: Layout, trajectory: Trajectory, forward_rows: int) -> Iterator[str]:
    if placed.idle_rows:
        micro = None if job.train.micro_batch_size == "auto" else job.train.micro_batch_size
        even = layout.even_batch_sizes(job.train.batch_size, placed.workers, micro, forward_rows)
        workers = f"{placed.workers} worker{'s' if placed.workers > 1 else ''}"
        slots = placed.workers * placed.micro_batch_size * placed.accumulation
        yield (
            f"train.batch_size: {job.train.batch_size} over {workers} x micro-batch "
            f"{placed.micro_batch_size} leaves {placed.idle_rows} of {slots} row slots idle; "
            f"{' or '.join(map(str, even))} leave{'s' if len(even) == 1 else ''} none"
        )
    if placed.device == "cpu":
        if trajectory.dtype == "bf16":
            yield "train.dtype: bf16 is many times slower than fp32 on most CPUs"
        if placed.offload != "none":
            yield f"deepspeed.offload: {placed.offload} saves nothing where training runs on the CPU itself"
    if placed.attn_implementation == "eager" and trajectory.data.packing:
        yield "model.attn_implementation: eager computes attention between all documents of a packed row and masks it"


def _data_notes(job: JobSpec, facts: Facts, trajectory: Trajectory) -> Iterator[str]:
    if job.data.format == "auto":
        yield f"data.format: {trajectory.data.formats}, told from the first rows"
    share = estimate.too_long(facts.data, job.data.sequence_length)
    if share and facts.data.counts is None:
        done = "set apart" if job.data.overlength == "reject" else "cut"
        yield (
            f"data.sequence_length: about {share:.1%} of the rows are longer than {job.data.sequence_length} tokens and "
            f"will be {done} (estimate)"
        )
    whole = trajectory.steps_per_epoch.value * job.train.num_train_epochs
    if job.train.max_steps and job.train.max_steps > whole:
        yield f"train.max_steps: {job.train.num_train_epochs} epochs end before it, after {whole:,} steps"
    rows = estimate.epoch(facts.data, job.data).rows
    if rows < job.train.batch_size:
        about = "" if facts.data.counts else "about "
        yield f"train.batch_size: {job.train.batch_size} rows, but an epoch has {about}{rows}: each step is a whole epoch"
    if job.train.eval_steps and not checks.has_validation(job):
        yield "train.eval_steps: nothing is held out, so nothing is evaluated; set data.validation"


def _lora_notes(job: JobSpec, trajectory: Trajectory) -> Iterator[str]:
    lora = trajectory.lora
    if lora is None:
        if job.lora.model_fields_set:
            yield "lora: has no effect with method: full"
        return
    if lora.lora_dropout > 0:
        yield f"lora.lora_dropout: {lora.lora_dropout} is drawn per worker, so the layout moves the losses"
    named = {*lora.modules_to_save, *(lora.target_modules if isinstance(lora.target_modules, list) else ())}
    if trajectory.model.tie_word_embeddings and named & {"lm_head", "embed_tokens"}:
        yield "lora: the model's embeddings are tied to its head; a merged export holds the two apart"
