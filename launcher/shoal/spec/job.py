"""The job file: **what** to learn. Field names are the ones people know from peft, transformers and DeepSpeed.

Validators here check and never change a value; every default that depends on something else is decided by the planner.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from shoal.spec.base import Frozen
from shoal.spec.sweep import SweepSpec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Location = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
SecretRef = Annotated[str, StringConstraints(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Format = Literal["messages", "instruction", "prompt-completion", "text", "preference"]
"""How a row reads."""


class ModelSpec(Frozen):
    base: Location
    """Hub id, folder, s3:// prefix of a model in Hugging Face's layout, or a .gguf file in any of these places."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the plan pins the commit."""
    adapter: str | None = None
    """Adapter folder, s3:// prefix or run id to start from instead of a fresh adapter (or a full model's run)."""
    attn_implementation: Literal["auto", "per_document", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed; `per_document` spends nothing on other documents of a packed row."""
    token: SecretRef | None = None
    """Where the hub token of a gated model is found: `env:NAME` or `file:PATH`, never the token itself."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries."""


class LoraSpec(Frozen):
    r: int = Field(default=16, ge=1, le=4096)
    """Rank of the update matrices."""
    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the update: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
    lora_dropout: Fraction = 0.0
    """Dropout before the adapter; above 0 the trajectory depends on the layout."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Module names to adapt, or `all-linear` for every linear layer but the output head."""
    modules_to_save: list[str] = []
    """Modules trained in full and saved beside the adapter."""
    use_rslora: bool = False
    """Rank-stabilised scaling."""


class QuantizationSpec(Frozen):
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """bitsandbytes' 4-bit number format."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too."""


class SourceSpec(Frozen):
    path: Location
    """Objects of this source: a file, a folder, a glob or a saved data set; local, s3:// or hf://datasets/..."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often each sample is read per epoch: 2 reads it twice, 0.5 every other epoch."""
    format: Literal["auto"] | Format | None = None
    """How this source's rows read; default: data.format."""
    columns: dict[str, str] | None = None
    """Names of this source's columns; default: data.columns."""


Sources = Location | SourceSpec | Annotated[list[Location | SourceSpec], Field(min_length=1)]


class DataSpec(Frozen):
    train: Sources
    """Objects to learn from, one location or several with weights; .jsonl(.gz, .zst), .json, .csv, .parquet, .arrow."""
    validation: Fraction | Sources = 0.0
    """Share of the training samples held out (by a hash of the sample), or objects of their own."""
    format: Literal["auto"] | Format = "auto"
    """How a row reads; `auto` tells it from the first rows and names it in the plan."""
    columns: dict[str, str] = {}
    """Our name of a field -> the rows' own, such as `{prompt: question, completion: answer.text}`."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are learnt: every answer, the last answer of a row, or all of the row."""
    chat_template: Location | None = None
    """File with a Jinja chat template to use, and export, instead of the model's own."""
    sequence_length: int = Field(default=2048, ge=8)
    """Longest row in tokens."""
    packing: bool = True
    """Fill each row with several samples, kept apart by attention and positions."""
    overlength: Literal["reject", "truncate"] = "reject"
    """What to do with a sample over sequence_length (`text` is always split, without loss)."""
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    """Share of rejected rows above which the run refuses to start."""


class TrainSpec(Frozen):
    num_train_epochs: int = Field(default=1, ge=1)
    """Passes over the training samples."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop (and end the schedule) after so many optimizer steps, within num_train_epochs."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per optimizer step over all workers; a row is a packed sequence when packing, else a sample."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Rows per forward pass of one worker."""
    seed: int = Field(default=17, ge=0, lt=2**32)
    """Seed of the order, the adapter's start and dropout."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the base weights and the arithmetic; bf16 keeps fp32 master weights and adapters."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more arithmetic."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluate every so many steps; default: at the start and at the end of each epoch."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better validation loss."""
    load_best_model_at_end: bool = False
    """Export the checkpoint with the best validation loss rather than the last."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What an infinite or undefined loss or gradient does: end the run, the batch kept for replay, or skip the step."""
    logging_steps: int = Field(default=1, ge=1)
    """Write metrics every so many steps."""
    self_check: bool = True
    """Before step 1, prove on this model that packing, accumulation and gradients are right."""


class OptimizerSpec(Frozen):
    learning_rate: float | None = Field(default=None, gt=0, lt=10)
    """Peak learning rate; default 2e-4 for adapters, 2e-5 for full fine-tuning."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_min_lr", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "cosine"
    """Schedule, by its name in transformers."""
    warmup_ratio: Fraction = 0.03
    """Share of all steps that warm up; ignored when warmup_steps is given."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps that warm up."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """AdamW's decoupled decay; biases and norms are left out."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the global gradient to this norm; 0 turns clipping off."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first decay rate."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second decay rate."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""


class DeepSpeedSpec(Frozen):
    stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """ZeRO stage: 0 shares nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep optimizer states, or parameters as well (stage 3), in host memory."""
    config: dict[str, Any] = {}
    """Raw DeepSpeed options, merged last; what the plan decides itself is refused here."""


class CheckpointSpec(Frozen):
    every_steps: Literal["auto"] | Annotated[int, Field(ge=1)] = 200
    """Steps between checkpoints, or `auto`: what loses least, by the measured cost of a save; one is always written at
    the end."""
    mean_time_between_failures_h: float = Field(default=24, gt=0)
    """Hours that all workers together run before one fails, for `auto`; spot machines: a few, one own machine: hundreds.
    What the run then sees of failures counts more and more."""
    keep: int = Field(default=3, ge=1)
    """Newest checkpoints to keep; the best one is kept besides."""


class ExportSpec(Frozen):
    merge: bool = False
    """Also write base and adapter as one full model."""


class JobSpec(Frozen):
    name: Name
    """Name of the run: up to 40 lower-case letters and digits, with dashes between them."""
    model: ModelSpec
    """What to start from."""
    task: Literal["causal-lm"] = "causal-lm"
    """What is learnt."""
    method: Literal["full", "lora", "qlora"] = "lora"
    """How: all weights, a low-rank adapter, or an adapter on a 4-bit base."""
    lora: LoraSpec = LoraSpec()
    """The adapter, for lora and qlora."""
    quantization: QuantizationSpec = QuantizationSpec()
    """The 4-bit base, for qlora."""
    data: DataSpec
    """What to learn from."""
    train: TrainSpec = TrainSpec()
    """How long and in what steps."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """AdamW and its schedule."""
    deepspeed: DeepSpeedSpec = DeepSpeedSpec()
    """How states are shared over workers."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When to save."""
    export: ExportSpec = ExportSpec()
    """What to write at the end."""
    prompts: list[str] = []
    """Prompts answered by the base and by the result, shown at the end."""
    sweep: SweepSpec | None = None
    """Train it many times, with other values of some fields, and find the best: `shoal sweep`."""
