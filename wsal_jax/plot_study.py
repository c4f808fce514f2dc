"""The picture of a study: how its best value grew, and the value over each option."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wsal_jax.study import show


def draw(path: Path, space: dict[str, Any], values: Sequence[float | None], settings: Sequence[dict[str, Any]]) -> None:
    """Draws `values` (percent) over the trials, then over the options of `space` in `settings`, one each per trial.

    Trials without a value, which ended early, are ticks at the foot of the first panel.
    """
    columns = 4
    rows = math.ceil((len(space) + 1) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    panels = axes.ravel()
    over = [i for i, value in enumerate(values) if value is not None]
    early = [i + 1 for i, value in enumerate(values) if value is None]
    order, known = np.array(over) + 1, np.array([values[i] for i in over])
    panels[0].plot(order, np.maximum.accumulate(known), color="tab:purple", drawstyle="steps-post")
    panels[0].scatter(order, known, s=14, color="tab:blue")
    panels[0].scatter(early, [known.min()] * len(early), marker="|", color="tab:gray")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_xlabel("trial; the line is the best so far")
    best = over[int(np.argmax(known))]
    for panel, (name, possible) in zip(panels[1:], space.items()):
        there = [i for i in over if name in settings[i]]
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
