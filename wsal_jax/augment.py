"""Random changes of pictures in training, made on the device inside the step; each function is for one picture."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

ASPECT = 4 / 3
"""Crops are up to this much wider than high, or higher than wide."""


def crop(key: PRNGKeyArray, picture: Float[Array, "s s 3"], least: float) -> Float[Array, "s s 3"]:
    """A random part of a square picture, scaled to its size.

    The part covers from `least` to all of the picture, uniformly, with a width that is 3/4 to 4/3 of its height, where
    that fits, and lies anywhere in it: the "random resized crop" of Inception. Interpolation is bilinear.
    """
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    side, bound = len(picture), jnp.log(ASPECT)
    area = jax.random.uniform(area_key, minval=least, maxval=1.0)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-bound, maxval=bound))
    size = jnp.minimum(jnp.sqrt(jnp.array([area / aspect, area * aspect])), 1.0)  # height, width
    start = jax.random.uniform(place_key, (2,)) * (1 - size)
    return jax.image.scale_and_translate(picture, picture.shape, (0, 1), 1 / size, -start * side / size, "linear")


def flip(key: PRNGKeyArray, picture: Float[Array, "s s 3"]) -> Float[Array, "s s 3"]:
    """The picture or, as often, its mirror image."""
    return jnp.where(jax.random.bernoulli(key), picture[:, ::-1], picture)
