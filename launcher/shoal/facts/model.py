"""What the base model is: its configuration, shapes and identity, from small files and headers alone."""

import json
from pathlib import Path
from typing import Any, Literal

from shoal import hub
from shoal.errors import ModelError, Problem
from shoal.facts import gguf, weights
from shoal.facts.files import (
    FolderFiles,
    HubFiles,
    ModelFiles,
    StoredFiles,
    cached_snapshot,
    digest,
    open_files,
)
from shoal.facts.types import ModelFacts
from shoal.spec.job import ModelSpec
from shoal.storage import Storage, absolute

WHERE = "model.base"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
"""One of these is a tokenizer."""
TOKENIZER_FILES = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
GGUF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "falcon": "FalconForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""Dense decoders that transformers converts from GGUF."""


def model_facts(model: ModelSpec, storage: Storage) -> ModelFacts:
    """Facts of `model.base`. Raises ModelError, SpecError (a token's reference) or StorageError."""
    base = model.base
    if "://" in base:
        return _stored(base, storage)
    if Path(base).expanduser().exists():
        return _local(Path(absolute(base)))
    name = hub.split(base)
    if name is None:
        what = "no such file" if base.endswith(".gguf") else "no such folder"
        raise ModelError(Problem(WHERE, f"{base}: {what}", "check the name; a hub id has the form ORG/NAME"))
    return _hub(model, *name)


def _local(path: Path) -> ModelFacts:
    if path.is_file():
        if path.suffix != ".gguf":
            fix = "name the model's folder, or a .gguf file"
            raise ModelError(Problem(WHERE, f"{path} is a file, and no .gguf file", fix))
        return _gguf(FolderFiles(path.parent), path.name, str(path), "folder", None)
    return _layout(open_files(str(path), Storage(), WHERE), str(path), "folder", None)


def _stored(base: str, storage: Storage) -> ModelFacts:
    if base.endswith(".gguf"):
        storage.info(base)
        return _gguf(StoredFiles(storage, base.rpartition("/")[0] + "/"), base.rpartition("/")[2], base, "object", None)
    return _layout(open_files(base, storage, WHERE), base, "object", None)


def _hub(model: ModelSpec, repo: str, file: str | None) -> ModelFacts:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    token = hub.secret(model.token, "model.token") if model.token else None
    with hub.answers(WHERE, repo, model.revision):
        try:
            files = HubFiles(repo, model.revision, token)
        except HfHubHTTPError:
            raise
        except (HTTPError, OfflineModeIsEnabled):
            folder = cached_snapshot(repo, model.revision)
            if folder is None:
                raise
            note = f"model.base: the hub cannot be asked; the cached commit {folder.name[:12]} of {repo} is used"
            return _layout(FolderFiles(folder), model.base, "hub", folder.name, (note,))
        if file is not None:
            if file not in files.files:
                there = ", ".join(name for name in files.files if name.endswith(".gguf")) or "no .gguf file"
                raise ModelError(Problem(WHERE, f"{repo} has no {file}", f"it has {there}"))
            return _gguf(files, file, model.base, "hub", files.commit)
        return _layout(files, model.base, "hub", files.commit)


def _layout(
    files: ModelFiles,
    base: str,
    kind: Literal["hub", "folder", "object"],
    commit: str | None,
    notes: tuple[str, ...] = (),
) -> ModelFacts:
    """A model in Hugging Face's layout."""
    if "config.json" not in files.files:
        ggufs = [name for name in files.files if name.endswith(".gguf")]
        fix = f"name the file: {base.rstrip('/')}/{ggufs[0]}" if ggufs else "name a folder that holds a whole model"
        if "adapter_config.json" in files.files:
            fix = "this is an adapter: name it in model.adapter, and its base model here"
        raise ModelError(Problem(WHERE, f"{base}: no config.json", fix))
    config = _json(files, "config.json", base)
    if not any(name in files.files for name in TOKENIZERS):
        raise ModelError(
            Problem(WHERE, f"{base}: no tokenizer", f"copy {TOKENIZERS[0]} and tokenizer_config.json there")
        )
    stored = weights.names(files, base, WHERE)
    tensors = weights.read(files, stored, WHERE)
    text = config | (config.get("text_config") or {})
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if tied is None:
        tied = not any(name.endswith("lm_head.weight") for name in tensors.shapes)
    matrices = tensors.matrices | ({"lm_head"} if tied else set())
    quantization = config.get("quantization_config")
    small = [name for name in files.files if name.endswith((".json", ".py")) and name not in TOKENIZER_FILES]
    return ModelFacts(
        base=base,
        kind=kind,
        gguf=False,
        revision=commit,
        digest=digest([commit]) if commit else digest([*_contents(files, small), *_identities(files, stored)]),
        tokenizer_digest=_tokenizer_digest(files),
        architecture=_architecture(config, base),
        num_parameters=tensors.num_parameters(tied),
        vocab_size=_number(text, base, "vocab_size"),
        hidden_size=_number(text, base, "hidden_size", "n_embd", "d_model"),
        num_hidden_layers=_number(text, base, "num_hidden_layers", "n_layer", "num_layers"),
        max_position_embeddings=text.get("max_position_embeddings") or text.get("n_positions"),
        tie_word_embeddings=tied,
        num_experts=max((text.get(key) or 0 for key in EXPERTS), default=0),
        quantised=str(quantization.get("quant_method", "quantised")) if quantization else None,
        chat_template=_has_template(files, base),
        matrices=matrices,
        notes=notes,
    )


