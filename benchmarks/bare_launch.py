"""What anybody would write without Shoal: `ray.init`, a TorchTrainer of two workers, DeepSpeed, one optimizer step.

    python benchmarks/bare_launch.py --model DIR --batches FILE.npz --deepspeed CONFIG.json --stamp OUT.json

The batches lie ready in a file, there is no plan, no check and no checkpoint. OUT.json holds the time after the first step.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

HERE = Path(__file__).resolve().parent


def work(config: dict) -> None:
    import deepspeed
    import ray.train
    import torch

    sys.path.insert(0, str(HERE))
    import bare_loop
    from batches import Batches

    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
    model = bare_loop.build(config["model"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled for a minute
    deepspeed_config = json.loads(Path(config["deepspeed"]).read_text())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config)
    batches = Batches(Path(config["batches"]))
    _, targets = batches.counts(0)
    for documents in batches.micro_batches(0, rank):
        if documents.tokens:
            loss = bare_loop.loss_sum(engine.module, documents)
            engine.backward(loss * (batches.world / targets), scale_wrt_gas=False)
    engine.step()
    if rank == 0:
        Path(config["stamp"]).write_text(json.dumps({"time": time.time(), "loss": float(loss.detach())}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batches", required=True)
    parser.add_argument("--deepspeed", required=True, help="a DeepSpeed configuration")
    parser.add_argument("--stamp", required=True)
    parser.add_argument("--storage", required=True, help="a folder for Ray Train")
    given = parser.parse_args()
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        work,
        train_loop_config={name: getattr(given, name) for name in ("model", "batches", "deepspeed", "stamp")},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="bare", storage_path=given.storage),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
