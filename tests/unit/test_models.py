"""A model's files on a node: made once whoever asks first, whole or not at all, from everywhere a base may lie."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import serving_hub

from shoal import models
from shoal.errors import ModelError, StorageError
from shoal.facts.model import model_facts
from shoal.plan.types import ModelPlan
from shoal.spec.cluster import S3Spec
from shoal.spec.job import ModelSpec
from shoal.storage import Storage

CACHE = Path(__file__).parents[2] / ".shoal" / "tests"
"""Where the conversion of the real model is kept; the same as the other fixtures'."""


def planned(base: str, storage: Storage, **changes: Any) -> ModelPlan:
    """The ModelPlan of a base that can be asked here."""
    facts = model_facts(ModelSpec(base=base), storage)
    known = {name: getattr(facts, name) for name in ModelPlan.model_fields if hasattr(facts, name)}
    return ModelPlan(**{**known, "adapter": None, "token": None, "trust_remote_code": False, **changes})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_itself(tiny_model: Path, tmp_path: Path) -> None:
    plan = planned(str(tiny_model), Storage())
    assert models.materialise(plan, Storage(), tmp_path) == tiny_model
    assert models.tokenizer_folder(plan, Storage(), tmp_path) == tiny_model
    assert not names(tmp_path), "nothing is copied"
    tokenizer = models.load_tokenizer(tiny_model)
    assert tokenizer.decode(tokenizer("hello there")["input_ids"]) == "hello there"


