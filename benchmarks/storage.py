"""What object storage gives through each client: Shoal's storage, obstore alone, s3fs and pyarrow, in turns.

    python benchmarks/storage.py            a 1 GiB object, five rounds
    python benchmarks/storage.py --quick    128 MiB, one round

All read the same objects of the same SeaweedFS on loopback, each in a process of its own, in turns of a second or two.
The last line printed is one JSON object: `value` is what Shoal reads of random ranges, and `ratio` Shoal's ranges per
second over each client's: the median over turns, the geometric mean over 4 KiB and 64 KiB. `obstore_apart` is obstore
told not to join ranges that lie near each other.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

from materials import BENCH, ROOT, environment
from running import finish

from shoal import store
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage

FOLDER = BENCH / "storage"
PEERS = ["obstore==0.12.1", "s3fs==2026.9.0", "pyarrow==26.0.1"]
CLIENTS = ("shoal", "obstore", "obstore_apart", "s3fs", "pyarrow")
RANGES = {4096: 1000, 65536: 500}
"""Bytes of a range, and how many are asked for at once."""
SMALL = 300
SMALL_BYTES = 8 << 10
UPLOAD_BYTES = 256 << 20
GOAL = 0.9


def peers() -> Path:
    """The python of an environment with the other clients in it."""
    folder = FOLDER / "peers"
    done = folder / "installed"
    if not done.exists() or done.read_text() != "\n".join(PEERS):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *PEERS], check=True)
        done.write_text("\n".join(PEERS))
    return folder / "bin" / "python"


def materials(s3: S3Spec, size: int) -> dict:
    """Puts the objects there, once; what every client is told."""
    storage, server = Storage(s3), store.connection(s3)
    big, small = f"shoal/bench/big-{size}", [f"shoal/bench/small/{number}" for number in range(SMALL)]
    file = FOLDER / "file"
    if not file.exists() or file.stat().st_size != min(size, UPLOAD_BYTES):
        file.write_bytes(os.urandom(min(size, UPLOAD_BYTES)))
    if storage.find(f"s3://{big}") is None:
        whole = FOLDER / "whole"
        with whole.open("wb") as out:
            for _ in range(0, size, 1 << 24):
                out.write(os.urandom(1 << 24))
        storage.upload(whole, f"s3://{big}")
        whole.unlink()
    for key in small:
        if storage.find(f"s3://{key}") is None:
            storage.write(f"s3://{key}", os.urandom(SMALL_BYTES))
    places = random.Random(0)
    return {
        "folder": s3.folder,
        "endpoint": server.endpoint,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "big": big,
        "size": size,
        "small": small,
        "file": str(file),
        "ranges": {length: [places.randrange(size - length) for _ in range(count)] for length, count in RANGES.items()},
    }


class Peer:
    """A client's process, which waits until it is asked."""

    def __init__(self, client: str, settings: Path):
        python = sys.executable if client == "shoal" else str(peers())
        command = [python, str(ROOT / "benchmarks" / "peers" / "stores.py"), client, str(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment()
        )
        self.figures: dict[str, list[float]] = {}
        self._take()

    def ask(self, measure: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{measure}\n")
        self._take()

    def close(self) -> None:
        self._process.communicate()

    def _take(self) -> None:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a client ended; its words are above")
        for name, figure in json.loads(line).items():
            self.figures.setdefault(name, []).append(figure)

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name])


def in_turns(clients: dict[str, Peer], measure: str, times: int) -> None:
    """Each client at the same measure, one after another, beginning with another each time: all meet the same noise."""
    names = list(clients)
    for number in range(times):
        for one in range(len(names)):
            clients[names[(number + one) % len(names)]].ask(measure)


def ratio(clients: dict[str, Peer], other: str) -> float:
    """Shoal's random ranges per second over another client's: the median over turns, its geometric mean over lengths."""
    return statistics.geometric_mean(
        statistics.median(
            ours / theirs
            for ours, theirs in zip(clients["shoal"].figures[name], clients[other].figures[name], strict=True)
        )
        for name in (f"ranges_{length}_per_s" for length in RANGES)
    )


def score(peer: Peer) -> float:
    return statistics.geometric_mean(peer.median(f"ranges_{length}_per_s") for length in RANGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each client reads and writes much (5)")
    parser.add_argument("--size-mib", type=int, default=1024, help="the large object (1024)")
    parser.add_argument("--quick", action="store_true", help="one round with 128 MiB")
    parser.add_argument("--out", type=Path, help="where the result is kept; default .bench/results/storage.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.size_mib = 1, 128
    FOLDER.mkdir(parents=True, exist_ok=True)
    s3 = S3Spec(server="embedded", folder=str(FOLDER / "store"))
    peers()
    with store.serving(s3):
        settings = FOLDER / "settings.json"
        settings.touch(mode=0o600)
        settings.write_text(json.dumps(materials(s3, given.size_mib << 20)))
        clients = {client: Peer(client, settings) for client in CLIENTS}
        # First what is measured against the bound, and many times: a range's round trip is short and easily disturbed.
        for measure in (*(f"ranges_{length}" for length in RANGES), "small"):
            in_turns(clients, measure, 3 * given.rounds)
        for measure in ("large", "upload", "memory"):
            in_turns(clients, measure, given.rounds if measure != "memory" else 1)
        for one in clients.values():
            one.close()
    others = CLIENTS[1:]
    ratios = {other: round(ratio(clients, other), 3) for other in others}
    finish(
        {
            "name": "storage",
            "value": round(score(clients["shoal"]), 1),
            "unit": "random ranges of 4 and 64 KiB per second, many asked for at once",
            "against": {other: round(score(clients[other]), 1) for other in others},
            "ratio": ratios,
            "goal": dict.fromkeys(others, GOAL),
            "met": min(ratios.values()) >= GOAL,
            "repeats": 3 * given.rounds,
            "quick": given.quick,
            "size_mib": given.size_mib,
            "medians": {
                client: {name: round(peer.median(name), 3) for name in peer.figures} for client, peer in clients.items()
            },
        },
        given.out,
    )


if __name__ == "__main__":
    main()
