"""The types that data, methods and evaluation exchange. This module does not import JAX.

Names: n snippets, d feature dimensions, c classes, k segments or detections of one video. A mask is 1 at real
snippets and 0 at padding (or at snippets that a round has removed). Times are in seconds.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class InputError(ValueError):
    """A user's file or option is invalid. The message says which one, what is wrong and what to do."""


def some(items: Iterable[str], limit: int = 3, between: str = ", ", last: str = " ") -> str:
    """The first items and the number of others, for messages: "a, b, c and 2 more".

    `between` joins the items; `last` precedes "and 2 more".
    """
    items = list(items)
    return between.join(items[:limit]) + (f"{last}and {len(items) - limit} more" if len(items) > limit else "")


class Video(NamedTuple):
    """One video as a method sees it: features of the sampled or padded snippets, and its weak labels."""

    features: Float[Any, "n d"]
    mask: Float[Any, " n"]
    labels: Float[Any, " c"]
    """1 for each class that occurs."""
    counts: Float[Any, " c"]
    """Number of instances of each class; supervision only for methods that declare it (STAR)."""
    length: Int[Any, ""]
    """Number of snippets of the video, including those that a round has removed; padding starts at this index."""


class Scores(NamedTuple):
    """A method's output for one video; entries at masked snippets are 0."""

    video_score: Float[Any, " c"]
    """Probability that the class occurs in the video."""
    cas: Float[Any, "n c"]
    """Class activation sequence."""
    attention: Float[Any, " n"]
    """Class-agnostic attention."""
    extras: Any = None
    """Further inputs of the method's own `propose` or `revise`: a NamedTuple of arrays, with the padding."""
    evidence: Float[Any, "n c"] | None = None
    """Probability of each class at each snippet, regardless of attention; None if the method has none."""
    class_attention: Float[Any, "n c"] | None = None
    """Attention for each class; None if the method has none."""


SEQUENCES = ("cas", "attention", "evidence", "class_attention")
"""The fields of `Scores` that run along the snippets."""


class Model(NamedTuple):
    """A model's scores for one video, without padding, and its localization options; on the host."""

    scores: Scores
    options: Any
    """`config.localize`, with the model's own options."""


class Meta(NamedTuple):
    """What converts the snippet indices of a video to seconds; on the host."""

    id: str
    length: int
    """Number of snippets."""
    fps: float
    stride: float
    """Frames between the centres of consecutive snippets."""
    offset: float
    """Frame at the centre of snippet 0."""
    duration: float
    """Seconds."""
    grid: tuple[int, int] | None = None
    """Rows and columns of an image, whose n = h w locations, row by row, are its snippets; None: a video."""
    size: tuple[int, int] | None = None
    """Width and height of an image in pixels, upright."""


class Annotation(NamedTuple):
    """True segments of one video, or boxes of one image, for evaluation only."""

    segments: Float[np.ndarray, "k 2"]
    labels: Int[np.ndarray, " k"]
    ambiguous: Float[np.ndarray, "a 2"] = np.zeros((0, 2))
    """Ambiguous segments (THUMOS14's class Ambiguous); some protocols forgive detections there."""
    boxes: Float[np.ndarray, "k 4"] | None = None
    """Of an image: x0, y0, x1, y1 in pixels, from edge to edge; each of `segments` is then the whole of it."""


class Detections(NamedTuple):
    """Detected segments of one video, in no particular order."""

    segments: Float[np.ndarray, "k 2"]
    labels: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]


class Boxes(NamedTuple):
    """Detected objects of one image, in no particular order."""

    boxes: Float[np.ndarray, "k 4"]
    """x0, y0, x1, y1 in pixels."""
    labels: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
