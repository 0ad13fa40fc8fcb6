"""A profile or a job that pods could not keep is refused whole, each mistake with its place and its way out."""

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal import cli
from shoal.errors import ClusterError, SpecError
from shoal.kube import checks, render
from shoal.launch import backend_for
from shoal.spec.load import load_profile, parse_job

ROOT = Path(__file__).parents[2]
PROFILE = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
JOB = "name: tiny\nmodel: {base: some/model}\ndata: {train: 's3://corpus/rows.jsonl'}\n"
H100 = {
    "accelerator_type": "H100",
    "gpus": 8,
    "cpus": 96,
    "memory_gib": 500,
    "max_replicas": 2,
    "cache": {"size_gib": 99},
}
GROUP = "kubernetes.worker_groups"
TAKE_OUT = object()


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The shipped profile with `a.b.0.c: value` in place."""
    body = deepcopy(PROFILE)
    for path, value in changes.items():
        *above, last = path.split(".")
        at: Any = body
        for part in above:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if value is TAKE_OUT:
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = value
    return body


def said(tmp_path: Path, changes: dict[str, Any], job: str = JOB) -> list[str]:
    """What rendering says of the profile with these changes; empty when it renders."""
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(changed(changes)))
    try:
        render.run(parse_job(job, "job.yaml"), load_profile(file), "a-run")
    except SpecError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_the_shipped_profile_has_none(tmp_path: Path):
    assert said(tmp_path, {}) == []


CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("image without a tag", {"kubernetes.image": "registry/shoal"}, ("kubernetes.image", "no tag", "@sha256:")),
    ("image of today", {"kubernetes.image": "registry/shoal:latest"}, ("kubernetes.image", "the tag latest")),
    ("image of a port", {"kubernetes.image": "registry:5000/shoal"}, ("kubernetes.image", "no tag")),
    ("no image", {"kubernetes.image": TAKE_OUT}, ("kubernetes.image", "is missing")),
    ("no groups", {GROUP: []}, (GROUP, "at least 1")),
    ("no kubernetes", {"kubernetes": TAKE_OUT}, ("kubernetes", "is missing", "cluster/kuberay.yaml")),
    ("other kind", {"kind": "ray"}, ("kubernetes", "kind: kuberay alone")),
    ("an address", {"address": "head:6379"}, ("address", "leave it out")),
    ("hostPath", {f"{GROUP}.0.cache.medium": "hostPath"}, ("cache.medium", "`disk`, `memory` or `ephemeral`")),
    ("unknown field", {f"{GROUP}.0.nodeSelector": {}}, ("nodeSelector", "node_selector")),
    ("group's name", {f"{GROUP}.0.name": "headgroup"}, (f"{GROUP}[0].name", "operator's name")),
    ("turned round", {f"{GROUP}.0.min_replicas": 5}, (f"{GROUP}[0].min_replicas", "5 is more than max_replicas, 2")),
    ("nothing scales", {f"{GROUP}.0.min_replicas": 1}, (f"{GROUP}[0].min_replicas", "set kubernetes.autoscaling")),
    ("too few pods", {"workers": 3}, ("workers: 3 are asked for", "hold 2 at most", "raise max_replicas")),
    ("small pods", {f"{GROUP}.0.cpus": 1}, (f"{GROUP}[0].cpus", "1 holds no worker of 2")),
    ("GPUs of nobody", {f"{GROUP}.0.gpus": 2}, (f"{GROUP}[0].gpus", "paid for and not used")),
    ("no GPUs", {"resources_per_worker.gpu": 1}, (f"{GROUP}[0].gpus", "each worker takes a GPU")),
    (
        "GPUs without cores",
        {"resources_per_worker": {"cpu": 8, "gpu": 1}, f"{GROUP}.0.gpus": 2, f"{GROUP}.0.cpus": 8},
        (f"{GROUP}[0].cpus", "8 holds 1 worker of 8", "raise cpus to 16"),
    ),
    (
        "another GPU",
        {"resources_per_worker": {"cpu": 1, "gpu": 1, "accelerator_type": "A100"}, f"{GROUP}.0": {"name": "a", **H100}},
        ("resources_per_worker.accelerator_type", "A100, but the groups' GPUs are H100"),
    ),
    (
        "two GPU types",
        {
            "resources_per_worker": {"cpu": 1, "gpu": 1},
            GROUP: [{"name": "a", **H100}, {"name": "b", **H100, "accelerator_type": "A100"}],
        },
        (GROUP, "different GPUs: A100, H100", "resources_per_worker.accelerator_type"),
    ),
    ("twins", {GROUP: [PROFILE["kubernetes"]["worker_groups"][0]] * 2}, (GROUP, "two groups are called cpu")),
    (
        "another case",
        {"resources_per_worker": {"cpu": 1, "gpu": 1, "accelerator_type": "h100"}, f"{GROUP}.0": {"name": "a", **H100}},
        ("resources_per_worker.accelerator_type", "h100, but the groups' GPUs are H100", "write H100"),
    ),
    (
        "shares of a GPU",
        {"resources_per_worker": {"cpu": 1, "gpu": 0.5}, f"{GROUP}.0": {"name": "a", **H100}},
        ("resources_per_worker.gpu", "0.5 of a GPU for each of 2 workers", "trials of one worker"),
    ),
    (
        "a cache of this machine",
        {"storage.cache": "/data"},
        ("storage.cache: /data, and pods have theirs", "leave it out"),
    ),
    (
        "a number for text",
        {"kubernetes.env": {"NCCL_IB_DISABLE": 1}},
        ("NCCL_IB_DISABLE: is 1; allowed: text", "quotes"),
    ),
    ("a name for nothing", {"kubernetes.env": {"1X": "a"}}, ("env.1X: is not a name", "matches ^[A-Za-z_]")),
    ("a namespace", {"kubernetes.namespace": "Shoal"}, ("'Shoal'; allowed: up to 63 lower-case letters, digits",)),
    ("a queue", {"kubernetes.queue": {"scheduler": "kueue", "name": ""}}, ("''; allowed", "not empty")),
    ("a store without a scheme", {"storage.s3.endpoint_url": "s3.local"}, ("'s3.local'; allowed", "such as https://")),
    ("spot nowhere", {f"{GROUP}.0.spot": True}, (f"{GROUP}[0].spot", "nothing brings the pods to spot nodes")),
    ("shm is memory", {f"{GROUP}.0.shm_gib": 8}, (f"{GROUP}[0].memory_gib", "volumes in memory may take 8")),
    (
        "cache is memory",
        {f"{GROUP}.0.cache": {"medium": "memory", "size_gib": 30}},
        (f"{GROUP}[0].memory_gib", "may take 32"),
    ),
    ("full cache", {"storage.cache_gib": 40}, (f"{GROUP}[0].cache.size_gib", "the model has no room")),
    (
        "class of no volume",
        {f"{GROUP}.0.cache.storage_class_name": "fast"},
        (f"{GROUP}[0].cache.storage_class_name", "medium: ephemeral"),
    ),
    ("head's shm", {"kubernetes.head.shm_gib": 8}, ("kubernetes.head.memory_gib",)),
    ("Ray's variable", {"kubernetes.env": {"RAY_ADDRESS": "x:1"}}, ("kubernetes.env.RAY_ADDRESS", "leave it out")),
    (
        "set twice",
        {"kubernetes.env": {"TWICE": "a"}, "kubernetes.secret_env.TWICE": {"name": "a", "key": "b"}},
        ("kubernetes.env.TWICE", "is in secret_env too"),
    ),
    (
        "a key as it is",
        {"kubernetes.env": {"AWS_SECRET_ACCESS_KEY": "abc"}},
        ("kubernetes.env.AWS_SECRET_ACCESS_KEY", "a credential in plain text", "kubernetes.secret_env"),
    ),
    (
        "a key for a reference",
        {"kubernetes.secret_env.AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCY"},
        ("kubernetes.secret_env.AWS_SECRET_ACCESS_KEY", "a credential in plain text"),
    ),
    (
        "variable of nobody",
        {"kubernetes.secret_env": TAKE_OUT},
        ("storage.s3.credentials.access_key_env", "no pod has that variable", "kubernetes.secret_env"),
    ),
    (
        "file of keys",
        {"storage.s3.credentials": {"file": "~/keys.json"}},
        ("storage.s3.credentials.file", "pods do not see it"),
    ),
    ("old Ray", {"kubernetes.ray_version": "2.40.0"}, ("kubernetes.auth", "has no token authentication")),
    (
        "Kueue and autoscaling",
        {"kubernetes.queue": {"scheduler": "kueue", "name": "q"}, "kubernetes.autoscaling": {}},
        ("kubernetes.autoscaling", "Kueue admits a run of a fixed size"),
    ),
    (
        "groups for Kueue",
        {
            "kubernetes.queue": {"scheduler": "kueue", "name": "q"},
            GROUP: [{**PROFILE["kubernetes"]["worker_groups"][0], "name": f"g{index}"} for index in range(7)],
        },
        (GROUP, "room for 6"),
    ),
    (
        "no label",
        {f"{GROUP}.0.node_selector": {"zone": "a b"}},
        (f"{GROUP}[0].node_selector.zone", "the text 'a b'"),
    ),
    (
        "a value of nothing",
        {f"{GROUP}.0.tolerations": [{"key": "gpu", "value": "yes"}, {"operator": "Equal", "value": "a"}]},
        (f"{GROUP}[0].tolerations[0].value", "operator: Equal"),
    ),
    (
        "a taint without a name",
        {"kubernetes.head.tolerations": [{"operator": "Equal", "value": "a"}]},
        ("kubernetes.head.tolerations[0].key", "name the taint"),
    ),
    (
        "a shell in a name",
        {f"{GROUP}.0.accelerator_type": "H100'; rm -rf /"},
        (f"{GROUP}[0].accelerator_type",),
    ),
    (
        "a long queue",
        {"kubernetes.queue": {"scheduler": "kueue", "name": "q" * 64}},
        ("kubernetes.queue.name",),
    ),
    (
        "Kueue's name",
        {"kubernetes.queue": {"scheduler": "kueue", "name": "q"}, f"{GROUP}.0.name": "head"},
        (f"{GROUP}[0].name", "a name of Kueue's own"),
    ),
    (
        "YuniKorn's priority",
        {"kubernetes.queue": {"scheduler": "yunikorn", "name": "root.q", "priority": "high"}},
        ("kubernetes.queue.priority", "priority_class_name"),
    ),
    ("unknown queue", {"kubernetes.queue": {"scheduler": "slurm", "name": "q"}}, ("queue.scheduler", "`yunikorn`")),
    (
        "annotations of nobody",
        {"kubernetes.service_account": {"create": False, "annotations": {"a": "b"}}},
        ("kubernetes.service_account.annotations", "create: true"),
    ),
    ("negative TTL", {"kubernetes.ttl_seconds_after_finished": -1}, ("ttl_seconds_after_finished", "from 0")),
    ("negative backoff", {"kubernetes.backoff_limit": -1}, ("backoff_limit", "from 0")),
    ("no grace", {"kubernetes.termination_grace_period_seconds": 5}, ("termination_grace_period_seconds", "30")),
    ("namespace", {"kubernetes.namespace": "My_Runs"}, ("kubernetes.namespace", "My_Runs")),
    ("root", {"kubernetes.pod_security": {"run_as_user": 0}}, ("pod_security.run_as_user", "from 1")),
    ("local store", {"storage.runs": "/mnt/runs"}, ("storage.runs", "use an s3:// location")),
    ("embedded store", {"storage.s3": {"server": "embedded"}}, ("storage.s3.server", "server: external")),
    ("loopback", {"storage.s3.endpoint_url": "http://127.0.0.1:9000"}, ("storage.s3.endpoint_url", "all nodes see it")),
]


@pytest.mark.parametrize(("changes", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_in_the_profile_is_told(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]):
    told = said(tmp_path, changes)
    assert any(all(word in line for word in words) for line in told), told


def test_all_mistakes_are_told_at_once(tmp_path: Path):
    told = said(
        tmp_path,
        {"kubernetes.image": "shoal", "workers": 9, f"{GROUP}.0.spot": True, "storage.runs": "/runs"},
        JOB.replace("some/model", "./model"),
    )
    assert len(told) == 5, told


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (JOB.replace("some/model", "./model"), ("model.base", "pods do not see it", "s3://")),
        (JOB.replace("some/model", "models/one.gguf"), ("model.base", "pods do not see it")),
        (JOB.replace("s3://corpus/rows.jsonl", "rows.jsonl"), ("data.train", "rows.jsonl is on this machine")),
        (JOB + "prompts: []\n" + "export: {merge: true}\n", ()),
        (JOB.replace("base: some/model", "base: some/model, adapter: ../one"), ("model.adapter", "../one")),
        (JOB.replace("base: some/model", "base: some/model, adapter: sft-lora-2026"), ()),
        (JOB.replace("base: some/model", "base: some/model, token: 'env:HF_TOKEN'"), ("model.token", "secret_env")),
        (JOB.replace("base: some/model", "base: some/model, token: 'file:~/t'"), ("model.token", "into a Secret")),
        (JOB.replace("rows.jsonl'", "rows.jsonl', validation: [held.jsonl]"), ("data.validation", "held.jsonl")),
        (JOB.replace("rows.jsonl'", "rows.jsonl', chat_template: c.jinja"), ("data.chat_template", "c.jinja")),
    ],
)
def test_what_a_job_names_must_be_where_pods_see_it(tmp_path: Path, job: str, words: tuple[str, ...]):
    told = said(tmp_path, {}, job)
    assert (not told and not words) or (words and all(word in told[0] for word in words)), told


def test_trials_of_one_worker_may_share_a_gpu(tmp_path: Path):
    shared = {"resources_per_worker": {"cpu": 1, "gpu": 0.5}, f"{GROUP}.0": {"name": "a", **H100}}
    sweep = "sweep: {space: {lora.r: [8, 16]}, metric: train.loss, workers: 1}\n"
    assert said(tmp_path, shared, JOB + sweep) == []


def test_a_token_that_a_secret_holds_is_no_mistake(tmp_path: Path):
    job = JOB.replace("base: some/model", "base: some/model, token: 'env:HF_TOKEN'")
    named = {**PROFILE["kubernetes"]["secret_env"], "HF_TOKEN": {"name": "hub", "key": "token"}}
    assert said(tmp_path, {"kubernetes.secret_env": named}, job) == []


def test_a_profile_of_another_kind_is_told_what_manifests_are_for(tmp_path: Path):
    found = list(checks.problems(load_profile("local")))
    assert any("manifests are for kuberay" in str(problem) for problem in found)


def test_what_is_not_done_there_is_said_plainly():
    with pytest.raises(ClusterError, match=r"kuberay makes its cluster for one run or sweep.*shoal run"):
        backend_for(load_profile(ROOT / "cluster" / "kuberay.yaml"))


def test_a_model_that_is_a_folder_here_and_could_be_the_hubs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shoal", "render", "job.yaml", "--on", str(ROOT / "cluster" / "kuberay.yaml")])
    assert cli._status() == 2
    assert "model.base: some/model is on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "JOB: is missing"),
        (["--pool", "job.yaml"], "--pool: renders a cluster"),
        (["--pool", "--run-id", "a"], "take --set and --run-id out"),
        (["job.yaml", "--run-id", "A Run"], "cannot name a run"),
        (["job.yaml", "--run-id", ""], "'' cannot name a run"),
        (["sweep.yaml"], "sweep.workers: 9 for each trial, but the profile has 2"),
        (["job.yaml", "--out", "job.yaml/under"], "cannot be written"),
    ],
)
def test_a_command_that_cannot_be_is_told(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(JOB + "sweep: {space: {lora.r: [8, 16]}, metric: train.loss, workers: 9}\n")
    monkeypatch.chdir(tmp_path)
    profile = ["--on", str(ROOT / "cluster" / "kuberay.yaml")]
    monkeypatch.setattr(sys, "argv", ["shoal", "render", *arguments, *profile])
    assert cli._status() == 2
    assert words in capsys.readouterr().err
