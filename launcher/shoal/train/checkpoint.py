"""Checkpoints: one form for every number of workers and every ZeRO stage, complete once the manifest exists.

A checkpoint is a folder of safetensors parts, each holding whole parameters (`NAME::param`, fp32) with their optimizer
moments (`NAME::exp_avg`, `NAME::exp_avg_sq`), and a manifest that is written last. Parameters are dealt to ranks by
size; a rank keeps only its own while all take part in reading, and writes at most about PART_BYTES at a time.

There is no random state to keep: dropout is seeded from (seed, step, rank) at every step, and the data order is a pure
function of the cursor.
"""

import hashlib
import heapq
import json
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shoal.errors import ModelError, Problem, ShoalError, StorageError
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage, join
from shoal.train.collective import exchange, from_main, raise_first
from shoal.train.manifest import (
    Best,
    Manifest,
    Part,
    Progress,
    at,
    library_versions,
    newest,
    publish,
    require_resumable,
    retain,
    scratch_folder,
    standing,
    trajectory_of,
)
from shoal.train.world import World

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Best",
    "Manifest",
    "Part",
    "Progress",
    "States",
    "at",
    "deal",
    "load",
    "newest",
    "require_resumable",
    "retain",
    "save",
]

PART_BYTES = 2**30


class States(Protocol):
    """What an engine must offer to be saved and loaded; reading and writing are collective over all ranks."""

    @property
    def model(self) -> Any: ...
    def names(self) -> Sequence[str]: ...
    def read_state(self, name: str) -> "dict[str, Tensor]": ...
    def write_state(self, name: str, state: "dict[str, Tensor]") -> None: ...


def deal(sizes: Sequence[int], workers: int) -> list[int]:
    """The rank that owns each of `sizes`: largest first, each to the least loaded rank, ties to the lower rank."""
    loads = [(0, rank) for rank in range(workers)]
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, rank = heapq.heappop(loads)
        owners[index] = rank
        heapq.heappush(loads, (load + sizes[index], rank))
    return owners


def save(engine: States, plan: Plan, progress: Progress, folder: RunFolder, storage: Storage, world: World) -> Manifest:
    """Write a checkpoint of `progress.step`; collective. Returns the manifest that now stands for this step.

    The parts of a complete checkpoint of the same step and trajectory are kept as they are. Raises StorageError on
    every rank alike.
    """
    kept, token = from_main(world, lambda: (standing(storage, folder, plan, progress), secrets.token_hex(3)))
    if kept is not None:
        return kept
    scratch = scratch_folder(plan) / f"checkpoint-{world.rank:03d}"
    try:
        parts, error = _write_parts(engine, world, scratch, token)
        if error is None:
            try:
                for part in parts:
                    storage.upload(scratch / part.file, join(folder.checkpoint(progress.step), part.file))
            except ShoalError as exc:
                error = exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    answers = exchange(world, (parts, error))
    raise_first(error for _, error in answers)
    manifest = Manifest(
        **progress.model_dump(),
        run_id=plan.run_id,
        trajectory_digest=plan.trajectory_digest,
        trajectory=trajectory_of(plan),
        parts=tuple(part for parts, _ in answers for part in parts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )
    return from_main(world, lambda: publish(storage, folder, manifest))


def load(engine: States, manifest: Manifest, plan: Plan, folder: RunFolder, storage: Storage, world: World) -> None:
    """Put a checkpoint's parameters and moments back into `engine`, on any number of workers; collective.

    Each node holds one part at a time. Raises StorageError when a part is not what the manifest says, and ModelError
    when the parameters are not the model's.
    """
    from safetensors import safe_open

    scratch = scratch_folder(plan) / f"load-{manifest.step}"
    expected, seen = set(engine.names()), set()
    for part in manifest.parts:
        path, error = scratch / part.file, None
        if world.local_rank == 0:
            try:
                scratch.mkdir(parents=True, exist_ok=True)
                storage.download(join(folder.checkpoint(manifest.step), part.file), path)
                _verify(path, part, folder.checkpoint(manifest.step))
            except ShoalError as exc:
                error = exc
            except OSError as exc:
                error = _disk(exc, scratch)
        raise_first(exchange(world, error))
        with safe_open(path, framework="pt") as tensors:
            states: dict[str, list[str]] = {}
            for key in tensors.keys():  # noqa: SIM118 - the file is no mapping
                name, _, kind = key.rpartition("::")
                states.setdefault(name, []).append(kind)
            for name, kinds in states.items():
                if name not in expected:
                    raise _foreign(manifest, f"holds {name}, which this model does not train")
                engine.write_state(name, {kind: tensors.get_tensor(f"{name}::{kind}") for kind in kinds})
                seen.add(name)
        exchange(world, None)
        if world.local_rank == 0:
            path.unlink()
    if world.local_rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    if seen != expected:
        raise _foreign(manifest, f"lacks {len(expected - seen)} parameters, {min(expected - seen)} among them")


def _write_parts(engine: States, world: World, scratch: Path, token: str) -> tuple[list[Part], ShoalError | None]:
    """This rank's parts as local files. An error is returned, not raised: the other ranks still read with us."""
    # ZeRO-3 leaves an empty shard in place and the real size in ds_numel.
    numel = {name: getattr(p, "ds_numel", p.numel()) for name, p in engine.model.named_parameters()}
    names = list(engine.names())
    owners = deal([numel[name] for name in names], world.size)
    parts: list[Part] = []
    held: dict[str, Tensor] = {}
    error: ShoalError | None = None
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    except OSError as exc:
        error = _disk(exc, scratch)
    mine = [name for name, owner in zip(names, owners, strict=True) if owner == world.rank]
    for name, owner in zip(names, owners, strict=True):
        state = engine.read_state(name)
        if owner != world.rank or error is not None:
            continue
        held.update({f"{name}::{kind}": tensor.contiguous() for kind, tensor in state.items()})
        if name == mine[-1] or sum(tensor.nbytes for tensor in held.values()) >= PART_BYTES:
            try:
                parts.append(_write_part(held, scratch / f"part-{world.rank:03d}-{len(parts):03d}-{token}.safetensors"))
            except ShoalError as exc:
                error = exc
            held = {}
    return parts, error


def _write_part(tensors: "dict[str, Tensor]", path: Path) -> Part:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
        return Part(file=path.name, size=path.stat().st_size, sha256=_sha256(path))
    except (OSError, SafetensorError) as exc:
        raise _disk(exc, path.parent) from None


def _verify(path: Path, part: Part, where: str) -> None:
    if path.stat().st_size != part.size or _sha256(path) != part.sha256:
        raise StorageError(
            Problem(
                join(where, part.file),
                "is not what the manifest says (size or sha256 differ)",
                f"delete {where} to resume from the checkpoint before it",
            )
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk(error: Exception, where: Path) -> StorageError:
    free = shutil.disk_usage(next(p for p in (where, *where.parents) if p.exists())).free
    return StorageError(
        Problem(
            str(where), f"cannot be written: {error} ({free / 2**30:.1f} GiB free)", "free space, or set storage.cache"
        )
    )


def _foreign(manifest: Manifest, what: str) -> ModelError:
    return ModelError(
        Problem(f"checkpoint of step {manifest.step}", what, f"it was written with {json.dumps(manifest.versions)}")
    )
