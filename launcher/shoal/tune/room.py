"""How many trials of a sweep run at once, and what each takes beside its workers."""

import math
from typing import Any

from shoal.backends.ray_train import RAY
from shoal.spec.cluster import ClusterProfile
from shoal.spec.sweep import SweepSpec
from shoal.tune.space import at_once, trial_count

SEAT = 0.001
"""Of a node, for a trial's own process."""


def concurrent(spec: SweepSpec, profile: ClusterProfile, each: ClusterProfile) -> int:
    """Trials at once; `each` is the profile of one. A cluster may have more room than its profile claims."""
    least = at_once(spec, profile)
    if profile.kind == "local" or spec.max_concurrent != "auto":
        return least
    return max(least, RAY.submit(_fitting, each, trial_count(spec)).result())


def _fitting(each: ClusterProfile, most: int) -> int:
    """How many groups of a trial's workers fit now, up to `most`: Ray alone knows."""
    from ray.util import placement_group, remove_placement_group

    from shoal.backends.group import bundle, strategy

    groups: list[Any] = []
    try:
        while len(groups) < most:
            bundles = [bundle(each.resources_per_worker)] * each.max_workers
            groups.append(placement_group(bundles, strategy(each)))
            if not groups[-1].wait(2):
                return len(groups) - 1
        return len(groups)
    finally:
        for group in groups:
            remove_placement_group(group)


def seat(many: int, population: bool) -> Any:
    """What a trial's own process takes: a share of this node, where it lives beside the driver, and nothing of what its
    workers need. A searcher counts its trials itself: the share is a small one, and other sweeps find theirs as well. The
    trials of a population all begin, and there are shares for `many` at once."""
    import ray
    from ray import tune

    here = ray.get_runtime_context().get_node_id()
    node = next(one for one in ray.nodes() if one["NodeID"] == here)
    name = next(name for name in node["Resources"] if name.startswith("node:") and "head" not in name)
    return tune.PlacementGroupFactory([{name: math.floor(1e4 / (many + 0.5)) / 1e4 if population else SEAT}])
