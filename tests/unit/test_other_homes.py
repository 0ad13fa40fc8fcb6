"""Ray's cluster launcher and Slurm: files that are right as far as one can know without a cloud or a Slurm."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "cluster" / "slurm.sh"
STUBS = {
    "scontrol": """
        if [ "$1 $2" = "show hostnames" ]; then for host in $STUB_HOSTS; do echo "$host"; done; fi
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do case $1 in --nodelist=*) export STUB_NODE="${1#*=}";; esac; shift; done
        exec "$@"
    """,
    "hostname": """echo "127.0.0.1 10.0.0.7 fe80::1" """,
    "ray": """
        [ "$1" = health-check ] && { grep -qs "^ray start --head" "$STUB_LOG" || exit 1; exit "${STUB_HEALTH:-0}"; }
        [ "$3" = "${STUB_DIES:-}" ] && exit 1
        trap 'echo "down $STUB_NODE" >> "$STUB_LOG"; kill $sleeping; exit 0' TERM
        sleep 60 & sleeping=$!
        wait
    """,
    "shoal": """
        trap 'echo "saved" >> "$STUB_LOG"; sleep 0.3; exit 143' TERM
        echo "begun $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> "$STUB_LOG"
        for i in $(seq "${STUB_TENTHS:-1}"); do sleep 0.1; done
        exit "${STUB_STATUS:-0}"
    """,
}
"""Programs that write down how they were called, and then do the least that the script could tell from the real one."""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script in an allocation of two nodes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STUBS.items():
        path = programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "$STUB_LOG"\n{body}\n')
        path.chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "gpu[1-2]",
        "SLURM_CPUS_PER_TASK": "6",
        "STUB_HOSTS": "gpu1 gpu2",
        "STUB_LOG": str(tmp_path / "log"),
    }


def begin(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [str(SLURM), *(arguments or ("jobs/SFT_lora.yaml", "cluster/ray.yaml", "--set", "a.b=c d"))]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def called(environment: dict[str, str]) -> list[str]:
    path = Path(environment["STUB_LOG"])
    return path.read_text().splitlines() if path.exists() else []


def until(environment: dict[str, str], text: str) -> None:
    deadline = time.monotonic() + 30
    while not any(line.startswith(text) for line in called(environment)):
        assert time.monotonic() < deadline, called(environment)
        time.sleep(0.05)


def test_ray_comes_up_on_all_nodes_and_the_job_runs_on_it(slurm: dict[str, str]) -> None:
    process = begin(slurm | {"STUB_STATUS": "7", "STUB_TENTHS": "10"})
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 7, said
    log = called(slurm)
    starts = [line for line in log if line.startswith("ray start")]
    assert starts[0].startswith("ray start --head --node-ip-address=10.0.0.7 --port=24711 ")
    assert starts[1].startswith("ray start --address=10.0.0.7:24711 ") and len(starts) == 2
    assert all("--num-cpus=6 --block" in line and "/tmp/ray-4711" in line for line in starts)
    assert [line for line in log if "ray start --address" in line and "--nodelist=gpu2" in line]
    shoal = next(line for line in log if line.startswith("shoal "))
    assert shoal == "shoal run jobs/SFT_lora.yaml --on cluster/ray.yaml --run-id sft-lora-slurm-4711 --set a.b=c d"
    assert "begun 10.0.0.7:24711 token 48" in log
    assert sorted(line for line in log if line.startswith("down")) == ["down gpu1", "down gpu2"]
    assert not any(line.startswith("scontrol requeue") for line in log)


def test_a_run_s_id_is_one_that_a_run_may_have(slurm: dict[str, str]) -> None:
    process = begin(slurm | {"STUB_HOSTS": "gpu1"}, "x/My Long_Job.v2.yaml", "p.yaml")
    assert process.wait(60) == 0
    words = next(line for line in called(slurm) if line.startswith("shoal "))
    assert words.endswith("--run-id my-long-job-v2-slurm-4711")
    assert len([line for line in called(slurm) if line.startswith("ray start")]) == 1


def test_a_sweep_is_driven_just_so(slurm: dict[str, str]) -> None:
    process = begin(slurm, "sweep", "jobs/sweep-lr.yaml", "p.yaml")
    assert process.wait(60) == 0
    words = next(line for line in called(slurm) if line.startswith("shoal "))
    assert words == "shoal sweep run jobs/sweep-lr.yaml --on p.yaml --run-id sweep-lr-slurm-4711"


@pytest.mark.parametrize(
    ("number", "restarted", "requeued"),
    [(signal.SIGUSR1, "0", True), (signal.SIGUSR1, "20", False), (signal.SIGTERM, "0", False)],
)
def test_near_the_limit_the_run_is_saved_and_queued_again(
    slurm: dict[str, str], number: signal.Signals, restarted: str, requeued: bool
) -> None:
    process = begin(slurm | {"STUB_TENTHS": "300", "SLURM_RESTART_COUNT": restarted})
    until(slurm, "begun")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    log = called(slurm)
    assert log.count("saved") == 1
    assert ("scontrol requeue 4711" in log) == requeued


def test_a_head_that_does_not_come_up_is_told(slurm: dict[str, str]) -> None:
    process = begin(slurm | {"STUB_HEALTH": "1", "STUB_DIES": "--node-ip-address=10.0.0.7"})
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "slurm.sh: Ray did not come up on gpu1 (10.0.0.7:24711) within 180 s" in said
    assert not any(line.startswith("shoal") for line in called(slurm))


def test_slurm_mistakes_are_told(slurm: dict[str, str]) -> None:
    process = begin(slurm, "job.yaml")
    assert process.communicate(timeout=60)[0].startswith("usage: sbatch") and process.returncode == 2
    process = begin({name: value for name, value in slurm.items() if name != "SLURM_JOB_ID"})
    assert "this is no Slurm job" in process.communicate(timeout=60)[0] and process.returncode == 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_batch_script_passes_shellcheck() -> None:
    done = subprocess.run(["shellcheck", str(SLURM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def launched(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"ray-{name}.yaml").read_text())


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_s_launcher_takes_the_file(name: str) -> None:
    (ray,) = (importlib.util.find_spec("ray") or pytest.fail("no Ray")).submodule_search_locations or []
    body = launched(name)
    jsonschema.validate(body, json.loads((Path(ray) / "autoscaler" / "ray-schema.json").read_text()))
    assert body["head_node_type"] in body["available_node_types"]
    assert body["available_node_types"][body["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(kind.get("max_workers", 0) for kind in body["available_node_types"].values()) <= body["max_workers"]


@pytest.mark.parametrize(("name", "sdk"), [("aws", "boto3"), ("gcp", "google-api-python-client")])
def test_a_launched_head_has_what_starts_the_other_nodes(name: str, sdk: str) -> None:
    body = launched(name)
    (into,) = (one.rpartition("=")[2] for one in body["docker"]["run_options"] if "PYTHONPATH" in one)
    assert body["head_setup_commands"] == [f"pip install --quiet --target {into} {sdk}"]
    image = (ROOT / "cluster" / "image" / "Dockerfile").read_text()
    assert {"openssh-client", "rsync"} <= set(image.partition("--no-install-recommends ")[2].splitlines()[0].split())


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_launched_cluster_asks_for_a_token_and_shows_its_dashboard_to_nobody(name: str) -> None:
    body = launched(name)
    starts = [line for part in ("head", "worker") for line in body[f"{part}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in body["file_mounts"]
