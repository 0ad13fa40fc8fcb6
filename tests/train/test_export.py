"""Exports: what is written is what was trained, as plain transformers and peft read it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from stand_in import StandIn, make_plan
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from shoal.errors import ExportError, ModelError, SpecError
from shoal.infer import generate
from shoal.infer.load import fetch_export, load
from shoal.models import keep_4bit_exact, load_tokenizer
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.train import export as module
from shoal.train.card import model_card
from shoal.train.deliver import hand_in
from shoal.train.export import export, merge_run
from shoal.train.model import DTYPES, quantization
from shoal.train.world import World

ROWS = [np.arange(100, 130), np.arange(2000, 2010)]


def make_base(folder: Path, tokenizer_folder: Path, tied: bool = True) -> Path:
    """A tiny Llama with the real tokenizer and a generation config of its own."""
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
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def live(plan: Plan, base: Path, **lora: Any) -> StandIn:
    """The model in training, a few steps on."""
    model = AutoModelForCausalLM.from_pretrained(
        str(base), dtype=torch.float32, quantization_config=quantization(plan.trajectory)
    )
    keep_4bit_exact(model)
    model.config.use_cache = False
    if plan.trajectory.method != "full":
        torch.manual_seed(1)
        config = LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora))
        model = get_peft_model(model, config)
    engine = StandIn(model)
    engine.train(4)
    model.eval()
    return engine


class Place:
    """A run to export: its plan, its folders, its engine."""

    def __init__(self, root: Path, base: Path, method: str, merge: bool = False, **lora: Any):
        made = make_plan(root, str(base), method)
        self.plan = made.model_copy(update={"merge": merge})
        self.base, self.storage = base, Storage()
        self.folder = RunFolder(self.storage, self.plan.storage.run)
        self.storage.write(self.folder.plan, self.plan.model_dump_json().encode())
        self.engine = live(self.plan, base, **lora)

    def logits(self, row: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return self.engine.model(input_ids=torch.as_tensor(row)[None], use_cache=False).logits[0]

    def export(self, **more: Any) -> dict[str, Any]:
        return export(
            plan=self.plan,
            engine=self.engine,
            base_folder=self.base,
            tokenizer=load_tokenizer(self.base),
            folder=self.folder,
            storage=self.storage,
            world=World(),
            rows=ROWS,
            live_logits=self.logits,
            **more,
        )

    def reloaded(self, name: str) -> Path:
        return Path(self.folder.export(name))

    def fetch_base_from(self, url: str) -> None:
        """The base's folder is where it is cached; the job names `url`."""
        trajectory = self.plan.trajectory
        model = trajectory.model.model_copy(update={"base": url, "kind": "object"})
        self.plan = self.plan.model_copy(update={"trajectory": trajectory.model_copy(update={"model": model})})

    def assert_no_file_tells_where_the_base_was_cached(self) -> None:
        files = [path for path in Path(self.folder.exports).rglob("*") if path.is_file()]
        assert len(files) > 5
        assert [path.name for path in files if str(self.base.parent).encode() in path.read_bytes()] == []


def test_a_lora_adapter_is_what_peft_writes(tmp_path: Path, tokenizer_folder: Path):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder), "lora")
    figures = place.export(losses={"base": 3.5, "result": 2.5}, samples=12)
    assert figures["passed"] and figures["max_relative_difference"] < 1e-5
    folder = place.reloaded("adapter")
    assert figures["url"] == str(folder)

    place.engine.model.save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == torch.float32 for key in ours)
    mine, other = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path / "theirs"))
    assert mine["base_model_name_or_path"] == str(place.base)
    assert sorted(mine.pop("target_modules")) == sorted(other.pop("target_modules"))
    assert mine | {"base_model_name_or_path": 0} == other | {"base_model_name_or_path": 0}

    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: base\nlibrary_name: peft\n")
    for part in (
        "train.jsonl",
        "| rows | 12 |",
        "2.5",
        "learning_rate",
        "argmax agreement",
        "PeftModel.from_pretrained",
    ):
        assert part in card, part
    assert str(tmp_path) not in card and "/private/" not in card

    assert (folder / "chat_template.jinja").exists() and (folder / "tokenizer.json").exists()
    done = json.loads((folder / "export.json").read_text())
    assert {item["file"] for item in done["files"]} == {p.name for p in folder.iterdir()} - {"export.json"}
    assert not (tmp_path / "cache" / "scratch" / place.plan.run_id / "export").exists()


