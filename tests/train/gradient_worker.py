"""One rank of the gradient test: the gradient of one global batch, for each stage and accumulation.

With beta1 = 0, AdamW's first moment after a step is the very gradient that the optimizer was given.
"""

import atexit
import os
import sys
from pathlib import Path

import torch
from documents import documents
from torch import distributed
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.data.order import deal
from shoal.plan.types import Layout, OptimizerPlan
from shoal.tasks import attention, causal_lm
from shoal.train.engine import Engine
from shoal.train.world import World

folder, out, stages, offload = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
distributed.init_process_group("gloo")
atexit.register(distributed.destroy_process_group)  # whose threads would abort the process at its end now and then
world = World(rank=rank, size=size, local_rank=rank, local_size=size)
optimizer = OptimizerPlan(
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    warmup_steps=0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    adam_beta1=0.0,
    adam_beta2=0.999,
    adam_epsilon=1e-8,
)
rows = documents(7, 49152)
targets = sum(int(row.loss_mask[1:].sum()) for row in rows)
for stage in map(int, stages.split(",")):
    for micro in (4, 1):
        dealt = deal([len(row.input_ids) for row in rows], size, micro)[rank]
        zero = {"stage": stage, "overlap_comm": False}
        if offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if offload == "parameters":
            zero["offload_param"] = {"device": "cpu"}
        layout = Layout(
            workers=size,
            min_workers=size,
            device="cpu",
            micro_batch_size=micro,
            accumulation=len(dealt),
            idle_rows=0,
            stage=stage,
            offload=offload,
            gradient_checkpointing=False,
            attn_implementation="per_document",
            deepspeed={
                "train_micro_batch_size_per_gpu": micro,
                "gradient_accumulation_steps": len(dealt),
                "gradient_clipping": 0.0,  # absent, DeepSpeed clips to 1.0
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "managed_gradient_accumulation": False,
                "zero_force_ds_cpu_optimizer": False,
            },
        )
        config = AutoConfig.from_pretrained(str(folder))
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation=attention.resolve("per_document", config)
        )
        engine = Engine(model, layout, optimizer, world)
        for positions in dealt:
            engine.accumulate(causal_lm.collate([rows[p] for p in positions], engine.device), targets)
        engine.step(learning_rate=0.0)
        gradients = {name: engine.read_state(name)["exp_avg"].clone() for name in engine.names()}
        if rank == 0:
            torch.save(gradients, out / f"{stage}-{micro}.pt")
        distributed.barrier()
