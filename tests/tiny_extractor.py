"""A made-up extractor, videos that are made in a moment, and the command with that extractor."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from wsal_jax.video import extractor
from wsal_jax.video.extractor import Extractor, Stream

WIDTH, HEIGHT = 64, 48


def make(weights, streams, clip, crop, flow) -> Extractor:
    """rgb: a random projection of two frames of a clip; flow: the mean difference between two frames."""
    rgb = Stream((1, clip - 2), False, _small, partial(_weights, 1), _apply)
    flow = Stream((0, clip // 2, clip - 1), True, _difference, partial(_weights, 2), _apply)
    chosen = {name: one for name, one in (("rgb", rgb), ("flow", flow)) if name in streams}
    identity = {"name": "tiny", "version": 1, "weights_sha256": {}, "clip": clip, "crop": crop, "flow": None}
    return Extractor(chosen, _size, 2, identity)


def _size(width, height):
    return (16, 12) if width > height else (12, 16)


def _small(image):
    return image[::4, ::4]


def _difference(first, second):
    return np.abs(first.astype(np.float32) - second).mean(axis=2)[::4, ::4] * 100


def _weights(seed):
    return np.random.default_rng(seed).standard_normal(1000).astype(np.float32)


def _apply(params, clips):
    import jax.numpy as jnp

    flat = clips.reshape(len(clips), -1).astype(jnp.float32) / 255
    return jnp.tanh(flat @ params[: flat.shape[1] * 5].reshape(-1, 5) / flat.shape[1])


def register() -> None:
    extractor.EXTRACTORS["tiny"] = make


def encode(
    path: Path,
    times,
    codec="mpeg4",
    size=(WIDTH, HEIGHT),
    time_base=Fraction(1, 1000),
    container="",
    gop=12,
    pixels="yuv420p",
    seed=0,
    **options,
) -> Path:
    """Writes a video of which frame i is shown at times[i] seconds, and is `picture(i)`."""
    import av

    with av.open(str(path), "w", format=container or None, options=options) as output:
        fine = {"qmin": "1", "qmax": "2"} if codec in ("mpeg4", "mpeg2video", "mjpeg") else {}
        stream = output.add_stream(codec, rate=Fraction(1 / time_base).limit_denominator(90_000), options=fine)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 2_000_000
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, size, seed), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = round(time / time_base), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def picture(index, size=(WIDTH, HEIGHT), seed=0):
    """Gray of level 4 * (index % 60), and a reddish square that wanders, so that there is motion."""
    width, height = size
    image = np.full((height, width, 3), 4 * (index % 60), np.uint8)
    left = (5 * index + 7 * seed) % (width - 8)
    image[height // 2 : height // 2 + 8, left : left + 8] = (250, 20 * seed % 200, 10)
    return image


def regular(count, fps=25):
    return [Fraction(i) / Fraction(fps) for i in range(count)]


def main() -> None:
    from wsal_jax import extract

    register()
    extract.main()
