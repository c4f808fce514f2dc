"""A trained run for new images, as `wsal_jax.localizer` is for videos.

    localizer = wsal_jax.Localizer.load("runs/1")
    for xmin, ymin, xmax, ymax, label, score in localizer("new.jpg"):
        print(xmin, ymin, xmax, ymax, label, score)

The seeds of a run count alike. Of one seed the boxes are those that the run's own evaluation finds.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from wsal_jax import evaluate_images
from wsal_jax.backbones import images as networks
from wsal_jax.data import images
from wsal_jax.fuse import fuse
from wsal_jax.method import options_of
from wsal_jax.types import Boxes, InputError, Meta, Scores

Features = Mapping[str, Float[np.ndarray, "_ _"]]


class Object(NamedTuple):
    """A detected object; pixels of the upright image, from edge to edge."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    label: str
    score: float


def make_extractor(run: Any, weights: str = "") -> Callable[[Image.Image], Features]:
    """What makes features of a picture as those of the run were made.

    Args:
      run: a `localizer.Run` of images.
      weights: the file of the network's weights; "" for that of the run's data.

    Raises:
      InputError: the weights are gone, or others than those of the run's data.
    """
    reader, made = run.trained.config.data.get("reader", {}), run.data["extraction"] or {}
    name = made.get("network") or reader.get("backbone", "efficientnet_lite0")
    if made.get("pixels"):
        return lambda picture: {images.STREAM: images.rows(picture)}
    weights = weights or reader.get("weights", "")
    known = made.get("weights_sha256")
    if weights and not Path(weights).is_file():
        raise InputError(
            f"{weights}, the weights of {name}, are not there: give them by --weights {images.STREAM}=FILE"
        )
    if known and known != networks.digest(name, weights):
        raise InputError(f"the weights of {name} are others than those of the run's features: give the same file")
    extract = networks.extractor(name, weights)
    return lambda picture: {images.STREAM: extract(images.squared(picture, networks.SIDE))}


def open_image(run: Any, path: str | os.PathLike, id: str = "") -> tuple[Image.Image, Meta]:
    """The picture of a file, and what its boxes are made by.

    Raises:
      InputError: it cannot be read, or is too large.
    """
    most = run.trained.config.data.get("reader", {}).get("max_pixels", images.MAX_PIXELS)
    try:
        picture = images.open_image(Path(path), most)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    grid = tuple(run.data["map"])
    n = prod(grid)
    return picture, Meta(id or Path(path).name, n, 1.0, 1.0, 0.5, float(n), grid, picture.size)


def localize(run: Any, scores: Mapping[str, Sequence[Scores]], meta: Meta) -> tuple[Scores, Boxes]:
    """From what `localizer.score` returns to the mean scores of all seeds, and the boxes."""
    each = [one for seeds in scores.values() for one in seeds]
    together = each[0] if len(each) == 1 else fuse(each, [1.0] * len(each))
    options = options_of(run.trained.config.localize, list(scores)[-1], "config.localize")
    return together, evaluate_images.find(together, meta, options)


def objects(found: Boxes, classes: Sequence[str], threshold: float = 0.0) -> list[Object]:
    """Boxes with a score of at least `threshold`, the best first."""
    labels = [classes[label] for label in found.labels]
    listed = map(Object, *found.boxes.T.tolist(), labels, found.scores.tolist())
    return sorted((one for one in listed if one.score >= threshold), key=lambda one: -one.score)
