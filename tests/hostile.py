"""Every reader of users' files with files that are valid, and the ways to spoil them; see test_hostile.py."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests import layouts
from tests.foreign import small_files
from tests.image_files import picture, write
from tests.test_cub200 import unpacked, wsol
from tests.test_feature_folder import features, ground_truth, save
from tests.test_import_checkpoint import weights, write_bundle
from tests.test_labelled_formats import CLASSES, made
from tests.test_submissions import FORMS
from wsal_jax import import_labels, record, selection
from wsal_jax.data import benchmark, clips, cub200, feature_folder, image_folder, images, thumos14
from wsal_jax.formats import arrays, elan, fiftyone, label_studio, submissions, tensorflow_checkpoint, via
from wsal_jax.formats.checks import FolderError, Problems
from wsal_jax.types import Annotation, InputError, Meta, Scores
from wsal_jax.video import labels, sidecar


class Reader(NamedTuple):
    make: Callable[[Path], Any]
    """Writes valid files to a folder."""
    read: Callable[[Path], Any]
    """Reads that folder."""


def one(name: str, content: bytes | str, read: Callable[[Path], Any]) -> Reader:
    """A reader of a single file."""
    content = content if isinstance(content, bytes) else content.encode()
    return Reader(lambda folder: (folder / name).write_bytes(content), lambda folder: read(folder / name))


def told(read: Callable[..., Any], *between: Any) -> Callable[[Path], Any]:
    """`read(path, *between, problems)` with the problems as an InputError."""

    def checked(path: Path) -> Any:
        problems = Problems()
        found = read(path, *between, problems)
        found = list(found) if isinstance(found, Iterator) else found
        if problems:
            raise FolderError(path, problems.lines())
        return found

    return checked


def _feature_folder(root: Path) -> None:
    (root / "gt.json").write_text(json.dumps(ground_truth()))
    for split, videos in (("train", ("-run.1", "jump Ü")), ("test", ("both",))):
        (root / f"split_{split}.txt").write_text("\n".join(videos))
        for video in videos:
            for stream in ("rgb", "flow"):
                save(root / "features" / split / stream / f"{video}.npy", features(video, stream))


def _extracted(root: Path) -> None:
    """With what `extract` says of its features."""
    _feature_folder(root)
    for split, videos in (("train", ("-run.1", "jump Ü")), ("test", ("both",))):
        for video in videos:
            extraction = {"extractor": {"name": "i3d", "sha256": "0"}, "tail": "pad", "feature_stride_frames": 4}
            sidecar.path_of(root, split, video).write_text(json.dumps({"version": 1, "video": video, **extraction}))


def _thumos_text(folder: Path) -> None:
    for name in ("Diving_test", "Billiards_test", "Ambiguous_test"):
        (folder / f"{name}.txt").write_text("video_test_0000004  2.0 3.5\nvideo_test_0001496  1.0 8\n")


def _record(folder: Path) -> None:
    videos = [{**Meta("a", 3, 25.0, 16.0, 8.0, 2.0)._asdict(), "annotations": None, "ambiguous": []}]
    segment = [{"segment": [0.5, 1.5], "label": "run"}]
    videos += [{**Meta("b", 2, 25.0, 16.0, 8.0, 2.0)._asdict(), "annotations": segment, "ambiguous": [[0, 1]]}]
    content = {"version": 1, "classes": ["jump", "run"], "fusion": [1.0], "videos": videos, "streams": ["rgb"]}
    (folder / "data.json").write_text(json.dumps(content))
    scores = [Scores(np.ones(2), np.ones((n, 2)), np.ones(n)) for n in (3, 2)]
    record.write_scores(folder, {"rgb": scores})


def _read_record(folder: Path) -> Any:
    found = record.read(folder)
    assert all(isinstance(x, Annotation | None) for x in found.annotations)
    return record.read_scores(folder, found)


def _w_talc(folder: Path) -> None:
    layouts.w_talc(folder)


def _read_picture(path: Path) -> Any:
    try:
        return images.open_image(path, 10_000)
    except ValueError as error:  # which its callers collect, by file
        raise InputError(f"{path}: {error}") from error


def _coco() -> str:
    boxes = [{"id": i, "image_id": i % 2, "category_id": 1, "bbox": [1, 2, "3", 4.5]} for i in range(3)]
    pictures = [{"id": i, "file_name": f"train/{i}.png"} for i in range(2)]
    return json.dumps({"images": pictures, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]})


def _readers() -> Iterator[tuple[str, Reader]]:
    for i, (suffix, content) in enumerate(small_files()):
        yield f"array {i} {suffix}", one(f"x{suffix}", content, arrays.read)
    for name in ("d.json", "a.jsonl", "b.ndjson", "a.csv", "any.csv", "tabs.tsv"):
        yield f"submission {name}", one(name, FORMS[name], submissions.read)
    yield "submission d.json.gz", one("d.json.gz", gzip.compress(FORMS["d.json"].encode()), submissions.read)
    yield "submission x.txt", one("x.txt", "a 1.5 4.0 7 0.75\nb 0 2.25 1 1e-3\n", submissions.read)
    truth = layouts.database({"train": "training", "test": "validation"}, duration=12.8, fps=25)
    yield "truth json", one("gt.json", json.dumps(truth), selection.read_truth)
    yield "truth folder of texts", Reader(_thumos_text, selection.read_truth)
    there = {"domain": "dog", "match": [1, 0, -1], "clip_frames": [[0, 100], [50, 150.0], [100, 200]]}
    yield (
        "clips",
        Reader(
            lambda folder: (folder / "clips.json").write_text(json.dumps({"a": there, "b": there})),
            lambda folder: clips.read(folder, ["cat", "dog"]),
        ),
    )
    for module, name in ((via, "truth.json"), (elan, "truth"), (fiftyone, "truth"), (label_studio, "truth.json")):
        yield (
            f"labelled {module.__name__.rpartition('.')[2]}",
            Reader(
                lambda folder, module=module: module.write(
                    [x._replace(segments=x.segments[:2]) for x in made(False)[:2]], CLASSES, folder, "truth"
                ),
                lambda folder, name=name: import_labels.read([folder / name], None, 25.0),
            ),
        )
    yield (
        "tensorflow",
        Reader(
            lambda folder: write_bundle(folder / "model", weights("stpn", 3, 2, 2), 1),
            lambda folder: tensorflow_checkpoint.read(folder / "model"),
        ),
    )
    boxes = "split,file,class,xmin,ymin,xmax,ymax\ntrain,a.png,cat,0,1,20,21\ntest,b.png,dog,0,0,9,9\n"
    yield "images boxes.csv", one("boxes.csv", boxes, told(image_folder.read_csv))
    yield "images boxes.json", one("boxes.json", _coco(), told(image_folder.read_coco))
    yield "images classes.csv", one("classes.csv", "n01,cat\nn02,dog\n", told(image_folder.read_classes))
    for suffix in ("png", "jpg"):
        yield (
            f"picture {suffix}",
            Reader(
                lambda folder, suffix=suffix: write(folder / f"x.{suffix}", picture()),
                lambda folder, suffix=suffix: _read_picture(folder / f"x.{suffix}"),
            ),
        )
    yield (
        "cub lists",
        Reader(lambda folder: unpacked(folder / "cub"), lambda folder: told(cub200.list_cub)(folder / "cub")),
    )
    yield (
        "wsol lists",
        Reader(
            lambda folder: (unpacked(folder / "cub"), wsol(folder / "lists")),
            lambda folder: told(cub200.list_wsol, folder / "lists", "test")(folder / "cub"),
        ),
    )
    rows = 'video,split,labels\na.mp4,train,run;jump\n"b, c",test,run\n'
    yield (
        "labels.csv",
        one("labels.csv", rows, lambda path: labels.read_labels(path, {"a": Path("a.mp4"), "b, c": path})),
    )
    yield "record", Reader(_record, _read_record)
    yield "feature folder", Reader(_feature_folder, feature_folder.check)
    yield "extracted folder", Reader(_extracted, feature_folder.check)
    for name, make in layouts.WRITERS.items():
        yield name, Reader(make, lambda folder: benchmark.check(folder, thumos14.BENCHMARK, benchmark.Options()))


READERS = dict(_readers())

ODD = (
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    2**63,
    0.5,
    float("nan"),
    "",
    "x",
    "1_0",
    "é\n",
    "/",
    [],
    {},
    [[]],
    [None],
    "9" * 400,
)
"""Values to put in the place of others in JSON."""
TOKENS = (
    b"null",
    b"1e999",
    b"-1",
    b"[]",
    b"{",
    b'"',
    b"\0",
    b"NaN",
    b"9" * 30,
    b"\xff\xfe",
    b"\n",
    b",",
    b"[" * 3000,
    b"\x1f\x8b\x08",
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """All values in a tree of JSON, each as its container and the key there."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    below = [place for _, x in pairs if isinstance(x, dict | list) for place in places(x)]
    return [(value, key) for key, _ in pairs] + below


def spoil(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one or a few changes, of bytes or, where it is JSON, of a value."""
    if content[:1] in (b"{", b"[") and rng.random() < 0.6:
        try:
            tree = json.loads(content)
            container, key = (found := places(tree))[rng.integers(len(found))]
            odd = ODD[rng.integers(len(ODD))]
            if isinstance(container, dict) and rng.random() < 0.3:
                container[odd if isinstance(odd, str) else "new"] = container.pop(key)
            else:
                container[key] = odd
            return json.dumps(tree).encode()
        except ValueError:
            pass
    result = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(len(result) + 1)), rng.integers(6)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and at < len(result):
            result[at] = int(rng.integers(256))
        elif kind == 2:
            del result[at:]
        elif kind == 3:
            del result[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            result[at:at] = TOKENS[rng.integers(len(TOKENS))]
        else:
            result[at:at] = result[at : at + int(rng.integers(1, 200))]
    return bytes(result)
