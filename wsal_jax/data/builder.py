"""Base classes of the TFDS builders. They write videos as they come; builders of user files check everything first,
build once, and notice changes."""

import fcntl
import hashlib
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from tqdm import tqdm

from wsal_jax.data import examples, store
from wsal_jax.data.store import Stream
from wsal_jax.files import writing
from wsal_jax.formats.checks import FolderError

SPLITS = ("train", "test")
STREAMS = ("rgb", "flow")
TEXTS = (".json", ".txt")


class Entry(NamedTuple):
    """A checked video: how to read its features, and all other fields of an example."""

    id: str
    load: Callable[[], dict[str, np.ndarray]]
    """Reads the features [n d] by stream, float16 or float32."""
    labels: list[str]
    """The classes of the video, each once."""
    segments: list[tuple[float, float]]
    """Seconds."""
    segment_labels: list[str]
    ambiguous: list[tuple[float, float]]
    fps: float
    stride: float
    offset: float
    duration: float
    counts: dict[str, int] | None = None
    """Number of instances of each class, for a video without segments; None if unknown."""
    group: str = ""
    """Videos of one group are not independent; "" if the video is in no group."""
    image: dict[str, np.ndarray] | None = None
    """For an image: the fields of `examples.IMAGE`."""


class Folder(NamedTuple):
    """A checked folder."""

    streams: dict[str, Stream]
    """Dimension and dtype of each stream."""
    classes: list[str]
    videos: dict[str, list[Entry]]
    """The videos of each split."""
    extraction: dict[str, Any] | None = None
    """How the features were made (`video.sidecar.extraction`), where that is known."""


def streams_of(features: Mapping[str, Float[np.ndarray, "_ _"]]) -> dict[str, Stream]:
    """Dimension and dtype of each stream of a video."""
    return {name: Stream(values.shape[1], values.dtype.name) for name, values in features.items()}


def common_streams(videos: Sequence[Mapping[str, Stream]]) -> dict[str, Stream]:
    """The streams that at least half of the videos have, with the most common dimension; float16 if all videos have
    it."""
    common = {}
    for name in STREAMS:
        found = [video[name] for video in videos if name in video]
        if found and 2 * len(found) >= len(videos):
            dim = Counter(stream.dim for stream in found).most_common(1)[0][0]
            common[name] = Stream(dim, np.result_type(*{stream.dtype for stream in found}).name)
    return common


