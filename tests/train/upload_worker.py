"""Two ranks that save in the background, and what one of them meets: `upload_worker.py FOLDER CASE:RANK...`.

The ranks of each case are forked from this process, which has loaded torch already. They save step 1 and wait for it,
then RANK is armed and both save step 2. Cases of DEATHS end it by SIGKILL at that moment. Prints as JSON, for each case,
the newest checkpoint then, whether it holds what was trained, what the ranks raised, and how a new attempt at step 2 ends.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch  # noqa: F401 - loaded before the forks, as is the next
import torch
import torch._dynamo
import torch.distributed as dist
from stand_in import Heard, StandIn, make_plan, tiny_llama

from shoal.errors import ShoalError
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.storage.local import PARTIAL
from shoal.train import checkpoint, parts, saving, upload
from shoal.train.manifest import Progress
from shoal.train.saving import Saver
from shoal.train.world import World

RANKS = 2
checkpoint.PART_BYTES = 100_000


def die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def after(count: int, real: Callable[..., Any], fits: Callable[..., bool] = lambda *given: True) -> Callable[..., Any]:
    """`real`, and death with the call after `count` that fit."""
    seen = 0

    def call(*given: Any, **options: Any) -> Any:
        nonlocal seen
        seen += fits(*given)
        return die() if seen > count else real(*given, **options)

    return call


def half_copied(source: Path, target: Path) -> None:
    Path(target).write_bytes(Path(source).read_bytes()[:50_000])
    die()


def half_written(part: parts.LocalPart) -> None:
    part.path.parent.mkdir(parents=True, exist_ok=True)
    part.path.write_bytes(b"half")
    die()


def then_die(real: Callable[..., Any], fits: Callable[..., bool]) -> Callable[..., Any]:
    return lambda *given, **options: (real(*given, **options), fits(*given) and die())[0]


def is_receipt(_: Storage, url: str, *__: object) -> bool:
    return "/receipt-" in url


def set_(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


DEATHS: dict[str, Callable[[], None]] = {
    "snapshot": lambda: set_(StandIn, "read_held", after(3, StandIn.read_held)),
    "writing": lambda: set_(parts.LocalPart, "write", half_written),
    "digest": lambda: set_(parts.LocalPart, "measured", after(1, parts.LocalPart.measured)),
    "upload": lambda: set_(shutil, "copyfile", half_copied),
    "between uploads": lambda: set_(Storage, "upload", after(1, Storage.upload)),
    "before the receipt": lambda: set_(Storage, "write", after(0, Storage.write, is_receipt)),
    "after the receipt": lambda: set_(Storage, "write", then_die(Storage.write, is_receipt)),
    "before the manifest": lambda: set_(upload, "publish", die),
    "manifest": lambda: set_(os, "link", die),
    "after the manifest": lambda: set_(upload, "retain", die),
    "retention": lambda: set_(Storage, "delete", after(1, Storage.delete, lambda self, url: "/00000001/" in url)),
}


def disk_full() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


OTHERS: dict[str, Callable[[], None]] = {"disk full": disk_full, "disk full at once": disk_full, "auto": lambda: None}


def rank_of(case: str, victim: int, rank: int, root: Path, attempt: int) -> None:
    """One rank's life; what it raised and when it would save next are left in files."""
    store = dist.FileStore(str(root / f"rendezvous-{attempt}"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    world = World(rank, RANKS, rank, RANKS)
    plan, storage, folder, engine = things(root, case)
    if case == "disk full at once":
        saving.memory_room = lambda ranks: 0
    parts.clear_away(plan) if rank == 0 else None
    saver = Saver(engine, plan, folder, storage, world, Heard(), at_step(0, 0.0))
    try:
        if attempt == 1:
            saver.save(at_step(1, 1.0 + rank))
            saver.finish()
            if rank == victim:
                (DEATHS | OTHERS)[case]()
        engine.train(1)
        saver.save(at_step(2, 3.0 + 5 * rank))
        saver.finish()
    except ShoalError as error:
        (root / f"raised-{rank}").write_text(f"{type(error).__name__}: {error}")
    (root / f"due-{rank}").write_text(str(next(step for step in range(3, 10**7) if saver.due(step))))
    dist.barrier()


def things(root: Path, case: str) -> tuple[Any, Storage, RunFolder, StandIn]:
    plan, storage = make_plan(root, method="full"), Storage()
    saved = {"keep": 1} | ({"every_steps": "auto"} if case == "auto" else {})
    plan = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update=saved)})
    return plan, storage, RunFolder(storage, plan.storage.run), StandIn(tiny_llama())


def at_step(step: int, seconds: float) -> Progress:
    return Progress(step=step, epoch=0, batch=step, tokens=step, seconds=seconds)


def run(case: str, victim: int, root: Path, attempt: int) -> None:
    """Both ranks to their end; when one is killed, the other is too, as a backend would do."""
    pids = [forked(partial(rank_of, case, victim, rank, root, attempt)) for rank in range(RANKS)]
    failed = killed = False
    while pids:
        for pid in list(pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                pids.remove(pid)
                killed = killed or os.WIFSIGNALED(status)
                failed = failed or status != 0
        for pid in pids if killed else []:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    assert failed == killed, f"{case} at rank {victim}, attempt {attempt}: a rank failed by itself"
    assert killed == (case in DEATHS and attempt == 1), f"{case} at rank {victim}, attempt {attempt}: killed {killed}"


def right(root: Path, case: str) -> tuple[int | None, bool]:
    """The newest checkpoint's step, and whether it loads and is what was trained."""
    plan, storage, folder, engine = things(root, case)
    manifest = checkpoint.newest(storage, folder)
    if manifest is None:
        return None, False
    if manifest.step == 2:
        engine.train(1)
    fresh = StandIn(tiny_llama(seed=9))
    checkpoint.load(fresh, manifest, plan, folder, storage, World())
    expected = engine.states()
    return manifest.step, all(torch.equal(tensor, expected[key]) for key, tensor in fresh.states().items())


def forked(work: Callable[[], None]) -> int:
    """The pid of a child that does `work`. Only children compute gradients: no child of one that did could."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def checked(root: Path, case: str) -> list[Any]:
    """What `right` finds."""
    out = root / "right.json"
    _, status = os.waitpid(forked(lambda: (out.write_text(json.dumps(right(root, case))), None)[1]), 0)
    assert status == 0, case
    return json.loads(out.read_text())


def outcome(case: str, victim: int, root: Path) -> dict[str, Any]:
    root.mkdir()
    run(case, victim, root, 1)
    step, whole = checked(root, case)
    raised = [(root / f"raised-{rank}") for rank in range(RANKS)]
    found: dict[str, Any] = {"step": step, "whole": whole}
    found["raised"] = [path.read_text() for path in raised if path.exists()]
    found["due"] = [path.read_text() for path in sorted(root.glob("due-*"))]
    run(case, victim, root, 2)
    found["again"] = checked(root, case)
    # A copy that was broken off lies hidden beside its target, and goes with the folder.
    files = [path for path in (root / "run" / "checkpoints").rglob("*") if path.is_file() and path.suffix != PARTIAL]
    left = {path.name.split("-")[0] for path in files}
    found["left"] = sorted(left | {path.name for path in (root / "cache").rglob("*.safetensors")})
    return found


if __name__ == "__main__":
    tiny_llama()  # what it loads is loaded once, before the forks
    where = Path(sys.argv[1])
    cases = [argument.rsplit(":", 1) for argument in sys.argv[2:]]
    print(json.dumps({f"{case}:{rank}": outcome(case, int(rank), where / f"{case}{rank}") for case, rank in cases}))
