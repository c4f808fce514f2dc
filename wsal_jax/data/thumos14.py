"""TFDS builder of THUMOS14's temporal annotations with published features (`wsal_jax.data.layouts`).

Training uses the validation videos, testing the test videos: 200 and 212 videos, 3,007 and 3,358 instances of 20
classes. We do not correct odd data; options choose how to treat them:

`videos`, the list of test videos:
  "all"       all videos of the layout.
  "w_talc"    without 1292, which has only ambiguous segments: 212 videos, 3,358 instances.
  "opentad"   without 270 (it lasts 176.2 s but is annotated up to 713.7 s) and 1292: 211 videos.
  "bas_net"   without 270, 1292 and 1496: 210 videos, 3,311 instances; used by STPN's reproductions, DGAM, UM, CoLA...
`diving`: every instance of CliffDiving is also one of Diving, with the same times.
  "both"      as published.
  "cliff_only"  such an instance is CliffDiving only.
The option `bad_segments` covers segments that end after their video (validation 364 and 856; test 270, 814 and 1081).
Ambiguous segments are stored separately, for the evaluation protocols that use them.
"""

from typing import Any

import tensorflow_datasets as tfds

from wsal_jax.data.benchmark import BenchmarkBuilder
from wsal_jax.data.builder import Folder
from wsal_jax.data.layouts import Benchmark
from wsal_jax.types import InputError

CLASSES = (
    "BaseballPitch",
    "BasketballDunk",
    "Billiards",
    "CleanAndJerk",
    "CliffDiving",
    "CricketBowling",
    "CricketShot",
    "Diving",
    "FrisbeeCatch",
    "GolfSwing",
    "HammerThrow",
    "HighJump",
    "JavelinThrow",
    "LongJump",
    "PoleVault",
    "Shotput",
    "SoccerPenalty",
    "TennisSwing",
    "ThrowDiscus",
    "VolleyballSpiking",
)
EXCLUDED = {"all": (), "w_talc": (1292,), "opentad": (270, 1292), "bas_net": (270, 1292, 1496)}
DIVING = ("both", "cliff_only")


def split_of(id: str, subset: str, subsets: set[str]) -> str | None:
    """The split by THUMOS14's id, otherwise by subset: we train on "validation", which files name differently."""
    if id.startswith("video_validation_"):
        return "train"
    if id.startswith("video_test_"):
        return "test"
    return {"train": "train", "training": "train", "test": "test"}.get(subset.lower())


BENCHMARK = Benchmark("thumos14", CLASSES, len(CLASSES), split_of)


class Thumos14(BenchmarkBuilder):
    """THUMOS14; see `wsal_jax.data.thumos14` for the options."""

    VERSION = tfds.core.Version("2.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Features and annotations, in one of the layouts of wsal_jax.data.layouts."

    def __init__(self, *, videos: str = "all", diving: str = "both", **kwargs: Any):
        for name, given, choices in (("videos", videos, EXCLUDED), ("diving", diving, DIVING)):
            if given not in choices:
                raise InputError(f"{name}={given!r}: choose one of {', '.join(choices)}")
        self._diving = diving
        exclude = tuple(f"video_test_{number:07d}" for number in EXCLUDED[videos])
        super().__init__(benchmark=BENCHMARK, config=f"{videos}-{diving}", exclude=exclude, **kwargs)
        self._original_state = {"videos": videos, "diving": diving, **kwargs}

    def _check(self) -> Folder:
        folder = super()._check()
        if self._diving == "both":
            return folder
        for split, entries in folder.videos.items():
            folder.videos[split] = [_cliff_only(entry) for entry in entries]
        return folder


def _cliff_only(entry: Any) -> Any:
    """The video without the instances of Diving that are also CliffDiving."""
    cliff = {times for times, label in zip(entry.segments, entry.segment_labels) if label == "CliffDiving"}
    left = [
        (times, label)
        for times, label in zip(entry.segments, entry.segment_labels)
        if not (label == "Diving" and times in cliff)
    ]
    labels = sorted({label for _, label in left}) if left else entry.labels
    return entry._replace(segments=[x for x, _ in left], segment_labels=[x for _, x in left], labels=labels)
