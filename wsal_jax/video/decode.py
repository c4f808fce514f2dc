"""A video file to RGB pictures at a fixed rate, with PyAV (FFmpeg's libraries).

Files may be truncated, damaged, turned, of varying frame rate, or no videos at all; what happens then is said where it
is done, and `Seen` counts it. Times are seconds from the first frame of the stream, as in browsers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from wsal_jax.types import InputError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif"
"""What may be opened: containers of video, by FFmpeg's names. Playlists, which open other files, are not among them."""

MAX_PIXELS = 4096 * 2304

LONGEST_GAP = 3600
"""Seconds between two frames above which their times are taken to be damaged; else one bit fills hours with a frame."""

Picture = Callable[[], np.ndarray]
"""Gives uint8 RGB [h w 3]; converted at the first call."""


@dataclasses.dataclass
class Seen:
    """What the decoder has seen of a video so far. Times are exact seconds, from the first frame."""

    stated: float = math.nan
    """Duration as the file says it; NaN where it does not."""
    absolute: bool = False
    """Whether `stated` may count from time 0 of the file instead of from the first frame."""
    frames: int = 0
    corrupt: int = 0
    """Frames that the decoder marks as damaged, and packets that gave none."""
    broken: bool = False
    """Whether reading ended with an error."""
    rotation: int = 0
    start: Fraction = Fraction(0)
    last: Fraction = Fraction(0)
    shortest: Fraction | None = None
    longest: Fraction = Fraction(0)

    def add(self, time: Fraction, path: Path) -> None:
        """Takes note of one more frame.

        Raises:
          InputError: it comes too long after the one before.
        """
        step = time - self.last
        if self.frames and step > 0:
            self.shortest = min(step, self.shortest or step)
            self.longest = max(step, self.longest)
        if step > LONGEST_GAP:
            what = f"{float(step):.0f} s pass from one frame to the next: the times in the file are damaged"
            raise InputError(f"{path}: {what}; write it again, such as with `ffmpeg -i FILE -c copy NEW`")
        self.last = max(time, self.last)
        self.frames += 1

    @property
    def fps(self) -> float:
        """Mean frame rate of the file; NaN of a single frame."""
        return float((self.frames - 1) / self.last) if self.last else math.nan

    @property
    def vfr(self) -> bool:
        """Whether the frame rate varies: the longest interval is more than 1.5 times the shortest."""
        return self.shortest is not None and self.longest > 1.5 * self.shortest

    @property
    def end(self) -> float:
        """Seconds to the end of the last frame."""
        return float(self.last * self.frames / (self.frames - 1)) if self.frames > 1 else 0.0

    @property
    def truncated(self) -> bool:
        """Whether the video ends more than 1 s and 5 % before it should, or reading ended with an error."""
        reached = self.end + max(0.0, float(self.start)) * self.absolute
        return self.broken or self.stated - reached > max(1, 0.05 * self.stated)