def test_modules_to_save_travel_with_the_adapter(tmp_path: Path, tokenizer_folder: Path):
    place = Place(
        tmp_path,
        make_base(tmp_path / "base", tokenizer_folder, tied=False),
        "lora",
        merge=True,
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
    )
    figures = place.export()
    assert figures["passed"] and figures["merged"]["passed"]
    assert "base_model.model.lm_head.weight" in load_file(place.reloaded("adapter") / "adapter_model.safetensors")


@pytest.mark.parametrize(("tied", "dtype"), [(True, "fp32"), (False, "bf16")])
def test_a_full_model_has_the_tensors_of_its_base(tmp_path: Path, tokenizer_folder: Path, tied: bool, dtype: str):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder, tied), "full")
    place.plan = make_plan(tmp_path, str(place.base), "full", dtype=dtype)
    place.fetch_base_from("s3://models/tiny")
    figures = place.export()
    place.assert_no_file_tells_where_the_base_was_cached()
    assert figures["passed"] and (figures["max_relative_difference"] < 1e-5 or dtype == "bf16")
    folder = place.reloaded("model")
    ours, base = load_file(folder / "model.safetensors"), load_file(place.base / "model.safetensors")
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in base.items()}
    assert {tensor.dtype for tensor in ours.values()} == {DTYPES[dtype]}
    assert ("lm_head.weight" in ours) == (not tied)
    assert not torch.equal(ours["model.norm.weight"].float(), base["model.norm.weight"])
    config, before = (json.loads((f / "config.json").read_text()) for f in (folder, place.base))
    assert config["dtype"] == str(DTYPES[dtype]).removeprefix("torch.")
    assert config | {"dtype": 0} == before | {"dtype": 0}, "use_cache and all the rest as the base has it"
    assert config["tie_word_embeddings"] == tied
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.7
    assert (folder / "chat_template.jinja").exists()


def test_a_merged_adapter_equals_base_and_adapter(tmp_path: Path, tokenizer_folder: Path):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder), "lora", merge=True)
    place.fetch_base_from("s3://models/tiny")
    merged = place.export()["merged"]
    place.assert_no_file_tells_where_the_base_was_cached()
    config = json.loads((place.reloaded("adapter") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://models/tiny"
    assert merged["passed"] and merged["max_relative_difference"] < 1e-5 and not merged["untied"]
    model = AutoModelForCausalLM.from_pretrained(str(place.reloaded("merged")))
    with torch.no_grad():
        found = model(input_ids=torch.as_tensor(ROWS[0])[None]).logits[0]
    assert torch.allclose(found, place.logits(ROWS[0]), atol=1e-4)
    assert "lm_head.weight" not in load_file(place.reloaded("merged") / "model.safetensors")
    assert "library_name: transformers" in (place.reloaded("merged") / "README.md").read_text()


def test_an_adapter_on_a_tied_head_unties_the_merged_model(tmp_path: Path, tokenizer_folder: Path):
    """Decided: the head has learnt something that the embedding has not, so the merged model stores both, and says so."""
    base = make_base(tmp_path / "base", tokenizer_folder)
    place = Place(tmp_path, base, "lora", merge=True, target_modules=["lm_head", "embed_tokens"])
    merged = place.export()["merged"]
    assert merged["passed"] and merged["untied"]
    assert "lm_head.weight" in load_file(place.reloaded("merged") / "model.safetensors")
    assert not json.loads((place.reloaded("merged") / "config.json").read_text())["tie_word_embeddings"]


def test_qlora_and_a_later_merge(tmp_path: Path, tokenizer_folder: Path):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder), "qlora")
    figures = place.export()
    assert figures["passed"] and figures["max_relative_difference"] < 1e-4
    assert not place.reloaded("merged").exists()
    merged = merge_run(place.folder, place.storage)
    assert merged["passed"] and merged["max_relative_difference"] < 1e-5
    assert 1e-3 < merged["gap_to_4bit"]["max_relative_difference"] < 1, "4-bit weights are not the base's own"
    config = json.loads((place.reloaded("merged") / "config.json").read_text())
    assert "quantization_config" not in config
    model, _ = load(place.folder, place.storage)
    with torch.no_grad():
        found = model(input_ids=torch.as_tensor(ROWS[0])[None]).logits[0]
    assert torch.allclose(found, place.logits(ROWS[0]), atol=1e-4)


