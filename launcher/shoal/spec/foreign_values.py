"""Values that another tool would take at a field, or that people expect there, and what to write instead."""

from typing import Any

VALUES: dict[tuple[str, ...], dict[Any, str]] = {
    ("kind",): {
        **dict.fromkeys(("kubernetes", "k8s"), "write `kuberay`: pods under the KubeRay operator"),
        "slurm": "write `ray`: cluster/slurm.sh starts a Ray over the allocation, and `address: auto` finds it",
        "cluster": "write `ray` for a Ray cluster that runs, `kuberay` for pods, `local` for a Ray on this machine",
    },
    ("model",): {str: "write `model: {base: LOCATION}`"},
    ("data",): {str: "write `data: {train: LOCATION}`", list: "write `data: {train: [LOCATION, ...]}`"},
    ("deepspeed",): {
        str: "no path to a JSON file is taken: write deepspeed.stage and deepspeed.offload, and the file's other options "
        "under deepspeed.config (batch sizes, dtype and clipping have fields of their own here)",
    },
    ("optimizer",): {str: "the optimizer is AdamW; its settings are a section: `optimizer: {learning_rate: 2e-4}`"},
    ("lora",): {bool: "write `method: lora`; the section `lora` holds r, lora_alpha, ..."},
    ("method",): {"sft": "write `method: full`, `lora` or `qlora`; what is learnt is `task: causal-lm`"},
    ("task",): {"sft": "write `task: causal-lm`", "causal_lm": "write `task: causal-lm`"},
    ("data", "format"): {
        "alpaca": "write `instruction`: rows of instruction, input and output",
        "sharegpt": "write `messages`: rows of conversations with from and value are read too",
        "dpo": "write `preference`",
        "chat_template": "write `messages`",
        "chatml": "write `messages`",
        "completion": "write `text`",
    },
    ("train", "max_steps"): {-1: "take the line out: train.num_train_epochs ends the run"},
    ("train", "dtype"): {
        "bfloat16": "write `bf16`",
        "float32": "write `fp32`",
        "fp16": "write `bf16` or `auto`: fp16 needs loss scaling and is not offered",
        "float16": "write `bf16` or `auto`: fp16 needs loss scaling and is not offered",
    },
    ("model", "attn_implementation"): {"fa2": "write `flash_attention_2`", "flash_attn": "write `flash_attention_2`"},
    ("lora", "target_modules"): {"all": "write `all-linear`"},
}


def value_advice(path: tuple[str | int, ...], given: Any) -> str | None:
    """What to write instead of a value that another tool would take at this field."""
    fields = tuple(part for part in path if isinstance(part, str))
    advice = VALUES.get(fields, {})
    by_value = advice.get(given) if isinstance(given, (str, int)) and not isinstance(given, bool) else None
    return by_value or advice.get(type(given))
