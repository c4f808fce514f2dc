"""Files of detections: writes ActivityNet submissions, and reads them and other formats.

- `.json`: `{"results": {<video>: [{"label", "score", "segment": [start, end]}]}}`, or only the inner mapping;
- `.jsonl`, `.ndjson`: one object per line, either a detection, `{"video", "label", "score", "segment"}` (or "start" and
  "end" instead of "segment"), or a video, `{"video", "detections": [...]}`;
- `.csv`, `.tsv`: one detection per line; a header names the columns in any order (`COLUMNS`); without a header they are
  video, start, end, label, score;
- `.txt`: the THUMOS kit's `<video> <start> <end> <class> <score>`; numbers in `THUMOS14_CLASSES` become names.

Each may be compressed with gzip (`.json.gz`). Times are in seconds; segments may be empty or reversed.
"""

import csv
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wsal_jax.formats.checks import FolderError, Problems, check_id, is_plain, number, numbered_lines, read_json
from wsal_jax.text import cut
from wsal_jax.types import Detections

COLUMNS = {
    "video": ("video", "video_id", "videoid", "video_name", "videoname"),
    "start": ("start", "t_start", "start_time", "begin"),
    "end": ("end", "t_end", "end_time", "stop"),
    "label": ("label", "class", "class_name", "category", "action"),
    "score": ("score", "confidence", "probability"),
}
"""Names of columns and of keys of JSON lines; case does not matter, and "-" and spaces count as "_"."""

LISTS = ("detections", "results", "annotations")
"""Keys for the detections of a video in JSON lines."""

THUMOS14_CLASSES = {
    7: "BaseballPitch",
    9: "BasketballDunk",
    12: "Billiards",
    21: "CleanAndJerk",
    22: "CliffDiving",
    23: "CricketBowling",
    24: "CricketShot",
    26: "Diving",
    31: "FrisbeeCatch",
    33: "GolfSwing",
    36: "HammerThrow",
    40: "HighJump",
    45: "JavelinThrow",
    51: "LongJump",
    68: "PoleVault",
    79: "Shotput",
    85: "SoccerPenalty",
    92: "TennisSwing",
    93: "ThrowDiscus",
    97: "VolleyballSpiking",
}
"""Class names by their number in the THUMOS kit, which is that of UCF101."""

FAR = 1e7
"""Seconds (115 days). Larger values cannot be times in a video, not even in milliseconds."""


class Found(NamedTuple):
    """The detections of one video with class names, as in the file."""

    segments: Float[np.ndarray, "k 2"]
    labels: tuple[str, ...]
    scores: Float[np.ndarray, " k"]


class _Entry(NamedTuple):
    """A detection before the checks."""

    where: str
    video: Any
    label: Any
    score: Any
    segment: Any


def to_json(detections: Mapping[str, Detections], class_names: Sequence[str]) -> dict[str, Any]:
    """An ActivityNet submission from detections by video id; the best detection of each video comes first."""
    results = {}
    for id, video in detections.items():
        results[id] = [
            {
                "label": class_names[video.labels[i]],
                "score": float(video.scores[i]),
                "segment": [float(x) for x in video.segments[i]],
            }
            for i in np.argsort(-video.scores, kind="stable")
        ]
    return {"version": "wsal_jax", "results": results, "external_data": {"used": False}}


def read(path: Path) -> dict[str, Found]:
    """Detections by video id, from a file in one of the formats above; numbers may be strings.

    Raises:
      FolderError: the file cannot be read, or detections are incomplete or not finite; all of them are listed.
    """
    problems = Problems()
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in (".csv", ".tsv"):
        entries = _from_csv(path, problems)
    elif kind == ".txt":
        entries = _from_kit(path, problems)
    elif kind in (".jsonl", ".ndjson"):
        entries = _from_lines(path, problems)
    else:
        entries = _from_json(path, problems)
    rows: dict[str, list[tuple[float, float, float, str]]] = {}
    known: dict[Any, bool] = {}
    for one in entries:
        if not isinstance(one.video, str) or one.video not in known:
            good = check_id(one.video, path.name, problems)
            if isinstance(one.video, str):
                known[one.video] = good
        if isinstance(one.video, str) and known[one.video]:
            of_video = rows.setdefault(one.video, [])
            if one.segment is not _NOTHING:
                of_video.append(_check(one, problems))
    if problems:
        raise FolderError(path, problems.lines())
    return {
        id: Found(
            segments=np.array([row[:2] for row in of], np.float64).reshape(-1, 2),
            labels=tuple(row[3] for row in of),
            scores=np.array([row[2] for row in of], np.float64),
        )
        for id, of in rows.items()
    }


_NOTHING = object()
"""Marks a video without detections."""


