"""What a builder of a user's files has in common with another: check everything, build once, notice changes."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from wsal_jax.data import examples
from wsal_jax.formats.checks import FolderError

SPLITS = ("train", "test")
STREAMS = ("rgb", "flow")


class Entry(NamedTuple):
    """A checked video: where its features are, and all else that an example has."""

    id: str
    load: Callable[[], dict[str, np.ndarray]]
    """Reads the float32 features [n d] by stream."""
    labels: list[str]
    """The classes that occur, each once."""
    segments: list[tuple[float, float]]
    """Seconds."""
    segment_labels: list[str]
    ambiguous: list[tuple[float, float]]
    fps: float
    stride: float
    offset: float
    duration: float
    counts: dict[str, int] | None = None
    """How often each class occurs, of a video without segments; None: not known."""


class Folder(NamedTuple):
    """A checked folder."""

    dims: dict[str, int]
    """Feature dimension of each stream."""
    classes: list[str]
    videos: dict[str, list[Entry]]
    """By split."""


def fingerprint(parts: list[Any]) -> str:
    """A short hash of what a data set is made of."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of a file that is too large to be read for its fingerprint."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class FolderBuilder(tfds.core.GeneratorBasedBuilder, ABC, skip_registration=True):
    """A TFDS builder of files that are the user's.

    What is built is kept under a config name made of a readable name and a fingerprint of files and options: of changed
    data, a new builder builds anew, and what was built before stays. Files are checked where they are not yet built.
    """

    def __init__(self, *, name: str, file_format: Any = "array_record", **kwargs: Any):
        """`kwargs` are TFDS's own. A subclass sets `_original_state`, its own arguments, which TFDS pickles."""
        self._checked: Folder | None = None
        self._fingerprint = self._take_fingerprint()
        config = tfds.core.BuilderConfig(name=f"{name}-{self._fingerprint}")
        super().__init__(config=config, file_format=file_format, **kwargs)

    @property
    @abstractmethod
    def root(self) -> Path:
        """The user's folder."""

    @abstractmethod
    def _take_fingerprint(self) -> str:
        """Of the files as they are now."""

    @abstractmethod
    def _check(self) -> Folder:
        """Reads all files once; raises a FolderError with everything that is wrong."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = None  # TFDS reads them from what is built
        if not self.is_prepared():
            self._checked = self._check()
            features = examples.features(self._checked.dims, self._checked.classes)
        return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = self._checked or self._check()  # built before, and to be built again
        return {split: self._generate_examples(folder.videos[split]) for split in SPLITS}

    def _generate_examples(self, videos: list[Entry]):
        names = examples.class_names(self.info)
        for video in videos:
            counts = [video.segment_labels.count(name) for name in names]
            known = video.segments or (video.ambiguous and not video.labels)
            if video.counts:
                counts, known = [video.counts.get(name, 0) for name in names], True
            yield (
                video.id,
                {
                    "id": video.id,
                    "features": video.load(),
                    "labels": np.array([name in video.labels for name in names], np.int32),
                    "counts": np.array(counts if known else [-1] * len(names), np.int32),
                    "segments": np.array(video.segments, np.float64).reshape(-1, 2),
                    "segment_labels": video.segment_labels,
                    "ambiguous": np.array(video.ambiguous, np.float64).reshape(-1, 2),
                    "fps": video.fps,
                    "stride": video.stride,
                    "offset": video.offset,
                    "duration": video.duration,
                },
            )
        if self._take_fingerprint() != self._fingerprint:
            raise FolderError(self.root, ["changed since it was checked: make a new builder"])