def fingerprint(root: Path, files: Iterable[Path], chosen: Any = ()) -> str:
    """A short hash of the chosen options and of files below the root.

    Texts enter with their content; arrays, which are large, with name, size, modification time and some of their bytes,
    for a copy may keep the time of what it replaces.
    """
    parts = [chosen]
    for path in sorted(path for path in files if path.is_file()):
        stat, name = path.stat(), path.relative_to(root).as_posix()
        text = path.suffix in TEXTS
        parts.append((name, path.read_bytes()) if text else (name, stat.st_size, stat.st_mtime_ns, _sample(path)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _sample(path: Path) -> bytes:
    """256 bytes at a quarter, at the half, at three quarters and at the end of a file."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return b"".join(os.pread(file.fileno(), 256, max(size * i // 4 - 256, 0)) for i in range(1, 5))


class StoredBuilder(tfds.core.GeneratorBasedBuilder, ABC, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder that stores features apart from the other fields of a video, see `store` and `examples`.

    TFDS's own writer keeps up to 1,000 MiB of examples in memory to shuffle them, and needs TensorFlow for more; this
    one writes them as they come. A subclass passes `examples.metadata` to its `DatasetInfo`, and its
    `_split_generators` yields the examples in the order of their ids, each with its "features" by stream.

    An unfinished build lies in a folder called `incomplete.*`, which nothing reads and which the next build of the same
    data removes. If several processes build the same data at once, one does and the others wait.
    """

    def download_and_prepare(self, **kwargs: Any) -> None:
        """See TFDS."""
        with writing(self.data_dir), locked(Path(self.data_dir).parent) as alone:
            if Path(self.data_dir).exists():
                store.check_seal(Path(self.data_dir), ())  # loading a split checks the files of that split
                self.info.read_from_directory(self.data_dir)  # another process may have built it meanwhile
            elif alone:
                for left in Path(self.data_dir).parent.glob(f"incomplete.*_{Path(self.data_dir).name}"):
                    shutil.rmtree(left)
            super().download_and_prepare(**kwargs)

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        splits = [self._write_split(*split) for split in self._split_generators(dl_manager).items()]
        self.info.set_splits(tfds.core.SplitDict(splits))
        self.info.download_size = dl_manager.downloaded_size
        self.info.write_to_directory(self.data_dir)  # TFDS writes it again, with the same content
        store.seal(Path(self.data_dir))
        return splits

    def _write_split(self, split: str, generated: Iterator[tuple[str, dict[str, Any]]]) -> tfds.core.SplitInfo:
        folder, template = Path(self.data_dir), self._get_filename_template(split)
        write = store.writer(folder, split, examples.streams(self.info))
        count = num_bytes = 0
        with examples.writer(template.sharded_filepath(shard_index=0, num_shards=1), self.info) as record:
            for _, example in tqdm(generated, desc=f"writing {split}", unit="video", disable=None):
                features = example.pop("features")
                shard, row = write(features)
                record({**example, "length": len(next(iter(features.values()))), "shard": shard, "row": row})
                count += 1
                num_bytes += sum(values.nbytes for values in features.values())
        return tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=num_bytes, filename_template=template)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Locks a folder, waiting for other processes; yields False if the file system has no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


class FolderBuilder(StoredBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder of the user's files.

    Its config name consists of a readable name and a fingerprint of files and options. For changed data, a new builder
    therefore builds again and keeps the previous build. Files are checked only if they are not built yet.
    """

    def __init__(self, *, root: Path, prefix: str = "", chosen: Any = (), **kwargs: Any):
        """Makes the builder; a subclass sets `_original_state` to its own arguments, which TFDS pickles.

        Args:
          root: the user's folder.
          prefix: prefix of the readable name, which ends with the name of the folder.
          chosen: the options on which the data depend.
          **kwargs: arguments of TFDS.
        """
        self.root, self._chosen = root, chosen
        self._checked: Folder | None = None
        self._fingerprint = self._take_fingerprint()
        name = prefix + re.sub(r"[^\w.-]", "_", root.resolve().name, flags=re.ASCII)
        config = tfds.core.BuilderConfig(name=f"{name}-{self._fingerprint}")
        super().__init__(config=config, **{"file_format": "array_record", **kwargs})

    @abstractmethod
    def _files(self) -> Iterable[Path]:
        """All user files that the data are built from."""

    @abstractmethod
    def _check(self) -> Folder:
        """Reads all files once; raises a FolderError with all problems."""

    def _take_fingerprint(self) -> str:
        """The fingerprint of the current files."""
        return fingerprint(self.root, self._files(), self._chosen)

    def _info(self) -> tfds.core.DatasetInfo:
        features = metadata = None  # TFDS reads them from the built data
        if not self.is_prepared():
            self._checked = self._check()
            images = any(video.image for videos in self._checked.videos.values() for video in videos)
            features = examples.features(self._checked.classes, images)
            metadata = examples.metadata(self._checked.streams, self._checked.extraction)
        return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=features, metadata=metadata)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = self._checked or self._check()  # data that are built but are to be built again
        return {split: self._generate_examples(folder.videos[split]) for split in SPLITS}

    def _generate_examples(self, videos: list[Entry]):
        names = examples.class_names(self.info)
        for video in sorted(videos, key=lambda video: video.id):
            counts = [video.segment_labels.count(name) for name in names]
            known = (video.segments or video.ambiguous) and set(video.labels) <= set(video.segment_labels)
            if video.counts:
                counts, known = [video.counts.get(name, 0) for name in names], True
            yield (
                video.id,
                {
                    "id": video.id,
                    "group": video.group,
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
                    **(video.image or {}),
                },
            )
        if self._take_fingerprint() != self._fingerprint:
            raise FolderError(self.root, ["changed since it was checked: make a new builder"])
