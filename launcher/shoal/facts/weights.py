"""Names and shapes of a model's tensors from the headers of its safetensors files, without the weights."""

import json
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shoal.errors import ModelError, Problem
from shoal.facts.files import ModelFiles

INDEX = "model.safetensors.index.json"
FIRST_READ = 128 << 10
"""Bytes read at first: most headers are shorter."""
HEADER_LIMIT = 100_000_000
"""safetensors' own limit."""
PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Tensors:
    shapes: dict[str, tuple[int, ...]]
    """By the names in the files."""

    def num_parameters(self, tied: bool) -> int:
        """Tied weights count once, whether the files hold them twice or not; buffers do not count."""
        names = {name for name in self.shapes if not name.endswith(("inv_freq", "masked_bias"))}
        embeddings = any(name.endswith(("embed_tokens.weight", "wte.weight")) for name in names)
        if tied and embeddings:
            names = {name for name in names if not name.endswith("lm_head.weight")}
        return sum(math.prod(self.shapes[name]) for name in names)

    @property
    def matrices(self) -> frozenset[str]:
        """Dotted names of the modules whose weight is a matrix: linear layers, and embeddings."""
        return frozenset(
            name.removesuffix(".weight")
            for name, shape in self.shapes.items()
            if name.endswith(".weight") and len(shape) == 2
        )


def names(files: ModelFiles, base: str, where: str) -> list[str]:
    """The weight files, in order. Raises ModelError when there are none, or one of them is missing."""
    if INDEX in files.files:
        wanted = sorted(set(json.loads(files.read(INDEX))["weight_map"].values()))
        missing = [name for name in wanted if name not in files.files]
        if missing:
            what = f"{base}: {len(missing)} of {len(wanted)} weight files are missing, {missing[0]} first"
            raise ModelError(Problem(where, what, "copy the model again"))
        return wanted
    found = [name for name in files.files if name.endswith(".safetensors") and not name.startswith("adapter")]
    if "model.safetensors" in found:
        return ["model.safetensors"]
    if found:
        return sorted(found)
    if any(name.endswith(PICKLES) for name in files.files):
        fix = "save it once with transformers' save_pretrained, which writes safetensors"
        raise ModelError(Problem(where, f"{base}: the weights are pickles (.bin), which Shoal does not load", fix))
    raise ModelError(Problem(where, f"{base}: no weights (*.safetensors)", "copy the whole model"))


def read(files: ModelFiles, weights: list[str], where: str) -> Tensors:
    """All headers, several at a time. Raises ModelError for a file that is cut short or no safetensors file."""
    with ThreadPoolExecutor(min(8, len(weights))) as pool:
        headers = list(pool.map(lambda name: _header(files, name, where), weights))
    shapes: dict[str, tuple[int, ...]] = {}
    for header in headers:
        shapes.update({name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"})
    return Tensors(shapes)


def _header(files: ModelFiles, name: str, where: str) -> dict[str, Any]:
    # A hub that tells no sizes says 0.
    size = files.files[name].size
    start = files.read_range(name, 0, FIRST_READ)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(Problem(where, f"{name} is a Git LFS pointer, not the weights", "run `git lfs pull`"))
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= HEADER_LIMIT:
        raise ModelError(Problem(where, f"{name} is no safetensors file", "copy it again"))
    if length + 8 > len(start):
        start += files.read_range(name, len(start), length + 8)
    try:
        header = json.loads(start[8 : length + 8])
    except ValueError:
        raise ModelError(Problem(where, f"{name} has a damaged header", "copy it again")) from None
    end = (
        length
        + 8
        + max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    )
    if size and size < end:
        raise ModelError(Problem(where, f"{name} is cut short: {size:,} of {end:,} bytes", "copy it again"))
    return header
