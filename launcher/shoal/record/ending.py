"""How a run ended, as it wrote it into result.json."""

from typing import Any

from shoal.runs import RunFolder
from shoal.spec.base import recorded

NAMES = ("state", "step", "loss", "export")
"""What every version has said there."""


def read_result(folder: RunFolder) -> dict[str, Any]:
    """Raises: SpecError when it cannot be read, StorageError when it is not there."""
    lost = f"remove it, and  shoal resume {folder.id}  ends the run once more, from its newest checkpoint"
    return recorded(folder.storage.read(folder.result), folder.result, NAMES, lost)
