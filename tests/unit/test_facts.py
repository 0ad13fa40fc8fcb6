"""Facts from real files, the real object store and a hub on loopback; every problem in one answer."""

import gzip
import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import STRANGER, Hub, serving_hub

from shoal.errors import DataError, ModelError, ShoalError, SpecError
from shoal.facts.gather import gather
from shoal.facts.model import model_facts
from shoal.facts.types import Facts
from shoal.plan.planner import plan
from shoal.plan.table import table
from shoal.runs import RunFolder
from shoal.spec.cluster import ClusterProfile, S3Spec
from shoal.spec.job import JobSpec, ModelSpec
from shoal.storage import Storage, join

ROW = {"instruction": "Name a colour of the sea.", "output": "Blue, and sometimes green."}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def profile(folder: Path, s3: S3Spec | None = None) -> ClusterProfile:
    storage: dict[str, Any] = {"runs": str(folder / "runs"), "prepared": str(folder / "prepared")}
    return ClusterProfile.model_validate(
        {"kind": "local", "workers": 2, "storage": storage | ({"s3": s3.model_dump()} if s3 else {})}
    )


def job(base: object, source: object, **sections: Any) -> JobSpec:
    data = {"train": str(source) if isinstance(source, Path) else source, **sections.pop("data", {})}
    model = {"base": str(base), **sections.pop("model", {})}
    return JobSpec.model_validate({"name": "test", "model": model, "data": data, **sections})


def gathered(spec: JobSpec, folder: Path, s3: S3Spec | None = None) -> Facts:
    return gather(spec, profile(folder, s3), Storage(s3))


def told(error: ShoalError) -> dict[str, str]:
    return {getattr(problem, "where", ""): str(problem) for problem in error.problems}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(*[ROW] * 30))
    (folder / "b.jsonl").write_bytes(lines(*[ROW] * 10))
    return folder


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


# the model


