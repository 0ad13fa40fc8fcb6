"""The way of an export out of the scratch folder: through the gate, with its card, into the run folder; and merging."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ExportError, Problem
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage, join
from shoal.train.card import model_card

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Figures = dict[str, Any]


def run_gate(request: Mapping[str, Any], scratch: Path) -> Figures:
    """Run gate.py in a fresh process that reaches no hub. When it cannot even load the export, `error` says why."""
    path = scratch / "request.json"
    path.write_text(json.dumps(request))
    # Launchers' variables would make the libraries think they are one of many workers.
    launchers = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "MASTER_",
        "ACCELERATE_",
        "DS_",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "TORCHELASTIC_",
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(launchers)}
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # -P: train/ must not shadow anybody's module.
    command = [sys.executable, "-P", str(Path(__file__).with_name("gate.py")), str(path)]
    done = subprocess.run(command, env=clean | offline, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"passed": False, "error": last[:500]}
    return json.loads(lines[-1])


def merge(
    plan: Plan,
    base_folder: Path,
    adapter: Path,
    tokenizer: Any,
    rows: "Sequence[np.ndarray]",
    folder: RunFolder,
    storage: Storage,
    trained: Mapping[str, Any],
    scratch: Path,
) -> Figures:
    """Merge the adapter in a fresh process, where no launcher has patched the libraries, and hand the model in."""
    target = scratch / "merged"
    fresh(target)
    probe = write_probe(scratch / "merge-probe.safetensors", rows, [])
    request = gate_request(plan, base_folder) | {"task": "merge", "adapter": str(adapter), "export": str(target)}
    gate = run_gate(request | {"probe": str(probe)}, scratch)
    tokenizer.save_pretrained(str(target))
    copy_generation_config(base_folder, target)
    return hand_in(plan, "merged", target, gate, trained, folder, storage)


def hand_in(
    plan: Plan, name: str, target: Path, gate: Figures, trained: Mapping[str, Any], folder: RunFolder, storage: Storage
) -> Figures:
    """Upload an export that passed, or set apart one that failed and raise ExportError with the figures."""
    if not gate["passed"]:
        apart = folder.export(f"{name}-failed").rstrip("/") + "/"
        storage.delete(apart)
        storage.upload(target, apart)
        raise ExportError(
            Problem(f"export {name}", f"is not what was trained: {json.dumps(gate)}", f"it was set apart at {apart}")
        )
    (target / "README.md").write_text(model_card(plan, name, gate, trained))
    where = folder.export(name).rstrip("/") + "/"
    files = [
        {"file": str(p.relative_to(target)), "size": p.stat().st_size} for p in sorted(target.rglob("*")) if p.is_file()
    ]
    storage.delete(where)
    storage.upload(target, where)
    done = {"run_id": plan.run_id, "name": name, "created": datetime.now(UTC).isoformat()}
    storage.write(join(where, "export.json"), json.dumps(done | {"files": files, "gate": gate}, indent=1).encode())
    return gate | {"name": name, "url": where.rstrip("/")}


def gate_request(plan: Plan, base_folder: Path) -> dict[str, Any]:
    quantization = plan.trajectory.quantization
    return {
        "base": str(base_folder),
        "dtype": plan.trajectory.dtype,
        "quantization": None if quantization is None else quantization.model_dump(),
        "device": "cpu" if plan.layout.device == "cpu" else "cuda:0",
        "trust_remote_code": plan.trajectory.model.trust_remote_code,
    }


def write_probe(path: Path, rows: "Sequence[np.ndarray]", logits: "Sequence[Tensor]") -> Path:
    import torch
    from safetensors.torch import save_file

    tensors = {f"row.{n}": torch.as_tensor(row, dtype=torch.int64).contiguous() for n, row in enumerate(rows)}
    tensors |= {f"logits.{n}": tensor for n, tensor in enumerate(logits)}
    save_file(tensors, path)
    return path


def probe_url(folder: RunFolder) -> str:
    """Token ids of the probe rows, for a merge later; beside the exports, since they are the user's own data."""
    return join(folder.exports, "probe.json")


def copy_generation_config(base_folder: Path, target: Path) -> None:
    if (base_folder / "generation_config.json").exists():
        shutil.copyfile(base_folder / "generation_config.json", target / "generation_config.json")


def fresh(target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return target
