"""Tokenizers of other families, as far as chat templates see them: SmolLM2's own with the family's special tokens."""

from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer


def family_tokenizer(folder: Path, tokens: dict[str, Any], chat_template: str | None = None) -> Any:
    """`tokens`: bos and eos (or None), further special tokens, and tokens that are added but not special."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = chat_template
    tokenizer.add_special_tokens({"additional_special_tokens": tokens["special"]})
    tokenizer.add_special_tokens({f"{name}_token": tokens[name] for name in ("bos", "eos") if tokens[name]})
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens["added"]])
    return tokenizer
