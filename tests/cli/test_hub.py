"""The shipped quickstart with a hub's model: `HF_ENDPOINT` leads to a hub on loopback, and nothing else is set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import STRANGER, Hub, serving_hub
from mistakes import write_profile

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
TOKEN = "hf_" + "aB3" * 11
"""Opens the gated model; nobody's."""


def shoal(hub: Hub, place: Path, home: Path, verb: str, *fields: str, **variables: str) -> subprocess.CompletedProcess:
    """`shoal VERB jobs/quickstart.yaml` on rows of the test, in a process without a hub's cache."""
    home.mkdir(exist_ok=True)
    write_profile(home / "here.yaml")
    base = [f"data.train={place / 'rows.jsonl'}", "data.validation=0.2", "train.max_steps=2", "train.batch_size=2"]
    sets = [word for one in (*base, "prompts=[]", *fields) for word in ("--set", one)]
    command = [sys.executable, "-m", "shoal", verb, str(QUICKSTART), *sets, "--on", str(home / "here.yaml"), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SHOAL_"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf"),
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(command, env=environment | variables, cwd=home, capture_output=True, text=True)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_the_quickstart_runs_with_a_public_hub_model(place: Path, tiny_model: Path, tmp_path: Path) -> None:
    with serving_hub({"someorg/tiny-llama": tiny_model}) as hub:
        done = shoal(hub, place, tmp_path, "run", "model.base=someorg/tiny-llama")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["state"], result["step"], result["gate"]["passed"]) == ("finished", 2, True)
        plan = json.loads((Path(result["folder"]) / "plan.json").read_text())["trajectory"]["model"]
        assert (plan["base"], plan["kind"], plan["revision"]) == (
            "someorg/tiny-llama",
            "hub",
            hub.commit("someorg/tiny-llama"),
        )
        card = json.loads((Path(result["export"]) / "adapter_config.json").read_text())
        assert card["base_model_name_or_path"] == "someorg/tiny-llama"
        fetched = [line for line in hub.requests if line.startswith("GET") and line.endswith("model.safetensors")]
        assert len(fetched) <= 3  # two ranges of its header for the plan, the whole once


def test_the_quickstart_runs_with_a_gated_model_and_its_token_is_nowhere(
    place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    fields = ("model.base=someorg/gated", "model.token=env:MY_TOKEN", "train.self_check=false")
    with serving_hub({"someorg/gated": tiny_model}, token=TOKEN) as hub:
        done = shoal(hub, place, tmp_path, "run", *fields, MY_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "env:MY_TOKEN" in (Path(json.loads(done.stdout)["folder"]) / "plan.json").read_text()
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"plan.json", "job.yaml", "model.safetensors", "README.md"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("token", "status", "says"),
    [
        (None, 2, "model.token: the environment variable MY_TOKEN is not set; export MY_TOKEN=..."),
        (STRANGER, 3, "model.base: someorg/gated is gated and this token does not open it; accept its terms at "),
        ("hf_nobody", 3, "model.base: http://127.0.0.1:"),
    ],
)
def test_a_gated_model_without_its_token_is_one_clear_line(
    place: Path, tiny_model: Path, tmp_path: Path, token: str | None, status: int, says: str
) -> None:
    with serving_hub({"someorg/gated": tiny_model}, token=TOKEN) as hub:
        given = {} if token is None else {"MY_TOKEN": token}
        done = shoal(hub, place, tmp_path, "plan", "model.base=someorg/gated", "model.token=env:MY_TOKEN", **given)
    assert (done.returncode, done.stdout) == (status, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {says}")
    assert token is None or token not in line
    assert "model.token" in line or says.startswith("model.token")
