"""Small ragged documents of random tokens: some supervised late, some barely, one not at all."""

import numpy as np
import torch

from shoal.rows.template import Encoded


def documents(count: int, vocabulary: int, seed: int = 0, longest: int = 40) -> list[Encoded]:
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(generator.integers(3, longest))
        mask = np.zeros(length, dtype=np.bool_)
        if number != 3:
            mask[int(generator.integers(1, length)) :] = True
        made.append(Encoded(generator.integers(5, vocabulary, length).astype(np.int64), mask))
    return made


def plain_loss(model: torch.nn.Module, document: Encoded) -> torch.Tensor:
    """The reference: one document alone, transformers' own forward, shifted labels, summed cross-entropy."""
    ids = torch.from_numpy(document.input_ids.astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(document.loss_mask)[None], ids, -100)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
