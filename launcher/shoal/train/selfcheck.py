"""Before step 1: proof, on the user's own model and two real batches, that training it will do what it says.

The model is still a plain module here, the same on every rank, so each rank checks for itself and nobody waits. Rows are
cropped, so that it takes seconds. Whatever is moved is put back; no optimizer exists yet.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from shoal.errors import Problem, SelfCheckError
from shoal.rows.template import Encoded
from shoal.tasks import causal_lm

CROP = 24
"""Tokens of each document that take part."""
PROBE_RATE = 1e-2
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
"""Largest relative difference that rounding explains; a leak between documents or a mean of means is over 0.1."""

Losses = Callable[[Sequence[Encoded]], torch.Tensor]


def check(model: Any, documents: Sequence[Encoded], device: torch.device) -> dict[str, float]:
    """Figures of the check; SelfCheckError names everything that is wrong.

    `documents` come from two real batches; at least one, any number is used.
    """
    cropped = [part for part in map(_crop, documents) if part.loss_mask[1:].any()][:4]
    if not cropped:
        problem = "none of the first batches' rows has a supervised token near an answer's start"
        raise SelfCheckError(Problem("self-check", problem, "look at `shoal check --show 3`"))
    training = model.training
    model.train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    dtype = next(model.parameters()).dtype if not trainable else _compute_dtype(model)
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    with _without_dropout(model):
        figures = {"packed_logits": _packed_logits(model, cropped, device)}
        figures |= _gradients(model, trainable, cropped, device)
    model.train(training)
    problems = [
        Problem("self-check", f"{CAUSES[name]} (relative difference {value:.2g}, allowed {tolerance:.0e})", FIXES[name])
        for name, value in figures.items()
        if name in CAUSES and not value <= tolerance
    ]
    problems += _motion(model, trainable, cropped, device)
    if problems:
        raise SelfCheckError(*problems)
    return figures


CAUSES = {
    "packed_logits": "documents packed into one row see each other",
    "accumulated_gradient": "two micro-batches do not give the gradient of the two together",
}
FIXES = {
    "packed_logits": "set model.attn_implementation to sdpa or eager",
    "accumulated_gradient": "this model's loss depends on what else is in the micro-batch; it cannot be trained exactly",
}


def _crop(document: Encoded) -> Encoded:
    """CROP tokens around the first supervised one."""
    supervised = np.flatnonzero(document.loss_mask)
    start = max(0, int(supervised[0]) - CROP // 2) if len(supervised) else 0
    return Encoded(document.input_ids[start : start + CROP], document.loss_mask[start : start + CROP])


def _packed_logits(model: Any, documents: Sequence[Encoded], device: torch.device) -> float:
    """Largest logit difference between documents in one row and each alone, relative to the largest logit."""
    with torch.no_grad():
        together = causal_lm.logits(model, causal_lm.collate(documents, device))
        alone = torch.cat([causal_lm.logits(model, causal_lm.collate([d], device)) for d in documents])
    return float((together - alone).abs().max() / alone.abs().max())


def _gradients(
    model: Any, trainable: dict[str, Parameter], documents: Sequence[Encoded], device: torch.device
) -> dict[str, float]:
    """Gradient of all documents in one micro-batch against the sum over single ones."""
    _backward(model, [documents], device)
    # On the CPU: beside the weights and one gradient a device need not hold another.
    together = {name: p.grad.detach().cpu().clone() for name, p in trainable.items() if p.grad is not None}
    _clear(trainable.values())
    _backward(model, [[document] for document in documents], device)
    difference = sum(
        float((together[n] - p.grad.cpu()).float().pow(2).sum()) for n, p in _with_gradient(trainable, together)
    )
    size = sum(float(gradient.float().pow(2).sum()) for gradient in together.values())
    return {"accumulated_gradient": (difference / size) ** 0.5 if size else 0.0, "gradient_norm": size**0.5}


def _motion(
    model: Any, trainable: dict[str, Parameter], documents: Sequence[Encoded], device: torch.device
) -> list[Problem]:
    """Every trainable tensor gets a gradient and moves. Gradients of `_gradients` are still in place; cleared after.

    LoRA's A has none while B is zero, so B takes a probe step first and is put back afterwards.
    """
    dead = [name for name, p in trainable.items() if not _has_gradient(p)]
    probed = {name: p for name, p in trainable.items() if _has_gradient(p) and any("lora_A" in d for d in dead)}
    with torch.no_grad():
        frozen = [name for name, p in trainable.items() if _has_gradient(p) and not _moves(p)]
        kept = {name: p.detach().clone() for name, p in probed.items()}
        for parameter in probed.values():
            parameter -= PROBE_RATE * _unit(parameter)
    _clear(trainable.values())
    if probed:
        _backward(model, [documents], device)
        dead = [name for name in dead if not _has_gradient(trainable[name])]
        with torch.no_grad():
            for name, parameter in probed.items():
                parameter.copy_(kept[name])
        _clear(trainable.values())
    return _told("gets no gradient", dead) + _told("does not move at a step of 1e-2", frozen)


def _told(what: str, names: list[str]) -> list[Problem]:
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        Problem("self-check", f"a trainable tensor {what}: {shown}", "check lora.target_modules and the base model")
    ]


def _moves(parameter: Parameter) -> bool:
    """Whether a normalised step of PROBE_RATE changes the stored number, which a low-precision dtype may round away."""
    return bool(((parameter - PROBE_RATE * _unit(parameter)) != parameter).any())


def _unit(parameter: Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad / parameter.grad.abs().max().clamp_min(torch.finfo(parameter.grad.dtype).tiny)


def _has_gradient(parameter: Parameter) -> bool:
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def _with_gradient(trainable: dict[str, Parameter], together: dict[str, torch.Tensor]) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in trainable.items() if name in together and p.grad is not None]


def _backward(model: Any, micro_batches: Sequence[Sequence[Encoded]], device: torch.device) -> None:
    for documents in micro_batches:
        causal_lm.loss_sum(model, causal_lm.collate(documents, device)).backward()


def _clear(parameters: Iterable[Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _compute_dtype(model: Any) -> torch.dtype:
    return getattr(model.config, "dtype", None) or torch.float32


@contextmanager
def _without_dropout(model: torch.nn.Module):
    """Equality needs no chance: dropout layers sit in evaluation mode meanwhile, attention dropout included."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    attentions: list[Any] = [m for m in model.modules() if getattr(m, "attention_dropout", 0.0)]
    rates = [m.attention_dropout for m in attentions]
    for layer in layers:
        layer.eval()
    for module in attentions:
        module.attention_dropout = 0.0
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
        for module, rate in zip(attentions, rates, strict=True):
            module.attention_dropout = rate
