"""TFDS builder for CUB-200-2011 as it is unpacked (Wah et al. 2011), and for the text lists of the WSOL evaluation.

`root` is `CUB_200_2011/`, with `images/`, `images.txt`, `classes.txt`, `image_class_labels.txt`,
`train_test_split.txt` and `bounding_boxes.txt`; `parts/` and `attributes/` are not used. 5,994 images train, 5,794
test, one box each.

With `lists`, a folder of the WSOL evaluation's metadata of a data set (Choe et al., CVPR 2020; `metadata/CUB`), the
lists decide instead: `{train,val,test}/{image_ids.txt, class_labels.txt, localization.txt, image_sizes.txt}`. Images
are looked for under `root`, `root/images` and, as in its CUBV2, `root/<split>`. `split="val"` then measures CUBV2,
1,000 images that are neither trained nor tested on: the one legitimate place for choosing a threshold.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from wsal_jax.data.images import Box, ImageBuilder, Listed, Listing
from wsal_jax.files import regular
from wsal_jax.formats.checks import Problems, number, numbered_lines
from wsal_jax.types import InputError

SIZES = {"train": 5994, "test": 5794}
CLASSES = 200


def read_columns(path: Path, columns: int, problems: Problems, between: str | None = None) -> Iterator[list[str]]:
    """The lines of a text file in `columns` parts (the last may hold spaces); those of another number are problems."""
    if not path.exists():
        problems.add(path.name, "is missing: give the folder as it is unpacked")
        return
    for i, line in numbered_lines(path, problems):
        parts = [part.strip() for part in line.split(between, columns - 1 if between is None else -1)]
        if len(parts) == columns:
            yield parts
        else:
            problems.add(f"{path.name}, line {i}", f"has {len(parts)} columns, not {columns}: unpack it again")


def read_pairs(path: Path, problems: Problems) -> dict[str, str]:
    """`<id> <value>` of each line; an id that is there twice is a problem."""
    pairs: dict[str, str] = {}
    for id, value in read_columns(path, 2, problems):
        if id in pairs:
            problems.add(f"{path.name}: {id}", "is there more than once: unpack it again")
        pairs[id] = value
    return pairs


def corners(values: list[str], where: str, problems: Problems, sides: bool) -> Box | None:
    """x0, y0, x1, y1 of four numbers in text, of which the last two are width and height where `sides`."""
    x0, y0, x1, y1 = map(number, values)
    if any(x != x for x in (x0, y0, x1, y1)):
        problems.add(where, f"{' '.join(values)}: must be four numbers, in pixels")
        return None
    return (x0, y0, x0 + x1, y0 + y1) if sides else (x0, y0, x1, y1)


def list_cub(root: Path, problems: Problems) -> Listing:
    """The images as CUB-200-2011's own files list them."""
    files, classes = read_pairs(root / "images.txt", problems), read_pairs(root / "classes.txt", problems)
    of_image = read_pairs(root / "image_class_labels.txt", problems)
    splits = read_pairs(root / "train_test_split.txt", problems)
    boxes: dict[str, list[Box]] = defaultdict(list)
    for id, *values in read_columns(root / "bounding_boxes.txt", 5, problems):
        if box := corners(values, f"bounding_boxes.txt: {id}", problems, sides=True):
            boxes[id].append(box)
    images: dict[str, list[Listed]] = {"train": [], "test": []}
    for id, file in files.items():
        path, split = Path("images", file), {"1": "train", "0": "test"}.get(splits.get(id, ""))
        where = f"images.txt: {id}"
        if ".." in path.parts or path.is_absolute():
            problems.add(where, f"{file!r} leads out of the folder: unpack it again")
        elif split is None:
            problems.add(where, "has no 1 or 0 in train_test_split.txt: unpack it again")
        elif of_image.get(id) not in classes:
            problems.add(where, "has no class of classes.txt in image_class_labels.txt: unpack it again")
        elif not os.path.isfile(root / path):  # unlike Path's, False for a name that is too long
            problems.add(where, f"images/{file} is missing: unpack it again")
        else:
            label = classes[of_image[id]]
            images[split].append(Listed(path, {label}, [(label, box) for box in boxes[id]]))
            if not boxes[id]:
                problems.add(where, "has no box in bounding_boxes.txt: unpack it again")
    for name, ids in (("bounding_boxes.txt", boxes), ("train_test_split.txt", splits)):
        if unknown := sorted(set(ids) - set(files)):
            problems.add(f"{name}: {unknown[0]}", "is not in images.txt: unpack it again")
    return Listing(list(classes.values()), images)


