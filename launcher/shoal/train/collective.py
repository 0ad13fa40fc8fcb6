"""What ranks tell each other outside of training: small values, and errors, so that nobody is left waiting."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

from shoal.errors import ShoalError
from shoal.train.world import World

T = TypeVar("T")


def exchange(world: World, value: T) -> list[T]:
    """Every rank's value, by rank."""
    if world.size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world.size
    with world.pulse.collective():
        dist.all_gather_object(values, value, group=_patient_group(dist.group.WORLD))
    return values


@lru_cache(maxsize=1)
def _patient_group(world_group: Any) -> Any:
    """A gloo group beside the default one: NCCL gives up after minutes, and an export of a large model takes longer."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(hours=12))


def from_main(world: World, work: Callable[[], T]) -> T:
    """What rank 0's `work` returned, on every rank; its ShoalError is raised on every rank."""
    answer: tuple[Any, ShoalError | None] = (None, None)
    if world.is_main:
        try:
            answer = (work(), None)
        except ShoalError as exc:
            answer = (None, exc)
    value: Any
    value, error = exchange(world, answer)[0]
    if error is not None:
        raise error
    return value


def raise_first(errors: Iterable[ShoalError | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
