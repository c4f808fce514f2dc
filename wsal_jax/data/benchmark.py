"""From the files of a benchmark, in any of the `layouts`, to checked videos: what `thumos14` and `activitynet` share.

Published data are not clean, and their users do not agree on what to leave out. Nothing is corrected silently:
- `bad_videos`: a video that is there twice, has annotations and no features or features and no annotations, or features
  that cannot be used, is refused ("refuse": all of them are listed, nothing is built) or dropped ("drop").
- `bad_segments`: a segment that does not end after it starts, starts before 0, or ends more than a snippet after the
  video, is kept as it was published ("keep"), dropped ("drop") or refused ("refuse").
What is kept or dropped is listed too, on stderr.
"""

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from tqdm import tqdm

from wsal_jax.data import layouts
from wsal_jax.data.builder import SPLITS, STREAMS, Entry, Folder, FolderBuilder, fingerprint, state_of
from wsal_jax.data.layouts import Benchmark, Sampling, Source
from wsal_jax.formats.annotations import odd_segments
from wsal_jax.formats.checks import FolderError, Problems, check_features, check_id
from wsal_jax.times import resampled, snippet_to_seconds
from wsal_jax.types import InputError, Meta

TEXTS = (".json", ".txt")
ARRAYS = (".npy", ".npz", ".pt", ".pth", ".pkl", ".csv", ".mat")


