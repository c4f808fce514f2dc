"""Segments as tools for labelling and viewing have them, and what all of these formats share.

Each of `activitynet_json`, `elan`, `fiftyone`, `label_studio`, `subtitles`, `tables` and `via` writes the segments of
videos, detected or true ones, and those that are for labelling read them too. Class names and ids may hold anything
that prints; what a format cannot hold is replaced, as its module says.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from wsal_jax.formats.checks import Problems, check_id, is_plain

SHORTEST = 0.001
"""Seconds; formats that count milliseconds cannot hold less."""


class Segment(NamedTuple):
    """Times in seconds; a true segment has no score."""

    start: float
    end: float
    label: str
    score: float | None = None


class Labelled(NamedTuple):
    """One video with its segments."""

    id: str
    segments: tuple[Segment, ...] = ()
    file: Path | None = None
    """Of the video, where it is known."""
    fps: float | None = None
    duration: float | None = None

    @property
    def media(self) -> str:
        """The name of the video file, or what it most likely is."""
        return self.file.name if self.file else f"{self.id}.mp4"


def tidy(segments: Iterable[Segment], duration: float) -> tuple[Segment, ...]:
    """Within the video, by start, at least `SHORTEST` long; what lies outside is left out."""
    result = []
    for one in segments:
        start, end = max(one.start, 0.0), min(one.end, duration)
        if one.start < duration and one.end > 0 and end >= start:
            start = max(min(start, duration - SHORTEST), 0.0)
            result.append(one._replace(start=start, end=max(end, start + SHORTEST)))
    return tuple(sorted(result))


def printable(name: str) -> str:
    """The name with spaces for what does not print, such as line breaks and halves of surrogate pairs."""
    return "".join(x if x.isprintable() else " " for x in name)


def id_of(address: str) -> str:
    """The id of a video by its path or URL: the file's name without its ending."""
    path = unquote(urlparse(address).path) if re.match(r"[a-z]+://", address) else address
    name = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return stem if dot and stem and re.fullmatch(r"[A-Za-z0-9]{2,5}", ending) else name


def checked(
    id: str, segments: Sequence[Segment], where: str, problems: Problems, **known: float | None
) -> Labelled | None:
    """What a reader found of a video, sorted; None, and problems, where something is wrong."""
    before = sum(map(len, problems.values()))
    check_id(id, where, problems)
    for one in segments:
        if not is_plain(one.label):
            problems.add(f"{where}: {one.label!r}", "is no class name: it must print, without spaces around it")
        if not 0 <= one.start < one.end < float("inf"):
            what = "does not end after it starts, or starts before 0: correct it in the tool"
            problems.add(f"{where}: {one.label!r} from {one.start:g} to {one.end:g} s", what)
    if sum(map(len, problems.values())) > before:
        return None
    return Labelled(id, tuple(sorted(segments)), **known)


def add(found: dict[str, Labelled], one: Labelled | None, where: str, problems: Problems) -> None:
    """Adds a video to those found, each of which may be there once."""
    if one is None:
        return
    if one.id in found:
        problems.add(f"{where}: {one.id!r}", "is there more than once: keep one")
    found[one.id] = one
