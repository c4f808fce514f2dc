"""OpenTAD and ActionFormer: one file for each video, with the id in its name, and a JSON file.

The features [n d] are files `<prefix><video><suffix>` in the root or in one folder below it: `.npy`, `.npz` (array
`feats`), `.pt`, `.pkl` or `.csv`. 2,048 dimensions are rgb | flow; otherwise there is one stream, which we call rgb.
The JSON file (`annotations.read_activitynet`) has `duration` and `frame` or `fps`. Ids in `missing_files.txt` need no
features.

THUMOS14 has snippets every 4 frames at the video's own rate, the first around frame 8. ActivityNet, with TSP's
features, has snippets every 16 frames at 15 frames per second.
"""

from functools import partial
from pathlib import Path

import numpy as np

from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source, halves
from wsal_jax.formats import arrays
from wsal_jax.formats.annotations import Record, read_activitynet
from wsal_jax.formats.checks import Problems, read_lines
from wsal_jax.types import InputError

LOOKS_FOR = "<prefix><video><suffix>.{npy,npz,pt,pkl,csv} in one folder, and one JSON file with durations"
SAMPLING = {"thumos14": Sampling(None, 4.0, 8.0), "activitynet": Sampling(15.0, 16.0, 8.0)}
SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".csv")


def _annotations(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*.json")) if path.is_file() and b'"database"' in path.read_bytes()]


def _folders(root: Path) -> list[Path]:
    """The folders that contain features."""
    return sorted({path.parent for suffix in SUFFIXES for path in root.rglob(f"*{suffix}")})


def matches(root: Path) -> bool:
    """Whether the folder has this layout and none of the similar ones."""
    if any((root / part).exists() for part in ("train", "features/train", "train_data", "feature_train.npy")):
        return False
    if next(root.rglob("*-rgb.npz"), None) or next(root.rglob("*-flow.npz"), None) or list(root.glob("*Annotations")):
        return False
    return bool(_annotations(root)) and bool(_folders(root))


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The videos whose ids occur in file names."""
    files, folders = _annotations(root), _folders(root)
    sampling = SAMPLING[benchmark.name]
    for kind, found in (("JSON file with annotations", files), ("folder with features", folders)):
        if len(found) != 1:
            names = [path.relative_to(root).as_posix() for path in found]
            problems.add(str(root), f"must have one {kind}, has {names}: keep the others elsewhere")
    if problems:
        return Listing([], [], sampling)
    records = read_activitynet(files[0], problems)
    subsets = {record.subset for record in records.values()}
    paths = sorted(path for path in folders[0].iterdir() if path.suffix in SUFFIXES)
    sources = []
    for id, path in _identify(paths, records):
        record = records.get(id)
        split = benchmark.split_of(id, record.subset if record else "", subsets)
        if split or record is None:
            where = path.relative_to(root).as_posix()
            sources.append(Source(id, split or "train", where, partial(_load, path), record))
    blocked = {id for path in folders[0].glob("missing_files.txt") for id in read_lines(path, problems)}
    have = {source.id for source in sources} | blocked
    missing = [id for id, x in records.items() if id not in have and benchmark.split_of(id, x.subset, subsets)]
    return Listing(sources, missing, sampling)


def _identify(paths: list[Path], records: dict[str, Record]) -> list[tuple[str, Path]]:
    """The id of each file: its name without a prefix and suffix, chosen so that most of the results are known ids."""
    votes: dict[tuple[str, str], int] = {}
    for path in paths[:200]:
        for id in records:
            prefix, found, suffix = path.stem.partition(id)
            if found:
                votes[prefix, suffix] = votes.get((prefix, suffix), 0) + 1
    prefix, suffix = max(votes, key=lambda key: votes[key], default=("", ""))
    return [(path.stem.removeprefix(prefix).removesuffix(suffix), path) for path in paths]


def _load(path: Path) -> dict[str, np.ndarray]:
    content = arrays.read(path)
    if path.suffix == ".npz":
        if "feats" not in content:
            raise InputError(f"{path} has {sorted(content)}, not `feats`: it must have an array [n d] of that name")
        content = content["feats"]
    if not isinstance(content, np.ndarray):
        raise InputError(f"{path} holds a {type(content).__name__}, not an array [n d]")
    return halves(content) if content.ndim == 2 and content.shape[1] == 2048 else {"rgb": content}
