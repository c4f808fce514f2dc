"""Which videos there are, what is known of them, and the `gt.json` that a feature folder has of it."""

import csv
import glob
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from wsal_jax.files import regular
from wsal_jax.formats.checks import FolderError, Problems, check_id, is_plain, read_json
from wsal_jax.types import InputError
from wsal_jax.video import sidecar

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .3gp .3g2 .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .vob .ogv .ogg .flv .wmv .asf .gif".split()
)


class Job(NamedTuple):
    """One video to extract."""

    id: str
    path: Path
    split: str


def find_videos(inputs: Iterable[str | os.PathLike]) -> dict[str, Path]:
    """Videos by id (the file's name without its ending), sorted, of files, folders (all below them) and globs.

    A file that is not there stays in: it fails as any broken video does, and others go on.

    Raises:
      InputError: an input gives no video; names that are no ids; two videos of one id.
    """
    found: dict[str, set[Path]] = defaultdict(set)
    for text in map(os.fspath, inputs):
        path = Path(text)
        if path.is_dir():
            files = [one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file()]
            where = "the folder has no videos"
        elif not path.exists() and glob.has_magic(text):
            files = [Path(one) for one in glob.glob(text, recursive=True) if Path(one).is_file()]
            where = "nothing matches"
        else:
            files, where = [path], ""
        if not files:
            raise InputError(f"{text}: {where}")
        for file in files:
            found[file.stem].add(file)
    problems = Problems()
    for id, files in found.items():
        check_id(id, "videos", problems)
        if len({file.resolve() for file in files}) > 1:
            names = " and ".join(sorted(map(str, files)))
            problems.add(names, f"have one id, {id!r}: rename one")
    if problems:
        raise InputError("; ".join(problems.lines()))
    return {id: min(found[id]) for id in sorted(found)}


def read_labels(path: Path, videos: dict[str, Path]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """`video,split,label;label`, one video a line: the split and the labels of each, by id.

    A first line `video,split,...` is a heading. A video is named by its file or its id; lines of videos that are not
    among `videos` are left out.

    Raises:
      FolderError: with everything that is wrong.
    """
    ids = {**{file.name: id for id, file in videos.items()}, **{id: id for id in videos}}
    problems, splits, labels = Problems(), {}, {}
    try:
        with open(regular(path), encoding="utf-8-sig", newline="") as file:
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}): write lines of video,split,label;label") from error
    if rows and [cell.lower() for cell in rows[0][1][:2]] == ["video", "split"]:
        rows = rows[1:]
    for number, row in rows:
        where = f"{path.name}: line {number}"
        if not any(row):
            continue
        if len(row) not in (2, 3):
            what = f"has {len(row)} parts, not video,split,label;label"
            problems.add(where, f"{what} (write a name with a comma in double quotes)")
            continue
        name, split, text = row[0].replace("\\", "/").rsplit("/", 1)[-1], row[1].lower(), "".join(row[2:])
        if split not in sidecar.SPLITS:
            problems.add(where, f"split is {row[1]!r}: must be train or test")
        names = [one.strip() for one in text.split(";") if one.strip()]
        if not all(map(is_plain, names)):
            problems.add(where, "has a label with characters that do not print: correct it")
        if (id := ids.get(name)) is None:
            continue
        if id in splits:
            problems.add(where, f"{name!r} is there more than once: keep one line")
        splits[id], labels[id] = split, sorted(set(names))
    if problems:
        raise FolderError(path, problems.lines())
    return splits, labels


def read_annotations(path: Path, videos: dict[str, Path]) -> tuple[dict[str, dict[str, Any]], list[str] | None]:
    """A file in ActivityNet's form: what its database says of each of the videos, by id, and its `classes` if any.

    Only segments and labels are taken; times and lengths come of the videos. `gt.json` is checked when data are built.

    Raises:
      FolderError: it is not such a file.
    """
    problems = Problems()
    content = read_json(path, problems)
    database = content.get("database") if isinstance(content, dict) else None
    if not problems and not isinstance(database, dict):
        problems.add(path.name, 'must be {"database": {<video>: {"annotations": [...]}, ...}}')
    if problems:
        raise FolderError(path, problems.lines())
    keys = ("annotations", "labels", "counts")
    taken = {}
    for id in videos:
        entry = database.get(id, database.get(id.removeprefix("v_")))
        if isinstance(entry, dict):
            taken[id] = {key: entry[key] for key in keys if entry.get(key)}
    return taken, content.get("classes")


