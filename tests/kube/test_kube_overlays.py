"""k8s/ is what `shoal render` gives for the shipped profiles, and kustomize takes it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kube_schemas import faults
from kubectl import kubectl

from shoal import cli

ROOT = Path(__file__).parents[2]
OVERLAYS = {"cpu": "kuberay", "gpu-h100": "kuberay-h100", "spot": "kuberay-spot", "kueue": "kuberay-kueue"}
CACHE = ROOT / ".shoal" / "tests" / "kubectl"


def test_every_profile_has_an_overlay() -> None:
    assert {file.stem for file in (ROOT / "cluster").glob("kuberay*.yaml")} == set(OVERLAYS.values())
    assert {folder.name for folder in (ROOT / "k8s" / "overlays").iterdir()} == set(OVERLAYS)


@pytest.mark.parametrize(("overlay", "profile"), OVERLAYS.items())
def test_an_overlay_is_what_its_profile_renders(
    overlay: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change that is meant: k8s/render."""
    arguments = ["render", "jobs/sft-lora.yaml", "--on", f"cluster/{profile}.yaml", "--run-id", "sft-lora"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["shoal", *arguments, "--out", str(tmp_path)])
    assert cli._status() == 0
    kept = ROOT / "k8s" / "overlays" / overlay / "manifests"
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in kept.iterdir()}
    for file in tmp_path.iterdir():
        assert file.read_text() == (kept / file.name).read_text(), file.name


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="the wheel's kubectl is for x86-64"
)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_takes_every_overlay(overlay: str) -> None:
    command = [str(kubectl(CACHE)), "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(CACHE)})
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    kinds = [one["kind"] for one in made]
    assert {"Namespace", "Role", "RoleBinding", "NetworkPolicy", "ConfigMap", "RayJob"} <= set(kinds)
    assert [fault for one in made for fault in faults(one)] == []
