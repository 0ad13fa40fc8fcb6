"""Loading a result: a run's export (adapter on its base, full model, merged model) as model and tokenizer."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any, Literal

from shoal.errors import ModelError, Problem, SpecError
from shoal.models import keep_4bit_exact, load_tokenizer, materialise
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage, absolute, join

ExportName = Literal["adapter", "model", "merged"]


def load(folder: RunFolder, storage: Storage, *, merged: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a finished run, in eval mode, on the GPU when there is one.

    An adapter stays an adapter on its base, so `model.disable_adapter()` gives the base. SpecError when the run has no
    such export, ModelError when the base cannot be had.
    """
    plan = Plan.read_back(storage.read(folder.plan), folder.plan)
    name: ExportName = "merged" if merged else "model" if plan.trajectory.method == "full" else "adapter"
    if merged and plan.trajectory.method == "full":
        raise SpecError(Problem(plan.run_id, "is a full model: there is nothing merged", "leave --merged out"))
    export = fetch_export(folder, storage, plan, name)
    if name != "adapter":
        return _model(plan, export), load_tokenizer(export, plan.trajectory.model.trust_remote_code)
    base = materialise(plan.trajectory.model, storage, Path(plan.storage.cache).expanduser())
    return load_adapter(plan, base, export)


def load_base(folder: RunFolder, storage: Storage) -> Any:
    """The model that the run started from, in eval mode: what a full model's answers are compared with."""
    plan = Plan.read_back(storage.read(folder.plan), folder.plan)
    return _model(plan, materialise(plan.trajectory.model, storage, Path(plan.storage.cache).expanduser()))


def load_adapter(plan: Plan, base: Path, adapter: Path) -> tuple[Any, Any]:
    """(PeftModel, tokenizer) from local folders; a qlora adapter lands on the 4-bit base that it was trained on."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(_model(plan, base, quantized=True), str(adapter))
    return model.eval(), load_tokenizer(adapter, plan.trajectory.model.trust_remote_code)


def fetch_export(folder: RunFolder, storage: Storage, plan: Plan, name: ExportName) -> Path:
    """The export as a local folder, downloaded once per node; SpecError when the run has none (yet)."""
    where = folder.export(name).rstrip("/") + "/"
    if not storage.exists(join(where, "export.json")):
        if name == "merged":
            raise SpecError(Problem(plan.run_id, "is not merged yet", f"merge it: shoal export {plan.run_id} --merge"))
        fix = f"finish it: shoal resume {plan.run_id}"
        raise SpecError(Problem(plan.run_id, f"is not finished: it has no {name} yet", fix))
    if "://" not in where:
        return Path(absolute(where))
    done = storage.read(join(where, "export.json"))
    cached = Path(plan.storage.cache).expanduser() / "exports" / plan.run_id / name
    if (cached / "export.json").exists() and (cached / "export.json").read_bytes() == done:
        return cached
    temporary = cached.with_name(f"{name}.{secrets.token_hex(4)}.part")
    try:
        storage.download(where, temporary)
        short = [
            item["file"]
            for item in json.loads(done)["files"]
            if not (temporary / item["file"]).is_file() or (temporary / item["file"]).stat().st_size != item["size"]
        ]
        if short:
            raise ModelError(Problem(where, f"is not whole: {', '.join(short)}", f"shoal export {plan.run_id}"))
        shutil.rmtree(cached, ignore_errors=True)
        temporary.rename(cached)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return cached


def _model(plan: Plan, folder: Path, quantized: bool = False) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    cuda = torch.cuda.is_available()
    # bf16 arithmetic on most CPUs is many times slower than fp32.
    dtype = torch.bfloat16 if plan.trajectory.dtype == "bf16" and cuda else torch.float32
    quantization = plan.trajectory.quantization
    config = None
    if quantized and quantization is not None:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **quantization.model_dump())
    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        quantization_config=config,
        device_map={"": 0} if cuda else None,
        trust_remote_code=plan.trajectory.model.trust_remote_code,
    )
    return keep_4bit_exact(model).eval()
