"""What `model.adapter` names: an adapter or a full model to go on from, in a folder, a prefix or a run."""

import json
import re
from pathlib import Path
from typing import Any

from shoal.errors import ModelError, Problem
from shoal.facts.files import ModelFiles, open_files
from shoal.facts.types import AdapterFacts
from shoal.runs import find_run
from shoal.storage import Storage, absolute

WHERE = "model.adapter"
_RUN = re.compile(r"^[a-z0-9][a-z0-9-]*$")


def adapter_facts(adapter: str, runs: str, storage: Storage) -> AdapterFacts:
    """Facts of an adapter. `runs`: where run folders lie. Raises ModelError, SpecError or StorageError."""
    location = adapter
    if "://" not in adapter:
        if not Path(adapter).expanduser().exists() and _RUN.fullmatch(adapter):
            location = _export(adapter, runs, storage)
        else:
            location = absolute(adapter)
    files = open_files(location, storage, WHERE)
    if "adapter_config.json" in files.files:
        return AdapterFacts(location, _config(files, location))
    if "config.json" in files.files:
        return AdapterFacts(location, None)
    fix = "name a folder as peft or transformers saves it, or a finished run"
    raise ModelError(Problem(WHERE, f"{location}: neither adapter_config.json nor config.json", fix))


def _export(beginning: str, runs: str, storage: Storage) -> str:
    run = find_run(storage, runs, beginning)
    for name in ("adapter", "model"):
        if storage.exists(run.export(name)):
            return run.export(name).rstrip("/")
    fix = f"`shoal resume {run.id}` brings it to its end"
    raise ModelError(Problem(WHERE, f"the run {run.id} has exported nothing yet", fix))


def _config(files: ModelFiles, location: str) -> dict[str, Any]:
    config = json.loads(files.read("adapter_config.json"))
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(Problem(WHERE, f"{location} is a {kind} adapter", "go on from a LoRA adapter"))
    return config
