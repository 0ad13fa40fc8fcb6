"""What a run trained, put together again from its last checkpoint by plain arithmetic: a second road to the logits."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.manifest import newest

ADAPTED = "base_model.model."


def parameters(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    """{name: trained tensor, fp32} of the checkpoint of `step`, which must be the newest."""
    manifest = newest(Storage(), folder)
    assert manifest is not None and manifest.step == step
    tensors: dict[str, torch.Tensor] = {}
    for part in manifest.parts:
        tensors |= load_file(Path(folder.checkpoint(step)) / part.file)
    return {name.removesuffix("::param"): tensor for name, tensor in tensors.items() if name.endswith("::param")}


def model(base: str, plan: Plan, trained: dict[str, torch.Tensor], *, quantized: bool) -> PreTrainedModel:
    """The fp32 base with the trained weights in place, or with `scale * B @ A` added to each adapted weight.

    With `quantized` an adapted weight goes to 4 bits and back first, as it was while the adapter was trained.
    """
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        if plan.trajectory.lora is None:
            for name, tensor in trained.items():
                weights[name].copy_(tensor)
            return whole
        scale = plan.trajectory.lora.lora_alpha / plan.trajectory.lora.r
        adapted = [name for name in trained if ".lora_A." in name]
        assert adapted
        for name in adapted:
            weight = weights[name.removeprefix(ADAPTED).replace(".lora_A.default", "")]
            start = through_4bit(weight, plan) if quantized else weight
            weight.copy_(start + scale * trained[name.replace(".lora_A.", ".lora_B.")] @ trained[name])
    return whole


def through_4bit(weight: torch.Tensor, plan: Plan) -> torch.Tensor:
    from bitsandbytes import functional

    how = plan.trajectory.quantization
    assert how is not None
    packed, state = functional.quantize_4bit(
        weight.contiguous(),
        compress_statistics=how.bnb_4bit_use_double_quant,
        quant_type=how.bnb_4bit_quant_type,
    )
    return functional.dequantize_4bit(packed, state)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(tokens, vocabulary) for ids (tokens,)."""
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0].float()
