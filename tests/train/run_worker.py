"""One rank of one whole run, export and answers included: `run_worker.py OUT.json PLAN.json`; rank 0 writes the result."""

import atexit
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from shoal.plan.types import Plan
from shoal.train import entry
from shoal.train.world import Directive, World

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
distributed.init_process_group("gloo")
atexit.register(distributed.destroy_process_group)  # whose threads would abort the process at its end now and then
plan = Plan.model_validate_json(Path(sys.argv[2]).read_text())
world = World(rank=rank, size=size, local_rank=rank, local_size=size)
result = entry.run(plan, world, lambda event: Directive.CONTINUE)
if rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(asdict(result)))
