"""Modules that several methods use."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float


class Attention(nn.Module):
    """Class-agnostic attention of each snippet: FC `hidden`, activation, FC 1, sigmoid (MAAN section 3.1)."""

    hidden: int = 256
    activation: Callable[[Array], Array] = nn.leaky_relu

    @nn.compact
    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, " n"]:
        hidden = self.activation(nn.Dense(self.hidden, name="hidden")(features))
        return nn.sigmoid(nn.Dense(1, name="out")(hidden))[:, 0]
