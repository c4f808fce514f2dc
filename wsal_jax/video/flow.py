"""Optical flow between two pictures, with OpenCV (contrib)."""

import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

# The flow of DIS depends on how many threads share the picture, and a worker is one of many processes.
cv2.setNumThreads(1)


@functools.cache  # neither kind may be shared by threads; each process has its own
def _tvl1() -> Any:
    return cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]


@functools.cache
def _dis() -> Any:
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]


FLOWS: dict[str, Callable[[], Any]] = {"tvl1": _tvl1, "dis": _dis}
"""TV-L1 with OpenCV's defaults is what the published flow networks of I3D saw; DIS (medium) is 100 times faster."""


def flow(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], kind: str
) -> Float[np.ndarray, "h w 2"]:
    """How far each point of the first RGB picture moves to where it is in the second; pixels, x then y."""
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
    return FLOWS[kind]().calc(*gray, None)


def quantise(field: Float[np.ndarray, "h w 2"], bound: float = 20) -> UInt8[np.ndarray, "h w 2"]:
    """Flow cut at +-`bound` pixels, [-bound, bound] mapped to [0, 255] and rounded, as JPEG files of flow hold it."""
    return np.rint((np.clip(field, -bound, bound) + bound) * (255 / (2 * bound))).astype(np.uint8)


def hof(field: Float[np.ndarray, "h w 2"], cells: int = 4, bins: int = 8) -> Float[np.ndarray, " d"]:
    """Histogram of oriented flow: for each of `cells` x `cells` parts of the picture, `bins` + 1 numbers.

    They are the sums of the magnitude by direction (equal parts of [-pi, pi)) divided by the pixels of the part, and
    the share of pixels that move by more than half a pixel.
    """
    height, width = field.shape[:2]
    x, y = field[..., 0], field[..., 1]
    magnitude = np.hypot(x, y)
    turn = (np.arctan2(y, x) + np.pi) * (bins / (2 * np.pi))
    direction = turn.astype(np.int64) % bins  # pi itself is -pi
    row, column = (np.arange(n) * cells // n for n in (height, width))
    cell = row[:, None] * cells + column
    pixels = np.bincount(cell.ravel(), minlength=cells**2)[:, None]
    index = (cell * bins + direction).ravel()
    sums = np.bincount(index, magnitude.ravel(), cells**2 * bins).reshape(-1, bins)
    moving = np.bincount(cell.ravel(), (magnitude > 0.5).ravel(), cells**2)[:, None]
    return (np.concatenate([sums, moving], axis=1) / pixels).astype(np.float32).ravel()
