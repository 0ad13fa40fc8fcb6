"""The rows of corpus.py in the object store, once in each reader's own format."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from corpus import FOLDER, LONGEST, Rows, rows
from materials import ROOT, environment, readers

from shoal.spec.cluster import S3Spec
from shoal.storage import Storage, join

STORE = S3Spec(server="embedded", folder=str(FOLDER / "store"))
READERS = ("shoal", "datasets", "mosaicml-streaming", "litdata")
VOCABULARY = 49_152
OBJECTS = 32
"""Source objects that the rows are cut into, equally many rows in each."""


def url(reader: str, count: int, objects: int) -> str:
    return f"s3://shoal/rows-{count}-in-{objects}/{reader}/"


def make(wanted: tuple[str, ...], count: int, objects: int = OBJECTS) -> dict[str, str]:
    """Writes what is not there yet, with the store running. Says of each reader whose format could not be written why."""
    storage, failures = Storage(STORE), {}
    made = rows(count)
    for reader in wanted:
        target = url(reader, count, objects)
        done = target.rstrip("/") + ".done"
        if storage.exists(done):
            continue
        began = time.time()
        storage.delete(target)
        local = FOLDER / "writing"
        shutil.rmtree(local, ignore_errors=True)
        try:
            if reader == "shoal":
                _write_shoal(made, objects, local, storage, target.rstrip("/"))
            else:
                command = [str(readers()), str(ROOT / "benchmarks" / "peers" / "write_rows.py"), reader]
                command += ["--rows", str(FOLDER / f"rows-{count}"), "--objects", str(objects), "--out", str(local)]
                subprocess.run(command, check=True, env=environment(), capture_output=True, text=True)
                storage.upload(local, target)
        except subprocess.CalledProcessError as error:
            failures[reader] = error.stderr[-600:]
            continue
        finally:
            shutil.rmtree(local, ignore_errors=True)
        storage.write(done, b"")
        print(f"{reader}: {count:,} rows written in {time.time() - began:.0f} s", flush=True)
    return failures


def _write_shoal(made: Rows, objects: int, local: Path, storage: Storage, target: str) -> None:
    """As preparation writes them: a unit for each source object, then the columns over all."""
    from shoal.data.publish import publish
    from shoal.data.shards import Unit, UnitWriter
    from shoal.data.summary import TRAIN
    from shoal.plan.types import SourceObject
    from shoal.rows.template import Encoded

    local.mkdir()
    units = []
    for number, numbers in enumerate(made.parts(objects)):
        source = SourceObject(url=join(target, f"rows-{number:05d}"), size=len(numbers), etag="")
        with UnitWriter(local, Unit(number, 0, source), VOCABULARY) as writer:
            for row in numbers:
                tokens = made.row(row).astype(np.int64)
                writer.add(row + 1, [Encoded(tokens, np.ones(len(tokens), bool))], TRAIN)
            units.append(writer.upload(storage, target, lines=len(numbers)))
    publish(storage, target, units, f"benchmark-{len(made)}", "text", LONGEST, local)