class Options(NamedTuple):
    """How a benchmark is read; see the module."""

    layout: str = "auto"
    """One of `layouts.NAMES`, or what is found."""
    bad_videos: str = "refuse"
    bad_segments: str = "keep"
    exclude: tuple[str, ...] = ()
    """Ids that are left out before anything is checked."""
    fps: float | None = None
    """Instead of the layout's frames per second; `stride` and `offset` (frames) likewise."""
    stride: float | None = None
    offset: float | None = None
    resized: bool = False
    """The features of each video were resized, to 100 snippets for instance: they divide its duration equally."""

    def check(self) -> None:
        """Raises an InputError for a choice that is not there."""
        for name, choices in (("bad_videos", ("refuse", "drop")), ("bad_segments", ("keep", "drop", "refuse"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name in ("fps", "stride"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}: must be positive")


class Findings(NamedTuple):
    """What is wrong with the videos of a folder, and which of them are of no use."""

    flaws: Problems
    bad: set[str]
    segments: Problems
    """Those that cannot be right."""
    short: Problems
    """Videos whose features end early, which is said and no more."""

    def refuse(self, id: str, where: str, what: str) -> None:
        self.flaws.add(where, what)
        self.bad.add(id)


def check(root: Path, benchmark: Benchmark, options: Options) -> Folder:
    """Reads and checks all annotations and features.

    A video without a known duration lasts as long as its features, its last snippet ending half a stride after its
    centre. Features that go on for more than two snippets and 5 % beyond a known duration are wrong: they show that
    frame rate, stride or offset are others. Those that end 10 % before it may show that too, or were cut; that is told.

    Raises:
      FolderError: everything that is wrong and not dropped.
    """
    options.check()
    layout, problems = layouts.choose(root, options.layout), Problems()
    listing = layout.read(root, benchmark, problems)
    if not listing.sources and not problems:
        problems.add(str(root), f"no video found: looked for {layout.LOOKS_FOR}")
    if problems:
        raise FolderError(root, problems.lines())

    found = Findings(Problems(), set(), Problems(), Problems())
    sources = [source for source in listing.sources if source.id not in options.exclude]
    for id in listing.missing:
        if id not in options.exclude:
            found.flaws.add(repr(id), "has annotations or is listed, but has no features: add them, or drop the video")
    places_of: dict[str, list[str]] = {}
    for source in sources:
        places_of.setdefault(source.id, []).append(source.where)
    for id, places in places_of.items():
        if len(places) > 1:
            found.refuse(id, f"{id!r} ({'; '.join(places)})", "is there more than once: keep one")
        elif not check_id(id, places[0], found.flaws):
            found.bad.add(id)
    given = options.fps, options.stride, options.offset
    sampling = Sampling(*(default if x is None else x for x, default in zip(given, listing.sampling)))
    known = {label for source in sources if source.record for label in source.record.video_labels}
    classes = list(benchmark.classes or sorted(known))
    if len(classes) > benchmark.num_classes:
        what = f"have {len(classes)} classes, {benchmark.name} has {benchmark.num_classes}: is this another version?"
        raise FolderError(root, [f"the annotations {what}"])

    dims, entries = _common_dims(sources), []
    for source in tqdm(sources, desc=f"checking {root.name}", unit="video", disable=None):
        if source.id in found.bad:
            continue
        features = load(source, problems := Problems())
        for what, where in problems.items():
            found.refuse(source.id, ", ".join(where), what)
        has = {stream: values.shape[1] for stream, values in features.items()}
        if problems:
            continue
        if has != dims:
            found.refuse(source.id, source.where, f"has the streams and dimensions {has}, most videos {dims}")
        elif source.record is None:
            found.refuse(source.id, source.where, "has features, but no annotation: add one, or drop the video")
        elif entry := _entry(source, len(next(iter(features.values()))), sampling, classes, options, found):
            entries.append((source.split, entry))

    refused = Problems()
    if options.bad_videos == "refuse":
        refused.update(found.flaws)
    elif found.flaws:
        _tell(f"{root}: dropped videos", found.flaws)
    if options.bad_segments == "refuse":
        refused.update(found.segments)
    elif found.segments:
        kept = {"keep": "kept as they are", "drop": "dropped"}[options.bad_segments]
        _tell(f"{root}: odd segments, {kept}", found.segments)
    if found.short:
        _tell(f"{root}: short features, kept", found.short)
    if refused:
        raise FolderError(root, refused.lines())
    videos = {split: [entry for of, entry in entries if of == split] for split in SPLITS}
    if not all(videos.values()):
        has = ", ".join(f"{len(of)} {split}" for split, of in videos.items())
        raise FolderError(root, [f"needs training and test videos, has {has}", *found.flaws.lines()])
    return Folder(dims, classes, videos)


def _tell(what: str, problems: Problems) -> None:
    lines = problems.lines()
    more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
    print("\n- ".join([f"{what}:", *lines[:20], *more]), file=sys.stderr)


def load(source: Source, problems: Problems) -> dict[str, Float[np.ndarray, "_ _"]]:
    """The float32 features of a video by stream; without those that have problems."""
    try:
        raw = source.load()
    except InputError as error:
        problems.add(source.where, str(error))
        return {}
    features = {}
    for stream in (stream for stream in STREAMS if stream in raw):
        values = check_features(raw[stream], source.where, problems)
        if values is not None:
            features[stream] = values
    if len({len(values) for values in features.values()}) > 1:
        lengths = " and ".join(f"{len(values)} in {stream}" for stream, values in features.items())
        problems.add(source.where, f"number of snippets differs, {lengths}")
    return features


def _load_checked(source: Source) -> dict[str, np.ndarray]:
    """Features that were checked, and must still be as they were."""
    features = load(source, problems := Problems())
    if problems:
        raise InputError("; ".join(problems.lines()))
    return features


def _common_dims(sources: list[Source]) -> dict[str, int]:
    """Streams and dimensions of most of the first videos."""
    votes: Counter[tuple[tuple[str, int], ...]] = Counter()
    for source in sources[:25]:
        features = load(source, Problems())
        if features:
            votes[tuple((stream, values.shape[1]) for stream, values in features.items())] += 1
    return dict(votes.most_common(1)[0][0]) if votes else {}


def _entry(
    source: Source,
    length: int,
    sampling: Sampling,
    classes: list[str],
    options: Options,
    found: Findings,
) -> Entry | None:
    """A video of `length` snippets; None if it is of no use."""
    record, name = source.record, repr(source.id)
    fps = sampling.fps or record.fps
    if fps is None:
        what = "has no frame rate in the annotations, and its features are at the video's own: give the option fps"
        found.refuse(source.id, name, what)
        return None
    times = Meta(source.id, length, fps, sampling.stride, sampling.offset, record.duration or 0.0)
    if options.resized:
        if not record.duration:
            found.refuse(source.id, name, "has no duration in the annotations, which its resized features divide")
            return None
        times = resampled(Meta(source.id, 1, fps, record.duration * fps, record.duration * fps / 2, 0.0), length)
    snippet = times.stride / fps
    end = float(snippet_to_seconds(length - 0.5, times))
    duration = record.duration or end
    if end - duration > max(2 * snippet, 0.05 * duration):
        what = f"has features up to {end:.1f} s, and lasts {duration:.1f} s: are fps, stride or offset others?"
        found.refuse(source.id, f"{name} ({source.where})", what)
        return None
    if end < 0.9 * duration - 2 * snippet:
        found.short.add(f"{name} (up to {end:.1f} of {duration:.1f} s)", "the features end before the video")
    if unknown := set(record.video_labels) - set(classes):
        found.refuse(source.id, name, f"has labels that are no classes of the benchmark: {sorted(unknown)[:5]}")
        return None
    if not record.video_labels and source.split == "train":
        found.refuse(source.id, name, "is a training video without any label")
        return None
    # Without a duration, the rest that fills no snippet is not known either.
    wrong = odd_segments(record, duration, snippet if record.duration else 2 * snippet)
    for i, what in wrong:
        start, stop = record.segments[i]
        found.segments.add(f"{name}: [{start:g}, {stop:g}] {record.labels[i]}", what)
    keep = range(len(record.segments))
    if options.bad_segments == "drop":
        keep = [i for i in keep if i not in dict(wrong)]
    return Entry(
        id=source.id,
        load=lambda: _load_checked(source),
        labels=sorted(set(record.video_labels)),
        segments=[record.segments[i] for i in keep],
        segment_labels=[record.labels[i] for i in keep],
        ambiguous=list(record.ambiguous),
        fps=fps,
        stride=times.stride,
        offset=times.offset,
        duration=duration,
    )


class BenchmarkBuilder(FolderBuilder, skip_registration=True):
    """A benchmark's builder; a subclass says which, and adds what is special about it.

    Args:
      benchmark: what is known of it.
      config: a name for it and for what the subclass has chosen.
      manual_dir: the folder; TFDS's `<data_dir>/downloads/manual/<name>` by default.
      exclude: see `Options`, as all other `options`.

    Raises:
      FolderError: on construction, with everything that is wrong with the folder.
    """

    def __init__(
        self,
        *,
        benchmark: Benchmark,
        config: str,
        manual_dir: str | os.PathLike | None = None,
        exclude: tuple[str, ...] = (),
        data_dir: str | os.PathLike | None = None,
        file_format: Any = "array_record",
        version: Any = None,
        **options: Any,
    ):
        self._built = Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)).resolve()
        self._root = Path(manual_dir or self._built / "downloads" / "manual" / type(self).name)
        self._benchmark, self._config, self._options = benchmark, config, Options(exclude=exclude, **options)
        folder = re.sub(r"[^\w.-]", "_", self._root.resolve().name, flags=re.ASCII)
        super().__init__(name=f"{config}-{folder}", file_format=file_format, data_dir=data_dir, version=version)

    @property
    def root(self) -> Path:
        return self._root

    def _check(self) -> Folder:
        return check(self._root, self._benchmark, self._options)

    def _take_fingerprint(self) -> str:
        """Of the content of texts, of names, sizes and times of arrays, and of what was chosen."""
        parts: list[Any] = [self._config, tuple(self._options)]
        for path in sorted(self._root.rglob("*")):
            inside = self._built.is_relative_to(self._root.resolve()) and path.resolve().is_relative_to(self._built)
            if path.suffix not in TEXTS + ARRAYS or inside or not path.is_file():
                continue  # `inside`: what TFDS has built somewhere in the folder
            name = path.relative_to(self._root).as_posix()
            parts.append((name, path.read_bytes()) if path.suffix in TEXTS else (name, *state_of(path)))
        return fingerprint(parts)
