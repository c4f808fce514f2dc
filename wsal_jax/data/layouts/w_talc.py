"""W-TALC and its successors (3C-Net, HAM-Net, CO2-Net, DELU, DDG-Net, P-MIL...): NumPy object arrays.

`<name>-JOINTFeatures.npy` is an array of N features [n 2d] (rgb | flow); `<name>-Annotations/` has arrays of the same
length and order (`annotations.read_w_talc`). Snippets have 16 frames at 25 frames per second, whatever the video's own
rate. Features with "UNT" in their name have snippets of 4 frames at 10 frames per second.

We use only videos with segments: W-TALC's full THUMOS14 has 2,172 more, whose labels are known to be wrong.
"""

from functools import partial
from pathlib import Path

import numpy as np

from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source, halves
from wsal_jax.formats import arrays
from wsal_jax.formats.annotations import read_w_talc
from wsal_jax.formats.checks import Problems
from wsal_jax.types import InputError

LOOKS_FOR = "<name>Features.npy and <name>-Annotations/videoname.npy"


def _find(root: Path) -> tuple[list[Path], list[Path]]:
    return sorted(root.glob("*Features.npy")), sorted(path.parent for path in root.glob("*Annotations/videoname.npy"))


def matches(root: Path) -> bool:
    """Whether the folder has this layout."""
    return all(_find(root))


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The videos with segments."""
    features, folders = _find(root)
    sampling = Sampling(25.0, 16.0, 8.0)
    if len(features) != 1 or len(folders) != 1:
        found = [path.name for path in (*features, *folders)]
        problems.add(str(root), f"needs one {LOOKS_FOR}, has {found}: keep each data set in a folder of its own")
        return Listing([], [], sampling)
    if "UNT" in features[0].name:
        sampling = Sampling(10.0, 4.0, 2.0)
    records = read_w_talc(folders[0], problems)
    try:
        videos = arrays.read_npy(features[0])
    except InputError as error:
        problems.add(features[0].name, str(error))
    if problems:
        return Listing([], [], sampling)
    if videos.dtype != object or len(videos) != len(records):
        what = f"is an array of {videos.dtype} {videos.shape}, the annotations have {len(records)} videos"
        problems.add(features[0].name, f"{what}: it must be an object array, in their order")
        return Listing([], [], sampling)
    subsets = {record.subset for _, record in records}
    sources = []
    for i, (id, record) in enumerate(records):
        split = benchmark.split_of(id, record.subset, subsets)
        if split and (record.segments or record.ambiguous):
            where = f"{features[0].name}: {id!r} (number {i})"
            sources.append(Source(id, split, where, partial(_load, videos, i), record))
    return Listing(sources, [], sampling)


def _load(videos: np.ndarray, i: int) -> dict[str, np.ndarray]:
    return halves(np.asarray(videos[i]))
