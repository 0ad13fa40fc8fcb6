"""Attention over a flat row that spends nothing on other documents.

A micro-batch is one row of shape (1, tokens): documents laid end to end, no padding, their boundaries in `cu_seq_lens_q`.
transformers hands these keyword arguments through every decoder layer to the attention function, which is registered here
under one name. No mask is ever built: transformers skips mask creation for attention functions that register none.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PretrainedConfig

from shoal.errors import ModelError, Problem

PER_DOCUMENT = "shoal_per_document"


def resolve(wanted: str, config: PretrainedConfig) -> str:
    """The name to hand to transformers. `auto` takes per-document attention but where a model's layers need more than
    causality, or its code does not ask for attention by name."""
    text = config.get_text_config()
    if wanted == "auto" and getattr(text, "attn_logit_softcapping", None):
        wanted = "eager"  # sdpa has no soft cap
    elif wanted == "auto":
        windows = any(getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
        wanted = "per_document" if _asks_by_name(config) and not windows else "sdpa"
    if wanted == "per_document":
        AttentionInterface.register(PER_DOCUMENT, per_document_attention)
        return PER_DOCUMENT
    return wanted


def _asks_by_name(config: PretrainedConfig) -> bool:
    """Whether the model's class takes attention functions from transformers' registry."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return bool(getattr(model_class, "_supports_attention_backend", False))


def per_document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    document_lengths: list[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) -> (1, tokens, heads, dim).

    Without boundaries (generation, a plain forward) every row is one document: causal, or one new token over a cache.
    """
    if sliding_window is not None or softcap is not None or s_aux is not None:
        asked = "a sliding window" if sliding_window else "a soft cap" if softcap else "attention sinks"
        fix = "set it to auto, sdpa or eager"
        raise ModelError(
            Problem("model.attn_implementation", f"per_document cannot do {asked}, which this model has", fix)
        )
    if document_lengths is None:
        output = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=query.shape[2] > 1, enable_gqa=True
        )
        return output.transpose(1, 2), None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0:
        return _varlen(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    documents = zip(*(states.split(document_lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True)
        for q, k, v in documents
    ]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


def _varlen(query, key, value, scaling, cu_seq_lens, longest) -> torch.Tensor:
    """One fused kernel for all documents: torch's own variable-length attention, (tokens, heads, dim)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    output = varlen_attn(
        q, k, v, cu_seq_lens, cu_seq_lens, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=True
    )
    assert isinstance(output, torch.Tensor)
    return output[None]
