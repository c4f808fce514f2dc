"""What a run is worth: measured, summarised over seeds, as a table and as JSON.

The table has a row for each model, one for their fusion, and two for the floors of `wsal_jax.evaluate`. Of data with
highlight clips (`data/clips.py`), "clips" is the mean AP of ranking them. A second table says how the attention of each
model differs from the true segments (`metrics.attention_statistics`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from wsal_jax import localize, metrics
from wsal_jax.data import clips, pipeline
from wsal_jax.data.clips import Clips
from wsal_jax.text import align
from wsal_jax.types import Detections, Scores

FUSED, WHOLE, SHUFFLED = "fused", "whole video", "shuffled"
WHOLE_IMAGE, SQUARE, MEAN_BOX = "whole image", "centred square", "mean training box"

ACTIVE = 0.5
"""The attention, and the probability of a class, above which a snippet counts as one of action in table 2 of DGAM."""

COARSE = "average .1:.7"
"""The average over the lower thresholds. At .8 and .9 it matters most whether detections lie on the snippet grid: of
data whose true segments lie there too, such as composed videos, compare methods with and without upsampling by it."""

Table = dict[str, dict[str, dict[str, Any]]]
"""What a cell holds, by row and column: of one seed "value" and perhaps "interval"; summarised "mean", "std", "values"
and perhaps "intervals"."""


class Results(NamedTuple):
    """Of all seeds; the tables are empty where no test video is annotated."""

    about: dict[str, Any]
    """Rule, data, supervision, how many videos, classes and instances, seeds."""
    rows: Table
    attention: Table


def annotated(data: pipeline.Dataset) -> Int[np.ndarray, " k"]:
    """The videos whose true segments are known; the others are detected in and not measured."""
    return np.flatnonzero((data.counts >= 0).all(axis=1))


def averages_of(ious: Sequence[float]) -> dict[str, list[int]]:
    """The averages over thresholds that a table has a column for, and the places of their thresholds."""
    places = {"average": list(range(len(ious)))}
    if tuple(ious) == metrics.IOUS:
        places[COARSE] = places["average"][:7]
    return places


def measure(
    scores: dict[str, list[Scores]],
    rows: dict[str, list[Detections]],
    data: pipeline.Dataset,
    config: ConfigDict,
    highlights: dict[str, Clips],
) -> Table:
    """Each row's results in percent: "value" and, of the mAPs, "interval" (95 % of resampled test videos).

    The columns are the mAP by temporal IoU under `config.protocol` and its average (with IoUs of .1 to .9 also
    `COARSE`), the classification mAP of a model (interpolated or not as the protocol's AP), and the AP of highlight
    clips. `config` is `config.evaluation`.
    """
    known = annotated(data)
    truth = {data.metas[i].id: data.annotations[i] for i in known}
    ious = np.array(config.ious, np.float64)
    averages = averages_of(config.ious)
    columns = [*(f"{iou:g}" for iou in config.ious), *averages]
    interpolate = metrics.PROTOCOLS[config.protocol].interpolated
    with_clips = [i for i, meta in enumerate(data.metas) if meta.id in highlights]
    table: Table = {}
    for name, detections in rows.items():
        found = {data.metas[i].id: detections[i] for i in known}
        by_iou = metrics.detection_map(found, truth, len(data.class_names), ious, config.protocol).mean
        values = [*by_iou, *(by_iou[places].mean() for places in averages.values())]
        table[name] = {c: {"value": float(100 * x)} for c, x in zip(columns, values)}
        if config.bootstrap:
            matched = metrics.match(found, truth, len(data.class_names), ious, config.protocol)
            intervals = 100 * metrics.bootstrap(
                matched, config.protocol, config.bootstrap, averages=[*averages.values()]
            )
            for column, interval in zip(columns, intervals):
                table[name][column]["interval"] = interval.tolist()
        if name in scores and name != SHUFFLED:  # which ranks the videos as the fused scores do
            video_scores = np.stack([scores[name][i].video_score for i in known])
            ap = metrics.classification_ap(video_scores, data.labels[known], interpolate)
            table[name]["classification"] = {"value": float(100 * np.nanmean(ap))}
        if name in scores and with_clips:
            of_clips = [(highlights[data.metas[i].id], scores[name][i], data.metas[i]) for i in with_clips]
            of_clips = [(x.domain, clips.clip_scores(video, meta, x), x.match) for x, video, meta in of_clips]
            table[name]["clips"] = {"value": 100 * metrics.highlight_map(of_clips)[1]}
    return table


def attend(scores: dict[str, list[Scores]], data: pipeline.Dataset) -> Table:
    """`metrics.attention_statistics` of each model in percent of the true snippets, in the form of `measure`.

    A snippet counts as classified by the best of the video's true classes, which the paper leaves open.
    """
    table = {}
    for name, of in scores.items():
        sets = []
        for i in annotated(data):
            meta, evidence = data.metas[i], of[i].evidence
            if evidence is not None:
                evidence = (evidence * data.labels[i]).max(axis=1) > ACTIVE
            sets.append((localize.inside(data.annotations[i], meta), of[i].attention > ACTIVE, evidence))
        table[name] = {column: {"value": 100 * x} for column, x in metrics.attention_statistics(sets).items()}
    return table


def summarise(tables: Sequence[Table]) -> Table:
    """Mean, sample standard deviation (0 for one seed), and values and intervals of each seed, by row and column.

    Of no tables, nothing.
    """
    summary: Table = {}
    for row, columns in tables[0].items() if tables else ():
        summary[row] = {}
        for column in columns:
            cells = [table[row][column] for table in tables]
            x = [cell["value"] for cell in cells]
            std = float(np.std(x, ddof=min(1, len(x) - 1)))
            summary[row][column] = {"mean": float(np.mean(x)), "std": std, "values": x}
            if "interval" in cells[0]:
                summary[row][column]["intervals"] = [cell["interval"] for cell in cells]
    return summary


def describe(data: pipeline.Dataset, config: ConfigDict, supervision: str, seeds: list[int]) -> dict[str, Any]:
    """`Results.about`; `instances` is 0 where nothing can be measured."""
    known = annotated(data)
    labels = [label for i in known for label in data.annotations[i].labels]
    return {
        "protocol": config.evaluation.protocol,
        "dataset": config.data.name,
        "supervision": supervision,
        "videos": len(known),
        "classes": len(set(labels)),
        "instances": len(labels),
        "seeds": seeds,
    }


def to_json(results: Results) -> dict[str, Any]:
    """What results.json holds."""
    return {**results.about, "rows": results.rows, "attention": results.attention}


def format_results(results: Results) -> str:
    """The tables below a line that says of what they are."""
    if not results.rows:
        return "No test video is annotated, so nothing is measured; detections.json holds what was found."
    head = ", ".join(f"{name} {value}" for name, value in results.about.items())
    corners = ("mAP@IoU", f"att, cls > {ACTIVE}: % of |gt|")
    if "images" in results.about:
        corners = ("%, at IoU 0.5", "attention, %")
    return "\n".join([head, *(format_table(x, corner) for x, corner in zip(results[1:], corners))])


def final_row(rows: Table) -> str:
    """The last model's: the fused one where there are several."""
    return [row for row in rows if row not in (WHOLE, SHUFFLED, WHOLE_IMAGE, SQUARE, MEAN_BOX)][-1]


def format_table(rows: Table, corner: str = "mAP@IoU") -> str:
    """The table as text; mean and, of several seeds, spread. Below it, of one seed, the last model's 95 % intervals."""
    columns = list(next(iter(rows.values())))
    lines = [[corner, *columns]] + [[row, *(_cell(x.get(column)) for column in columns)] for row, x in rows.items()]
    final = final_row(rows)
    intervals = [rows[final].get(column, {}).get("intervals", []) for column in columns]
    if len(intervals[0]) == 1:
        for i, side in enumerate(("from", "to")):
            ends = [f"{interval[0][i]:.1f}" if interval else "" for interval in intervals]
            lines.append([f"{final}, 95 % {side}", *ends])
    return "\n".join(align(lines))


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{entry['mean']:.1f}" + (f"±{entry['std']:.1f}" if len(entry["values"]) > 1 else "")
