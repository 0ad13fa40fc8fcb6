"""No credential of the machine that renders is in anything that is rendered, and none can be written into its files."""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shoal import cli

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "cluster").glob("kuberay*.yaml"))
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIA" + "PLANTEDPLANTED00",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+access" + "KeyOfThisMachine0001",
    "AWS_SESSION_TOKEN": "planted-session-token-0002",
    "HF_TOKEN": "hf_" + "PlantedTokenOfThisMachine0003",
    "RAY_AUTH_TOKEN": "planted-ray-token-0004",
    "WANDB_API_KEY": "planted-wandb-key-0005",
    "KUBECONFIG": "/planted/kubeconfig-0006",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Secrets of every kind in the environment and the home folder; what must be seen nowhere."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".aws").mkdir()
    keys = "[default]\naws_access_key_id = AKIAPLANTEDINAFILE07\naws_secret_access_key = planted-in-a-file-0008\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    values = [*PLANTED.values(), "AKIAPLANTEDINAFILE07", "planted-in-a-file-0008"]
    yield values + [base64.b64encode(value.encode()).decode().rstrip("=") for value in values]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("what", [["jobs/sft-lora.yaml"], ["jobs/quickstart.yaml"], ["--pool"]], ids=str)
@pytest.mark.parametrize("form", [[], ["--json"], ["--out"]], ids=str)
def test_nothing_of_this_machine_is_rendered(
    profile: Path,
    what: list[str],
    form: list[str],
    planted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = [*form, str(tmp_path / "out")] if form == ["--out"] else form
    monkeypatch.setattr(sys, "argv", ["shoal", "render", *what, "--on", str(profile), *out])
    assert cli._status() == 0
    printed = capsys.readouterr()
    written = [file.read_text() for file in (tmp_path / "out").glob("*")] if form == ["--out"] else []
    text = "\n".join([printed.out, printed.err, *written])
    assert "RayJob" in text or "RayCluster" in text or written
    assert [value for value in planted if value in text] == []


@pytest.mark.parametrize("where", ["env", "secret_env", "image", "pod_annotations", "credentials", "job"])
def test_a_credential_in_a_file_is_refused_and_not_repeated(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = PLANTED["AWS_ACCESS_KEY_ID"]
    body = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
    job = yaml.safe_load((ROOT / "jobs" / "sft-lora.yaml").read_text())
    if where == "credentials":
        body["storage"]["s3"]["credentials"]["access_key_env"] = key
    elif where == "secret_env":
        body["kubernetes"]["secret_env"]["AWS_ACCESS_KEY_ID"]["name"] = key
    elif where == "image":
        body["kubernetes"]["image"] = f"https://me:{PLANTED['WANDB_API_KEY']}@registry/shoal:1"
        key = PLANTED["WANDB_API_KEY"]
    elif where == "job":
        job["model"]["token"] = key = PLANTED["HF_TOKEN"]
    else:
        body["kubernetes"][where] = {"ANYTHING": key}
    files = {"cluster.yaml": body, "job.yaml": job}
    for name, value in files.items():
        (tmp_path / name).write_text(yaml.safe_dump(value))
    arguments = ["render", str(tmp_path / "job.yaml"), "--on", str(tmp_path / "cluster.yaml")]
    monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
    assert cli._status() == 2
    printed = capsys.readouterr()
    assert "take it out" in printed.err and "not shown here" in printed.err
    assert key not in printed.out + printed.err


def test_a_secret_is_named_where_its_value_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["shoal", "render", "--pool", "--on", "cluster/kuberay.yaml", "--json"])
    assert cli._status() == 0
    cluster = json.loads(capsys.readouterr().out)["items"][-1]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        held = {one["name"]: one.get("valueFrom") for one in group["template"]["spec"]["containers"][0]["env"]}
        assert held["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "shoal-s3", "key": "secret-key"}}
