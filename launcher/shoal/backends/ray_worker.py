"""The worker's side of the local backend: one process of Ray Train's, from its start to its result."""

import os
import traceback
from datetime import timedelta
from typing import Any

from shoal.errors import ShoalError
from shoal.plan.types import Plan
from shoal.train.world import Result, World

PROCESS_GROUP_TIMEOUT_S = 1800


def work(config: dict[str, Any]) -> Result:
    """One worker's life, in a process of Ray's: join the others, run the plan."""
    import ray.train

    from shoal.backends.inline import quiet
    from shoal.backends.mailbox import Reporter

    quiet()
    plan = Plan.model_validate_json(config["plan"])
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_size=context.get_local_world_size(),
    )
    config["mailbox"].join.remote(world.rank, world.size, os.getpid())
    report = Reporter(config["mailbox"])
    try:
        _connect(world, plan.layout.device)
        entry = config["entry"]
        if entry is None:
            from shoal.train.entry import run as entry
        result = entry(plan, world, report)
        _disconnect(world)
        return result
    except ShoalError:
        raise
    except Exception as error:
        error.add_note(f"worker {world.rank} of {world.size}:\n{traceback.format_exc()}")
        raise
    finally:
        report.flush()


def _connect(world: World, device: str) -> None:
    """Bring the process group up. Rank 0's store picks a free port itself, so that no other process can take it."""
    import torch
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
    if world.size == 1:
        return
    host, port, store = "", 0, None
    if world.is_main:
        host = get_node_ip_address()
        store = dist.TCPStore(host, 0, world.size, is_master=True, wait_for_workers=False)
        port = store.port
    host, port = broadcast_from_rank_zero((host, port))
    store = store or dist.TCPStore(host, port, world.size, is_master=False)
    os.environ.update(
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_WORLD_SIZE=str(world.local_size),
    )
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=PROCESS_GROUP_TIMEOUT_S),
    )


def _disconnect(world: World) -> None:
    import torch.distributed as dist

    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
