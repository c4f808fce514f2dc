"""TFDS builder for a folder of your own snippet features.

```
ROOT/features/{train,test}/{rgb,flow}/<video>.npy    [n d] floats, one row per snippet; one stream or both
ROOT/features/{train,test}/<video>.npy               or one joint file per video: [n 2d], rgb | flow
ROOT/gt.json                                         ActivityNet's form, see below
ROOT/split_train.txt, ROOT/split_test.txt            optional, one video a line
```
`gt.json` is `{"database": {<video>: {...}}}`. Of each video it has
  `fps`, `feature_stride_frames`   frames per second, frames from one snippet's centre to the next one's;
  `feature_offset_frames`          frame at the centre of snippet 0; by default half a stride;
  `duration`                       seconds; by default the end of the last snippet;
  `annotations`                    `[{"segment": [start, end], "label": name}]`, seconds, numbers or strings of numbers;
                                   the label "Ambiguous" is no class: it says where nobody can tell;
  `labels`                         class names, for a video without annotations;
  `counts`                         optional, `{name: number}`: how often each of the `labels` occurs in a training video
                                   without annotations, for methods that learn from it (STAR);
  `num_features`                   optional, only checked against the files;
  `group`                          optional: a name that videos share which are not independent, such as the recording
                                   that they were cut from. `wsal_jax.tune` holds out whole groups.
The first three may also stand once beside `database`, for all videos that do not have their own.

Both splits must have videos. A training video needs `labels` or `annotations`. A test video without
annotations is good for prediction only. A video without annotations has no segments, and -1 for all its counts if it
does not have `counts`.

Classes are the labels in use, sorted by name, and a test label that no training video has is an error. An optional list
`classes` beside `database` sets classes and order instead, and may have classes that are never trained.

A split file decides which videos a split has; features that it does not name are left alone. Without it, the folder
`features/<split>` decides. With both split files, entries of `gt.json` that neither of them names are left alone.
`subset` in `gt.json` is ignored: the training set of THUMOS14 has the subset "validation".

`check` finds everything that is wrong with a folder. It runs when a builder is made of data that are not built yet.
"""

import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from tqdm import tqdm

from wsal_jax.data.builder import SPLITS, STREAMS, Entry, Folder, FolderBuilder, common_streams, streams_of
from wsal_jax.data.store import Stream
from wsal_jax.formats.checks import (
    AMBIGUOUS,
    FolderError,
    Problems,
    check_features,
    check_id,
    check_lengths,
    is_plain,
    load_checked,
    number,
    read_json,
    read_lines,
)
from wsal_jax.times import snippet_to_seconds
from wsal_jax.types import Meta


def check(root: str | os.PathLike) -> Folder:
    """Reads and checks a feature folder (layout: see the module), features included.

    Segments that end after the video by one snippet (stride / fps) or less are clipped; those that end later, or are
    empty or negative, are wrong. So are features of which a snippet has its centre later than that.

    Raises:
      FolderError: a ValueError with everything that is wrong and what to do about it.
    """
    root, problems = Path(root), Problems()
    if not root.is_dir():
        raise FolderError(root, ["there is no such folder: set root to the folder with gt.json in it"])
    gt = _read_gt(root, problems)
    found = {split: _find_files(root, split) for split in SPLITS}
    ids = {split: _find_ids(root, split, found, problems) for split in SPLITS}
    for id in sorted(set(ids["train"]) & set(ids["test"])):
        problems.add(repr(id), "is in both splits: take it out of one")

    found_streams: dict[str, dict[str, Stream]] = {}
    videos = {}
    for split in SPLITS:
        files = {id: found[split][id] for id in ids[split]}
        videos[split] = _check_videos(root, split, files, gt, found_streams, problems)
    streams = common_streams([*found_streams.values()])
    for where, has in found_streams.items():
        for stream in has.keys() & streams.keys():
            if has[stream].dim != streams[stream].dim:
                what = f"{stream} features have {has[stream].dim} dimensions, others {streams[stream].dim}"
                problems.add(where, f"{what}: extract them alike")
    _check_streams(found, ids, problems)
    listed = all((root / f"split_{split}.txt").exists() for split in SPLITS)
    used = {*ids["train"], *ids["test"]}
    for id in gt["database"] if gt else ():
        if check_id(id, "gt.json", problems) and id not in used and used and not listed:
            what = "has no features in features/train or features/test: add them, or remove the entry"
            problems.add(f"gt.json: {id!r}", what)
    classes = _find_classes(gt, videos, problems)
    if problems:
        raise FolderError(root, problems.lines())
    return Folder(streams, classes, videos)


