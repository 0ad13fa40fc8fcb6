"""The model card that goes with an export: what it is, what it learnt from, how well, and how it is loaded."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from shoal.plan.types import Plan

SHOWN_OBJECTS = 5
BASE_FOLDER = "FOLDER_OF_THE_BASE"
"""Where the reader of a card has put a base that is on no hub."""


def base_name(plan: Plan) -> str:
    """The base as others may read it: a hub id or an s3:// location, of a local path only the last part."""
    base = plan.trajectory.model.base
    return base if plan.trajectory.model.kind == "hub" or "://" in base else base.rstrip("/").rsplit("/", 1)[-1]


def model_card(plan: Plan, name: str, gate: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """README.md of the export `name` (adapter, model or merged). `trained` may hold `samples` and `losses`."""
    trajectory = plan.trajectory
    front = {
        "base_model": base_name(plan),
        "library_name": "peft" if name == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shoal", trajectory.method, trajectory.task],
    }
    if trajectory.model.kind == "hub":
        front["base_model_relation"] = "adapter" if name == "adapter" else "finetune"
    kind = {"adapter": "A LoRA adapter of", "model": "A fine-tuned", "merged": "A LoRA adapter merged into"}[name]
    revision = f" (revision `{trajectory.model.revision}`)" if trajectory.model.revision else ""
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {plan.run_id}\n\n{kind} `{base_name(plan)}`{revision}, trained with Shoal {plan.shoal}.",
        "## Load it\n\n```python\n" + "\n".join(_loading(plan, name)) + "\n```",
        "## Data\n\n" + _table(_data(plan, trained)),
        "## Training\n\n" + _table(_hyperparameters(plan)),
        "## Results\n\n" + _table(_results(trained)),
        "## Export check\n\nReloaded in a fresh process with plain transformers"
        + (" and peft" if name == "adapter" else "")
        + f", and compared with the {gate.get('against', 'live model')} on held token rows.\n\n"
        + _table(_flat(gate)),
    ]
    return "\n\n".join(sections) + "\n"


def _loading(plan: Plan, name: str) -> list[str]:
    if name != "adapter":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        ]
    model, quantization = plan.trajectory.model, plan.trajectory.quantization
    # A hub id is all that transformers loads from elsewhere than a folder.
    hub = model.kind == "hub"
    more = f', revision="{model.revision}"' if model.revision else ""
    names = "AutoModelForCausalLM, AutoTokenizer"
    if model.gguf:
        folder, _, file = base_name(plan).rpartition("/")
        where = f'"{folder if hub else BASE_FOLDER}", gguf_file="{file}"'
    else:
        where = f'"{base_name(plan) if hub else BASE_FOLDER}"'
    if quantization is not None:
        names += ", BitsAndBytesConfig"
        more += (
            f', quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="'
            f'{quantization.bnb_4bit_quant_type}", '
            f"bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant})"
        )
    return [
        f"from peft import PeftModel\nfrom transformers import {names}",
        f"base = AutoModelForCausalLM.from_pretrained({where}{more})",
        'model, tokenizer = PeftModel.from_pretrained(base, "THIS_FOLDER"), AutoTokenizer.from_pretrained("THIS_FOLDER")',
    ]


def _data(plan: Plan, trained: Mapping[str, Any]) -> dict[str, Any]:
    data = plan.trajectory.data
    urls = [
        item.url if "://" in item.url else item.url.rsplit("/", 1)[-1]
        for source in data.train
        for item in source.objects
    ]
    more = [f"and {len(urls) - SHOWN_OBJECTS} more"] if len(urls) > SHOWN_OBJECTS else []
    return {
        "objects": ", ".join([f"`{url}`" for url in urls[:SHOWN_OBJECTS]] + more),
        "digest": f"`{data.digest}`",
        "format": data.formats,
        "rows": trained.get("samples"),
        "sequence_length": data.sequence_length,
        "packing": data.packing,
        "tokens": plan.trajectory.tokens.value,
    }


def _hyperparameters(plan: Plan) -> dict[str, Any]:
    trajectory = plan.trajectory
    optimizer = trajectory.optimizer
    figures: dict[str, Any] = {
        "method": trajectory.method,
        "steps": trajectory.steps.value,
        "batch_size": trajectory.batch_size,
        "seed": trajectory.seed,
        "dtype": trajectory.dtype,
    }
    figures |= optimizer.model_dump(include={"learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"})
    if trajectory.lora is not None:
        figures |= {f"lora.{key}": value for key, value in trajectory.lora.model_dump(mode="json").items()}
    return figures


def _results(trained: Mapping[str, Any]) -> dict[str, Any]:
    words = {"base": "validation loss of the base", "result": "validation loss of this model"}
    losses = trained.get("losses", {})
    return {f"{word} (nats per target)": losses.get(key) for key, word in words.items()}


def _flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in figures.items():
        flat.update(_flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return {key.replace("_", " "): value for key, value in flat.items() if key != "against"}


def _table(rows: Mapping[str, Any]) -> str:
    known = {key: value for key, value in rows.items() if value is not None}
    if not known:
        return "Not measured."
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in known.items())])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
