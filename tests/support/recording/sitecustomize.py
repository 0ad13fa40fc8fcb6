"""On a worker's path: writes down which samples each rank takes for which step, seen from outside of the code under test.

With SHOAL_RECORD set, every process that imports Shoal's reader appends one line to SHOAL_RECORD/HOST-PID.jsonl when its
training loop takes a step's batch.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path

WATCHED = "shoal.data.reader"


class Finder(importlib.abc.MetaPathFinder):
    """Finds the reader as everybody else would, and changes it once it is there."""

    def find_spec(self, fullname, path, target=None):
        if fullname != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            watch(module.Reader)

        spec.loader.exec_module = exec_module
        return spec


def watch(reader_class):
    begin, steps = reader_class._begin, reader_class.steps

    def _begin(self, step):
        part, request = begin(self, step)
        self.__dict__.setdefault("_begun", {})[step] = part.samples
        return part, request

    def watched(self, first, last):
        path = Path(os.environ["SHOAL_RECORD"], f"{socket.gethostname()}-{os.getpid()}.jsonl")
        with path.open("a") as file:
            for batch in steps(self, first, last):
                samples = [self.prepared.sample_id(int(one)) for one in self._begun.pop(batch.step)]
                row = {
                    "step": batch.step,
                    "epoch": batch.epoch,
                    "rank": self.rank,
                    "size": self.workers,
                    "time": time.time(),
                }
                file.write(json.dumps({**row, "group": group(), "samples": samples}) + "\n")
                file.flush()
                yield batch

    reader_class._begin, reader_class.steps = _begin, watched


def group():
    """Tells worker groups apart: each has a store of its own."""
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" in os.environ:
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return f"{socket.gethostname()}:{os.getpid()}"


if os.environ.get("SHOAL_RECORD"):
    sys.meta_path.insert(0, Finder())
