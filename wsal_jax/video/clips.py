"""Pictures to the clips of a grid: clip j has the frames j * stride to j * stride + clip - 1."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from wsal_jax.video.decode import Picture
from wsal_jax.video.extractor import Stream

TAILS = ("drop", "repeat", "cmcs")


class Grid(NamedTuple):
    """Which clips a video has; in frames."""

    clip: int
    stride: int
    tail: str = "drop"
    """What becomes of frames behind the last whole clip: "drop" them; "repeat" the last frame until they are in one.
    "cmcs" drops them and the last whole clip too, as the published features of CMCS for THUMOS14 do."""


def count(frames: int, grid: Grid) -> int:
    """The number of clips of a video."""
    if grid.tail == "repeat":
        all_in = max(0, math.ceil((frames - grid.clip) / grid.stride)) + 1
        return min(all_in, math.ceil(frames / grid.stride))  # each has a frame of the video
    return max(0, (frames - grid.clip) // grid.stride + 1 - (grid.tail == "cmcs"))


def cut(pictures: Iterable[Picture], streams: dict[str, Stream], grid: Grid) -> Iterator[dict[str, np.ndarray]]:
    """The clips of a video, one after the other: [f ...] of each stream, as its `prepare` made them.

    Keeps the prepared frames of one clip, whatever the length of the video; each frame is prepared once, and only if a
    clip wants it. Behind the last frame the video stands still: a clip that ends with it has no flow there.
    """
    # How many frames must be there before a clip can be made.
    reach = max(grid.clip, *(max(stream.offsets) + 1 + stream.pair for stream in streams.values()))
    kept: dict[str, dict[int, np.ndarray]] = {name: {} for name in streams}
    made = frames = 0
    before: Picture
    picture: Picture

    def wanted(stream: Stream, frame: int) -> bool:
        return any(frame >= offset and (frame - offset) % grid.stride == 0 for offset in stream.offsets)

    def add(index: int) -> None:
        for name, stream in streams.items():
            if not stream.pair and wanted(stream, index):
                kept[name][index] = stream.prepare(picture())
            if stream.pair and index and wanted(stream, index - 1):
                kept[name][index - 1] = stream.prepare(before(), picture())

    def take() -> dict[str, np.ndarray]:
        start = made * grid.stride
        clip = {name: np.stack([kept[name][start + i] for i in stream.offsets]) for name, stream in streams.items()}
        for pieces in kept.values():
            for index in [i for i in pieces if i < start + grid.stride]:
                del pieces[index]
        return clip

    for picture in pictures:
        add(frames)
        frames += 1
        before = picture
        # One clip stays behind where the last is left out.
        if frames >= (made + (grid.tail == "cmcs")) * grid.stride + reach:
            yield take()
            made += 1
    for index in range(frames, frames + reach):
        while made < count(frames, grid) and index >= made * grid.stride + reach:
            yield take()
            made += 1
        if made < count(frames, grid):
            add(index)


def batched(clips: Iterable[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Clips in batches [b f ...] of `size`; the last may be smaller."""
    batch: list[dict[str, np.ndarray]] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == size:
            yield {name: np.stack([one[name] for one in batch]) for name in batch[0]}
            batch = []
    if batch:
        yield {name: np.stack([one[name] for one in batch]) for name in batch[0]}
