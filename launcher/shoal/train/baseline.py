"""What a trial of a sweep finds out before its first step, kept for the sweep's other trials that need not find it anew.

Until step 1 nothing depends on the optimizer or on how long training goes on. Trials that differ in these alone have one
self-check and one held-out loss in common; the first of them leaves both in the sweep's folder.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import torch
from pydantic import ValidationError

from shoal.plan.types import Plan
from shoal.spec.base import Frozen
from shoal.storage import Storage, join
from shoal.train.collective import exchange
from shoal.train.engine import place
from shoal.train.manifest import library_versions
from shoal.train.world import World


class Baseline(Frozen):
    """A run's self-check, where its job asks for one, has passed; its model, not trained yet, has this loss."""

    key: str
    """Of everything that both depend on."""
    run: str
    """Id of the run that found it out."""
    held_out: tuple[float, int] | None
    """Nats per target, and targets; None where nothing is held out."""


@dataclass(frozen=True)
class Shelf:
    """The place of one baseline in the sweep's folder. Two trials that begin at once may both write it: the same."""

    storage: Storage
    folder: str
    key: str

    @classmethod
    def of(cls, plan: Plan, world: World, storage: Storage) -> "Shelf":
        """For a plan of a sweep's. Every rank calls this; the key holds what each one computes with."""
        assert plan.storage.baselines is not None
        device = _name(place(plan.layout, world))
        body = [plan.baseline_digest, *exchange(world, library_versions() | {"device": device})]
        return cls(
            storage, plan.storage.baselines, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
        )

    @property
    def url(self) -> str:
        return join(self.folder, f"{self.key}.json")

    def read(self) -> Baseline | None:
        """None where nothing lies there, or nothing to rely on: damaged, or put there under another name."""
        if not self.storage.exists(self.url):
            return None
        try:
            found = Baseline.model_validate_json(self.storage.read(self.url))
        except ValidationError:
            return None
        return found if found.key == self.key else None

    def write(self, run: str, held_out: tuple[float, int] | None) -> None:
        """A loss that is no number is no baseline."""
        if held_out is None or math.isfinite(held_out[0]):
            found = Baseline(key=self.key, run=run, held_out=held_out)
            self.storage.write(self.url, found.model_dump_json().encode())


def _name(device: torch.device) -> str:
    """What decides which kernels run."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