class Known(NamedTuple):
    """What the user says of the videos: split by id, entries of gt.json by id, and the classes if they are given."""

    splits: dict[str, str]
    entries: dict[str, dict[str, Any]]
    classes: list[str] | None = None


def known(videos: dict[str, Path], labels: Path | None, annotations: Path | None, split: str | None) -> Known:
    """Reads and checks what is known of videos, before anything is extracted.

    `split` is that of videos that `labels` does not name.

    Raises:
      InputError: a video has no split; labels and annotations differ; a training video has neither, though a file
        was given.
    """
    splits, names = read_labels(labels, videos) if labels else ({}, {})
    entries, classes = read_annotations(annotations, videos) if annotations else ({}, None)
    problems = Problems()
    for id in videos:
        splits.setdefault(id, split or "")
        entry = entries.setdefault(id, {})
        if not splits[id]:
            missing = f"not in {labels.name}: add a line" if labels else "no split is known: give --labels FILE"
            problems.add(repr(id), f"{missing}, or --split train or test for such videos")
        try:
            marked = {one["label"] for one in entry.get("annotations", ())}
        except (TypeError, KeyError):
            marked = set()
            problems.add(repr(id), f'{annotations.name} has annotations that are not {{"segment": ..., "label": ...}}')
        if names.get(id) and marked and set(names[id]) != marked - {"Ambiguous"}:
            what = f"labels are {names[id]} in {labels.name}, {sorted(marked)} in {annotations.name}"
            problems.add(repr(id), f"{what}: make them agree")
        if names.get(id) and not marked:
            entry["labels"] = names[id]
        if splits[id] == "train" and not entry and (labels or annotations):
            problems.add(repr(id), "is a training video without any label: add some, or make it a test video")
    if problems:
        raise InputError("; ".join(problems.lines()))
    return Known(splits, entries, classes)


def write_gt(root: Path, known: Known) -> None:
    """Brings `gt.json` up to date with the sidecars of a folder and what is known of its videos.

    Entries keep what they have besides, and entries of other videos stay, so that a file may be written by hand, by
    several calls, or by the shards of one, each when it ends: they lock it, and each looks again whether a sidecar came
    while it wrote, for file systems that do not lock.

    Raises:
      FolderError: there is a `gt.json` that cannot be read; it is left as it is.
    """
    path = root / "gt.json"
    with _locked(root):
        while True:
            there = list(sidecar.sidecars(root))
            content = _merge(_read_gt(path), there, known)
            text = sidecar.text(content)
            if not path.exists() or path.read_bytes() != text:
                sidecar.replace(path, partial(_put, text))
            if list(sidecar.sidecars(root)) == there:
                return


def _put(text: bytes, file: BinaryIO) -> None:
    file.write(text)


def _read_gt(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    problems = Problems()
    content = read_json(path, problems)
    if not problems and not (isinstance(content, dict) and isinstance(content.get("database"), dict)):
        problems.add(path.name, 'must be {"database": {<video>: {...}}}: correct it, or move it away')
    if problems:
        raise FolderError(path.parent, problems.lines())
    return content


def _merge(content: dict[str, Any], sidecars: list[tuple[str, str, Path]], known: Known) -> dict[str, Any]:
    database = dict(content.get("database", {}))
    for split, id, path in sidecars:
        info = sidecar.read(path)
        if info is None:
            continue
        entry: dict[str, Any] = database[id] if isinstance(database.get(id), dict) else {}
        told = known.entries.get(id, {})
        if told:
            entry = {key: value for key, value in entry.items() if key not in ("annotations", "labels", "counts")}
        times = {key: info[key] for key in ("fps", "feature_stride_frames", "feature_offset_frames", "duration")}
        database[id] = {**entry, "subset": split, **times, "num_features": info["num_features"], **told}
    content = {**content, "database": dict(sorted(database.items()))}
    return {**content, "classes": known.classes} if known.classes else content


@contextmanager
def _locked(root: Path):
    """Holds a lock on a folder as long as this process lives; does nothing where there are no locks."""
    try:
        import fcntl

        root.mkdir(parents=True, exist_ok=True)
        number = os.open(root, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(number)
