"""The self-check passes on a sound model, names each planted fault, and leaves no trace."""

from pathlib import Path

import pytest
import torch
from documents import documents
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.errors import SelfCheckError
from shoal.tasks import attention, causal_lm
from shoal.train import selfcheck

CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32):
    config = AutoConfig.from_pretrained(str(folder))
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, attn_implementation=attention.resolve("per_document", config)
    )


def lora(folder: Path):
    return get_peft_model(load(folder), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))


@pytest.mark.parametrize("make", [load, lora])
def test_a_sound_model_passes_and_is_left_as_it_was(tiny_model: Path, make):
    model = make(tiny_model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    figures = selfcheck.check(model, documents(4, 49152), CPU)
    assert figures["packed_logits"] < 1e-4 and figures["accumulated_gradient"] < 1e-4
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert not any(m.p and not m.training for m in model.modules() if isinstance(m, torch.nn.Dropout))


def test_documents_that_see_each_other_are_found(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    def leaking(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        key, value = (s.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for s in (key, value))
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return output.transpose(1, 2), None

    model = load(tiny_model)
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.PER_DOCUMENT, leaking)
    with pytest.raises(SelfCheckError, match="see each other"):
        selfcheck.check(model, documents(4, 49152), CPU)


def test_a_mean_of_means_is_found(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    exact = causal_lm.loss_sum
    monkeypatch.setattr(causal_lm, "loss_sum", lambda m, b, **k: exact(m, b, **k) / max(1, len(b.labels)))
    with pytest.raises(SelfCheckError, match="two micro-batches"):
        selfcheck.check(load(tiny_model), documents(4, 49152), CPU)


def test_an_adapter_cut_off_from_the_loss_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = lora(tiny_model)
    cut = model.get_base_model().model.layers[0].self_attn.q_proj
    plain = cut.forward
    monkeypatch.setattr(cut, "forward", lambda x: plain(x).detach() + cut.base_layer(x) * 0)
    with pytest.raises(SelfCheckError, match=r"gets no gradient: .*layers\.0\.self_attn\.q_proj\.lora_"):
        selfcheck.check(model, documents(4, 49152), CPU)


def test_rows_without_targets_are_told(tiny_model: Path):
    with pytest.raises(SelfCheckError, match="supervised"):
        selfcheck.check(load(tiny_model), [causal_lm.IDLE], CPU)
