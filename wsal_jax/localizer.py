"""A trained run for new videos: features, scores and segments, as its own evaluation makes them.

    import wsal_jax

    localizer = wsal_jax.Localizer.load("runs/1")
    for start, end, label, score in localizer("new.mp4"):
        print(start, end, label, score)

All models of the run and all their seeds count: the seeds of a model are fused as models are, each with the weight of
its model in `config.fusion`. Of one seed the segments are those that the run's own evaluation finds.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wsal_jax import evaluate, exchange, record, video
from wsal_jax import methods as registry
from wsal_jax.data import pipeline
from wsal_jax.data.builder import STREAMS
from wsal_jax.formats.checks import number
from wsal_jax.fuse import fuse
from wsal_jax.method import Method, options_of
from wsal_jax.results import FUSED
from wsal_jax.times import snippet_to_seconds
from wsal_jax.types import Detections, InputError, Meta, Model, Scores
from wsal_jax.video import extractor, features, sidecar

Features = Mapping[str, Float[np.ndarray, "_ _"]]
"""[n d] of one video, by stream."""


class Segment(NamedTuple):
    """A detected action."""

    start: float
    """Seconds, as is `end`."""
    end: float
    label: str
    score: float


class Run(NamedTuple):
    """A finished run, ready for new videos."""

    folder: Path
    trained: exchange.Run
    methods: dict[str, Method]
    """Of each model."""
    data: dict[str, Any]
    """Of data.json (see `wsal_jax.record`): "classes"; "streams", their dimensions; "grid"; "extraction"; and "map",
    rows and columns of an image's map, None for videos."""

    @property
    def streams(self) -> list[str]:
        """Those that its models want."""
        return [stream for stream in STREAMS if any(stream in model.split("+") for model in self.methods)]


def load(folder: str | os.PathLike) -> Run:
    """A run of `wsal_jax.main`, from its folder alone.

    Raises:
      InputError: there is none, it is not finished, or it does not say what its data were.
    """
    folder = Path(folder)
    trained = exchange.load(folder)
    methods = {model: registry.get(trained.config.method, model) for model in trained.config.streams}
    path, again = folder / "data.json", "call the command of the run once more, which trains nothing and writes it"
    try:
        data = json.loads(path.read_text())
        made, image_map = data["extraction"], data["videos"][0].get("grid")
        of_images = ("network", "pixels", "weights_sha256")
        described = {
            "classes": [str(name) for name in data["classes"]],
            "streams": {stream: int(dim) for stream, dim in data["dims"].items()},
            "grid": {name: None if data["grid"] is None else data["grid"][name] for name in record.GRID},
            "extraction": made and {name: made[name] for name in (of_images if image_map else sidecar.EXTRACTION)},
            "map": image_map and (int(image_map[0]), int(image_map[1])),
        }
        run = Run(folder, trained, methods, described)
        if missing := set(run.streams) - set(described["streams"]):
            raise KeyError(*missing)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing, as the run is of an older version: {again}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error!r:.300}): {again} anew") from error
    return run


def make_extractor(run: Run, weights: dict[str, str] | None = None) -> tuple[extractor.Extractor, features.Options]:
    """What makes features like those that a run was trained on, of the streams of its models alone.

    Raises:
      InputError: the run does not know, or the extractor that is here would make others.
    """
    video.require()
    known = run.data["extraction"]
    if known is None:
        what = "was trained on features of which nothing is known, or that were not all extracted alike"
        raise InputError(f"{run.folder} {what}: give features (--features FOLDER) instead of videos")
    made = extractor.remake(known["extractor"], run.streams, weights)
    fps = None if known["resampled_to"] == "native" else Fraction(known["resampled_to"]).limit_denominator(1001)
    return made, features.Options(fps, known["feature_stride_frames"], known["tail"], batch=features.default_batch())


def score(run: Run, features: Features) -> dict[str, list[Scores]]:
    """The scores of a video by each model, one for each seed.

    Raises:
      InputError: streams are missing, or differ in their dimensions from those of the run, or in length.
    """
    dims = run.data["streams"]
    for stream in run.streams:
        if stream not in features:
            raise InputError(f"there are no {stream} features, and the run needs {' and '.join(run.streams)}")
        if (dim := features[stream].shape[1]) != dims[stream]:
            made = run.data["extraction"] or {}
            maker = made.get("network") or made.get("extractor", {}).get("name", "an unknown extractor")
            trained = f"the run was trained on {dims[stream]} dimensions, of {maker}"
            raise InputError(f"{stream} features have {dim} dimensions, and {trained}: extract them alike")
    lengths = {stream: len(features[stream]) for stream in run.streams}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the number of snippets differs between streams: {lengths}")
    scores = {}
    for model, method in run.methods.items():
        joined = np.concatenate([features[stream] for stream in model.split("+")], axis=1, dtype=np.float32)
        joined = pipeline.rounded(joined, run.trained.config.data.get("dtype", "stored")).astype(np.float32)
        params = run.trained.params[model]
        scores[model] = evaluate.score_video(method, params, joined, len(run.data["classes"]))
    return scores


