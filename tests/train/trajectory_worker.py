"""One rank of several runs after each other: `trajectory_worker.py OUT PLAN.json...`; rank 0 writes each run's losses.

The whole worker but the export, which has tests of its own."""

import atexit
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train import entry
from shoal.train.journal import Journal
from shoal.train.voice import Voice
from shoal.train.world import Directive, World

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
distributed.init_process_group("gloo")
atexit.register(distributed.destroy_process_group)  # whose threads would abort the process at its end now and then
world = World(rank=rank, size=size, local_rank=rank, local_size=size)
stop_at = int(os.environ.get("STOP_AT", "0"))
for path in map(Path, sys.argv[2:]):
    losses: dict[int, float] = {}
    evaluations: dict[int, float] = {}
    norms: dict[int, float] = {}

    def report(event, losses=losses, evaluations=evaluations, norms=norms) -> Directive:
        if event["kind"] == "step":
            losses[event["step"]] = event["loss"]
            norms[event["step"]] = event["grad_norm"]
        if event["kind"] == "eval":
            evaluations[event["step"]] = event["loss"]
        return Directive.STOP if event.get("step") == stop_at > 0 else Directive.CONTINUE

    plan = Plan.model_validate_json(path.read_text())
    storage = Storage(plan.storage.s3)
    folder = RunFolder(storage, plan.storage.run)
    voice = Voice(report, Journal(plan, folder, storage) if world.is_main else None, world.pulse)
    loop = entry.Worker(plan, world, storage, folder, voice).load()
    ended = loop.run()
    voice.close()
    if rank == 0:
        body = {"losses": losses, "evaluations": evaluations, "norms": norms, "stopped": ended == Directive.STOP}
        (Path(sys.argv[1]) / path.name).write_text(json.dumps(body))
