"""Attention over a flat row that spends nothing on other documents.

A micro-batch is one row of shape (1, tokens): documents laid end to end, no padding, their boundaries in `cu_seq_lens_q`.
transformers hands these keyword arguments through every decoder layer to the attention function, which is registered here
under one name. No mask is ever built: transformers skips mask creation for attention functions that register none.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

PER_DOCUMENT = "shoal_per_document"


def resolve(wanted: str, config: PretrainedConfig) -> str:
    """The name to hand to transformers. `auto` avoids per-document attention where a model's layers need more than causality."""
    if wanted == "auto":
        text = config.get_text_config()
        special = getattr(text, "attn_logit_softcapping", None) or getattr(text, "sliding_window", None)
        wanted = "eager" if special else "per_document"
    if wanted == "per_document":
        AttentionInterface.register(PER_DOCUMENT, per_document_attention)
        return PER_DOCUMENT
    return wanted


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
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) -> (1, tokens, heads, dim).

    Without boundaries (generation, a plain forward) every row is one document: causal, or one new token over a cache.
    """
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
