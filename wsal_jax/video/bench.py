"""How long each stage of extraction takes: `python -m wsal_jax.bench extract`."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np

from wsal_jax.video import extractor, features, require


class Clock:
    """Adds up wall and processor seconds."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any) -> Any:
            with self():
                return function(*args)

        return timed


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `extract`."""
    parser.add_argument("--extractor", choices=tuple(extractor.EXTRACTORS), default="efficientnet_lite0")
    parser.add_argument("--weights", action="append", default=[], metavar="STREAM=FILE")
    parser.add_argument("--streams", default="rgb,flow")
    parser.add_argument("--flow", choices=tuple(extractor.FLOWS))
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--video", type=Path, help="by default, 10 s of 320 x 240 pixels are made")


def extract(args: argparse.Namespace) -> None:
    """Decoding, flow and networks of --extractor, per second of --video (by default a made-up one).

    One process does one after the other, as with `--workers 1`, but without overlap. "share" is what the operations in
    the products and convolutions of a network are of those that a plain large product does in the same time. "cpu" is
    the time of all cores together.
    """
    require()
    import jax

    from wsal_jax.bench import product_rate

    weights = dict(text.split("=", 1) for text in args.weights)
    made = extractor.make(args.extractor, weights, args.streams.split(","), flow=args.flow)
    options = features.Options(stride=args.stride, batch=features.default_batch())
    host, clocks = Clock(), {name: Clock() for name, stream in made.streams.items() if stream.pair}
    streams = {
        name: stream._replace(prepare=clocks[name].around(stream.prepare)) if name in clocks else stream
        for name, stream in made.streams.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = args.video or make_video(Path(folder) / "made.mp4")
        with host():
            *batches, info = cast(list[Any], features.prepare(path, made._replace(streams=streams), options))
    seconds = info["duration"]
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {made.identity['name']}, {info['video']}:")
    print(f"{seconds:.1f} s, {info['num_features']} snippets, batches of {options.batch}; per second of video:")
    print(f"{'stage':<28} {'wall ms':>9} {'cpu ms':>9} {'GFLOP':>7} {'share':>6}")
    total = [0.0, 0.0]

    def row(name: str, wall: float, cpu: float, more: str = "") -> None:
        total[:] = total[0] + wall, total[1] + cpu
        print(f"{name:<28} {1e3 * wall / seconds:>9.1f} {1e3 * cpu / seconds:>9.1f} {more}", flush=True)

    flow = [sum(getattr(clock, kind) for clock in clocks.values()) for kind in ("wall", "cpu")]
    row("decode, resample, resize", host.wall - flow[0], host.cpu - flow[1])
    for name, clock in clocks.items():
        row(f"{made.identity['flow']} for {name}", clock.wall, clock.cpu)
    rate = product_rate()
    for name, stream in made.streams.items():
        clock, operations = time_network(stream, [batch.clips[name] for batch in batches], options.batch)
        share = operations / clock.wall / rate
        row(f"network for {name}", clock.wall, clock.cpu, f"{operations / seconds / 1e9:>7.2f} {share:>6.0%}")
    wall, cpu = total
    row("total", wall, cpu)
    print(f"{seconds / wall:.1f} times real time")


def time_network(stream: extractor.Stream, batches: list[np.ndarray], size: int) -> tuple[Clock, int]:
    """Time of all batches, filled up to one size, without compiling; and the operations of all."""
    import jax

    from wsal_jax.bench import product_operations

    filled = [np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) for x in batches]
    params = jax.device_put(stream.load())
    compiled = jax.jit(stream.apply).lower(params, filled[0]).compile()
    jax.block_until_ready(compiled(params, filled[0]))
    clock = Clock()
    with clock():
        for batch in filled:
            jax.block_until_ready(compiled(params, batch))
    return clock, product_operations(jax.make_jaxpr(stream.apply)(params, filled[0])) * len(filled)


def make_video(path: Path, seconds: int = 10, width: int = 320, height: int = 240) -> Path:
    """Writes a video of 25 frames a second in which a random texture moves."""
    import av

    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    texture = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(width, height).to_ndarray(format="rgb24")
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(25 * seconds):
            image = np.roll(texture, (2 * i, i), (0, 1))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
