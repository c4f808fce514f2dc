"""Synthetic two-stream features of untrimmed videos: the built-in data set, a generative model.

**Scores on it are not scores on THUMOS14 or ActivityNet**: only the statistics of its segments are similar.

Timeline of one video, in continuous seconds. Its k instances (k - 1 is negative binomial) have log-normal lengths, with
gaps of background between them. Each has an *onset*, a salient *core* and an *offset*. Shots cover the video: *home*
shots show the scene of the video's first class before, during and after the instances; *cutaways* lie within gaps and
show any scene. Two classes share each home scene; they are the likely pair in a video of two classes. *Movements*
happen at any time; all classes share their kinds.

Features of snippet t in one stream, a vector of d numbers. Snippets are 16 frames each, without overlap. Angle brackets
denote the mean over the time of the snippet, so a snippet at a boundary mixes both sides:

    x_t = scale softplus(mu + h_t)                             ReLU and average pooling: non-negative and skewed
    h_t =   < scene S_z + place W + view V_r + props P >       shot r of scene z; W, P only in home shots, P not in all
          + < action g_i q A_c + style U_i >                   instance i of class c; q = 1 in the core, else WEAK
          + < motion M_j(c) >                                  in onsets and offsets; kinds j(c) of the class
          + < motion g_m M_m >                                 movement m
          + noise (D_t + E_t / 2)                              drift: AR(1) with coefficient DRIFT; white noise

The prototypes S, A, M and the props of each class are standard normal and fixed; P is the mean of the props of the
video's classes. W (per video), V (per shot), U (per instance), D and E (per snippet) are standard normal and drawn
anew for each video; gains g are log-normal. Home shots without an instance are therefore context: same scene, same
props, no action. Onsets and offsets show less of their class, and motion that also occurs in other classes and in the
background. With the weights in `STREAMS`, RGB shows mainly scenes and flow mainly motion.

Every video has its own random generator, seeded by config, split and number, so two builds give the same bytes; on
another kind of CPU the last bits of a feature can differ.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int

from wsal_jax.data import examples
from wsal_jax.data.builder import StoredBuilder
from wsal_jax.data.store import Stream

STRIDE = 16.0
"""Frames per snippet, and between consecutive snippets; the centre of snippet 0 is frame STRIDE / 2."""
MIN_GAP = 1.0
"""Minimum background between two instances, before the first and after the last, in seconds."""
KINDS = 8
"""Number of kinds of shared motion."""
WEAK = 0.5
"""Evidence of the class in onset and offset; 1 in the core."""
DRIFT = 0.9
"""AR(1) coefficient of the drift, from one snippet to the next."""
STREAMS = {
    "rgb": dict(scale=0.3, scene=1.0, place=0.6, view=0.4, props=0.4, action=0.3, motion=0.15, style=0.3, noise=0.6),
    "flow": dict(scale=0.3, scene=0.3, place=0.5, view=0.3, props=0.1, action=0.4, motion=0.3, style=0.4, noise=0.6),
}


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """Sizes and statistics of one configuration."""

    classes: int
    videos: dict[str, int]
    """Number of videos per split."""
    instances: float
    """Mean number of instances per video."""
    median: float
    """Median length of an instance, in seconds."""
    spread: float
    """Standard deviation of the log length of an instance."""
    background: float
    """Fraction of the time that is background."""
    two_classes: float
    """Fraction of videos with two classes."""
    noise: float = 1.0
    """Factor on the noise of each stream; set once, see `SyntheticUntrimmed`."""
    dim: int = 128
    """Dimension of the features of each stream (I3D has 1024)."""


class Timeline(NamedTuple):
    """The events of a video; times in seconds."""

    fps: float
    duration: float
    labels: Int[np.ndarray, " k"]
    edges: Float[np.ndarray, "k 4"]
    """Start of onset, of core and of offset, and the end, of each instance."""
    shots: Float[np.ndarray, "r 2"]
    scenes: Int[np.ndarray, " r"]
    home: Bool[np.ndarray, " r"]
    movements: Float[np.ndarray, "m 2"]


def timeline(config: Config, split: str, index: int) -> Timeline:
    """Samples the timeline of a video, which depends only on the arguments."""
    rng = _rng(config, split, index, "timeline")
    first = index % config.classes
    k = 1 + rng.poisson(rng.gamma(2.0, (config.instances - 1) / 2))
    present = [first]
    if rng.random() < config.two_classes:
        pair = first ^ 1
        alike = rng.random() < 0.7 and pair < config.classes
        present.append(pair if alike else (first + rng.integers(1, config.classes)) % config.classes)
        k = max(k, 2)
    labels = rng.permutation([*present, *rng.choice(present, k - len(present))])

    length = rng.lognormal(np.log(config.median), config.spread, k)
    background = length.sum() * rng.gamma(6.0, config.background / (1 - config.background) / 6)
    gap = MIN_GAP + rng.dirichlet(np.ones(k + 1)) * max(background - (k + 1) * MIN_GAP, 0)
    duration = length.sum() + gap.sum()
    start = np.cumsum(gap[:-1]) + np.cumsum(length) - length
    core = [rng.uniform(0.2, 0.35, k), rng.uniform(0.65, 0.8, k)]
    edges = start[:, None] + length[:, None] * np.stack([np.zeros(k), *core, np.ones(k)], 1)

    cut = rng.random(k + 1) < 0.6
    margin = gap[:, None] * rng.uniform(0.1, 0.45, (k + 1, 2))
    cutaways = np.stack([np.r_[0, edges[:, 3]] + margin[:, 0], np.r_[start, duration] - margin[:, 1]], 1)[cut]
    bounds = np.r_[0, cutaways.ravel(), duration]
    home = np.arange(len(bounds) - 1) % 2 == 0
    scenes = np.where(home, first // 2, rng.integers(config.classes, size=len(home)))

    m = rng.poisson(0.2 * duration / config.median)
    begin = rng.uniform(0, duration, m)
    end = np.minimum(begin + rng.lognormal(np.log(config.median), config.spread, m), duration)
    return Timeline(
        fps=rng.choice([24.0, 25.0, 29.97, 30.0]),
        duration=duration,
        labels=labels,
        edges=edges,
        shots=np.stack([bounds[:-1], bounds[1:]], 1),
        scenes=scenes,
        home=home,
        movements=np.stack([begin, end], 1),
    )


def visible(spans: Float[np.ndarray, "k 2"], n: int, fps: float) -> Float[np.ndarray, "n k"]:
    """The fraction of the time of each of n snippets that lies in each span (in seconds)."""
    edges = np.arange(n + 1)[:, None] * STRIDE / fps
    both = np.minimum(edges[1:], spans[:, 1]) - np.maximum(edges[:-1], spans[:, 0])
    return both.clip(0) * fps / STRIDE


def world(config: Config) -> dict[str, dict[str, Float[np.ndarray, "..."]]]:
    """The prototypes of each stream: `mu` [d]; `scene`, `action` and `props` [c d]; `motion` [KINDS d].

    Class c has the home scene c // 2; the other half of the scenes occurs only in cutaways.
    """
    shapes = dict(mu=(), scene=(config.classes,), action=(config.classes,), props=(config.classes,), motion=(KINDS,))
    return {
        stream: {
            name: _rng(config, stream, name).standard_normal((*k, config.dim), np.float32) for name, k in shapes.items()
        }
        for stream in STREAMS
    }


def stage_kinds(config: Config) -> Int[np.ndarray, "c 2"]:
    """The kinds of motion in the onset and the offset of each class."""
    return _rng(config, "kinds").integers(KINDS, size=(config.classes, 2))


def render(config: Config, line: Timeline, rng: np.random.Generator) -> dict[str, Float[np.ndarray, "n d"]]:
    """The features of each stream, float32, for the snippets that lie entirely inside the video."""
    from scipy.signal import lfilter  # takes a second to import and is needed only to build
    from threadpoolctl import threadpool_limits

    n = max(int(line.duration * line.fps / STRIDE), 1)
    show = lambda spans: visible(spans, n, line.fps).astype(np.float32)  # noqa: E731
    normal = lambda *shape: rng.standard_normal((*shape, config.dim), np.float32)  # noqa: E731
    onset, core, offset = (show(line.edges[:, i : i + 2]) for i in range(3))
    shots, movements = show(line.shots), show(line.movements)
    home = shots @ line.home
    props = shots @ (line.home & (rng.random(len(line.home)) < 0.7))
    gain = rng.lognormal(0, 0.3, len(line.labels))
    movement_kind = rng.integers(KINDS, size=len(line.movements))
    movement_gain = rng.lognormal(0, 0.3, len(line.movements))
    kind = stage_kinds(config)[line.labels]

    features = {}
    for stream, prototypes in world(config).items():
        a, motion = STREAMS[stream], prototypes["motion"]
        terms = [  # weights [n k], vectors [k d]
            (a["scene"] * shots, prototypes["scene"][line.scenes]),
            (a["place"] * home[:, None], normal(1)),
            (a["view"] * shots, normal(len(line.shots))),
            (a["props"] * props[:, None], prototypes["props"][np.unique(line.labels)].mean(0, keepdims=True)),
            (a["action"] * gain * (core + WEAK * (onset + offset)), prototypes["action"][line.labels]),
            (a["style"] * (onset + core + offset), normal(len(gain))),
            (a["motion"] * onset, motion[kind[:, 0]]),
            (a["motion"] * offset, motion[kind[:, 1]]),
            (a["motion"] * movement_gain * movements, motion[movement_kind]),
        ]
        weights, vectors = (np.concatenate(part, axis).astype(np.float32) for part, axis in zip(zip(*terms), (1, 0)))
        with threadpool_limits(1, "blas"):  # the number of threads must not decide the last bits of a long video
            h = prototypes["mu"] / 2 - 1 + weights @ vectors
        drift = lfilter(np.float32([np.sqrt(1 - DRIFT**2)]), np.float32([1, -DRIFT]), normal(n), axis=0)
        h += config.noise * a["noise"] * (drift + normal(n) / 2)
        features[stream] = a["scale"] * np.log(1 + np.exp(h))
    return features


def _rng(config: Config, *what: str | int) -> np.random.Generator:
    """A separate generator for each config, split, video and purpose."""
    return np.random.default_rng(list("/".join(map(str, (config.name, *what))).encode()))


class SyntheticUntrimmed(StoredBuilder):
    """The data set: configs `thumos`, `activitynet`, and `tiny` for tests.

    We set the difficulty once, by the scores of two linear classifiers on the test videos, without using any weak
    method. The targets for joint streams were mAP@.5 of supervised snippets within 55 to 75 and video mAP over 90.
    Output of `python -m wsal_jax.difficulty --dataset=synthetic_untrimmed/thumos` (and `/activitynet`):

                     supervised snippets, mAP@.5     mean pooling, video mAP
                      rgb    flow   rgb+flow          rgb    flow   rgb+flow
        thumos       30.1    45.5     63.9           93.6    81.1     95.0
        activitynet  41.9    44.2     63.9           95.9    93.9     99.4
    """

    VERSION = tfds.core.Version("2.1.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        Config(
            name="thumos",
            description="20 classes, 15 instances per video, 71 % background, 15 % of videos with two classes.",
            classes=20,
            videos={"train": 200, "test": 200},
            instances=15.0,
            median=3.5,
            spread=0.6,
            background=0.71,
            two_classes=0.15,
        ),
        Config(
            name="activitynet",
            description="24 classes, 1.5 instances per video, 36 % background.",
            classes=24,
            videos={"train": 300, "test": 150},
            instances=1.5,
            median=35.0,
            spread=0.8,
            background=0.36,
            two_classes=0.0,
            noise=0.4,
        ),
        Config(
            name="tiny",
            description="For tests: 3 classes, few and short videos, 16 dimensions.",
            classes=3,
            videos={"train": 12, "test": 8},
            instances=3.0,
            median=3.5,
            spread=0.3,
            background=0.6,
            two_classes=0.4,
            noise=0.5,
            dim=16,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=examples.features([f"action_{c:02d}" for c in range(config.classes)]),
            metadata=examples.metadata({stream: Stream(config.dim, "float32") for stream in STREAMS}),
        )

    def _split_generators(self, dl_manager: Any):
        return {split: self._generate_examples(split) for split in self.builder_config.videos}

    def _generate_examples(self, split: str):
        config = self.builder_config
        for index in range(config.videos[split]):
            line = timeline(config, split, index)
            counts = np.bincount(line.labels, minlength=config.classes).astype(np.int32)
            name = f"{split}_{index:04d}"
            yield (
                name,
                {
                    "id": name,
                    "group": "",
                    "features": render(config, line, _rng(config, split, index, "features")),
                    "labels": (counts > 0).astype(np.int32),
                    "counts": counts,
                    "segments": line.edges[:, [0, 3]],
                    "segment_labels": line.labels,
                    "ambiguous": np.zeros((0, 2)),
                    "fps": line.fps,
                    "stride": STRIDE,
                    "offset": STRIDE / 2,
                    "duration": line.duration,
                },
            )
