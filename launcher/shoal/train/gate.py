"""The export gate: a plain script that reloads an export as its user will, and compares logits.

    python -P gate.py REQUEST.json      prints one JSON line of figures, exit status 0 when they hold and 1 when not

It imports nothing of Shoal. The request (a JSON object) says what to do:
    task        "compare": the export against the live model's logits in `probe`
                "merge": base and adapter into one model at `export`, then that against base and adapter in full precision;
                with quantization also against the 4-bit base and adapter, which is what was trained
    kind        "adapter" or "model": what `export` is, for compare
    export, base, adapter   folders; base in full precision
    dtype       "fp32" or "bf16": arithmetic of compare, and the dtype in which a merged model is stored
    quantization            BitsAndBytesConfig's fields, for an adapter of a 4-bit base; null otherwise
    probe       safetensors file: row.N (tokens,) and, for compare, logits.N (tokens, vocabulary)
    device, trust_remote_code

Tolerances are of the largest difference relative to the largest logit. fp32: 1e-4, since only the order of sums differs
(another attention kernel, a packed row or not), which moves logits by 1e-6 to 1e-5. bf16: 3e-2, since bf16 keeps 8 bits: one
rounding is 2^-9 = 0.2%, and dozens of layers of other kernels add up to about 1%, while a wrong or missing adapter moves
logits by far more. Besides, the most likely token must be the same at 98% of positions, near ties aside: in bf16 logits
between 16 and 32 lie 0.125 apart, so tokens that close have no order; a tie is a gap of at most 2^-7 of the largest logit.
`argmax_agreement` counts ties as well and is not judged.
"""

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
TIE = {"fp32": 1e-6, "bf16": 2**-7}
AGREEMENT = 0.98


def main(request: dict[str, Any]) -> int:
    probe = Path(request["probe"])
    with safe_open(probe, framework="pt") as file:
        count = sum(key.startswith("row.") for key in file.keys())  # noqa: SIM118 - the file is no mapping
        rows = [file.get_tensor(f"row.{n}") for n in range(count)]
        live = [file.get_tensor(f"logits.{n}") for n in range(count)] if request["task"] == "compare" else []
    with torch.no_grad():
        figures = compare(request, rows, live) if request["task"] == "compare" else merge(request, rows)
    print(json.dumps(figures), flush=True)
    return 0 if figures["passed"] else 1


def compare(request: dict[str, Any], rows: list[torch.Tensor], live: list[torch.Tensor]) -> dict[str, Any]:
    dtype = DTYPES[request["dtype"]]
    if request["kind"] == "adapter":
        base = load(request["base"], request, dtype, quantization=request["quantization"])
        model = PeftModel.from_pretrained(base, request["export"])
    else:
        model = load(request["export"], request, dtype)
    return difference(live, logits(model, rows), request["dtype"]) | {
        "dtype": request["dtype"],
        "against": "live model",
    }


def merge(request: dict[str, Any], rows: list[torch.Tensor]) -> dict[str, Any]:
    """Merges in fp32, stores in the wanted dtype, and measures the stored model in fp32 arithmetic.

    So the figures show what storing costs and nothing else. The gap to a 4-bit model is recorded, not judged.
    """
    base = load(request["base"], request, torch.float32)
    tied = bool(base.config.tie_word_embeddings)
    model = PeftModel.from_pretrained(base, request["adapter"])
    wanted = logits(model, rows)
    if tied:
        untie(base)
    merged = model.merge_and_unload(safe_merge=True).to(DTYPES[request["dtype"]])
    merged.save_pretrained(request["export"], max_shard_size="5GB")
    untied = tied and not merged.config.tie_word_embeddings
    del base, model, merged
    gc.collect()
    stored = logits(load(request["export"], request, torch.float32), rows)
    figures = difference(wanted, stored, request["dtype"])
    figures |= {"dtype": request["dtype"], "against": "full-precision base with the adapter", "untied": untied}
    if request["quantization"]:
        small = load(request["base"], request, DTYPES[request["dtype"]], quantization=request["quantization"])
        trained = logits(PeftModel.from_pretrained(small, request["adapter"]), rows)
        gap = difference(trained, stored, request["dtype"])
        figures["gap_to_4bit"] = {key: gap[key] for key in gap if key not in ("passed", "tolerance")}
    return figures


def untie(model: Any) -> None:
    """Give an adapted head or embedding of a tied model its own weight.

    peft merges in place: the update of the one would otherwise be added to the other as well.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if hasattr(head, "base_layer") or hasattr(embedding, "base_layer"):
        layer = getattr(head, "base_layer", head)
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def load(folder: str, request: dict[str, Any], dtype: torch.dtype, quantization: dict[str, Any] | None = None) -> Any:
    config = None
    if quantization:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **quantization)
    device = request["device"]
    if device != "cpu":
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        # The trainer still holds its part of the device.
        device = device if torch.cuda.is_available() and torch.cuda.mem_get_info(device)[0] > 2 * size else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=config,
        device_map={"": device} if device != "cpu" else None,
        trust_remote_code=request["trust_remote_code"],
    )
    for module in model.modules():
        # bitsandbytes' kernel for inference on CPUs with AVX512-BF16 rounds to bf16; what was trained did not.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  torch types every attribute as a module
    return model.eval()


def logits(model: Any, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits (tokens, vocabulary) of each row by itself, fp32 on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=row[None].to(device), use_cache=False).logits[0].float().cpu() for row in rows]


def difference(wanted: list[torch.Tensor], found: list[torch.Tensor], dtype: str) -> dict[str, Any]:
    pairs = list(zip(wanted, found, strict=True))
    if any(w.shape != f.shape for w, f in pairs):
        shapes = {"wanted": [list(w.shape) for w in wanted], "found": [list(f.shape) for f in found]}
        return {"passed": False, "shapes": shapes}
    largest = max(float(w.abs().max()) for w, _ in pairs)
    worst = max(float((w - f).abs().max()) for w, f in pairs)
    total = sum(w.numel() for w, _ in pairs)
    positions = sum(w.shape[0] for w, _ in pairs)
    agreeing = sum(int((w.argmax(-1) == f.argmax(-1)).sum()) for w, f in pairs)
    relative = worst / max(largest, 1e-30)
    close = sum(
        int((w.max(-1).values - w.gather(-1, f.argmax(-1, keepdim=True))[:, 0] <= TIE[dtype] * largest).sum())
        for w, f in pairs
    )
    finite = all(bool(w.isfinite().all() and f.isfinite().all()) for w, f in pairs)
    return {
        "passed": finite and relative <= TOLERANCE[dtype] and close / positions >= AGREEMENT,
        "max_relative_difference": relative,
        "max_difference": worst,
        "mean_difference": sum(float((w - f).abs().sum()) for w, f in pairs) / total,
        "argmax_agreement": agreeing / positions,
        "argmax_agreement_beyond_ties": close / positions,
        "positions": positions,
        "tolerance": TOLERANCE[dtype],
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
