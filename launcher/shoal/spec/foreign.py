"""What other tools call things, and what Shoal calls them: the answer to a job file written from memory.

`{value}` in a note is the given value as shown to a person; a credential never gets that far.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Foreign:
    """One name of another tool's: whose it is, our field (empty when there is none), and how its value converts."""

    tools: str
    ours: str
    note: str = ""

    def advice(self, value: str) -> str:
        note = self.note.replace("{value}", value)
        return f"write `{self.ours}`" + (f": {note}" if note else "") if self.ours else note


_HF, _AX, _LF, _LU, _SW = "transformers", "Axolotl", "LLaMA-Factory", "Ludwig", "ms-swift"
_TRL = "TRL"
_GLOBAL = "it counts rows per optimizer step over all workers"
_SAME = "the same value"
_LAYOUT = "the profile says where a job runs, the job file does not"
_TRACKED = "take it out: every run writes metrics.jsonl and TensorBoard scalars"
_OWN_TOKENS = "take it out: the tokenizer's own are used"
_NO_HUB = "take it out: the export's place is shown at the end of the run"
_DTYPE = "`bf16`, `fp32`, or `auto` for bf16 where the hardware has it"

JOB: dict[str, Foreign] = {
    # Batches and steps
    "per_device_train_batch_size": Foreign(
        f"{_HF}, TRL and {_LF}",
        "train.batch_size",
        "it is global: {value} x gradient_accumulation_steps x number of workers; "
        "{value} itself may go to train.micro_batch_size",
    ),
    "per_device_eval_batch_size": Foreign(
        f"{_HF} and {_LF}", "", "take it out: evaluation uses train.micro_batch_size"
    ),
    "gradient_accumulation_steps": Foreign(
        f"{_HF}, {_AX} and {_LF}",
        "train.batch_size",
        "it is global: rows per device x {value} x number of workers; the plan works out the accumulation",
    ),
    "micro_batch_size": Foreign(_AX, "train.micro_batch_size", f"{_SAME}; and give train.batch_size: {_GLOBAL}"),
    "train_batch_size": Foreign("DeepSpeed", "train.batch_size", f"{_SAME}: {_GLOBAL}"),
    "train_micro_batch_size_per_gpu": Foreign("DeepSpeed", "train.micro_batch_size", _SAME),
    "effective_batch_size": Foreign(_LU, "train.batch_size", f"{_SAME}: {_GLOBAL}"),
    "eval_batch_size": Foreign(_LU, "", "take it out: evaluation uses train.micro_batch_size"),
    "auto_find_batch_size": Foreign(_HF, "train.micro_batch_size", "`auto`, which never changes train.batch_size"),
    "num_epochs": Foreign(f"{_AX} and {_LU}", "train.num_train_epochs", _SAME),
    "epochs": Foreign(f"{_LU} and others", "train.num_train_epochs", _SAME),
    "train_steps": Foreign(_LU, "train.max_steps", f"{_SAME}, counted in optimizer steps"),
    "evals_per_epoch": Foreign(_AX, "train.eval_steps", "steps between evaluations: steps of an epoch / {value}"),
    "steps_per_checkpoint": Foreign(_LU, "checkpoint.every_steps", _SAME),
    "save_steps": Foreign(f"{_HF}, {_AX} and {_LF}", "checkpoint.every_steps", f"{_SAME}, in whole steps"),
    "saves_per_epoch": Foreign(_AX, "checkpoint.every_steps", "steps between checkpoints: steps of an epoch / {value}"),
    "save_total_limit": Foreign(f"{_HF}, {_AX} and {_LF}", "checkpoint.keep", _SAME),
    "save_strategy": Foreign(
        _HF, "checkpoint.every_steps", "steps between checkpoints; one is always written at the end"
    ),
    "eval_strategy": Foreign(_HF, "train.eval_steps", "steps between evaluations; without it, the end of each epoch"),
    "evaluation_strategy": Foreign(
        _HF, "train.eval_steps", "steps between evaluations; without it, the end of each epoch"
    ),
    **dict.fromkeys(
        ("overwrite_output_dir", "save_only_model"),
        Foreign(
            f"{_HF} and {_LF}", "", "take it out: each run has a folder of its own, and its export is the model alone"
        ),
    ),
    "logging_strategy": Foreign(_HF, "train.logging_steps", "steps between lines of metrics"),
    "resume_from_checkpoint": Foreign(_HF, "", "take it out: `shoal resume RUN` goes on from the newest checkpoint"),
    "output_dir": Foreign(
        f"{_HF}, {_AX} and {_LF}",
        "",
        "take it out: runs go to the profile's storage.runs; see `shoal runs`",
    ),
    "random_seed": Foreign(_LU, "train.seed", _SAME),
    "data_seed": Foreign(_HF, "train.seed", "one seed gives the order too"),
    # Optimizer and schedule
    "lr": Foreign("DeepSpeed and others", "optimizer.learning_rate", _SAME),
    "lr_scheduler": Foreign(_AX, "optimizer.lr_scheduler_type", _SAME),
    "learning_rate_scheduler": Foreign(_LU, "optimizer.lr_scheduler_type", "the name of its decay"),
    "warmup": Foreign(
        "other tools",
        "optimizer.warmup_ratio",
        "a share of all steps; a number of steps goes to optimizer.warmup_steps",
    ),
    "num_warmup_steps": Foreign(_HF, "optimizer.warmup_steps", _SAME),
    "optim": Foreign(
        f"{_HF} and {_LF}", "", "take it out: the optimizer is AdamW with fp32 states; its settings are in `optimizer`"
    ),
    "gradient_clipping": Foreign("DeepSpeed and Ludwig", "optimizer.max_grad_norm", _SAME),
    "max_norm": Foreign("PyTorch", "optimizer.max_grad_norm", _SAME),
    "embedding_lr": Foreign(_AX, "", "take it out: one learning rate serves all weights"),
    # Adapter
    "adapter": Foreign(f"{_AX} and {_LU}", "method", "`lora` or `qlora` (an adapter to start from is model.adapter)"),
    "finetuning_type": Foreign(_LF, "method", "the same value, if it is `full`, `lora` or `qlora`"),
    "train_type": Foreign(_SW, "method", "the same value, if it is `full`, `lora` or `qlora`"),
    "sft_type": Foreign(_SW, "method", "the same value, if it is `full`, `lora` or `qlora`"),
    "tuner_type": Foreign(_SW, "method", "the same value, if it is `full`, `lora` or `qlora`"),
    "use_peft": Foreign(_TRL, "method", "`lora` or `qlora`; `full` without"),
    "peft": Foreign("other tools", "lora", "with peft's names: r, lora_alpha, lora_dropout, target_modules"),
    "lora_rank": Foreign(f"{_LF} and {_SW}", "lora.r", _SAME),
    "lora_r": Foreign(f"{_AX} and TRL", "lora.r", _SAME),
    "rank": Foreign("other tools", "lora.r", _SAME),
    "alpha": Foreign(_LU, "lora.lora_alpha", _SAME),
    "dropout": Foreign(_LU, "lora.lora_dropout", _SAME),
    "lora_target": Foreign(_LF, "lora.target_modules", "`all` is all-linear here; names as a list"),
    "lora_target_modules": Foreign(f"{_AX} and TRL", "lora.target_modules", "a list of names, or all-linear"),
    "lora_target_linear": Foreign(_AX, "lora.target_modules", "`all-linear`"),
    "lora_task_type": Foreign(_TRL, "task", "`causal-lm`"),
    "lora_fan_in_fan_out": Foreign(_AX, "", "take it out: peft tells it from the model"),
    "lora_modules_to_save": Foreign(_AX, "lora.modules_to_save", _SAME),
    "additional_target": Foreign(_LF, "lora.modules_to_save", "a list of names"),
    "adapter_name_or_path": Foreign(_LF, "model.adapter", _SAME),
    "lora_model_dir": Foreign(_AX, "model.adapter", _SAME),
    "adapters": Foreign(_SW, "model.adapter", "one location"),
    "load_in_4bit": Foreign(f"{_HF}, {_AX} and {_LU}", "method", "`qlora` (nf4 with double quantisation)"),
    "load_in_8bit": Foreign(f"{_HF} and {_AX}", "method", "`qlora`: 4 bits are what Shoal quantises to"),
    "quantization_bit": Foreign(_LF, "method", "`qlora` for 4 bits"),
    "quant_bits": Foreign(_SW, "method", "`qlora` for 4 bits"),
    "bits": Foreign(_LU, "method", "`qlora` for 4 bits"),
    "bnb_4bit_compute_dtype": Foreign(_HF, "train.dtype", _DTYPE),
    # Model
    "base_model": Foreign(f"{_AX} and {_LU}", "model.base", _SAME),
    "model_name_or_path": Foreign(f"{_LF} and TRL", "model.base", _SAME),
    "model_name": Foreign("other tools", "model.base", _SAME),
    "model_id": Foreign("other tools", "model.base", _SAME),
    "tokenizer_name": Foreign(_HF, "", "take it out: the tokenizer is the model's own"),
    "tokenizer_type": Foreign(_AX, "", "take it out: the tokenizer is the model's own"),
    "model_revision": Foreign(_TRL, "model.revision", _SAME),
    "model_type": Foreign(f"{_AX}, {_LU} and {_SW}", "", "take it out: the model's config.json says it"),
    "template": Foreign(_LF, "", "take it out: the model's own is used; or name a file in data.chat_template"),
    "chat_template": Foreign(_AX, "", "take it out: the model's own is used; or name a file in data.chat_template"),
    "hf_hub_token": Foreign(_LF, "model.token", "a reference: `env:NAME` or `file:PATH`"),
    "hub_token": Foreign(_HF, "model.token", "a reference: `env:NAME` or `file:PATH`"),
    "bf16": Foreign(f"{_HF}, {_AX} and {_LF}", "train.dtype", _DTYPE),
    "fp16": Foreign(f"{_HF}, {_AX} and {_LF}", "train.dtype", f"{_DTYPE}; fp16 needs loss scaling and is not offered"),
    "tf32": Foreign(_AX, "", "take it out: train.dtype decides the arithmetic"),
    "torch_dtype": Foreign(_HF, "train.dtype", _DTYPE),
    "flash_attention": Foreign(_AX, "model.attn_implementation", "`auto`, or `flash_attention_2`"),
    "flash_attn": Foreign(_LF, "model.attn_implementation", "`auto`, `sdpa`, `eager` or `flash_attention_2` (fa2)"),
    "attn_impl": Foreign(_SW, "model.attn_implementation", "`auto`, `sdpa`, `eager` or `flash_attention_2`"),
    "sdp_attention": Foreign(_AX, "model.attn_implementation", "`sdpa`"),
    "xformers_attention": Foreign(_AX, "model.attn_implementation", "`auto`, or `sdpa`"),
    "use_liger_kernel": Foreign(_HF, "", "take it out: the loss is always computed in pieces"),
    # Data
    "dataset": Foreign(f"{_LF} and {_SW}", "data.train", "the location of its files: a path, a glob or s3://..."),
    "datasets": Foreign(_AX, "data.train", "a list of `{path: ..., format: ..., weight: ...}`, or of locations"),
    "dataset_name": Foreign(_TRL, "data.train", "the location of its files: a path, a glob or s3://..."),
    "dataset_dir": Foreign(_LF, "data.train", "the files themselves, such as {value}/*.jsonl"),
    "train_file": Foreign(_HF, "data.train", _SAME),
    "eval_dataset": Foreign(_LF, "data.validation", "the location of its files"),
    "validation_file": Foreign(_HF, "data.validation", _SAME),
    "test_datasets": Foreign(_AX, "data.validation", "each one's path"),
    "val_set_size": Foreign(
        f"{_AX} and {_LF}", "data.validation", "a share such as 0.05 (counts are not taken), or a location"
    ),
    "val_size": Foreign(_LF, "data.validation", "a share such as 0.05 (counts are not taken), or a location"),
    "val_dataset": Foreign(_SW, "data.validation", "the location of its files"),
    "split_dataset_ratio": Foreign(_SW, "data.validation", _SAME),
    "cutoff_len": Foreign(
        _LF, "data.sequence_length", f"{_SAME}; longer samples are rejected unless data.overlength is truncate"
    ),
    "max_seq_length": Foreign(
        "TRL", "data.sequence_length", f"{_SAME}; longer samples are rejected unless data.overlength is truncate"
    ),
    "max_seq_len": Foreign("other tools", "data.sequence_length", _SAME),
    "max_length": Foreign(
        f"TRL and {_SW}",
        "data.sequence_length",
        f"{_SAME}; longer samples are rejected unless data.overlength is truncate",
    ),
    "sequence_len": Foreign(
        _AX, "data.sequence_length", f"{_SAME}; longer samples are rejected unless data.overlength is truncate"
    ),
    "max_sequence_length": Foreign(_LU, "data.sequence_length", _SAME),
    "truncation_strategy": Foreign(_SW, "data.overlength", "`reject` or `truncate`"),
    "sample_packing": Foreign(_AX, "data.packing", f"{_SAME} (samples in a row never see each other)"),
    "eval_sample_packing": Foreign(_AX, "data.packing", "it serves evaluation too"),
    "neat_packing": Foreign(_LF, "data.packing", f"{_SAME} (samples in a row never see each other)"),
    "pad_to_sequence_len": Foreign(_AX, "", "take it out: rows are never padded"),
    "group_by_length": Foreign(_HF, "", "take it out: rows are never padded, so their order stays random"),
    "train_on_inputs": Foreign(_AX, "data.train_on", "`all` for true, `assistant` for false"),
    "train_on_prompt": Foreign(_LF, "data.train_on", "`all` for true, `assistant` for false"),
    "mask_history": Foreign(_LF, "data.train_on", "`last` for true, `assistant` for false"),
    "assistant_only_loss": Foreign(_TRL, "data.train_on", "`assistant` for true, `all` for false"),
    "completion_only_loss": Foreign(_TRL, "data.train_on", "`assistant` for true, `all` for false"),
    "chat_template_jinja": Foreign(_AX, "data.chat_template", "a file that holds it"),
    "chat_template_path": Foreign(_TRL, "data.chat_template", _SAME),
    "interleave_probs": Foreign(_LF, "data.train", "a list of `{path: ..., weight: ...}`: how often a sample is read"),
    "mix_strategy": Foreign(_LF, "data.train", "a list of `{path: ..., weight: ...}`: how often a sample is read"),
    "special_tokens": Foreign(_AX, "", _OWN_TOKENS),
    "eos_token": Foreign(_TRL, "", _OWN_TOKENS),
    "max_samples": Foreign(_LF, "train.max_steps", "rows are not cut off: stop after some steps, or name fewer files"),
    "dataset_train_split": Foreign(_TRL, "data.train", "the location of that split's files"),
    "dataset_prepared_path": Foreign(_AX, "", "take it out: prepared data go to the profile's storage.prepared"),
    "packing_strategy": Foreign(_TRL, "data.packing", "true or false; samples are never cut to fill a row"),
    "dataset_num_proc": Foreign(_TRL, "", f"take it out: {_LAYOUT}"),
    "preprocessing_num_workers": Foreign(_LF, "", f"take it out: {_LAYOUT}"),
    "dataloader_num_workers": Foreign(_HF, "", "take it out: each worker reads ahead of its step"),
    "overwrite_cache": Foreign(_LF, "", "take it out: prepared data is known by a digest of its sources and options"),
    "input_features": Foreign(
        _LU, "data.train", "rows name their fields: messages, or instruction and output, or prompt and completion"
    ),
    "output_features": Foreign(
        _LU, "data.train", "rows name their fields: messages, or instruction and output, or prompt and completion"
    ),
    # Whole sections and what is elsewhere
    "trainer": Foreign(_LU, "train", "and `optimizer` for the learning rate and its schedule"),
    "training": Foreign("other tools", "train", "and `optimizer` for the learning rate and its schedule"),
    "eval_table_size": Foreign(_AX, "prompts", "texts that the base and the result answer at the end"),
    "eval_max_new_tokens": Foreign(_AX, "", "take it out: how long answers may be is fixed"),
    **dict.fromkeys(
        ("loss_watchdog_threshold", "loss_watchdog_patience"),
        Foreign(_AX, "", "take it out: a loss that is not a number ends the run, the last checkpoint stays"),
    ),
    **dict.fromkeys(
        ("strict", "debug"), Foreign(_AX, "", "take it out: every key is always checked; see `shoal check`")
    ),
    "generation": Foreign(_LU, "prompts", "texts that the base and the result answer at the end"),
    "stage": Foreign(_LF, "task", "`causal-lm` for sft; DeepSpeed's ZeRO stage is deepspeed.stage"),
    "do_train": Foreign(_LF, "", "take it out: `shoal run` trains"),
    "do_eval": Foreign(_HF, "data.validation", "a share such as 0.05"),
    "rl": Foreign(_AX, "", "take it out: learning from preferences is not there yet"),
    "zero_stage": Foreign("accelerate", "deepspeed.stage", _SAME),
    "zero_optimization": Foreign(
        "DeepSpeed", "deepspeed.stage", "and deepspeed.offload; other options of it under deepspeed.config"
    ),
    "fsdp": Foreign(f"{_HF} and {_AX}", "deepspeed.stage", "3 shares parameters as FSDP does"),
    "fsdp_config": Foreign(f"{_HF} and {_AX}", "deepspeed.stage", "3 shares parameters as FSDP does"),
    "cpu_offload": Foreign("DeepSpeed", "deepspeed.offload", "`optimizer` or `parameters`"),
    "backend": Foreign(_LU, "", f"take it out: {_LAYOUT}"),
    "num_workers": Foreign("Ray", "", f"take it out and write `workers` in the profile: {_LAYOUT}"),
    "num_gpus": Foreign("other tools", "", f"take it out and write `workers` in the profile: {_LAYOUT}"),
    "local_rank": Foreign(f"torchrun and {_AX}", "", f"take it out: {_LAYOUT}"),
    "ddp_timeout": Foreign(_LF, "", f"take it out: {_LAYOUT}"),
    "nproc_per_node": Foreign("torchrun", "", f"take it out and write `workers` in the profile: {_LAYOUT}"),
    "report_to": Foreign(_HF, "", _TRACKED),
    **dict.fromkeys(
        ("wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_run_id", "wandb_log_model"),
        Foreign(_AX, "", _TRACKED),
    ),
    "plot_loss": Foreign(_LF, "", _TRACKED),
    "run_name": Foreign(_HF, "name", "lower-case letters, digits and dashes"),
    "push_to_hub": Foreign(_HF, "", _NO_HUB),
    "hub_model_id": Foreign(_HF, "", _NO_HUB),
    "merge_lora": Foreign(_SW, "export.merge", _SAME),
    "gradient_checkpointing_kwargs": Foreign(
        _HF, "train.gradient_checkpointing", "true or false; it is always the non-reentrant kind"
    ),
    "load_best_model": Foreign("other tools", "train.load_best_model_at_end", _SAME),
    "early_stop": Foreign(_LU, "train.early_stopping_patience", "counted in evaluations"),
}

