"""Plots of an error analysis (`wsal_jax.analyse`)."""

import math
import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsal_jax.analyse import RANKS, TYPES, UNITS, Analysis, bucket_ranges, percent

# Okabe and Ito's colors and a gray, in the order of TYPES.
COLORS = ("#009E73", "#F0E442", "#CC79A7", "#0072B2", "#D55E00", "#B5B5B5")
COLORS_CHARACTERISTICS = {"coverage": "#0072B2", "length": "#D55E00", "instances": "#009E73"}
DPI = 120


def draw(analysis: Analysis, directory: str | os.PathLike) -> list[Path]:
    """Writes false_positives.png, sensitivity.png and false_negatives.png into `directory`, which must exist.

    - false_positives: the shares of `TYPES` by rank, and the gain in mAP_N without each type of error;
    - sensitivity: mAP_N by bucket; a line marks that of all true segments;
    - false_negatives: the fraction missed by bucket; a line marks that of all true segments.

    Returns their paths.
    """
    paths = [Path(directory) / f"{name}.png" for name in ("false_positives", "sensitivity", "false_negatives")]
    _draw_false_positives(paths[0], analysis)
    values = {name: of.mean_ap_n for name, of in analysis.characteristics.items()}
    title = f"Sensitivity at IoU {analysis.iou:g}: mAP$_N$ by characteristic of the true segments"
    _draw_buckets(paths[1], analysis, values, analysis.mean_ap_n, title, "mAP$_N$ (%)")
    values = {name: of.missed for name, of in analysis.characteristics.items()}
    title = f"False negatives at IoU {analysis.iou:g}: true segments that are missed"
    _draw_buckets(paths[2], analysis, values, analysis.missed, title, "missed (%)")
    return paths


def _draw_false_positives(path: Path, analysis: Analysis) -> None:
    figure = Figure(figsize=(12, 5), dpi=DPI)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    figure.subplots_adjust(left=0.07, right=0.98, top=0.81, bottom=0.13, wspace=0.2)

    counts = np.stack([analysis.profile[name] for name in TYPES])
    total = counts.sum(axis=0)
    share = 100 * counts / np.maximum(total, 1)
    ranks = np.arange(1, RANKS + 1)
    bars = [
        left.bar(ranks, share[t], 0.85, bottom=share[:t].sum(axis=0), color=COLORS[t], label=TYPES[t])
        for t in range(len(TYPES))
    ]
    for rank, n in zip(ranks, total.tolist()):
        left.text(rank, 101, f"{n}", ha="center", va="bottom", size=8, color="0.35")
    left.set_xticks(ranks, [f"{rank}G" for rank in ranks])
    left.set(ylim=(0, 107), yticks=range(0, 101, 20), ylabel="detections (%)")
    left.set_xlabel("best detections of each class, by rank (G: its true segments); above: how many")

    gains = [100 * (analysis.mean_ap_n_without[name] - analysis.mean_ap_n) for name in TYPES[1:]]
    gains = np.nan_to_num(gains)
    right.bar(TYPES[1:], gains, 0.7, color=COLORS[1:])
    for x, gain in enumerate(gains):
        right.text(x, gain, f"{gain:.1f}", ha="center", va="bottom", size=9)
    right.set_xticks(range(len(gains)), [name.replace(" ", "\n") for name in TYPES[1:]], size=9)
    right.set(ylim=(0, max(gains.max() * 1.12, 0.1)), ylabel="gain in mAP$_N$ (points)")
    right.set_xlabel(f"without this error; now mAP$_N$ is {percent(analysis.mean_ap_n)}")

    for axes in (left, right):
        _dress(axes)
    left.set_title(f"False positives at IoU {analysis.iou:g}", loc="left", weight="bold", pad=28)
    right.set_title("What each error costs", loc="left", weight="bold", pad=28)
    place = dict(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)
    left.legend(
        handles=bars, ncols=6, frameon=False, fontsize=9, handlelength=1, handletextpad=0.5, columnspacing=1, **place
    )
    figure.savefig(path)


def _draw_buckets(
    path: Path, analysis: Analysis, values: dict[str, np.ndarray], overall: float, title: str, label: str
) -> None:
    figure = Figure(figsize=(12, 4.6), dpi=DPI)
    names = list(values)
    widths = [len(values[name]) for name in names]
    all_axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True, width_ratios=widths))
    figure.subplots_adjust(left=0.07, right=0.93, top=0.81, bottom=0.17, wspace=0.06)
    highest = np.nanmax([*np.concatenate(list(values.values())), overall, 0])
    for axes, name in zip(all_axes, names):
        of, heights = analysis.characteristics[name], 100 * values[name]
        x = np.arange(len(heights))
        axes.bar(x, np.nan_to_num(heights), 0.75, color=COLORS_CHARACTERISTICS[name])
        for i, height in enumerate(heights):
            text, y = ("none", 0) if np.isnan(height) else (f"{height:.1f}", height)
            box = dict(boxstyle="square,pad=0.15", facecolor="white", edgecolor="none")  # hides the line below
            axes.text(i, y + 1.5 * highest, text, ha="center", va="bottom", size=9, bbox=box, zorder=4)
        ranges = [text.replace("<= ", "≤ ") for text in bucket_ranges(of)]
        ticks = [f"{bucket}\n{text}\nn = {n}" for bucket, text, n in zip(of.buckets, ranges, of.count)]
        axes.set_xticks(x, ticks, size=9)
        axes.set_xlim(-0.6, len(heights) - 0.4)
        if not math.isnan(overall):
            axes.axhline(100 * overall, color="0.2", linewidth=1.2, linestyle="--", zorder=3)
        axes.set_title(f"{name} ({UNITS[name]})", size=10, loc="left")
        _dress(axes)
    all_axes[0].set(ylim=(0, max(115 * highest, 1)), ylabel=label)
    if not math.isnan(overall):
        place = dict(xytext=(4, 0), textcoords="offset points", va="center", size=9)
        all_axes[-1].annotate(
            f"all: {100 * overall:.1f}", (1, 100 * overall), xycoords=("axes fraction", "data"), **place
        )
    figure.suptitle(title, x=0.07, y=0.97, ha="left", weight="bold", size=12)
    figure.savefig(path)


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(axis="both", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
