"""The command that makes a page of one or several runs: `python -m wsal_jax.report RUN [RUN...]`.

The page is one file that opens in any browser, without a server: the test videos with what is true and what was found,
and the results. `docs/report.md` says how to read it; `wsal_jax.page` is what it is made of.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsal_jax import analyse, film, metrics, page, record
from wsal_jax.formats import submissions
from wsal_jax.formats.checks import FolderError, Problems, read_json
from wsal_jax.record import Record
from wsal_jax.text import count, told
from wsal_jax.types import Annotation, Detections, InputError, Meta, Scores

PART = 20_000_000
"""Characters of data above which a page is continued in another one, so that browsers stay quick."""

FEW = 20
"""Up to so many classes, all have curves."""

LIKELY = 5
"""Of more classes, a video has curves of its true and its detected ones, and of so many that are most likely."""


class Run(NamedTuple):
    """What a run's folder holds."""

    folder: Path
    config: dict[str, Any]
    record: Record
    found: dict[str, Detections]
    scores: dict[str, list[Scores]]


def read(folder: Path) -> Run:
    """Reads a run.

    Raises:
      InputError: it is none, or not over, or a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder: give that of a run (--workdir of its training)")
    kept = record.read(folder)
    if is_of_images(kept):
        raise InputError(f"{folder} is a run of images: its detections.json is in COCO's form, and its page shows them")
    config = read_object(folder / "config.json")
    index = {name: i for i, name in enumerate(kept.classes)}
    found = {}
    for id, of in submissions.read(folder / "detections.json").items():
        unknown = sorted(set(of.labels) - set(index))
        if unknown:
            raise FolderError(folder, [f"detections.json has {unknown[0]!r}, which data.json does not have as a class"])
        labels = np.array([index[label] for label in of.labels], int)
        found[id] = Detections(of.segments.astype(np.float64), labels, of.scores.astype(np.float64))
    return Run(folder, config, kept, found, record.read_scores(folder, kept))


def is_of_images(kept: Record) -> bool:
    """Whether a run is of images, and not of videos."""
    return bool(kept.metas and kept.metas[0].grid)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    problems = Problems()
    content = read_json(path, problems) if path.exists() else {}
    if problems or not isinstance(content, dict):
        raise FolderError(path.parent, problems.lines() or [f"{path.name} must be an object {{...}}"])
    return content


# ---- what the page says of a run


def facts(folder: Path, kept: Record, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry of a run in the page's "runs", before anything is measured."""
    return {
        "name": name,
        "folder": str(folder),
        "command": kept.data.get("command"),
        "config": [[key, _text(value)] for key, value in _flat(config)],
        "results": read_object(folder / "results.json") or None,
        "curves": curves(folder),
        "analysis": None,
        "per_class": None,
        "true_segments": {},
    }


def about_run(run: Run, name: str) -> dict[str, Any]:
    """The entry of a run in the page's "runs"."""
    kept = run.record
    known = {meta.id: a for meta, a in zip(kept.metas, kept.annotations) if a is not None}
    some = any(len(a.labels) for a in known.values())
    found = {id: run.found[id] for id in known if id in run.found}
    durations = {meta.id: meta.duration for meta in kept.metas}
    buckets = "thumos14" if any("video_test_" in id for id in known) else "activitynet"
    about = facts(run.folder, kept, run.config, name)
    if some:
        c, protocol, iou = len(kept.classes), _protocol(run), np.array([middle(_ious(run))])
        errors = analyse.analyse(found, known, c, iou=float(iou[0]), durations=durations, buckets=buckets)
        ap = metrics.detection_map(found, known, c, iou, protocol).ap[0]
        labels = np.concatenate([a.labels for a in known.values()])
        about["analysis"] = analyse.to_json(errors)
        about["per_class"] = {kept.classes[i]: float(ap[i]) for i in np.flatnonzero(~np.isnan(ap))}
        about["true_segments"] = {name: int((labels == i).sum()) for i, name in enumerate(kept.classes)}
    return about


def _protocol(run: Run) -> str:
    protocol = run.config.get("evaluation", {}).get("protocol", "activitynet")
    return protocol if protocol in metrics.PROTOCOLS else "activitynet"


def _ious(run: Run) -> list[float]:
    return list(run.config.get("evaluation", {}).get("ious") or metrics.IOUS)


