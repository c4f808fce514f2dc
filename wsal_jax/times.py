"""Snippets and seconds: the one place where an index becomes a time."""

import numpy as np
from jaxtyping import Float

from wsal_jax.types import Meta


def snippet_to_seconds(index: Float[np.ndarray, "*k"] | float, meta: Meta) -> Float[np.ndarray, "*k"] | float:
    """The time of a (fractional) snippet index: `(offset + index * stride) / fps`.

    Index i is the centre of snippet i; snippets i - 1 and i meet at i - 0.5. Not clipped to the video.
    """
    return (meta.offset + np.asarray(index, np.float64) * meta.stride) / meta.fps


def seconds_to_snippet(time: Float[np.ndarray, "*k"] | float, meta: Meta) -> Float[np.ndarray, "*k"] | float:
    """The fractional snippet index of a time; the inverse of `snippet_to_seconds`."""
    return (np.asarray(time, np.float64) * meta.fps - meta.offset) / meta.stride


def resampled(meta: Meta, length: int) -> Meta:
    """Of the features sampled down (or up) to `length` snippets that divide the same time into equal parts.

    A video whose features were resized to T_max is so described by `resampled(meta, T_max)`: the first edge (index
    -0.5) and the last (`length` - 0.5) stay where they were.
    """
    ratio = meta.length / length
    return meta._replace(length=length, stride=meta.stride * ratio, offset=meta.offset + (ratio - 1) / 2 * meta.stride)
