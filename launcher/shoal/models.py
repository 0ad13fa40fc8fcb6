"""The base model's files on this node: downloaded or converted once, whoever asks first; the others wait.

cache/models/DIGEST/         a whole model in Hugging Face's layout (object stores and .gguf files)
cache/models/DIGEST.folder   where the hub's own cache holds it (hub models)
cache/tokenizers/DIGEST/     the tokenizer alone
"""

import fcntl
import hashlib
import io
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from shoal import hub
from shoal.errors import ModelError, Problem, StorageError
from shoal.plan.types import ModelPlan
from shoal.storage import Storage, join
from shoal.storage.local import answering

WHERE = "model.base"
TOKENIZER_PATTERNS = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
]
TOKENIZER_PATTERNS += ["*.tiktoken", "tekken.json", "config.json"]
MODEL_PATTERNS = [*TOKENIZER_PATTERNS, "*.safetensors", "*.safetensors.index.json", "*.json"]
CODE_PATTERNS = ["*.py"]
BF16_BYTES = 2
PART = ".part"
"""Ending of a folder that is still being made."""


def materialise(model: ModelPlan, storage: Storage, cache: Path) -> Path:
    """The folder of the whole model on this node, in Hugging Face's layout: config, safetensors, tokenizer.

    Blocks while another process of the node makes it. Raises ModelError or StorageError.
    """
    if model.kind == "folder" and not model.gguf:
        return _local(model)
    place = cache.expanduser() / "models" / model.digest
    if model.gguf:
        return _once(place, lambda folder: _convert(model, storage, folder))
    if model.kind == "hub":
        return _from_hub(model, place.with_name(f"{place.name}.folder"))
    return _once(place, lambda folder: _download(model, storage, folder, MODEL_PATTERNS))


def tokenizer_folder(model: ModelPlan, storage: Storage, cache: Path) -> Path:
    """A folder with at least the tokenizer and config.json: nobody who only tokenises waits for weights."""
    if model.kind == "folder" and not model.gguf:
        return _local(model)
    whole = cache.expanduser() / "models" / model.digest
    if whole.is_dir():
        return whole
    place = cache.expanduser() / "tokenizers" / model.tokenizer_digest
    if model.gguf:
        return _once(place, lambda folder: _convert_tokenizer(_gguf_file(model, storage, folder), folder))
    if model.kind == "hub":
        return _noted(whole.with_name(f"{whole.name}.folder")) or _snapshot(model, TOKENIZER_PATTERNS)
    return _once(place, lambda folder: _download(model, storage, folder, TOKENIZER_PATTERNS))


def _local(model: ModelPlan) -> Path:
    folder = Path(model.base)
    if not folder.is_dir():
        what = (
            f"{model.base} was there when the run was planned, and is not there now, or not on {socket.gethostname()}"
        )
        raise ModelError(Problem(WHERE, what, "put it back, or name a location that every machine reaches"))
    return folder


def start_folder(model: ModelPlan, storage: Storage, cache: Path) -> Path | None:
    """The local folder of `model.adapter`: an adapter or a full model to go on from; None when the job names none."""
    if model.adapter is None:
        return None
    if "://" not in model.adapter:
        return Path(model.adapter)
    location = model.adapter.rstrip("/") + "/"
    identity = repr([(one.url, one.size, one.etag) for one in storage.list(location)])
    place = cache.expanduser() / "adapters" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    return _once(place, lambda folder: storage.download(location, folder))


