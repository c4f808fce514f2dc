"""Objects in new images, by a trained run: what `wsal_jax.predict` does where the run is one of images.

    python -m wsal_jax.predict photos/ more.jpg 'other/*.png' --run runs/1

Prints `xmin ymin xmax ymax class score` of each image, in pixels. `RUN/predictions/` gets `detections.json` in COCO's
form, with all boxes whatever `--threshold`; `overlays/<image>.jpg`, the map of the most probable class over the image,
with the boxes; and `index.html`, a page of all. They are those of the last call. An image is called by its path below
the folder that is given, or by its name. One that cannot be used is told of, and the others go on; then the exit status
is 1.
"""

import glob
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from wsal_jax import evaluate_images, localizer, localizer_images, plot_images, report_images
from wsal_jax.data.images import find_images
from wsal_jax.files import replace
from wsal_jax.formats.checks import is_plain
from wsal_jax.localizer import Run
from wsal_jax.localizer_images import Object
from wsal_jax.record import Record
from wsal_jax.text import cut
from wsal_jax.types import Boxes, InputError, Meta, Scores, some


class Seen(NamedTuple):
    """An image that was predicted."""

    path: Path
    meta: Meta
    scores: Scores
    found: Boxes


def find(inputs: Sequence[str]) -> dict[str, Path]:
    """Images by id, of files, folders (all below them) and globs. A file that is not there stays in, and fails later.

    Raises:
      InputError: an input gives no image; two images of one id; names that no terminal shows.
    """
    found: dict[str, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            pairs = [(file.relative_to(path).as_posix(), file) for file in find_images(path)]
        elif not path.exists() and glob.has_magic(text):
            pairs = [(Path(one).name, Path(one)) for one in sorted(glob.glob(text, recursive=True))]
            pairs = [(id, file) for id, file in pairs if file.is_file()]
        else:
            pairs = [(path.name, path)]
        if not pairs:
            raise InputError(f"{text}: {'the folder has no images' if path.is_dir() else 'nothing matches'}")
        for id, file in pairs:
            if not is_plain(id):
                raise InputError(f"{str(file)!r} has control characters in its name: rename it")
            if id in found and found[id].resolve() != file.resolve():
                raise InputError(f"{found[id]} and {file} have one name: give them in two calls, or rename one")
            found.setdefault(id, file)
    return found


def table(meta: Meta, listed: Sequence[Object], threshold: float) -> str:
    """The objects of an image as text."""
    heading = f"{meta.id}: {meta.size[0]} x {meta.size[1]}"
    if not listed:
        return f"{heading}, no box with a score of {threshold:g} or more"
    width = max(5, *(len(cut(one.label)) for one in listed))
    lines = ["".join(f"{x:>8.1f}" for x in one[:4]) + f"  {cut(one.label):<{width}}  {one.score:.3f}" for one in listed]
    head = "".join(f"{name:>8}" for name in ("xmin", "ymin", "xmax", "ymax"))
    return "\n".join([heading, f"{head}  {'class':<{width}}  score", *lines])


def overlay(out: Path, picture: Image.Image, one: Seen, classes: Sequence[str]) -> None:
    """Writes the picture under the map of its most probable class, with all boxes."""
    best = int(one.scores.video_score.argmax())
    values = evaluate_images.map_of(one.scores, best, one.meta)
    path = out / "overlays" / f"{one.meta.id}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_images.overlay(picture, values, one.found, classes).save(path, quality=90)


def write_page(run: Run, seen: Mapping[str, Seen], out: Path) -> Path:
    """Leaves one page of all images; returns its path."""
    metas = [one.meta for one in seen.values()]
    data = {**run.data, "command": None, "videos": [{} for _ in metas]}
    kept = Record(data, list(run.data["classes"]), metas, [None] * len(metas))
    scores = {"fused": [one.scores for one in seen.values()]}
    found = {id: one.found for id, one in seen.items()}
    shown = report_images.Run(run.folder, run.trained.config.to_dict(), kept, found, scores)
    return report_images.write([shown], out / "index.html", {id: one.path for id, one in seen.items()})[0]


def predict(run: Run, inputs: Sequence[str], threshold: float, weights: str = "") -> int:
    """Finds, tells and writes the objects of each image; the exit status.

    Raises:
      InputError: what stops all images.
    """
    found = find(inputs)
    extract = localizer_images.make_extractor(run, weights)
    out, classes = run.folder / "predictions", run.data["classes"]
    out.mkdir(exist_ok=True)
    seen, bad = {}, []
    for id, path in found.items():
        try:
            picture, meta = localizer_images.open_image(run, path, id)
            one = Seen(path, meta, *localizer_images.localize(run, localizer.score(run, extract(picture)), meta))
            overlay(out, picture, one, classes)
        except (InputError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            bad.append(id)
            continue
        seen[id] = one
        print(table(meta, localizer_images.objects(one.found, classes, threshold), threshold), flush=True)
    if bad:
        print(f"left out: {some(bad, 10)}", file=sys.stderr, flush=True)
    if seen:
        boxes = [one.found for one in seen.values()]
        content = evaluate_images.to_json(boxes, [one.meta for one in seen.values()], classes)
        replace(out / "detections.json", json.dumps(content))
        print(f"written to {out}")
        if run.trained.config.get("report", True):
            print(f"page: {write_page(run, seen, out)}")
    return 1 if bad else 0
