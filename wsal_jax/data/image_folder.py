"""TFDS builder for a folder of your own images.

```
ROOT/train/<class>/*.jpg     images by class; or right in train/, with their classes in boxes.csv or boxes.json
ROOT/test/<class>/*.jpg      the images that are measured
ROOT/boxes.csv               optional: boxes, for measuring
ROOT/boxes.json              or this, in COCO's form
ROOT/classes.csv             optional: class, name; sets the order of the classes, and names for people to read
```
`boxes.csv` has a header with `file` and, in any order, `class`, `xmin`, `ymin`, `xmax`, `ymax`; `split` is optional,
as is `class` where folders have it. `file` is the path below ROOT, below the split, or the name alone where no other
image has it. A line without numbers gives the image a class and no box. An image may have several lines, of several
classes; it has all these and that of its folder.

`boxes.json` is `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id", "bbox": [x, y, width,
height]}], "categories": [{"id", "name"}]}`.

Boxes are pixels of the upright image, from edge to edge; `inclusive` says otherwise of boxes.csv. Those of training
images serve one floor, the mean training box, and nothing else. Everything that is wrong with a folder is found
before anything is built, and told at once.
"""

import csv
import io
import os
import reprlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from wsal_jax.data.builder import SPLITS
from wsal_jax.data.images import Box, ImageBuilder, Listed, Listing, find_images
from wsal_jax.formats.checks import Problems, number, read_json, read_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")

Line = tuple[str, str, str, tuple[Any, ...] | None]
"""Where it stands, for messages; file, with its split if that is known; class, "" for that of the folder; the
corners."""


def read_table(path: Path, needed: tuple[str, ...], problems: Problems) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with where it stands; none where the file is of no use."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        rows = [(f"{path.name}, line {reader.line_num}", row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        problems.add(path.name, f"cannot be read as CSV ({error}): write it again")
        return []
    if missing := [name for name in needed if name not in names]:
        problems.add(path.name, f"has no column {', '.join(missing)}: give a header {','.join(needed)}")
        return []
    return [
        (where, {name: (x or "").strip() for name, x in row.items() if isinstance(name, str)}) for where, row in rows
    ]


def read_csv(path: Path, problems: Problems) -> list[Line]:
    """The lines of `boxes.csv`."""
    lines = []
    for where, row in read_table(path, ("file", *CORNERS), problems):
        file = f"{row['split']}/{row['file']}" if row.get("split") else row["file"]
        corners = tuple(row[name] for name in CORNERS)
        lines.append((where, file, row.get("class", ""), corners if any(corners) else None))
    return lines


def read_coco(path: Path, problems: Problems) -> list[Line]:
    """The annotations of `boxes.json`; widths and heights become corners."""
    content = read_json(path, problems)
    parts = [
        content.get(name) if isinstance(content, dict) else None for name in ("images", "annotations", "categories")
    ]
    if content is None:
        return []
    if not all(isinstance(part, list) and all(isinstance(x, dict) for x in part) for part in parts):
        problems.add(path.name, 'must have lists "images", "annotations" and "categories" (COCO)')
        return []
    images = {reprlib.repr(x.get("id")): x.get("file_name") for x in parts[0]}
    names = {reprlib.repr(x.get("id")): x.get("name") for x in parts[2]}
    lines = []
    for i, one in enumerate(parts[1]):
        where = f"{path.name}, annotation {one.get('id', i)}"
        file, label = images.get(reprlib.repr(one.get("image_id"))), names.get(reprlib.repr(one.get("category_id")))
        box = one.get("bbox")
        if not isinstance(file, str) or not isinstance(label, str):
            problems.add(where, '"image_id" or "category_id" is not among the images or categories: correct it')
        elif not isinstance(box, list) or len(box) != 4:
            problems.add(where, f'"bbox" is {reprlib.repr(box)}: must be [x, y, width, height]')
        else:
            x, y, width, height = map(number, box)
            lines.append((where, file, label, (x, y, x + width, y + height)))
    return lines


