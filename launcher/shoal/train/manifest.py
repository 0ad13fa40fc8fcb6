"""Which checkpoints a run has: manifests, which one counts, which ones go. Needs no torch.

A checkpoint exists when its manifest exists, reads, and every part it names is there with its size. The names of parts
carry a token of the attempt, so two writers of one step never mix: the first manifest wins, the other's parts go.
"""

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shoal.errors import Problem, SpecError, StorageError
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.spec.base import Frozen
from shoal.storage import Storage, join

MANIFEST_VERSION = 1
RNG_RULE = "dropout is seeded from (seed, step, rank) at the start of every step"
Note = Callable[[str], None]


class Part(Frozen):
    file: str
    size: int
    """Bytes."""
    sha256: str


class Best(Frozen):
    step: int
    loss: float
    """Validation loss in nats per target."""


class Progress(Frozen):
    """Where a run stands after `step` optimizer steps."""

    step: int
    epoch: int
    """With `batch`: the cursor of the next global batch to read."""
    batch: int
    tokens: int
    """Tokens trained on so far, over all workers."""
    seconds: float
    """Time spent training so far."""
    best: Best | None = None
    evaluations_without_improvement: int = 0
    base_loss: float | None = None
    """Validation loss before the first step."""
    skipped: int = 0
    """Steps that were left out because their loss or gradient was no number."""
    skipped_in_a_row: int = 0
    """Of these, the newest ones without a good step since."""


class Manifest(Progress):
    version: int = MANIFEST_VERSION
    run_id: str
    trajectory_digest: str
    trajectory: dict[str, Any]
    """The plan's trajectory, to name what differs; lists of objects are left to `data.digest`."""
    rng: str = RNG_RULE
    parts: tuple[Part, ...]
    created: str
    """UTC."""
    versions: dict[str, str]

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)


def doomed(complete: Iterable[int], present: Iterable[int], keep: int, best: int | None) -> list[int]:
    """Steps whose folders go: all but the `keep` newest complete ones, the best, and what is newer than the newest."""
    newest_first = sorted(complete, reverse=True)
    if not newest_first:
        return []
    kept = {*newest_first[: max(keep, 1)], best}
    return sorted(step for step in present if step not in kept and step < newest_first[0])


def scratch_folder(plan: Plan) -> Path:
    """This run's folder for files on their way to the store; shared by the ranks of a node."""
    return Path(plan.storage.cache).expanduser() / "scratch" / plan.run_id


def require_resumable(manifest: Manifest, plan: Plan) -> None:
    """SpecError naming every field of the trajectory in which the plan differs from the checkpoint."""
    if manifest.trajectory_digest == plan.trajectory_digest:
        return
    then, now = _flat(manifest.trajectory), _flat(trajectory_of(plan))
    problems = [
        Problem(name, f"{now.get(name)!r} in this plan, {then.get(name)!r} in the checkpoint of step {manifest.step}")
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    raise SpecError(
        Problem(
            f"run {manifest.run_id}",
            "cannot be resumed: what is learnt or in which order has changed",
            "put these fields back, or start a new run (model.adapter can start from this one)",
        ),
        *(problems or [Problem("data.train", "the objects differ from those the checkpoint was trained on")]),
    )


def require_parent(manifest: Manifest, plan: Plan) -> None:
    """SpecError naming what the plan of a run that begins with another's checkpoint may not change: all but the optimizer."""
    then, now = _flat(manifest.trajectory), _flat(trajectory_of(plan))
    problems = [
        Problem(name, f"{now.get(name)!r} in this plan, {then.get(name)!r} in the checkpoint it begins with")
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name) and name.partition(".")[0] not in ("optimizer", "parent")
    ]
    if problems:
        raise SpecError(*problems)


def newest(storage: Storage, folder: RunFolder, note: Note = lambda message: None) -> Manifest | None:
    """The newest complete checkpoint; `note` hears why newer ones do not count."""
    present = _listing(storage, folder)
    for step in sorted(present, reverse=True):
        manifest = _complete(storage, folder, step, present[step], note)
        if manifest is not None:
            return manifest
    return None


def at(storage: Storage, folder: RunFolder, step: int) -> Manifest | None:
    """The checkpoint of one step, None when it is not there or not complete."""
    return _complete(storage, folder, step, _listing(storage, folder).get(step, {}), lambda message: None)


