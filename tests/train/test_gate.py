"""The export gate: figures of a difference, a process of its own, and no hub."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_in import tiny_llama

from shoal.train import gate
from shoal.train.deliver import run_gate, write_probe

ROWS = [np.arange(5, 25), np.arange(40, 47)]


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, object]:
    """A full model, saved as it lives, and the probe of its logits."""
    model = tiny_llama().eval()
    model.save_pretrained(str(tmp_path / "model"))
    with torch.no_grad():
        logits = [model(input_ids=torch.as_tensor(row)[None]).logits[0].clone() for row in ROWS]
    return {
        "task": "compare",
        "kind": "model",
        "export": str(tmp_path / "model"),
        "base": str(tmp_path / "model"),
        "dtype": "fp32",
        "quantization": None,
        "device": "cpu",
        "trust_remote_code": False,
        "probe": str(write_probe(tmp_path / "probe.safetensors", ROWS, logits)),
    }


def test_equal_models_pass(request_: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    figures = run_gate(request_, tmp_path)
    assert figures["passed"], figures
    assert figures["max_relative_difference"] < 1e-5
    assert figures["argmax_agreement"] == 1.0
    assert figures["positions"] == 27


def test_another_model_fails(request_: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_llama(seed=1).save_pretrained(str(tmp_path / "model"))
    capsys.readouterr()
    assert gate.main(request_) == 1
    figures = json.loads(capsys.readouterr().out)
    assert not figures["passed"] and figures["max_relative_difference"] > 0.1


def test_what_cannot_be_loaded_says_why(request_: dict[str, object], tmp_path: Path):
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nothing")
    figures = run_gate(request_, tmp_path)
    assert not figures["passed"] and "header" in figures["error"].lower()


def test_bf16_rounds_and_little_more(request_: dict[str, object], capsys: pytest.CaptureFixture[str]):
    assert gate.main(request_ | {"dtype": "bf16"}) == 0
    assert 1e-5 < json.loads(capsys.readouterr().out)["max_relative_difference"] < 3e-2


def test_it_imports_nothing_of_ours():
    source = Path(gate.__file__).read_text()
    assert "import shoal" not in source and "from shoal" not in source


def test_differences():
    wanted = [torch.tensor([[1.0, 2.0], [4.0, 3.0]])]
    same = gate.difference(wanted, [wanted[0].clone()], "fp32")
    assert same["passed"] and same["max_difference"] == 0
    off = gate.difference(wanted, [wanted[0] + torch.tensor([[0.0, 0.0], [0.0, 0.004]])], "fp32")
    assert off["max_relative_difference"] == pytest.approx(1e-3, rel=1e-3) and not off["passed"]
    assert off["mean_difference"] == pytest.approx(1e-3, rel=1e-3)
    tie = gate.difference([torch.tensor([[1.0, 1.005]])], [torch.tensor([[1.005, 1.0]])], "bf16")
    assert tie["passed"] and tie["argmax_agreement"] == 0.0 and tie["argmax_agreement_beyond_ties"] == 1.0
    flipped = gate.difference([torch.tensor([[1.0, 1.02]])], [torch.tensor([[1.02, 1.0]])], "bf16")
    assert not flipped["passed"] and flipped["max_relative_difference"] < flipped["tolerance"]
    for broken in (float("nan"), float("inf")):
        assert not gate.difference(wanted, [wanted[0] * broken], "bf16")["passed"]
        assert not gate.difference([wanted[0] * broken], wanted, "bf16")["passed"]
    assert not gate.difference(wanted, [torch.zeros(2, 3)], "fp32")["passed"]
