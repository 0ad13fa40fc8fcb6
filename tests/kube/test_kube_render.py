"""What is rendered means what the profile says, and a second look at the same files gives the same bytes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.kube import render
from shoal.kube.names import MOST_JOB_NAME, resource_name
from shoal.spec.cluster import ClusterProfile
from shoal.spec.load import load_job, load_profile, parse_job
from shoal.spec.schema import MODELS

ROOT = Path(__file__).parents[2]
SFT = load_job(ROOT / "jobs" / "sft-lora.yaml")
RUN = "sft-lora-20261121-101500-ab12"


def profile(name: str = "kuberay", **changes: Any) -> ClusterProfile:
    body = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    body["kubernetes"] |= changes
    made = MODELS["cluster"].model_validate(body, strict=True)
    assert isinstance(made, ClusterProfile)
    return made


def by_kind(made: list[render.Manifest]) -> dict[str, render.Manifest]:
    """The last of each kind."""
    return {one["kind"]: one for one in made}


def pods(job: render.Manifest) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
        "submitter": job["spec"]["submitterPodTemplate"]["spec"],
    }


# The run


def test_the_entrypoint_is_the_command_that_may_be_submitted_again() -> None:
    job = by_kind(render.run(SFT, profile(), RUN))["RayJob"]
    assert job["spec"]["entrypoint"] == f"shoal run /etc/shoal/job.yaml --on /etc/shoal/cluster.yaml --run-id {RUN}"
    mounts = {mount["mountPath"]: mount for mount in pods(job)["head"]["containers"][0]["volumeMounts"]}
    assert mounts["/etc/shoal"]["readOnly"]


def test_a_sweep_is_a_run_with_another_verb() -> None:
    job = by_kind(render.run(load_job(ROOT / "jobs" / "sweep-lr.yaml"), profile(), "a-sweep"))["RayJob"]
    assert job["spec"]["entrypoint"].startswith("shoal sweep run /etc/shoal/job.yaml ")


@pytest.mark.parametrize("name", ["kuberay", "kuberay-h100", "kuberay-spot", "kuberay-kueue"])
def test_the_files_handed_over_load_in_the_cluster_and_say_the_same(name: str, tmp_path: Path) -> None:
    asked = profile(name)
    files = by_kind(render.run(SFT, asked, RUN))["ConfigMap"]
    assert files["immutable"]
    for file, text in files["data"].items():
        (tmp_path / file).write_text(text)
    assert load_job(tmp_path / "job.yaml") == SFT
    there = load_profile(tmp_path / "cluster.yaml")
    assert (there.kind, there.address, there.kubernetes, there.storage.cache) == ("ray", "auto", None, "/cache")
    for field in ("workers", "resources_per_worker", "placement", "network_interface", "wait_s", "max_preemptions"):
        assert getattr(there, field) == getattr(asked, field)
    assert there.storage.s3 == asked.storage.s3


def test_overrides_are_in_the_job_that_is_handed_over() -> None:
    job = load_job(ROOT / "jobs" / "sft-lora.yaml", ["train.seed=3"])
    files = by_kind(render.run(job, profile(), RUN))["ConfigMap"]
    assert parse_job(files["data"]["job.yaml"], "job.yaml").train.seed == 3


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        ("sft-lora", "sft-lora"),
        (RUN, RUN),
        ("4-bits", None),
        ("a-" * 20 + "20261121-101500-ab12", None),
        ("ends-with-", None),
    ],
)
def test_a_run_has_a_name_that_the_operator_takes(run_id: str, name: str | None) -> None:
    made = resource_name(run_id)
    assert name is None or made == name
    assert len(made) <= MOST_JOB_NAME and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert resource_name(f"{run_id}x") != made


def test_backoff_of_a_run_makes_new_clusters_and_of_its_submitter_none() -> None:
    job = by_kind(render.run(SFT, profile(backoff_limit=4, submitter_backoff_limit=1), RUN))["RayJob"]
    assert job["spec"]["backoffLimit"] == 4 and job["spec"]["submitterConfig"] == {"backoffLimit": 1}
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["ttlSecondsAfterFinished"] == 600


# Pods


def test_the_head_takes_no_worker_and_no_gpu() -> None:
    job = by_kind(render.run(SFT, profile("kuberay-h100"), RUN))["RayJob"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert not any("gpu" in name for name in pods(job)["head"]["containers"][0]["resources"]["limits"])
    assert pods(job)["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 180),
        ({"save_seconds": 100.0}, 260),
        ({"termination_grace_period_seconds": 45, "save_seconds": 100.0}, 45),
    ],
)
def test_pods_have_the_time_that_a_save_takes(changes: dict[str, Any], seconds: int) -> None:
    job = by_kind(render.run(SFT, profile(**changes), RUN))["RayJob"]
    for who, what in (("head", "driver"), ("worker", "node")):
        pod = pods(job)[who]
        assert pod["terminationGracePeriodSeconds"] == seconds
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert f"python -m shoal.backends.leaving {what} {seconds - 10} " in hook


@pytest.mark.parametrize("medium", ["disk", "memory", "ephemeral"])
def test_the_cache_is_the_nodes_own(medium: str) -> None:
    cache = {"medium": medium, "size_gib": 30}
    group = {"name": "cpu", "max_replicas": 2, "cpus": 2, "memory_gib": 64, "cache": cache}
    worker = pods(by_kind(render.run(SFT, profile(worker_groups=[group]), RUN))["RayJob"])["worker"]
    volume = next(volume for volume in worker["volumes"] if volume["name"] == "cache")
    disk = worker["containers"][0]["resources"]["requests"]["ephemeral-storage"]
    if medium == "ephemeral":
        claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
        assert claim["resources"]["requests"]["storage"] == "30Gi" and "storageClassName" not in claim
    else:
        assert volume["emptyDir"] == {"disk": {}, "memory": {"medium": "Memory"}}[medium] | {"sizeLimit": "30Gi"}
    assert disk == ("41Gi" if medium == "disk" else "11Gi")


def test_only_a_head_that_scales_has_a_token_of_kubernetes() -> None:
    for name, scales in (("kuberay", False), ("kuberay-h100", True)):
        job = by_kind(render.run(SFT, profile(name), RUN))["RayJob"]
        given = {who: pod["automountServiceAccountToken"] for who, pod in pods(job).items()}
        assert given == {"head": scales, "worker": False, "submitter": False}


def test_a_wait_for_the_head_that_ends_is_bash(tmp_path: Path) -> None:
    job = by_kind(render.run(SFT, profile(init_wait_seconds=1), RUN))["RayJob"]
    (wait,) = pods(job)["worker"]["initContainers"]
    environment = {"FQ_RAY_IP": "127.0.0.1", "PATH": os.environ["PATH"]}
    done = subprocess.run(wait["command"], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "is the head's pod up?" in done.stderr


# Scaling and queues


def test_without_autoscaling_all_pods_are_there_and_with_it_they_come_when_asked_for() -> None:
    fixed = by_kind(render.run(SFT, profile(), RUN))["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = fixed["workerGroupSpecs"]
    assert not fixed["enableInTreeAutoscaling"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 2, 2)
    scaling = by_kind(render.run(SFT, profile("kuberay-h100"), RUN))["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = scaling["workerGroupSpecs"]
    assert scaling["enableInTreeAutoscaling"] and scaling["autoscalerOptions"]["version"] == "v2"
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, 8)


def test_rays_own_autoscaler_reads_what_a_group_has() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = render.pool(profile("kuberay-h100"))[-1]
    read = _derive_autoscaling_config_from_ray_cr(json.loads(json.dumps(cluster)))
    group = read["available_node_types"]["h100"]
    assert group["resources"] | {"memory": 0} == {"CPU": 96, "GPU": 8, "memory": 0, "accelerator_type:H100": 1}
    assert (group["min_workers"], group["max_workers"], read["idle_timeout_minutes"]) == (0, 8, 5.0)
    assert read["available_node_types"]["headgroup"]["resources"]["CPU"] == 0


@pytest.mark.parametrize(
    ("queue", "labels"),
    [
        (
            {"scheduler": "kueue", "name": "q", "priority": "p"},
            {"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/priority-class": "p"},
        ),
        (
            {"scheduler": "volcano", "name": "q", "priority": "p"},
            {"volcano.sh/queue-name": "q", "ray.io/priority-class-name": "p"},
        ),
        (
            {"scheduler": "yunikorn", "name": "root.q"},
            {
                "yunikorn.apache.org/queue": "root.q",
                "yunikorn.apache.org/app-id": RUN,
                "ray.io/gang-scheduling-enabled": "true",
            },
        ),
    ],
)
def test_a_queue_is_named_where_its_scheduler_looks(queue: dict[str, str], labels: dict[str, str]) -> None:
    job = by_kind(render.run(SFT, profile(queue=queue), RUN))["RayJob"]
    assert labels.items() <= job["metadata"]["labels"].items()


def test_spot_pods_say_so_to_ray() -> None:
    job = by_kind(render.run(SFT, profile("kuberay-spot"), RUN))["RayJob"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["labels"] == {"ray.io/market-type": "spot"}


# Who may reach them


def test_nobody_but_the_run_and_the_operator_reaches_its_pods() -> None:
    made = by_kind(render.run(SFT, profile(), RUN))
    policy, job = made["NetworkPolicy"]["spec"], made["RayJob"]
    assert policy["policyTypes"] == ["Ingress"]
    own, operator = policy["ingress"]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}] and "podSelector" not in operator["from"][0]
    selected = policy["podSelector"]["matchLabels"].items()
    assert own["from"] == [{"podSelector": {"matchLabels": dict(selected)}}]
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], job["spec"]["submitterPodTemplate"]]
    for template in [*templates, cluster["workerGroupSpecs"][0]["template"]]:
        assert selected <= template["metadata"]["labels"].items()
    assert (cluster["headGroupSpec"]["serviceType"], cluster["headGroupSpec"]["enableIngress"]) == ("ClusterIP", False)
    assert 10001 not in [port["containerPort"] for port in pods(job)["head"]["containers"][0]["ports"]]
    assert cluster["authOptions"] == {"mode": "token"}


def test_two_runs_of_one_job_share_nothing_but_their_account() -> None:
    first, second = (render.run(SFT, profile(), run_id) for run_id in ("first", "second"))
    names = [{(one["kind"], one["metadata"]["name"]) for one in made} for made in (first, second)]
    assert names[0] & names[1] == {("ServiceAccount", "shoal")}
    labels = [by_kind(made)["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] for made in (first, second)]
    assert labels[0] != labels[1]


def test_a_drain_takes_one_worker_at_a_time_and_no_head() -> None:
    made = [one for one in render.run(SFT, profile("kuberay-kueue"), RUN) if one["kind"] == "PodDisruptionBudget"]
    wanted = {one["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: one["spec"] for one in made}
    assert {who: spec["minAvailable"] for who, spec in wanted.items()} == {"head": 1, "worker": 1}
    evictable = profile("kuberay-kueue", head={"evictable": True})
    left = [one["metadata"]["name"] for one in render.run(SFT, evictable, RUN) if one["kind"] == "PodDisruptionBudget"]
    assert left == [f"{RUN}-worker"]


def test_what_the_platform_has_made_is_not_rendered() -> None:
    changes = {
        "service_account": {"name": "theirs", "create": False},
        "network_policy": {"enabled": False},
        "pod_disruption_budget": False,
    }
    assert list(by_kind(render.run(SFT, profile(**changes), RUN))) == ["ConfigMap", "RayJob"]


# Out


def test_rendering_is_pure_and_yaml_and_json_say_the_same() -> None:
    made = render.run(SFT, profile(), RUN)
    assert made == render.run(SFT, profile(), RUN)
    assert list(yaml.safe_load_all(render.to_yaml(made))) == json.loads(json.dumps(render.to_list(made)))["items"]


def test_rendering_loads_neither_torch_nor_ray_nor_a_client() -> None:
    heavy = ["torch", "transformers", "ray", "pyarrow", "obstore", "kubernetes", "huggingface_hub"]
    program = (
        "import sys; from shoal import cli; sys.argv = ['shoal', 'render', 'jobs/sft-lora.yaml', '--on', "
        "'cluster/kuberay.yaml']; status = cli._status(); "
        f"print([name for name in {heavy} if name in sys.modules], status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"
    assert [one["kind"] for one in yaml.safe_load_all(done.stdout)][-1] == "RayJob"
