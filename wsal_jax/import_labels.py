"""The command that brings labels of other tools: `python -m wsal_jax.import_labels FILE... --out gt.json`.

FILE is an export of Label Studio (JSON), a project of VIA 3, a file of ELAN or a folder of them, or `labels.json` of
FiftyOne. `--out` is a feature folder's `gt.json`, which keeps all else that is in it, or a `labels.csv` of
`wsal_jax.extract`, which has no times. `docs/report.md` says what is lost on the way.
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsal_jax.formats import elan, fiftyone, label_studio, via
from wsal_jax.formats.checks import FolderError, Problems, read_json
from wsal_jax.formats.labelled import Labelled
from wsal_jax.text import count, told
from wsal_jax.types import InputError

READERS = {"label_studio": label_studio.read, "via": via.read, "elan": elan.read, "fiftyone": fiftyone.read}

SPLITS = ("train", "test")


def recognise(path: Path) -> str:
    """The format of a file or folder, by its name and what is in it.

    Raises:
      InputError: it is none of `READERS`.
    """
    if path.suffix.lower() == ".eaf" or (path.is_dir() and any(path.glob("*.eaf"))):
        return "elan"
    file = path / "labels.json" if path.is_dir() else path
    problems = Problems()
    content = read_json(file, problems)
    if problems:
        raise FolderError(path, problems.lines())
    if isinstance(content, list):
        return "label_studio"
    if isinstance(content, dict) and "metadata" in content and "view" in content:
        return "via"
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        return "fiftyone"
    raise InputError(f"{path}: is not of {', '.join(READERS)}; say which with --format if it is")


def read(paths: Sequence[Path], format: str | None = None, fps: float | None = None) -> dict[str, Labelled]:
    """The labels by video id, of files that may be of several formats.

    Raises:
      InputError: with everything that is wrong; or a video is in two files.
    """
    found: dict[str, Labelled] = {}
    for path in paths:
        problems = Problems()
        of = READERS[format or recognise(path)](path, problems, fps)
        for id in of.keys() & found.keys():
            problems.add(repr(id), "is in another of the files too: keep one")
        if problems:
            raise FolderError(path, problems.lines())
        found |= of
    if not found:
        raise InputError(f"{paths[0]}: no video in it has labels")
    return found


def merge(gt: dict[str, Any], found: dict[str, Labelled]) -> dict[str, Any]:
    """`gt.json` with these annotations in place of those of the same videos; all else stays as it is."""
    database = dict(gt.get("database", {}))
    for id, video in found.items():
        entry = {key: value for key, value in database.get(id, {}).items() if key not in ("labels", "counts")}
        entry["annotations"] = [{"segment": [one.start, one.end], "label": one.label} for one in video.segments]
        database[id] = entry
    result = {**gt, "database": database}
    if isinstance(gt.get("classes"), list):
        new = sorted({one.label for video in found.values() for one in video.segments} - set(gt["classes"]))
        result["classes"] = [*gt["classes"], *new]
    return result


def write(out: Path, found: dict[str, Labelled], split: str) -> None:
    """Writes `out`, whole or not at all.

    Raises:
      InputError: there is a `gt.json` that cannot be read, or an ending that is neither .json nor .csv.
    """
    if out.suffix.lower() == ".json":
        gt: Any = {}
        if out.exists():
            problems = Problems()
            gt = read_json(out, problems)
            if problems or not isinstance(gt, dict) or not isinstance(gt.get("database", {}), dict):
                lines = problems.lines() or [f'{out.name} must be {{"database": {{...}}}}']
                raise FolderError(out.parent, lines)
        text = json.dumps(merge(gt, found), ensure_ascii=False, indent=1)
    elif out.suffix.lower() == ".csv":
        file = io.StringIO()
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["video", "split", "labels"])
        for id, video in found.items():
            labels = sorted({one.label for one in video.segments})
            if bad := [label for label in labels if ";" in label]:
                raise InputError(f"{id!r} has the class {bad[0]!r}: labels.csv has ; between classes; write a gt.json")
            rows.writerow([id, split, ";".join(labels)])
        text = file.getvalue()
    else:
        raise InputError(f"--out {out}: must end in .json, for a gt.json, or in .csv, for a labels.csv")
    aside = out.with_name(f"{out.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(out)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m wsal_jax.import_labels",
        description="Makes a gt.json or labels.csv of what people labelled in other tools.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="an export of the tool, or a folder of ELAN or FiftyOne")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="gt.json, brought up to date if it exists; or labels.csv",
    )
    add("--format", choices=tuple(READERS), help="default: by what is in the files")
    add("--fps", type=float, help="frames a second, of files that count frames and do not say it")
    add("--split", choices=SPLITS, default="train", help="of all videos in a labels.csv (default: train)")
    return result


def run(args: argparse.Namespace) -> None:
    if args.fps is not None and not args.fps > 0:
        raise InputError(f"--fps {args.fps}: must be a positive number of frames a second")
    found = read(args.files, args.format, args.fps)
    write(args.out, found, args.split)
    segments = sum(len(video.segments) for video in found.values())
    print(f"{count(len(found), 'video')} with {count(segments, 'segment')} written to {args.out}")
    if empty := [id for id, video in found.items() if not video.segments]:
        print(f"{count(len(empty), 'video')} without any segment, such as {empty[0]!r}: taken as not labelled")


def main(argv: Sequence[str] | None = None) -> None:
    told(run, parser().parse_args(argv))


if __name__ == "__main__":
    main()
