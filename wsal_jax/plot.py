"""A picture of one video: what is true, what the models say of every snippet, what is detected."""

import os

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wsal_jax import localize
from wsal_jax.types import Annotation, Detections, Meta, Scores

MAX_CLASSES = 4
DPI = 120
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 12.0, 1.0, 0.2, 0.6, 0.55  # inches, as all sizes here
HEADER, TRUTH, CURVE, DETECTIONS = 0.45, 0.18, 0.5, 0.32  # heights of the rows of a class

# Told apart by those who cannot tell red from green (Okabe and Ito).
GREEN, PURPLE, MODELS = "#009E73", colormaps["Purples"], ("#D55E00", "#0072B2", "#404040")


def draw(
    path: str | os.PathLike,
    meta: Meta,
    annotation: Annotation,
    scores: dict[str, Scores],
    detections: Detections,
    class_names: list[str],
) -> None:
    """Writes a PNG with, for every class shown and one below the other over time, the rows

    - true: bars, which also shade the rows below;
    - one for each entry of `scores`, the class activation sequence of that model (without padding), each on a scale of
      its own, with a step for each snippet from the middle between it and its neighbours;
    - detected: bars, the higher and darker the higher the score, relative to the best detection of the video.

    Shown are the classes that are true, then those that are detected, best first, `MAX_CLASSES` at most; where there
    are none, the one that the last entry of `scores` finds the most probable. The PNG is 1440 pixels wide.
    """
    classes = _choose(annotation, scores, detections)
    shown = classes[:MAX_CLASSES]
    heights = [HEADER, TRUTH, *[CURVE] * len(scores), DETECTIONS] * len(shown)
    height = TOP + sum(heights) + BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    inside = dict(left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / height, top=1 - TOP / height, hspace=0)
    rows = figure.subplots(len(heights), sharex=True, gridspec_kw=dict(height_ratios=heights, **inside))

    edges = localize.snippet_to_seconds(np.arange(meta.length + 1) - 0.5, meta)
    colors = {name: MODELS[min(i, len(MODELS) - 1)] for i, name in enumerate(scores)}
    best = detections.scores.max(initial=0)
    for label, (header, truth, *curves, found) in zip(shown, rows.reshape(len(shown), -1)):
        true = annotation.segments[annotation.labels == label]
        of_class = detections.labels == label

        header.set_axis_off()
        about = ", ".join(f"{name} {score.video_score[label]:.2f}" for name, score in scores.items())
        text = f"{len(true)} true, {of_class.sum()} detected; probability in the video: {about}"
        header.text(0, 0.15, class_names[label], transform=header.transAxes, weight="bold", parse_math=False)
        header.text(1, 0.15, text, transform=header.transAxes, ha="right", fontsize=9, color="0.3")

        _row(truth, "true")
        truth.broken_barh(_spans(true), (0, 1), color=GREEN, linewidth=1)
        for (name, score), axes in zip(scores.items(), curves):
            _row(axes, name)
            cas = score.cas[:, label]
            axes.stairs(cas, edges, baseline=min(0, cas.min()), fill=True, color=colors[name], alpha=0.25)
            axes.stairs(cas, edges, baseline=None, color=colors[name], linewidth=1)
    figure.savefig(path)
