"""Training on a 4-bit base."""

from pathlib import Path

import pytest
import torch
from jobs import job, planned, profile, write_rows

from shoal.train.model import build
from shoal.train.world import World


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_leaves_the_gradients_as_they_were(tmp_path: Path, tiny_model: Path) -> None:
    """bitsandbytes repacks the weights of a model in eval mode on some CPUs, and no gradient passes them after that."""
    rows = write_rows(tmp_path / "rows.jsonl")
    model = build(planned(job(tiny_model, rows, method="qlora"), profile(tmp_path)), tiny_model, None, World())
    ids = torch.arange(1000, 1040)[None]
    before = gradients(model, ids)
    with torch.no_grad():
        model.eval()(input_ids=ids)
    after = gradients(model, ids)
    first_layer = [name for name in before if ".layers.0." in name and "lora_B" in name]
    assert first_layer and all(before[name].abs().max() > 0 for name in first_layer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
