"""From parameters to scores, detections and what is written of them, each seed for itself.

`wsal_jax.results` measures. Beside the models and their fusion, two floors are detected that need no localization at
all: `whole video` predicts the whole video for each predicted class, `shuffled` permutes the fused scores in time.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from tqdm import tqdm

from wsal_jax import localize, record, results, sharding
from wsal_jax.data import pipeline
from wsal_jax.data.clips import Clips
from wsal_jax.files import replace
from wsal_jax.formats import submissions
from wsal_jax.fuse import fuse
from wsal_jax.method import Method, Params, options_of
from wsal_jax.results import FUSED, SHUFFLED, WHOLE, Results
from wsal_jax.types import SEQUENCES, Detections, Model, Scores, Video


@lru_cache
def make_score(method: Method, num_classes: int, mesh: Mesh) -> Callable[[Params, Array, Array], Scores]:
    """`score(params, features[b n d], mask[b n])` of all seeds, compiled once for the streams of one shape.

    The videos are split over the devices of the mesh.
    """

    @partial(sharding.over_videos, mesh, (None, 0, 0))
    @partial(jax.vmap, in_axes=(0, None, None))  # seeds
    @partial(jax.vmap, in_axes=(None, 0, 0))  # videos
    def score(params, features, mask):
        unknown = jnp.zeros(num_classes)
        return method.score(params, Video(features, mask, unknown, unknown, mask.sum().astype(int)))

    return score


def score(method: Method, params: Params, data: pipeline.Dataset, streams: Sequence[str]) -> list[list[Scores]]:
    """The scores of every seed (outer list) for every video (inner list), without padding, on the host.

    All devices of all processes share the videos, and all processes must call this; each gets all scores. `extras` are
    given as the method made them, padding included.
    """
    every = pipeline.batches(data, pipeline.PADDED)
    mesh = sharding.own(sharding.make_mesh(), max(map(len, every)))
    score_all, rows = make_score(method, len(data.class_names), mesh), pipeline.PADDED * mesh.size
    params = sharding.replicate(mesh, params)

    def score_batch(videos: Int[np.ndarray, " k"]) -> Scores:
        return score_all(params, *(sharding.place(mesh, 0, x) for x in pipeline.pad(data, streams, videos, rows)))

    result: list[list[Any]] = [[None] * len(data.metas) for _ in range(len(jax.tree.leaves(params)[0]))]
    with tqdm(
        total=len(data.metas), disable=jax.process_index() > 0, desc=f"score {'+'.join(streams)}", unit="video"
    ) as bar:
        for of_size in pipeline.batches(data, rows):
            for videos, scores in sharding.share(of_size, score_batch):
                for seed, of_seed in enumerate(result):
                    for row, video in enumerate(videos):
                        of_seed[video] = _of_video(scores, seed, row, data.metas[video].length)
                bar.update(len(videos))
    return result


def _of_video(scores: Scores, seed: int, row: int, length: int) -> Scores:
    one = jax.tree.map(lambda x: x[seed, row], scores)
    there = {name: getattr(one, name) for name in SEQUENCES if getattr(one, name) is not None}
    return one._replace(**{name: x[:length] for name, x in there.items()})


def score_video(method: Method, params: Params, features: Float[np.ndarray, "n d"], num_classes: int) -> list[Scores]:
    """As `score`, of one video that is in no data set: the scores of every seed."""
    n, d = features.shape
    size = int(pipeline.padded_lengths(np.array([n]))[0])
    filled = np.zeros((1, size, d), np.float32)
    filled[0, :n] = features
    mask = (np.arange(size) < n).astype(np.float32)[None]
    score_all = make_score(method, num_classes, sharding.make_mesh(jax.local_devices()[:1]))
    scores = jax.tree.map(np.asarray, score_all(params, filled, mask))
    return [_of_video(scores, seed, 0, n) for seed in range(len(scores.video_score))]


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


def report(
    method: Method,
    scores: dict[str, list[list[Scores]]],
    data: pipeline.Dataset,
    config: ConfigDict,
    workdir: Path,
    highlights: dict[str, Clips],
) -> Results:
    """Detects and measures; writes detections*.json, pictures, results.json, data.json and the report to `workdir`.

    `scores` by model, then seed, then video; `highlights` as `check` returns them. `detections.json` and the pictures
    are the first seed's; those of the others are called `detections_seed<seed>.json`. Test videos without annotations
    are detected in, not measured; where none is annotated, there is no results.json.
    """
    seeds = list(range(config.seed, config.seed + config.seeds))
    about = results.describe(data, config, method.supervision, seeds)
    tables, attention = [], []
    for i, seed in enumerate(tqdm(seeds, desc="detect", unit="seed")):
        of_models, rows = detect(method, {name: of[i] for name, of in scores.items()}, data, config, seed)
        final = rows[FUSED if FUSED in rows else next(iter(rows))]
        name = "detections.json" if i == 0 else f"detections_seed{seed}.json"
        found = {meta.id: video for meta, video in zip(data.metas, final)}
        replace(workdir / name, json.dumps(submissions.to_json(found, data.class_names)))
        if i == 0:
            record.write(workdir, data, config)
            if config.report:
                record.write_scores(workdir, {model: of[0] for model, of in scores.items()})
            draw(of_models, final, data, config.plots, workdir / "plots")
        if about["instances"]:
            tables.append(results.measure(of_models, rows, data, config.evaluation, highlights))
            attention.append(results.attend({name: x for name, x in of_models.items() if name != SHUFFLED}, data))
    measured = Results(about, results.summarise(tables), results.summarise(attention))
    if tables:
        replace(workdir / "results.json", json.dumps(results.to_json(measured), indent=1))
    if config.report:
        from wsal_jax import report as page  # whose command this is not

        page.write([page.read(workdir)], workdir / "report" / "index.html")
    return measured


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
