"""BaS-Net and its successors (UM, CoLA, ASL, SAL, UniWTAL...): a file for each video and stream.

Its files are `features/{train,test}/{rgb,flow}/<video>.npy`, `gt.json` (`annotations.read_activitynet`, times as
strings) and `split_{train,test}.txt`, one video per line; without the split files, the folders decide. Snippets have 16
frames at 25 frames per second. `gt.json` has no durations, so a video has the duration of its features.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from wsal_jax.data.builder import SPLITS, STREAMS
from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source
from wsal_jax.formats import arrays
from wsal_jax.formats.annotations import read_activitynet
from wsal_jax.formats.checks import Problems, check_id, read_lines

LOOKS_FOR = "features/{train,test}/{rgb,flow}/<video>.npy and gt.json"
SAMPLING = Sampling(25.0, 16.0, 8.0)


def matches(root: Path) -> bool:
    """Whether the folder has this layout."""
    has_streams = any((root / "features" / split / stream).is_dir() for split in SPLITS for stream in STREAMS)
    return has_streams and (root / "gt.json").exists()


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The videos of the split files."""
    found: dict[str, dict[str, dict[str, Path]]] = {}
    for split in SPLITS:
        found[split] = {}
        for stream in STREAMS:
            for path in sorted((root / "features" / split / stream).glob("*.npy")):
                found[split].setdefault(path.stem, {})[stream] = path
    return read_splits(root, found, _load, problems)


def _load(files: dict[str, Path]) -> dict[str, np.ndarray]:
    return {stream: arrays.read_npy(path) for stream, path in files.items()}


def read_splits(
    root: Path,
    found: dict[str, dict[str, dict[str, Path]]],
    load: Callable[[dict[str, Path]], dict[str, np.ndarray]],
    problems: Problems,
) -> Listing:
    """The listing of a folder with `gt.json` and split files.

    Args:
      root: the folder.
      found: the files by split, video and kind.
      load: reads the files of a video.
      problems: receives problems.
    """
    records = read_activitynet(root / "gt.json", problems)
    sources, missing = [], []
    for split in SPLITS:
        listed = root / f"split_{split}.txt"
        ids = read_lines(listed, problems) if listed.exists() else list(found[split])
        for id in ids:
            if not check_id(id, listed.name, problems):
                continue
            if id in found[split]:
                files = found[split][id]
                where = " + ".join(path.relative_to(root).as_posix() for path in files.values())
                sources.append(Source(id, split, where, partial(load, files), records.get(id)))
            else:
                missing.append(id)
    if not all((root / f"split_{split}.txt").exists() for split in SPLITS):
        have = {source.id for source in sources} | set(missing)
        missing += [id for id, record in records.items() if record.segments and id not in have]
    return Listing(sources, missing, SAMPLING)
