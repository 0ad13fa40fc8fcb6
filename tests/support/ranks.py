"""Runs a worker script as real gloo processes on this machine, one thread each."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_ranks(script: Path, world: int, *arguments: str, timeout_s: float = 400) -> None:
    """`python SCRIPT ARGUMENTS...` once per rank, with torchrun's environment variables; fails with the ranks' output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout_s)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [output for rank, output in zip(ranks, outputs, strict=True) if rank.returncode != 0]
    assert not failed, failed[0][-6000:]
