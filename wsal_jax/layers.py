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


def init_conv(key: PRNGKeyArray, width: int, inputs: int, outputs: int, scale: float | int = 2.0) -> dict[str, Array]:
    """The layer of `conv`: kernel [width, inputs, outputs], uniform with variance scale / (width inputs), zero bias."""
    kernel = jax.nn.initializers.variance_scaling(scale, "fan_in", "uniform")(key, (width, inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def conv(layer: dict[str, Any], x: Float[Array, "n i"], mask: Float[Array, " n"]) -> Float[Array, "n o"]:
    """A convolution over time of odd width that sees zeros where masked and beyond the ends.

    Masked snippets of the result hold what the layer makes of their neighbours; the next `conv` masks them again.
    A product for each tap, since kernels that differ by seed, under vmap, would make a grouped convolution, which is
    slow.
    """
    width = len(layer["kernel"])
    padded = jnp.pad(x * mask[:, None], ((width // 2, width // 2), (0, 0)))
    return sum(padded[i : i + len(x)] @ layer["kernel"][i] for i in range(width)) + layer["bias"]


def top_mean(
    values: Float[Array, "n c"], mask: Float[Array, " n"], share: int, by: Float[Array, "n #c"] | None = None
) -> Float[Array, " c"]:
    """For each class by itself, the mean of its values at the k snippets where `by` (the values if None) is largest.

    k = max(1, floor(m / share)), where m is the number of snippets that are not masked. Among equals the first count.
    0 if all are masked.
    """
    there = mask[:, None] > 0
    by = jax.lax.stop_gradient(jnp.broadcast_to(values if by is None else by, values.shape))
    order = jnp.argsort(jnp.where(there, -by, jnp.inf), axis=0)
    k = jnp.maximum(1, there.sum() // share)
    chosen = (jnp.arange(len(values))[:, None] < k) & jnp.take_along_axis(there, order, axis=0)
    ordered = jnp.take_along_axis(values, order, axis=0)
    return jnp.where(chosen, ordered, 0).sum(0) / jnp.maximum(chosen.sum(0), 1)


def dropout(key: PRNGKeyArray | None, x: Float[Array, "*n"], rate: float) -> Float[Array, "*n"]:
    """Inverted dropout of entries: 0 with probability `rate`, otherwise divided by 1 - rate. None: no dropout."""
    if key is None or not rate:
        return x
    return x * (jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate))


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
