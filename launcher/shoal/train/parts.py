"""A checkpoint's parts on the node's disk: written, measured, verified, cleared away. Needs torch nowhere itself."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.errors import Problem, StorageError
from shoal.plan.types import Plan
from shoal.storage import join
from shoal.train.manifest import Part, scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

MEMORY_SHARE = 0.25
"""Of the memory that is free on a node, all its ranks together hold at most so much in copies that wait to be written."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass
class LocalPart:
    """One part of a rank's share: tensors in memory until it is written, from then on a file."""

    path: Path
    tensors: "dict[str, Tensor] | None"

    def write(self) -> None:
        """Puts the tensors on the disk and lets go of them. Raises StorageError."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.tensors is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(self.tensors, self.path)
        except (OSError, SafetensorError) as exc:
            raise unwritable(exc, self.path.parent) from None
        self.tensors = None

    def measured(self) -> Part:
        """What the manifest says of the written file. Raises StorageError."""
        try:
            return Part(file=self.path.name, size=self.path.stat().st_size, sha256=_sha256(self.path))
        except OSError as exc:
            raise unwritable(exc, self.path.parent) from None


def verify(path: Path, part: Part, where: str) -> None:
    """StorageError unless the file `path`, downloaded from the folder `where`, is the manifest's `part`."""
    if path.stat().st_size != part.size or _sha256(path) != part.sha256:
        raise StorageError(
            Problem(
                join(where, part.file),
                "is not what the manifest says (size or sha256 differ)",
                f"delete {where} to resume from the checkpoint before it",
            )
        )


def unwritable(error: Exception, where: Path) -> StorageError:
    free = shutil.disk_usage(next(p for p in (where, *where.parents) if p.exists())).free
    return StorageError(
        Problem(
            str(where), f"cannot be written: {error} ({free / 2**30:.1f} GiB free)", "free space, or set storage.cache"
        )
    )


def share_folder(plan: Plan, rank: int) -> Path:
    """Where a rank's parts lie until they are in the store."""
    return scratch_folder(plan) / f"checkpoint-{rank:03d}"


def clear_away(plan: Plan) -> None:
    """Removes what dead attempts left on this node's disk; before any rank of the node saves or loads."""
    for pattern in ("checkpoint-*", "load-*"):
        for left in scratch_folder(plan).glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def memory_room(ranks: int) -> int:
    """Bytes that one of a node's `ranks` may hold in copies; 0 where the free memory is not told."""
    found = []
    for line in _lines(MEMINFO):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    # In a container the kernel's figure is the whole machine's. Pages of files count as used there, but can be dropped.
    limit, used = _lines(CGROUP / "memory.max"), _lines(CGROUP / "memory.current")
    if limit and used and limit[0].isdecimal():
        statistics = dict(line.split() for line in _lines(CGROUP / "memory.stat"))
        found.append(max(0, int(limit[0]) - int(used[0]) + int(statistics.get("inactive_file", 0))))
    return int(min(found, default=0) * MEMORY_SHARE / ranks)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