def retain(storage: Storage, folder: RunFolder, keep: int, best_step: int | None = None) -> list[int]:
    """Delete old checkpoints and what half-written ones left behind them; rank 0 alone. Returns the steps deleted.

    The newest complete one and the best are never deleted. A manifest goes before its parts, so that one caught in
    between is never chosen.
    """
    present = _listing(storage, folder)
    complete = [s for s in present if _complete(storage, folder, s, present[s], lambda message: None) is not None]
    steps = doomed(complete, present, keep, best_step)
    for step in steps:
        if _file(folder.manifest(step)) in present[step]:
            storage.delete(folder.manifest(step))
        storage.delete(folder.checkpoint(step).rstrip("/") + "/")
    return steps


def _listing(storage: Storage, folder: RunFolder) -> dict[int, dict[str, int]]:
    """{step: {file: bytes}} of everything under the run's checkpoints, in one listing."""
    present: dict[int, dict[str, int]] = {}
    for item in storage.list(folder.checkpoints.rstrip("/") + "/"):
        step, file = item.url.rsplit("/", 2)[-2:]
        if step.isdecimal():
            present.setdefault(int(step), {})[file] = item.size
    return present


def _complete(storage: Storage, folder: RunFolder, step: int, files: dict[str, int], note: Note) -> Manifest | None:
    if _file(folder.manifest(step)) not in files:
        note(f"the checkpoint of step {step} was left half-written and is skipped")
        return None
    try:
        manifest = Manifest.model_validate_json(storage.read(folder.manifest(step)))
    except ValidationError:
        note(f"the checkpoint of step {step} has a manifest that cannot be read and is skipped")
        return None
    except StorageError:
        if storage.exists(folder.manifest(step)):
            raise
        return None
    wrong = [part.file for part in manifest.parts if files.get(part.file) != part.size]
    if wrong:
        note(f"the checkpoint of step {step} is skipped: {', '.join(wrong)} missing or cut short")
        return None
    return manifest


def standing(storage: Storage, folder: RunFolder, plan: Plan, progress: Progress) -> Manifest | None:
    """The complete checkpoint of this step and trajectory, if any, with `progress` brought up to date.

    A broken or foreign one loses its manifest, and so makes way.
    """
    step = progress.step
    files = {_file(item.url): item.size for item in storage.list(folder.checkpoint(step).rstrip("/") + "/")}
    if _file(folder.manifest(step)) not in files:
        return None
    manifest = _complete(storage, folder, step, files, lambda message: None)
    if manifest is not None and manifest.trajectory_digest == plan.trajectory_digest:
        manifest = manifest.model_copy(update={name: getattr(progress, name) for name in Progress.model_fields})
        storage.write(folder.manifest(step), _encoded(manifest))
        return manifest
    storage.delete(folder.manifest(step))
    return None


def publish(storage: Storage, folder: RunFolder, manifest: Manifest) -> Manifest:
    """Write the manifest unless another writer's stands already, and clear away the parts of every other attempt."""
    step = manifest.step
    try:
        storage.write(folder.manifest(step), _encoded(manifest), if_absent=True)
    except FileExistsError:
        other = at(storage, folder, step)
        for part in manifest.parts:
            storage.delete(join(folder.checkpoint(step), part.file))
        if other is None or other.trajectory_digest != manifest.trajectory_digest:
            raise StorageError(
                Problem(folder.manifest(step), "was written by another run meanwhile", "let only one run use a folder")
            ) from None
        return other
    ours = {part.file for part in manifest.parts} | {_file(folder.manifest(step))}
    for item in storage.list(folder.checkpoint(step).rstrip("/") + "/"):
        if _file(item.url) not in ours:
            storage.delete(item.url)
    return manifest


def trajectory_of(plan: Plan) -> dict[str, Any]:
    """What the plan's digest covers, without the lists of objects."""
    counted = {"warmup_steps"} if plan.trajectory.optimizer.warmup_ratio is not None else set()
    left_out = {"steps": True, "steps_per_epoch": True, "tokens": True, "optimizer": counted}
    return plan.trajectory.model_dump(mode="json", exclude=left_out | {"data": {"train": True, "validation": True}})


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def library_versions() -> dict[str, str]:
    found = {}
    for name in ("shoal", "torch", "transformers", "peft", "deepspeed", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _encoded(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


def _file(url: str) -> str:
    return url.rsplit("/", 1)[-1]
