"""The ways in which features and annotations of the benchmarks lie on people's disks, one module each.

A module has three things: `LOOKS_FOR`, a line that says what it looks for; `matches(root)`, whether that is there; and
`read(root, benchmark, problems)`, which lists every video it finds. None of them checks features or decides what
becomes of odd data: `wsal_jax.data.benchmark` does, in one way for all.
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
    """What is known of a benchmark before its files are read."""

    name: str
    classes: tuple[str, ...] | None
    """In the order of their indices; None: the labels in use, sorted by name."""
    num_classes: int
    split_of: Callable[[str, str, set[str]], str | None]
    """(id, subset, all subsets of the annotations) -> "train", "test" or None for neither."""


class Sampling(NamedTuple):
    """Where the snippets of a layout's features lie; `fps` None is each video's own."""

    fps: float | None
    stride: float
    offset: float


class Source(NamedTuple):
    """One video as it lies there."""

    id: str
    split: str
    where: str
    """The files of its features, for messages."""
    load: Callable[[], dict[str, np.ndarray]]
    """Reads the features by stream, as they are; may raise an InputError."""
    record: Record | None
    """What the annotations say of it, if anything."""


class Listing(NamedTuple):
    """All that a layout has."""

    sources: list[Source]
    missing: list[str]
    """Ids that should have features by the annotations and lists, and have none."""
    sampling: Sampling


def choose(root: Path, layout: str) -> ModuleType:
    """The module of the layout named, or of the one that is in the folder if `layout` is "auto".

    Raises:
      FolderError: none or several are there; it says what was looked for, and what the folder has.
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
    """The streams of joint features: rgb | flow. What has no two halves stays whole, for the checks to refuse."""
    if joint.ndim != 2 or joint.shape[1] % 2:
        return {"rgb": joint}
    rgb, flow = np.split(joint, 2, axis=1)
    return {"rgb": rgb, "flow": flow}
