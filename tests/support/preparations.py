"""Plans over small source files, for tests that prepare them with the real tokenizer."""

import json
from pathlib import Path
from typing import Any

from plans import small_plan

from shoal.plan.types import Plan, SourceObject, SourcePlan
from shoal.storage import Storage


def jsonl(*rows: dict[str, Any] | bytes) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def numbered(*numbers: int) -> list[dict[str, Any]]:
    return [{"prompt": f"say {number}", "completion": f"number {number}"} for number in numbers]


def source(objects: list[SourceObject], **fields: Any) -> SourcePlan:
    given = {"path": "x", "format": "prompt-completion", "columns": {}, "weight": 1.0, **fields}
    return SourcePlan(objects=tuple(objects), **given)


def write_sources(folder: Path, sources: dict[str, bytes]) -> list[SourceObject]:
    for name, content in sources.items():
        (folder / name).write_bytes(content)
    found = [Storage().info(str(folder / name)) for name in sources]
    return [SourceObject(url=one.url, size=one.size, etag=one.etag) for one in found]


def data_plan(
    folder: Path,
    tokenizer: Path,
    train: tuple[SourcePlan, ...],
    validation: tuple[SourcePlan, ...] = (),
    vocab_size: int = 49152,
    digest: str = "d1",
    **data: Any,
) -> Plan:
    """Everything under `folder`; the prepared data at `folder`/prepared/`digest`."""
    plan = small_plan(folder)
    trajectory = plan.trajectory
    fields = {"train": train, "validation": validation, "digest": digest, "max_rejected": 0.01, **data}
    return plan.model_copy(
        update={
            "storage": plan.storage.model_copy(update={"prepared": str(folder / "prepared" / digest)}),
            "trajectory": trajectory.model_copy(
                update={
                    "num_train_epochs": 2,
                    "batch_size": 4,
                    "model": trajectory.model.model_copy(update={"base": str(tokenizer), "vocab_size": vocab_size}),
                    "data": trajectory.data.model_copy(update=fields),
                }
            ),
        }
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
