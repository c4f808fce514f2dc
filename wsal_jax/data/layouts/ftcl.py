"""FTCL, ACM-Net and ASM-Loc: a joint file for each video.

Its files are `{train,test}/<video>.npy` [n 2d] (rgb | flow). The rest is as in `bas_net`: `gt.json`, split files,
snippets of 16 frames at 25 frames per second. FTCL's `gt.json` has two more test videos than its split file; they have
no features and are left out.
"""

from pathlib import Path

import numpy as np

from wsal_jax.data.builder import SPLITS
from wsal_jax.data.layouts import Benchmark, Listing, halves
from wsal_jax.data.layouts.bas_net import read_splits
from wsal_jax.formats import arrays
from wsal_jax.formats.checks import Problems

LOOKS_FOR = "{train,test}/<video>.npy and gt.json"


def matches(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any(any((root / split).glob("*.npy")) for split in SPLITS) and (root / "gt.json").exists()


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The videos of the split files."""
    found = {split: {path.stem: {"joint": path} for path in sorted((root / split).glob("*.npy"))} for split in SPLITS}
    return read_splits(root, found, _load, problems)


def _load(files: dict[str, Path]) -> dict[str, np.ndarray]:
    return halves(arrays.read_npy(files["joint"]))
