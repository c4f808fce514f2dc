"""Actions in new videos, by a trained run: prints `start end class score`, and leaves a folder for each in the run.

    python -m wsal_jax.predict new.mp4 more_videos/ 'other/*.mkv' --run runs/1
    python -m wsal_jax.predict --features new_data/features/test --run runs/1

VIDEOS are files, folders (with all below them) and globs. The run's own extractor makes the features; one that wants
weights is given them by `--weights`, as for training. `--features` takes features instead, laid out as a folder
`features/test` of a feature folder: `{rgb,flow}/<id>.npy`, or joint `<id>.npy`. Beside them `<id>.json`, the sidecar of
extraction or a file of one's own, says `fps`, `feature_stride_frames`, `feature_offset_frames` and `duration`; what it
does not say is as in the run's data. Features of other dimensions, or (by their sidecar) of another extractor, are
refused.

`RUN/predictions/<id>/` gets `detections.json` in ActivityNet's form, with all segments whatever `--threshold`;
`scores.npz` with `<model>/cas` [n c], `<model>/attention` [n], `<model>/video_score` [c] in float16, of each model the
mean of its seeds, and of "fused"; and `video.json`, the file and what turns snippets into seconds. Beside them,
`RUN/predictions/index.html` is a page of the videos of this call (see `wsal_jax.report`), unless the run was trained
with `--config.report=False`. A video that cannot be used is told of, and the others go on; then the exit status is 1.
`wsal_jax.localizer` says how seeds are fused. A run of images finds objects in images: see `wsal_jax.predict_images`.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from wsal_jax import extract, localizer, report
from wsal_jax.data import feature_folder
from wsal_jax.files import replace
from wsal_jax.formats import submissions
from wsal_jax.formats.checks import Problems, check_id
from wsal_jax.localizer import Features, Run, Segment
from wsal_jax.record import Record
from wsal_jax.text import cut
from wsal_jax.types import Detections, InputError, Meta, Scores
from wsal_jax.video import extractor, features, folder, labels, pool, sidecar


class Found(NamedTuple):
    """A video to predict."""

    id: str
    source: Path
    """The video, or the folder of features."""
    result: tuple[Features, dict[str, Any]] | pool.Failure
    """Features and sidecar (empty if there is none)."""


def from_videos(run: Run, inputs: Sequence[str], weights: dict[str, str]) -> Iterator[Found]:
    """Extracts videos, several at once, in the order in which they end.

    Raises:
      InputError: what stops all videos.
    """
    paths = labels.find_videos(inputs)
    ids = {path: id for id, path in paths.items()}
    made, options = localizer.make_extractor(run, weights)
    workers = min(len(ids), os.cpu_count() or 1)
    folder.warn_of_tvl1(list(ids), folder.Target(run.folder, made, options), workers)
    network = features.make_run(made, options.batch)
    for path, result, _ in pool.extract_all(list(ids), made, options, network, workers):
        if not isinstance(result, pool.Failure):
            for line in features.warnings(result[1]):
                print(f"warning: {path}: {line}", file=sys.stderr, flush=True)
        yield Found(ids[path], path, result)


def from_features(run: Run, root: Path) -> Iterator[Found]:
    """Reads features that are there, in the order of their ids.

    Raises:
      InputError: there are none.
    """
    files = feature_folder.find_files(root, "")
    if not files:
        raise InputError(f"{root}: no features found: looked for rgb/*.npy, flow/*.npy and *.npy")
    wanted = (run.data["extraction"] or {}).get("extractor")
    for id in sorted(files):
        try:
            check_id(id, str(root), problems := Problems())
            if problems:
                raise InputError(problems.lines()[0])
            path = root / f"{id}.json"
            info = sidecar.read(path) if path.exists() else {}
            if info is None:
                raise InputError(f"{path.name} is no JSON object: correct it, or remove it")
            if wanted is not None and isinstance(info.get("extractor"), dict):
                extractor.check_same(info["extractor"], wanted, run.streams)
            kinds = {kind: file for kind, file in files[id].items() if kind == "joint" or kind in run.streams}
            yield Found(id, root, (feature_folder.read_video(root, kinds), info))
        except (InputError, OSError) as error:
            yield Found(id, root, pool.Failure(pool.reason(error)))


def write(run: Run, one: Found, meta: Meta, scores: dict[str, Scores], found: Detections) -> Path:
    """Leaves what is known of a video in the run; the detections last. Returns the folder."""
    out = run.folder / "predictions" / one.id
    out.mkdir(parents=True, exist_ok=True)
    kept = ("cas", "attention", "video_score")
    arrays = {f"{name}/{key}": np.float16(getattr(of, key)) for name, of in scores.items() for key in kept}
    sidecar.replace(out / "scores.npz", lambda file: np.savez(file, **arrays))
    source = str(one.source.absolute()) if one.source.is_file() else None
    replace(out / "video.json", json.dumps({**meta._asdict(), "file": source}, indent=1))
    submission = submissions.to_json({one.id: found}, run.data["classes"])
    replace(out / "detections.json", json.dumps(submission, indent=1))
    return out


def table(name: str, meta: Meta, listed: Sequence[Segment], threshold: float) -> str:
    """The segments of a video as text."""
    heading = f"{name}: {meta.duration:.1f} s, {meta.length} snippets"
    if not listed:
        return f"{heading}, no segment with a score of {threshold:g} or more"
    width = max(5, *(len(cut(one.label)) for one in listed))
    lines = [f"{one.start:>8.2f} {one.end:>8.2f}  {cut(one.label):<{width}}  {one.score:.3f}" for one in listed]
    return "\n".join([heading, f"{'start':>8} {'end':>8}  {'class':<{width}}  score", *lines])


def write_page(run: Run, seen: Mapping[str, tuple[Meta, dict[str, Scores], Detections, Path]]) -> Path:
    """Leaves one page of all videos of this call, by id, as `wsal_jax.report` writes it; returns its path."""
    seen = dict(sorted(seen.items()))  # extraction yields videos in the order in which they end
    metas = [meta for meta, *_ in seen.values()]
    kept = Record({**run.data, "command": None}, list(run.data["classes"]), metas, [None] * len(metas))
    models = next(iter(seen.values()))[1]
    scores = {model: [of[model] for _, of, *_ in seen.values()] for model in models}
    found = {id: of_video for id, (_, _, of_video, _) in seen.items()}
    page = report.Run(run.folder, run.trained.config.to_dict(), kept, found, scores)
    files = {id: source for id, (*_, source) in seen.items() if source.is_file()}
    return report.write([page], run.folder / "predictions" / "index.html", files)[0]


def predict(run: Run, videos: Iterable[Found], threshold: float) -> int:
    """Scores, tells and writes each video, and a page of them all; the exit status."""
    status, seen = 0, {}
    for one in videos:
        name = one.source.name if one.source.is_file() else one.id
        try:
            if isinstance(one.result, pool.Failure):
                raise InputError(one.result.reason)
            values, info = one.result
            scores = localizer.score(run, values)
            meta = localizer.meta_of(one.id, len(values[run.streams[0]]), info, run.data["grid"])
            of_models, found = localizer.localize(run, scores, meta)
            write(run, one, meta, of_models, found)
            seen[one.id] = meta, of_models, found, one.source
            print(table(name, meta, localizer.segments(found, run.data["classes"], threshold), threshold), flush=True)
        except (InputError, OSError) as error:
            reason = pool.reason(error)
            print(f"error: {reason if str(one.source) in reason else f'{name}: {reason}'}", file=sys.stderr, flush=True)
            status = 1
    print(f"written to {run.folder / 'predictions'}")
    if seen and run.trained.config.get("report", True):
        try:
            print(f"page: {write_page(run, seen)}")
        except (InputError, OSError) as error:  # the detections are there all the same
            print(f"error: no page: {pool.reason(error)}", file=sys.stderr, flush=True)
            status = 1
    return status


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m wsal_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEOS", help="files, folders, globs; images, for a run of images")
    add("--run", type=Path, required=True, help="the --workdir of a finished run of wsal_jax.main")
    add("--threshold", type=float, default=0.0, help="the least score that is shown")
    add("--weights", action="append", default=[], metavar="STREAM=FILE", help="for i3d, once for each stream")
    add("--features", type=Path, metavar="FOLDER", help="features instead of videos")
    args = parser.parse_args(argv)
    if bool(args.videos) == bool(args.features):
        parser.error("give videos, or --features FOLDER")
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every step it takes
    try:
        run, weights = localizer.load(args.run), dict(map(extract.pair, args.weights))
        if run.data["map"]:
            from wsal_jax import predict_images  # which needs Matplotlib

            if args.features:
                raise InputError(f"{args.run} is a run of images: give images instead of --features")
            raise SystemExit(predict_images.predict(run, args.videos, args.threshold, weights.get("rgb", "")))
        if args.features:
            videos = from_features(run, args.features)
        else:
            videos = from_videos(run, args.videos, weights)
        status = predict(run, videos, args.threshold)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
