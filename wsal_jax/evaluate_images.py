"""From scores of images to boxes, their table, and what is written of them, each seed for itself.

Beside each model the table has four floors: `whole image`; the best `centred square`, which looks at the true boxes;
the `mean training box`, of data with boxes of training images; and `shuffled`, the last model's map with its
locations permuted. Their classes are the last model's. `wsal_jax.boxes` says what the columns are.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from wsal_jax import boxes as geometry
from wsal_jax import localize, record, results
from wsal_jax.boxes import Case, Hits
from wsal_jax.data import pipeline
from wsal_jax.files import replace
from wsal_jax.method import options_of
from wsal_jax.results import MEAN_BOX, SHUFFLED, SQUARE, WHOLE_IMAGE, Results, Table
from wsal_jax.types import Boxes, Meta, Scores


def map_of(scores: Scores, label: int | np.integer, meta: Meta) -> Float[np.ndarray, "h w"]:
    """The map of one class."""
    return np.asarray(scores.cas[:, label], np.float64).reshape(meta.grid)


def find(scores: Scores, meta: Meta, options: Any) -> Boxes:
    """Boxes of each of `localize.predicted_classes`: `options.boxes` at most, with the class's probability times the
    region's mean on the map's scale as their scores.

    `options` are those of `config.localize`.
    """
    found: list[tuple[Any, ...]] = [(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))]
    for label in localize.predicted_classes(scores.video_score, options.reject):
        of_class = map_of(scores, label, meta)
        corners, means = localize.propose_boxes(
            of_class, meta.size, options.thresholds[0], options.normalize, options.boxes
        )
        found.append((corners, np.full(len(corners), label), scores.video_score[label] * means))
    return Boxes(*(np.concatenate(parts) for parts in zip(*found)))


def to_json(found: Sequence[Boxes], metas: Sequence[Meta], class_names: Sequence[str]) -> dict[str, Any]:
    """COCO's form: images and classes are numbered from 1, annotations have a score."""
    images = [
        {"id": i, "file_name": meta.id, "width": meta.size[0], "height": meta.size[1]}
        for i, meta in enumerate(metas, 1)
    ]
    annotations = []
    for i, (corners, labels, scores) in enumerate(found, 1):
        for (x0, y0, x1, y1), label, score in zip(corners.tolist(), labels.tolist(), scores.tolist()):
            box = [round(x, 2) for x in (x0, y0, x1 - x0, y1 - y0)]
            area = round(box[2] * box[3], 2)
            one = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "bbox": box, "area": area}
            annotations.append({**one, "iscrowd": 0, "score": round(score, 5)})
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def mean_box(data: pipeline.Dataset) -> Float[np.ndarray, "4"] | None:
    """The mean of all boxes of training images, relative; None where there are none."""
    cases = geometry.cases_of(range(len(data.metas)), data.annotations, data.metas)
    return np.concatenate([case.boxes for case in cases]).mean(axis=0) if cases else None


def columns_of(
    fixed: Bool[np.ndarray, "k l"],
    largest: Bool[np.ndarray, "k i levels"] | None,
    best: Bool[np.ndarray, "k i levels"] | None,
    video_scores: Float[np.ndarray, "v c"],
    cases: Sequence[Case],
) -> dict[str, Hits]:
    """The columns of a row of boxes.

    Args:
      fixed: whether the box of each case is right, of one box alone or of several that are tried for all images alike.
      largest: the same at each IoU of V2 and each threshold, of the largest contours; None without OpenCV.
      best: of the best contours.
      video_scores: which say the classes.
      cases: of all images.
    """
    image = np.array([case.image for case in cases])
    columns = {f"top-{k} loc": geometry.top_k(video_scores, fixed, cases, k) for k in (1, 5)}
    columns["GT-known"] = Hits(fixed[:, None], image)
    if largest is not None and best is not None:
        middle = geometry.IOUS_V2.index(geometry.IOU)
        columns["MaxBoxAcc"] = Hits(largest[:, [middle]], image)
        columns["MaxBoxAccV2"] = Hits(best, image)
    return columns


