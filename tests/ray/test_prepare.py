"""Preparing data by Ray tasks: the same files as inline, whoever was first and whoever died."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from preparations import contents, data_plan, jsonl, numbered, source, write_sources
from ray import cloudpickle

from shoal.backends.ray_local import RayLocal
from shoal.backends.ray_train import TASKS_PER_CPU
from shoal.data.prepare import prepare
from shoal.errors import DataError
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def backend() -> Iterator[RayLocal]:
    backend = RayLocal(ClusterProfile(kind="local", workers=2))
    backend.start()
    yield backend
    backend.close()


@pytest.fixture
def plan(tmp_path: Path, tokenizer_folder: Path) -> Plan:
    rows = [*numbered(*range(400)), b"{\n"]
    objects = write_sources(tmp_path, {f"{name}.jsonl": jsonl(*rows) for name in "abcde"})
    return data_plan(tmp_path, tokenizer_folder, (source(objects),), validation_fraction=0.1)


def test_ray_prepares_the_same_files_as_one_process(backend: RayLocal, plan: Plan, tmp_path: Path) -> None:
    events = []
    found = backend.prepare(plan, Storage(), events.append)
    assert (found.rows, found.rejected) == (5 * 401, {"malformed": 5})
    assert {event["phase"] for event in events} == {"preparing"}
    assert events[-1]["rows"] == found.rows
    elsewhere = plan.storage.model_copy(update={"prepared": str(tmp_path / "other")})
    prepare(plan.model_copy(update={"storage": elsewhere}), Storage())
    assert contents(Path(plan.storage.prepared)) == contents(tmp_path / "other")


def test_a_mistake_in_one_unit_comes_out_as_itself_and_the_others_are_kept(backend: RayLocal, plan: Plan) -> None:
    path = Path(plan.trajectory.data.train[0].objects[4].url)
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(jsonl(*numbered(1)))
    with pytest.raises(DataError, match=r"e\.jsonl: was replaced since the plan was made"):
        backend.prepare(plan, Storage(), lambda event: None)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    events = []
    assert backend.prepare(plan, Storage(), events.append).rows == 5 * 401


def counts_and_dies_once(marker: str) -> Iterator[int]:
    for number in range(6):
        if number == 4 and not Path(marker).exists():
            Path(marker).write_text("died")
            time.sleep(1)  # what was given so far has arrived
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


def test_a_task_whose_process_is_killed_is_done_again(backend: RayLocal, tmp_path: Path) -> None:
    assert list(backend.map(counts_and_dies_once, [str(tmp_path / "marker")])) == [0, 1, 2, 3, 4, 5]


def slow(task: tuple[str, int]) -> Iterator[int]:
    folder, number = task
    Path(folder, str(number)).touch()
    time.sleep(0.3)
    yield number


def test_few_tasks_wait_at_a_time(backend: RayLocal, tmp_path: Path) -> None:
    found = backend.map(slow, [(str(tmp_path), number) for number in range(1000)])
    assert next(found) < 1000
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) <= TASKS_PER_CPU * (os.cpu_count() or 1)
    found.close()
