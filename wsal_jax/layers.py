"""Modules that several methods use."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Attention(nn.Module):
    """Class-agnostic attention of each snippet: FC `hidden`, activation, FC 1, sigmoid (MAAN section 3.1)."""

    hidden: int = 256
    activation: Callable[[Array], Array] = nn.leaky_relu

    @nn.compact
    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, " n"]:
        hidden = self.activation(nn.Dense(self.hidden, name="hidden")(features))
        return nn.sigmoid(nn.Dense(1, name="out")(hidden))[:, 0]


def grid(length: Int[Array, ""], size: int) -> Int[Array, " size"]:
    """The snippet in the middle of each of `size` equal parts of a video, where weights belong to positions.

    Of a video of `length` = `size` snippets, as in training, it is each in turn; snippets repeat in a shorter one. Its
    inverse is `off_grid`.
    """
    return (2 * jnp.arange(size) + 1) * length // (2 * size)


def off_grid(length: Int[Array, ""], size: int, num_snippets: int) -> Int[Array, " num_snippets"]:
    """The part, of `size` equal parts of a video, that the middle of each snippet is in; padding has some part too."""
    return jnp.minimum((2 * jnp.arange(num_snippets) + 1) * size // jnp.maximum(2 * length, 1), size - 1)
