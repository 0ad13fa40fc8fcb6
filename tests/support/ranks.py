"""Runs a worker script as real gloo processes on this machine, one thread each."""

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from pathlib import Path

IMPORTED = ["shoal.train.entry", "shoal.train.saving", "deepspeed"]
"""What every script imports: once in the server that ranks are forked from, rather than for seconds in each."""


def run_ranks(script: Path, world: int, *arguments: str, timeout_s: float = 400) -> None:
    """`python SCRIPT ARGUMENTS...` once per rank, with torchrun's environment variables; fails with the ranks' output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(world)]
        environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        ranks = [
            context.Process(target=_rank, args=([str(script), *arguments], environment, str(log)))
            for environment, log in zip(environments, logs, strict=True)
        ]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + timeout_s
        try:
            for rank in ranks:
                rank.join(max(0.0, end - time.monotonic()))
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        failed = [log.read_text() for rank, log in zip(ranks, logs, strict=True) if rank.exitcode != 0]
    assert not failed, failed[0][-6000:]


def _rank(command: list[str], environment: dict[str, str], log: str) -> None:
    """In a fork of the server: as if `python *command` had been started with that environment."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    runpy.run_path(command[0], run_name="__main__")
    atexit._run_exitfuncs()  # which a forked process does not do by itself
