"""What builders of images share: reading a picture, checking it with its boxes, and its features by a frozen network.

An image is a video of n = h w snippets, its locations row by row, with a grid; see `types.Meta`. It is decoded upright
(by its EXIF orientation), made RGB, resized to a square whatever its shape, and goes through the network once.
"""

import hashlib
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from wsal_jax.backbones import images as networks
from wsal_jax.data.builder import SPLITS, Entry, Folder, FolderBuilder
from wsal_jax.data.store import Stream
from wsal_jax.files import regular
from wsal_jax.formats.checks import FolderError, Problems, is_plain
from wsal_jax.types import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
"""Of what is in a file, whatever its name; PIL would give PostScript to a program of the system."""
MAX_PIXELS = 50_000_000
STREAM = "rgb"

Box = tuple[float, float, float, float]


class Listed(NamedTuple):
    """An image as a folder lists it, not yet opened."""

    path: Path
    """Relative to the root; also its id."""
    labels: set[str]
    """The classes that occur."""
    boxes: list[tuple[str, Box]]
    """Class and x0, y0, x1, y1, in pixels of the upright image."""


class Listing(NamedTuple):
    """All that a folder says of its images."""

    classes: list[str]
    images: dict[str, list[Listed]]
    """By split."""


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, by their suffix, in order; none where there is no folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """The picture, upright and RGB: gray, CMYK, palettes and 16 bits are converted, transparency is dropped.

    Raises:
      ValueError: it cannot be read, ends early, or has more than `max_pixels`; the message says what and what to do.
    """
    again = "save it again as JPEG or PNG, or remove it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about large pictures and damaged metadata; ours come below
            with Image.open(regular(path), formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    what = f"{width} x {height} are more than {max_pixels:,} pixels"
                    raise ValueError(f"{what}: make it smaller, or give config.data.reader.max_pixels")
                image.load()
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                    deep = np.asarray(image, np.float64)
                    scale = 255 / 65535 if deep.max(initial=0) > 255 else 1
                    image = Image.fromarray((deep * scale).clip(0, 255).astype(np.uint8))
                return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(f"too many pixels ({error}): make it smaller") from error
    except (OSError, SyntaxError, EOFError, OverflowError, TypeError, IndexError, KeyError, MemoryError) as error:
        why = "is no picture" if isinstance(error, Image.UnidentifiedImageError) else f"cannot be read ({error})"
        raise ValueError(f"{why}: {again}") from error


def squared(image: Image.Image, side: int) -> UInt8[np.ndarray, "s s 3"]:
    """The picture as side x side pixels, by bicubic interpolation (of an average, where it shrinks)."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def rows(image: Image.Image) -> Float[np.ndarray, "s 3*s"]:
    """The pixels of the square, from 0 to 255 in float16, which holds them exactly: a row of it is a snippet."""
    return squared(image, networks.SIDE).reshape(networks.SIDE, -1).astype(np.float16)


def extract(
    root: Path, path: Path, backbone: str, weights: str, max_pixels: int, pixels: bool = False
) -> dict[str, Float[np.ndarray, "n d"]]:
    """The features of one image, by stream; with `pixels`, its `rows`.

    Raises:
      FolderError: the image changed since it was checked.
    """
    try:
        image = open_image(root / path, max_pixels)
    except ValueError as error:
        raise FolderError(root, [f"{path.as_posix()}: {error}"]) from error
    if pixels:
        return {STREAM: rows(image)}
    return {STREAM: networks.extractor(backbone, weights)(squared(image, networks.SIDE))}


def check_boxes(
    boxes: Sequence[tuple[str, Box]], size: tuple[int, int], where: str, problems: Problems
) -> list[tuple[str, Box]]:
    """The boxes, clipped where they end up to a pixel outside; those that are further out or empty are problems."""
    width, height = size
    good = []
    for label, box in boxes:
        x0, y0, x1, y1 = box
        what = f"box {', '.join(f'{x:g}' for x in box)}"
        if not (x0 < x1 and y0 < y1):
            problems.add(
                where,
                f"{what} is empty: must be x0 < x1 and y0 < y1 (or are the latter the last pixels? inclusive=True)",
            )
        elif min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1:
            turned = x1 <= height + 1 and y1 <= width + 1 and min(x0, y0) >= -1
            hint = "; boxes are those of the upright image, is it turned by EXIF?" if turned else ""
            problems.add(where, f"{what} is outside of the image of {width} x {height}: correct it{hint}")
        else:
            good.append((label, (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))))
    return good


class ImageBuilder(FolderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder of the features of images; a subclass lists them.

    `counts` are how many boxes there are of each class, -1 of an image of which no class has boxes.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike,
        backbone: str = "efficientnet_lite0",
        weights: str = "",
        max_pixels: int = MAX_PIXELS,
        pixels: bool = False,
        **kwargs: Any,
    ):
        """Makes the builder.

        Args:
          root: the user's folder.
          backbone: of `backbones.images.NETWORKS`.
          weights: its file.
          max_pixels: images with more are refused.
          pixels: keep the picture itself, for a method that trains the network; its rows are the snippets.
          **kwargs: `chosen`, more options on which the data depend, and TFDS's own.

        Raises:
          FolderError: with everything that is wrong with the folder, where it is not built yet.
          InputError: the backbone or its weights cannot be used.
        """
        if backbone not in networks.NETWORKS:
            raise InputError(f"config.data.reader.backbone={backbone!r}: there are {', '.join(networks.NETWORKS)}")
        self.backbone, self.weights, self.max_pixels, self.pixels = backbone, str(weights), max_pixels, pixels
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest() if weights and Path(weights).is_file() else ""
        made = ("pixels", backbone) if pixels else (backbone, digest)
        chosen = (*made, networks.SIDE, max_pixels, *kwargs.pop("chosen", ()))
        super().__init__(root=Path(root), prefix="-".join((*made[: 1 + pixels], "")), chosen=chosen, **kwargs)

    @abstractmethod
    def _list(self, problems: Problems) -> Listing:
        """What the folder says, without opening an image."""

    def _check(self) -> Folder:
        if not self.root.is_dir():
            raise FolderError(self.root, ["there is no such folder: set config.data.root to the folder of the images"])
        problems = Problems()
        listing = self._list(problems)
        trained = {label for image in listing.images["train"] for label in image.labels}
        videos = {}
        for split in SPLITS:
            of_split = listing.images[split]
            if not of_split:
                problems.add(split, f"has no image: looked for files that end in {', '.join(SUFFIXES)}")
            bar = tqdm(of_split, desc=f"checking {self.root.name}, {split}", unit="image", disable=None)
            entries = [self._check_image(image, split, trained, problems) for image in bar]
            videos[split] = [entry for entry in entries if entry]
        for label in listing.classes:
            if not is_plain(label):
                problems.add(repr(label), "is no name of a class: give one without line breaks or spaces around it")
        if problems:
            raise FolderError(self.root, problems.lines())
        prepare = networks.load if self.pixels else networks.extractor
        prepare(self.backbone, self.weights)  # what is wrong with the weights is told before a long build
        dim = 3 * networks.SIDE if self.pixels else networks.NETWORKS[self.backbone].dim
        made = {"network": self.backbone, "pixels": self.pixels}
        made["weights_sha256"] = networks.digest(self.backbone, self.weights)
        return Folder({STREAM: Stream(dim, "float16")}, listing.classes, videos, made)

    def _check_image(self, image: Listed, split: str, trained: set[str], problems: Problems) -> Entry | None:
        where = image.path.as_posix()
        if not where.isprintable():
            problems.add(repr(where), "has control characters in its name: rename it")
        if split == "train" and not image.labels:
            problems.add(where, "is a training image without any class: put it in a folder of its class, or list it")
        for label in sorted(image.labels - trained):
            problems.add(where, f"no training image has its class {label!r}: correct it, or add training images")
        try:
            size = open_image(self.root / image.path, self.max_pixels).size
        except ValueError as error:
            problems.add(where, str(error))
            return None
        boxes = check_boxes(image.boxes, size, where, problems)
        grid = networks.NETWORKS[self.backbone].grid
        n = networks.SIDE if self.pixels else grid[0] * grid[1]
        load = partial(extract, self.root, image.path, self.backbone, self.weights, self.max_pixels, self.pixels)
        of_image: Mapping[str, np.ndarray] = {
            "grid": np.array(grid, np.int64),
            "size": np.array(size, np.int64),
            "boxes": np.array([box for _, box in boxes], np.float64).reshape(-1, 4),
        }
        labels = [label for label, _ in boxes]
        segments = [(0.0, float(n))] * len(boxes)
        times = (1.0, 1.0, 0.5, float(n))  # a location a second
        return Entry(where, load, sorted(image.labels), segments, labels, [], *times, image=dict(of_image))

    def _files(self) -> Iterator[Path]:
        """All but what the system hides."""
        for path in self.root.rglob("*"):
            if not any(part.startswith(".") for part in path.relative_to(self.root).parts):
                yield path
