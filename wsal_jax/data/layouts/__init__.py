"""The layouts in which features and annotations of the benchmarks are distributed, one module each.

A module has `LOOKS_FOR`, a line that describes its files; `matches(root)`, which tests for them; and
`read(root, benchmark, problems)`, which lists all videos it finds. Modules do not check features or treat odd data;
`wsal_jax.data.benchmark` does this for all of them.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from wsal_jax.formats.annotations import Record
from wsal_jax.formats.checks import FolderError

NAMES = ("w_talc", "bas_net", "ftcl", "dgam", "a2cl_pt", "cmcs", "opentad")


class Benchmark(NamedTuple):
    """The properties of a benchmark that are known before its files are read."""

    name: str
    classes: tuple[str, ...] | None
    """Class names in the order of their indices; None for the labels in use, sorted by name."""
    num_classes: int
    split_of: Callable[[str, str, set[str]], str | None]
    """(id, subset, all subsets of the annotations) -> "train", "test" or None for neither."""


class Sampling(NamedTuple):
    """The sampling of a layout's features; `fps` None means the frame rate of each video."""

    fps: float | None
    stride: float
    offset: float


class Source(NamedTuple):
    """One video of a layout."""

    id: str
    split: str
    where: str
    """The files of its features, for error messages."""
    load: Callable[[], dict[str, np.ndarray]]
    """Reads the features by stream, unchecked; may raise an InputError."""
    record: Record | None
    """Its annotation, if any."""


class Listing(NamedTuple):
    """The contents of a layout."""

    sources: list[Source]
    missing: list[str]
    """Ids without features, although annotations or lists contain them."""
    sampling: Sampling


def choose(root: Path, layout: str) -> ModuleType:
    """The module of the named layout or, if `layout` is "auto", of the layout in the folder.

    Raises:
      FolderError: none or several layouts match; the message lists their files and the contents of the folder.
    """
    if layout != "auto" and layout not in NAMES:
        raise FolderError(root, [f"there is no layout {layout!r}: there are auto, {', '.join(NAMES)}"])
    if not root.is_dir():
        raise FolderError(root, ["there is no such folder: set the root to the folder with features and annotations"])
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in NAMES}
    if layout != "auto":
        return modules[layout]
    fitting = [name for name, module in modules.items() if module.matches(root)]
    if len(fitting) == 1:
        return modules[fitting[0]]
    if fitting:
        raise FolderError(root, [f"fits the layouts {' and '.join(fitting)}: name the one that you mean"])
    present = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    has = ", ".join(present[:10]) + (f" and {len(present) - 10} more" if len(present) > 10 else "")
    looked = [f"looked for {name}: {module.LOOKS_FOR}" for name, module in modules.items()]
    raise FolderError(root, ["no layout that we know is there", *looked, f"the folder has {has or 'nothing'}"])


def halves(joint: Num[np.ndarray, "n d"]) -> dict[str, Num[np.ndarray, "n _"]]:
    """Splits joint features rgb | flow. Features without two halves stay whole, so that the checks refuse them."""
    if joint.ndim != 2 or joint.shape[1] % 2:
        return {"rgb": joint}
    rgb, flow = np.split(joint, 2, axis=1)
    return {"rgb": rgb, "flow": flow}
