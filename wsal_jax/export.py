"""The command that gives detections and truth to other tools: `python -m wsal_jax.export RUN --format F[,F...]`.

`docs/report.md` says what each format keeps. The way back, of labels that a person made or corrected, is
`python -m wsal_jax.import_labels`.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wsal_jax import film, record
from wsal_jax.formats import elan, fiftyone, label_studio, submissions, subtitles, tables, via
from wsal_jax.formats.labelled import Labelled, Segment, tidy
from wsal_jax.formats.submissions import Found
from wsal_jax.record import Record
from wsal_jax.text import count, told
from wsal_jax.types import InputError

Write = Callable[[Sequence[Labelled], Sequence[str], Path, str], list[Path]]

FORMATS: dict[str, Write] = {
    "activitynet": tables.write_activitynet,
    "fiftyone": fiftyone.write,
    "label_studio": label_studio.write,
    "via": via.write,
    "elan": elan.write,
    "webvtt": subtitles.write_webvtt,
    "srt": subtitles.write_srt,
    "csv": tables.write_csv,
}


def parse_formats(text: str) -> list[str]:
    """Names with commas between.

    Raises:
      InputError: an unknown one, or none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in FORMATS:
            raise InputError(f"--format {name!r}: there are {', '.join(FORMATS)}")
    if not names:
        raise InputError(f"--format: name one or several of {', '.join(FORMATS)}")
    return names


def gather(
    kept: Record, found: Mapping[str, Found], files: Mapping[str, Path], least: float = -math.inf
) -> dict[str, list[Labelled]]:
    """What there is to write of the videos: "detections", and "truth" of those whose truth is known.

    Detections with a score below `least` are left out.
    """
    detections, truth = [], []
    for meta, annotation in zip(kept.metas, kept.annotations):
        common = dict(file=files.get(meta.id), fps=meta.fps, duration=meta.duration)
        if meta.id in found:
            of = found[meta.id]
            rows = zip(of.segments.tolist(), of.labels, of.scores.tolist())
            segments = [Segment(start, end, label, score) for (start, end), label, score in rows if score >= least]
            detections.append(Labelled(meta.id, tidy(segments, meta.duration), **common))
        if annotation is not None:
            pairs = zip(annotation.segments.tolist(), annotation.labels)
            segments = [Segment(start, end, kept.classes[label]) for (start, end), label in pairs]
            truth.append(Labelled(meta.id, tidy(segments, meta.duration), **common))
    return {name: of for name, of in (("detections", detections), ("truth", truth)) if of}


def write(sets: Mapping[str, Sequence[Labelled]], classes: Sequence[str], formats: Sequence[str], out: Path) -> int:
    """Writes each set in each format into `out/<format>`; returns how many files there are now."""
    paths = set()
    for name in formats:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind, videos in sets.items():
            paths.update(FORMATS[name](videos, classes, folder, kind))
    return len(paths)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m wsal_jax.export",
        description="Writes what a run detected, and the truth where it is known, in the formats of other tools.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run (--workdir of its training)")
    add("--format", required=True, metavar="F,F,...", help=", ".join(FORMATS))
    add("--out", type=Path, metavar="DIR", help="default: RUN/exports")
    add("--videos", type=Path, metavar="FOLDER", help="with video files called by id, which the files then point to")
    add("--score", type=float, default=-math.inf, metavar="S", help="leave out detections with a lower score")
    add("--ids", default="", metavar="ID,ID,...", help="the videos to write (default: all)")
    return result


def run(args: argparse.Namespace) -> None:
    formats = parse_formats(args.format)
    kept = record.read(args.run)
    if kept.metas and kept.metas[0].grid:
        raise InputError(
            f"{args.run} is a run of images: its detections.json is in COCO's form, which other tools read"
        )
    found = submissions.read(args.run / "detections.json")
    ids = {id.strip() for id in args.ids.split(",") if id.strip()}
    if unknown := sorted(ids - {meta.id for meta in kept.metas}):
        raise InputError(f"--ids: the run has no test video {unknown[0]!r}")
    if ids:
        keep = [i for i, meta in enumerate(kept.metas) if meta.id in ids]
        kept = kept._replace(metas=[kept.metas[i] for i in keep], annotations=[kept.annotations[i] for i in keep])
    files = film.find(args.videos, [meta.id for meta in kept.metas]) if args.videos else {}
    out = args.out or args.run / "exports"
    sets = gather(kept, found, files, args.score)
    number = write(sets, kept.classes, formats, out)
    print(f"{count(number, 'file')} of {' and '.join(sets)} written to {out}")
    if "fiftyone" in formats and len(files) < len(kept.metas):
        missing = len(kept.metas) - len(files)
        print(f"fiftyone: {count(missing, 'video')} without a file; put it into data/ as <id>.mp4 before the import")


def main(argv: Sequence[str] | None = None) -> None:
    told(run, parser().parse_args(argv))


if __name__ == "__main__":
    main()
