"""From parameters to scores, detections and the table of results, each seed for itself.

The table has a row for each model, one for their fusion, and two floors that need no localization at all: `whole video`
predicts the whole video for each predicted class, `shuffled` permutes the fused scores in time. Of data with highlight
clips (`data/clips.py`), "clips" is the mean AP of ranking them. A second table says how the attention of each model
differs from the true segments (`metrics.attention_statistics`).
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from ml_collections import ConfigDict
from tqdm import tqdm

from wsal_jax import localize, metrics
from wsal_jax.data import clips, pipeline
from wsal_jax.data.clips import Clips
from wsal_jax.fuse import fuse
from wsal_jax.method import Method, Params, options_of
from wsal_jax.types import SEQUENCES, Detections, InputError, Model, Scores, Video

FUSED, WHOLE, SHUFFLED = "fused", "whole video", "shuffled"

ACTIVE = 0.5
"""The attention, and the probability of a class, above which a snippet counts as one of action in table 2 of DGAM."""


def check(config: ConfigDict, data: pipeline.Dataset) -> dict[str, Clips]:
    """Finds what cannot be evaluated before anything is trained; returns the highlight clips by video id, if any.

    Raises:
      InputError: an option of `config`, or the user's `clips.json`.
    """
    options = config.evaluation
    if options.protocol not in metrics.PROTOCOLS:
        known = ", ".join(metrics.PROTOCOLS)
        raise InputError(f"config.evaluation.protocol={options.protocol!r}: there are {known}")
    if not options.ious or not all(0 < iou <= 1 for iou in options.ious):
        raise InputError(f"config.evaluation.ious={options.ious}: must be temporal IoUs above 0, up to 1")
    if config.localize.soft_nms < 0 or options.bootstrap < 0:
        given = f"config.localize.soft_nms={config.localize.soft_nms}, config.evaluation.bootstrap={options.bootstrap}"
        raise InputError(f"{given}: must not be negative")
    for model in config.streams:
        options_of(config.localize, model, "config.localize")
    if config.data.name != "feature_folder":
        return {}
    return clips.read(Path(config.data.root), data.class_names)


@lru_cache
def make_score(method: Method, num_classes: int) -> Callable[[Params, Array, Array], Scores]:
    """`score(params, features[b n d], mask[b n])` of all seeds, compiled once for the streams of one shape."""

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None))  # seeds
    @partial(jax.vmap, in_axes=(None, 0, 0))  # videos
    def score(params, features, mask):
        unknown = jnp.zeros(num_classes)
        return method.score(params, Video(features, mask, unknown, unknown, mask.sum().astype(int)))

    return score


def score(method: Method, params: Params, data: pipeline.Dataset, streams: Sequence[str]) -> list[list[Scores]]:
    """The scores of every seed (outer list) for every video (inner list), without padding, on the host.

    `extras` are given as the method made them, padding included.
    """
    score_all = make_score(method, len(data.class_names))
    params = jax.tree.map(np.asarray, params)  # a process scores on its own devices
    seeds = len(jax.tree.leaves(params)[0])
    result: list[list[Any]] = [[None] * len(data.metas) for _ in range(seeds)]
    with tqdm(
        total=len(data.metas), disable=jax.process_index() > 0, desc=f"score {'+'.join(streams)}", unit="video"
    ) as bar:
        for batch in pipeline.padded(data, streams):
            scores = jax.tree.map(np.asarray, score_all(params, batch.features, batch.mask))
            for row, video in enumerate(batch.videos):
                n = data.metas[video].length
                for seed in range(seeds):
                    one = jax.tree.map(lambda x: x[seed, row], scores)  # noqa: B023
                    there = {name: getattr(one, name) for name in SEQUENCES if getattr(one, name) is not None}
                    result[seed][video] = one._replace(**{name: x[:n] for name, x in there.items()})
            bar.update(len(batch.videos))
    return result


def detect(
    method: Method, scores: dict[str, list[Scores]], data: pipeline.Dataset, config: ConfigDict, seed: int
) -> tuple[dict[str, list[Scores]], dict[str, list[Detections]]]:
    """Adds the fused scores of each video to those of the models, and detects in them and by the two floors.

    Returns the scores by model, with the shuffled ones, and the detections by row of the table.
    """
    common = options_of(config.localize, "", "config.localize")
    own = {name: options_of(config.localize, name, "config.localize") for name in scores}
    of_models = {name: [Model(video, own[name]) for video in of] for name, of in scores.items()}
    rows = {
        name: [method.propose((one,), one, meta) for one, meta in zip(of, data.metas)] for name, of in of_models.items()
    }
    final = next(iter(scores))
    if len(scores) > 1:
        final, together = FUSED, list(zip(*of_models.values()))
        fused = [fuse([one.scores for one in models], config.fusion) for models in together]
        scores = {**scores, FUSED: fused}
        rows[FUSED] = [
            method.propose(models, Model(one, common), meta) for models, one, meta in zip(together, fused, data.metas)
        ]
    rng = np.random.default_rng(seed)
    shuffled = [localize.shuffle(video, rng) for video in scores[final]]
    rows[WHOLE] = [localize.whole_video(*video, common) for video in zip(scores[final], data.metas)]
    rows[SHUFFLED] = [localize.propose((), Model(video, common), meta) for video, meta in zip(shuffled, data.metas)]
    return {**scores, SHUFFLED: shuffled}, rows


def annotated(data: pipeline.Dataset) -> Int[np.ndarray, " k"]:
    """The videos whose true segments are known; the others are detected in and not measured."""
    return np.flatnonzero((data.counts >= 0).all(axis=1))


def measure(
    scores: dict[str, list[Scores]],
    rows: dict[str, list[Detections]],
    data: pipeline.Dataset,
    config: ConfigDict,
    highlights: dict[str, Clips],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Each row's results in percent: "value" and, of the mAPs, "interval" (95 % of resampled test videos).

    The columns are the mAP by temporal IoU under `config.protocol` and its average, the classification mAP of a model
    (interpolated or not as the protocol's AP), and the AP of highlight clips. `config` is `config.evaluation`.
    """
    known = annotated(data)
    truth = {data.metas[i].id: data.annotations[i] for i in known}
    ious = np.array(config.ious, np.float64)
    columns = [*(f"{iou:g}" for iou in config.ious), "average"]
    interpolate = metrics.PROTOCOLS[config.protocol].interpolated
    with_clips = [i for i, meta in enumerate(data.metas) if meta.id in highlights]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, detections in rows.items():
        found = {data.metas[i].id: detections[i] for i in known}
        by_iou = metrics.detection_map(found, truth, len(data.class_names), ious, config.protocol).mean
        table[name] = {c: {"value": float(100 * x)} for c, x in zip(columns, [*by_iou, by_iou.mean()])}
        if config.bootstrap:
            matched = metrics.match(found, truth, len(data.class_names), ious, config.protocol)
            intervals = 100 * metrics.bootstrap(matched, config.protocol, config.bootstrap)
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


