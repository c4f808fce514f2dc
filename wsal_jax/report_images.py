"""The page of one or several runs of images: each image with its true and found boxes over a map (MAAN, Figure 6).

`wsal_jax.report` is the command. The page's data is that of `wsal_jax.page` without videos and analyses, and:

    {"images": [{"id", "width", "height", "picture": data URL or None, "labels": [class], "truth": [[x0, y0, x1, y1,
                 class]] or None, "runs": [{"found": [[x0, y0, x1, y1, class, score]], "top": [class, probability] or
                 None, "verdict": see `verdict`, "grid": [h, w], "maps": [[class, base64 of [h w] bytes]]} or None]}],
     "elsewhere": [[text, file of the page that has further images]]}

Boxes are pixels. A byte b of a map means b / 255 of what 0.2 of a threshold is 0.2 of.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from wsal_jax import boxes as geometry
from wsal_jax import evaluate_images, page, record, report
from wsal_jax.data.images import MAX_PIXELS, open_image
from wsal_jax.formats.checks import FolderError, Problems, read_json
from wsal_jax.record import Record
from wsal_jax.types import Annotation, Boxes, InputError, Meta, Scores

PIXELS = 200
"""The longer side of an image on the page."""


class Run(NamedTuple):
    """What the folder of a run of images holds."""

    folder: Path
    config: dict[str, Any]
    record: Record
    found: dict[str, Boxes]
    scores: dict[str, list[Scores]]
    """By model; empty where none were kept."""


def read(folder: Path) -> Run:
    """Reads a run.

    Raises:
      InputError: it is none, or not over, or a file is damaged.
    """
    kept = record.read(folder)
    config = report.read_object(folder / "config.json")
    return Run(folder, config, kept, read_boxes(folder, kept.classes), record.read_scores(folder, kept))


def read_boxes(folder: Path, classes: Sequence[str]) -> dict[str, Boxes]:
    """What detections.json has of each image, by id.

    Raises:
      FolderError: it is missing or damaged, or has a class that is not among `classes`.
    """
    path, index = folder / "detections.json", {name: i for i, name in enumerate(classes)}
    content = read_json(path, problems := Problems())
    if problems:
        raise FolderError(folder, problems.lines())
    try:
        names = {one["id"]: index[one["name"]] for one in content["categories"]}
        rows: dict[Any, list[tuple[Any, ...]]] = {one["id"]: [] for one in content["images"]}
        for one in content["annotations"]:
            x, y, width, height = map(float, one["bbox"])
            label = names[one["category_id"]]
            rows[one["image_id"]].append((x, y, x + width, y + height, label, float(one["score"])))
        found = {}
        for one in content["images"]:
            table = np.array(rows[one["id"]], np.float64).reshape(-1, 6)
            found[str(one["file_name"])] = Boxes(table[:, :4], table[:, 4].astype(int), table[:, 5])
    except (KeyError, TypeError, ValueError) as error:
        what = f"detections.json is not what a run of images writes ({error!r:.200}): start the run again to write it"
        raise FolderError(folder, [what]) from error
    return found


def verdict(top: int | None, found: Boxes, labels: Sequence[int], truth: Annotation | None) -> str | None:
    """Of the most probable class and its first box, which is of its largest region: "class", it is not one of the
    image's; "right", the box has an IoU of 0.5 with a true one of the class; else "box". None where that is not known.

    "right" is what the column top-1 loc counts.
    """
    if top is None or not len(labels):
        return None
    if top not in labels:
        return "class"
    if truth is None or truth.boxes is None or not (truth.labels == top).any():
        return None
    first = found.boxes[found.labels == top][:1]
    right = first.size and geometry.iou(first, truth.boxes[truth.labels == top]).max() >= geometry.IOU
    return "right" if right else "box"


def levels(values: Float[np.ndarray, "h w"], normalize: str) -> UInt8[np.ndarray, "h w"]:
    """A map in bytes: from 0 (or its minimum, where `normalize` is "minmax") to its maximum."""
    values = np.nan_to_num(values, posinf=0, neginf=0)
    low = values.min() if normalize == "minmax" else 0.0
    high = values.max()
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.round(255 * share.clip(0, 1)).astype(np.uint8)


def thumbnail(path: Path | None, size: tuple[int, int]) -> str | None:
    """An image as a small JPEG, as a data URL; None where it is no longer there."""
    if path is None:
        return None
    try:
        picture = open_image(path, max(MAX_PIXELS, size[0] * size[1]))
    except ValueError:
        return None
    picture.thumbnail((PIXELS, PIXELS))
    picture.save(file := io.BytesIO(), "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def about_image(
    id: str, runs: Sequence[Run], places: Sequence[dict[str, int]], classes: Mapping[str, int], path: Path | None
) -> dict[str, Any]:
    """The entry of an image in the page's "images"; `places` has the index of each run's images."""
    owner = next(r for r, place in enumerate(places) if id in place)
    of, at = runs[owner].record, places[owner][id]
    meta, truth = of.metas[at], of.annotations[at]
    number = np.array([classes[name] for name in of.classes], int)
    return {
        "id": id,
        "width": meta.size[0],
        "height": meta.size[1],
        "picture": thumbnail(path, meta.size),
        "labels": number[_labels(runs[owner], at)].tolist(),
        "truth": None if truth is None else _rows(truth.boxes, number[truth.labels]),
        "runs": [_of_run(run, place.get(id), classes) for run, place in zip(runs, places)],
    }


def _labels(run: Run, at: int) -> list[int]:
    """The classes of an image; none where they are not known."""
    index = {name: i for i, name in enumerate(run.record.classes)}
    return [index[name] for name in run.record.data["videos"][at].get("labels", ()) if name in index]


def _rows(boxes: Float[np.ndarray, "k 4"], *columns: np.ndarray) -> list[list[Any]]:
    return [[*box, *rest] for box, *rest in zip(boxes.round(2).tolist(), *(column.tolist() for column in columns))]


def _of_run(run: Run, at: int | None, classes: Mapping[str, int]) -> dict[str, Any] | None:
    if at is None:
        return None
    meta, labels = run.record.metas[at], _labels(run, at)
    number = np.array([classes[name] for name in run.record.classes], int)
    found = run.found.get(meta.id, Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)))
    top, maps = None, []
    if run.scores:
        scores = list(run.scores.values())[-1][at]
        best = int(scores.video_score.argmax())
        top = [best, float(scores.video_score[best])]
        maps = [[int(number[label]), _map(run, scores, label, meta)] for label in dict.fromkeys([best, *labels])]
    elif len(found.labels):
        top = [int(found.labels[found.scores.argmax()]), None]
    return {
        "found": _rows(found.boxes, number[found.labels], found.scores.round(5)),
        "top": top and [int(number[top[0]]), top[1]],
        "verdict": verdict(top and top[0], found, labels, run.record.annotations[at]),
        "grid": list(meta.grid),
        "maps": maps,
    }


def _map(run: Run, scores: Scores, label: int, meta: Meta) -> str:
    normalize = run.config.get("localize", {}).get("normalize", "max")
    return base64.b64encode(levels(evaluate_images.map_of(scores, label, meta), normalize).tobytes()).decode()


def pictures(runs: Sequence[Run], folder: Path | None) -> dict[str, Path]:
    """The file of each image, by id: in `folder`, or else where the run's data were.

    Raises:
      InputError: `folder` has none of them.
    """
    files: dict[str, Path] = {}
    for run in runs:
        root = folder or Path(run.config.get("data", {}).get("root", ""))
        files |= {meta.id: root / meta.id for meta in run.record.metas if meta.id not in files}
    if folder and not any(file.is_file() for file in files.values()):
        raise InputError(f"{folder} has none of the images, such as {next(iter(files))}: give the root of the data")
    return files


def write(
    runs: Sequence[Run], out: Path, files: Mapping[str, Path], ids: Sequence[str] = (), part: int = report.PART
) -> list[Path]:
    """Writes the page of some runs, and further ones where one would be too large; returns their paths.

    Args:
      out: the HTML file; further pages are called `<name>-2.html` and so on.
      files: the images, by id; those that are gone leave their boxes and maps.
      ids: the images to show; empty means all.
      part: characters of images for a page.

    Raises:
      InputError: an id that no run has.
    """
    places = [{meta.id: i for i, meta in enumerate(run.record.metas)} for run in runs]
    known = list(dict.fromkeys(id for place in places for id in place))
    if unknown := [id for id in ids if id not in known]:
        raise InputError(f"--ids: no run has a test image {unknown[0]!r}; such as {', '.join(known[:3])}")
    chosen = [id for id in known if id in set(ids)] if ids else known
    classes = {name: i for i, name in enumerate(dict.fromkeys(name for run in runs for name in run.record.classes))}
    names = report.short_names([run.folder for run in runs])
    parts: list[list[str]] = [[]]
    size = 0
    for id in chosen:
        one = page.numbers(about_image(id, runs, places, classes, files.get(id)))
        text = json.dumps(one, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if size + len(text) > part and parts[-1]:
            parts.append([])
            size = 0
        size += len(text)
        parts[-1].append(text)
    common = {
        **report.heading(names),
        "classes": list(classes),
        "ious": [geometry.IOU],
        "iou": geometry.IOU,
        "runs": [report.facts(run.folder, run.record, run.config, name) for run, name in zip(runs, names)],
        "videos": [],
    }
    return report.write_parts(common, parts, out, "images")
