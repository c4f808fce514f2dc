"""Label Studio's tasks for `<Video>` with `<TimelineLabels>`, and the labelling config that goes with them.

Its frames count from 1, and a segment holds its last frame: frame f spans [(f - 1) / fps, f / fps]. So times come back
within a frame. Of truth the regions are annotations, of detections predictions. A region has one range, as the tool
draws them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from wsal_jax.formats.checks import Problems, number, read_json
from wsal_jax.formats.labelled import Labelled, Segment, add, checked, id_of, printable

UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def config(classes: Sequence[str]) -> str:
    """The labelling config; the frame rate comes with each task, or Label Studio would take 24."""
    labels = "\n".join(f"    <Label value={quoteattr(printable(name))}/>" for name in classes)
    return (
        '<View>\n  <Video name="video" value="$video" frameRate="$fps"/>\n'
        f'  <TimelineLabels name="class" toName="video">\n{labels}\n  </TimelineLabels>\n</View>\n'
    )


def task(video: Labelled, predicted: bool) -> dict[str, Any]:
    """One video.

    Raises:
      ValueError: its frame rate is not known.
    """
    if not video.fps:
        raise ValueError(f"the frame rate of {video.id!r} is not known")
    result = []
    for i, one in enumerate(video.segments):
        first = round(one.start * video.fps) + 1
        region: dict[str, Any] = {
            "id": f"{i:010d}",
            "from_name": "class",
            "to_name": "video",
            "type": "timelinelabels",
            "value": {
                "ranges": [{"start": first, "end": max(round(one.end * video.fps), first)}],
                "timelinelabels": [printable(one.label)],
            },
        }
        result.append(region if one.score is None else {**region, "score": one.score})
    data = {"video": f"/data/local-files/?d={video.media}", "fps": video.fps, "id": video.id}
    if not predicted:
        return {"data": data, "annotations": [{"result": result}]}
    best = max((one.score or 0.0 for one in video.segments), default=0.0)
    return {"data": data, "predictions": [{"model_version": "wsal_jax", "score": best, "result": result}]}


def write(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>.json`, tasks to import, and `config.xml`."""
    tasks, labels = folder / f"{name}.json", folder / "config.xml"
    content = [task(video, name == "detections") for video in videos]
    tasks.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    labels.write_text(config(classes), encoding="utf-8")
    return [tasks, labels]


def read(path: Path, problems: Problems, fps: float | None = None) -> dict[str, Labelled]:
    """The annotations of an export of the kind "JSON"; of several of a task, the last that is not cancelled.

    Predictions are nobody's labels and are left out. A task is of the video in its data: of the "id" there if we
    wrote it, else of the file's name. `fps` is for tasks that do not say their own.
    """
    found: dict[str, Labelled] = {}
    content = read_json(path, problems)
    for i, one in enumerate(content if isinstance(content, list) else []):
        where = f"{path.name}: task {i}"
        data = one.get("data") if isinstance(one, dict) else None
        if (
            not isinstance(data, dict)
            or not isinstance(data.get("video"), str)
            or not isinstance(one.get("annotations"), list)
        ):
            problems.add(where, 'has no "data" with a "video", or no "annotations": export it as JSON, not JSON-MIN')
            continue
        stated = number(data.get("fps", fps))
        if not stated > 0:
            problems.add(where, "does not say the frame rate of its video: give --fps, as in the labelling config")
            continue
        done = [x for x in one["annotations"] if isinstance(x, dict) and not x.get("was_cancelled")]
        segments = _segments(done[-1].get("result", ()), stated, where, problems) if done else []
        name = data["video"].partition("?d=")[2] or data["video"]
        id = data.get("id") if isinstance(data.get("id"), str) else UPLOADED.sub("", id_of(name))
        if done:
            add(found, checked(id, segments, where, problems, fps=stated), where, problems)
    if content is not None and not isinstance(content, list):
        problems.add(path.name, "is not a list of tasks: export it as JSON")
    return found


def _segments(result: Any, fps: float, where: str, problems: Problems) -> list[Segment]:
    segments = []
    for region in result if isinstance(result, list | tuple) else ():
        if not isinstance(region, dict) or region.get("type") != "timelinelabels":
            continue
        try:
            value = region["value"]
            for span in value["ranges"]:
                times = (float(span["start"]) - 1) / fps, float(span["end"]) / fps
                segments += [Segment(*times, label) for label in value["timelinelabels"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            problems.add(where, 'has a region without "ranges" of "start" and "end", or without "timelinelabels"')
    return segments
