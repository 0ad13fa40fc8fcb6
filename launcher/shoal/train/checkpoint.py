"""Checkpoints: one form for every number of workers and every ZeRO stage, complete once the manifest exists.

A checkpoint is a folder of safetensors parts, each holding whole parameters (`NAME::param`, fp32) with their optimizer
moments (`NAME::exp_avg`, `NAME::exp_avg_sq`), and a manifest that is written last. Parameters are dealt to ranks by
size, each to a rank that holds it already where there is one; a rank keeps only its own while all take part in reading.

Training stands still for the snapshot alone: reading the states and copying them. The copies stay in memory as far as
they fit into `memory_room` and are written by the uploader's thread; what is beyond that goes to the node's disk at once,
about PART_BYTES at a time. Digests are taken and the store is asked behind training only (`upload`).

There is no random state to keep: dropout is seeded from (seed, step, rank) at every step, and the data order is a pure
function of the cursor.
"""

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shoal.errors import ModelError, Problem, ShoalError
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage, join
from shoal.train.collective import exchange, raise_first
from shoal.train.manifest import (
    Best,
    Manifest,
    Part,
    Progress,
    at,
    newest,
    require_parent,
    require_resumable,
    retain,
    scratch_folder,
)
from shoal.train.parts import LocalPart, unwritable, verify
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
    "require_parent",
    "require_resumable",
    "retain",
    "snapshot",
]

PART_BYTES = 2**30
BYTES_PER_NUMBER = 12
"""Of a parameter: itself and two moments, fp32."""


class States(Protocol):
    """What an engine must offer to be saved and loaded."""

    @property
    def model(self) -> Any: ...
    def names(self) -> Sequence[str]: ...
    def holders(self) -> Sequence[Collection[int]]:
        """For each name the ranks that hold its whole state; none where it is spread over several. Collective."""
        ...

    def read_held(self, name: str) -> "dict[str, Tensor]":
        """A copy of a state that this rank holds; fp32, on the CPU."""
        ...

    def read_state(self, name: str) -> "dict[str, Tensor]":
        """Any state, on every rank: collective. May share the model's memory where every rank holds it."""
        ...

    def write_state(self, name: str, state: "dict[str, Tensor]") -> None:
        """Collective."""
        ...


def deal(sizes: Sequence[int], workers: int, holders: Sequence[Collection[int]] | None = None) -> list[int]:
    """The rank that owns each of `sizes`: largest first, each to the least loaded rank, ties to the lower rank.

    One that has `holders` goes to one of them.
    """
    loads = [0] * workers
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        candidates = (holders[index] if holders else ()) or range(workers)
        rank = min(candidates, key=lambda rank: (loads[rank], rank))
        owners[index] = rank
        loads[rank] += sizes[index]
    return owners


def cut(sizes: Sequence[int], limit: int) -> list[int]:
    """How many of `sizes` in a row make up each part: a part ends with the size that fills it to `limit`."""
    counts, count, held = [], 0, 0
    for size in sizes:
        count, held = count + 1, held + size
        if held >= limit:
            counts.append(count)
            count, held = 0, 0
    return [*counts, count] if count else counts


def snapshot(
    engine: States, world: World, folder: Path, token: str, room: int
) -> tuple[list[LocalPart], ShoalError | None]:
    """This rank's share as it is now, in parts: as files in `folder`, the last ones of at most `room` bytes in memory.

    Collective. An error is returned, not raised: the other ranks still read with us.
    """
    # ZeRO-3 leaves an empty shard in place and the real size in ds_numel.
    numel = {name: getattr(p, "ds_numel", p.numel()) for name, p in engine.model.named_parameters()}
    names, holders = list(engine.names()), engine.holders()
    owners = deal([numel[name] for name in names], world.size, holders)
    mine = [BYTES_PER_NUMBER * numel[name] for name, owner in zip(names, owners, strict=True) if owner == world.rank]
    counts = cut(mine, PART_BYTES)
    kept = _fitting(mine, counts, room)
    parts: list[LocalPart] = []
    held: dict[str, Tensor] = {}
    count = 0
    error: ShoalError | None = None
    for name, owner, holding in zip(names, owners, holders, strict=True):
        if holding and owner != world.rank:
            continue
        state = engine.read_held(name) if holding else engine.read_state(name)
        if owner != world.rank or error is not None:
            continue
        held.update({f"{name}::{kind}": tensor.contiguous() for kind, tensor in state.items()})
        count += 1
        if count == counts[len(parts)]:
            part = LocalPart(folder / f"part-{world.rank:03d}-{len(parts):03d}-{token}.safetensors", held)
            try:
                if len(parts) < len(counts) - kept:
                    part.write()
            except ShoalError as exc:
                error = exc
            parts.append(part)
            held, count = {}, 0
    return parts, error


def _fitting(sizes: Sequence[int], counts: Sequence[int], room: int) -> int:
    """How many of the last parts are of `room` bytes together at most."""
    fitting, end = 0, len(sizes)
    for count in reversed(counts):
        room -= sum(sizes[end - count : end])
        end -= count
        if room < 0:
            break
        fitting += 1
    return fitting


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
                verify(path, part, folder.checkpoint(manifest.step))
            except ShoalError as exc:
                error = exc
            except OSError as exc:
                error = unwritable(exc, scratch)
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


def _foreign(manifest: Manifest, what: str) -> ModelError:
    return ModelError(
        Problem(f"checkpoint of step {manifest.step}", what, f"it was written with {json.dumps(manifest.versions)}")
    )
