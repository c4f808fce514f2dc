"""Conversion between snippet indices and seconds. No other module converts them."""

import numpy as np
from jaxtyping import Float

from wsal_jax.types import Meta


def snippet_to_seconds(index: Float[np.ndarray, "*k"] | float, meta: Meta) -> Float[np.ndarray, "*k"] | float:
    """The time of a (fractional) snippet index: `(offset + index * stride) / fps`.

    Index i is the centre of snippet i; i - 0.5 is the boundary between snippets i - 1 and i. The time is not clipped to
    the video.
    """
    return (meta.offset + np.asarray(index, np.float64) * meta.stride) / meta.fps


def seconds_to_snippet(time: Float[np.ndarray, "*k"] | float, meta: Meta) -> Float[np.ndarray, "*k"] | float:
    """The fractional snippet index of a time; the inverse of `snippet_to_seconds`."""
    return (np.asarray(time, np.float64) * meta.fps - meta.offset) / meta.stride


def resampled(meta: Meta, length: int) -> Meta:
    """The Meta of features that were resampled to `length` snippets, which divide the same time into equal parts.

    For features resized to T_max, use `resampled(meta, T_max)`. The times of the first edge (index -0.5) and of the
    last edge (`length` - 0.5) do not change.
    """
    ratio = meta.length / length
    return meta._replace(length=length, stride=meta.stride * ratio, offset=meta.offset + (ratio - 1) / 2 * meta.stride)