def attend(scores: dict[str, list[Scores]], data: pipeline.Dataset) -> dict[str, dict[str, dict[str, Any]]]:
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


def summarise(tables: Sequence[dict[str, dict[str, dict[str, Any]]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, sample standard deviation (0 for one seed), and values and intervals of each seed, by row and column."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for row, columns in tables[0].items():
        summary[row] = {}
        for column in columns:
            cells = [table[row][column] for table in tables]
            x = [cell["value"] for cell in cells]
            std = float(np.std(x, ddof=min(1, len(x) - 1)))
            summary[row][column] = {"mean": float(np.mean(x)), "std": std, "values": x}
            if "interval" in cells[0]:
                summary[row][column]["intervals"] = [cell["interval"] for cell in cells]
    return summary


def format_table(summary: dict[str, dict[str, dict[str, Any]]], corner: str = "mAP@IoU") -> str:
    """The table as text; mean and, of several seeds, spread. Below it, of one seed, the last model's 95 % intervals."""
    columns = list(next(iter(summary.values())))

    def cell(entry):
        if entry is None:
            return ""
        return f"{entry['mean']:.1f}" + (f"±{entry['std']:.1f}" if len(entry["values"]) > 1 else "")

    lines = [[corner, *columns]] + [[row, *(cell(x.get(column)) for column in columns)] for row, x in summary.items()]
    final = [row for row in summary if row not in (WHOLE, SHUFFLED)][-1]
    intervals = [summary[final].get(column, {}).get("intervals", []) for column in columns]
    if len(intervals[0]) == 1:
        for i, side in enumerate(("from", "to")):
            ends = [f"{interval[0][i]:.1f}" if interval else "" for interval in intervals]
            lines.append([f"{final}, 95 % {side}", *ends])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:]))])
        for line in lines
    )


