"""Who stands still: a verdict from heartbeats alone, and what becomes of a process that hangs."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shoal.backends.mailbox import Mailbox
from shoal.backends.watch import GONE, PATIENCE, Beat, end, hangs, memory_in_use
from shoal.train.world import Directive, Pulse

BEAT = Beat(
    rank=0, node="a", pid=1, phase="computing", step=7, marks=70, waiting=False, still_s=0.0, memory=0.5, asked_by="",
    attempt=1,
)  # fmt: skip
LIMIT = 60.0


def group(**changes: dict) -> dict[int, Beat]:
    """Three ranks; `r1={...}` changes rank 1."""
    return {rank: replace(BEAT, rank=rank, **changes.get(f"r{rank}", {})) for rank in range(3)}


def guilty(beats: dict[int, Beat], silent: dict[int, float] | None = None) -> list[int]:
    return [hang.beat.rank for hang in hangs(beats, {0: 1.0, 1: 1.0, 2: 1.0} | (silent or {}), LIMIT)]


def test_a_group_that_moves_is_left_alone() -> None:
    assert guilty(group()) == []
    assert guilty(group(r0={"still_s": 500.0}, r1={"still_s": 500.0})) == [], "rank 2 has just done something"
    assert hangs({}, {}, LIMIT) == []


def test_a_rank_without_a_heartbeat_is_the_one() -> None:
    assert guilty(group(), {1: 61.0}) == [1]
    assert guilty(group(r1={"phase": "loading"}), {1: 61.0}) == [], "a long phase has more time"
    assert guilty(group(r1={"phase": "loading"}), {1: PATIENCE * LIMIT + 1}) == [1]


def test_of_ranks_that_stand_still_those_behind_are_the_ones() -> None:
    waits = {"still_s": 70.0, "waiting": True, "marks": 72}
    stuck = {"still_s": 71.0}
    assert guilty(group(r0=waits, r1=stuck, r2=waits)) == [1]
    assert guilty(group(r0=waits, r1=waits, r2=waits)) == [0, 1, 2], "the network between them"
    inside = {"still_s": 70.0, "marks": 72}  # in a collective of DeepSpeed's, which is none of ours
    assert guilty(group(r0=inside, r1=stuck, r2=inside)) == [1]


def test_the_verdict_names_rank_node_and_step() -> None:
    [hang] = hangs(group(r1={"node": "host-b", "pid": 9}), {0: 0.0, 1: 62.0, 2: 0.0}, LIMIT)
    told = replace(hang, state="stopped by a signal").message
    assert told == (
        "worker 1 hangs on host-b after step 7 (its whole process stands, stopped by a signal): no progress for 62 s "
        "while 2 wait for it"
    )


SLEEPER = """
import faulthandler, signal, time
faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
def stuck_here():
    print("up", flush=True)
    time.sleep(600)
stuck_here()
"""


@pytest.mark.parametrize(("stopped", "state"), [(False, ""), (True, "stopped by a signal")])
def test_a_process_that_hangs_leaves_its_stack_and_is_killed(tmp_path: Path, stopped: bool, state: str) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdout and process.stdout.readline() == b"up\n"
    if stopped:
        os.kill(process.pid, signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
    found, stack = end(process.pid)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert found == state
    assert ("stuck_here" in stack) == (not stopped)
    assert end(process.pid) == (GONE, "")


def test_memory_is_a_share() -> None:
    assert 0.0 < memory_in_use() <= 1.0


def test_a_pulse_keeps_the_strongest_wish_and_who_had_it() -> None:
    pulse = Pulse()
    pulse.ask(Directive.YIELD, "SIGTERM")
    pulse.ask(Directive.SAVE, "nobody")
    pulse.ask(Directive.YIELD, "its node")
    assert (pulse.wish, pulse.asked_by) == (Directive.YIELD, "SIGTERM")
    with pulse.collective():
        assert pulse.waiting and pulse.marks == 1
    assert not pulse.waiting and pulse.marks == 2


def test_a_group_of_another_size_counts_anew():
    mailbox = Mailbox(hang_timeout_s=60)
    mailbox.join(rank=1, size=2, pid=11, node_id="a", actor_id="a1")  # rank 0 never came
    mailbox.join(rank=0, size=1, pid=12, node_id="a", actor_id="a2")
    assert [event["pids"] for event in mailbox.events] == [{0: 12}]
