"""Losses of one video that several methods use."""

import optax
from jaxtyping import Array, Float


def binary_cross_entropy(logits: Float[Array, " c"], labels: Float[Array, " c"]) -> Float[Array, ""]:
    """Each class its own yes-or-no question, summed over classes (MAAN eq. 10, one video's term)."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum()