def middle(ious: Sequence[float]) -> float:
    """The threshold that is nearest to 0.5."""
    return min(ious, key=lambda iou: abs(iou - 0.5))


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in sorted(config.items()):
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def curves(folder: Path) -> list[dict[str, Any]]:
    """The training curves of metrics.jsonl, by model and metric; lines that are damaged are left out."""
    path, found = folder / "metrics.jsonl", {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            one = json.loads(line)
            model, step = one.pop("model"), one.pop("step")
            values = {name: [float(x) for x in of] for name, of in one.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, of in values.items():
            if not name.endswith("first_loss"):  # the value of one step, for a warning
                found.setdefault((model, name), {})[step] = of  # of steps trained twice, the last
    result = []
    for (model, name), steps in found.items():
        seeds = len(next(iter(steps.values())))
        at = [step for step in sorted(steps) if len(steps[step]) == seeds]
        at = [at[i] for i in np.unique(np.linspace(0, len(at) - 1, min(len(at), 300)).astype(int))]
        result.append({"model": model, "metric": name, "steps": at, "values": [steps[step] for step in at]})
    return result


# ---- what it says of a video


class Media(NamedTuple):
    """Where the videos are, and what the page has of them."""

    files: dict[str, Path]
    """By id."""
    embed: bool
    page: Path
    """Where the page will be."""


def about_video(
    id: str,
    runs: Sequence[Run],
    places: Sequence[dict[str, int]],
    classes: Mapping[str, int],
    media: Media,
    pictures: int,
) -> dict[str, Any]:
    """The entry of a video in the page's "videos"; `places` has the index of each run's videos."""
    owner = next(r for r, place in enumerate(places) if id in place)
    meta = runs[owner].record.metas[places[owner][id]]
    truth: list[list[Any]] | None = None
    for run, place in zip(runs, places):
        annotation = run.record.annotations[place[id]] if id in place else None
        if annotation is not None:
            truth = _segments(annotation, _renumbered(run, classes))
            break
    strip = None
    if file := media.files.get(id):
        strip = film.strip(file, meta.duration, pictures)
    return {
        **meta._asdict(),
        "file": film.address(file, media.page, media.embed) if file else None,
        "strip": strip,
        "truth": truth,
        "runs": [_of_run(run, place.get(id), id, meta, classes) for run, place in zip(runs, places)],
    }


def _renumbered(run: Run, classes: Mapping[str, int]) -> np.ndarray:
    return np.array([classes[name] for name in run.record.classes], int)


def _segments(of: Annotation | Detections, labels: np.ndarray) -> list[list[Any]]:
    rows = zip(of.segments.round(4).tolist(), labels[of.labels].tolist())
    return [[start, end, label] for (start, end), label in rows]


def _of_run(run: Run, at: int | None, id: str, meta: Meta, classes: Mapping[str, int]) -> dict[str, Any] | None:
    if at is None:
        return None
    nothing = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    found, labels = run.found.get(id, nothing), _renumbered(run, classes)
    rows = [[*row, float(f"{score:.5g}")] for row, score in zip(_segments(found, labels), found.scores.tolist())]
    if not run.scores or run.record.metas[at].length != meta.length:
        return {"found": rows, "scores": None}
    of = {model: scores[at] for model, scores in run.scores.items()}
    chosen = shown_classes(of, found, run.record.annotations[at], len(run.record.classes))
    kept = page.curves(of, chosen)
    kept["classes"] = labels[chosen].tolist()
    return {"found": rows, "scores": kept}


def shown_classes(
    scores: Mapping[str, Scores], found: Detections, truth: Annotation | None, num_classes: int
) -> list[int]:
    """The classes that have curves: all where they are few; else the true, the detected and the most likely ones."""
    if num_classes <= FEW:
        return list(range(num_classes))
    final = list(scores.values())[-1].video_score
    likely = np.argsort(-np.asarray(final, np.float32), kind="stable")[:LIKELY]
    return sorted({*(truth.labels.tolist() if truth else ()), *found.labels.tolist(), *likely.tolist()})


# ---- the page


def write(
    runs: Sequence[Run],
    out: Path,
    videos: Path | Mapping[str, Path] | None = None,
    embed: bool = False,
    ids: Sequence[str] = (),
    part: int = PART,
) -> list[Path]:
    """Writes the page of some runs, and further ones where one would be too large; returns their paths.

    Args:
      out: the HTML file; further pages are called `<name>-2.html` and so on.
      videos: a folder with video files called by id, or the files by id; they are linked to, and give film strips.
      embed: put the video files into the page.
      ids: the videos to show; empty means all.
      part: characters of data for a page.

    Raises:
      InputError: an id that no run has; videos that cannot be read.
    """
    places = [{meta.id: i for i, meta in enumerate(run.record.metas)} for run in runs]
    known = list(dict.fromkeys(id for place in places for id in place))
    if unknown := [id for id in ids if id not in known]:
        raise InputError(f"--ids: no run has a test video {unknown[0]!r}; such as {', '.join(known[:3])}")
    chosen = [id for id in known if id in ids] if ids else known
    classes = {name: i for i, name in enumerate(dict.fromkeys(name for run in runs for name in run.record.classes))}
    names = short_names([run.folder for run in runs])
    files_of = film.find(videos, chosen) if isinstance(videos, Path) else dict(videos or {})
    media = Media(files_of, embed, out)
    pictures = max(12, min(film.MOST, 6000 // max(len(media.files), 1)))
    parts: list[list[str]] = [[]]
    where, size = {}, 0
    for id in chosen:
        one = page.numbers(about_video(id, runs, places, classes, media, pictures))
        text = json.dumps(one, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if size + len(text) > part and parts[-1]:
            parts.append([])
            size = 0
        size += len(text)
        parts[-1].append(text)
        where[id] = len(parts) - 1
    ious = _ious(runs[0])
    common = {
        **heading(names),
        "classes": list(classes),
        "ious": sorted({*ious, 0.5}),
        "iou": middle([*ious, 0.5]),
        "runs": [about_run(run, name) for run, name in zip(runs, names)],
    }
    return write_parts(common, parts, out, "videos", where)


def heading(names: Sequence[str]) -> dict[str, Any]:
    """What a page is called, and by what and when it was made."""
    made = f"Written by wsal_jax {metadata.version('wsal_jax')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    return {"title": " against ".join(names), "made": made}


def write_parts(
    common: Mapping[str, Any],
    parts: Sequence[Sequence[str]],
    out: Path,
    kind: str,
    where: Mapping[str, int] | None = None,
) -> list[Path]:
    """Writes a page for each part, which link to each other; returns their paths.

    Args:
      common: the data of all pages.
      parts: the videos or images of each, as JSON.
      out: the first page; see `write`.
      kind: "videos" or "images".
      where: the page of each video, to be listed elsewhere; without, the pages are.
    """
    files = [out if i == 0 else out.with_name(f"{out.stem}-{i + 1}{out.suffix}") for i in range(len(parts))]
    where = {f"page {i + 1}": i for i in range(len(parts))} if where is None else where
    out.parent.mkdir(parents=True, exist_ok=True)
    for i, (file, texts) in enumerate(zip(files, parts)):
        elsewhere = [[id, files[at].name] for id, at in where.items() if at != i]
        html = page.render(page.numbers({**common, "elsewhere": elsewhere}), texts, kind)
        aside = file.with_name(f"{file.name}.new")
        aside.write_text(html, encoding="utf-8")
        aside.replace(file)
    return files


def short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; where two have the same, with those above, as far as it takes."""
    absolute = [Path(os.path.abspath(folder)) for folder in folders]
    for depth in range(1, max(len(path.parts) for path in absolute) + 1):
        names = ["/".join(path.parts[-depth:]) for path in absolute]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({i + 1})" for i, path in enumerate(absolute)]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m wsal_jax.report",
        description="Writes a page to look at a run, or to compare several: RUN/report/index.html.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (--workdir of its training)")
    add("--out", type=Path, metavar="FILE", help="default: report/index.html, of several runs report/compare.html")
    videos = "with video files called by id; their film strips are embedded (of images: where they are now)"
    add("--videos", type=Path, metavar="FOLDER", help=videos)
    add("--embed", action="store_true", help="put the video files into the page too")
    add("--ids", default="", metavar="ID,ID,...", help="the videos to show (default: all)")
    return result


def run(args: argparse.Namespace) -> None:
    if args.embed and not args.videos:
        raise InputError("--embed puts video files into the page: say with --videos FOLDER where they are")
    if args.out and args.out.is_dir():
        raise InputError(f"--out {args.out}: is a folder; give the name of a file, such as {args.out / 'index.html'}")
    out = args.out or args.runs[0] / "report" / ("index.html" if len(args.runs) == 1 else "compare.html")
    ids = list(dict.fromkeys(id.strip() for id in args.ids.split(",") if id.strip()))
    images = [folder.is_dir() and is_of_images(record.read(folder)) for folder in args.runs]
    if all(images):
        from wsal_jax import report_images  # which needs this module

        of_images = [report_images.read(folder) for folder in args.runs]
        files = report_images.write(of_images, out, report_images.pictures(of_images, args.videos), ids)
    else:
        runs = [read(folder) for folder in args.runs]
        files = write(runs, out, args.videos, args.embed, ids)
    size = sum(file.stat().st_size for file in files) / 1e6
    pages = f", in {count(len(files), 'page')}" if len(files) > 1 else ""
    print(f"written: {files[0]} ({size:.1f} MB{pages})")


def main(argv: Sequence[str] | None = None) -> None:
    told(run, parser().parse_args(argv))


if __name__ == "__main__":
    main()
