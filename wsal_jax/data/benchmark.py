"""Reads and checks the files of a benchmark, in any of the `layouts`; shared by `thumos14` and `activitynet`.

Published data are not clean, and papers leave out different parts. We correct nothing silently; options decide:
- `bad_videos`: videos that occur twice, that have annotations but no features or features but no annotations, or whose
  features are invalid or end after the video. "refuse" lists all of them and builds nothing; "drop" drops them; "keep"
  keeps videos whose features end late, unchanged, and refuses the rest.
- `durations`: the duration of a video is that of its annotation ("annotated") or of its features ("features"). The
  `gt.json` of FTCL and ACM-Net assumes 30 frames per second for all videos, so 13 of its 412 durations are 17 to 20 %
  too short.
- `bad_segments`: segments that do not end after they start, start before 0, or end more than a snippet after the video
  are kept as published ("keep"), dropped ("drop") or refused ("refuse").
Videos and segments that are kept or dropped are listed on stderr.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from tqdm import tqdm

from wsal_jax.data import layouts
from wsal_jax.data.builder import SPLITS, STREAMS, TEXTS, Entry, Folder, FolderBuilder, common_streams, streams_of
from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source
from wsal_jax.data.store import Stream
from wsal_jax.formats.annotations import odd_segments
from wsal_jax.formats.checks import FolderError, Problems, check_features, check_id, check_lengths, load_checked
from wsal_jax.times import resampled, snippet_to_seconds
from wsal_jax.types import InputError, Meta

CHOICES = {
    "bad_videos": ("refuse", "drop", "keep"),
    "bad_segments": ("keep", "drop", "refuse"),
    "durations": ("annotated", "features"),
}
ARRAYS = (".npy", ".npz", ".pt", ".pth", ".pkl", ".csv", ".mat")


class Options(NamedTuple):
    """Options of reading a benchmark; see the module."""

    layout: str = "auto"
    """One of `layouts.NAMES`, or "auto" to detect it."""
    bad_videos: str = "refuse"
    bad_segments: str = "keep"
    durations: str = "annotated"
    exclude: tuple[str, ...] = ()
    """Ids that are left out before all checks."""
    fps: float | None = None
    """Replaces the layout's frames per second; likewise `stride` and `offset` (in frames)."""
    stride: float | None = None
    offset: float | None = None
    resized: bool = False
    """Whether the features of each video were resized, for instance to 100 snippets, which divide its duration
    equally."""

    def check(self) -> None:
        """Raises an InputError for an invalid choice."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.resized and self.durations == "features":
            raise InputError("resized, durations='features': resized features do not tell the duration")
        for name in ("fps", "stride"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}: must be positive")


class Findings(NamedTuple):
    """The problems of the videos of a folder."""

    flaws: Problems
    bad: set[str]
    """Ids of the videos that cannot be used."""
    late: Problems
    """Videos whose features end after the video."""
    segments: Problems
    """Segments that cannot be right."""
    short: Problems
    """Videos whose features end early, which is only reported."""

    def refuse(self, id: str, where: str, what: str) -> None:
        self.flaws.add(where, what)
        self.bad.add(id)


def check(root: Path, benchmark: Benchmark, options: Options) -> Folder:
    """Reads and checks all annotations and features.

    A video without a known duration has the duration of its features, whose last snippet ends half a stride after its
    centre. Features must not exceed a known duration by more than two snippets and 5 %; otherwise frame rate, stride,
    offset or duration are wrong. Features that end 10 % earlier may have the same cause or may be truncated; this is
    only reported.

    Raises:
      FolderError: all problems that are not dropped or kept.
    """
    options.check()
    layout, problems = layouts.choose(root, options.layout), Problems()
    listing = layout.read(root, benchmark, problems)
    if not listing.sources and not problems:
        problems.add(str(root), f"no video found: looked for {layout.LOOKS_FOR}")
    if problems:
        raise FolderError(root, problems.lines())
    found = Findings(Problems(), set(), Problems(), Problems(), Problems())
    sources = _select(listing, options, found)
    known = {label for source in sources if source.record for label in source.record.video_labels}
    classes = list(benchmark.classes or sorted(known))
    if len(classes) > benchmark.num_classes:
        what = f"have {len(classes)} classes, {benchmark.name} has {benchmark.num_classes}: is this another version?"
        raise FolderError(root, [f"the annotations {what}"])

    given = options.fps, options.stride, options.offset
    sampling = Sampling(*(default if x is None else x for x, default in zip(given, listing.sampling)))
    read = _read(root, sources, found)
    streams, videos = common_streams([has for _, has, _ in read]), {split: [] for split in SPLITS}
    dims = {name: stream.dim for name, stream in streams.items()}
    for source, has, length in read:
        if (of_video := {name: stream.dim for name, stream in has.items()}) != dims:
            found.refuse(source.id, source.where, f"has the streams and dimensions {of_video}, most videos {dims}")
        elif source.record is None:
            found.refuse(source.id, source.where, "has features, but no annotation: add one, or drop the video")
        elif times := _times(source, length, sampling, options, found):
            if entry := _entry(source, times, root, classes, options, found):
                videos[source.split].append(entry)
    _report(root, options, found)
    if not all(videos.values()):
        has = ", ".join(f"{len(of)} {split}" for split, of in videos.items())
        raise FolderError(root, [f"needs training and test videos, has {has}", *found.flaws.lines()])
    return Folder(streams, classes, videos)


def _select(listing: Listing, options: Options, found: Findings) -> list[Source]:
    """The videos that are not excluded and occur once."""
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
    return [source for source in sources if source.id not in found.bad]


def _read(root: Path, sources: list[Source], found: Findings) -> list[tuple[Source, dict[str, Stream], int]]:
    """The streams and the number of snippets of each video with valid features."""
    read = []
    for source in tqdm(sources, desc=f"checking {root.name}", unit="video", disable=None):
        features = load(source, problems := Problems())
        for what, where in problems.items():
            found.refuse(source.id, ", ".join(where), what)
        if not problems:
            read.append((source, streams_of(features), len(next(iter(features.values())))))
    return read


def _report(root: Path, options: Options, found: Findings) -> None:
    """Raises a FolderError with what is refused, and prints what is kept or dropped."""
    refused = []
    if options.bad_videos != "drop":
        refused += found.flaws.lines()
    elif found.flaws:
        _tell(f"{root}: dropped videos", found.flaws.lines())
    if options.bad_videos == "refuse":
        refused += found.late.lines()
    elif found.late:
        done = {"keep": "kept as they are", "drop": "dropped"}[options.bad_videos]
        _tell(f"{root}: features that end after the video, {done}", found.late.lines())
    if options.bad_segments == "refuse":
        refused += found.segments.lines()
    elif found.segments:
        kept = {"keep": "kept as they are", "drop": "dropped"}[options.bad_segments]
        _tell(f"{root}: odd segments, {kept}", found.segments.lines())
    if found.short:
        _tell(f"{root}: short features, kept", found.short.lines())
    if refused:
        raise FolderError(root, refused)


def _tell(what: str, lines: list[str]) -> None:
    more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
    print("\n- ".join([f"{what}:", *lines[:20], *more]), file=sys.stderr)


def load(source: Source, problems: Problems) -> dict[str, Float[np.ndarray, "_ _"]]:
    """The valid features of a video, by stream."""
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
    check_lengths(features, source.where, problems)
    return features


def _times(source: Source, length: int, sampling: Sampling, options: Options, found: Findings) -> Meta | None:
    """The sampling and duration of a video; None if the video cannot be used."""
    record, name = source.record, repr(source.id)
    fps = sampling.fps or record.fps
    if fps is None:
        what = "has no frame rate in the annotations, and its features are at the video's own: give the option fps"
        found.refuse(source.id, name, what)
        return None
    known = record.duration if options.durations == "annotated" else None
    times = Meta(source.id, length, fps, sampling.stride, sampling.offset, known or 0.0)
    if options.resized:
        if not known:
            found.refuse(source.id, name, "has no duration in the annotations, which its resized features divide")
            return None
        times = resampled(Meta(source.id, 1, fps, known * fps, known * fps / 2, 0.0), length)
    snippet = times.stride / fps
    end = float(snippet_to_seconds(length - 0.5, times))
    duration = known or end
    if end - duration > max(2 * snippet, 0.05 * duration):
        where = f"{name} ({source.where}) has features up to {end:.1f} s, and lasts {duration:.1f} s"
        what = (
            "the features end after the video: are fps, stride or offset wrong? If the annotated durations are "
            'wrong, give durations="features"; bad_videos="keep" keeps such videos as they are, "drop" drops them'
        )
        found.late.add(where, what, full=True)
        if options.bad_videos != "keep":
            return None
    if end < 0.9 * duration - 2 * snippet:
        found.short.add(f"{name} (up to {end:.1f} of {duration:.1f} s)", "the features end before the video")
    return times._replace(duration=duration)


def _entry(
    source: Source, times: Meta, root: Path, classes: list[str], options: Options, found: Findings
) -> Entry | None:
    """The checked video; None if it cannot be used."""
    record, name, snippet = source.record, repr(source.id), times.stride / times.fps
    if unknown := set(record.video_labels) - set(classes):
        found.refuse(source.id, name, f"has labels that are no classes of the benchmark: {sorted(unknown)[:5]}")
        return None
    if not record.video_labels and source.split == "train":
        found.refuse(source.id, name, "is a training video without any label")
        return None
    # Without an annotated duration, the length of the rest after the last snippet is unknown too.
    annotated = record.duration and options.durations == "annotated"
    wrong = odd_segments(record, times.duration, snippet if annotated else 2 * snippet)
    for i, what in wrong:
        start, stop = record.segments[i]
        found.segments.add(f"{name}: [{start:g}, {stop:g}] {record.labels[i]}", what)
    keep = range(len(record.segments))
    if options.bad_segments == "drop":
        keep = [i for i in keep if i not in dict(wrong)]
    return Entry(
        id=source.id,
        load=partial(load_checked, root, partial(load, source)),
        labels=sorted(set(record.video_labels)),
        segments=[record.segments[i] for i in keep],
        segment_labels=[record.labels[i] for i in keep],
        ambiguous=list(record.ambiguous),
        fps=times.fps,
        stride=times.stride,
        offset=times.offset,
        duration=times.duration,
    )


class BenchmarkBuilder(FolderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The builder of a benchmark; a subclass chooses it and adds its special options.

    Args:
      benchmark: its properties.
      config: a name for it and for the choices of the subclass.
      manual_dir: the folder; by default TFDS's `<data_dir>/downloads/manual/<name>`.
      exclude: see `Options`; likewise all other `options`.
      data_dir: see TFDS; likewise `file_format` and `version`.

    Raises:
      FolderError: on construction, with all problems of the folder.
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
        root = Path(manual_dir or self._built / "downloads" / "manual" / type(self).name)
        self._benchmark, self._options = benchmark, Options(exclude=exclude, **options)
        names = dict(root=root, prefix=f"{config}-", chosen=(config, tuple(self._options)))
        super().__init__(**names, file_format=file_format, data_dir=data_dir, version=version)

    def _files(self) -> Iterator[Path]:
        for path in self.root.rglob("*"):
            inside = self._built.is_relative_to(self.root.resolve()) and path.resolve().is_relative_to(self._built)
            if path.suffix in TEXTS + ARRAYS and not inside:  # `inside`: built by TFDS within the folder
                yield path

    def _check(self) -> Folder:
        return check(self.root, self._benchmark, self._options)
