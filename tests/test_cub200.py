"""CUB-200-2011 in small, as it is unpacked, and the text lists of the WSOL evaluation."""

import pytest

from tests.image_files import caffe_squeezenet, picture, write
from wsal_jax.data.cub200 import Cub200
from wsal_jax.formats.checks import FolderError
from wsal_jax.types import InputError

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "squeezenet.npz"
    caffe_squeezenet(path)
    return path


def files(count=12):
    """Images, of which half train: id, file below images/, class from 1, whether it trains."""
    return [(i, f"{CLASSES[i % 3]}/bird_{i:04d}.jpg", i % 3 + 1, i > count // 2) for i in range(1, count + 1)]


def unpacked(root, count=12):
    """Image i is 40 + i pixels wide and 30 high and has the box x i, y 2, width 10.5, height 20."""
    for id, file, _, _ in files(count):
        write(root / "images" / file, picture(40 + id, 30, id))
    texts = {
        "images": [f"{id} {file}" for id, file, _, _ in files(count)],
        "classes": [f"{i} {name}" for i, name in enumerate(CLASSES, 1)],
        "image_class_labels": [f"{id} {label}" for id, _, label, _ in files(count)],
        "train_test_split": [f"{id} {int(train)}" for id, _, _, train in files(count)],
        "bounding_boxes": [f"{id} {id}.0 2.0 10.5 20.0" for id, _, _, _ in files(count)],
    }
    for name, lines in texts.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (root / "parts").mkdir()
    return root


def wsol(folder):
    """The lists of the same images: the first three test images are CUBV2's stand-in."""
    for split, chosen in (("train", files()[6:]), ("val", files()[:3]), ("test", files()[3:6])):
        place = folder / split
        place.mkdir(parents=True)
        (place / "image_ids.txt").write_text("\n".join(file for _, file, _, _ in chosen))
        (place / "class_labels.txt").write_text("\n".join(f"{file},{label - 1}" for _, file, label, _ in chosen))
        (place / "image_sizes.txt").write_text("\n".join(f"{file},{40 + id},30" for id, file, _, _ in chosen))
        if split != "train":
            boxes = [f"{file},{id},2,{id + 10.5},22" for id, file, _, _ in chosen]
            (place / "localization.txt").write_text("\n".join(boxes))
    return folder


def make(root, tmp_path, weights, **options):
    return Cub200(root=root, backbone="squeezenet", weights=str(weights), data_dir=str(tmp_path / "built"), **options)


def boxes_of(folder, split):
    return {x.id: (x.segment_labels, x.image["boxes"].tolist()) for x in folder.videos[split]}


def test_what_is_read(tmp_path, weights):
    folder = make(unpacked(tmp_path / "cub"), tmp_path, weights)._checked
    assert folder.classes == list(CLASSES)
    assert boxes_of(folder, "train").keys() == {f"images/{file}" for _, file, _, train in files() if train}
    test = boxes_of(folder, "test")
    assert len(test) == 6
    assert test["images/002.Laysan_Albatross/bird_0004.jpg"] == ([CLASSES[1]], [[4.0, 2.0, 14.5, 22.0]])


@pytest.mark.parametrize(("split", "ids"), [("val", (1, 2, 3)), ("test", (4, 5, 6))])
def test_lists_say_the_same(split, ids, tmp_path, weights):
    root, lists = unpacked(tmp_path / "cub"), wsol(tmp_path / "lists")
    folder = make(root, tmp_path, weights, lists=str(lists), split=split)._checked
    own = make(root, tmp_path, weights)._checked
    assert folder.classes == list(CLASSES)
    assert boxes_of(folder, "train").keys() == boxes_of(own, "train").keys()
    chosen = {f"images/{file}" for id, file, _, _ in files() if id in ids}
    assert boxes_of(folder, "test") == {id: x for id, x in boxes_of(own, "test").items() if id in chosen}


def test_all_that_is_wrong_is_told_at_once(tmp_path, weights):
    root = unpacked(tmp_path / "cub")
    (root / "images" / files()[0][1]).unlink()
    for name, old, new in (
        ("bounding_boxes", "2 2.0 2.0 10.5 20.0", "2 2.0 2.0 99.0 20.0"),
        ("bounding_boxes", "\n3 3.0 2.0 10.5 20.0", ""),
        ("bounding_boxes", "4 4.0 2.0 10.5", "4 4.0 two 10.5"),
        ("bounding_boxes", "5 5.0 2.0 10.5 20.0", "5 5.0 2.0 10.5"),
        ("train_test_split", "7 1", "7 2"),
        ("image_class_labels", "\n8 3", "\n8 9"),
        ("images", "9 001", "9 ../../001"),
        ("train_test_split", "12 1", "12 1\n12 0\n99 1"),
    ):
        path = root / f"{name}.txt"
        assert path.read_text().count(old) == 1, old
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(FolderError) as error:
        make(root, tmp_path, weights)
    said = "\n".join(error.value.problems)
    for words in (
        "images.txt: 1: images/002.Laysan_Albatross/bird_0001.jpg is missing",
        "box 2, 2, 101, 22 is outside of the image of 42 x 30",
        "images.txt: 3, images.txt: 4, images.txt: 5: has no box",
        "bounding_boxes.txt: 4: 4.0 two 10.5 20.0: must be four numbers",
        "bounding_boxes.txt, line 4: has 4 columns, not 5",
        "images.txt: 7: has no 1 or 0",
        "images.txt: 8: has no class",
        "leads out of the folder",
        "train_test_split.txt: 12: is there more than once",
        "train_test_split.txt: 99: is not in images.txt",
    ):
        assert words in said, (words, said)


def test_what_is_wrong_with_lists(tmp_path, weights):
    root, lists = unpacked(tmp_path / "cub"), wsol(tmp_path / "lists")
    with (lists / "val" / "image_ids.txt").open("a") as file:
        file.write("\ngone.jpg")
    (lists / "train" / "class_labels.txt").write_text("x,1")
    (lists / "val" / "localization.txt").unlink()
    with pytest.raises(FolderError) as error:
        make(root, tmp_path, weights, lists=str(lists), split="val")
    said = "\n".join(error.value.problems)
    for words in (
        "val/image_ids.txt: gone.jpg: is not below",
        "has no number of a class",
        "localization.txt: is missing",
    ):
        assert words in said, (words, said)
    with pytest.raises(InputError, match=r"split='val': give test, or val together with reader\.lists"):
        make(root, tmp_path, weights, split="val")