def test_a_folder_is_known_from_its_headers(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    facts = model_facts(ModelSpec(base=str(tiny_model)), Storage())
    real = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    assert facts.num_parameters == real.num_parameters()
    assert (facts.architecture, facts.hidden_size, facts.num_hidden_layers) == ("LlamaForCausalLM", 64, 2)
    assert (facts.vocab_size, facts.max_position_embeddings) == (real.config.vocab_size, 512)
    assert facts.tie_word_embeddings and facts.chat_template and facts.kind == "folder" and not facts.gguf
    assert "model.layers.1.self_attn.q_proj" in facts.matrices and "lm_head" in facts.matrices


def test_a_tied_head_that_is_stored_too_counts_once(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = model_facts(ModelSpec(base=str(model)), Storage())
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors")
    after = model_facts(ModelSpec(base=str(model)), Storage())
    assert after.num_parameters == before.num_parameters
    assert after.digest != before.digest


def test_shards_are_read_together(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = model_facts(ModelSpec(base=str(model)), Storage())
    AutoModelForCausalLM.from_pretrained(str(model)).save_pretrained(str(model), max_shard_size="1MB")
    (model / "model.safetensors").unlink(missing_ok=True)
    assert len(list(model.glob("model-*.safetensors"))) > 1
    assert model_facts(ModelSpec(base=str(model)), Storage()).num_parameters == whole.num_parameters
    next(model.glob("model-*.safetensors")).unlink()
    with pytest.raises(ModelError, match="weight files are missing"):
        model_facts(ModelSpec(base=str(model)), Storage())


def test_the_tokenizer_digest_is_of_contents_and_the_model_digest_of_weights(model: Path, tiny_model: Path) -> None:
    original, copy = (model_facts(ModelSpec(base=str(path)), Storage()) for path in (tiny_model, model))
    assert original.tokenizer_digest == copy.tokenizer_digest
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert model_facts(ModelSpec(base=str(model)), Storage()).tokenizer_digest != copy.tokenizer_digest


def test_a_gguf_file_is_known_from_its_header(smollm2_gguf: Path) -> None:
    facts = model_facts(ModelSpec(base=str(smollm2_gguf)), Storage())
    assert (facts.gguf, facts.kind, facts.architecture) == (True, "folder", "LlamaForCausalLM")
    assert (facts.num_parameters, facts.vocab_size, facts.hidden_size) == (134_515_008, 49152, 576)
    assert (facts.num_hidden_layers, facts.max_position_embeddings) == (30, 8192)
    assert facts.tie_word_embeddings and facts.chat_template


def test_the_gguf_header_is_what_the_gguf_package_reads(smollm2_gguf: Path) -> None:
    from gguf import GGUFReader

    from shoal.facts import gguf

    reader = GGUFReader(smollm2_gguf)
    data = smollm2_gguf.read_bytes()
    header = gguf.read(lambda start, end: data[start:end], len(data), "model.base")
    assert header.tensors == {one.name: tuple(int(size) for size in one.shape) for one in reader.tensors}
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == {name: len(value) if isinstance(value, list) else value for name, value in theirs.items()}


def test_a_gguf_header_is_read_in_steps(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.facts import gguf

    data = smollm2_gguf.read_bytes()
    asked: list[tuple[int, int]] = []

    def read_range(start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start:end]

    monkeypatch.setattr(gguf, "FIRST_READ", 1000)
    whole = gguf.read(read_range, len(data), "model.base")
    assert len(asked) > 5 and all(before[1] == after[0] for before, after in itertools.pairwise(asked))
    assert len(whole.tensors) == 272


def test_s3_prefix_and_s3_gguf(s3: S3Spec, tiny_model: Path, smollm2_gguf: Path) -> None:
    storage = Storage(s3)
    storage.upload(tiny_model, "s3://shoal/facts-model/")
    local = model_facts(ModelSpec(base=str(tiny_model)), storage)
    stored = model_facts(ModelSpec(base="s3://shoal/facts-model"), storage)
    assert (stored.kind, stored.num_parameters, stored.matrices) == ("object", local.num_parameters, local.matrices)
    assert stored.digest == model_facts(ModelSpec(base="s3://shoal/facts-model/"), storage).digest
    storage.upload(smollm2_gguf, "s3://shoal/facts.gguf")
    one = model_facts(ModelSpec(base="s3://shoal/facts.gguf"), storage)
    assert (one.kind, one.gguf, one.num_parameters) == ("object", True, 134_515_008)
    with pytest.raises(ModelError, match="no such files"):
        model_facts(ModelSpec(base="s3://shoal/nothing-here"), storage)


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _rewrite(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


BROKEN = {
    "no config.json": lambda folder: (folder / "config.json").unlink(),
    "is no JSON object": lambda folder: (folder / "config.json").write_text("{"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "pickles": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "is cut short": _cut,
    "Git LFS pointer": lambda folder: (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "no safetensors file": lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60)),
    "BertForMaskedLM is no causal": _rewrite(architectures=["BertForMaskedLM"]),
    "has no hidden_size": _rewrite(hidden_size=None),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_model_is_an_answer(model: Path, words: str) -> None:
    BROKEN[words](model)
    with pytest.raises(ModelError, match=words) as caught:
        model_facts(ModelSpec(base=str(model)), Storage())
    assert all(problem.fix for problem in caught.value.problems if not isinstance(problem, str))


@pytest.mark.parametrize("base", ["nope", "./nope", "/nope/nope", "nope/nope/nope", "~/nope.gguf"])
def test_a_missing_folder_says_how_a_hub_id_looks(base: str) -> None:
    with pytest.raises(ModelError, match="a hub id has the form ORG/NAME"):
        model_facts(ModelSpec(base=base), Storage())


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="not GGUF"):
        model_facts(ModelSpec(base=str(tmp_path / "a.gguf")), Storage())
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1))
    with pytest.raises(ModelError, match="ends within its header"):
        model_facts(ModelSpec(base=str(tmp_path / "b.gguf")), Storage())


# the hub, in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported

CLIENT = """
import json, sys
from shoal.errors import ShoalError
from shoal.facts.model import model_facts
from shoal.spec.job import ModelSpec
from shoal.storage import Storage
try:
    facts = model_facts(ModelSpec(**json.loads(sys.argv[1])), Storage())
    print(json.dumps([facts.kind, facts.revision, facts.num_parameters, facts.gguf, facts.notes]))
except ShoalError as error:
    print(f"{type(error).__name__}: {error}")
"""


def from_hub(endpoint: str, home: Path, offline: str = "0", **model: Any) -> Any:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(home)}
    environment |= {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "STRANGER": STRANGER,
        "FRIEND": "hf_key",
    }
    command = [sys.executable, "-c", CLIENT, json.dumps(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer = done.stdout.strip()
    return json.loads(answer) if answer.startswith("[") else answer


def test_a_hub_model_is_pinned_without_fetching_weights(tiny_model: Path, tmp_path: Path) -> None:
    local = model_facts(ModelSpec(base=str(tiny_model)), Storage())
    with serving_hub({"acme/tiny": tiny_model}) as hub:
        found = from_hub(hub.endpoint, tmp_path, base="acme/tiny")
        assert found == ["hub", hub.commit("acme/tiny"), local.num_parameters, False, []]
        assert not list(tmp_path.rglob("*.safetensors"))
        missing = from_hub(hub.endpoint, tmp_path, base="acme/tinny")
        assert missing.startswith("ModelError: model.base:") and "has no model acme/tinny" in missing
        revision = from_hub(hub.endpoint, tmp_path, base="acme/tiny", revision="v9")
        assert revision.startswith("ModelError: model.revision: acme/tiny has no revision v9")
        absent = from_hub(hub.endpoint, tmp_path, base="acme/tiny/nope.gguf")
        assert "acme/tiny has no nope.gguf" in absent


def test_a_gguf_file_on_the_hub(smollm2_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(smollm2_gguf)
    with serving_hub({"acme/gguf": folder}) as hub:
        kind, _, parameters, gguf, _ = from_hub(hub.endpoint, tmp_path, base="acme/gguf/model.gguf")
        assert (kind, parameters, gguf) == ("hub", 134_515_008, True)
        assert "name the file: acme/gguf/model.gguf" in from_hub(hub.endpoint, tmp_path, base="acme/gguf")


def test_a_gated_model_names_the_token(tiny_model: Path, tmp_path: Path) -> None:
    with serving_hub({"acme/gated": tiny_model}, token="hf_key") as hub:
        for token in ({}, {"token": "env:STRANGER"}):
            refused = from_hub(hub.endpoint, tmp_path / "a", base="acme/gated", **token)
            assert refused.startswith("ModelError: model.base: acme/gated is gated"), refused
            assert "model.token" in refused and STRANGER not in refused
        opened = from_hub(hub.endpoint, tmp_path / "b", base="acme/gated", token="env:FRIEND")
        assert opened[0] == "hub"
        unset = from_hub(hub.endpoint, tmp_path / "c", base="acme/gated", token="env:NOT_SET")
        assert unset.startswith("SpecError: model.token: the environment variable NOT_SET is not set")


def test_an_unreachable_hub_is_one_line_unless_the_model_is_cached(tiny_model: Path, tmp_path: Path) -> None:
    gone = from_hub("http://127.0.0.1:9", tmp_path, base="acme/tiny")
    assert (
        gone.startswith("ModelError: model.base: http://127.0.0.1:9 cannot be reached") and len(gone.splitlines()) == 1
    )
    assert "HF_HUB_OFFLINE" in from_hub("http://127.0.0.1:9", tmp_path, offline="1", base="acme/tiny")
    with serving_hub({"acme/tiny": tiny_model}) as hub:
        commit = _cache(hub, tmp_path)
    for offline in ("0", "1"):
        kind, revision, _, _, notes = from_hub("http://127.0.0.1:9", tmp_path, offline=offline, base="acme/tiny")
        assert (kind, revision) == ("hub", commit)
        assert "cached commit" in notes[0]


def _cache(hub: Hub, home: Path) -> str:
    program = "from huggingface_hub import snapshot_download; snapshot_download('acme/tiny')"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    return hub.commit("acme/tiny")


# the data


def test_objects_format_and_rows(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    data = gathered(job(tiny_model, corpus / "*.jsonl"), tmp_path).data
    (train,) = data.train
    assert [Path(one.url).name for one in train.objects] == ["a.jsonl", "b.jsonl"]
    assert all(one.size and one.etag for one in train.objects)
    assert (train.format, train.rows, train.exact, data.counts) == ("instruction", 40, True, None)
    folder = gathered(job(tiny_model, corpus), tmp_path).data
    assert folder.train[0].objects == train.objects and folder.digest == data.digest, "a folder means all in it"


def test_sources_keep_their_own_formats_columns_and_weights(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    (corpus / "own.jsonl").write_bytes(lines({"q": {"text": "why?"}, "a": "so"}))
    own = {"path": str(corpus / "own.jsonl"), "weight": 0.5, "columns": {"prompt": "q.text", "completion": "a"}}
    spec = job(tiny_model, [str(corpus / "a.jsonl"), own])
    first, second = gathered(spec, tmp_path).data.train
    assert (first.format, first.weight, first.columns) == ("instruction", 1.0, {})
    assert (second.format, second.weight, second.columns) == ("prompt-completion", 0.5, own["columns"])
    assert second.rows == 1 and second.sample_tokens


def test_an_object_belongs_to_one_source(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = job(tiny_model, [str(corpus / "a.jsonl"), str(corpus / "*.jsonl")])
    with pytest.raises(
        ShoalError, match=r"data.train\[1\]: .*a.jsonl is in data.train\[0\] too; name each object once"
    ):
        gathered(spec, tmp_path)


def _save(folder: Path) -> None:
    """As `datasets.Dataset.save_to_disk` writes: rows as an Arrow stream, and two files that describe them."""
    import pyarrow

    table = pyarrow.Table.from_pylist([ROW] * 7)
    folder.mkdir()
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')


def test_a_saved_data_set_is_read_and_its_splits_are_not_mixed(tiny_model: Path, tmp_path: Path) -> None:
    _save(tmp_path / "one")
    (tmp_path / "both").mkdir()
    for split in ("test", "train"):
        _save(tmp_path / "both" / split)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    (train,) = gathered(job(tiny_model, tmp_path / "one"), tmp_path).data.train
    assert (train.format, train.rows, train.exact) == ("instruction", 7, True)
    assert all(one.url.endswith(".arrow") for one in train.objects)
    with pytest.raises(
        ShoalError, match=r"2 splits of a saved DatasetDict; name one of them: .*both/test, .*both/train"
    ):
        gathered(job(tiny_model, tmp_path / "both"), tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "parquet"])
def test_rows_of_large_objects_are_guessed_from_their_beginning(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    rows = [{**ROW, "output": hashlib.sha512(bytes([i % 256, i // 256])).hexdigest()} for i in range(9000)]
    path = tmp_path / f"big.{kind}"
    _write(path, kind, rows)
    (train,) = gathered(job(tiny_model, path), tmp_path).data.train
    assert train.exact == (kind == "parquet")
    assert abs(train.rows - 9000) < 900


def _write(path: Path, kind: str, rows: list[dict[str, str]]) -> None:
    import csv

    import pyarrow
    import zstandard
    from pyarrow import parquet

    match kind:
        case "jsonl":
            path.write_bytes(lines(*rows))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines(*rows)))
        case "jsonl.zst":
            path.write_bytes(zstandard.compress(lines(*rows)))
        case "json":
            path.write_text(json.dumps(rows))
        case "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(ROW))
                writer.writeheader()
                writer.writerows(rows)
        case "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_the_token_estimate_is_near(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    messages = [{"role": "user", "content": ROW["instruction"]}, {"role": "assistant", "content": ROW["output"]}]
    real = len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    guess = gathered(job(tiny_model, corpus), tmp_path).data.train[0].sample_tokens[0]
    assert 0.5 < guess / real < 2


def test_the_digest_changes_with_what_the_shards_depend_on(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    def digest(**data: Any) -> str:
        return gathered(job(tiny_model, corpus / "a.jsonl", data=data), tmp_path).data.digest

    (corpus / "own.jinja").write_text("{{ messages[0].content }}")
    first = digest()
    assert digest(packing=False, max_rejected=0.5) == first, "neither changes a shard"
    weighted = [{"path": str(corpus / "a.jsonl"), "weight": 3}]
    assert gathered(job(tiny_model, weighted), tmp_path).data.digest == first, "nor does a weight"
    others = [
        digest(sequence_length=64),
        digest(overlength="truncate"),
        digest(train_on="all"),
        digest(columns={"output": "output"}),
        digest(chat_template=str(corpus / "own.jinja")),
        digest(validation=0.1),
        digest(validation=str(corpus / "b.jsonl")),
        gathered(job(tiny_model, corpus), tmp_path).data.digest,
    ]
    (corpus / "a.jsonl").write_bytes(lines(*[ROW] * 30)[:-1] + b" ")
    others.append(digest())
    assert len({first, *others}) == 10


def test_prepared_data_are_counted(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    from shoal.data.order import Order
    from shoal.data.prepare import prepare
    from shoal.data.prepared import Prepared

    spec = job(tiny_model, corpus, data={"sequence_length": 64}, train={"batch_size": 4, "num_train_epochs": 2})
    place = profile(tmp_path)
    before = plan(spec, place, gathered(spec, tmp_path), "test-20260101-000000-abcd")
    assert before.trajectory.steps.estimate
    prepare(before, Storage())
    after = plan(spec, place, gathered(spec, tmp_path), "test-20260101-000000-abcd").trajectory
    prepared = Prepared.open(Storage(), before.storage.prepared, tmp_path / "cache")
    order = Order(prepared.lengths, prepared.targets, 17, 4, 64, True)
    assert (after.steps.value, after.steps.estimate) == (order.steps(2, None), False)
    assert (after.tokens.value, after.tokens.estimate) == (order.tokens(after.steps.value), False)


MISSING = {
    "did you mean": ("a.jsnl", {}),
    "no object fits": ("*.parquet", {}),
    "no kind of file": ("*.txt", {}),
    "empty.jsonl is empty": ("empty.jsonl", {}),
    "none of the first 2 rows can be read": ("broken.jsonl", {}),
    "no format Shoal reads": ("odd.jsonl", {}),
    "none of the first 30 rows reads as text": ("a.jsonl", {"format": "text"}),
    "b.jsonl is in data.train too; a loss on what was": ("*.jsonl", {"format": "instruction", "validation": "b.jsonl"}),
}


EXAMPLES = {
    "none of the first 2 rows can be read": ["broken.jsonl:1", "broken.jsonl:3"],
    "none of the first 30 rows reads as text": ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"],
}
"""Rejected rows that an answer shows."""


@pytest.mark.parametrize("words", MISSING)
def test_missing_or_unfit_data_is_an_answer(tiny_model: Path, corpus: Path, tmp_path: Path, words: str) -> None:
    (corpus / "notes.txt").write_text("hello")
    (corpus / "empty.jsonl").write_text("")
    (corpus / "broken.jsonl").write_text("{oops\n\n[1]\n")
    (corpus / "odd.jsonl").write_bytes(lines({"question": "why", "answer": "so"}))
    pattern, data = MISSING[words]
    data = data | ({"validation": str(corpus / data["validation"])} if "validation" in data else {})
    with pytest.raises(DataError, match=words) as caught:
        gathered(job(tiny_model, corpus / pattern, data=data), tmp_path)
    where, *examples = told(caught.value)
    assert [Path(one).name for one in examples] == EXAMPLES.get(words, [])
    assert where == ("data.validation" if "validation" in data else "data.train")


def test_everything_missing_is_told_at_once(tmp_path: Path) -> None:
    spec = job(
        "nope", ["/nope/a.jsonl", "/nope/b*.jsonl"], data={"validation": "/nope/c.jsonl"}, model={"adapter": "/no"}
    )
    with pytest.raises(ShoalError) as caught:
        gathered(spec, tmp_path)
    assert set(told(caught.value)) == {
        "model.base",
        "model.adapter",
        "data.train[0]",
        "data.train[1]",
        "data.validation",
    }
    assert caught.value.exit_status == 3
    assert all(problem.fix for problem in caught.value.problems if not isinstance(problem, str))


def test_data_in_the_object_store(s3: S3Spec, tiny_model: Path, tmp_path: Path) -> None:
    storage = Storage(s3)
    for name in ("a", "b"):
        storage.write(f"s3://shoal/facts/{name}.jsonl", lines(*[ROW] * 5))
    (train,) = gathered(job(tiny_model, "s3://shoal/facts/*.jsonl"), tmp_path, s3).data.train
    assert ([one.url for one in train.objects], train.rows) == (
        ["s3://shoal/facts/a.jsonl", "s3://shoal/facts/b.jsonl"],
        10,
    )
    with pytest.raises(DataError, match=r"s3://shoal/facts/a.json: no such object; did you mean"):
        gathered(job(tiny_model, "s3://shoal/facts/a.json"), tmp_path, s3)


# the adapter


def test_an_adapter_by_folder_and_by_run(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    storage = Storage()
    config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    run = RunFolder(storage, join(str(tmp_path / "runs"), "first-20260101-000000-abcd"))
    storage.write(run.plan, b"{}")
    spec = job(tiny_model, corpus, model={"adapter": "first-2026"})
    with pytest.raises(ModelError, match="has exported nothing yet"):
        gathered(spec, tmp_path)
    storage.write(join(run.export("adapter"), "adapter_config.json"), config.encode())
    by_run = gathered(spec, tmp_path).adapter
    assert by_run and by_run.lora and by_run.lora["r"] == 4
    assert gathered(job(tiny_model, corpus, model={"adapter": by_run.location}), tmp_path).adapter == by_run
    with pytest.raises(SpecError, match="did you mean first-20260101-000000-abcd"):
        gathered(job(tiny_model, corpus, model={"adapter": "frist-2026"}), tmp_path)
    whole = gathered(job(tiny_model, corpus, model={"adapter": str(tiny_model)}), tmp_path).adapter
    assert whole and whole.lora is None


def test_a_real_plan_is_a_table(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    spec = job(tiny_model, corpus, data={"sequence_length": 128})
    assert table(plan(spec, profile(tmp_path), gathered(spec, tmp_path), "test-20260101-000000-abcd"))
