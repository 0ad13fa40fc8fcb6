"""What a group of workers is made of, in Ray's words."""

from collections.abc import Callable
from typing import Any

from shoal.spec.cluster import ClusterProfile, ResourcesSpec, WorkersSpec


def bundle(resources: ResourcesSpec) -> dict[str, float]:
    """What one worker takes, in Ray's words."""
    return {"CPU": resources.cpu} | ({"GPU": resources.gpu} if resources.gpu else {})


def strategy(profile: ClusterProfile) -> str:
    """How the workers are placed, as Ray writes it."""
    return profile.placement.replace("-", "_").upper()


def trainer(
    work: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    profile: ClusterProfile,
    name: str,
    budget: tuple[int, int],
    callbacks: list[Any],
    scratch: str,
) -> Any:
    """Ray Train with the profile's workers; `fit()` blocks.

    `budget`: so many failures, and so many preemptions, does a group survive; -1: any number.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from shoal.backends.ray_worker import SignalHandlers

    hooks: list[Any] = [*callbacks, SignalHandlers()]
    resources, asked = profile.resources_per_worker, profile.workers
    environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(max(1, int(resources.cpu)))}
    if not resources.gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    if profile.network_interface:
        environment |= {f"{library}_SOCKET_IFNAME": profile.network_interface for library in ("GLOO", "NCCL")}
    return DataParallelTrainer(
        work,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=(asked.min, asked.max) if isinstance(asked, WorkersSpec) else asked,
            elastic_resize_monitor_interval_s=asked.check_every_s if isinstance(asked, WorkersSpec) else 60.0,
            use_gpu=resources.gpu > 0,
            resources_per_worker=bundle(resources),
            placement_strategy=strategy(profile),
            accelerator_type=resources.accelerator_type,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=FailureConfig(
                max_failures=budget[0],
                max_preemption_failures=budget[1],
                # groups that do not come up; on a cluster require_room says when to give up
                controller_failure_limit=-1 if profile.kind == "ray" else max(2, profile.max_failures),
            ),
            callbacks=hooks,
            worker_runtime_env={"env_vars": environment},
        ),
    )


def beside(actor: type, *arguments: Any, **options: Any) -> Any:
    """An actor on this process's own node: a driver that lives can be told, whatever becomes of the others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here, **options).remote(*arguments)
