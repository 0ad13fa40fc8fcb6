"""The loss is exact: packed equals alone, fused equals plain, in every attention implementation that is offered."""

from pathlib import Path

import pytest
import torch
from documents import documents, plain_loss
from transformers import AutoConfig, AutoModelForCausalLM, FalconConfig, Gemma2Config, LlamaConfig, MistralConfig

from shoal.tasks import attention, causal_lm

CPU = torch.device("cpu")


def load(folder: Path, implementation: str, dtype: torch.dtype = torch.float64):
    config = AutoConfig.from_pretrained(str(folder))
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, attn_implementation=attention.resolve(implementation, config)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("implementation", ["per_document", "sdpa", "eager"])
def test_packed_logits_are_those_of_the_document_alone(tiny_model: Path, implementation: str, training: bool):
    model = load(tiny_model, implementation).train(training)
    reference = load(tiny_model, "eager")
    rows = documents(5, 49152)
    packed = causal_lm.logits(model, causal_lm.collate(rows, CPU)).detach()
    alone = torch.cat(
        [reference(input_ids=torch.from_numpy(row.input_ids)[None], use_cache=False).logits[0] for row in rows]
    )
    assert torch.allclose(packed, alone.float(), atol=2e-6)


@pytest.mark.parametrize("implementation", ["per_document", "sdpa", "eager"])
def test_loss_sum_and_targets_are_those_of_the_documents_alone(tiny_model: Path, implementation: str):
    model = load(tiny_model, implementation)
    rows = documents(6, 49152)
    batch = causal_lm.collate(rows, CPU)
    assert len(batch.labels) == sum(int(row.loss_mask[1:].sum()) for row in rows)
    alone = sum(float(plain_loss(load(tiny_model, "eager"), row)) for row in rows)
    assert float(causal_lm.loss_sum(model, batch)) == pytest.approx(alone, rel=1e-6)
    assert float(causal_lm.loss_sum(model, batch, gathered=False)) == pytest.approx(alone, rel=1e-6)


def test_fused_gradients_are_the_plain_ones(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(causal_lm, "LOGITS_PER_CHUNK", 49152 * 7)  # several ragged chunks
    rows = documents(6, 49152)
    fused, plain = load(tiny_model, "per_document"), load(tiny_model, "eager")
    (causal_lm.loss_sum(fused, causal_lm.collate(rows, CPU)) * 0.37).backward()
    (sum(plain_loss(plain, row) for row in rows) * 0.37).backward()
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-5, f"{name}: {error}"


def test_a_batch_without_targets_has_a_zero_loss_with_a_graph(tiny_model: Path):
    model = load(tiny_model, "per_document", torch.float32)
    for gathered in (True, False):
        total = causal_lm.loss_sum(model, causal_lm.collate([], CPU), gathered=gathered)
        total.backward()
        assert float(total) == 0.0
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
        model.zero_grad(set_to_none=True)


def test_a_two_dimensional_mask_would_leak(tiny_model: Path):
    """Why `collate` makes no mask: with one, transformers lets packed documents see each other."""
    model = load(tiny_model, "sdpa")
    rows = documents(5, 49152)
    batch = causal_lm.collate(rows, CPU)
    leaking = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=torch.ones_like(batch.input_ids),
        use_cache=False,
    ).logits[0]
    assert (leaking.float() - causal_lm.logits(model, batch)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), attention.PER_DOCUMENT),
        (MistralConfig(sliding_window=4096), "sdpa"),
        (Gemma2Config(), "eager"),
        (FalconConfig(), "sdpa"),
    ],
)
def test_auto_takes_what_the_model_can_do(config, expected: str):
    assert attention.resolve("auto", config) == expected


def test_an_evaluation_takes_no_gradient_of_the_head(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model, calls, mm = load(tiny_model, "per_document", torch.float32), [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: calls.append(1) or mm(*a, **k))
    with torch.no_grad():
        causal_lm.loss_sum(model, causal_lm.collate(documents(2, 49152), CPU))
    assert len(calls) == 1
