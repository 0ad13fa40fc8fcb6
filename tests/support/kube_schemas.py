"""Manifests held against schemas as strictly as an API server with field validation does, without one.

RayJob and RayCluster against the CRDs of KubeRay, everything else against Kubernetes' own OpenAPI schemas; unknown fields are
refused in both. The pods inside a RayJob are held against Kubernetes' own schema as well.
"""

import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

CRDS = Path(__file__).parents[1] / "kube" / "crds"
VERSIONS = ("1.30.0", "1.37.0")
"""Of Kubernetes: an old one that is still run, and the newest that there are schemas of."""
INT_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


def faults(manifest: dict[str, Any]) -> list[str]:
    """Everything that is wrong with one manifest; empty when an API server would take it."""
    found = list(_metadata(manifest))
    if manifest["apiVersion"].startswith("ray.io/"):
        found += _against_crd(manifest)
        found += [fault for pod in _pods(manifest) for fault in _against_kubernetes(pod)]
    else:
        found += _against_kubernetes(manifest)
    found += [fault for pod in _pods(manifest) for fault in _pod(pod)]
    return found


@cache
def _crd(kind: str) -> dict[str, Any]:
    text = gzip.decompress((CRDS / f"ray.io_{kind.lower()}s.json.gz").read_bytes())
    return json.loads(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_strict(_crd(kind), top=True))


def _strict(schema: dict[str, Any], top: bool = False) -> dict[str, Any]:
    """A structural schema as a JSON Schema in which no unknown field passes."""
    said = {
        key: schema[key]
        for key in ("enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "required")
        if key in schema
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {**said, "type": ["integer", "string"]}
    kind = schema.get("type")
    if kind:
        said["type"] = [kind, "null"] if schema.get("nullable") else kind
    if schema.get("format") in INT_RANGES and kind == "integer":
        low, high = INT_RANGES[schema["format"]]
        said |= {"minimum": max(low, said.get("minimum", low)), "maximum": min(high, said.get("maximum", high))}
    if "items" in schema:
        said["items"] = _strict(schema["items"])
    if "properties" in schema:
        said["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        if top:
            said["properties"]["metadata"] = {"type": "object"}
    if isinstance(schema.get("additionalProperties"), dict):
        said["additionalProperties"] = _strict(schema["additionalProperties"])
    elif kind == "object" and not schema.get("x-kubernetes-preserve-unknown-fields") and "properties" in schema:
        said["additionalProperties"] = False
    if "x-kubernetes-validations" in schema:
        said["not"] = {}  # rules in CEL are not evaluated here: what has them is not to be rendered without a look
    return said


def _against_crd(manifest: dict[str, Any]) -> Iterator[str]:
    for error in _validator(manifest["kind"]).iter_errors(manifest):
        yield f"{error.json_path}: {error.message[:200]}"
    yield from _list_keys("$", _crd(manifest["kind"]), manifest)


def _list_keys(where: str, schema: dict[str, Any], value: Any) -> Iterator[str]:
    """Items of a list that the API server takes for a map: their keys must be there, and no two alike."""
    if isinstance(value, dict):
        for key, inside in value.items():
            shape = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(shape, dict):
                yield from _list_keys(f"{where}.{key}", shape, inside)
    elif isinstance(value, list) and "items" in schema:
        if schema.get("x-kubernetes-list-type") == "map":
            keys = schema["x-kubernetes-list-map-keys"]
            defaults = {key: schema["items"]["properties"][key].get("default") for key in keys}
            seen = [tuple(item.get(key, defaults[key]) for key in keys) for item in value]
            if len(set(seen)) < len(seen):
                yield f"{where}: two items have the same {', '.join(keys)}"
        for index, item in enumerate(value):
            yield from _list_keys(f"{where}[{index}]", schema["items"], item)


def _against_kubernetes(manifest: dict[str, Any]) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:200]}"


def _metadata(manifest: dict[str, Any]) -> Iterator[str]:
    about = manifest["metadata"]
    if not DNS_SUBDOMAIN.fullmatch(about["name"]):
        yield f"metadata.name: {about['name']} is no DNS name"
    if unknown := about.keys() - {"name", "namespace", "labels", "annotations"}:
        yield f"metadata: {sorted(unknown)}"
    yield from _labels("metadata", about)


def _labels(where: str, about: dict[str, Any]) -> Iterator[str]:
    for kind in ("labels", "annotations"):
        for key, value in about.get(kind, {}).items():
            if not LABEL_KEY.fullmatch(key):
                yield f"{where}.{kind}: {key} is no key"
            if not isinstance(value, str) or (kind == "labels" and not LABEL_VALUE.fullmatch(value)):
                yield f"{where}.{kind}.{key}: {value} is no value"


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in a manifest, as a Pod."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if key in ("template", "submitterPodTemplate"):
                about = {"name": "a-pod", **inside.get("metadata", {})}
                yield {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": inside["spec"]}
            else:
                yield from _pods(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _pods(inside)


def _pod(pod: dict[str, Any]) -> Iterator[str]:
    """What the API server asks of a pod beyond its schema, and what the namespace's `restricted` standard does."""
    spec = pod["spec"]
    yield from _labels("pod", pod["metadata"])
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    if len(set(volumes)) < len(volumes):
        yield f"two volumes of one name: {volumes}"
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    names = [one["name"] for one in containers]
    if len(set(names)) < len(names) or not all(map(DNS_LABEL.fullmatch, names)):
        yield f"names of containers: {names}"
    used: set[str] = set()
    for one in containers:
        mounts = [mount["mountPath"] for mount in one.get("volumeMounts", [])]
        used |= {mount["name"] for mount in one.get("volumeMounts", [])}
        if len(set(mounts)) < len(mounts):
            yield f"{one['name']}: two volumes at one place: {mounts}"
        variables = [variable["name"] for variable in one.get("env", [])]
        if len(set(variables)) < len(variables):
            yield f"{one['name']}: a variable twice: {variables}"
        yield from _resources(one)
        yield from _restricted(one, spec)
    if used != set(volumes):
        yield f"volumes {sorted(volumes)}, of which {sorted(used)} are mounted"


def _resources(container: dict[str, Any]) -> Iterator[str]:
    resources = container.get("resources", {})
    for side in ("requests", "limits"):
        for name, amount in resources.get(side, {}).items():
            if not isinstance(amount, str) or not QUANTITY.fullmatch(amount):
                yield f"{container['name']}: {side} of {name}: {amount!r}"
    for name, amount in resources.get("limits", {}).items():
        if "/" in name and resources.get("requests", {}).get(name, amount) != amount:
            yield f"{container['name']}: {name} cannot be overcommitted"


def _restricted(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    """The pod security standard `restricted`."""
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    wanted = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for field, value in wanted.items():
        if security.get(field) != value:
            yield f"{container['name']}: {field} is {security.get(field)}"
    if security.get("runAsUser") == 0 or security.get("privileged"):
        yield f"{container['name']}: runs as root"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{container['name']}: {field}"
    for volume in pod.get("volumes", []):
        if not volume.keys() & {"emptyDir", "ephemeral", "configMap", "secret", "projected", "persistentVolumeClaim"}:
            yield f"volume {volume['name']} is of a kind that restricted namespaces refuse"
