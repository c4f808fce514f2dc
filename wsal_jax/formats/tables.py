"""A CSV of all segments, and ActivityNet's JSON: a submission of detections, or the ground truth."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsal_jax.formats.labelled import Labelled


def cell(text: str) -> str:
    """The text, which a spreadsheet must not take for a formula: after an apostrophe where it begins like one."""
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@") or text[:1] in ("\t", "\r") else text


def write_csv(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>.csv` with the columns video, start, end, label and score (empty of truth)."""
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "start", "end", "label", "score"])
        for video in videos:
            for one in video.segments:
                score = "" if one.score is None else f"{one.score:.6g}"
                table.writerow([cell(video.id), f"{one.start:.3f}", f"{one.end:.3f}", cell(one.label), score])
    return [path]


def write_activitynet(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>.json`."""
    path = folder / f"{name}.json"
    content: dict[str, Any] = {"version": "wsal_jax"}
    if name == "truth":
        content["database"] = {
            video.id: {
                "subset": "testing",
                "duration": video.duration,
                "annotations": [{"segment": [one.start, one.end], "label": one.label} for one in video.segments],
            }
            for video in videos
        }
    else:
        content["results"] = {
            video.id: [
                {"label": one.label, "score": one.score, "segment": [one.start, one.end]} for one in video.segments
            ]
            for video in videos
        }
        content["external_data"] = {}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return [path]