def _check_streams(found: dict[str, dict[str, dict[str, Path]]], ids: dict[str, list[str]], problems: Problems) -> None:
    """Each video must have all streams that another has, each in one file."""
    kinds = {(split, id): [*map(_kinds, found[split][id])] for split in SPLITS for id in ids[split]}
    streams = {stream for of_video in kinds.values() for kind in of_video for stream in kind}
    for (split, id), of_video in kinds.items():
        has = [stream for kind in of_video for stream in kind]
        if len(has) > len(set(has)):
            files = _list(found[split][id])
            problems.add(files, "the video has a joint file and streams of its own: remove one of the two")
        for stream in sorted(streams - set(has)):
            what = f"has no {stream} features, but other videos do: add features/{split}/{stream}/<video>.npy"
            problems.add(repr(id), f"{what}, or remove this stream of all videos")


def _check_videos(
    root: Path,
    split: str,
    files: dict[str, dict[str, Path]],
    gt: dict[str, Any] | None,
    streams: dict[str, dict[str, Stream]],
    problems: Problems,
) -> list[Entry]:
    """The videos of a split, with features in these files; adds what is wrong, and the streams that each has."""
    entries = []
    for id, of_video in tqdm(files.items(), desc=f"checking {root.name}, {split}", unit="video", disable=None):
        features = _read_features(root, of_video, problems)
        streams[f"features/{split}: {id!r}"] = streams_of(features)
        length = len(next(iter(features.values()))) if features else None
        if gt and id in gt["database"]:
            entry = _read_entry(root, id, of_video, length, gt, problems)
            if entry and entry.counts and split == "test":
                what = '"counts" are for training videos: remove them, or annotate the video'
                problems.add(f"gt.json: {id!r}", what)
            if entry:
                entries.append(entry)
        elif gt:
            what = "has features, but no entry in the database of gt.json: add one, or remove the features"
            problems.add(repr(id), what)
    return entries


def _kinds(file: str) -> tuple[str, ...]:
    """The streams in a file of this kind."""
    return STREAMS if file == "joint" else (file,)


def _list(files: dict[str, Path]) -> str:
    return " + ".join(path.as_posix() for path in files.values())


def _find_files(root: Path, split: str) -> dict[str, dict[str, Path]]:
    """The feature files of a split, by video and stream (or "joint"), relative to the root. Opens none of them."""
    found: dict[str, dict[str, Path]] = {}
    for kind in (*STREAMS, "joint"):
        folder = root / "features" / split / ("" if kind == "joint" else kind)
        for path in sorted(folder.glob("*.npy")):
            found.setdefault(path.name.removesuffix(".npy"), {})[kind] = path.relative_to(root)
    return found


def _find_ids(root: Path, split: str, found: dict[str, dict[str, dict[str, Path]]], problems: Problems) -> list[str]:
    """The videos of a split that have features: those in the split file, or else all there are."""
    file = f"split_{split}.txt"
    looked = f"features/{split}/rgb/*.npy, features/{split}/flow/*.npy and features/{split}/*.npy"
    if not found[split]:
        problems.add(f"features/{split}", f"no features found: looked for {looked}")
    if not (root / file).exists():
        return [id for id in found[split] if check_id(id, f"features/{split}", problems)]
    counts = Counter(read_lines(root / file, problems))
    if not counts:
        problems.add(file, "names no video: write one video a line, or remove the file")
    good = []
    for id, count in counts.items():
        if not check_id(id, file, problems):
            continue
        if count > 1:
            problems.add(f"{file}: {id!r}", "is there more than once: keep one line")
        if id in found[split]:
            good.append(id)
        elif found[split]:
            other = [s for s in SPLITS if s != split and id in found[s]]
            hint = f" (but in features/{other[0]})" if other else ""
            problems.add(f"{file}: {id!r}", f"has no features in features/{split}{hint}: add them, or remove the line")
    return good


def _read_gt(root: Path, problems: Problems) -> dict[str, Any] | None:
    """`gt.json`; None where it is of no use."""

    if not (root / "gt.json").exists():
        problems.add("gt.json", 'is missing: write {"database": {<video>: {"fps": ..., "labels": [...], ...}, ...}}')
        return None
    gt = read_json(root / "gt.json", problems)
    if gt is None:
        return None
    if not isinstance(gt, dict) or not isinstance(gt.get("database"), dict):
        problems.add("gt.json", 'must be {"database": {<video>: {...}}}')
        return None
    return gt


