"""CMCS: an `.npz` for each video and stream, with one crop or ten.

Its files are `<video>-rgb.npz` and `<video>-flow.npz`, in any folders below the root, with "v_" before ActivityNet's
ids. Each has `feature` [B n d] with B crops, of which we take the mean, and `frame_cnt`. Annotations are THUMOS14's
text files (`*_val.txt`, `*_test.txt`, `annotations.read_thumos_text`) with its `.mat` files for the frame rates (a
variable has `videos` in its name), or ActivityNet's JSON.

Snippets have 16 frames. They start every 4 frames at the video's own rate (THUMOS14), or every 16 frames at 25 frames
per second (ActivityNet). Features of UntrimmedNet, [n B d 1 1], start every 5 or 15 frames.
"""

from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from wsal_jax.data.builder import STREAMS
from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source
from wsal_jax.files import regular
from wsal_jax.formats import arrays
from wsal_jax.formats.annotations import CLASS_FILES, Record, read_activitynet, read_thumos_text
from wsal_jax.formats.checks import Problems
from wsal_jax.types import InputError

LOOKS_FOR = "<video>-rgb.npz or <video>-flow.npz in any folder, and *_val.txt, *_test.txt or a JSON file"


def matches(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any(next(root.rglob(f"*-{stream}.npz"), None) for stream in STREAMS)


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The videos with annotations in the benchmark's splits, and the videos with features."""
    records = _read_records(root, problems)
    subsets = {record.subset for record in records.values()}
    found: dict[str, dict[str, Path]] = {}
    for stream in STREAMS:
        for path in sorted(root.rglob(f"*-{stream}.npz")):
            id = path.name.removesuffix(f"-{stream}.npz")
            id = id if id in records else id.removeprefix("v_")
            if stream in found.setdefault(id, {}):
                names = " and ".join(p.relative_to(root).as_posix() for p in (found[id][stream], path))
                problems.add(names, "are the same video and stream: keep one kind of features below the root")
            found[id][stream] = path
    thumos = benchmark.name == "thumos14"
    sampling = Sampling(None, 4.0, 8.0) if thumos else Sampling(25.0, 16.0, 8.0)
    first = next((path for files in found.values() for path in files.values()), None)
    if first is not None and _is_untrimmed(first, problems):
        sampling = Sampling(sampling.fps, 5.0, 2.5) if thumos else Sampling(sampling.fps, 15.0, 7.5)
    sources = []
    for id, files in found.items():
        record = records.get(id)
        split = benchmark.split_of(id, record.subset if record else "", subsets)
        where = " + ".join(path.relative_to(root).as_posix() for path in files.values())
        if split or record is None:
            sources.append(Source(id, split or "train", where, partial(_load, files), record))
    missing = [id for id, x in records.items() if id not in found and benchmark.split_of(id, x.subset, subsets)]
    return Listing(sources, missing, sampling)


def _read_records(root: Path, problems: Problems) -> dict[str, Record]:
    """The annotations, with the frame rates of the `.mat` files."""
    records: dict[str, Record] = {}
    folders = {path.parent for pattern in CLASS_FILES for path in root.rglob(pattern)}
    for folder in sorted(folders):
        records.update(read_thumos_text(folder, problems))
    if not folders:
        files = sorted(root.rglob("*.json"))
        if len(files) != 1:
            what = f"need THUMOS14's text files or exactly one JSON file; found {[path.name for path in files]}"
            problems.add("annotations", what)
        for path in files[:1]:
            records = read_activitynet(path, problems)
    for path in sorted(root.rglob("*.mat")):
        try:
            tables = [table for name, table in loadmat(regular(path)).items() if "videos" in name]
            for row in np.ravel(tables[0]):
                id = str(np.ravel(row["video_name"])[0])
                times = {key: float(np.ravel(row[key])[0]) for key in ("frame_rate_FPS", "video_duration_seconds")}
                if id in records:
                    fps, duration = times["frame_rate_FPS"], times["video_duration_seconds"]
                    records[id] = records[id]._replace(fps=fps, duration=duration)
        except Exception as error:  # a damaged file can fail in any way
            problems.add(path.name, f"is not one of THUMOS14's files of video metadata, or damaged ({error!r})")
    return records


def _is_untrimmed(path: Path, problems: Problems) -> bool:
    """Whether these are features of UntrimmedNet."""
    try:
        return arrays.read_npz(path)["feature"].ndim == 5
    except (InputError, KeyError):
        return False  # loading it reports the problem


def _load(files: dict[str, Path]) -> dict[str, np.ndarray]:
    return {stream: _mean_crop(path) for stream, path in files.items()}


def _mean_crop(path: Path) -> np.ndarray:
    content = arrays.read_npz(path)
    if "feature" not in content:
        raise InputError(f"{path} has {sorted(content)}, not `feature`: it must have an array [B n d] of that name")
    feature = content["feature"]
    if feature.ndim == 5:
        feature = feature[:, :, :, 0, 0].swapaxes(0, 1)
    if feature.ndim != 3:
        raise InputError(f"{path}: `feature` has the shape {feature.shape}: must be [B n d], B crops")
    return feature[0] if len(feature) == 1 else feature.mean(axis=0, dtype=np.float32)
