"""TRL's best-fit-decreasing packing of samples of given lengths; prints one JSON object.

    python benchmarks/peers/trl_packing.py --lengths LENGTHS.npy --count N --sequence-length L [--whole]

The tokens are of one byte, so that as little as possible is copied around. As SFTTrainer calls it, TRL packs a thousand
samples at a time; with --whole all samples at once, as is needed for rows that are full.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, disable_progress_bars
from trl.data_utils import pack_dataset


def peak_bytes() -> int:
    """This program's own high-water mark; getrusage's would begin at that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    disable_progress_bars()
    imported = peak_bytes()
    lengths = np.load(given.lengths, mmap_mode="r")[: given.count]
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    tokens = pa.array(np.zeros(offsets[-1], np.int8))
    # list<> holds up to 2**31 tokens; TRL keeps the kind of list it is given.
    kind, width = (pa.ListArray, np.int32) if offsets[-1] < 2**31 else (pa.LargeListArray, np.int64)
    dataset = Dataset(pa.table({"input_ids": kind.from_arrays(pa.array(offsets.astype(width)), tokens)}))
    more = {"batch_size": given.count, "writer_batch_size": given.count} if given.whole else {}
    with tempfile.TemporaryDirectory() as folder:
        before = peak_bytes()
        began, cpu = time.perf_counter(), time.process_time()
        cache = str(Path(folder) / "packed.arrow")
        packed = pack_dataset(dataset, given.sequence_length, "bfd", {"cache_file_name": cache, **more})
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        rows = len(packed)
        del packed
    body = {
        "samples": given.count,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rows": rows,
        "efficiency": int(offsets[-1]) / (rows * given.sequence_length),
        "peak_bytes": peak_bytes(),
        "bytes_imported": imported,
        "bytes_before": before,
    }
    print(json.dumps(body))


if __name__ == "__main__":
    main()
