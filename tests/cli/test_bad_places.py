"""What a person is told when data, a model, a disk or a store is not as it should be."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mistakes import Case, write_job, write_profile

from shoal import cli
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.store import connection

FILE_LIMIT = 100_000
"""Bytes: enough for prepared rows, too few for the checkpoint of an adapter."""

DATA = [
    Case(
        "missing model folder",
        ("model.base: ./nomodel: no such folder; check the name; a hub id has the form ORG/NAME",),
        {"model": {"base": "./nomodel"}},
        status=3,
    ),
    Case(
        "neither a folder nor in the hub's cache",
        ("model.base: nowhere/model is no folder here and not in the local cache", "or give a folder that holds"),
        {"model": {"base": "nowhere/model"}},
        status=3,
    ),
    Case(
        "missing model and missing data",
        (
            "model.base: ./nomodel: no such folder",
            "data.train: {place}/rowz.jsonl: no such file; did you mean {place}/rows.jsonl?",
        ),
        {"model": {"base": "./nomodel"}, "data": {"train": "rowz.jsonl"}},
        status=3,
    ),
    Case(
        "a model cut short",
        ("model.base: model.safetensors is cut short: 5,000 of ", "copy it again"),
        {"model": {"base": "cut"}},
        status=3,
    ),
    Case(
        "a model that cannot be read",
        ("{place}/unreadable/config.json: Input/output error",),
        {"model": {"base": "unreadable"}},
        status=4,
    ),
    Case(
        "a glob that fits nothing",
        ("data.train: nothing-*.jsonl: no object fits; check the name and the pattern",),
        {"data": {"train": "nothing-*.jsonl"}},
        status=3,
    ),
    Case(
        "a kind of file that is not read",
        ("data.train: {place}/notes.txt: is no kind of file Shoal reads; use .jsonl",),
        {"data": {"train": "notes.txt"}},
        status=3,
    ),
    Case(
        "malformed rows",
        (
            "data.train: 6 of 26 rows (23.1%) are rejected, data.max_rejected allows 1.0%; all are listed in {place}/prepared/",
            "mend them, or raise data.max_rejected",
            "malformed: 1 row; correct or remove these lines",
            "empty-answer: 2 rows; fill or remove these rows",
            "overlength: 1 row; raise data.sequence_length, or set data.overlength: truncate",
            "{place}/bad.jsonl:11: malformed: ",
            "{place}/bad.jsonl:13: empty-answer: no message of `messages` is the assistant's",
        ),
        {"data": {"train": "bad.jsonl"}},
        command=("check", "job.yaml"),
        status=3,
    ),
    Case(
        "nothing but malformed rows",
        ("data.train: none of the first 2 rows can be read; correct", "{place}/broken.jsonl:1: malformed: "),
        {"data": {"train": "broken.jsonl"}},
        status=3,
    ),
    Case(
        "an empty data file",
        ("data.train: {place}/empty.jsonl is empty; put rows there, or name another location",),
        {"data": {"train": "empty.jsonl"}},
        status=3,
    ),
    Case(
        "an empty data file, its format given",
        ("data.train: {place}/empty.jsonl is empty; put rows there",),
        {"data": {"train": "empty.jsonl", "format": "text"}},
        command=("run", "job.yaml"),
        status=3,
    ),
    Case(
        "rows of no known format",
        ("data.train: rows have the fields question, response, which", "data.columns"),
        {"data": {"train": "odd.jsonl"}},
        status=3,
    ),
    Case(
        "no answer in any row",
        (
            "data.train: none of the first 10 rows reads as messages; fill or remove these rows: nothing could be learnt",
            "{place}/questions.jsonl:1: empty-answer: no message of `messages` is the assistant's",
        ),
        {"data": {"train": "questions.jsonl"}},
        command=("run", "job.yaml"),
        status=3,
    ),
    Case(
        "no answer that fits",
        (
            "data.train: 20 of 20 rows (100.0%) are rejected",
            "no-target: 20 rows; raise data.sequence_length if the prompt alone fills the row",
            "{place}/long.jsonl:1: no-target: the answer begins after 96 tokens and is cut off",
        ),
        {"data": {"train": "long.jsonl", "overlength": "truncate"}},
        command=("check", "job.yaml"),
        status=3,
    ),
    Case(
        "data that are no Parquet",
        ("{place}/x.parquet: cannot be read as Parquet",),
        {"data": {"train": "x.parquet"}},
        status=3,
    ),
    Case(
        "held-out data that are trained on",
        ("data.validation: {place}/rows.jsonl is in data.train too; a loss on what was trained on says nothing",),
        {"data": {"validation": "rows.jsonl"}},
        status=3,
    ),
    Case(
        "a place that is a file",
        ("{place}/rows.jsonl/prepared", "a part of this path is a file, not a folder; choose another folder"),
        command=("check", "job.yaml"),
        on="file.yaml",
        status=4,
    ),
    Case(
        "a place that cannot be written",
        ("/sys/shoal/prepared", "choose another folder"),
        command=("check", "job.yaml"),
        on="sys.yaml",
        status=4,
    ),
]

STORES = [
    Case(
        "a wrong key",
        ("data.train: s3://shoal/rows.jsonl: the store ", "WRONG_ID and WRONG_SECRET"),
        {"data": {"train": "s3://shoal/rows.jsonl"}},
        on="key.yaml",
        status=4,
        never=("wrong-secret-of-nobody",),
    ),
    Case(
        "a key that is not set",
        ("storage.s3.credentials.access_key_env: the variable NOBODY_SET_ID is not set; set it, or name another",),
        {"data": {"train": "s3://shoal/rows.jsonl"}},
        on="unset.yaml",
        status=4,
    ),
    Case(
        "a missing model beside it: both are told",
        ("model.base: ./nomodel: no such folder", "the variable NOBODY_SET_ID is not set"),
        {"model": {"base": "./nomodel"}, "data": {"train": "s3://shoal/rows.jsonl"}},
        on="unset.yaml",
        status=3,
    ),
    Case(
        "a missing bucket",
        ("data.train: s3://nobucket/rows.jsonl: no bucket 'nobucket'; check its name and the endpoint, or make it",),
        {"data": {"train": "s3://nobucket/rows.jsonl"}},
        on="store.yaml",
        status=4,
    ),
    Case(
        "a missing object",
        (
            "data.train: s3://shoal/bad-inputs/rowz.jsonl: no such object; did you mean s3://shoal/bad-inputs/rows.jsonl?",
        ),
        {"data": {"train": "s3://shoal/bad-inputs/rowz.jsonl"}},
        on="store.yaml",
        status=3,
    ),
    Case(
        "a missing model in the store",
        (
            "model.base: s3://shoal/bad-inputs/model: no such files; check the name; `shoal store ls` lists what is there",
        ),
        {"model": {"base": "s3://shoal/bad-inputs/model"}},
        on="store.yaml",
        status=3,
    ),
    Case(
        "an endpoint that nobody answers at",
        ("http://127.0.0.1:9 cannot be reached; check storage.s3.endpoint_url and the network",),
        {"data": {"train": "s3://shoal/rows.jsonl"}},
        on="nobody.yaml",
        status=4,
    ),
    Case(
        "a list of a store that cannot be reached",
        ("http://127.0.0.1:9 cannot be reached; check storage.s3.endpoint_url and the network",),
        command=("store", "ls", "s3://shoal/"),
        on="nobody.yaml",
        status=4,
    ),
]


@pytest.mark.parametrize("case", DATA, ids=str)
def test_unfit_data_and_models_are_answered(tell: Callable[[Case], None], case: Case) -> None:
    tell(case)


def test_fewer_rows_than_a_batch_are_told_beforehand(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(place, Case("", (), {"data": {"train": "one.jsonl"}}))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["shoal", "plan", "job.yaml", "--on", "here.yaml", "--json"])
    assert cli._status() == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "train.batch_size: 4 rows, but an epoch has about 1: each step is a whole epoch" in notes


@pytest.fixture(scope="module")
def stores(place: Path, s3: S3Spec) -> None:
    """Profiles that reach the real store from outside: with its key, with a wrong one, with none."""
    there = connection(s3)
    write_profile(place / "store.yaml", s3.model_dump())
    outside = {"endpoint_url": there.endpoint, "region": "us-east-1"}
    for name, prefix in (("key", "WRONG"), ("unset", "NOBODY_SET")):
        keys = {"access_key_env": f"{prefix}_ID", "secret_key_env": f"{prefix}_SECRET"}
        write_profile(place / f"{name}.yaml", outside | {"credentials": keys})
    nobody = {
        "endpoint_url": "http://127.0.0.1:9",
        "credentials": {"access_key_env": "WRONG_ID", "secret_key_env": "WRONG_SECRET"},
    }
    write_profile(place / "nobody.yaml", outside | nobody)
    Storage(s3).write("s3://shoal/bad-inputs/rows.jsonl", (place / "rows.jsonl").read_bytes())


@pytest.mark.parametrize("case", STORES, ids=str)
def test_a_store_that_refuses_is_answered(stores: None, tell: Callable[[Case], None], case: Case) -> None:
    tell(case)


def shoal(place: Path, *words: str, before: Callable[[], None] | None = None, shell: str = "") -> tuple[int, str]:
    """A process of its own: (exit status, stderr)."""
    command = [sys.executable, "-m", "shoal", *words]
    if shell:
        command = ["unshare", "--mount", "sh", "-c", f'{shell} && exec "$0" "$@"', *command]
    environment = {**os.environ, "HOME": str(place / "home")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, preexec_fn=before)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr


def test_a_disk_that_fills_up_while_training_says_how_the_run_goes_on(place: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))

    write_job(place, Case("", ()))
    status, said = shoal(place, "run", "job.yaml", "--on", "here.yaml", before=limit)
    assert status == 4
    first, second = said.splitlines()
    assert "File too large" in first
    assert "free space, or set storage.cache" in first
    run = re.fullmatch(r"error: (tiny-\S+): is kept; go on with  shoal resume (\S+) --on here.yaml", second)
    assert run and run[1] == run[2]
    assert (place / "runs" / run[1] / "plan.json").exists()


CAN_MOUNT = (
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    if shutil.which("unshare")
    else False
)


@pytest.mark.skipif(not CAN_MOUNT, reason="may not mount a small disk here")
@pytest.mark.parametrize("full", ["prepared", "store"])
def test_a_full_disk_is_told_before_anything_is_trained(place: Path, tmp_path: Path, full: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    s3 = {"server": "embedded", "folder": str(disk / "store")} if full == "store" else None
    places = {full: str(disk / full)} if full != "store" else {"prepared": "s3://shoal/prepared"}
    write_profile(tmp_path / "full.yaml", s3, **{"runs": str(tmp_path), "cache": str(tmp_path / "cache"), **places})
    write_job(place, Case("", (), {"data": {"sequence_length": 80}}))
    fill = f"mount -t tmpfs -o size=64k tmpfs {disk} && ! head -c 1M /dev/zero 2>/dev/null > {disk}/all"
    status, said = shoal(place, "check", "job.yaml", "--on", str(tmp_path / "full.yaml"), shell=fill)
    assert status == 4
    [line] = said.splitlines()
    assert line.startswith(f"error: {disk}/")
    assert "the disk is full; free space there" in line or "its disk has only 0 MiB left; free space there" in line
