"""The gradient of a global batch is (sum of token losses) / (all its targets), to rounding, in every layout."""

from pathlib import Path

import pytest
import torch
from documents import documents, plain_loss
from ranks import run_ranks
from transformers import AutoModelForCausalLM

WORKER = Path(__file__).parent / "gradient_worker.py"


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> dict[str, torch.Tensor]:
    """A plain float64 loop over the documents, one at a time."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float64, attn_implementation="eager")
    rows = documents(7, 49152)
    targets = sum(int(row.loss_mask[1:].sum()) for row in rows)
    for row in rows:
        (plain_loss(model, row) / targets).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("world", "stages", "offload"), [(1, "0,1,2,3", "none"), (2, "0,1,2,3", "none"), (3, "2,3", "optimizer")]
)
def test_gradients_equal_a_float64_loop(
    tiny_model: Path, reference: dict[str, torch.Tensor], tmp_path: Path, world: int, stages: str, offload: str
):
    run_ranks(WORKER, world, str(tiny_model), str(tmp_path), stages, offload)
    results = sorted(tmp_path.glob("*.pt"))
    assert len(results) == 2 * len(stages.split(","))  # micro-batch 4, and 1 (accumulation 3 to 7)
    for result in results:
        gradients = torch.load(result, weights_only=True)
        assert gradients.keys() == reference.keys()
        difference = sum(float((gradients[n].double() - reference[n]).pow(2).sum()) for n in reference)
        size = sum(float(g.pow(2).sum()) for g in reference.values())
        assert (difference / size) ** 0.5 < 1e-5, result.name
