"""A store of s3:// locations that needs no server, and whose reads can be counted, delayed and spoilt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.storage.faults import Fault

Ranges = Sequence[tuple[int, int]]


class FolderStore(Storage):
    """s3:// in a plain folder, as Shoal itself does it where the embedded server does not exist."""

    def __init__(self, folder: Path):
        self.faults: list[Fault] = []
        with patch("shoal.store.available", return_value=False):
            super().__init__(S3Spec(server="embedded", folder=str(folder)), self.faults.append)
        self.asked: list[tuple[str, Ranges]] = []
        """(name, ranges) of all ranges read."""
        self.change: Callable[[str, Ranges, list[bytes]], list[bytes]] = lambda name, ranges, found: found
        """What becomes of ranges on the way; it may wait and raise as well."""

    def read_ranges(self, url: str, ranges: Ranges, **options: Any) -> list[bytes]:
        name = url.rpartition("/")[2]
        self.asked.append((name, list(ranges)))
        return self.change(name, ranges, super().read_ranges(url, ranges, **options))

    def shards_asked(self) -> list[str]:
        return [name for name, _ in self.asked if name.startswith("shard-")]
