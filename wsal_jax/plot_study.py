"""The picture of a study: how its best value grew, and the value over each option."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wsal_jax.study import show


def draw(path: Path, space: dict[str, Any], values: Sequence[float], settings: Sequence[dict[str, Any]]) -> None:
    """Draws `values` [trials] (percent) over the trials, then over the options of `space` in `settings` [trials]."""
    columns = 4
    rows = math.ceil((len(space) + 1) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    panels = axes.ravel()
    order = np.arange(1, len(values) + 1)
    panels[0].plot(order, np.maximum.accumulate(values), color="tab:purple", drawstyle="steps-post")
    panels[0].scatter(order, values, s=14, color="tab:blue")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_xlabel("trial; the line is the best so far")
    best = int(np.argmax(values))
    for panel, (name, possible) in zip(panels[1:], space.items()):
        there = [i for i, setting in enumerate(settings) if name in setting]
        if isinstance(possible, list):
            ticks = [show(value).strip("[]") for value in possible]
            x = [ticks.index(show(settings[i][name]).strip("[]")) for i in there]
            panel.set_xticks(range(len(possible)), ticks, fontsize=6, rotation=30)
        else:
            x = [settings[i][name] for i in there]
            panel.set_xscale("log" if possible.get("log") else "linear")
        colors = ["tab:purple" if i == best else "tab:blue" for i in there]
        panel.scatter(x, [values[i] for i in there], s=14, color=colors)
        panel.set_xlabel(name)
    for panel in panels[len(space) + 1 :]:
        panel.remove()
    for row in axes:
        row[0].set_ylabel("held-out mAP, %")
    figure.savefig(path, dpi=110)