def _check(one: _Entry, problems: Problems) -> tuple[float, float, float, str]:
    """Start, end, score and label; meaningless if a problem was added."""
    label, score, segment = one.label, one.score, one.segment
    for key, value in (("label", label), ("score", score), ("segment", segment)):
        if value is _MISSING:
            problems.add(one.where, f'has no "{key}"')
    if label is not _MISSING and not is_plain(label):
        what = '"label" must be the name of the class as in the ground truth, not a number'
        problems.add(f"{one.where} ({reprlib.repr(label)})", what)
    value = number(score)
    if score is not _MISSING and math.isnan(value):
        problems.add(f"{one.where} ({reprlib.repr(score)})", '"score" must be a finite number')
    times = tuple(map(number, segment)) if isinstance(segment, list) else ()
    if len(times) != 2 or math.isnan(sum(times)):
        if segment is not _MISSING:
            what = '"segment" must be [start, end], finite, in seconds'
            problems.add(f"{one.where} ({reprlib.repr(segment)})", what)
        times = (math.nan, math.nan)
    elif max(map(abs, times)) > FAR:
        problems.add(f"{one.where} ({reprlib.repr(segment)})", f'"segment" is beyond {FAR:g} s: must be in seconds')
    return *times, value, label if isinstance(label, str) else ""


_MISSING = object()


def _from_json(path: Path, problems: Problems) -> Iterable[_Entry]:
    content = read_json(path, problems)
    results = content.get("results", content) if isinstance(content, dict) else content
    if not isinstance(results, dict):
        if not problems:
            problems.add(path.name, 'must be {"results": {<video>: [{"label": ..., "score": ..., "segment": ...}]}}')
        return
    for id, entries in results.items():
        yield from _of_video(id, entries, problems)


def _of_video(id: Any, entries: Any, problems: Problems) -> Iterable[_Entry]:
    """The detections of a list; a single entry without a segment if the list is empty."""
    if not isinstance(entries, list):
        problems.add(cut(repr(id)), f"is {reprlib.repr(entries)}: must be a list of detections")
        entries = []
    if not entries:
        yield _Entry("", id, "", 0, _NOTHING)
    for i, one in enumerate(entries):
        where = f"{cut(repr(id))}, detection {i}"
        if isinstance(one, dict):
            yield _Entry(where, id, *(one.get(key, _MISSING) for key in ("label", "score", "segment")))
        else:
            what = 'must be {"label": ..., "score": ..., "segment": ...}'
            problems.add(f"{where} ({reprlib.repr(one)})", what)


def _from_lines(path: Path, problems: Problems) -> Iterable[_Entry]:
    for i, line in numbered_lines(path, problems):
        where = f"line {i}"
        try:
            one = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(where, f"cannot be read as JSON ({error}): write one object a line")
            continue
        if not isinstance(one, dict):
            problems.add(f"{where} ({reprlib.repr(one)})", 'must be {"video": ..., "label": ..., "segment": ..., ...}')
            continue
        values = {_column(key): value for key, value in one.items()}
        video = values.get("video", _MISSING)
        listed = [name for name in LISTS if name in one]
        if video is _MISSING:
            problems.add(where, 'has no "video"')
        elif listed:
            yield from _of_video(video, one[listed[0]], problems)
        else:
            if "start" in values and "end" in values:
                values["segment"] = [values["start"], values["end"]]
            yield _Entry(where, video, *(values.get(key, _MISSING) for key in ("label", "score", "segment")))


def _from_csv(path: Path, problems: Problems) -> Iterable[_Entry]:
    lines = numbered_lines(path, problems)
    delimiter = next((x for x in "\t;" if lines and x in lines[0][1]), ",")
    names, first = list(COLUMNS), True
    for i, line in lines:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
        if first:
            first = False
            header = [_column(cell) for cell in cells]
            if len(set(names).intersection(header)) >= 3:
                names = header
                lost = [name for name in COLUMNS if names.count(name) != 1]
                if lost:
                    problems.add(path.name, f"needs one column each for {', '.join(COLUMNS)}; see {', '.join(lost)}")
                    return
                continue
        where = f"line {i}"
        if len(cells) != len(names):
            problems.add(where, f"has {len(cells)} columns: must have {len(names)}, {', '.join(names)}")
            continue
        values = dict(zip(names, cells))
        yield _Entry(where, values["video"], values["label"], values["score"], [values["start"], values["end"]])


def _from_kit(path: Path, problems: Problems) -> Iterable[_Entry]:
    for i, line in numbered_lines(path, problems):
        words = line.split()
        if len(words) < 5:
            problems.add(f"line {i} ({reprlib.repr(line)})", "must be <video> <start> <end> <class> <score>")
            continue
        label = " ".join(words[3:-1])
        if label.isascii() and label.isdigit():
            label = THUMOS14_CLASSES.get(int(label[:9]), label)
        yield _Entry(f"line {i}", words[0], label, words[-1], words[1:3])


def _column(name: str) -> str:
    """The key of `COLUMNS` for a column, or the column's own name."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    return next((key for key, names in COLUMNS.items() if plain in names), plain)
