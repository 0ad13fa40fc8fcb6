"""hf:// as a place to read from: a loopback hub, asked in a process of its own, as `HF_ENDPOINT` is read at import."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import STRANGER, Hub, serving_hub

from shoal.errors import StorageError
from shoal.storage import Storage

CLIENT = """
import json, pickle, sys
from dataclasses import asdict
from pathlib import Path
from shoal.errors import StorageError
from shoal.storage import Storage
told = []
storage = Storage(None, told.append)
for line in sys.argv[1:]:
    try:
        found = eval(line)
    except StorageError as error:
        found = str(error)
    print(json.dumps(found, default=lambda one: one.decode() if isinstance(one, bytes) else asdict(one)))
"""
HERE = "hf://datasets/acme/rows"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    for name in ("README.md", "a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n" * 1000)
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with serving_hub({}, datasets={"acme/rows": folder}) as hub:
        yield hub


def ask(hub: Hub | str, *lines: str, **environment: str) -> list[Any]:
    """What each expression gives, as JSON, or the line of its StorageError."""
    own = {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | own | environment
    command = [sys.executable, "-c", CLIENT, *lines]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_are_found_by_pattern(hub: Hub) -> None:
    patterns = ("*.jsonl", "**/*.jsonl", "deep/", "a.jsonl", "none/*", "deep/*/*.parquet")
    found = ask(hub, *(f"[one.url for one in storage.list('{HERE}/{pattern}')]" for pattern in patterns))
    assert [[url.removeprefix(f"{HERE}/") for url in urls] for urls in found] == [
        ["a.jsonl", "b.jsonl"],
        ["a.jsonl", "b.jsonl", "deep/c.jsonl"],
        ["deep/c.jsonl", "deep/er/d.parquet"],
        ["a.jsonl"],
        [],
        ["deep/er/d.parquet"],
    ]
    pinned = f"hf://datasets/acme/rows@{hub.commit('acme/rows')}/"
    assert ask(hub, f"storage.folders('{pinned}')", f"storage.exists('{HERE}/deep/')") == [[f"{pinned}deep/"], True]


def test_bytes_are_the_files_own(hub: Hub, folder: Path, tmp_path: Path) -> None:
    url, text = f"{HERE}/deep/er/d.parquet", (folder / "deep/er/d.parquet").read_text()
    whole, ranges, info, streamed, _ = ask(
        hub,
        f"storage.read('{url}')",
        f"storage.read_ranges('{url}', [(5, 9), (0, 0), (17000, 17010)])",
        f"storage.info('{url}')",
        f"b''.join(pickle.loads(pickle.dumps(storage)).open('{url}'))",
        f"storage.download('{HERE}/', Path('{tmp_path / 'back'}'))",
    )
    assert whole == streamed == text
    assert ranges == [text[5:9], "", text[17000:17010]]
    assert info == {"url": url, "size": len(text), "etag": hub.etag(folder / "deep/er/d.parquet")}
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert sorted(path.relative_to(tmp_path / "back") for path in (tmp_path / "back").rglob("*.*")) == names


def test_a_replaced_file_and_a_range_past_the_end_are_refused(hub: Hub) -> None:
    url = f"{HERE}/a.jsonl"
    replaced, opened, past, told = ask(
        hub,
        f"storage.read_ranges('{url}', [(0, 1)], etag='other')",
        f"storage.open('{url}', etag='other')",
        f"storage.read_ranges('{url}', [(7999, 8001)])",
        "[one.what for one in told]",
    )
    assert replaced == opened
    assert replaced.startswith(f"{url}: was replaced since the plan was made")
    assert "the object ends after 8000" in past
    assert told == ["was replaced", "was replaced"]


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.failing += [503, 429]
    whole, told = ask(hub, f"len(storage.read('{HERE}/a.jsonl'))", "[(one.what, one.attempt) for one in told]")
    assert (whole, told) == (8000, [["429", 1], ["503", 2]])


def test_what_is_not_there_is_one_line(hub: Hub) -> None:
    near, missing, no_repo, no_revision, no_url, writing = ask(
        hub,
        f"storage.info('{HERE}/a.json')",
        f"storage.read('{HERE}/q')",
        "storage.list('hf://datasets/acme/other/*.jsonl')",
        "storage.list('hf://datasets/acme/rows@old/*.jsonl')",
        "storage.list('hf://models/acme/rows')",
        f"storage.write('{HERE}/a.jsonl', b'')",
    )
    assert near == f"{HERE}/a.json: no such file; did you mean {HERE}/a.jsonl?"
    assert missing == f"{HERE}/q: no such file; check the name"
    assert f"{hub.endpoint} has no data set acme/other that this token may see" in no_repo
    assert f"acme/rows has no revision old; see {hub.endpoint}/datasets/acme/rows/commits/main" in no_revision
    assert "is no data set of the hub; write hf://datasets/ORG/NAME" in no_url
    assert "the hub is only read from" in writing


def test_a_gated_data_set_asks_for_its_token(folder: Path) -> None:
    line = f"len(storage.read('{HERE}/a.jsonl'))"
    with serving_hub({}, token="hf_me", datasets={"acme/rows": folder}) as hub:
        assert ask(hub, line, HF_TOKEN="hf_me") == [8000]
        for token in ({}, {"HF_TOKEN": STRANGER}):
            [said] = ask(hub, line, **token)
            assert "acme/rows is gated and this token does not open it" in said and said.endswith("and set HF_TOKEN")


def test_no_hub_is_one_line() -> None:
    [said] = ask("http://127.0.0.1:9", f"storage.list('{HERE}/*')")
    assert said == (
        f"{HERE}/: http://127.0.0.1:9 cannot be reached; check the network or HF_ENDPOINT, or use a local copy"
    )
    [said] = ask("http://127.0.0.1:9", f"storage.list('{HERE}/*')", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE=1 forbids asking the hub" in said


def test_only_data_sets_are_read() -> None:
    with pytest.raises(StorageError, match="is no data set of the hub"):
        Storage().read("hf://acme/rows/x")
