"""One object-store client at its measures, in a process of its own: a line in names a measure, a line out is its JSON.

    python benchmarks/peers/stores.py CLIENT SETTINGS.json

CLIENT is shoal, obstore, obstore_apart, s3fs or pyarrow. Each is used as its documentation says for speed: large reads in
blocks of 8 MiB, four at once, in bounded memory; many small ranges in the call made for that, or else 16 threads.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK = 8 << 20
AT_ONCE = 4
THREADS = 16


class Shoal:
    def __init__(self, given: dict[str, Any]):
        from shoal.spec.cluster import S3Spec
        from shoal.storage import Storage

        self.storage = Storage(S3Spec(server="embedded", folder=given["folder"]))

    def large(self, key: str, size: int) -> Iterator[Any]:
        with self.storage.open(f"s3://{key}") as stream:
            while block := stream.read(BLOCK):
                yield block

    def ranges(self, key: str, starts: list[int], length: int) -> list[Any]:
        return self.storage.read_ranges(f"s3://{key}", [(start, start + length) for start in starts])

    def get(self, key: str) -> Any:
        return self.storage.read(f"s3://{key}")

    def upload(self, path: Path, key: str) -> None:
        self.storage.upload(path, f"s3://{key}")


class Obstore:
    coalesce: dict[str, int] = {}

    def __init__(self, given: dict[str, Any]):
        import obstore
        from obstore.store import S3Store

        self.obstore = obstore
        keys = {"access_key_id": given["access_key"], "secret_access_key": given["secret_key"]}
        options = {"allow_http": True, "timeout": "300s"}
        self.store = S3Store(
            "shoal", config={"endpoint": given["endpoint"], "region": "us-east-1", **keys}, client_options=options
        )
        self.threads = ThreadPoolExecutor(AT_ONCE)

    def _block(self, key: str, start: int, end: int) -> bytes:
        return bytes(self.obstore.get_range(self.store, key, start=start, end=end))

    def large(self, key: str, size: int) -> Iterator[Any]:
        name = key.partition("/")[2]
        for window in windows(size):
            yield from self.threads.map(lambda one: self._block(name, *one), window)

    def ranges(self, key: str, starts: list[int], length: int) -> list[Any]:
        name, ends = key.partition("/")[2], [start + length for start in starts]
        found = self.obstore.get_ranges(self.store, name, starts=starts, ends=ends, **self.coalesce)
        return [bytes(one) for one in found]

    def get(self, key: str) -> Any:
        return bytes(self.obstore.get(self.store, key.partition("/")[2]).bytes())

    def upload(self, path: Path, key: str) -> None:
        self.obstore.put(self.store, key.partition("/")[2], path)


class ObstoreApart(Obstore):
    """Never joins ranges that lie near each other."""

    coalesce = {"coalesce": 0}


class S3fs:
    def __init__(self, given: dict[str, Any]):
        from s3fs import S3FileSystem

        self.fs = S3FileSystem(
            key=given["access_key"],
            secret=given["secret_key"],
            endpoint_url=given["endpoint"],
            client_kwargs={"region_name": "us-east-1"},
            config_kwargs={"max_pool_connections": 32},
            use_listings_cache=False,
        )

    def large(self, key: str, size: int) -> Iterator[Any]:
        for window in windows(size):
            starts, ends = zip(*window, strict=True)
            yield from self.fs.cat_ranges([key] * len(window), list(starts), list(ends), on_error="raise")

    def ranges(self, key: str, starts: list[int], length: int) -> list[Any]:
        ends = [start + length for start in starts]
        return self.fs.cat_ranges([key] * len(starts), starts, ends, batch_size=THREADS, on_error="raise")

    def get(self, key: str) -> Any:
        return self.fs.cat_file(key)

    def upload(self, path: Path, key: str) -> None:
        self.fs.put_file(str(path), key)


class Pyarrow:
    def __init__(self, given: dict[str, Any]):
        from pyarrow.fs import S3FileSystem

        scheme, _, host = given["endpoint"].partition("://")
        self.fs = S3FileSystem(
            access_key=given["access_key"],
            secret_key=given["secret_key"],
            endpoint_override=host,
            scheme=scheme,
            region="us-east-1",
        )
        self.threads = ThreadPoolExecutor(THREADS)

    def large(self, key: str, size: int) -> Iterator[Any]:
        with self.fs.open_input_file(key) as file:
            for window in windows(size):
                yield from self.threads.map(lambda one: file.read_at(one[1] - one[0], one[0]), window)

    def ranges(self, key: str, starts: list[int], length: int) -> list[Any]:
        with self.fs.open_input_file(key) as file:
            return list(self.threads.map(lambda start: file.read_at(length, start), starts))

    def get(self, key: str) -> Any:
        with self.fs.open_input_file(key) as file:
            return file.readall()

    def upload(self, path: Path, key: str) -> None:
        with path.open("rb") as source, self.fs.open_output_stream(key) as target:
            while block := source.read(BLOCK):
                target.write(block)


CLIENTS = {"shoal": Shoal, "obstore": Obstore, "obstore_apart": ObstoreApart, "s3fs": S3fs, "pyarrow": Pyarrow}


def windows(size: int) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, size, BLOCK * AT_ONCE):
        yield [(start, min(start + BLOCK, size)) for start in range(first, min(first + BLOCK * AT_ONCE, size), BLOCK)]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and CPU-seconds of all this process's threads."""
    began, used = time.perf_counter(), cpu()
    call()
    return time.perf_counter() - began, cpu() - used


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mib() -> float:
    """Of this process alone: what getrusage says includes the parent it was started from."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measures(client: Any, name: str, given: dict[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    big, size, file = given["big"], given["size"], Path(given["file"])

    def large() -> dict[str, float]:
        before = peak_mib()

        def read() -> None:
            assert sum(len(block) for block in client.large(big, size)) == size

        seconds, used = timed(read)
        rate = {"large_mib_per_s": size / 2**20 / seconds, "large_cpu_s_per_gib": used / (size / 2**30)}
        return rate | {"large_more_memory_mib": peak_mib() - before}

    def ranges(length: int) -> dict[str, float]:
        starts = given["ranges"][str(length)]

        def read() -> None:
            assert {len(one) for one in client.ranges(big, starts, length)} == {length}

        seconds, used = timed(read)
        return {f"ranges_{length}_per_s": len(starts) / seconds, f"ranges_{length}_cpu_us": used / len(starts) * 1e6}

    def small() -> dict[str, float]:
        seconds, _ = timed(lambda: [client.get(key) for key in given["small"]])
        return {"small_gets_per_s": len(given["small"]) / seconds}

    def upload() -> dict[str, float]:
        seconds, used = timed(lambda: client.upload(file, f"shoal/bench/up-{name}"))
        sent = file.stat().st_size
        return {"upload_mib_per_s": sent / 2**20 / seconds, "upload_cpu_s_per_gib": used / (sent / 2**30)}

    lengths = [int(length) for length in given["ranges"]]
    of_lengths = {f"ranges_{length}": lambda length=length: ranges(length) for length in lengths}
    return {"large": large, **of_lengths, "small": small, "upload": upload, "memory": lambda: {"peak_mib": peak_mib()}}


def main() -> None:
    name, given = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    began = time.perf_counter()
    client = CLIENTS[name](given)
    made = time.perf_counter() - began
    client.get(given["small"][0])
    print(json.dumps({"client_s": made, "first_object_s": time.perf_counter() - began}), flush=True)
    known = measures(client, name, given)
    for line in sys.stdin:
        print(json.dumps(known[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