def submission(detections: Sequence[Detections], data: pipeline.Dataset) -> dict[str, Any]:
    """Detections of all videos in the form of an ActivityNet submission, the best of each video first."""
    results = {}
    for meta, video in zip(data.metas, detections):
        order = np.argsort(-video.scores, kind="stable")
        results[meta.id] = [
            {
                "label": data.class_names[video.labels[i]],
                "score": float(video.scores[i]),
                "segment": [float(x) for x in video.segments[i]],
            }
            for i in order
        ]
    return {"version": "wsal_jax", "results": results, "external_data": {"used": False}}


def report(
    method: Method, scores: dict[str, list[list[Scores]]], data: pipeline.Dataset, config: ConfigDict, workdir: Path
) -> str:
    """Writes detections*.json, results.json and pictures to `workdir`, and returns the table.

    `scores` by model, then seed, then video. `detections.json` and the pictures are the first seed's; those of the
    others are called `detections_seed<seed>.json`. Test videos without annotations are detected in, not measured.
    """
    highlights = check(config, data)
    known = annotated(data)
    true_labels = [label for i in known for label in data.annotations[i].labels]
    tables, attention = [], []
    for i in tqdm(range(config.seeds), desc="detect", unit="seed"):
        seed = config.seed + i
        of_models, rows = detect(method, {name: of[i] for name, of in scores.items()}, data, config, seed)
        final = rows[FUSED if FUSED in rows else next(iter(rows))]
        name = "detections.json" if i == 0 else f"detections_seed{seed}.json"
        (workdir / name).write_text(json.dumps(submission(final, data)))
        if i == 0:
            draw(of_models, final, data, config.plots, workdir / "plots")
        if true_labels:
            tables.append(measure(of_models, rows, data, config.evaluation, highlights))
            attention.append(attend({name: x for name, x in of_models.items() if name != SHUFFLED}, data))
    if not true_labels:
        return "No test video is annotated, so nothing is measured; detections.json holds what was found."
    summary, of_attention = summarise(tables), summarise(attention)
    about = {
        "protocol": config.evaluation.protocol,
        "dataset": config.data.name,
        "supervision": method.supervision,
        "videos": len(known),
        "classes": len(set(true_labels)),
        "instances": len(true_labels),
        "seeds": list(range(config.seed, config.seed + config.seeds)),
    }
    (workdir / "results.json").write_text(json.dumps({**about, "rows": summary, "attention": of_attention}, indent=1))
    head = ", ".join(f"{name} {value}" for name, value in about.items())
    return f"{head}\n{format_table(summary)}\n{format_table(of_attention, f'att, cls > {ACTIVE}: % of |gt|')}"


def draw(
    scores: dict[str, list[Scores]],
    detections: Sequence[Detections],
    data: pipeline.Dataset,
    count: int,
    directory: Path,
) -> None:
    """A picture of each of `count` videos, evenly spaced in the order of ids."""
    from wsal_jax import plot  # Matplotlib takes half a second to import

    directory.mkdir(exist_ok=True)
    for video in np.unique(np.linspace(0, len(data.metas) - 1, min(count, len(data.metas))).astype(int)):
        meta = data.metas[video]
        of_video = {name: of[video] for name, of in scores.items() if name != SHUFFLED}
        path = directory / f"{meta.id}.png"
        plot.draw(path, meta, data.annotations[video], of_video, detections[video], data.class_names)