def load_tokenizer(folder: Path, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """The tokenizer in `folder`, as transformers loads it; `chat_template` replaces its own. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = f"the tokenizer in {folder} cannot be loaded: {_line(error)}"
        raise ModelError(Problem(WHERE, what, "copy the model's tokenizer files again")) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def keep_4bit_exact(model: Any) -> Any:
    """The model, with its 4-bit layers kept as they are quantised. Without any it is unchanged.

    On CPUs with AVX512-BF16 bitsandbytes repacks such a layer for inference at the first evaluation, for good: its scales
    are rounded to bf16, and no gradient passes through it any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _once(place: Path, make: Callable[[Path], None]) -> Path:
    """`place`, made by `make` in a temporary folder beside it unless it is there: whole, or not at all."""
    if place.is_dir():
        return place
    with _alone(place):
        if place.is_dir():
            return place
        for left in place.parent.glob(f"{place.name}.*{PART}"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: nobody else holds the lock
        temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}{PART}")
        try:
            with answering(str(place)):
                temporary.mkdir()
                make(temporary)
                temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Holds the node's lock of `place`; the system lets it go when its holder dies."""
    with answering(str(place.parent)):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.with_name(f"{place.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _from_hub(model: ModelPlan, note: Path) -> Path:
    """The hub's own cache, which other tools share; `note` says that this node has everything."""
    if folder := _noted(note):
        return folder
    with _alone(note):
        if folder := _noted(note):
            return folder
        folder = _snapshot(model, MODEL_PATTERNS)
        with answering(str(note)):
            temporary = note.with_suffix(PART)
            temporary.write_text(str(folder))
            temporary.replace(note)
        return folder


def _noted(note: Path) -> Path | None:
    if not note.is_file():
        return None
    folder = Path(note.read_text())
    return folder if folder.is_dir() else None


def _snapshot(model: ModelPlan, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = patterns + (CODE_PATTERNS if model.trust_remote_code else [])
    token = hub.secret(model.token, "model.token") if model.token else None
    with answering(model.base), hub.answers(WHERE, model.base, model.revision):
        # Subfolders hold other formats of the same weights.
        found = snapshot_download(
            model.base, revision=model.revision, token=token, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    return Path(found)


def _download(model: ModelPlan, storage: Storage, folder: Path, patterns: list[str]) -> None:
    """The files directly under an s3:// prefix that fit `patterns`."""
    prefix = model.base.rstrip("/") + "/"
    patterns = patterns + (CODE_PATTERNS if model.trust_remote_code else [])
    names = [one.url[len(prefix) :] for one in storage.list(prefix)]
    for name in names:
        if "/" not in name and any(Path(name).match(pattern) for pattern in patterns):
            storage.download(join(prefix, name), folder / name)
    if not (folder / "config.json").exists():
        raise ModelError(Problem(WHERE, f"{model.base}: no config.json any more", "put the model back, or plan again"))


def _gguf_file(model: ModelPlan, storage: Storage, folder: Path) -> Path:
    """The .gguf file on this node; a downloaded one lies in `folder` and is for the caller to remove."""
    if model.kind == "folder":
        if not Path(model.base).is_file():
            what = f"{model.base} is not on this node"
            raise ModelError(Problem(WHERE, what, "put it into the object store: every node can read it there"))
        return Path(model.base)
    if model.kind == "object":
        storage.download(model.base, folder / "source.gguf")
        return folder / "source.gguf"
    from huggingface_hub import hf_hub_download

    name = hub.split(model.base)
    assert name and name[1], "the planner made sure of a file"
    token = hub.secret(model.token, "model.token") if model.token else None
    with hub.answers(WHERE, name[0], model.revision):
        return Path(hf_hub_download(name[0], name[1], revision=model.revision, token=token))


def _convert(model: ModelPlan, storage: Storage, folder: Path) -> None:
    """A .gguf file as bf16 safetensors with tokenizer and chat template."""
    import torch
    from huggingface_hub import save_torch_model
    from transformers import AutoModelForCausalLM, GgufConfig

    needed, free = BF16_BYTES * model.num_parameters, shutil.disk_usage(folder).free
    if free < needed:
        what = f"converting {model.base} takes {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise StorageError(Problem(str(folder.parent), what, "free space there, or set storage.cache"))
    source = _gguf_file(model, storage, folder)
    # Its progress bars would break into the display.
    with _readable(source), redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(
            str(source.parent),
            gguf_file=source.name,
            # Left quantised, the model could not be saved.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    # The model's own save_pretrained writes nothing in a process that is rank 1 of a group, as a worker may be.
    loaded.config.architectures = [type(loaded).__name__]
    loaded.config.save_pretrained(str(folder))
    if loaded.generation_config is not None:
        loaded.generation_config.save_pretrained(str(folder))
    save_torch_model(loaded, str(folder))
    _convert_tokenizer(source, folder)


def _convert_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with _readable(source):
        AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(folder))
        if not (folder / "config.json").exists():
            AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(folder))
    if source.parent == folder:
        source.unlink()


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelError(
            Problem(WHERE, "reading .gguf files needs the gguf package", "pip install 'shoal[gguf]'")
        ) from error
    except (ValueError, KeyError, NotImplementedError) as error:
        what = f"{source.name} cannot be converted: {_line(error)}"
        raise ModelError(Problem(WHERE, what, "use the model's safetensors")) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
