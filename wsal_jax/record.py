"""What a run keeps to be looked at and used later, beside its results: `data.json` and `scores.npz`.

`data.json` says what the run was trained for and which videos it was tested on:

    {"version": 1, "command": how the run was started, or null, "classes": [names in the order of the labels],
     "streams": [of the data], "dims": {stream: of a feature}, "fusion": [weight of each model],
     "extraction": how all features were made (`video.sidecar.extraction`), or null where that is not known,
     "grid": {"fps", "stride", "offset"} if all test videos have the same, else null,
     "videos": [{"id", "length", "fps", "stride", "offset", "duration", "ambiguous": [[start, end]],
                 "annotations": [{"segment", "label"}], or null where the truth is not known}]}

A run of images has for each the "grid" of its map and its "size" in pixels, too, and "labels", its classes; a box of an
annotation is "box", x0, y0, x1, y1 in pixels.

`scores.npz` has of each model, for the first seed and all test videos one after the other, `<model>/cas` [total c],
`<model>/attention` [total], `<model>/video_score` [videos c] and, of methods that have one, `<model>/class_attention`
[total c], as float16. The fused scores follow from them.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from wsal_jax.files import regular, replace, whole
from wsal_jax.formats.checks import FolderError, Problems, read_json
from wsal_jax.fuse import fuse
from wsal_jax.types import Annotation, Meta, Scores

VERSION = 1
GRID = ("fps", "stride", "offset")


class Record(NamedTuple):
    """What `read` finds."""

    data: dict[str, Any]
    """All of data.json."""
    classes: list[str]
    metas: list[Meta]
    annotations: list[Annotation | None]
    """None where the truth is not known."""


def write(folder: Path, data: Any, config: ConfigDict) -> None:
    """Writes data.json; `data` are the test videos, a `pipeline.Dataset`; `config` is the whole one."""
    videos = []
    for meta, annotation, labels, counts in zip(data.metas, data.annotations, data.labels, data.counts):
        known = bool((counts >= 0).all())
        segments = [
            {"segment": segment.tolist(), "label": data.class_names[label]}
            for segment, label in zip(annotation.segments, annotation.labels)
        ]
        video = {**meta._asdict(), "annotations": segments if known else None}
        if meta.grid:
            for one, box in zip(segments, annotation.boxes):
                one["box"] = box.tolist()
            video["labels"] = [data.class_names[label] for label in np.flatnonzero(labels > 0)]
        videos.append({**video, "ambiguous": annotation.ambiguous.tolist()})
    grids = {tuple(getattr(meta, name) for name in GRID) for meta in data.metas}
    content = {
        "version": VERSION,
        "command": _command(),
        "classes": list(data.class_names),
        "streams": list(data.dims),
        "dims": dict(data.dims),
        "fusion": list(config.fusion),
        "extraction": data.extraction,
        "grid": dict(zip(GRID, next(iter(grids)))) if len(grids) == 1 else None,
        "videos": videos,
    }
    replace(folder / "data.json", json.dumps(content))


def _command() -> str | None:
    """How the program that runs was started; None where it is no command of ours, such as in a notebook."""
    name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    return shlex.join(["python", "-m", name, *sys.argv[1:]]) if name.startswith("wsal_jax.") else None


def write_scores(folder: Path, scores: Mapping[str, Sequence[Scores]]) -> None:
    """Writes scores.npz; `scores` are each model's, video by video, without the fused ones."""
    largest = np.finfo(np.float16).max
    arrays = {}
    for model, of in scores.items():
        for name in ("cas", "attention", "class_attention", "video_score"):
            if getattr(of[0], name) is None:
                continue
            join = np.stack if name == "video_score" else np.concatenate
            joined = np.asarray(join([getattr(one, name) for one in of]), np.float32)
            arrays[f"{model}/{name}"] = np.clip(joined, -largest, largest).astype(np.float16)
    with whole(folder / "scores.npz", "wb") as file:
        np.savez(file, **arrays)


