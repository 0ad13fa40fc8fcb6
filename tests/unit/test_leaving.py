"""What a pod does before it ends, on processes as /proc shows them and on real ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.backends import leaving
from shoal.backends.leaving import Process, is_driver, is_ray_start, is_raylet, processes
from shoal.cli.interrupts import Interrupts

DRIVER = Process(7, ("/opt/shoal/bin/python", "/opt/shoal/bin/shoal", "run", "/etc/shoal/job.yaml", "--run-id", "a"))
SWEEP = Process(7, ("python", "/opt/shoal/bin/shoal", "sweep", "run", "/etc/shoal/job.yaml", "--run-id", "a"))
SHELL = Process(6, ("/bin/sh", "-c", "shoal run /etc/shoal/job.yaml --run-id a"))
RAYLET = Process(9, ("/x/ray/core/src/ray/raylet/raylet", "--node_id=abc", "--gcs-address=10.0.0.1:6379"))
START = Process(2, ("/opt/shoal/bin/python", "/opt/shoal/bin/ray", "start", "--address=head:6379", "--block"))
BASH = Process(1, ("/bin/bash", "-c", "--", "ulimit -n 65536; ray start --address=head:6379 --block"))


def test_each_process_is_known_for_what_it_is() -> None:
    everything = (DRIVER, SWEEP, SHELL, RAYLET, START, BASH)
    assert [one for one in everything if is_driver(one)] == [DRIVER, SWEEP]
    assert [one for one in everything if is_raylet(one)] == [RAYLET]
    assert [one for one in everything if is_ray_start(one)] == [START]
    assert (RAYLET.value("--node-id"), RAYLET.value("--gcs-address")) == ("abc", "10.0.0.1:6379")


def test_the_dead_and_the_nameless_are_not_seen(tmp_path: Path) -> None:
    for pid, arguments, state in ((1, "a\0b\0", "S"), (2, "dead\0", "Z"), (3, "", "S")):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_text(arguments)
        (folder / "stat").write_text(f"{pid} (a (name)) {state} 1 1")
    (tmp_path / "self").mkdir()
    assert list(processes(tmp_path)) == [Process(1, ("a", "b"))]


@pytest.fixture
def driver(tmp_path: Path) -> subprocess.Popen[str]:
    """A `shoal run ... --run-id` that takes a moment to save when it is asked to leave."""
    script = tmp_path / "shoal"
    script.write_text(
        "import signal, sys, time\n"
        "def leave(*_):\n    time.sleep(0.3)\n    print('saved', flush=True)\n    sys.exit(143)\n"
        "signal.signal(signal.SIGUSR1, leave)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, str(script), "run", "job.yaml", "--run-id", "a-test"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout and started.stdout.readline() == "up\n"
    return started


def only(pid: int):
    """The processes of a pod that holds this one alone."""
    found = processes

    def here(proc: Path = leaving.PROC):
        return (one for one in found(proc) if one.pid == pid)

    return here


def test_a_driver_saves_before_its_pod_ends(
    driver: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leaving, "processes", only(driver.pid))
    leaving.main(["driver", "20"])
    assert driver.stdout and driver.stdout.read() == "saved\n"
    assert driver.wait(5) == 143
    assert "the driver has left" in capsys.readouterr().out


def test_a_driver_that_stays_is_not_waited_for_beyond_the_time(
    driver: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.kill(driver.pid, signal.SIGSTOP)  # it hears nothing
    try:
        monkeypatch.setattr(leaving, "processes", only(driver.pid))
        began = time.monotonic()
        leaving.main(["driver", "0.5"])
        assert time.monotonic() - began < 10
        assert "still there" in capsys.readouterr().out
    finally:
        driver.kill()
        driver.wait()


def test_a_pod_without_ray_or_driver_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "processes", lambda proc=None: iter(()))
    leaving.main(["driver", "60"])
    leaving.main(["node", "60"])


def test_a_driver_that_is_told_twice_to_leave_its_pod_still_saves() -> None:
    """By Ray's job server with SIGTERM, and by the preStop hook: the second is no hurry, a second SIGTERM is."""
    heard = []
    with Interrupts(heard.append) as interrupts:
        interrupts.on_event({"kind": "run", "run": "a-run"})
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert interrupts.stop.is_set() and interrupts.status == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_hook_alone_ends_as_sigterm_does() -> None:
    with Interrupts(lambda event: None) as interrupts:
        interrupts.on_event({"kind": "run", "run": "a-run"})
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupts.stop.is_set() and interrupts.status == 143
