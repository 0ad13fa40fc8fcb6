"""The JSON Schema of the files that people write, for editors; the field's documentation is in it."""

from functools import cache
from typing import Any, Literal

from shoal.spec.base import Frozen
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec

Kind = Literal["job", "cluster"]
MODELS: dict[Kind, type[Frozen]] = {"job": JobSpec, "cluster": ClusterProfile}


@cache
def schema(kind: Kind) -> dict[str, Any]:
    """Draft 2020-12 schema of a job file or a cluster profile. Made once: it is there to be read."""
    titles = {"job": "Shoal job file", "cluster": "Shoal cluster profile"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **MODELS[kind].model_json_schema(),
        "title": titles[kind],
    }
