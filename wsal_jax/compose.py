"""Composes untrimmed videos of clips, with exact segments: what the result tables call *composed* data.

    python -m wsal_jax.compose --highlights=DIR --backgrounds=DIR --out=DIR [--context=4] [--seed=0] [--groups=0]

An untrimmed video is background with instances of one or two activities in it. Instances are runs of highlight clips;
background comes from videos of something else. With `--context=K`, up to K clips of the same scene that are no
highlights stand on each side of an instance, which is what confuses an action with its context. Training and test
videos share no source; with `--groups=G`, neither do the training videos of different groups, so that tuning can hold
out recordings (`"group"` in gt.json).

Of the highlights it reads `split_train.txt`, `split_test.txt`, `features/{train,test}/{rgb,flow}/<video>.npy` [T d],
and `clips.json` with `{video: {"domain": activity, "match": [1, 0, -1, ...]}}`: a clip is a highlight, unclear or
none. Of the backgrounds it reads `features/{rgb,flow}/<video>.npy` [T d]. It writes what the dataset `feature_folder`
reads. A clip, and so a snippet, has 50 frames of 25 a second.
"""

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wsal_jax.files import replace
from wsal_jax.formats import numpy_files
from wsal_jax.types import InputError

STREAMS = ("rgb", "flow")
FPS, STRIDE = 25, 50
SECONDS = STRIDE / FPS
"""Of a snippet."""

Features = dict[str, Float[np.ndarray, "t d"]]
"""By stream."""


class Source(NamedTuple):
    """A recording with highlights."""

    features: Path
    """With {} for the stream."""
    runs: list[tuple[int, int]]
    """First clip, and the one after the last, of each run of two or more highlight clips."""
    others: Sequence[int]
    """The clips that are no highlights."""
    length: int
    """How many clips it has."""


Pool = tuple[dict[str, list[Source]], list[Path]]
"""What videos are composed of: the sources of each activity, and the backgrounds (with {} for the stream)."""


@cache
def read(path: str, length: int | None = None) -> Features:
    """The features of a recording, `path` with {} for the stream.

    Raises:
      InputError: a file is not there, is no [T d] of numbers, or has another length than the other's or than `length`.
    """
    features: Features = {}
    for file in map(path.format, STREAMS):
        try:
            x = numpy_files.read_npy(Path(file))
        except (OSError, ValueError, InputError) as error:
            raise InputError(f"{file}: {error}") from error
        length = len(x) if length is None and x.ndim else length
        if x.ndim != 2 or x.dtype.kind not in "fiu" or len(x) != length or not length:
            raise InputError(
                f"{file} has the shape {x.shape} of {x.dtype}: must be numbers [T d], with T = {length} clips"
            )
        features[STREAMS[len(features)]] = x.astype(np.float32)
    return features