def _read_features(root: Path, files: dict[str, Path], problems: Problems) -> dict[str, Float[np.ndarray, "_ _"]]:
    """The features of a video, by stream; without those that have problems."""
    features = {}
    for kind, path in files.items():
        values = _read_array(root / path, path.as_posix(), problems)
        if values is None:
            continue
        if kind == "joint" and values.shape[1] % 2:
            what = f"joint features have {values.shape[1]} dimensions, which are not two halves (rgb | flow)"
            problems.add(path.as_posix(), f"{what}: move a single stream to features/<split>/rgb or flow")
        else:
            features.update(zip(_kinds(kind), np.split(values, len(_kinds(kind)), axis=1)))
    check_lengths(features, _list(files), problems)
    return features


def _read_array(path: Path, name: str, problems: Problems) -> Float[np.ndarray, "n d"] | None:
    if not path.is_file():
        problems.add(name, "is not a file (or a broken link): remove it, or put the features there")
        return None
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # has no way to unpickle
    except Exception as error:  # a damaged header can fail in any way, and must not end the check
        what = f"is not an .npy file of numbers, or damaged ({error})"
        problems.add(name, f"{what}: write it with np.save(file, array, allow_pickle=False); pickles are never loaded")
        return None
    return check_features(array, name, problems)


def _read_entry(
    root: Path, id: str, files: dict[str, Path], length: int | None, gt: dict[str, Any], problems: Problems
) -> Entry | None:
    """What `gt.json` says of a video with `length` snippets (None: not known); None where that is of no use.

    An entry with problems is of no use for building, but its labels are for further checks.
    """
    video, where = gt["database"][id], f"gt.json: {id!r}"
    if not isinstance(video, dict):
        problems.add(where, "must be an object {...}")
        return None

    def given_number(key: str, default: float | None, valid: str, holders: tuple = (video, gt)) -> float:
        given = [holder[key] for holder in holders if holder.get(key) is not None]
        if not given and default is None:
            what = f'"{key}" is missing, without which there are no seconds: add "{key}" to the video'
            problems.add(where, f'{what}, or beside "database" for all videos')
        value = number(given[0]) if given else default
        if given and not (value > 0 or (value == 0 and valid == "non-negative")):
            problems.add(where, f'"{key}" is {reprlib.repr(given[0])}: must be a {valid} number')
            return math.nan
        return math.nan if value is None else value

    fps = given_number("fps", None, "positive")
    stride = given_number("feature_stride_frames", None, "positive")
    offset = given_number("feature_offset_frames", stride / 2, "non-negative")
    times = Meta(id, length or 0, fps, stride, offset, math.nan)
    end = math.nan if length is None else float(snippet_to_seconds(length - 0.5, times))
    duration = given_number("duration", end, "positive", (video,))
    if end - duration > 1.5 * stride / fps:
        what = "features end after the video: correct fps, stride, offset or duration, or remove the duration"
        problems.add(f"{where} (features go on to {end:.2f} s, but the video has {duration:.2f} s)", what, full=True)
    num_features = video.get("num_features")
    if num_features is not None and length is not None and number(num_features) != length:
        what = f'"num_features" is {reprlib.repr(num_features)}, but the files have {length} snippets'
        problems.add(where, f"{what}: correct or remove it, or extract the features again")

    segments, segment_labels, ambiguous = _read_annotations(video, where, duration, stride / fps, problems)
    labels = video.get("labels")
    if labels is None:
        labels = segment_labels
    elif not isinstance(labels, list) or not all(map(is_plain, labels)):
        problems.add(where, f'"labels" is {reprlib.repr(labels)}: must be a list of class names')
        labels = segment_labels
    elif segment_labels and set(labels) != set(segment_labels):
        what = f'"labels" are {sorted(set(labels))}, those of the annotations {sorted(set(segment_labels))}'
        problems.add(where, f"{what}: make them agree, or remove one")
    counts = _read_counts(video, where, set(labels), problems)
    times = (fps, stride, offset, duration)
    load = partial(load_checked, root, partial(_read_features, root, files))
    group = "" if video.get("group") is None else video["group"]
    if group != "" and not is_plain(group):
        problems.add(where, f'"group" is {reprlib.repr(group)}: must be a name, or leave it out')
        group = ""
    return Entry(id, load, sorted(set(labels)), segments, segment_labels, ambiguous, *times, counts, group)


