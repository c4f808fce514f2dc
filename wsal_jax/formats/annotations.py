"""Readers of annotations in all published formats, which return the same records. Times are in seconds.

They correct nothing. `odd_segments` finds odd segments (which end before they start, or after the video), and the
caller decides what to do with them.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsal_jax.formats import arrays
from wsal_jax.formats.checks import AMBIGUOUS, Problems, check_id, is_plain, number, read_json, read_lines
from wsal_jax.types import InputError

CLASS_FILES = ("[A-Z]*_val.txt", "[A-Z]*_test.txt")
"""Name patterns of THUMOS14's text files."""


class Record(NamedTuple):
    """The annotation of one video."""

    subset: str = ""
    segments: tuple[tuple[float, float], ...] = ()
    labels: tuple[str, ...] = ()
    """The class name of each segment."""
    ambiguous: tuple[tuple[float, float], ...] = ()
    video_labels: tuple[str, ...] = ()
    """The classes of the video, each once: those of its segments, and those known without segments."""
    duration: float | None = None
    fps: float | None = None


def is_train(subset: str, subsets: set[str]) -> bool | None:
    """Whether a video of this subset is for training (True), for testing (False), or neither (None).

    Case does not matter. "train" and "training" are for training, "val" and "validation" for testing. "test" is for
    testing only in files without "val" or "validation" (BaS-Net and its successors). Otherwise "test", and always
    "testing", is the server's test set, whose annotations are not public.
    """
    subset, subsets = subset.lower(), {name.lower() for name in subsets}
    if subset in ("train", "training"):
        return True
    if subset in ("val", "validation") or (subset == "test" and not subsets & {"val", "validation"}):
        return False
    return None


def read_activitynet(path: Path, problems: Problems) -> dict[str, Record]:
    """ActivityNet's JSON and its variants: `{"database": {<video>: {"subset", "duration", "annotations"}}}`.

    - Times may be strings of numbers (BaS-Net).
    - `fps`, or `frame` (the number of frames), gives the frame rate (ActionFormer, OpenTAD).
    - `labels` are the classes of a video without annotations.
    - An annotation without a segment says only that the class occurs (A2CL-PT).
    - Segments with the label "Ambiguous" are ambiguous, and so are those in `set_ambiguous` beside the database
      (A2CL-PT), by video.
    - MMAction2's file is the bare database, without subsets; its `duration_second` is the duration.
    """
    content = read_json(path, problems)
    if content is None:
        return {}
    database = content.get("database", content) if isinstance(content, dict) else None
    bare = (
        database is content and database and all(isinstance(x, dict) and "annotations" in x for x in content.values())
    )
    if not isinstance(database, dict) or (database is content and not bare):
        problems.add(path.name, 'must be {"database": {<video>: {"subset": ..., "annotations": [...]}}}')
        return {}
    aside = content.get("set_ambiguous") if isinstance(content.get("set_ambiguous"), dict) else {}
    records = {}
    for id, video in database.items():
        if not check_id(id, path.name, problems):
            continue
        where = f"{path.name}: {id!r}"
        if not isinstance(video, dict):
            problems.add(where, "must be an object {...}")
            continue
        annotations = video.get("annotations") or []
        annotations = list(annotations) if isinstance(annotations, list) else [annotations]
        beside = aside.get(id) or []
        if not isinstance(beside, list):
            problems.add(where, "set_ambiguous must be a list of segments")
            beside = []
        annotations += [{"segment": segment, "label": AMBIGUOUS} for segment in beside]
        segments, ambiguous = [], []
        labels: list[str] = []
        names: list[str] = []
        for one in annotations:
            segment, label = (one.get("segment"), one.get("label")) if isinstance(one, dict) else (None, None)
            times = tuple(map(number, segment)) if isinstance(segment, list | tuple) else ()
            if segment in (None, []) and isinstance(label, str) and is_plain(label) and label != AMBIGUOUS:
                names.append(label)
            elif len(times) != 2 or np.isnan(times).any() or not isinstance(label, str) or not is_plain(label):
                what = 'must be {"segment": [start, end], "label": class name}, in seconds'
                problems.add(where, f"annotation {reprlib.repr(one)} {what}")
            elif label == AMBIGUOUS:
                ambiguous.append(times)
            else:
                segments.append(times)
                labels.append(label)
        given = video.get("labels") or []
        if not isinstance(given, list) or not all(map(is_plain, given)):
            problems.add(where, f'"labels" is {reprlib.repr(given)}: must be a list of class names')
            given = []
        duration = _positive(video, "duration" if "duration" in video else "duration_second", where, problems)
        fps, frames = _positive(video, "fps", where, problems), _positive(video, "frame", where, problems)
        if fps is None and frames and duration:
            fps = frames / duration
        subset = video.get("subset")
        if subset is not None and not isinstance(subset, str):
            problems.add(where, f'"subset" is {reprlib.repr(subset)}: must be the name of one')
        records[id] = Record(
            subset=subset if isinstance(subset, str) else "",
            segments=tuple(segments),
            labels=tuple(labels),
            ambiguous=tuple(ambiguous),
            video_labels=tuple(dict.fromkeys([*labels, *names] or given)),
            duration=duration,
            fps=fps,
        )
    return records


