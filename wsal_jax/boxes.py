"""Boxes of objects in images: overlap, and the metrics of weakly-supervised object localization.

Boxes are x0, y0, x1, y1. A *case* is a class of an image together with its boxes: an image with objects of two classes
is two cases. Of several boxes of a class, the best counts.

- top-1 (top-5): an image is right if the most probable class (one of the five) is one of its own, and the box of that
  class has an IoU of 0.5 or more with a box of it; the box is made at a fixed threshold.
- GT-known: of each case, the box of its true class, at the same threshold.
- MaxBoxAcc and MaxBoxAccV2 (Choe et al., CVPR 2020): see `level_ious`. They choose the threshold that is best for the
  measured images, V2 for each of three IoUs, and the box that is best for an image: a bound, not what a user gets.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from wsal_jax.types import Annotation, Meta

IOU = 0.5
IOUS_V2 = (0.3, 0.5, 0.7)
SIDE = 224
"""MaxBoxAcc scales images to SIDE x SIDE."""


def iou(
    first: Float[np.ndarray, "k 4"], second: Float[np.ndarray, "m 4"], extra: float | int = 0
) -> Float[np.ndarray, "k m"]:
    """Intersection over union; 0 where both are empty. `extra` is added to every width and height."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low + extra).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + extra).clip(0).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - common
    return common / np.where(union > 0, union, 1)


class Case(NamedTuple):
    """A class of an image with its boxes."""

    image: int
    label: int
    boxes: Float[np.ndarray, "m 4"]
    """As shares of the image's width and height, from 0 to 1: overlaps are the same as in pixels."""


def cases_of(
    images: Iterable[int | np.integer], annotations: Sequence[Annotation], metas: Sequence[Meta]
) -> list[Case]:
    """All cases of these images, in order."""
    found = []
    for i in images:
        boxes, labels = annotations[i].boxes, annotations[i].labels
        relative = boxes / np.tile(metas[i].size, 2)
        found += [Case(int(i), int(label), relative[labels == label]) for label in np.unique(labels)]
    return found


def best_ious(found: Float[np.ndarray, "k 4"], cases: Sequence[Case]) -> Float[np.ndarray, " k"]:
    """Of the box found for each case (relative), the IoU with the best of its true boxes."""
    return np.array([iou(box[None], case.boxes).max() for box, case in zip(found, cases)])


def level_ious(
    values: Float[np.ndarray, "h w"], boxes: Float[np.ndarray, "m 4"], levels: int
) -> tuple[Float[np.ndarray, " l"], Float[np.ndarray, " l"]]:
    """The best IoU of one case at each threshold, as the WSOL evaluation has it, which OpenCV is needed for.

    The map is scaled to 224 x 224 by bicubic interpolation, from 0 to 255 from its minimum to its maximum, in 8 bits (a
    constant or NaN map is 0), and cut above each of `levels` evenly spaced numbers from 0 to 254; 255 levels are what
    their 1,000 thresholds amount to. True boxes are cut down to integers, and extents are counted with + 1.

    Returns:
      Of the outer contour of the largest area (MaxBoxAcc), and of the best of all outer contours (V2). Of no contour,
      the box is 0, 0, 0, 0.
    """
    import cv2

    big = cv2.resize(values.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    low, high = big.min(), big.max()
    flat = not np.isfinite(big).all() or high == low
    picture = np.zeros(big.shape, np.uint8) if flat else ((big - low) / (high - low) * 255).astype(np.uint8)
    true = np.trunc(boxes * SIDE)
    found: list[Sequence[int]] = []
    starts, first = [], []
    for level in np.linspace(0, 254, levels).astype(int):
        contours, _ = cv2.findContours((picture > level).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        areas = [cv2.contourArea(contour) for contour in contours]
        starts.append(len(found))
        first.append(len(found) + areas.index(max(areas)) if areas else len(found))
        found += [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]
    corners = np.array(found, np.float64)
    corners[:, 2:] = (corners[:, :2] + corners[:, 2:]).clip(max=SIDE - 1)
    ious = iou(corners, true, 1).max(axis=1)
    return ious[first], np.maximum.reduceat(ious, starts)


class Hits(NamedTuple):
    """What a column of the table is made of."""

    hits: Bool[np.ndarray, "k i l"]
    """Of each case (or image), IoU and threshold."""
    image: Int[np.ndarray, " k"]
    """Of each case."""


def accuracy(column: Hits, weights: Float[np.ndarray, "r v"]) -> Float[np.ndarray, " r"]:
    """The mean over IoUs of the accuracy at the best threshold, for each weighting of the images. NaN of no case."""
    of_case = weights[:, column.image]
    total = of_case.sum(axis=1)
    k, ious, levels = column.hits.shape
    right = (of_case @ column.hits.reshape(k, -1).astype(np.float64)).reshape(-1, ious, levels)
    with np.errstate(invalid="ignore"):
        return right.max(axis=2).mean(axis=1) / total


def top_k(
    video_scores: Float[np.ndarray, "v c"], right: Bool[np.ndarray, "k l"], cases: Sequence[Case], k: int
) -> Hits:
    """Images of which one of the k most probable classes is true and localized; `right` is of the class's own box."""
    ranked = np.argsort(-video_scores, axis=1, kind="stable")[:, :k]
    images = np.unique([case.image for case in cases])
    row = {image: i for i, image in enumerate(images)}
    hits = np.zeros((len(images), 1, right.shape[1]), bool)
    for case, of_case in zip(cases, right):
        if case.label in ranked[case.image]:
            hits[row[case.image], 0] |= of_case
    return Hits(hits, images)


def small_images(cases: Sequence[Case], most: float, count: int) -> Bool[np.ndarray, " v"]:
    """The images that have boxes, all of which cover less than this share of the image; `count` is v."""
    area = np.full(count, np.inf)
    for case in cases:
        largest = (case.boxes[:, 2:] - case.boxes[:, :2]).prod(axis=1).max()
        area[case.image] = largest if np.isinf(area[case.image]) else max(area[case.image], largest)
    return area < most


def squares() -> Float[np.ndarray, "l 4"]:
    """Centred squares of all sizes, relative, so as flat as the image is."""
    half = np.arange(1, SIDE // 2 + 1) / SIDE
    return np.stack([0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half], axis=1)