def read_pool(highlights: Path, backgrounds: Path, split: str) -> Pool:
    """The sources of a split. Every fifth background, in the order of names, is for test videos.

    Raises:
      InputError: a file is missing or is not what the module says.
    """
    try:
        clips = json.loads((highlights / "clips.json").read_text())
        sources: dict[str, list[Source]] = {}
        for video in (highlights / f"split_{split}.txt").read_text().split():
            match = np.array(clips[video]["match"])
            edges = np.flatnonzero(np.diff(np.r_[0, match > 0, 0].astype(int)))
            runs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]) if b - a >= 2]
            if runs:
                features = highlights / "features" / split / "{}" / f"{video}.npy"
                source = Source(features, runs, np.flatnonzero(match < 0), len(match))
                sources.setdefault(clips[video]["domain"], []).append(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{highlights} has no clips.json and split_{split}.txt as they should be: {error}") from error
    names = sorted(path.name for path in (backgrounds / "features" / STREAMS[0]).glob("*.npy"))
    paths = [backgrounds / "features" / "{}" / x for i, x in enumerate(names) if (i % 5 == 0) == (split == "test")]
    if not sources or not paths:
        raise InputError(f"{highlights if paths else backgrounds} has nothing for the split {split}")
    return dict(sorted(sources.items())), paths


def divide(pool: Pool, count: int) -> list[Pool]:
    """`count` pools that share no recording, each with some of every activity.

    Raises:
      InputError: an activity, or the background, has fewer recordings than that.
    """
    sources, backgrounds = pool
    for name, of in [*sources.items(), ("the background", backgrounds)]:
        if len(of) < count:
            raise InputError(f"--groups={count}: {name} has {len(of)} recordings in the training split")
    return [({name: of[i::count] for name, of in sources.items()}, backgrounds[i::count]) for i in range(count)]


def compose(rng: np.random.Generator, pool: Pool, context: int) -> tuple[Features, list[dict[str, Any]]]:
    """One video: its features [t d] by stream, and its segments as gt.json has them, in seconds.

    Background of 4 to 15 snippets, then two to eight instances of 2 to 12, each followed by background of 4 to 20. One
    video in five has two activities, in turn. The background is one recording, from a random place on and around.
    """
    sources, backgrounds = pool
    activities = rng.choice([*sources], size=2 if rng.random() < 0.2 else 1, replace=False).tolist()
    background = read(str(backgrounds[rng.integers(len(backgrounds))]))
    length = len(background[STREAMS[0]])
    place = int(rng.integers(length))
    parts: list[Features] = []
    segments: list[dict[str, Any]] = []

    def append(features: Features, rows: Any) -> int:
        parts.append({stream: x[rows] for stream, x in features.items()})
        return len(parts[-1][STREAMS[0]])

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    count = draw(4, 16)
    t = append(background, (place + np.arange(count)) % length)
    place += count
    for i in range(draw(2, 9)):
        activity = activities[i % len(activities)]
        source = sources[activity][rng.integers(len(sources[activity]))]
        features = read(str(source.features), source.length)
        first, last = source.runs[rng.integers(len(source.runs))]
        count = min(last - first, draw(2, 13))
        first += draw(0, last - first - count + 1)
        sides = []
        for _ in range(2):
            beside = draw(0, context + 1) if context and len(source.others) else 0
            start = draw(0, max(1, len(source.others) - beside + 1)) if beside else 0
            sides.append(source.others[start : start + beside])
        t += append(features, sides[0])
        segments.append({"label": activity, "segment": [t * SECONDS, (t + count) * SECONDS]})
        t += append(features, slice(first, first + count))
        t += append(features, sides[1])
        count = draw(4, 21)
        t += append(background, (place + np.arange(count)) % length)
        place += count
    return {stream: np.concatenate([part[stream] for part in parts]) for stream in STREAMS}, segments


def write(
    out: Path, highlights: Path, backgrounds: Path, counts: dict[str, int], seed: int, context: int, groups: int
) -> dict[str, Any]:
    """Composes a data set of `counts` videos of each split; returns its gt.json.

    Raises:
      InputError: see `read_pool` and `divide`; or `out` has something in it.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: give a new folder")
    pools = {split: read_pool(highlights, backgrounds, split) for split in counts}
    parts = {split: divide(pool, groups) if groups and split == "train" else [pool] for split, pool in pools.items()}
    database = {}
    for split, count in counts.items():
        rng = np.random.default_rng([seed, split == "test"])
        for i in range(count):
            features, segments = compose(rng, parts[split][i % len(parts[split])], context)
            name = f"composed_{split}_{i:04d}"
            for stream, x in features.items():
                path = out / "features" / split / stream / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, x)
            length = len(features[STREAMS[0]])
            database[name] = {
                "subset": {"train": "training", "test": "validation"}[split],
                "duration": length * SECONDS,
                "fps": float(FPS),
                "feature_stride_frames": STRIDE,
                "feature_offset_frames": STRIDE // 2,
                "num_features": length,
                "labels": sorted({x["label"] for x in segments}),
                "annotations": segments,
            }
            if len(parts[split]) > 1:
                database[name]["group"] = str(i % len(parts[split]))
        (out / f"split_{split}.txt").write_text("".join(f"composed_{split}_{i:04d}\n" for i in range(count)))
    replace(out / "gt.json", json.dumps({"version": "composed", "database": database}))
    return database


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--highlights", type=Path, required=True)
    parser.add_argument("--backgrounds", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--context", type=int, default=0, help="at most so many clips beside an instance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", type=int, default=0, help="of training videos that share no recording")
    parser.add_argument("--train", type=int, default=240, help="videos")
    parser.add_argument("--test", type=int, default=160, help="videos")
    args = parser.parse_args(argv)
    counts = {"train": args.train, "test": args.test}
    try:
        made = write(args.out, args.highlights, args.backgrounds, counts, args.seed, args.context, args.groups)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    total = sum(x["duration"] for x in made.values())
    action = sum(b - a for x in made.values() for a, b in (y["segment"] for y in x["annotations"]))
    print(f"{len(made)} videos, {total / 3600:.1f} h, {action / total:.0%} action, written to {args.out}")


if __name__ == "__main__":
    main()