CLUSTER: dict[str, Foreign] = {
    "num_workers": Foreign("Ray", "workers", _SAME),
    "num_processes": Foreign("accelerate", "workers", _SAME),
    "nproc_per_node": Foreign("torchrun", "workers", _SAME),
    "use_gpu": Foreign("Ray", "resources_per_worker.gpu", "1 for true, 0 for false"),
    "num_gpus": Foreign("Ray", "resources_per_worker.gpu", "1, and as many `workers` as there are GPUs"),
    "num_cpus": Foreign("Ray", "resources_per_worker.cpu", "cores of one worker"),
    "gpus": Foreign("other tools", "workers", "one for each GPU, with resources_per_worker.gpu: 1"),
    "gpu_type": Foreign("other tools", "resources_per_worker.accelerator_type", _SAME),
    "storage_path": Foreign("Ray", "storage.runs", _SAME),
    "output_dir": Foreign(_HF, "storage.runs", _SAME),
    "endpoint": Foreign("other tools", "storage.s3.endpoint_url", _SAME),
    "region_name": Foreign("boto3", "storage.s3.region", _SAME),
    "aws_access_key_id": Foreign(
        "boto3", "storage.s3.credentials.access_key_env", "the name of an environment variable"
    ),
    "aws_secret_access_key": Foreign(
        "boto3", "storage.s3.credentials.secret_key_env", "the name of an environment variable"
    ),
    "access_key": Foreign(
        "other tools", "storage.s3.credentials.access_key_env", "the name of an environment variable"
    ),
    "secret_key": Foreign(
        "other tools", "storage.s3.credentials.secret_key_env", "the name of an environment variable"
    ),
}

NAMES: dict[Literal["job", "cluster"], dict[str, Foreign]] = {"job": JOB, "cluster": CLUSTER}
