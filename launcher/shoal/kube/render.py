"""A job and a profile -> the manifests of a run; a profile -> those of a standing cluster. Asks nothing of any place."""

from collections.abc import Iterable
from typing import Any

import yaml

from shoal.errors import SpecError
from shoal.kube import around, checks, clusters, operator
from shoal.kube.names import Manifest, kubernetes, resource_name
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec


def run(job: JobSpec, profile: ClusterProfile, run_id: str, here: frozenset[str] = frozenset()) -> list[Manifest]:
    """The manifests of one run, in the order to apply them; `here` are names in the job that are files of this machine.

    Raises SpecError with everything that is wrong.
    """
    _refuse(checks.problems(profile), checks.of_job(job, profile, here))
    spec, name = kubernetes(profile), resource_name(run_id)
    files = around.files(job, profile, name, run_id)
    made = [*_around(profile, name), files, clusters.ray_job(spec, job, name, run_id, files["metadata"]["name"])]
    _refuse(operator.problems(made))
    return made


def pool(profile: ClusterProfile) -> list[Manifest]:
    """The manifests of a cluster that stands, for many runs. Raises SpecError with everything that is wrong."""
    _refuse(checks.problems(profile))
    spec = kubernetes(profile)
    made = [*_around(profile, spec.name), clusters.ray_cluster(spec, spec.name)]
    _refuse(operator.problems(made))
    return made


def _around(profile: ClusterProfile, name: str) -> list[Manifest]:
    spec = kubernetes(profile)
    made: list[Manifest] = [around.service_account(spec)] if spec.service_account.create else []
    if spec.network_policy.enabled:
        made.append(around.network_policy(spec, name))
    if spec.pod_disruption_budget:
        made += around.disruption_budgets(profile, name)
    return made


def _refuse(*found: Iterable[Any]) -> None:
    if problems := [problem for some in found for problem in some]:
        raise SpecError(*problems)


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with several lines written as such."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(manifests: Iterable[Manifest]) -> str:
    """One YAML document each."""
    return "---\n".join(
        yaml.dump(one, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for one in manifests
    )


def to_list(manifests: Iterable[Manifest]) -> Manifest:
    """All in one, as `kubectl apply -f` takes it in JSON."""
    return {"apiVersion": "v1", "kind": "List", "items": list(manifests)}


def to_files(manifests: Iterable[Manifest]) -> dict[str, str]:
    """File name -> text: one file for each manifest, and the kustomization.yaml that names them."""
    files: dict[str, str] = {}
    for one in manifests:
        component = one["metadata"]["labels"].get("app.kubernetes.io/component")
        files[f"{'-'.join(filter(None, (one['kind'].lower(), component)))}.yaml"] = to_yaml([one])
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
    }
    return {**files, "kustomization.yaml": to_yaml([kustomization])}
