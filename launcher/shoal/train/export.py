"""What a run leaves behind: an adapter folder, a full model or a merged one, each proven before it is called done.

An export is written to a local folder, reloaded by gate.py in a fresh process and compared with the live model, and only
then uploaded, `export.json` last. What fails the gate is uploaded as NAME-failed, without `export.json`.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.errors import ExportError, Problem, SpecError, StorageError
from shoal.infer.load import fetch_export
from shoal.models import load_tokenizer, materialise
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.checkpoint import States
from shoal.train.collective import from_main
from shoal.train.deliver import (
    Figures,
    copy_generation_config,
    fresh,
    gate_request,
    hand_in,
    merge,
    probe_url,
    run_gate,
    write_probe,
)
from shoal.train.manifest import scratch_folder
from shoal.train.world import World

if TYPE_CHECKING:
    from torch import Tensor

SHARD_SIZE = "5GB"


def export(
    plan: Plan,
    engine: States,
    base_folder: Path,
    tokenizer: Any,
    folder: RunFolder,
    storage: Storage,
    world: World,
    rows: "Sequence[np.ndarray]",
    live_logits: "Callable[[np.ndarray], np.ndarray | Tensor]",
    losses: Mapping[str, float | None] | None = None,
    samples: int | None = None,
) -> Figures:
    """Export what `engine` holds; collective. Returns the gate's figures with `name` and `url`, and `merged` if planned.

    `rows` are probe rows of token ids, each (tokens,); `live_logits` gives a row's logits (tokens, vocabulary) and is called
    on every rank. For the model card: `losses` in nats per target, of the "base" and of the "result", and the number of
    training samples.
    Raises ExportError on every rank when what was written is not what was trained.
    """
    name = "model" if plan.trajectory.method == "full" else "adapter"
    tensors = _collect(plan, engine, world)
    trained = {"samples": samples, "losses": dict(losses or {})}
    logits = [_cpu(live_logits(row)) for row in rows]

    def finish() -> Figures:
        with _scratch(plan) as scratch:
            target = fresh(scratch / name)
            probe = write_probe(scratch / "probe.safetensors", rows, logits)
            _save(plan, engine.model, tensors, base_folder, target)
            tensors.clear()
            tokenizer.save_pretrained(str(target))
            request = gate_request(plan, base_folder) | {"task": "compare", "kind": name, "export": str(target)}
            gate = run_gate(request | {"probe": str(probe)}, scratch)
            figures = hand_in(plan, name, target, gate, trained, folder, storage)
            # For a merge later; not in the export's folder, since the rows are the user's own data.
            storage.write(probe_url(folder), json.dumps([[int(token) for token in row] for row in rows]).encode())
            if plan.merge and name == "adapter":
                figures["merged"] = merge(plan, base_folder, target, tokenizer, rows, folder, storage, trained, scratch)
            return figures

    return from_main(world, finish)


def merge_run(folder: RunFolder, storage: Storage) -> Figures:
    """Merge a finished run's adapter into its full-precision base; returns the gate's figures with `name` and `url`."""
    plan = Plan.read_back(storage.read(folder.plan), folder.plan)
    if plan.trajectory.method == "full":
        raise SpecError(
            Problem(plan.run_id, "is a full model: there is no adapter to merge", "its export is whole already")
        )
    adapter = fetch_export(folder, storage, plan, "adapter")
    base = materialise(plan.trajectory.model, storage, Path(plan.storage.cache).expanduser())
    rows = [np.asarray(row) for row in json.loads(storage.read(probe_url(folder)))]
    result = json.loads(storage.read(folder.result)) if storage.exists(folder.result) else {}
    trained = {"losses": {"base": result.get("base_loss"), "result": result.get("loss")}}
    tokenizer = load_tokenizer(adapter, plan.trajectory.model.trust_remote_code)
    with _scratch(plan) as scratch:
        return merge(plan, base, adapter, tokenizer, rows, folder, storage, trained, scratch)


def _collect(plan: Plan, engine: States, world: World) -> "dict[str, Tensor]":
    """{name: whole tensor} of what was trained, on rank 0: adapters in fp32, full models in the trajectory's dtype."""
    import torch

    bf16 = plan.trajectory.method == "full" and plan.trajectory.dtype == "bf16"
    tensors = {}
    for name in engine.names():
        tensor = engine.read_state(name)["param"]
        if world.is_main:
            tensors[name] = tensor.to(torch.bfloat16 if bf16 else torch.float32)
    return tensors


