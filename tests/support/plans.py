"""A whole plan in one call, for tests that need one and care about few of its fields."""

from pathlib import Path
from typing import Any

from shoal.plan.types import (
    CheckpointPlan,
    Count,
    DataPlan,
    Layout,
    ModelPlan,
    OptimizerPlan,
    Plan,
    StoragePlan,
    Trajectory,
)
from shoal.spec.cluster import S3Spec


def small_plan(folder: Path, *, run_id: str = "test-20260101-000000-abcd", workers: int = 1, **changes: Any) -> Plan:
    """A plan over local folders under `folder`; `changes` replace fields of the plan itself."""
    model = ModelPlan(
        base=str(folder / "model"),
        kind="folder",
        gguf=False,
        revision=None,
        digest="m",
        tokenizer_digest="t",
        architecture="LlamaForCausalLM",
        num_parameters=1000,
        vocab_size=64,
        hidden_size=8,
        num_hidden_layers=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        adapter=None,
        token=None,
        trust_remote_code=False,
    )
    data = DataPlan(
        train=(),
        validation=(),
        validation_fraction=0.0,
        train_on="assistant",
        chat_template=None,
        sequence_length=64,
        packing=True,
        overlength="reject",
        max_rejected=0.01,
        digest="d",
    )
    optimizer = OptimizerPlan(
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
    )
    trajectory = Trajectory(
        model=model,
        task="causal-lm",
        method="full",
        lora=None,
        quantization=None,
        data=data,
        dtype="fp32",
        num_train_epochs=1,
        max_steps=None,
        batch_size=2,
        seed=17,
        optimizer=optimizer,
        steps=Count(value=10),
        steps_per_epoch=Count(value=10),
        tokens=Count(value=1000),
        eval_steps=None,
        early_stopping_patience=None,
        load_best_model_at_end=False,
        on_nan="stop",
    )
    layout = Layout(
        workers=workers,
        min_workers=workers,
        device="cpu",
        micro_batch_size=1,
        accumulation=2,
        idle_rows=0,
        stage=0,
        offload="none",
        gradient_checkpointing=False,
        attn_implementation="auto",
        deepspeed={},
    )
    plan = Plan(
        shoal="0.1.0",
        run_id=run_id,
        trajectory=trajectory,
        layout=layout,
        storage=StoragePlan(
            run=str(folder / "runs" / run_id),
            prepared=str(folder / "prepared" / "d"),
            cache=str(folder / "cache"),
            cache_bytes=2**30,
            s3=S3Spec(),
        ),
        checkpoint=CheckpointPlan(every_steps=5, keep=2),
        merge=False,
        logging_steps=1,
        self_check=False,
        prompts=(),
        max_failures=2,
        max_preemptions=2,
        hang_timeout_s=600,
        notes=(),
    )
    return plan.model_copy(update=changes)