def localize(run: Run, scores: Mapping[str, Sequence[Scores]], meta: Meta) -> tuple[dict[str, Scores], Detections]:
    """From what `score` returns to detections.

    Returns:
      The scores by model, each the mean of its seeds, with "fused", those that all lead to; and the detections.
    """
    config = run.trained.config
    models, weights = [], []
    for weight, (name, seeds) in zip(config.fusion, scores.items()):
        own = options_of(config.localize, name, "config.localize")
        models += [Model(one, own) for one in seeds]
        weights += [float(weight)] * len(seeds)
    together = models[0]
    if len(models) > 1:
        common = options_of(config.localize, "", "config.localize")
        together = Model(fuse([one.scores for one in models], weights), common)
    found = run.methods[config.streams[0]].propose(models, together, meta)
    means = {name: seeds[0] if len(seeds) == 1 else fuse(seeds, [1.0] * len(seeds)) for name, seeds in scores.items()}
    return {**means, FUSED: together.scores}, found


def segments(found: Detections, classes: Sequence[str], threshold: float = 0.0) -> list[Segment]:
    """Detections with a score of at least `threshold`, by their start."""
    labels = [classes[label] for label in found.labels]
    listed = map(Segment, *found.segments.T.tolist(), labels, found.scores.tolist())
    return sorted(one for one in listed if one.score >= threshold)


def meta_of(id: str, length: int, info: Mapping[str, Any], grid: Mapping[str, Any]) -> Meta:
    """What turns the snippets of a video into seconds: what its sidecar says, else the grid of the run's data.

    Raises:
      InputError: neither says, or what one says is no such number.
    """
    keys = {"fps": "fps", "stride": "feature_stride_frames", "offset": "feature_offset_frames"}
    times = {}
    for name, key in keys.items():
        given = grid[name] if info.get(key) is None else info[key]
        times[name] = number(given)
        if not (times[name] > 0 or (times[name] == 0 and name == "offset")):
            what = "is not the same for all videos of the run" if given is None else f"is {given!r:.100}"
            raise InputError(f'"{key}" {what}: give {", ".join(keys.values())} in {id}.json beside the features')
    meta = Meta(id, length, **times, duration=math.nan)
    duration = number(info.get("duration", float(snippet_to_seconds(length - 0.5, meta))))
    if not duration > 0:
        raise InputError(f'"duration" is {info["duration"]!r:.100} in {id}.json: must be seconds')
    return meta._replace(duration=duration)


class Localizer:
    """A trained run that finds actions in new videos, or objects in new images; its files are read once.

    Calls are independent of each other, and write nothing. Of a run of images, `localizer_images.Object`s take
    the place of segments.
    """

    def __init__(self, run: Run, weights: dict[str, str] | None = None):
        self.run, self._weights = run, weights

    @classmethod
    def load(cls, folder: str | os.PathLike, weights: dict[str, str] | None = None) -> "Localizer":
        """The run in a folder; `weights` are files by stream, for an extractor that wants some.

        Raises:
          InputError: see the function `load`.
        """
        return cls(load(folder), weights)

    @property
    def classes(self) -> list[str]:
        """In the order of the columns of scores."""
        return self.run.data["classes"]

    @cached_property
    def _extractor(self) -> tuple[extractor.Extractor, features.Options, features.Run]:
        made, options = make_extractor(self.run, self._weights)
        return made, options, features.make_run(made, options.batch)

    @cached_property
    def _images(self) -> Callable[[Any], Features]:
        from wsal_jax import localizer_images

        return localizer_images.make_extractor(self.run, (self._weights or {}).get("rgb", ""))

    def extract(self, video: str | os.PathLike) -> tuple[Features, Meta]:
        """The features of a video or image file, made as those of the run were, and what places its snippets.

        Raises:
          InputError: the file is no video or image that can be used, or the run does not know its extractor.
        """
        path = Path(video)
        if self.run.data["map"]:
            from wsal_jax import localizer_images

            picture, meta = localizer_images.open_image(self.run, path)
            return self._images(picture), meta
        values, info = features.extract_video(path, *self._extractor)
        for line in features.warnings(info):
            warnings.warn(f"{path}: {line}", stacklevel=3)
        return values, meta_of(path.stem, info["num_features"], info, self.run.data["grid"])

    def score(self, features: Features) -> dict[str, list[Scores]]:
        """The scores of every seed, by model, of features [n d] by stream."""
        return score(self.run, features)

    def localize(self, features: Features, meta: Meta | None = None) -> list[Any]:
        """The segments of a video, by their start, or the objects of an image, the best first, from features [n d] by
        stream.

        Without `meta`, the snippets are placed in time as those of the run's data; of an image it must be given.

        Raises:
          InputError: see the function `score`; or the size of an image is not known.
        """
        scores = self.score(features)
        if self.run.data["map"]:
            from wsal_jax import localizer_images

            if meta is None or meta.size is None:
                raise InputError("the size of the image is not known: give `meta`, as `extract` returns it")
            return localizer_images.objects(localizer_images.localize(self.run, scores, meta)[1], self.classes)
        if meta is None:
            meta = meta_of("features", len(features[self.run.streams[0]]), {}, self.run.data["grid"])
        return segments(localize(self.run, scores, meta)[1], self.classes)

    def __call__(self, video: str | os.PathLike) -> list[Any]:
        """What `localize` finds in a video or image file; all of it, however low its score."""
        return self.localize(*self.extract(video))
