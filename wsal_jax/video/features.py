"""The features of one video: `extract_video`, and its two halves, on the host and on the device."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wsal_jax.types import InputError
from wsal_jax.video import sidecar
from wsal_jax.video.extractor import Extractor

MAX_PIXELS = 4096 * 2304


class Options(NamedTuple):
    """How videos are read, beside the extractor."""

    fps: Fraction | None = Fraction(25)
    """Frames per second that a video is resampled to; None: its own, which must be constant."""
    stride: int = 16
    """Frames from one clip to the next."""
    tail: str = "drop"
    """`clips.Grid`."""
    max_pixels: int = MAX_PIXELS
    """A video with more per frame is refused."""
    batch: int = 4
    """Clips that the networks are given at once; fewer are filled up, so that each compiles once."""

    def record(self) -> dict[str, Any]:
        """What of it decides the features, as a sidecar has it."""
        fps = "native" if self.fps is None else float(self.fps)
        return {"resampled_to": fps, "feature_stride_frames": self.stride, "tail": self.tail}


class Batch(NamedTuple):
    """Clips on the way to the device."""

    clips: dict[str, np.ndarray]
    """[b f ...] by stream."""
    frames: int
    """How many frames of the video are read, after resampling."""
    expected: float
    """How many there will be; NaN where it is not known."""


Run = Callable[[dict[str, np.ndarray]], dict[str, Any]]
"""Clips [b f ...] by stream -> features [b d] by stream, which may still be being computed."""


def prepare(path: Path, extractor: Extractor, options: Options) -> Iterator[Batch | dict[str, Any]]:
    """What the host does: the video as batches of clips and, after the last, its sidecar without the dimensions.

    Raises:
      InputError: the file is not a video that can be used; the message names it.
    """
    from wsal_jax.video import clips, decode

    grid = clips.Grid(extractor.identity["clip"], options.stride, options.tail)
    frames = 0
    with decode.opened(path, options.max_pixels) as (container, stream, seen):
        state = path.stat()
        timed = decode.pictures(path, container, stream, seen, extractor.size, options.max_pixels)
        fps = stream.average_rate if options.fps is None else options.fps
        expected = seen.stated * float(fps or math.nan)

        def counted() -> Iterator[decode.Picture]:
            nonlocal frames
            regular = decode.native(timed, seen, path) if options.fps is None else decode.resample(timed, options.fps)
            for picture in regular:
                frames += 1
                yield picture

        for batch in clips.batched(clips.cut(counted(), extractor.streams, grid), options.batch):
            yield Batch(batch, frames, expected)
    count = clips.count(frames, grid)
    if not seen.frames:
        raise InputError(f"{path}: is damaged: no frame of it can be decoded")
    if count == 0 or frames < extractor.min_frames or (options.fps is None and frames == 1):
        what = f"has {frames} frames{'' if options.fps is None else f' at {float(options.fps):g} fps'}"
        hint = "; --tail repeat fills up the last clip" if options.tail == "drop" else ""
        at_least = max(extractor.min_frames, grid.clip if options.tail != "repeat" else 2)
        raise InputError(f"{path}: {what}, and must have {at_least} or more{hint}")
    digest = sidecar.digest(path)
    if (path.stat().st_size, path.stat().st_mtime_ns) != (state.st_size, state.st_mtime_ns):
        raise InputError(f"{path}: was changed while it was read: extract it again")
    fps = seen.fps if options.fps is None else float(options.fps)
    yield {
        "video": path.name,
        "bytes": state.st_size,
        "modified": state.st_mtime_ns,
        "sha256": digest,
        "fps": fps,
        "source_fps": None if math.isnan(seen.fps) else round(seen.fps, 4),
        "source_frames": seen.frames,
        "vfr": seen.vfr,
        "frames": frames,
        "duration": frames / fps,
        "feature_offset_frames": grid.clip / 2,
        "num_features": count,
        "truncated": seen.truncated,
        "stated_duration": None if math.isnan(seen.stated) else round(seen.stated, 3),
        "corrupt_frames": seen.corrupt,
        "rotation": seen.rotation,
        **options.record(),
        "extractor": extractor.identity,
        "software": software(),
    }


def software() -> dict[str, str]:
    """Versions of what makes features."""
    import av
    import cv2

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"][:2]))
    ours = {"wsal_jax": installed("wsal_jax"), "jax": installed("jax")}
    return {**ours, "av": av.__version__, "ffmpeg": ffmpeg, "opencv": cv2.__version__}


def default_batch() -> int:
    """Clips at once: few on a processor, where filling up is work; many on accelerators."""
    import jax

    devices = len(jax.devices())
    return 4 if jax.default_backend() == "cpu" and devices == 1 else max(16, devices)


def make_run(extractor: Extractor, batch: int) -> Run:
    """Loads the networks. Clips are split over all devices; while one batch is computed, the next may be prepared.

    Raises:
      InputError: the weights are not there, or not those of this network.
    """
    import jax

    from wsal_jax import sharding

    mesh = sharding.make_mesh()
    padded = math.ceil(batch / mesh.size) * mesh.size
    params = {name: sharding.replicate(mesh, stream.load()) for name, stream in extractor.streams.items()}
    apply = {name: jax.jit(stream.apply) for name, stream in extractor.streams.items()}
    running: list[Any] = []

    def run(clips: dict[str, np.ndarray]) -> dict[str, Any]:
        features = {}
        for name, values in clips.items():
            filled = np.zeros((padded, *values.shape[1:]), values.dtype)
            filled[: len(values)] = values
            features[name] = apply[name](params[name], jax.device_put(filled, sharding.split(mesh, 0)))
        jax.block_until_ready(running)  # or clips would pile up on the device
        running[:] = features.values()
        return features

    return run


class Gather:
    """Collects the features of one video while its batches come."""

    def __init__(self, run: Run):
        self._run = run
        self._parts: list[tuple[int, dict[str, Any]]] = []

    def add(self, batch: Batch) -> None:
        """Runs the networks on a batch."""
        count = len(next(iter(batch.clips.values())))
        features = self._run(batch.clips)
        if self._parts:  # of earlier batches only the features stay
            before, values = self._parts[-1]
            self._parts[-1] = before, {name: np.asarray(value)[:before] for name, value in values.items()}
        self._parts.append((count, features))

    def finish(self, info: dict[str, Any], path: Path) -> tuple[dict[str, Float[np.ndarray, "n _"]], dict[str, Any]]:
        """All features, and the complete sidecar.

        Raises:
          InputError: some are not finite.
        """
        features = {}
        for name in self._parts[0][1]:
            whole = np.concatenate([np.asarray(values[name])[:count] for count, values in self._parts])
            features[name] = whole.astype(np.float32)[: info["num_features"]]
            if not np.isfinite(features[name]).all():
                raise InputError(f"{path}: its {name} features are not finite: are the weights those of the extractor?")
        return features, {**info, "dims": {name: values.shape[1] for name, values in features.items()}}


def extract_video(
    path: Path, extractor: Extractor, options: Options, run: Run | None = None
) -> tuple[dict[str, Float[np.ndarray, "n _"]], dict[str, Any]]:
    """The features of a video by stream, and what its sidecar says, in memory.

    `run` (`make_run`) is for more videos than one, whose networks are loaded once.

    Raises:
      InputError: the file is not a video that can be used, or the weights are not there. A truncated or damaged video
        is used as far as it goes: see `truncated` and `corrupt_frames` of the sidecar.
    """
    gather = Gather(run or make_run(extractor, options.batch))
    for message in prepare(Path(path), extractor, options):
        if isinstance(message, Batch):
            gather.add(message)
    return gather.finish(message, path)


def warnings(info: dict[str, Any]) -> list[str]:
    """What a user should know of a video that was used although something is wrong with it."""
    found = []
    if info["truncated"]:
        stated = info["stated_duration"]
        of = "" if stated is None else f" of {stated:.1f} s"
        found.append(f"is truncated: {info['duration']:.1f}{of} could be read")
    if info["corrupt_frames"] > 0.01 * info["source_frames"]:
        found.append(f"{info['corrupt_frames']} of {info['source_frames']} frames are damaged")
    return found
