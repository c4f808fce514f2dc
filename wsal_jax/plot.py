"""A picture of one video: what is true, what each model says of every snippet, what is detected.

Training draws a few; `python -m wsal_jax.plot RUN --ids A,B` draws any test video of a run.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from wsal_jax import times
from wsal_jax.types import Annotation, Detections, InputError, Meta, Scores

MAX_CLASSES = 4
DPI = 120
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 12.0, 1.15, 0.3, 1.0, 0.6  # inches, as all sizes here
HEADER, TRUE, MODEL, ATTENTION, DETECTED = 0.42, 0.2, 0.5, 0.5, 0.4  # heights of the rows of a class

HELP = (
    "Curves: how strongly a model sees the class; the number is the highest value. "
    "Detections: darker and higher for higher scores. True segments tint the rows."
)

# Okabe and Ito's colors, which do not ask the reader to tell red from green.
COLOR_TRUE, COLORS_MODELS, COLOR_DETECTED = "#009E73", ("#D55E00", "#0072B2", "#404040"), "#3F007D"


def draw(
    path: str | os.PathLike,
    meta: Meta,
    annotation: Annotation,
    scores: dict[str, Scores],
    detections: Detections,
    class_names: list[str],
) -> None:
    """Writes a PNG. Each class shown has these rows over time, one below the other:

    - true: a bar for each true segment, which also tints the rows below;
    - each entry of `scores`: its class activation sequence (no padding) as steps that meet midway between snippets, on
      a scale of its own, which includes 0; the number is the maximum;
    - attention: where entries have a `class_attention`, as STAR has, what each attends to for this class, on a scale
      from 0 to 1;
    - detected: a bar for each detection, the darker and higher the higher its score is, compared to the video's best.

    Shown are the classes that are true, then those that are detected, the best first, but no more than `MAX_CLASSES`;
    where there are none, the most probable class by the last entry of `scores`. The PNG is 1440 pixels wide.
    """
    classes = choose_classes(annotation, scores, detections)
    shown = classes[:MAX_CLASSES]
    attend = {name: score.class_attention for name, score in scores.items() if score.class_attention is not None}
    heights = [HEADER, TRUE, *[MODEL] * len(scores), *[ATTENTION] * bool(attend), DETECTED] * len(shown)
    height = TOP + sum(heights) + BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    inside = dict(left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / height, top=1 - TOP / height, hspace=0)
    rows = figure.subplots(len(heights), sharex=True, gridspec_kw=dict(height_ratios=heights, **inside))

    edges = times.snippet_to_seconds(np.arange(meta.length + 1) - 0.5, meta)
    colors = {name: COLORS_MODELS[min(i, len(COLORS_MODELS) - 1)] for i, name in enumerate(scores)}
    best = detections.scores.max() if len(detections.scores) else 1
    for label, (header, true_row, *curves, detected_row) in zip(shown, rows.reshape(len(shown), -1)):
        true = annotation.segments[annotation.labels == label]
        detected = np.flatnonzero(detections.labels == label)
        detected = detected[np.argsort(-detections.scores[detected])]  # low bars in front of high ones

        video_scores = ", ".join(f"{name} {score.video_score[label]:.2f}" for name, score in scores.items())
        text = f"{len(true)} true, {len(detected)} detected; video score: {video_scores}"
        _head(header, class_names[label], text)
        dress(true_row, "true")
        bars(true_row, true, 1, color=COLOR_TRUE)
        for axes, (name, score) in zip(curves, scores.items()):
            dress(axes, name)
            _curve(axes, edges, score.cas[:, label], colors[name])
        if attend:
            dress(curves[-1], "attention")
            curves[-1].set_yticks([1], ["1"], size=7, color="0.35")
        for name, attention in attend.items():
            steps = attention[:, label]
            steps = np.append(steps, steps[-1])
            curves[-1].plot(edges, steps, drawstyle="steps-post", color=colors[name], linewidth=0.8)
            curves[-1].set_ylim(0, 1.1)
        dress(detected_row, "detected")
        shades = np.clip(detections.scores[detected] / max(best, 1e-9), 0, 1)
        fill = dict(color=colormaps["Purples"](0.2 + 0.8 * shades), edgecolor=COLOR_DETECTED)
        bars(detected_row, detections.segments[detected], 0.15 + 0.85 * shades, **fill)
        for axes in (*curves, detected_row):
            for start, end in true:
                axes.axvspan(start, end, color=COLOR_TRUE, alpha=0.12, linewidth=0, zorder=0)

    rows[-1].set_xlim(0, max(meta.duration, edges[-1]))
    rows[-1].tick_params(axis="x", bottom=True)
    rows[-1].set_xlabel("seconds")
    few = f"   {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else ""
    _legend(figure, height, meta.id + few, colors, f", best score {best:.2g}" if len(detections.scores) else "")
    figure.savefig(path)


def _head(axes: Axes, name: str, text: str) -> None:
    axes.set_axis_off()
    axes.text(0, 0.2, name, transform=axes.transAxes, weight="bold", parse_math=False)
    axes.text(1, 0.2, text, transform=axes.transAxes, ha="right", size=9, color="0.35")


def _curve(axes: Axes, edges: Float[np.ndarray, " edges"], cas: Float[np.ndarray, " n"], color: str) -> None:
    low, high = cas.min(initial=0), cas.max(initial=0)
    steps = np.append(cas, cas[-1])
    axes.fill_between(edges, steps, step="post", color=color, alpha=0.3, linewidth=0)
    axes.plot(edges, steps, drawstyle="steps-post", color=color, linewidth=0.8)
    axes.set_ylim(low, high + 0.2 * (high - low) + 1e-9)
    axes.set_yticks([cas.max()], [f"{cas.max():.2g}"], size=7, color="0.35")


def _legend(figure: Figure, height: float, title: str, colors: dict[str, str], of_best: str) -> None:
    figure.text(LEFT / WIDTH, 1 - 0.28 / height, title, size=13, weight="bold", va="center", parse_math=False)
    handles = [
        Patch(color=COLOR_TRUE, label="true segment"),
        *[Patch(color=color, label=f"{name}: class activation (CAS)") for name, color in colors.items()],
        Patch(color=COLOR_DETECTED, label=f"detection{of_best}"),
    ]
    figure.text(LEFT / WIDTH, 1 - 0.84 / height, HELP, size=8.5, color="0.35", va="center")
    place = dict(loc="center left", bbox_to_anchor=(LEFT / WIDTH, 1 - 0.58 / height), borderpad=0, borderaxespad=0)
    figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=9, handlelength=1.2, **place)  # type: ignore[call-overload]


def choose_classes(annotation: Annotation, scores: dict[str, Scores], detections: Detections) -> list[int]:
    """The true classes, then those that are detected by their best score; or else the most probable one."""
    best_first = detections.labels[np.argsort(-detections.scores)]
    classes = dict.fromkeys([*np.unique(annotation.labels).tolist(), *best_first.tolist()])
    return list(classes) or [int(list(scores.values())[-1].video_score.argmax())]


def dress(axes: Axes, name: str) -> None:
    """A row without a frame, with its name at the left."""
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color("0.8")
    axes.tick_params(axis="both", length=0)
    axes.set_yticks([])
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.annotate(name, (0, 0.4), (-30, 0), "axes fraction", "offset points", ha="right", va="center", size=9)


def bars(axes: Axes, segments: Float[np.ndarray, "k 2"], heights: Any, **colors: Any) -> None:
    """A bar for each segment; the edge shows even those shorter than a pixel."""
    start, end = segments.T
    axes.bar(start, heights, end - start, align="edge", linewidth=0.7, **colors)
    axes.set_ylim(0, 1.15)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m wsal_jax.plot",
        description="Draws test videos of a run: what is true, what each model says, what is detected.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run (--workdir of its training)")
    add("--ids", required=True, metavar="ID,ID,...", help="the videos to draw; all: every one")
    add("--out", type=Path, metavar="DIR", help="where to write <video>.png (default: RUN/plots)")
    return result


def run(args: argparse.Namespace) -> list[Path]:
    """Draws, and returns the paths.

    Raises:
      InputError: the run keeps no scores, or has no such video.
    """
    from wsal_jax import report

    of = report.read(args.run)
    place = {meta.id: i for i, meta in enumerate(of.record.metas)}
    ids = list(place) if args.ids == "all" else [id.strip() for id in args.ids.split(",") if id.strip()]
    if unknown := [id for id in ids if id not in place]:
        raise InputError(f"--ids: {args.run} has no test video {unknown[0]!r}; such as {', '.join(list(place)[:3])}")
    if not of.scores:
        raise InputError(f"{args.run} keeps no scores: start it again as it was, with --config.report=True")
    out = args.out or args.run / "plots"
    out.mkdir(parents=True, exist_ok=True)
    none = Annotation(np.zeros((0, 2)), np.zeros(0, int))
    nothing = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    for id in ids:
        scores = {model: scores[place[id]] for model, scores in of.scores.items()}
        truth = of.record.annotations[place[id]] or none
        draw(out / f"{id}.png", of.record.metas[place[id]], truth, scores, of.found.get(id, nothing), of.record.classes)
    return [out / f"{id}.png" for id in ids]


def main(argv: Sequence[str] | None = None) -> None:
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal cannot show must not end the command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for path in run(parser().parse_args(argv)):
            print(path)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
