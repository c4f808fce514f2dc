"""FiftyOne's `FiftyOneTemporalDetectionDataset`: a folder with `data/<id>.<ending>` and `labels.json`.

Segments are in seconds ("timestamps"), or in frames from 1 to the last one inclusive ("support"), as its exporter
writes them; labels are indices into "classes" where those are there, else names.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsal_jax.formats.checks import Problems, number, read_json
from wsal_jax.formats.labelled import Labelled, Segment, add, checked, id_of


def write(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>/labels.json`, and links the video files that are known into `<name>/data`."""
    index = {label: i for i, label in enumerate(classes)}
    labels: dict[str, list[dict[str, Any]]] = {}
    (folder / name / "data").mkdir(parents=True, exist_ok=True)
    for video in videos:
        labels[video.id] = [
            {"label": index[one.label], "timestamps": [one.start, one.end]}
            | ({} if one.score is None else {"confidence": one.score})
            for one in video.segments
        ]
        link = folder / name / "data" / f"{video.id}{Path(video.media).suffix}"
        if video.file and not os.path.lexists(link):
            try:
                link.symlink_to(video.file.absolute())
            except OSError:  # a file system without links
                shutil.copyfile(video.file, link)
    path = folder / name / "labels.json"
    path.write_text(json.dumps({"classes": list(classes), "labels": labels}, ensure_ascii=False), encoding="utf-8")
    return [path]


def read(path: Path, problems: Problems, fps: float | None = None) -> dict[str, Labelled]:
    """The segments of `labels.json`, or of the folder that has it; `fps` is for those in frames."""
    path = path / "labels.json" if path.is_dir() else path
    content = read_json(path, problems)
    found: dict[str, Labelled] = {}
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        if content is not None:
            problems.add(path.name, 'must be {"classes": [...], "labels": {<video>: [...]}}')
        return found
    classes = content.get("classes")
    for key, detections in labels.items():
        where, segments = f"{path.name}: {key!r}", []
        if detections is not None and not isinstance(detections, list):
            problems.add(where, "is not a list of detections")
        for one in detections if isinstance(detections, list) else ():
            try:
                label = one["label"] if isinstance(one["label"], str) else classes[one["label"]]
                if "timestamps" in one:
                    start, end = (number(time) for time in one["timestamps"])
                elif fps:
                    first, last = one["support"]
                    start, end = (number(first) - 1) / fps, number(last) / fps
                else:
                    problems.add(where, 'is in frames ("support"): say with --fps how many are a second')
                    continue
                segments.append(Segment(start, end, str(label)))
            except (KeyError, TypeError, ValueError, IndexError):
                problems.add(where, 'is not [{"label", "timestamps": [start, end]}] with labels of "classes"')
        add(found, checked(id_of(str(key)), segments, where, problems), where, problems)
    return found