def read(folder: Path) -> Record:
    """What data.json says.

    Raises:
      FolderError: it is not there, or damaged.
    """
    problems = Problems()
    path = folder / "data.json"
    if not path.exists():
        what = (
            "is missing: the run is not over, or older than this file; start it again as it was, which trains nothing"
        )
        raise FolderError(folder, [f"data.json {what} anew"])
    content = read_json(path, problems)
    try:
        if problems:
            raise FolderError(folder, problems.lines())
        if content["version"] != VERSION:
            raise FolderError(folder, [f"data.json has version {content['version']}: this program reads {VERSION}"])
        index = {name: i for i, name in enumerate(content["classes"])}
        metas = [
            Meta(one["id"], int(one["length"]), *(float(one[name]) for name in (*GRID, "duration")), *_image(one))
            for one in content["videos"]
        ]
        annotations = [_annotation(one, index) for one in content["videos"]]
    except FolderError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise FolderError(folder, [f"data.json is damaged ({error!r}): start the run again to write it"]) from error
    return Record(content, content["classes"], metas, annotations)


def _image(video: dict[str, Any]) -> list[tuple[int, int] | None]:
    """Grid and size; None of a video."""
    pairs = [video.get(name) for name in ("grid", "size")]
    return [None if pair is None else (int(pair[0]), int(pair[1])) for pair in pairs]


def locations(meta: Meta) -> int:
    """How many values a map or sequence of scores has: an image's are on its grid, whatever its features."""
    return prod(meta.grid) if meta.grid else meta.length


def _annotation(video: dict[str, Any], index: dict[str, int]) -> Annotation | None:
    if video["annotations"] is None:
        return None
    return Annotation(
        segments=np.array([one["segment"] for one in video["annotations"]], np.float64).reshape(-1, 2),
        labels=np.array([index[one["label"]] for one in video["annotations"]], int),
        ambiguous=np.array(video["ambiguous"], np.float64).reshape(-1, 2),
        boxes=np.array([one["box"] for one in video["annotations"]], np.float64).reshape(-1, 4)
        if video.get("grid")
        else None,
    )


def read_scores(folder: Path, record: Record) -> dict[str, list[Scores]]:
    """Each model's scores and, of several, the fused ones, video by video; empty where the run kept none.

    Raises:
      FolderError: the file is damaged, or not of these videos.
    """
    path = folder / "scores.npz"
    if not path.exists():
        return {}
    ends = np.cumsum([locations(meta) for meta in record.metas])
    scores: dict[str, list[Scores]] = {}
    try:
        with np.load(regular(path), allow_pickle=False) as file:
            for model in dict.fromkeys(name.rpartition("/")[0] for name in file.files):
                cas, attention, video_score = (file[f"{model}/{name}"] for name in ("cas", "attention", "video_score"))
                shapes = [x.shape for x in (cas, attention, video_score)]
                c = len(record.classes)
                if shapes != [(ends[-1], c), (ends[-1],), (len(ends), c)]:
                    raise ValueError(f"shapes {shapes} are not those of data.json")
                pairs = zip(np.split(cas, ends[:-1]), np.split(attention, ends[:-1]), video_score)
                scores[model] = [Scores(score, of, attends) for of, attends, score in pairs]
                if f"{model}/class_attention" in file.files:
                    own = np.split(file[f"{model}/class_attention"], ends[:-1])
                    scores[model] = [one._replace(class_attention=x) for one, x in zip(scores[model], own)]
    except Exception as error:  # zipfile's, zlib's, NumPy's
        if isinstance(error, MemoryError):
            raise
        what = f"scores.npz is damaged ({error}): start the run again to write it, or delete it"
        raise FolderError(folder, [what]) from error
    if len(scores) > 1:
        weights = record.data["fusion"]
        if len(weights) != len(scores):
            what = f"scores.npz has {len(scores)} models, data.json {len(weights)} weights of fusion"
            raise FolderError(folder, [f"{what}: start the run again"])
        scores["fused"] = [fuse(of, weights) for of in zip(*scores.values())]
    return scores
