"""Run ids, the names of a run's files, and finding a run by the beginning of its id."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from shoal.cli.standing import survey
from shoal.errors import Forbidden, SpecError
from shoal.runs import RunFolder, checked_id, find_run, list_runs, new_run_id
from shoal.storage import Storage
from shoal.submit.found import find
from shoal.tune.folder import find_sweep

IDS = ["alpaca-20261121-090000-aaaa", "alpaca-20261121-090000-bbbb", "zebra-7b-20261120-235959-0q9z"]


@pytest.fixture
def runs(tmp_path: Path) -> str:
    for run_id in IDS:
        Storage().write(RunFolder(Storage(), f"{tmp_path}/{run_id}").plan, b"{}")
    (tmp_path / "alpaca-20261121-100000-cccc").mkdir()
    Storage().write(f"{tmp_path}/Something_else/plan.json", b"{}")
    return str(tmp_path)


def test_the_id_sorts_by_time_within_a_name() -> None:
    assert new_run_id("my-run", datetime(2026, 1, 2, 3, 4, 5), "x9a0") == "my-run-20260102-030405-x9a0"


def test_every_file_lies_in_the_folder() -> None:
    run = RunFolder(Storage(), "s3://shoal/runs/a-20260102-030405-x9a0")
    files = [run.plan, run.job, run.metrics, run.events, run.result, run.report, run.manifest(7)]
    folders = [run.tensorboard, run.checkpoints, run.checkpoint(7), run.exports, run.export("adapter")]
    assert run.id == "a-20260102-030405-x9a0"
    assert all(url.startswith(run.url + "/") for url in files + folders)
    assert all(url.endswith("/") for url in folders) and not any(url.endswith("/") for url in files)
    assert len(set(files + folders)) == len(files + folders)
    assert run.manifest(7) == f"{run.url}/checkpoints/00000007/manifest.json"
    assert sorted([run.checkpoint(100), run.checkpoint(9), run.checkpoint(20)])[0] == run.checkpoint(9)


def test_runs_are_listed_oldest_first(runs: str) -> None:
    assert [run.id for run in list_runs(Storage(), runs)] == [IDS[2], IDS[0], IDS[1]]
    assert list_runs(Storage(), runs + "/none") == []


def test_an_id_that_somebody_chose_is_listed_first(runs: str) -> None:
    Storage().write(f"{runs}/nightly-7/plan.json", b"{}")
    assert [run.id for run in list_runs(Storage(), runs)] == ["nightly-7", IDS[2], IDS[0], IDS[1]]
    assert checked_id("nightly-7") == "nightly-7"
    for wrong in ("", "Nightly", "a/b", "-a", "x" * 64):
        with pytest.raises(SpecError, match="cannot name a run"):
            checked_id(wrong)


def test_a_unique_beginning_names_a_run(runs: str) -> None:
    assert find_run(Storage(), runs, "zeb").id == IDS[2]
    assert find_run(Storage(), runs + "/", IDS[0]).url == f"{runs}/{IDS[0]}"


@pytest.mark.parametrize(
    ("beginning", "told"),
    [
        ("alp", f"alp: 2 runs begin so; name one of {IDS[0]}, {IDS[1]}"),
        ("zebar", f"did you mean {IDS[2]}?"),
        ("q", f"the newest are {IDS[2]}, {IDS[0]}, {IDS[1]}"),
        (" ", "no run was named"),
    ],
)
def test_another_beginning_is_answered_with_what_there_is(runs: str, beginning: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        find_run(Storage(), runs, beginning)
    assert told in str(caught.value)


def test_a_sweep_is_no_run_and_its_trials_are(runs: str) -> None:
    sweep = "alpha-20260301-000000-aaaa"
    for name in (f"{sweep}/sweep.json", f"{sweep}-0001/plan.json", f"{sweep}-0002/plan.json"):
        Storage().write(f"{runs}/{name}", b"{}")
    for beginning in (sweep, "alpha-202603"):
        with pytest.raises(SpecError, match=f"{sweep}: is a sweep, not a run; .* `shoal sweep show {sweep}`"):
            find_run(Storage(), runs, beginning)
    assert find_run(Storage(), runs, f"{sweep}-0002").id == f"{sweep}-0002"


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there are no runs in"):
        find_run(Storage(), str(tmp_path), "a")


def test_a_full_id_wins_over_longer_ones(tmp_path: Path) -> None:
    ids = ["a-20260102-030405-x9a0", "a-20260102-030405-x9a0-20260102-030405-zzzz"]
    for run_id in ids:
        Storage().write(f"{tmp_path}/{run_id}/plan.json", b"{}")
    assert find_run(Storage(), str(tmp_path), ids[0]).id == ids[0]


@contextmanager
def somebody() -> Iterator[None]:
    """A user for whom the rights of files count: root has all."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    """Runs of several people in one folder that all may enter."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-runs-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for one in folder.iterdir():
        one.chmod(0o755)
    shutil.rmtree(folder)


def test_what_somebody_else_keeps_to_himself_hides_no_other_run(shared: Path) -> None:
    storage = Storage()
    for name in (
        "mine-1/plan.json",
        "mine-2/sweep.json",
        "theirs-1/plan.json",
        "half-1/plan.json",
        "half-1/result.json",
    ):
        storage.write(f"{shared}/{name}", b"{}")
    survey(storage, str(shared))  # what it imports is there from now on, and need not be readable for somebody
    (shared / "theirs-1").chmod(0)
    (shared / "half-1" / "result.json").chmod(0)
    with somebody():
        states = {one.id: one.state for one in survey(storage, str(shared))}
        found = [find_run(storage, str(shared), "mine-1").id, find("mine-1", storage, str(shared), None).id]
        with pytest.raises(SpecError, match=r"no run in .* begins so"):
            find_run(storage, str(shared), "theirs")
        with pytest.raises(Forbidden, match="no permission; change the rights"):
            storage.read(f"{shared}/half-1/result.json")
        assert find_sweep(storage, str(shared), "mine").id == "mine-2"
    assert states == {"mine-1": "started", "mine-2": "unreadable", "theirs-1": "unreadable", "half-1": "unreadable"}
    assert found == ["mine-1", "mine-1"]
