"""The plan: everything decided, frozen, and the only thing that crosses a process boundary as `plan.json`.

It has two halves. The **trajectory** is what is learnt and in what order, free of any number of workers; two plans with
one `trajectory_digest` see the same global batches. The **layout** is how a place computes it, and may change on resume.
"""

import hashlib
import json
from typing import Any, Literal

from shoal.spec.base import Frozen
from shoal.spec.cluster import S3Spec
from shoal.spec.job import Format, LoraSpec, QuantizationSpec

PLAN_VERSION = 2
COUNTS = {"steps", "steps_per_epoch", "tokens"}
"""Of a trajectory; they follow from the rest."""
LATER = {
    "optimizer",
    "num_train_epochs",
    "max_steps",
    "eval_steps",
    "early_stopping_patience",
    "load_best_model_at_end",
    "on_nan",
}
"""Of a trajectory; nothing before the first step depends on them."""


class Count(Frozen):
    """A number that preparation makes exact; until then it is marked as an estimate."""

    value: int
    estimate: bool = True

    def __str__(self) -> str:
        return f"{self.value:,}" + (" (estimate)" if self.estimate else "")


class SourceObject(Frozen):
    """One object to read rows from, pinned by its etag."""

    url: str
    size: int
    """Bytes as stored."""
    etag: str


class SourcePlan(Frozen):
    """Objects that are read alike."""

    path: str
    """As the job file names them."""
    objects: tuple[SourceObject, ...]
    format: Format
    columns: dict[str, str]
    """Our name of a field -> the rows' own."""
    weight: float
    """How often each sample is read per epoch."""


class ModelPlan(Frozen):
    base: str
    """As the job file names it."""
    kind: Literal["hub", "folder", "object"]
    """`object`: an s3:// prefix or file that each node downloads once."""
    gguf: bool
    """A .gguf file, converted to safetensors once per node."""
    revision: str | None
    """Commit of a hub model."""
    digest: str
    """Identity of the weights and configuration: commit, etags, or sizes and times of local files."""
    tokenizer_digest: str
    """Identity of the tokenizer and its chat template."""
    architecture: str
    num_parameters: int
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int | None
    """None where the configuration names no limit."""
    tie_word_embeddings: bool
    adapter: str | None
    """Location of the adapter or model to start from; run ids are resolved."""
    token: str | None
    """Reference to a hub token."""
    trust_remote_code: bool


class DataPlan(Frozen):
    train: tuple[SourcePlan, ...]
    validation: tuple[SourcePlan, ...]
    """Held-out sources; empty when validation_fraction says how much of train is held out."""
    validation_fraction: float
    train_on: Literal["assistant", "last", "all"]
    chat_template: str | None
    """The template itself; None for the model's own."""
    sequence_length: int
    packing: bool
    overlength: Literal["reject", "truncate"]
    max_rejected: float
    digest: str
    """Digest of everything that the prepared shards depend on; they lie at prepared/DIGEST."""

    @property
    def formats(self) -> str:
        """The formats of the rows to train on, as words."""
        return ", ".join(dict.fromkeys(source.format for source in self.train))


class OptimizerPlan(Frozen):
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: int
    warmup_ratio: float | None = None
    """What warmup_steps follows from, rounded up; None when the job gives the steps."""
    weight_decay: float
    max_grad_norm: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float


class Parent(Frozen):
    """A checkpoint of another run."""

    run: str
    """The run's folder."""
    step: int


class Trajectory(Frozen):
    model: ModelPlan
    task: Literal["causal-lm"]
    method: Literal["full", "lora", "qlora"]
    lora: LoraSpec | None
    """None for full fine-tuning."""
    quantization: QuantizationSpec | None
    """None but for qlora."""
    data: DataPlan
    dtype: Literal["fp32", "bf16"]
    num_train_epochs: int
    max_steps: int | None
    batch_size: int
    """Rows per optimizer step over all workers."""
    seed: int
    optimizer: OptimizerPlan
    steps: Count
    """Optimizer steps of the whole run."""
    steps_per_epoch: Count
    tokens: Count
    """Tokens of the whole run."""
    eval_steps: int | None
    """None: at the start and at the end of each epoch."""
    early_stopping_patience: int | None
    load_best_model_at_end: bool
    on_nan: Literal["stop", "skip"]
    parent: Parent | None = None
    """Whose weights, moments and place in the data the run begins with, rather than with the base's and none."""


class Layout(Frozen):
    workers: int
    """The most there may be, which the rest is planned for; a worker deals its rows anew when there are fewer."""
    min_workers: int
    """Less than `workers` where the number is elastic."""
    device: Literal["cpu", "cuda"]
    micro_batch_size: int
    """Rows per forward pass of one worker."""
    accumulation: int
    """Micro-steps of every worker in a full optimizer step."""
    idle_rows: int
    """Zero-weight row slots per full step: workers x accumulation x micro-batch - batch size."""
    stage: Literal[0, 1, 2, 3]
    offload: Literal["none", "optimizer", "parameters"]
    gradient_checkpointing: bool
    attn_implementation: Literal["auto", "per_document", "sdpa", "eager", "flash_attention_2"]
    deepspeed: dict[str, Any]
    """The complete DeepSpeed configuration."""


class StoragePlan(Frozen):
    run: str
    """The run's folder."""
    prepared: str
    """The folder of this data's token shards: PREPARED/DIGEST."""
    cache: str
    """Folder on each node."""
    cache_bytes: int
    """Disk that token shards may take there."""
    s3: S3Spec
    """How s3:// locations are reached; credentials by reference."""
    baselines: str | None = None
    """A sweep's folder for what its trials find out before their first step; a run alone has none."""


class CheckpointPlan(Frozen):
    every_steps: int | Literal["auto"]
    """`auto`: decided anew at each save, from what it cost."""
    keep: int
    mean_time_between_failures_h: float = 24.0
    """Hours; counts for `auto` alone."""


class Plan(Frozen):
    version: int = PLAN_VERSION
    shoal: str
    """Version of Shoal that made the plan."""
    run_id: str
    trajectory: Trajectory
    layout: Layout
    storage: StoragePlan
    checkpoint: CheckpointPlan
    merge: bool
    logging_steps: int
    self_check: bool
    prompts: tuple[str, ...]
    max_failures: int
    max_preemptions: int
    hang_timeout_s: float
    notes: tuple[str, ...]
    """What a person should know: what an uneven deal wastes, what the layout may move, what was guessed."""

    @property
    def trajectory_digest(self) -> str:
        """16 hex digits over the trajectory; counts are left out, since they follow from the rest."""
        body = self.trajectory.model_dump(mode="json", exclude=COUNTS)
        if self.trajectory.optimizer.warmup_ratio is not None:
            del body["optimizer"]["warmup_steps"]
        if self.trajectory.parent is None:
            del body["parent"]
        return _digest(body)

    @property
    def baseline_digest(self) -> str:
        """16 hex digits over all that the self-check and the held-out loss before the first step may depend on."""
        layout = self.layout.model_dump(mode="json")
        layout["deepspeed"].pop("gradient_clipping", None)  # optimizer.max_grad_norm
        trajectory = self.trajectory.model_dump(mode="json", exclude=COUNTS | LATER)
        return _digest({"shoal": self.shoal, "check": self.self_check, "trajectory": trajectory, "layout": layout})


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