def above(ious: Float[np.ndarray, "k l"]) -> Bool[np.ndarray, "k i l"]:
    """Whether each IoU reaches each of those of V2."""
    return ious[:, None] >= np.array(geometry.IOUS_V2)[:, None]


def of_maps(
    scores: Sequence[Scores], data: pipeline.Dataset, cases: Sequence[Case], options: Any, levels: int
) -> dict[str, Hits]:
    """The columns of a model."""
    maps = [map_of(scores[case.image], case.label, data.metas[case.image]) for case in cases]
    found = [localize.propose_box(x, (1, 1), options.thresholds[0], options.normalize) for x in maps]
    fixed = geometry.best_ious(np.array(found), cases)[:, None] >= geometry.IOU
    largest = best = None
    if levels:
        pairs = [geometry.level_ious(x, case.boxes, levels) for x, case in zip(maps, cases)]
        largest, best = (above(np.array(part)) for part in zip(*pairs))
    return columns_of(fixed, largest, best, np.stack([x.video_score for x in scores]), cases)


def of_boxes(
    tried: Float[np.ndarray, "l 4"], video_scores: Float[np.ndarray, "v c"], cases: Sequence[Case], levels: int
) -> dict[str, Hits]:
    """The columns of boxes that do not look at the image."""
    ious = np.stack([geometry.iou(tried, case.boxes).max(axis=1) for case in cases])
    hits = above(ious) if levels else None
    return columns_of(ious >= geometry.IOU, hits, hits, video_scores, cases)