def _read_counts(video: dict[str, Any], where: str, labels: set[str], problems: Problems) -> dict[str, int] | None:
    """How often each class of a video without annotations occurs; None where that is not given."""
    counts = video.get("counts")
    if counts is None:
        return None
    if video.get("annotations"):
        problems.add(where, 'has "counts" and annotations, which say how often each class occurs: remove the "counts"')
    elif not isinstance(counts, dict) or not all(type(x) is int and x > 0 for x in counts.values()):
        what = f'"counts" is {reprlib.repr(counts)}: must be {{class name: number}}, whole numbers of 1 or more'
        problems.add(where, what)
    elif set(counts) != labels:
        what = f'"counts" are of {sorted(counts)}, "labels" are {sorted(labels)}: give one for each label'
        problems.add(where, what)
    else:
        return counts
    return None


def _read_annotations(
    video: dict[str, Any], where: str, duration: float, snippet: float, problems: Problems
) -> tuple[list[tuple[float, float]], list[str], list[tuple[float, float]]]:
    """The segments of a video, clipped to its duration, their labels, and those that are ambiguous.

    Those that have problems are left out.

    `duration` and `snippet` (stride / fps) are seconds; a NaN leaves out the checks that need it.
    """
    annotations = video.get("annotations") or []
    segments, labels, ambiguous = [], [], []
    for one in annotations if isinstance(annotations, list) else [annotations]:
        segment, label = (one.get("segment"), one.get("label")) if isinstance(one, dict) else (None, None)
        if not isinstance(segment, list) or len(segment) != 2 or not is_plain(label):
            what = 'must be {"segment": [start, end], "label": class name}'
            problems.add(where, f"annotation {reprlib.repr(one)} {what}")
            continue
        if label != AMBIGUOUS:
            labels.append(label)
        start, end = map(number, segment)
        if math.isnan(start + end):
            wrong = "is not two numbers"
        elif end <= start:
            wrong = "must end after it starts"
        elif start < 0:
            wrong = "starts before 0"
        elif end > duration + snippet or start >= duration:
            wrong = f"goes beyond the video ({duration:.2f} s)"
        else:
            of_label = ambiguous if label == AMBIGUOUS else segments
            of_label.append((start, min(end, duration)))  # with a NaN duration: end
            continue
        problems.add(where, f"segment {reprlib.repr(segment)} {wrong}: correct it (in seconds)")
    return segments, labels, ambiguous


def _find_classes(gt: dict[str, Any] | None, videos: dict[str, list[Entry]], problems: Problems) -> list[str]:
    """The class names in order; checks the labels of the videos against them."""
    for video in videos["train"]:
        if not video.labels:
            what = 'is a training video without any label: add "labels" or "annotations", or take it out of training'
            problems.add(f"gt.json: {video.id!r}", what)
    classes = gt.get("classes") if gt else None
    trained = {label for video in videos["train"] for label in video.labels}
    if classes is None:
        wrong, allowed = 'no training video has it: correct it, add training videos, or set "classes"', trained
    elif isinstance(classes, list) and all(map(is_plain, classes)) and 0 < len(classes) == len(set(classes)):
        wrong, allowed = 'it is not in "classes" of gt.json: correct one of them', set(classes)
    else:
        problems.add("gt.json", f'"classes" is {reprlib.repr(classes)}: must be a list of different class names')
        return []
    for video in (*videos["train"], *videos["test"]):
        for label in set(video.labels) - allowed:
            problems.add(f"gt.json: {video.id!r}", f"label {label!r}: {wrong}")
    return sorted(trained) if classes is None else classes


class FeatureFolder(FolderBuilder):
    """Features of your own; `wsal_jax.data.feature_folder` says how the folder must look.

    Raises:
      FolderError: on construction, with everything that is wrong with the folder.
    """

    VERSION = tfds.core.Version("2.1.0")

    def __init__(self, *, root: str | os.PathLike, **kwargs: Any):
        super().__init__(root=Path(root), **kwargs)
        self._original_state = {"root": root, **kwargs}

    def _files(self) -> Iterator[Path]:
        for name in ("gt.json", *(f"split_{split}.txt" for split in SPLITS)):
            yield self.root / name
        for split in SPLITS:
            for files in _find_files(self.root, split).values():
                yield from (self.root / path for path in files.values())

    def _check(self) -> Folder:
        return check(self.root)