def list_wsol(root: Path, lists: Path, measured: str, problems: Problems) -> Listing:
    """The images as the text lists of the WSOL evaluation have them; a class is named by the folder of its images."""
    images: dict[str, list[Listed]] = {"train": [], "test": []}
    numbers: dict[str, set[str]] = defaultdict(set)
    named: dict[str, Counter[str]] = defaultdict(Counter)
    for split, name in (("train", "train"), ("test", measured)):
        folder, problems_of = lists / name, Problems()
        ids = [id for (id,) in read_columns(folder / "image_ids.txt", 1, problems_of)]
        labels = dict(read_columns(folder / "class_labels.txt", 2, problems_of, ","))
        sizes = {id: x for id, *x in read_columns(folder / "image_sizes.txt", 3, problems_of, ",")}
        boxes: dict[str, list[Box]] = defaultdict(list)
        if split == "test":
            for id, *values in read_columns(folder / "localization.txt", 5, problems_of, ","):
                if box := corners(values, f"localization.txt: {id}", problems_of, sides=False):
                    boxes[id].append(box)
        for id, count in Counter(ids).items():
            places = [Path(part, id) for part in ("", "images", name) if os.path.isfile(root / part / id)]
            if ".." in Path(id).parts or not places:
                problems_of.add(f"image_ids.txt: {id}", "is not below the root, root/images or root/<split>")
            elif count > 1:
                problems_of.add(f"image_ids.txt: {id}", "is there more than once: keep one line")
            elif not re.fullmatch("[0-9]{1,9}", labels.get(id, "")):
                problems_of.add(f"image_ids.txt: {id}", "has no number of a class in class_labels.txt")
            elif split == "test" and not boxes[id]:
                problems_of.add(f"image_ids.txt: {id}", "has no box in localization.txt")
            else:
                label = labels[id]
                named[label][Path(id).parent.name] += 1
                numbers[name].add(label)
                images[split].append(Listed(places[0], {label}, [(label, box) for box in boxes[id]]))
        if sizes and (unknown := sorted(set(ids) - set(sizes))):
            problems_of.add(f"image_sizes.txt: {unknown[0]}", "is missing")
        for what, where in problems_of.items():
            for one in where:
                problems.add(f"{name}/{one}", what)
    names = _names(named)
    for split, of_split in images.items():
        images[split] = [
            Listed(x.path, {names[label] for label in x.labels}, [(names[label], box) for label, box in x.boxes])
            for x in of_split
        ]
    return Listing([names[label] for label in sorted(names, key=int)], images)


def _names(folders: dict[str, Counter[str]]) -> dict[str, str]:
    """A name for each number of a class: the folder most of its images are in, where that names it alone."""
    names = {label: count.most_common(1)[0][0] for label, count in folders.items()}
    twice = {name for name, count in Counter(names.values()).items() if count > 1} | {""}
    return {label: f"class {label}" if name in twice else name for label, name in names.items()}


class Cub200(ImageBuilder):
    """CUB-200-2011; `wsal_jax.data.cub200` says what is read."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, root: str | os.PathLike, lists: str = "", split: str = "test", **kwargs: Any):
        """Makes the builder.

        Args:
          root: CUB_200_2011/, or where the images of the lists are.
          lists: the folder of the WSOL evaluation's lists, or "".
          split: "test", or with lists "val".
          **kwargs: of `ImageBuilder`.

        Raises:
          InputError: as of `ImageBuilder`; or another split.
        """
        if split not in (("test", "val") if lists else ("test",)):
            raise InputError(f"config.data.reader.split={split!r}: give test, or val together with reader.lists")
        self.lists, self.split = str(lists), split
        state = {"root": root, "lists": lists, "split": split, **kwargs}
        content = [regular(path).read_bytes() for path in sorted(Path(lists).rglob("*.txt"))] if lists else []
        super().__init__(root=root, chosen=(split, content), **kwargs)
        self._original_state = state

    def _list(self, problems: Problems) -> Listing:
        if self.lists:
            return list_wsol(self.root, Path(self.lists), self.split, problems)
        return list_cub(self.root, problems)
