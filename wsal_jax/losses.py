"""Losses of one video that several methods use."""

import optax
from jaxtyping import Array, Float


def binary_cross_entropy(logits: Float[Array, " c"], labels: Float[Array, " c"]) -> Float[Array, ""]:
    """Independent binary cross-entropies, summed over classes (MAAN eq. 10, the term of one video)."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum()
