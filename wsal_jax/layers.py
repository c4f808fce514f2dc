"""Layers that several methods use: plain functions over dicts of parameters.

A fully-connected layer is {"kernel" [inputs, outputs], "bias" [outputs]}. Checkpoints use the same names.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def init_dense(key: PRNGKeyArray, inputs: int, outputs: int) -> dict[str, Array]:
    """A fully-connected layer: LeCun normal kernel, zero bias."""
    return {"kernel": jax.nn.initializers.lecun_normal()(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


def dense(layer: dict[str, Any], x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
    """A fully-connected layer."""
    return x @ layer["kernel"] + layer["bias"]


def init_attention(key: PRNGKeyArray, inputs: int, hidden: int) -> dict[str, Any]:
    """The layers of `attend`."""
    hidden_key, out_key = jax.random.split(key)
    return {"hidden": init_dense(hidden_key, inputs, hidden), "out": init_dense(out_key, hidden, 1)}


def attend(
    layers: dict[str, Any], features: Float[Array, "n d"], activation: Callable[[Array], Array]
) -> Float[Array, " n"]:
    """Class-agnostic attention of each snippet: FC `hidden`, activation, FC 1, sigmoid (MAAN section 3.1)."""
    hidden = activation(dense(layers["hidden"], features))
    return jax.nn.sigmoid(dense(layers["out"], hidden))[:, 0]


def drop_dimensions(key: PRNGKeyArray, features: Float[Array, "n d"], rate: float) -> Float[Array, "n d"]:
    """Inverted dropout of feature dimensions, the same ones in all snippets of a video.

    Args:
      key: the key of the video and the step.
      features: the features of the video.
      rate: probability that a dimension is set to 0; the others are divided by 1 - rate. 0 disables dropout.
    """
    if not rate:
        return features
    kept = jax.random.bernoulli(key, 1 - rate, features.shape[1:])
    return features * (kept / (1 - rate))


def grid(length: Int[Array, ""], size: int) -> Int[Array, " size"]:
    """The snippet in the middle of each of `size` equal parts of a video, for weights that belong to positions.

    If `length` = `size`, as in training, these are all snippets in order. In a shorter video snippets repeat. The
    inverse is `off_grid`.
    """
    return (2 * jnp.arange(size) + 1) * length // (2 * size)


def off_grid(length: Int[Array, ""], size: int, num_snippets: int) -> Int[Array, " num_snippets"]:
    """For each snippet, the one of `size` equal parts of the video that contains its middle; any part at padding."""
    return jnp.minimum((2 * jnp.arange(num_snippets) + 1) * size // jnp.maximum(2 * length, 1), size - 1)
