"""A page of images: true and found boxes, and the map of a class over each (MAAN, Figure 6)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps, get_data_path
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageDraw, ImageFont

from wsal_jax.data.images import MAX_PIXELS, open_image
from wsal_jax.localize import upscale
from wsal_jax.plot import COLOR_TRUE, COLORS_MODELS
from wsal_jax.text import cut
from wsal_jax.types import Annotation, Boxes, Meta

SIDE, TOP, GAP = 2.2, 0.5, 0.3  # inches
PIXELS = 320
"""The longer side of an image on the page."""
OVERLAY = (320, 1024)


class Row(NamedTuple):
    """An image of the page."""

    path: Path
    meta: Meta
    maps: Mapping[str, Float[np.ndarray, "h w"]]
    """Of one class, by model."""
    true: Annotation
    found: Boxes
    label: int
    """The class of the maps."""


def draw(path: str | os.PathLike, rows: Sequence[Row], class_names: Sequence[str]) -> None:
    """Writes a PNG: a row for each image, which is shown alone with all boxes, then under the map of each model."""
    columns = 1 + max(len(row.maps) for row in rows)
    height = TOP + len(rows) * (SIDE + GAP)
    figure = Figure(figsize=(columns * SIDE + 0.4, height), dpi=100)
    place = dict(left=0.02, right=0.98, bottom=0.01, top=1 - (TOP + GAP) / height, hspace=0.18, wspace=0.06)
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=place)
    for axes, row in zip(grid, rows):
        picture = _read(row)
        best = row.found.labels[np.argsort(-row.found.scores)][:1]
        named = f"{class_names[row.label]}" + (
            f"; found: {class_names[best[0]]}" if best.size and best[0] != row.label else ""
        )
        for one, (name, values) in zip(axes, {"": None, **row.maps}.items()):
            one.set_axis_off()
            one.imshow(picture, extent=(0, row.meta.size[0], row.meta.size[1], 0))
            if values is not None:
                big = upscale(np.nan_to_num(values), *picture.shape[:2])
                one.imshow(big, cmap="inferno", alpha=0.55, extent=(0, row.meta.size[0], row.meta.size[1], 0))
            _outline(one, row)
            one.set_title(named[:40] if values is None else name, size=7, loc="left", parse_math=False, pad=2)
    handles = [
        Patch(fill=False, edgecolor=COLOR_TRUE, label="true"),
        Patch(fill=False, edgecolor=COLORS_MODELS[0], label="found"),
    ]
    figure.legend(handles=handles, ncols=2, loc="upper left", frameon=False, fontsize=9)
    figure.savefig(path)


def overlay(
    picture: Image.Image, values: Float[np.ndarray, "h w"], found: Boxes, class_names: Sequence[str]
) -> Image.Image:
    """A picture under a map, with the outlines of what was found; `OVERLAY` says how long its longer side may be."""
    scale = np.clip(max(picture.size), *OVERLAY) / max(picture.size)
    width, height = (max(1, round(n * scale)) for n in picture.size)
    big = upscale(np.nan_to_num(values), height, width)
    low, high = min(0.0, big.min()), max(0.0, big.max())
    heat = Image.fromarray(np.uint8(255 * colormaps["inferno"]((big - low) / max(high - low, 1e-12))[..., :3]))
    result = Image.blend(picture.resize((width, height)), heat, 0.5)
    pen = ImageDraw.Draw(result)
    line = max(2, round(max(result.size) / 200))
    font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 7 * line)
    for box, label, score in sorted(zip(found.boxes * scale, found.labels, found.scores), key=lambda one: one[2]):
        pen.rectangle([*box], outline=COLORS_MODELS[0], width=line)
        text = f"{cut(class_names[label], 40)} {score:.2f}"
        at = (box[0] + 2 * line, box[1] + 2 * line)
        pen.rectangle(pen.textbbox(at, text, font), fill=(0, 0, 0))
        pen.text(at, text, (255, 255, 255), font)
    return result


def _read(row: Row) -> np.ndarray:
    """The image, small; gray where it is no longer there."""
    width, height = (max(1, round(n * PIXELS / max(row.meta.size))) for n in row.meta.size)
    try:
        return np.asarray(
            open_image(row.path, max(MAX_PIXELS, row.meta.size[0] * row.meta.size[1])).resize((width, height))
        )
    except ValueError:
        return np.full((height, width, 3), 128, np.uint8)


def _outline(axes: Axes, row: Row) -> None:
    true = row.true.boxes if row.true.boxes is not None else np.zeros((0, 4))
    for boxes, color, style in ((true, COLOR_TRUE, "-"), (row.found.boxes, COLORS_MODELS[0], "--")):
        for x0, y0, x1, y1 in boxes:
            axes.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=2)
            )