@contextmanager
def opened(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Any, Any, Seen]]:
    """The container, its first stream that is a video and no cover picture, and a new `Seen`. Decodes nothing.

    Raises:
      InputError: it cannot be opened, has no video, or one of more than `max_pixels` per frame.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file" if not path.exists() else f"{path}: is not a file")
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        # file: so that a name with a colon is not taken for a protocol. Tags may be in any encoding.
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(f"{path}: is not a video, or damaged ({_reason(error)})") from error
    with container:
        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            raise InputError(f"{path}: has no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise InputError(f"{path}: nothing here can decode its video: convert it to H.264")
        _check_pixels(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
        stream.thread_type = "NONE"  # threads change what is made of damaged frames
        yield container, stream, _stated(container, stream)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        what = f"has {width} x {height} pixels, more than {max_pixels}"
        raise InputError(f"{path}: {what}: make it smaller, or allow it with --max-pixels {width * height}")


def _stated(container: Any, stream: Any) -> Seen:
    if stream.duration:
        return Seen(float(stream.duration * stream.time_base))
    try:  # Matroska
        hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
        return Seen(3600 * hours + 60 * minutes + seconds, absolute=True)
    except (KeyError, ValueError):
        duration = container.duration / av.time_base if container.duration else math.nan
        return Seen(duration, absolute=True)


def frames(path: Path, container: Any, stream: Any, seen: Seen) -> Iterator[tuple[Fraction, Any]]:
    """The decoded frames (`av.VideoFrame`) in the order of showing, with their times.

    A frame that does not decode is counted and left out. Where the file cannot be read on, frames end, and
    `seen.broken` says so. Only times stored with the frames count; a frame without one comes an average interval after
    the one before.
    """
    step = 1 / stream.average_rate if stream.average_rate else Fraction(1, 25)
    for frame in _decoded(container, stream, seen):
        time = frame.pts * (frame.time_base or stream.time_base) if frame.pts is not None else None
        if seen.frames == 0:
            seen.start = time or Fraction(0)
            seen.rotation = round(frame.rotation)
        time = seen.last + step * bool(seen.frames) if time is None else time - seen.start
        seen.corrupt += frame.is_corrupt
        seen.add(time, path)
        yield time, frame


def _decoded(container: Any, stream: Any, seen: Seen) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            seen.broken, packet = True, None
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.EOFError:  # nothing more after the end
            return
        except av.error.FFmpegError:
            seen.corrupt += 1
        if packet is None:
            return


def pictures(
    path: Path,
    container: Any,
    stream: Any,
    seen: Seen,
    size: Callable[[int, int], tuple[int, int]],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[Fraction, Picture]]:
    """The frames as pictures, upright, of the size that `size` makes of (width, height) of the first, in one step.

    Bilinear; what a frame is shown turned by (phones) is applied.
    """
    reformatter, shape = VideoReformatter(), None
    for time, frame in frames(path, container, stream, seen):
        _check_pixels(path, frame.width, frame.height, max_pixels)
        if shape is None:
            turned = round(frame.rotation) // 90 % 2
            shape = size(*((frame.height, frame.width) if turned else (frame.width, frame.height)))
            _check_pixels(path, *shape, max_pixels)
        yield time, functools.cache(functools.partial(_convert, frame, shape, reformatter))


@functools.cache
def _one_thread() -> dict[str, int]:
    """Scaling small pictures on all cores takes longer; an older PyAV does not, and has no word for it."""
    try:
        VideoReformatter().reformat(av.VideoFrame(16, 16, "rgb24"), 8, 8, threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def _convert(frame: Any, shape: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    turns = round(frame.rotation) // 90 % 4
    width, height = shape[::-1] if turns % 2 else shape
    way = Interpolation.BILINEAR
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation=way, **_one_thread()).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, turns))


def resample(timed: Iterable[tuple[Fraction, Any]], fps: Fraction) -> Iterator[Any]:
    """One item for each 1 / fps seconds.

    The item of time t belongs to slot floor(fps t + 1/2); slot k shows the last item whose slot is <= k, and the last
    slot is that of the last item. This is FFmpeg's filter `fps`, frame by frame. A time that goes back counts as the
    one before.
    """
    held, slot = None, 0
    for time, item in timed:
        now = max(slot, math.floor(fps * time + Fraction(1, 2)))
        if held is not None:
            for _ in range(now - slot):
                yield held
        held, slot = item, now
    if held is not None:
        yield held


def native(timed: Iterable[tuple[Fraction, Any]], seen: Seen, path: Path) -> Iterator[Any]:
    """All items as they are.

    Raises:
      InputError: the frame rate varies, so that an index does not say the time.
    """
    for _, item in timed:
        if seen.vfr:
            what = f"frames are {float(seen.shortest):.3f} to {float(seen.longest):.3f} s apart"
            raise InputError(f"{path}: {what}, so it has no native frame rate: give --fps 25")
        yield item
