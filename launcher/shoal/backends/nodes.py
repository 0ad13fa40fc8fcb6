"""One piece of work on every node of the Ray that this process is in, at once."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.backends import Answer, Done

PATIENCE_S = 90.0


def everywhere(work: Callable[[int, int], Done], gpus: int) -> list[Answer[Done]]:
    """`work(number, count)` on each node that can hold a worker, numbered alike in every call while none comes or goes.

    A node that fails or does not answer in time is told of in its answer. Raises nothing of the nodes'.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and _holds_workers(node["Resources"])]
    nodes.sort(key=lambda node: node["NodeID"])

    def each(number: int, count: int) -> Done:
        return work(number, count)

    # A process of its own for each: torch and its groups leave nothing behind.
    remote: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, max_calls=1)(each)
    asked: dict[Any, Any] = {}
    for number, node in enumerate(nodes):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[remote.options(scheduling_strategy=there).remote(number, len(nodes))] = node
    answers: dict[str, Answer[Done]] = {}
    waiting, until = list(asked), time.monotonic() + PATIENCE_S
    while waiting and (left := until - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        for one in done:
            answers[asked[one]["NodeID"]] = _answer(one, asked[one])
    for one in waiting:
        ray.cancel(one, force=True)
        error = f"no answer within {PATIENCE_S:.0f} s: its processes do not start, or all that it needs is taken"
        answers[asked[one]["NodeID"]] = _answered(asked[one], error=error)
    return [answers[node["NodeID"]] for node in nodes]


def _holds_workers(resources: dict[str, float]) -> bool:
    return bool(resources.get("CPU") or resources.get("GPU"))


def _answer(reference: Any, node: dict[str, Any]) -> Answer[Any]:
    try:
        return _answered(node, ray.get(reference))
    except RayTaskError as error:
        return _answered(node, error=f"{type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        return _answered(node, error=(str(error).strip().splitlines() or [type(error).__name__])[0])


def _answered(node: dict[str, Any], value: Any = None, error: str = "") -> Answer[Any]:
    slots = {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
    return Answer(node["NodeManagerHostname"], node["NodeManagerAddress"], value, error, time.time(), slots)