def test_a_wrong_export_is_refused_and_set_apart(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder), "lora")
    collect = module._collect

    def shifted(*arguments: Any) -> dict[str, torch.Tensor]:
        return {name: tensor * 1.5 for name, tensor in collect(*arguments).items()}

    monkeypatch.setattr(module, "_collect", shifted)
    with pytest.raises(ExportError, match="max_relative_difference"):
        place.export()
    assert not place.reloaded("adapter").exists()
    apart = place.reloaded("adapter-failed")
    assert (apart / "adapter_model.safetensors").exists() and not (apart / "export.json").exists()
    with pytest.raises(SpecError, match="it has no adapter yet"):
        load(place.folder, place.storage)


@pytest.mark.parametrize("layout", ["gpt2", "gpt-neox"])
def test_a_base_whose_files_name_tensors_otherwise(tmp_path: Path, tokenizer_folder: Path, layout: str):
    """gpt2's own files leave the prefix out and hold masks, pythia's hold masks and angles: all loads, all is exported."""
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    base = tmp_path / "base"
    if layout == "gpt2":
        small = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128)
    else:
        small = GPTNeoXConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small).save_pretrained(str(base))
    tokenizer.save_pretrained(str(base))
    stored = {name.removeprefix("transformer."): t for name, t in load_file(base / "model.safetensors").items()}
    for number in range(2):
        block = f"h.{number}.attn" if layout == "gpt2" else f"gpt_neox.layers.{number}.attention"
        stored[f"{block}.bias"] = torch.ones(1, 1, 128, 128)
        stored[f"{block}.masked_bias"] = torch.tensor(-1e4)
        if layout == "gpt-neox":
            stored[f"{block}.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(stored, base / "model.safetensors", {"format": "pt"})

    place = Place(tmp_path, base, "full")
    figures = place.export()
    assert figures["passed"] and figures["max_relative_difference"] < 1e-5
    ours = load_file(place.reloaded("model") / "model.safetensors")
    assert sum(t.numel() for t in ours.values()) == sum(p.numel() for p in place.engine.model.parameters())


@pytest.mark.parametrize("damage", ["missing", "empty", "shape"])
def test_a_tensor_that_is_not_the_bases_is_named(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder), "full")
    name = "model.layers.0.mlp.up_proj.weight"
    if damage == "missing":
        shapes = module._shapes
        monkeypatch.setattr(
            module, "_shapes", lambda f: {k: s for k, s in shapes(f).items() if f == place.base or k != name}
        )
    else:
        collect = module._collect
        part = torch.zeros(0) if damage == "empty" else torch.zeros(3, 3)
        monkeypatch.setattr(module, "_collect", lambda *a: collect(*a) | {name: part})
    with pytest.raises(ExportError, match=name):
        place.export()


