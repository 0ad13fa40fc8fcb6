"""The hub of the tests, asked by the real client in a process of its own, as `HF_ENDPOINT` is read at import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import STRANGER, Hub, serving_hub

CLIENT = """
import json, sys
from huggingface_hub import snapshot_download
repo, revision, token, cache = json.loads(sys.argv[1])
try:
    print(snapshot_download(repo, revision=revision, token=token or False, cache_dir=cache))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "sub" / "note.txt").write_text("below")
    (folder / "model.safetensors").write_bytes(os.urandom(1 << 16))
    return folder


def download(hub: Hub, cache: Path, repo: str = "acme/tiny", revision: str | None = None, token: str = "") -> str:
    arguments = json.dumps([repo, revision, token, str(cache)])
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", CLIENT, arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_snapshot_equals_the_folder(model: Path, tmp_path: Path) -> None:
    with serving_hub({"acme/tiny": model}) as hub:
        snapshot = Path(download(hub, tmp_path / "cache"))
        assert snapshot.name == hub.commit("acme/tiny")
        names = ["config.json", "model.safetensors", "sub/note.txt"]
        assert sorted(p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()) == names
        assert all((snapshot / name).read_bytes() == (model / name).read_bytes() for name in names)
        fetched = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
        assert len(fetched) == len(names)
        assert download(hub, tmp_path / "cache", revision=snapshot.name) == str(snapshot)
        assert [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line] == fetched


def test_what_is_not_there(model: Path, tmp_path: Path) -> None:
    with serving_hub({"acme/tiny": model}) as hub:
        assert download(hub, tmp_path / "cache", repo="acme/other") == "RepositoryNotFoundError"
        assert download(hub, tmp_path / "cache", revision="no-such-branch") == "RevisionNotFoundError"


@pytest.mark.parametrize(("token", "answer"), [("", "GatedRepoError"), (STRANGER, "GatedRepoError"), ("hf_me", None)])
def test_a_gated_model_asks_for_its_token(model: Path, tmp_path: Path, token: str, answer: str | None) -> None:
    with serving_hub({"acme/tiny": model}, token="hf_me") as hub:
        said = download(hub, tmp_path / "cache", token=token)
        assert said == (answer or str(tmp_path / "cache/models--acme--tiny/snapshots" / hub.commit("acme/tiny")))


def test_a_wrong_token_is_refused(model: Path, tmp_path: Path) -> None:
    with serving_hub({"acme/tiny": model}, token="hf_me") as hub:
        assert download(hub, tmp_path / "cache", token="hf_wrong") == "HfHubHTTPError"