def test_a_folder_that_went_away_since_the_plan_is_an_answer(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    plan = planned(str(folder), Storage())
    shutil.rmtree(folder)
    for ask in (models.materialise, models.tokenizer_folder):
        with pytest.raises(ModelError, match="is not there now"):
            ask(plan, Storage(), tmp_path)


def test_a_broken_tokenizer_is_an_answer(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="the tokenizer in"):
        models.load_tokenizer(folder)


@pytest.fixture
def stored(s3: S3Spec, tiny_model: Path, request: pytest.FixtureRequest) -> str:
    """The tiny model in the object store, beside files that no training needs."""
    prefix = f"s3://shoal/models/{request.node.name}"
    storage = Storage(s3)
    storage.upload(tiny_model, f"{prefix}/")
    storage.write(f"{prefix}/pytorch_model.bin", b"old")
    storage.write(f"{prefix}/checkpoints/optimizer.json", b"{}")
    return prefix


def test_a_prefix_is_downloaded_once(s3: S3Spec, stored: str, tiny_model: Path, tmp_path: Path) -> None:
    storage = Storage(s3)
    plan = planned(stored, storage)
    tokenizer = models.tokenizer_folder(plan, storage, tmp_path)
    assert "tokenizer.json" in names(tokenizer) and "model.safetensors" not in names(tokenizer)
    folder = models.materialise(plan, storage, tmp_path)
    assert names(folder) == names(tiny_model), "neither pickles nor checkpoints"
    assert all((folder / name).read_bytes() == (tiny_model / name).read_bytes() for name in names(folder))
    storage.delete(f"{stored}/")
    assert models.materialise(plan, storage, tmp_path) == folder
    assert models.tokenizer_folder(plan, storage, tmp_path) == folder
    assert not [name for name in names(tmp_path / "models") if name.endswith(models.PART)]


def test_a_failed_download_leaves_nothing_half(
    s3: S3Spec, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(s3)
    plan = planned(stored, storage)
    real = Storage.download

    def broken(self: Storage, url: str, path: Path) -> None:
        if url.endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        real(self, url, path)

    monkeypatch.setattr(Storage, "download", broken)
    with pytest.raises(StorageError, match="the disk is full"):
        models.materialise(plan, storage, tmp_path)
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
    monkeypatch.undo()
    assert models.materialise(plan, storage, tmp_path).is_dir()


HOLDER = """
import sys, time
from pathlib import Path
from shoal import models
def make(folder):
    (folder / "half").write_text("")
    print("making", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "whole").write_text("")
print(models._once(Path(sys.argv[1]), make), flush=True)
"""


def holder(place: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(place), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_many_processes_one_makes_it_and_all_have_it(tmp_path: Path) -> None:
    place = tmp_path / "models" / "x"
    running = [holder(place, 0.3) for _ in range(4)]
    said = [process.communicate()[0].split() for process in running]
    assert sorted(map(len, said)) == [1, 1, 1, 2], "one said that it is making"
    assert names(place) == {"half", "whole"}


def test_a_killed_maker_blocks_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "models" / "x"
    first = holder(place, 600)
    assert first.stdout and first.stdout.readline() == "making\n"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not place.exists()
    second = holder(place, 0)
    second.communicate()
    assert names(place) == {"half", "whole"}
    assert names(place.parent) == {"x", "x.lock"}


def test_an_adapter_to_start_from(s3: S3Spec, tiny_model: Path, tmp_path: Path) -> None:
    storage = Storage(s3)
    plan = planned(str(tiny_model), storage)
    assert models.start_folder(plan, storage, tmp_path) is None
    local = plan.model_copy(update={"adapter": str(tmp_path)})
    assert models.start_folder(local, storage, tmp_path) == tmp_path
    storage.write("s3://shoal/start/adapter_config.json", b'{"r": 4}')
    remote = plan.model_copy(update={"adapter": "s3://shoal/start"})
    first = models.start_folder(remote, storage, tmp_path)
    assert first and (first / "adapter_config.json").read_bytes() == b'{"r": 4}'
    assert models.start_folder(remote, storage, tmp_path) == first
    storage.write("s3://shoal/start/adapter_config.json", b'{"r": 8}')
    second = models.start_folder(remote, storage, tmp_path)
    assert second and (second / "adapter_config.json").read_bytes() == b'{"r": 8}', "a new adapter is not the old one"


CLIENT = """
import sys
from pathlib import Path
from shoal import models
from shoal.errors import ShoalError
from shoal.plan.types import ModelPlan
from shoal.storage import Storage
plan = ModelPlan.model_validate_json(sys.argv[1])
try:
    print(getattr(models, sys.argv[3])(plan, Storage(), Path(sys.argv[2])))
except ShoalError as error:
    print(f"{type(error).__name__}: {error}")
"""


def from_hub(endpoint: str, plan: ModelPlan, home: Path, function: str = "materialise") -> str:
    """What a process says that asks the hub at `endpoint`: huggingface_hub reads HF_ENDPOINT when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf")}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "FRIEND": "hf_key"}
    command = [sys.executable, "-c", CLIENT, plan.model_dump_json(), str(home / "cache"), function]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_a_hub_model_is_fetched_once_at_its_commit(tiny_model: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "repo"))
    (source / "onnx").mkdir()
    (source / "onnx" / "config.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"old")
    with serving_hub({"acme/tiny": source}, token="hf_key") as hub:
        local = planned(str(source), Storage())
        plan = local.model_copy(
            update={"base": "acme/tiny", "kind": "hub", "revision": hub.commit("acme/tiny"), "token": "env:FRIEND"}
        )
        tokenizer = Path(from_hub(hub.endpoint, plan, tmp_path, "tokenizer_folder"))
        assert "tokenizer.json" in names(tokenizer) and not list(tokenizer.rglob("*.safetensors"))
        folder = Path(from_hub(hub.endpoint, plan, tmp_path))
        assert folder.name == plan.revision
        assert names(folder) == names(tiny_model)
        refused = from_hub(hub.endpoint, plan.model_copy(update={"token": None}), tmp_path / "stranger")
        assert refused.startswith("ModelError: model.base: acme/tiny is gated")
        asked = len(hub.requests)
        assert from_hub(hub.endpoint, plan, tmp_path) == str(folder)
        assert len(hub.requests) == asked, "what is there is not asked for again"
    assert from_hub("http://127.0.0.1:9", plan, tmp_path) == str(folder)


def test_a_missing_gguf_file_and_a_full_disk(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(str(smollm2_gguf), Storage())
    gone = plan.model_copy(update={"base": str(tmp_path / "gone.gguf")})
    with pytest.raises(ModelError, match="is not on this node"):
        models.materialise(gone, Storage(), tmp_path)
    huge = plan.model_copy(update={"num_parameters": 10**15})
    with pytest.raises(StorageError, match="MiB are free"):
        models.materialise(huge, Storage(), tmp_path)


def test_the_tokenizer_of_a_gguf_file_comes_without_its_weights(smollm2_gguf: Path, tmp_path: Path) -> None:
    folder = models.tokenizer_folder(planned(str(smollm2_gguf), Storage()), Storage(), tmp_path)
    assert not list(folder.glob("*.safetensors"))
    tokenizer = models.load_tokenizer(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in text
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 576


@pytest.fixture(scope="session")
def smollm2_model(smollm2_gguf: Path) -> Path:
    """The real model converted; kept between test runs, since it takes half a minute."""
    return models.materialise(planned(str(smollm2_gguf), Storage()), Storage(), CACHE)


@pytest.mark.model
def test_the_real_gguf_model_becomes_a_model_that_answers(smollm2_model: Path, smollm2_gguf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(smollm2_model))
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == model_facts(ModelSpec(base=str(smollm2_gguf)), Storage()).num_parameters
    tokenizer = models.load_tokenizer(smollm2_model)
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.float().generate(**tokens, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    assert not [name for name in names(smollm2_model.parent) if name.endswith(models.PART)]
