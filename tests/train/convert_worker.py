"""One rank of two; the second converts a model, as a worker does that comes first: `convert_worker.py PLAN.json`."""

import atexit
import os
import sys
from pathlib import Path

from torch import distributed

from shoal import models
from shoal.plan.types import Plan
from shoal.storage import Storage

distributed.init_process_group("gloo")
atexit.register(distributed.destroy_process_group)  # whose threads would abort the process at its end now and then
if os.environ["RANK"] == "1":
    plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
    models.materialise(plan.trajectory.model, Storage(plan.storage.s3), Path(plan.storage.cache))
distributed.barrier()
