"""A driver that is told to leave has the time that its save takes, though Ray thinks of SIGTERM as a crash."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray
PROGRAM = """
import os, signal, sys, threading, time
import ray
from shoal.cli.interrupts import Interrupts

with Interrupts(lambda event: None) as interrupts:
    up = threading.Event()
    def own_ray():
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        up.set()
        time.sleep(600)
    threading.Thread(target=own_ray, daemon=True).start()
    up.wait()
    if "early" in sys.argv:
        interrupts.run = "a"
    else:
        interrupts.on_event({"kind": "run", "run": "a"})
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    print("saved", interrupts.stop.is_set(), interrupts.status, flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("when", ["late", "early"])
def test_sigterm_leaves_time_to_save(when: str) -> None:
    """`early`: Ray came up after the handlers were set for the last time."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, when], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "saved True 143\n", done.stderr
    assert when == "early" or "SIGTERM received" not in done.stderr
