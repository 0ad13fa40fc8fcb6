"""Writes rows of tokens in the format of one of Shoal's peers; run in the peers' environment.

    python benchmarks/peers/write_rows.py {datasets,mosaicml-streaming,litdata} --rows FOLDER --out FOLDER

One file, or as near as the format lets itself be told, per source object. The peers' rows are their tokens alone.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np


def write_datasets(tokens: np.ndarray, starts: np.ndarray, bounds: list[int], out: Path) -> None:
    """Parquet as `Dataset.to_parquet` and the hub have it: row groups of 1,000 rows, snappy."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, (first, last) in enumerate(pairwise(bounds)):
        offsets = (starts[first : last + 1] - starts[first]).astype(np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.array(tokens[starts[first] : starts[last]])))
        pq.write_table(pa.table({"tokens": column}), out / f"part-{number:05d}.parquet", row_group_size=1000)


def write_mosaicml(tokens: np.ndarray, starts: np.ndarray, bounds: list[int], out: Path) -> None:
    from mosaicml import streaming  # the file beside this one

    size = int((starts[-1] - starts[0]) * 2 / (len(bounds) - 1))
    with streaming.MDSWriter(out=str(out), columns={"tokens": "ndarray:uint16"}, size_limit=size) as writer:
        for row in range(len(starts) - 1):
            writer.write({"tokens": np.array(tokens[starts[row] : starts[row + 1]])})


class Row:
    """One row by its number; picklable, for litdata's worker."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.opened: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, number: int) -> dict:
        if self.opened is None:
            self.opened = opened(self.folder)
        tokens, starts = self.opened
        return {"tokens": np.array(tokens[starts[number] : starts[number + 1]])}


def write_litdata(folder: Path, rows: int, bounds: list[int], out: Path) -> None:
    import litdata

    litdata.optimize(
        Row(folder), list(range(rows)), str(out), chunk_size=-(-rows // (len(bounds) - 1)), num_workers=1, verbose=False
    )


def opened(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "starts.npy", mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("datasets", "mosaicml-streaming", "litdata"))
    parser.add_argument("--rows", type=Path, required=True, help="folder with tokens.npy and starts.npy")
    parser.add_argument("--objects", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    tokens, starts = opened(given.rows)
    rows = len(starts) - 1
    bounds = [rows * part // given.objects for part in range(given.objects + 1)]
    given.out.mkdir(parents=True)
    if given.peer == "datasets":
        write_datasets(tokens, starts, bounds, given.out)
    elif given.peer == "mosaicml-streaming":
        write_mosaicml(tokens, starts, bounds, given.out)
    else:
        write_litdata(given.rows, rows, bounds, given.out)


if __name__ == "__main__":
    main()
