"""One rank: saves a checkpoint of step 1, or loads the newest one and compares it with the file of expected states."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from stand_in import Heard, StandIn, make_plan, tiny_llama

from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train import checkpoint, parts
from shoal.train.manifest import Progress
from shoal.train.saving import Saver
from shoal.train.world import World

action, root = sys.argv[1], Path(sys.argv[2])
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if size > 1:
    dist.init_process_group("gloo")
world = World(rank, size, rank, size)
checkpoint.PART_BYTES = 100_000
storage = Storage()
plan = make_plan(root, method="full")
folder = RunFolder(storage, plan.storage.run)
if action == "save":
    engine = StandIn(tiny_llama())
    engine.train(2)
    held = []
    write = parts.LocalPart.write

    def counted(part: parts.LocalPart) -> None:
        held.append(sum(tensor.nbytes for tensor in (part.tensors or {}).values()))
        write(part)

    parts.LocalPart.write = counted
    progress = Progress(step=int(sys.argv[3]), epoch=0, batch=1, tokens=7, seconds=1.0)
    saver = Saver(engine, plan, folder, storage, world, Heard(), progress)
    saver.save(progress)
    manifest = saver.finish()
    assert manifest is not None
    total = sum(t.nbytes for t in engine.states().values())
    assert sum(held) < total * 0.6 if size > 1 else sum(held) == total, (held, total)
    assert len(manifest.parts) >= 2 * size
    if rank == 0:
        save_file(engine.states(), root / "expected.safetensors")
else:
    engine = StandIn(tiny_llama(seed=9))
    manifest = checkpoint.newest(storage, folder)
    assert manifest is not None
    checkpoint.load(engine, manifest, plan, folder, storage, world)
    expected = load_file(root / "expected.safetensors")
    states = engine.states()
    assert states.keys() == expected.keys()
    assert all(torch.equal(states[key], expected[key]) for key in expected)
if size > 1:
    dist.barrier()
    dist.destroy_process_group()
if rank == 0:
    assert not list((root / "cache" / "scratch").rglob("*.safetensors"))
