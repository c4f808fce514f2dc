"""DGAM and the reproductions of STPN: numbered files and lists.

Its files are `{train,test}_data/{rgb,flow}_features/<i>.npy`, with i from 1, and
`{train,test}_data/{train,test}_labels.npy` [N c] with 0 and 1. For the test videos, `test_data/*list.txt` has the ids
in the order of the numbers, and `test_data/gt*.json` the annotations (`annotations.read_activitynet`). The reproduction
of STPN has no `test_labels.npy`. Test videos have the labels of their annotations, if any. Snippets have 16 frames at
25 frames per second.

The columns of the labels are the classes sorted by name. Training videos have no ids, so we call them `train_0001` and
so on. They have no segments, so their counts are unknown.
"""

from functools import partial
from pathlib import Path

import numpy as np

from wsal_jax.data.builder import SPLITS, STREAMS
from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source
from wsal_jax.formats import arrays
from wsal_jax.formats.annotations import Record, read_activitynet
from wsal_jax.formats.checks import Problems, check_id, read_lines
from wsal_jax.types import InputError

LOOKS_FOR = "{train,test}_data/{rgb,flow}_features/1.npy, {train,test}_labels.npy and test_data/gt.json"
SAMPLING = Sampling(25.0, 16.0, 8.0)


def matches(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / f"{split}_data" / f"{stream}_features").is_dir() for split in SPLITS for stream in STREAMS)


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The numbered videos."""
    records: dict[str, Record] = {}
    for path in _one(root, "test_data/gt*.json", problems):
        records = read_activitynet(path, problems)
    names: list[str] = []
    for path in _one(root, "test_data/*list.txt", problems):
        names = [id for id in read_lines(path, problems) if check_id(id, path.name, problems)]
    classes = benchmark.classes or tuple(sorted({label for record in records.values() for label in record.labels}))
    sources, missing = [], []
    for split in SPLITS:
        labels = _read_labels(root / f"{split}_data" / f"{split}_labels.npy", classes, problems)
        if split == "test" and labels and len(names) != len(labels):
            problems.add("test_labels.npy", f"has {len(labels)} rows, the list of ids {len(names)}")
            continue
        ids = names if split == "test" else [f"train_{i + 1:04d}" for i in range(len(labels))]
        for i, id in enumerate(ids):
            folder = root / f"{split}_data"
            files = {stream: folder / f"{stream}_features" / f"{i + 1}.npy" for stream in STREAMS}
            files = {stream: file for stream, file in files.items() if file.exists()}
            if not files:
                missing.append(id)
                continue
            record = records.get(id) if split == "test" else None
            if record is None and labels:
                record = Record(video_labels=labels[i])
            where = " + ".join(file.relative_to(root).as_posix() for file in files.values())
            sources.append(Source(id, split, where, partial(_load, files), record))
    return Listing(sources, missing, SAMPLING)


def _read_labels(path: Path, classes: tuple[str, ...], problems: Problems) -> list[tuple[str, ...]]:
    """The labels of each video; empty for test videos without such a file."""
    if path.name == "test_labels.npy" and not path.exists():
        return []
    try:
        labels = arrays.read_npy(path)
    except InputError as error:
        problems.add(path.name, str(error))
        return []
    if labels.dtype == object or labels.ndim != 2 or labels.shape[1] != len(classes):
        what = f"is {labels.dtype} {labels.shape}: must be numbers [N {len(classes)}], a column for each class"
        problems.add(path.name, f"{what} ({', '.join(classes[:3])}...)")
        return []
    return [tuple(classes[c] for c in np.flatnonzero(row)) for row in labels]


def _one(root: Path, pattern: str, problems: Problems) -> list[Path]:
    """The only file of this name."""
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        problems.add(pattern, f"there must be one such file, there are {[path.name for path in found]}")
    return found[:1]


def _load(files: dict[str, Path]) -> dict[str, np.ndarray]:
    return {stream: arrays.read_npy(path) for stream, path in files.items()}
