"""Training on a part of the training videos and measuring on the rest: what `wsal_jax.tune` chooses by.

Nothing here sees a test video. Every part is held out once, and the others are trained on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from wsal_jax import evaluate, metrics, options, sharding, train
from wsal_jax import methods as registry
from wsal_jax.data import pipeline
from wsal_jax.fuse import fuse
from wsal_jax.method import options_of
from wsal_jax.types import InputError, Model, Scores

SUPERVISION = {
    "segments": "true segments of held-out training videos",
    "labels": "video labels of held-out training videos",
}
"""What a choice has been told, by the measure it was made by: mAP of detection, or of classification."""


class Fold(NamedTuple):
    """A part of the training videos, and the others."""

    train: pipeline.Dataset
    held_out: pipeline.Dataset


OfFold = dict[str, list[list[Scores]]]
"""The scores of the held-out videos of a fold: by model, then seed, then video."""


def split(groups: Sequence[str], count: int, seed: int) -> list[Int[np.ndarray, " k"]]:
    """The videos of each of `count` parts, ascending: parts of about the same size that share no group.

    Args:
      groups: of each video; one of the group "" is a group of its own.
      count: how many parts.
      seed: of the order in which groups, the largest first, go each to the part that is smallest by then.

    Raises:
      InputError: fewer groups than parts, or fewer than two parts.
    """
    names = [f"group {group}" if group else f"video {i}" for i, group in enumerate(groups)]
    unique, of, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if not 2 <= count <= len(unique):
        raise InputError(
            f"{count} folds of {len(unique)} groups of videos: give 2 folds or more, and no more than groups"
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    part, filled = np.zeros(len(unique), int), np.zeros(count, int)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        part[group] = filled.argmin()
        filled[part[group]] += sizes[group]
    return [np.flatnonzero(part[of] == i) for i in range(count)]


def make_folds(data: pipeline.Dataset, count: int, seed: int) -> list[Fold]:
    """The folds of a training split, see `split`."""
    everything = np.arange(len(data.metas))
    parts = split(data.groups, count, seed)
    return [Fold(pipeline.select(data, np.setdiff1d(everything, part)), pipeline.select(data, part)) for part in parts]


def with_segments(data: pipeline.Dataset) -> Int[np.ndarray, " k"]:
    """The videos that have true segments."""
    return np.flatnonzero([len(annotation.labels) > 0 for annotation in data.annotations])


def choose_measure(folds: Sequence[Fold], wanted: str) -> str:
    """What can be measured in every fold, or what is wanted: a key of `SUPERVISION`; "auto" is segments if possible.

    Of images it is always labels, also where training images have boxes.

    Raises:
      InputError: segments are wanted and a fold has none or is of images, or something else is wanted.
    """
    if wanted not in ("auto", *SUPERVISION):
        raise InputError(f"the measure {wanted!r}: there are auto, {', '.join(SUPERVISION)}")
    there = all(len(with_segments(fold.held_out)) and not fold.held_out.metas[0].grid for fold in folds)
    if wanted == "segments" and not there:
        raise InputError("the measure 'segments': the held-out videos of a fold have none; take 'labels' or 'auto'")
    return wanted if wanted != "auto" else ("segments" if there else "labels")


def check(config: ConfigDict, folds: Sequence[Fold]) -> None:
    """Raises InputError for a config that cannot be trained on the folds, or measured."""
    mesh = sharding.make_mesh()
    metrics.rule_of(config.evaluation.protocol)
    for model in config.streams:
        options_of(config.localize, model, "config.localize")
    for fold in folds:
        options.check_training(config, fold.train, mesh)
        for model in config.streams:
            registry.get(config.method, model).check(fold.train)


def train_and_score(config: ConfigDict, fold: Fold, folder: Path) -> OfFold:
    """Trains all models and seeds of the config on a fold, and scores its held-out videos.

    What was trained before is found in `folder` and continued.

    Raises:
      train.Diverged: see `train.fit`, and its other errors.
    """
    mesh, scores = sharding.make_mesh(), {}
    for model in config.streams:
        method, streams = registry.get(config.method, model), model.split("+")
        params = train.fit(method, fold.train, streams, config, mesh, folder / model)
        scores[model] = evaluate.score(method, params, fold.held_out, streams)
    return scores


def measure(config: ConfigDict, folds: Sequence[Fold], scores: Sequence[OfFold], by: str) -> Float[np.ndarray, "f s"]:
    """The value of each fold and seed in percent: the mean over `config.evaluation.ious` of the mAP, or the mAP of
    classification (`by` is a key of `SUPERVISION`), of the final scores: the fused ones where there are several models.
    """
    of: Callable[..., float] = {"segments": _detection, "labels": _classification}[by]
    seeds = len(next(iter(scores[0].values())))
    values = [
        [of(config, fold.held_out, {model: x[seed] for model, x in of_fold.items()}) for seed in range(seeds)]
        for fold, of_fold in zip(folds, scores)
    ]
    return 100 * np.array(values, np.float64)


def _detection(config: ConfigDict, data: pipeline.Dataset, scores: dict[str, list[Scores]]) -> float:
    """Of the detections of the last row of `evaluate.detect`."""
    name, method = "config.localize", registry.get(config.method, config.streams[0])
    common, own = options_of(config.localize, "", name), [options_of(config.localize, x, name) for x in scores]
    found, truth = {}, {}
    for i in with_segments(data):
        models = [Model(of[i], options) for of, options in zip(scores.values(), own)]
        fused = models[0]
        if len(models) > 1:
            fused = Model(fuse([x.scores for x in models], config.fusion), common)
        found[data.metas[i].id] = method.propose(models, fused, data.metas[i])
        truth[data.metas[i].id] = data.annotations[i]
    ious = np.array(config.evaluation.ious, np.float64)
    return metrics.detection_map(found, truth, len(data.class_names), ious, config.evaluation.protocol).mean.mean()


def _classification(config: ConfigDict, data: pipeline.Dataset, scores: dict[str, list[Scores]]) -> float:
    weights = config.fusion if len(scores) > 1 else (1.0,)
    of_models = [np.stack([video.video_score for video in of]) for of in scores.values()]
    interpolate = metrics.rule_of(config.evaluation.protocol).interpolated
    fused = np.average(np.stack(of_models).astype(np.float64), axis=0, weights=weights)
    return float(np.nanmean(metrics.classification_ap(fused, data.labels, interpolate)))
