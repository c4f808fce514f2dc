"""The difficulty of a data set: its statistics and the scores of two linear classifiers, without any weak method.

    python -m wsal_jax.difficulty --dataset=synthetic_untrimmed/thumos

1. *Supervised snippets*: logistic regression on the features of a snippet, trained with the true labels of the training
   snippets. In test videos, each run of snippets with a probability > 0.5 is a detection, scored by its mean
   probability. The mAP at IoU 0.5 shows how well features localize actions without temporal context.
2. *Mean pooling*: logistic regression on the mean features of a video, trained with the video labels: video mAP.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import scipy.special
from jaxtyping import Float
from ml_collections import ConfigDict

from wsal_jax import localize, metrics, times
from wsal_jax.data import pipeline
from wsal_jax.types import Annotation, Detections, Meta

L2 = 1e-3
"""Weight of half the squared norm of the weights; the loss is summed over classes and averaged over examples."""


def fit(x: Float[np.ndarray, "v d"], y: Float[np.ndarray, "v c"]) -> dict[str, Float[np.ndarray, "..."]]:
    """Logistic regression of each column of `y` on standardized features, by L-BFGS: `weights` [d c], `bias` [c]."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, targets = jnp.asarray((x - mean) / std), jnp.asarray(y)
    shape = (x.shape[1] + 1, y.shape[1])

    @jax.jit
    def objective(flat):
        w = flat.reshape(shape)
        loss = optax.sigmoid_binary_cross_entropy(x @ w[:-1] + w[-1], targets).mean(0).sum()
        return loss + L2 / 2 * (w[:-1] ** 2).sum()

    def float64(flat):
        value, gradient = jax.value_and_grad(objective)(flat.astype(np.float32))
        return float(value), np.asarray(gradient, np.float64)

    best = scipy.optimize.minimize(
        float64, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=dict(maxiter=200, ftol=1e-7)
    )
    w = best.x.reshape(shape)
    weights = w[:-1] / std[:, None]
    return dict(weights=weights.astype(np.float32), bias=(w[-1] - mean @ weights).astype(np.float32))


def probability(model: dict[str, Float[np.ndarray, "..."]], x: Float[np.ndarray, "v d"]) -> Float[np.ndarray, "v c"]:
    """The probability of each class."""
    return scipy.special.expit(x @ model["weights"] + model["bias"])


def snippet_labels(annotation: Annotation, meta: Meta, num_classes: int) -> Float[np.ndarray, "n c"]:
    """1 if the centre of the snippet lies in a true segment of the class."""
    centre = times.snippet_to_seconds(np.arange(meta.length, dtype=np.float64), meta)[:, None]
    inside = (annotation.segments[:, 0] <= centre) & (centre < annotation.segments[:, 1])
    return (inside @ np.eye(num_classes, dtype=np.float32)[annotation.labels]).clip(0, 1)


def detections(probabilities: Float[np.ndarray, "n c"], meta: Meta) -> Detections:
    """The runs of snippets with a probability > 0.5, for each class."""
    segments, labels, scores = [], [], []
    for c, p in enumerate(probabilities.T):
        for first, last in localize.components(p > 0.5):
            segments.append(times.snippet_to_seconds(np.array([first, last]) - 0.5, meta))
            labels.append(c)
            scores.append(p[first:last].mean())
    return Detections(np.array(segments).reshape(-1, 2), np.array(labels, int), np.array(scores, np.float64))


def statistics(dataset: pipeline.Dataset) -> dict[str, float]:
    """Statistics of the true segments of a split."""
    lengths = np.concatenate([np.diff(a.segments).ravel() for a in dataset.annotations])
    duration = np.array([meta.duration for meta in dataset.metas])
    return {
        "videos": len(dataset.metas),
        "minutes": duration.sum() / 60,
        "instances per video": len(lengths) / len(dataset.metas),
        "median instance, seconds": float(np.median(lengths)),
        "background fraction": 1 - lengths.sum() / duration.sum(),
        "fraction of videos with two classes": float((dataset.labels.sum(1) > 1).mean()),
    }


def supervised_snippets(train: pipeline.Dataset, test: pipeline.Dataset, streams: Sequence[str]) -> float:
    """Test mAP at IoU 0.5 of the first classifier of the module's docstring."""
    c = len(train.class_names)
    targets = np.concatenate([snippet_labels(a, meta, c) for a, meta in zip(train.annotations, train.metas)])
    model = fit(pipeline.flat(train, streams), targets)
    found = {
        meta.id: detections(probability(model, pipeline.read(test, video, streams)), meta)
        for video, meta in enumerate(test.metas)
    }
    truth = {meta.id: annotation for meta, annotation in zip(test.metas, test.annotations)}
    return float(metrics.detection_map(found, truth, c, np.array([0.5])).mean[0])


def mean_pooling(train: pipeline.Dataset, test: pipeline.Dataset, streams: Sequence[str]) -> float:
    """Test video mAP of the second classifier of the module's docstring."""
    pooled = [
        np.stack([pipeline.read(part, video, streams).mean(0) for video in range(len(part.metas))])
        for part in (train, test)
    ]
    scores = probability(fit(pooled[0], train.labels), pooled[1])
    return float(np.nanmean(metrics.classification_ap(scores, test.labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic_untrimmed/thumos", help="a builder of wsal_jax.data")
    parser.add_argument("--root", default="", help="feature_folder: the user's folder")
    parser.add_argument("--data_dir", default="", help="where TFDS keeps what it has built; ~/tensorflow_datasets")
    args = parser.parse_args()
    builder = pipeline.build(ConfigDict(dict(name=args.dataset, root=args.root, dir=args.data_dir)))
    train, test = (pipeline.load(builder, split) for split in ("train", "test"))
    for name, part in (("train", train), ("test", test)):
        print(name + ":", ", ".join(f"{key} {value:.4g}" for key, value in statistics(part).items()))
    names = tuple(train.dims)
    for streams in dict.fromkeys([*((name,) for name in names), names]):
        print(
            "+".join(streams),
            f"supervised snippets, test mAP@.5 {100 * supervised_snippets(train, test, streams):.1f};",
            f"mean pooling, test video mAP {100 * mean_pooling(train, test, streams):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
