"""Features of videos: from a folder of files and a list of labels to a folder that models are trained on.

    python -m wsal_jax.extract videos/ --labels labels.csv --out my_data
    python -m wsal_jax.main --config=configs/maan.py:dataset=feature_folder --config.data.root=my_data --workdir=runs/1

VIDEOS are files, folders (with all below them) and globs. A line of `labels.csv` is `video,split,label;label`, such as
`a.mp4,train,jump;run` or `b.mp4,test,`. `--annotations` takes a file in ActivityNet's form with the true segments of
videos, so that detections can be measured.

Videos that are in the folder already, of the same file, extractor and options, are kept, so an interrupted call is
simply repeated. A video that cannot be read is told of, and the others go on; then the exit status is 1, as it is for
truncated videos without `--accept-truncated`. `--shard i/n` does every n-th video, for n machines with one folder.
With `--beam`, a pipeline of Apache Beam does the work, and options that are not ours are Beam's, such as `--runner`.
"""

import argparse
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from wsal_jax.types import InputError
from wsal_jax.video import extractor, features, labels, require

NEXT = (
    "python -m wsal_jax.main --config=configs/maan.py:dataset=feature_folder --config.data.root={} --workdir=runs/new"
)


def run(args: argparse.Namespace, beam_arguments: Sequence[str] = ()) -> int:
    """What the command line says; the exit status.

    Raises:
      InputError: something that stops all videos.
    """
    require()
    from wsal_jax.video import folder

    videos = labels.find_videos(args.videos)
    known = labels.known(videos, args.labels, args.annotations, args.split)
    jobs = [labels.Job(id, path, known.splits[id]) for id, path in videos.items()]
    if args.shard:
        jobs = jobs[args.shard[0] :: args.shard[1]]
    weights = dict(pair(text) for text in args.weights)
    made = extractor.make(args.extractor, weights, args.streams.split(","), args.clip, args.crop, args.flow)
    batch = args.batch or (0 if args.beam else features.default_batch())
    options = features.Options(args.fps, args.stride, args.tail, args.max_pixels, batch)
    target = folder.Target(args.out, made, options, args.verify)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.beam:
        from wsal_jax.video import beam

        outcomes = beam.extract_many(jobs, target, beam_arguments)
    else:
        outcomes = folder.extract_many(jobs, target, args.workers)
    labels.write_gt(args.out, known)
    print(folder.summary(outcomes))
    if any(one.done == "failed" for one in outcomes):
        return 1
    if any(one.truncated for one in outcomes) and not args.accept_truncated:
        print("truncated videos were used as far as they go: say --accept-truncated, or replace them")
        return 1
    print(f"next: {NEXT.format(args.out)}")
    return 0


def pair(text: str) -> tuple[str, str]:
    stream, equals, path = text.partition("=")
    if not equals or stream not in ("rgb", "flow") or not path:
        raise InputError(f"--weights {text}: must be rgb=FILE or flow=FILE")
    return stream, path


def _fps(text: str) -> Fraction | None:
    if text == "native":
        return None
    fps = Fraction(text)
    if not 0 < fps <= 1000:
        raise ValueError
    return fps


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError
    return count


def _shard(text: str) -> tuple[int, int]:
    index, count = map(int, text.split("/"))
    if not 0 <= index < count:
        raise ValueError
    return index, count


_fps.__name__, _count.__name__ = "number, n/d or native", "number of 1 or more"
_shard.__name__ = "i/n with 0 <= i < n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wsal_jax.extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEOS", help="files, folders, globs")
    add("--out", type=Path, required=True, help="the feature folder")
    add("--labels", type=Path, help="lines of video,split,label;label")
    add("--annotations", type=Path, help="a file in ActivityNet's form with true segments")
    add("--split", choices=("train", "test"), help="of videos that --labels does not name")
    add("--extractor", choices=tuple(extractor.EXTRACTORS), default="efficientnet_lite0")
    add("--weights", action="append", default=[], metavar="STREAM=FILE", help="for i3d, once for each stream")
    add("--streams", default="rgb,flow", help="rgb, flow or rgb,flow (default)")
    add("--fps", type=_fps, default=Fraction(25), help="frames per second to resample to (25), or native")
    add("--clip", type=_count, default=16, help="frames of a clip (16)")
    add("--stride", type=_count, default=16, help="frames from one clip to the next (16)")
    add("--crop", choices=extractor.CROPS, help="center (i3d), resize (efficientnet_lite0), or the mean of ten")
    add("--flow", choices=tuple(extractor.FLOWS), help="tvl1 (i3d) or dis (efficientnet_lite0)")
    add(
        "--tail",
        choices=("drop", "repeat", "cmcs"),
        default="drop",
        help="drop or repeat (fill up) what is behind the last whole clip; cmcs drops that clip too",
    )
    add("--workers", type=_count, default=os.cpu_count() or 1, help="processes that decode (number of cores)")
    add("--batch", type=_count, help="clips that a network is given at once (4; 16 or more on accelerators)")
    add("--shard", type=_shard, metavar="I/N", help="do every N-th video, from the I-th; I is 0 to N - 1")
    add("--verify", action="store_true", help="compare the sha256 of videos, not their size and time")
    add("--accept-truncated", action="store_true", help="exit with 0 although videos are truncated")
    add("--max-pixels", type=_count, default=features.MAX_PIXELS, help="of a frame (4096 x 2304)")
    add("--beam", action="store_true", help="run on Apache Beam; options that are not ours are Beam's")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.beam:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        raise SystemExit(run(args, rest))
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