def _gguf(
    files: ModelFiles, name: str, base: str, kind: Literal["hub", "folder", "object"], commit: str | None
) -> ModelFacts:
    size = files.files[name].size
    header = gguf.read(lambda start, end: files.read_range(name, start, end), size or gguf.LIMIT, WHERE)
    arch = header.metadata.get("general.architecture", "")
    if arch not in GGUF_ARCHITECTURES:
        fix = f"use the model's safetensors, or one of {', '.join(GGUF_ARCHITECTURES)}"
        raise ModelError(Problem(WHERE, f"{base}: GGUF models of the kind {arch or 'unknown'} are not converted", fix))

    def value(key: str) -> Any:
        return header.metadata.get(f"{arch}.{key}")

    tied = "output.weight" not in header.tensors
    shapes = {key: shape for key, shape in header.tensors.items() if not key.startswith("rope_")}
    mistral = arch == "llama" and "mistral" in str(header.metadata.get("general.name", "")).lower()
    text = {
        "vocab_size": value("vocab_size") or header.metadata.get("tokenizer.ggml.tokens"),
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
    }
    return ModelFacts(
        base=base,
        kind=kind,
        gguf=True,
        revision=commit,
        digest=digest([size, header.digest]),
        tokenizer_digest=header.digest[:32],
        architecture="MistralForCausalLM" if mistral else GGUF_ARCHITECTURES[arch],
        num_parameters=weights.Tensors(shapes).num_parameters(tied),
        vocab_size=_number(text, base, "vocab_size"),
        hidden_size=_number(text, base, "hidden_size"),
        num_hidden_layers=_number(text, base, "num_hidden_layers"),
        max_position_embeddings=value("context_length"),
        tie_word_embeddings=tied,
        num_experts=value("expert_count") or 0,
        quantised=None,
        chat_template="tokenizer.chat_template" in header.metadata,
        matrices=frozenset(),
    )


def _json(files: ModelFiles, name: str, base: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read(name))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(Problem(WHERE, f"{base}: {name} is no JSON object", "copy it again"))
    return found


def _number(config: dict[str, Any], base: str, *keys: str) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return config[key]
    raise ModelError(Problem(WHERE, f"{base}: the configuration has no {keys[0]}", "use a decoder-only language model"))


def _architecture(config: dict[str, Any], base: str) -> str:
    architecture = (config.get("architectures") or [config.get("model_type") or "unknown"])[0]
    custom = "auto_map" in config
    if config.get("is_encoder_decoder") or not (custom or any(part in architecture for part in GENERATIVE)):
        fix = "use a decoder-only model, such as HuggingFaceTB/SmolLM2-135M-Instruct"
        raise ModelError(Problem(WHERE, f"{base}: {architecture} is no causal language model", fix))
    return architecture


def _has_template(files: ModelFiles, base: str) -> bool:
    if "chat_template.jinja" in files.files or "chat_template.json" in files.files:
        return True
    if "tokenizer_config.json" not in files.files:
        return False
    return bool(_json(files, "tokenizer_config.json", base).get("chat_template"))


def _tokenizer_digest(files: ModelFiles) -> str:
    there = [name for name in TOKENIZER_FILES if name in files.files]
    # Of a local folder the contents count, so that a copy is the same tokenizer.
    return digest(_contents(files, there) if isinstance(files, FolderFiles) else _identities(files, there))


def _contents(files: ModelFiles, chosen: list[str]) -> list[object]:
    if not isinstance(files, FolderFiles):
        return _identities(files, chosen)
    return [part for name in chosen for part in (name, files.read(name).hex())]


def _identities(files: ModelFiles, chosen: list[str]) -> list[object]:
    return [part for name in chosen for part in (name, files.files[name].identity)]
