"""A sample as tokens, with exactly the tokens marked that the model shall learn to write."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """One document."""

    input_ids: np.ndarray
    """int64[length]."""
    loss_mask: np.ndarray
    """bool[length]: True where the token is learnt (as a prediction from those before it)."""