def _save(plan: Plan, model: Any, tensors: "dict[str, Tensor]", base_folder: Path, target: Path) -> None:
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if empty:
        raise ExportError(Problem("export", f"{len(empty)} tensors are empty, {empty[0]} among them"))
    if plan.trajectory.method == "full":
        _save_model(plan, model, tensors, base_folder, target)
    else:
        _save_adapter(plan, model, tensors, target)


def _save_adapter(plan: Plan, model: Any, tensors: "dict[str, Tensor]", target: Path) -> None:
    """As PeftModel.save_pretrained lays it out; that itself would write this rank's shards under ZeRO-3."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # A targeted embedding's base weight did not change, so it need not be saved.
    state = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()},
        target / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path = plan.trajectory.model.base
    config.revision = plan.trajectory.model.revision
    config.inference_mode = True
    config.save_pretrained(str(target))


def _save_model(plan: Plan, model: Any, tensors: "dict[str, Tensor]", base_folder: Path, target: Path) -> None:
    from transformers import AutoConfig

    frozen = {name for name, _ in model.named_parameters()} - tensors.keys()
    assert not frozen, f"full fine-tuning trains every parameter, but not {sorted(frozen)[:3]}"
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items() if name not in parameters}
    model.save_pretrained(str(target), state_dict=tensors | buffers, max_shard_size=SHARD_SIZE)
    # The live configuration is set for training (no cache, other attention): the base's own is what users expect.
    config = AutoConfig.from_pretrained(str(base_folder), trust_remote_code=plan.trajectory.model.trust_remote_code)
    config.architectures = [type(model).__name__]
    config.dtype = {"fp32": "float32", "bf16": "bfloat16"}[plan.trajectory.dtype]
    config.save_pretrained(str(target))
    copy_generation_config(base_folder, target)
    _same_tensors(model, base_folder, target)


def _same_tensors(model: Any, base_folder: Path, target: Path) -> None:
    """ExportError unless the stored tensors are the live model's, each once.

    The library renames and splits some on their way to a file (experts, heads); of these the base's files may know the
    shape. They are no measure otherwise: they may leave a prefix out, or hold tensors that the library ignores.
    """
    live, base, ours = _live_shapes(model), _shapes(base_folder), _shapes(target)
    ties = model.all_tied_weights_keys or {}
    tied = {*ties, *ties.values()} if model.config.tie_word_embeddings else set()
    problems = [
        Problem("export", f"{name} has shape {shape}, the model {live.get(name) or base.get(name)}")
        for name, shape in sorted(ours.items())
        if (name in live or name in base) and shape not in (live.get(name), base.get(name))
    ]
    # Renamed, split or fused, the numbers of a model stay as many.
    stored, held = (sum(math.prod(shape) for shape in shapes.values()) for shapes in (ours, live))
    if stored != held and not problems:
        missing = sorted(live.keys() - ours.keys() - tied) or sorted(live.keys() - ours.keys())
        problems = [Problem("export", f"{name} is missing") for name in missing]
        problems = problems or [Problem("export", f"holds {stored:,} numbers, the model {held:,}")]
    if problems:
        raise ExportError(*problems[:5])


def _live_shapes(model: Any) -> dict[str, list[int]]:
    """{name: whole shape} of what a model holds: a tied parameter once, buffers that are saved besides."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    # Under ZeRO-3 a parameter's own shape is that of what is left of it on this rank.
    shapes = {name: list(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in model.named_parameters()}
    return shapes | {name: list(t.shape) for name, t in model.state_dict().items() if name not in parameters}


def _shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _cpu(logits: "np.ndarray | Tensor") -> "Tensor":
    import torch

    return torch.as_tensor(logits).detach().float().cpu().clone()


@contextmanager
def _scratch(plan: Plan) -> Iterator[Path]:
    """An empty local folder for the export; a full disk is a StorageError, and the folder goes in any case."""
    from safetensors import SafetensorError

    folder = scratch_folder(plan) / "export"
    try:
        yield fresh(folder)
    except (OSError, SafetensorError) as exc:
        if isinstance(exc, StorageError):
            raise
        raise StorageError(
            Problem(str(folder), f"cannot be written: {exc}", "free space, or set storage.cache")
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