def test_an_export_on_the_object_store_is_fetched_once(tmp_path: Path, s3: S3Spec, monkeypatch: pytest.MonkeyPatch):
    storage, plan = Storage(s3), make_plan(tmp_path)
    folder = RunFolder(storage, f"s3://shoal/{tmp_path.name}")
    target = tmp_path / "made"
    target.mkdir()
    (target / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(SpecError, match="it has no adapter yet"):
        fetch_export(folder, storage, plan, "adapter")
    hand_in(plan, "adapter", target, {"passed": True}, {}, folder, storage)
    local = fetch_export(folder, storage, plan, "adapter")
    assert (local / "adapter_model.safetensors").read_bytes() == b"weights"

    downloads: list[str] = []
    download = storage.download
    monkeypatch.setattr(storage, "download", lambda url, path: (downloads.append(url), download(url, path))[1])
    assert fetch_export(folder, storage, plan, "adapter") == local and not downloads
    (target / "adapter_model.safetensors").write_bytes(b"better weights")
    hand_in(plan, "adapter", target, {"passed": True}, {}, folder, storage)
    assert (
        fetch_export(folder, storage, plan, "adapter") / "adapter_model.safetensors"
    ).read_bytes() == b"better weights"
    storage.write(folder.export("adapter") + "adapter_model.safetensors", b"cut")
    hidden = local.rename(tmp_path / "gone")
    with pytest.raises(ModelError, match="not whole"):
        fetch_export(folder, storage, plan, "adapter")
    assert hidden.exists() and not local.exists()


def test_the_card_of_a_hub_model_names_its_revision(tmp_path: Path):
    plan = make_plan(tmp_path, "org/name", "qlora")
    model = plan.trajectory.model.model_copy(update={"kind": "hub", "revision": "abc123"})
    plan = plan.model_copy(update={"trajectory": plan.trajectory.model_copy(update={"model": model})})
    card = model_card(plan, "adapter", {"passed": True}, {})
    assert 'from_pretrained("org/name", revision="abc123", quantization_config=BitsAndBytesConfig(load_in_4bit' in card
    assert "base_model: org/name" in card and "base_model_relation: adapter" in card


@pytest.mark.parametrize(
    ("base", "kind", "gguf", "loading"),
    [
        ("s3://models/tiny/", "object", False, '("FOLDER_OF_THE_BASE")'),
        ("s3://models/tiny.gguf", "object", True, '("FOLDER_OF_THE_BASE", gguf_file="tiny.gguf")'),
        ("/home/me/tiny", "folder", False, '("FOLDER_OF_THE_BASE")'),
        ("org/name", "hub", False, '("org/name")'),
    ],
)
def test_a_card_loads_a_base_from_where_transformers_can(
    tmp_path: Path, base: str, kind: str, gguf: bool, loading: str
):
    plan = make_plan(tmp_path, base)
    model = plan.trajectory.model.model_copy(update={"kind": kind, "gguf": gguf})
    plan = plan.model_copy(update={"trajectory": plan.trajectory.model_copy(update={"model": model})})
    card = model_card(plan, "adapter", {"passed": True}, {})
    assert f"base = AutoModelForCausalLM.from_pretrained{loading}" in card


def test_generating(tmp_path: Path, tokenizer_folder: Path):
    place = Place(tmp_path, make_base(tmp_path / "base", tokenizer_folder), "lora")
    model, tokenizer = place.engine.model, load_tokenizer(place.base)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in generate.stop_tokens(model, tokenizer)
    model.train()
    said = generate.answers(model, tokenizer, ["Hello", "Who are you?"], max_new_tokens=6)
    assert len(said) == 2 and model.training
    streamed = "".join(generate.stream(model, tokenizer, [{"role": "user", "content": "Hello"}], max_new_tokens=6))
    assert streamed.strip() == said[0]
    plain = AutoModelForCausalLM.from_pretrained(str(place.base))
    of_base = generate.answers(model, tokenizer, ["Hello"], max_new_tokens=6, base=True)
    assert of_base == generate.answers(plain, tokenizer, ["Hello"], max_new_tokens=6)
    assert isinstance(model, PeftModel)


def test_a_stream_can_be_left_and_its_errors_are_heard(tmp_path: Path, tokenizer_folder: Path):
    base = make_base(tmp_path / "base", tokenizer_folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(base)), load_tokenizer(base)
    pieces = generate.stream(model, tokenizer, [{"role": "user", "content": "Hello"}], max_new_tokens=10_000)
    next(pieces)
    pieces.close()
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(generate.stream(model, tokenizer, [{"role": "user", "content": "Hello"}], max_new_tokens=-1))
