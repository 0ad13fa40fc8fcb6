"""The model as it is trained: base weights in the plan's dtype, frozen or not, with or without an adapter."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from shoal.errors import ModelError, Problem
from shoal.models import keep_4bit_exact
from shoal.plan.types import Plan, Trajectory
from shoal.tasks import attention, causal_lm
from shoal.train.engine import place
from shoal.train.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_base(trajectory: Trajectory, folder: Path, attn_implementation: str, device: torch.device) -> PreTrainedModel:
    """The base alone, frozen in no way. `device` places a quantised base, which may not be moved afterwards."""
    trust = trajectory.model.trust_remote_code
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust)
    model = causal_lm.AUTO_MODEL.from_pretrained(
        str(folder),
        dtype=DTYPES[trajectory.dtype],
        attn_implementation=attention.resolve(attn_implementation, config),
        quantization_config=quantization(trajectory),
        device_map={"": device} if trajectory.method == "qlora" and device.type == "cuda" else None,
        trust_remote_code=trust,
    )
    model.config.use_cache = False
    return keep_4bit_exact(model)


def quantization(trajectory: Trajectory) -> BitsAndBytesConfig | None:
    """4-bit weights stored in the model's own dtype, so that ZeRO can move them."""
    if trajectory.quantization is None:
        return None
    dtype = DTYPES[trajectory.dtype]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=trajectory.quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=trajectory.quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if dtype is torch.bfloat16 else torch.uint8,
    )


def build(plan: Plan, folder: Path, start: Path | None, world: World) -> Any:
    """The model to train: a PreTrainedModel (full) or a PeftModel, the same on every rank.

    `start` is the local folder of an adapter (lora, qlora) or of a full model (full) to go on from.
    """
    trajectory, layout = plan.trajectory, plan.layout
    torch.manual_seed(trajectory.seed)
    device = place(layout, world)
    source = start if start and trajectory.method == "full" else folder
    model = load_base(trajectory, source, layout.attn_implementation, device)
    if trajectory.method != "full":
        model = _adapted(trajectory, model, start)
    if layout.gradient_checkpointing:
        # The non-reentrant kind needs no input that requires grad, so a frozen base cannot cut the adapter off.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _adapted(trajectory: Trajectory, model: PreTrainedModel, start: Path | None) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if start:
        return PeftModel.from_pretrained(model, str(start), is_trainable=True)
    lora = trajectory.lora
    assert lora is not None
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType]  peft takes fractions too
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        modules_to_save=list(lora.modules_to_save) or None,
        use_rslora=lora.use_rslora,
    )
    try:
        # Adapters in fp32 whatever the base's dtype: bf16 weights with small steps do not move at all.
        return get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        )
        raise ModelError(
            Problem(
                "lora.target_modules", str(error).split("\n")[0], f"this model's linear layers: {', '.join(linear)}"
            )
        ) from error
