"""The command line with a profile of kind kuberay, before a small API server."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_api import Cluster, serving
from kube_scenes import Tell

from shoal import cli
from shoal.cli import following
from shoal.kuberay import apply, watch
from shoal.submit import follow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serving(Cluster()) as made:
        yield made


@pytest.fixture
def tell(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    """`shoal WORDS --on PROFILE`, its profile changed as is said: (status, stdout, stderr)."""
    for module, name in ((watch, "POLL_S"), (apply, "POLL_S"), (follow, "AGAIN_S"), (following, "POLL_S")):
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "config")))
    monkeypatch.setenv("COLUMNS", "600")
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "SHOAL_PROFILE"):
        monkeypatch.delenv(name, raising=False)  # so that the store is out of sight from here

    def command(*words: str, profile: str = "kuberay", plain: bool = False, **changes: Any) -> tuple[int, str, str]:
        body = yaml.safe_load((ROOT / "cluster" / f"{profile}.yaml").read_text())
        body["kubernetes"] |= changes.pop("kubernetes", {})
        Path("p.yaml").write_text(yaml.safe_dump({**body, **changes}))
        if plain:
            Path("p.yaml").write_text("kind: inline\n")
        monkeypatch.setattr(sys, "argv", ["shoal", *words, "--on", "p.yaml"])
        status = cli._status()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err and "a bug of Shoal" not in err, out + err
        return status, out, err

    return command
