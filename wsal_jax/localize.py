"""From the scores of a video to detections in seconds: NumPy, on the host, one video at a time."""

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
