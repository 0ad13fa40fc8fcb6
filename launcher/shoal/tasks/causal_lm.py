"""Next-token prediction over supervised tokens.

A task turns documents into one flat batch and a model's answer into **sums**: the loss summed over targets, and the number
of targets. One division by the global number of targets, outside, makes every layout give the same gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from shoal.rows.template import Encoded
from shoal.tasks.attention import PER_DOCUMENT

AUTO_MODEL = AutoModelForCausalLM

LOGITS_PER_CHUNK = 2**24
"""Logits held at a time by the fused loss: 64 MiB in fp32."""

IDLE = Encoded(input_ids=np.zeros(2, dtype=np.int64), loss_mask=np.zeros(2, dtype=np.bool_))
"""What a worker computes in a zero-weight micro-step: two tokens, no target."""


@dataclass(frozen=True)
class Batch:
    """One flat row: documents end to end, no padding."""

    input_ids: torch.Tensor
    """(1, tokens) int64."""
    position_ids: torch.Tensor
    """(1, tokens) int64, restarting at 0 with each document."""
    cu_seq_lens: torch.Tensor
    """(documents + 1,) int32: where each document begins, and the end."""
    document_lengths: list[int]
    keep: torch.Tensor
    """(targets,) int64: positions whose next token is supervised."""
    labels: torch.Tensor
    """(targets,) int64: those next tokens."""


def collate(documents: Sequence[Encoded], device: torch.device) -> Batch:
    """Lays documents end to end. The first token of a document is never a target: nothing before it is its own."""
    documents = documents or [IDLE]
    lengths = [len(document.input_ids) for document in documents]
    tokens = np.concatenate([document.input_ids for document in documents]).astype(np.int64)
    supervised = np.concatenate([document.loss_mask for document in documents]).astype(np.bool_)
    starts = [0, *accumulate(lengths)]
    supervised[starts[:-1]] = False
    targets = np.flatnonzero(supervised)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        input_ids=torch.from_numpy(tokens)[None].to(device),
        position_ids=torch.from_numpy(positions)[None].to(device),
        cu_seq_lens=torch.tensor(starts, dtype=torch.int32, device=device),
        document_lengths=lengths,
        keep=torch.from_numpy(targets - 1).to(device),
        labels=torch.from_numpy(tokens[targets]).to(device),
    )


def loss_sum(model: Any, batch: Batch, *, gathered: bool = True) -> torch.Tensor:
    """Summed cross-entropy of the batch's targets, fp32 scalar; zero (with a graph) when it has none.

    `model` is a transformers model or a PeftModel around one. Only the supervised positions reach the vocabulary projection.
    `gathered` says that the head's weight is whole on this rank (not so under ZeRO-3), which the fused path needs.
    """
    base = _unwrapped(model)
    head = base.get_output_embeddings()
    if gathered and _is_plain_projection(base, head):
        hidden = base.get_decoder()(**_inputs(base, batch), use_cache=False).last_hidden_state
        assert head is not None
        # An evaluation must not take the head's gradient on the way: needs_input_grad does not know of no_grad.
        weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
        return _FusedLoss.apply(hidden[0, batch.keep], weight, batch.labels)
    output = base(**_inputs(base, batch), use_cache=False, logits_to_keep=batch.keep)
    return functional.cross_entropy(output.logits[0].float(), batch.labels, reduction="sum")


def logits(model: Any, batch: Batch) -> torch.Tensor:
    """(tokens, vocabulary) logits of every position, fp32."""
    base = _unwrapped(model)
    return base(**_inputs(base, batch), use_cache=False).logits[0].float()


def _unwrapped(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _inputs(base: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """Never a 2-D mask: with one, transformers lets packed documents see each other."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": None}
    if base.config._attn_implementation == PER_DOCUMENT:
        inputs |= {
            "cu_seq_lens_q": batch.cu_seq_lens,
            "max_length_q": max(batch.document_lengths),
            "document_lengths": batch.document_lengths,
        }
    return inputs


def _is_plain_projection(base: PreTrainedModel, head: Any) -> bool:
    """Whether logits are `hidden @ weight.T` and nothing else: no bias, adapter, soft-cap or scale."""
    config = base.config.get_text_config()
    scaled = any(
        getattr(config, name, None) not in (None, 1, 1.0)
        for name in (
            "final_logit_softcapping",
            "logit_scale",
            "logits_scaling",
            "lm_head_multiplier",
            "mup_width_scale",
        )
    )
    return type(head) is torch.nn.Linear and head.bias is None and not scaled and base.get_decoder() is not base


class _FusedLoss(torch.autograd.Function):
    """Projection and summed cross-entropy in one, chunk by chunk, with the gradient taken on the way.

    No more than LOGITS_PER_CHUNK logits exist at a time, and backward only scales what forward left behind.
    hidden (targets, width), weight (vocabulary, width), labels (targets,) -> scalar.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        for start in range(0, len(labels), rows):
            chunk, label = hidden[start : start + rows], labels[start : start + rows, None]
            scores = torch.mm(chunk, weight.t()).float()
            normaliser = scores.logsumexp(dim=1, keepdim=True)
            total += (normaliser - scores.gather(1, label)).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad = scores.sub_(normaliser).exp_()
            grad.scatter_add_(1, label, grad.new_full(label.shape, -1.0))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                grad_weight += torch.mm(grad.t(), chunk)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = grad_outputs[0]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None,
        )