def _positive(video: Mapping[str, Any], key: str, where: str, problems: Problems) -> float | None:
    """A positive number of a video; None if it is missing."""
    if video.get(key) is None:
        return None
    value = number(video[key])
    if not value > 0:
        problems.add(where, f'"{key}" is {reprlib.repr(video[key])}: must be a positive number')
        return None
    return value


def read_w_talc(folder: Path, problems: Problems) -> list[tuple[str, Record]]:
    """W-TALC's folder of NumPy files, as (id, record) in file order, which is also the order of the features.

    The arrays are `videoname`, `subset`, `segments`, `labels` (of the segments), `labels_all` (of the videos),
    `duration` (seconds) and `original_fps`, all of one length, with bytes or str, pickled or not (no pickle is
    executed). The last three are optional. `labels_all` is wrong for some videos, so it is used only for videos without
    segments. `Ambiguous_<subset>.txt` has ambiguous segments.
    """
    columns: dict[str, Any] = {}
    for name in ("videoname", "subset", "segments", "labels", "labels_all", "duration", "original_fps"):
        path = folder / f"{name}.npy"
        if path.exists():
            try:
                columns[name] = arrays.read_npy(path)
            except InputError as error:
                problems.add(f"{folder.name}/{path.name}", str(error))
        elif name not in ("labels_all", "duration", "original_fps"):
            problems.add(f"{folder.name}/{path.name}", "is missing")
    if problems:
        return []
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        problems.add(folder.name, f"lengths differ: {sizes}: take all files from one place")
        return []
    ambiguous: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(folder.glob(f"{AMBIGUOUS}_*.txt")):
        for id, segment in read_times(path, problems):
            ambiguous.setdefault(id, []).append(segment)
    records = []
    for i in range(sizes["videoname"]):
        id, where = _text(columns["videoname"][i]), f"{folder.name}: video {i}"
        if not check_id(id, where, problems):
            continue
        try:
            segments = [(float(start), float(end)) for start, end in columns["segments"][i]]
            labels = [_text(label) for label in columns["labels"][i]]
            video_labels = [_text(label) for label in columns["labels_all"][i]] if "labels_all" in columns else []
            numbers = {n: float(np.ravel(columns[n][i])[0]) for n in ("duration", "original_fps") if n in columns}
        except (TypeError, ValueError, IndexError) as error:
            problems.add(f"{folder.name}: {id!r}", f"cannot be read ({error})")
            continue
        if len(segments) != len(labels) or not np.isfinite([*np.ravel(segments), *numbers.values()]).all():
            what = f"has {len(segments)} segments and {len(labels)} labels of them: must be as many, and finite"
            problems.add(f"{folder.name}: {id!r}", what)
            continue
        record = Record(
            subset=_text(columns["subset"][i]),
            segments=tuple(segments),
            labels=tuple(labels),
            ambiguous=tuple(ambiguous.get(id, ())),
            video_labels=tuple(dict.fromkeys(labels or video_labels)),
            duration=numbers.get("duration"),
            fps=numbers.get("original_fps"),
        )
        records.append((id, record))
    return records


def _text(value: Any) -> str:
    """Converts to str; Python 2 pickles hold bytes where Python 3 has str."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_times(path: Path, problems: Problems) -> list[tuple[str, tuple[float, float]]]:
    """THUMOS14's text files: one `<video> <start> <end>` per line, in seconds, separated by spaces."""
    found = []
    for line in read_lines(path, problems):
        words = line.split()
        times = tuple(map(number, words[1:]))
        if len(times) != 2 or np.isnan(times).any() or not check_id(words[0], path.name, problems):
            problems.add(path.name, f"the line {reprlib.repr(line)} is not <video> <start> <end>, in seconds")
        else:
            found.append((words[0], times))
    return found


def read_thumos_text(folder: Path, problems: Problems) -> dict[str, Record]:
    """THUMOS14's annotations as published: `<class>_val.txt` or `<class>_test.txt` for each class and Ambiguous."""
    segments: dict[str, list[tuple[tuple[float, float], str]]] = {}
    subsets = {}
    for path in sorted((*folder.glob(CLASS_FILES[0]), *folder.glob(CLASS_FILES[1]))):
        label, _, subset = path.stem.rpartition("_")
        for id, times in read_times(path, problems):
            segments.setdefault(id, []).append((times, label))
            subsets[id] = subset
    records = {}
    for id, of_video in segments.items():
        labels = tuple(label for _, label in of_video if label != AMBIGUOUS)
        records[id] = Record(
            subset=subsets[id],
            segments=tuple(times for times, label in of_video if label != AMBIGUOUS),
            labels=labels,
            ambiguous=tuple(times for times, label in of_video if label == AMBIGUOUS),
            video_labels=tuple(dict.fromkeys(labels)),
        )
    return records


def odd_segments(record: Record, duration: float, tolerance: float) -> list[tuple[int, str]]:
    """The indices of impossible segments, and the reasons.

    Such segments do not end after they start, start before 0, or end more than `tolerance` seconds after `duration`.
    """
    odd = []
    for i, (start, end) in enumerate(record.segments):
        if end <= start:
            odd.append((i, "does not end after it starts"))
        elif start < 0:
            odd.append((i, "starts before 0"))
        elif end > duration + tolerance:
            odd.append((i, f"ends after the video ({duration:.2f} s)"))
    return odd
