"""`shoal doctor --on` for this process: what a person reads, what a script reads, and the status it leaves with."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal import cli

Shoal = Callable[..., tuple[int, str]]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shoal:
    """`shoal doctor --on PROFILE ARGUMENTS`, in an empty folder: (status, stdout)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str, **storage: Any) -> tuple[int, str]:
        places = {"runs": "runs", "prepared": "prepared", "cache": "cache", "cache_gib": 0} | storage
        (tmp_path / "here.yaml").write_text(json.dumps({"kind": "inline", "storage": places}))
        monkeypatch.setattr(sys, "argv", ["shoal", "doctor", *arguments, "--on", "here.yaml"])
        return cli._status(), capsys.readouterr().out

    return run


def test_a_place_that_is_well(shoal: Shoal, tmp_path: Path) -> None:
    status, out = shoal()
    assert "problem" not in out and status == 0
    assert [line.split()[0] for line in out.splitlines() if "store" in line] == ["ok"] or "warning" in out
    assert list(tmp_path.glob("runs/.doctor/*")) == [], "what was written to measure the store is gone"


def test_a_script_reads_json(shoal: Shoal) -> None:
    _, out = shoal("--json")
    found = json.loads(out)
    assert {"check", "state", "says", "do"} == found[0].keys()
    assert {"room", "versions", "memory", "disk", "store"} <= {one["check"] for one in found}
    assert all(one["do"] for one in found if one["state"] != "ok")


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ({"cache": "/proc/nowhere"}, "/proc/nowhere: "),
        (
            {
                "runs": "s3://bucket/runs",
                "s3": {"endpoint_url": "http://127.0.0.1:9", "credentials": {"access_key_env": "NONE"}},
            },
            "the variable NONE is not set",
        ),
        (
            {
                "runs": "s3://bucket/runs",
                "s3": {"endpoint_url": "http://no.such.host.invalid", "credentials": {"anonymous": True}},
            },
            "the endpoint's name no.such.host.invalid does not resolve",
        ),
        (
            {
                "runs": "s3://bucket/runs",
                "s3": {"endpoint_url": "http://127.0.0.1:9", "credentials": {"anonymous": True}},
            },
            "http://127.0.0.1:9 cannot be reached",
        ),
    ],
)
def test_a_place_that_is_not(shoal: Shoal, storage: dict[str, Any], says: str) -> None:
    status, out = shoal(**storage)
    assert status == 1
    problems = [line for line in out.splitlines() if line.startswith("problem")]
    assert len(problems) == 1 and says in problems[0]
    assert "-> " in out, "what to do"


def test_a_run_that_nobody_knows(shoal: Shoal) -> None:
    assert shoal("nothing")[0] == 2