def cells(
    columns: dict[str, Hits], small: Bool[np.ndarray, " v"], resamplings: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Each column's value in percent, and 95 % interval of resampled images; then those of small objects alone."""
    rng = np.random.default_rng(seed)
    v = len(small)
    drawn = np.array([np.bincount(rng.integers(0, v, v), minlength=v) for _ in range(max(1, resamplings))])
    row = {}
    for suffix, weights in (("", np.ones(v)), (", small", small.astype(float))):
        for name, column in columns.items():
            if not weights[column.image].any():
                continue
            cell: dict[str, Any] = {"value": float(100 * geometry.accuracy(column, weights[None])[0])}
            if resamplings:
                of_drawn = geometry.accuracy(column, drawn * weights)
                cell["interval"] = (100 * np.nanpercentile(of_drawn, [2.5, 97.5])).tolist()
            row[name + suffix] = cell
    return row


def measure(scores: dict[str, list[Scores]], data: pipeline.Dataset, mean: Any, config: ConfigDict, seed: int) -> Table:
    """The rows of the models and of the floors; `mean` is `mean_box` of the training data."""
    known = results.annotated(data)
    cases = geometry.cases_of(known, data.annotations, data.metas)
    options = config.evaluation
    levels = options.levels if importlib.util.find_spec("cv2") else 0
    small = geometry.small_images(cases, options.small, len(data.metas))
    rows, final = {}, list(scores)[-1]
    for name, of in scores.items():
        own = options_of(config.localize, name, "config.localize")
        rows[name] = of_maps(of, data, cases, own, levels)
    video_scores = np.stack([x.video_score for x in scores[final]])
    floors = {WHOLE_IMAGE: np.array([[0.0, 0.0, 1.0, 1.0]]), SQUARE: geometry.squares()}
    if mean is not None:
        floors[MEAN_BOX] = mean[None]
    rows |= {name: of_boxes(tried, video_scores, cases, levels) for name, tried in floors.items()}
    rng = np.random.default_rng(seed)
    shuffled = [localize.shuffle(x, rng) for x in scores[final]]
    rows[SHUFFLED] = of_maps(shuffled, data, cases, options_of(config.localize, final, "config.localize"), levels)
    table = {name: cells(columns, small, options.bootstrap) for name, columns in rows.items()}
    for name, of in scores.items():
        best = np.array([of[i].video_score.argmax() for i in known])
        table[name]["classification"] = {"value": float(100 * data.labels[known, best].mean())}
    return table


def attend(scores: dict[str, list[Scores]]) -> Table:
    """How the attention of each model is: its mean over all locations of all images, its standard deviation within an
    image, and the share of images in which it varies by less than 0.01, where it says nothing."""
    table = {}
    for name, of in scores.items():
        attention = np.stack([x.attention for x in of])
        spread = attention.max(axis=1) - attention.min(axis=1)
        means = {
            "mean": attention.mean(),
            "std in an image": attention.std(axis=1).mean(),
            "constant": (spread < 0.01).mean(),
        }
        table[name] = {column: {"value": float(100 * x)} for column, x in means.items()}
    return table


def report(
    scores: dict[str, list[list[Scores]]], data: dict[str, pipeline.Dataset], config: ConfigDict, workdir: Path
) -> Results:
    """Finds boxes and measures, and writes detections*.json, results.json, data.json, pictures and the report.

    Args:
      scores: of the test images, by model, then seed, then image.
      data: both splits.
      config: the whole config.
      workdir: where all goes.
    """
    test, mean = data["test"], mean_box(data["train"])
    seeds = list(range(config.seed, config.seed + config.seeds))
    known = results.annotated(test)
    labels = [label for i in known for label in test.annotations[i].labels]
    final = list(scores)[-1]
    options = options_of(config.localize, final, "config.localize")
    about = {
        "dataset": config.data.name,
        "supervision": "image labels",
        "images": len(known),
        "classes": len(set(labels)),
        "boxes": len(labels),
        "threshold": f"{options.thresholds[0]:g} of the {'range' if options.normalize == 'minmax' else 'maximum'}",
        "small": f"below {config.evaluation.small:g} of the image",
        "seeds": seeds,
    }
    tables, attention = [], []
    for i, seed in enumerate(tqdm(seeds, desc="find boxes", unit="seed")):
        of_models = {name: of[i] for name, of in scores.items()}
        found = [find(x, meta, options) for x, meta in zip(of_models[final], test.metas)]
        name = "detections.json" if i == 0 else f"detections_seed{seed}.json"
        replace(workdir / name, json.dumps(to_json(found, test.metas, test.class_names)))
        if i == 0:
            record.write(workdir, test, config)
            if config.report:
                record.write_scores(workdir, of_models)
            if config.plots:
                draw(of_models, found, test, config, workdir / "plots")
        if labels:
            tables.append(measure(of_models, test, mean, config, seed))
            attention.append(attend(of_models))
    measured = Results(about, results.summarise(tables), results.summarise(attention))
    if tables:
        replace(workdir / "results.json", json.dumps(results.to_json(measured), indent=1))
    if config.report:
        from wsal_jax import report_images as page  # which needs this module

        run = page.read(workdir)
        page.write([run], workdir / "report" / "index.html", page.pictures([run], None))
    return measured


def draw(
    scores: dict[str, list[Scores]], found: Sequence[Boxes], data: pipeline.Dataset, config: ConfigDict, directory: Path
) -> None:
    """A page of `config.plots` images, evenly spaced in the order of ids, with the maps of each model (Figure 6)."""
    from wsal_jax import plot_images  # Matplotlib takes half a second to import

    directory.mkdir(exist_ok=True)
    chosen = np.unique(np.linspace(0, len(data.metas) - 1, min(config.plots, len(data.metas))).astype(int))
    rows = []
    for i in chosen:
        meta, true = data.metas[i], data.annotations[i]
        label = int(true.labels[0]) if len(true.labels) else int(list(scores.values())[-1][i].video_score.argmax())
        maps = {name: map_of(of[i], label, meta) for name, of in scores.items()}
        rows.append(plot_images.Row(Path(config.data.root) / meta.id, meta, maps, true, found[i], label))
    plot_images.draw(directory / "images.png", rows, data.class_names)
