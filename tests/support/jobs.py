"""Jobs of the tests: a tiny model on real words, planned as the command line would plan them."""

import json
from pathlib import Path
from typing import Any

from shoal.data.prepare import prepare
from shoal.facts.gather import gather
from shoal.plan.planner import plan
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.storage import Storage

WORDS = [
    "the",
    "shoal",
    "turns",
    "as",
    "one",
    "and",
    "no",
    "fish",
    "leads",
    "it",
    "through",
    "cold",
    "bright",
    "water",
    "under",
    "a",
    "low",
    "red",
    "sun",
]


def write_rows(path: Path, count: int = 60) -> Path:
    """Questions and answers of ragged lengths, as messages, one JSON object a line."""
    with path.open("w") as file:
        for number in range(count):
            question = " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(2 + number % 5))
            answer = " ".join(WORDS[(number * 3 + i * i) % len(WORDS)] for i in range(1 + (number * 5) % 23))
            messages = [{"role": "user", "content": f"{number}: {question}?"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def job(base: Path | str, data: Path | str, **sections: Any) -> JobSpec:
    """A tiny job; `sections` replace or extend: train={"max_steps": 3}, method="full", ..."""
    body: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": str(base)},
        "method": "full",
        "data": {"train": str(data), "validation": 0.1, "sequence_length": 96},
        "train": {"num_train_epochs": 2, "batch_size": 7, "self_check": False},
        "optimizer": {"learning_rate": 5e-3, "warmup_steps": 1, "weight_decay": 0.01},
    }
    for name, value in sections.items():
        body[name] = {**body[name], **value} if isinstance(body.get(name), dict) and isinstance(value, dict) else value
    return JobSpec.model_validate(body)


def profile(folder: Path, workers: int = 1, kind: str = "inline") -> ClusterProfile:
    """Everything under one local folder, no server."""
    storage = {"runs": str(folder / "runs"), "prepared": str(folder / "prepared"), "cache": str(folder / "cache")}
    return ClusterProfile.model_validate({"kind": kind, "workers": workers, "storage": storage})


def planned(spec: JobSpec, place: ClusterProfile, run_id: str = "tiny-20260101-000000-0000") -> Plan:
    """Facts, plan, preparation."""
    storage = Storage(place.storage.s3)
    made = plan(spec, place, gather(spec, place, storage), run_id)
    prepare(made, storage)
    return made