def read_classes(path: Path, problems: Problems) -> dict[str, str]:
    """The names of the classes in their order; none where there is no file."""
    if not path.exists():
        return {}
    names: dict[str, str] = {}
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path)), skipinitialspace=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        problems.add(path.name, f"cannot be read as CSV ({error}): write it again")
        return {}
    for i, (label, *rest) in enumerate(rows):
        name = rest[0].strip() if rest else label.strip()
        if label.strip() in names or name in names.values():
            problems.add(f"{path.name}, row {i + 1}", f"{label.strip()!r} or its name is there twice: keep one")
        names[label.strip()] = name
    return names


def assign(
    lines: list[Line], found: Mapping[str, list[Path]], problems: Problems
) -> dict[Path, list[tuple[str, Box | None]]]:
    """Class and box of each image, by its path below the root; `found` are the images by split."""
    by_name = defaultdict(list)
    for split, paths in found.items():
        for path in paths:
            below = path.relative_to(split).as_posix()
            for name in {path.as_posix(), below, path.name, f"{split}/{path.name}"}:
                by_name[name].append(path)
    assigned: dict[Path, list[tuple[str, Box | None]]] = defaultdict(list)
    for where, file, label, corners in lines:
        paths = by_name.get(file.replace("\\", "/").removeprefix("./"), [])
        if len(paths) != 1:
            what = "there is no such image" if not paths else f"{len(paths)} images have this name: give the path"
            problems.add(f"{where}: {reprlib.repr(file)}", what)
            continue
        folder = paths[0].parts[1] if len(paths[0].parts) > 2 else ""
        values = None if corners is None else tuple(map(number, corners))
        if not (label or folder):
            problems.add(where, "has no class, and the image is in no folder of a class: give one")
        elif values is not None and any(x != x for x in values):
            problems.add(where, f"{reprlib.repr(corners)}: must be four numbers, in pixels")
        else:
            assigned[paths[0]].append((label or folder, values))  # type: ignore[arg-type]
    return assigned


class ImageFolder(ImageBuilder):
    """Images of your own; `wsal_jax.data.image_folder` says how the folder must look."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, root: str | os.PathLike, inclusive: bool = False, **kwargs: Any):
        """Makes the builder.

        Args:
          root: the user's folder.
          inclusive: `xmax` and `ymax` of boxes.csv are the last pixel of a box, as ImageNet and its like have it, and
            not
            its edge.
          **kwargs: of `ImageBuilder`.

        Raises:
          InputError: as of `ImageBuilder`.
        """
        self.inclusive = inclusive
        state = {"root": root, "inclusive": inclusive, **kwargs}
        super().__init__(root=root, chosen=(inclusive,), **kwargs)
        self._original_state = state

    def _list(self, problems: Problems) -> Listing:
        found = {split: [x.relative_to(self.root) for x in find_images(self.root / split)] for split in SPLITS}
        lines: list[Line] = []
        for name, read in (("boxes.csv", read_csv), ("boxes.json", read_coco)):
            if (self.root / name).exists():
                lines += read(self.root / name, problems)
        of_image = assign(lines, found, problems)
        if self.inclusive and not (self.root / "boxes.json").exists():
            for of in of_image.values():
                of[:] = [(label, box and (*box[:2], box[2] + 1, box[3] + 1)) for label, box in of]
        names = read_classes(self.root / "classes.csv", problems)
        used = {path.parts[1] for paths in found.values() for path in paths if len(path.parts) > 2}
        used |= {label for of in of_image.values() for label, _ in of}
        if names and (unknown := sorted(used - set(names))):
            problems.add("classes.csv", f"has no row for {', '.join(unknown[:5])}: add it, or remove the file")
        images = {}
        for split, paths in found.items():
            images[split] = []
            for path in paths:
                folder = {path.parts[1]} if len(path.parts) > 2 else set()
                labels = {names.get(label, label) for label in folder | {label for label, _ in of_image[path]}}
                boxes = [(names.get(label, label), box) for label, box in of_image[path] if box is not None]
                images[split].append(Listed(path, labels, boxes))
        trained = sorted({label for image in images["train"] for label in image.labels})
        return Listing(list(names.values()) or trained, images)
