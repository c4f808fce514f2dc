"""Folders of images: what is read of them, and everything that is wrong with one."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.image_files import caffe_squeezenet, picture, write
from tests.stored import by_id
from wsal_jax import boxes
from wsal_jax.data import pipeline
from wsal_jax.data.image_folder import ImageFolder
from wsal_jax.formats.checks import FolderError
from wsal_jax.types import InputError

TINY20 = Path(__file__).parents[2] / "shared" / "data" / "images" / "tiny20"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "squeezenet.npz"
    caffe_squeezenet(path)
    return path


def folder(root, flat=False):
    """Two classes, two training and two test images of each; the last test image has both, in three boxes."""
    for split in ("train", "test"):
        for i, label in enumerate(("cat", "dog", "cat", "dog")):
            place = split if flat else f"{split}/{label}"
            write(root / place / f"{split}{i}.png", picture(40 + i, 30, i))
    lines = ["split,file,class,xmin,ymin,xmax,ymax"]
    for split in ("train", "test"):
        for i, label in enumerate(("cat", "dog", "cat", "dog")):
            lines.append(f"{split},{split}{i}.png,{label},{i},1,20,21")
    lines += ["test,test3.png,cat,5,6,7,8", "test,test3.png,dog,0,0,9,9"]
    (root / "boxes.csv").write_text("\n".join(lines))
    return root


def make(root, tmp_path, weights, **options):
    return ImageFolder(root=root, backbone="squeezenet", weights=str(weights), data_dir=str(tmp_path), **options)


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_stored(flat, tmp_path, weights):
    builder = make(folder(tmp_path / "data", flat), tmp_path / "built", weights)
    builder.download_and_prepare()
    data = {split: pipeline.load(builder, split) for split in ("train", "test")}
    test = data["test"]
    prefix = "test/" if flat else "test/dog/"
    at = [meta.id for meta in test.metas].index(f"{prefix}test3.png")
    meta, true = test.metas[at], test.annotations[at]
    assert meta.grid == (13, 13) and meta.size == (43, 30) and meta.length == 169
    assert test.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(test.labels[at], [1, 1])
    np.testing.assert_array_equal(test.counts[at], [1, 2])
    expected = sorted([(1, (3, 1, 20, 21)), (0, (5, 6, 7, 8)), (1, (0, 0, 9, 9))])
    assert sorted((int(label), tuple(box)) for label, box in zip(true.labels, true.boxes)) == expected
    assert true.segments.tolist() == [[0, 169]] * 3
    assert data["train"].labels.sum() == 4 and data["train"].dims == {"rgb": 512}


def test_features_are_those_of_the_image_upright_and_squared(tmp_path, weights):
    from wsal_jax.backbones import images, torchvision
    from wsal_jax.data.images import open_image, squared

    root = folder(tmp_path / "data")
    builder = make(root, tmp_path / "built", weights)
    builder.download_and_prepare()
    found = by_id(builder)["train/cat/train2.png"]["features"]["rgb"]
    image = squared(open_image(root / "train/cat/train2.png", 10**6), 224).astype(np.float32)
    params = torchvision.load_squeezenet(weights)
    expected = np.asarray(jax.jit(torchvision.squeezenet)(params, torchvision.normalize(image)[None]))[0]
    assert found.shape == (169, 512) and found.dtype == np.float16 and expected.shape == (13, 13, 512)
    np.testing.assert_allclose(found, expected.reshape(169, 512), rtol=2e-3, atol=1e-3 * expected.std())
    assert images.NETWORKS["squeezenet"].grid == expected.shape[:2]


def listing(root, tmp_path, weights, **options):
    """The images of a folder without their features, by id: labels and boxes with their classes."""
    checked = make(root, tmp_path / "unbuilt", weights, **options)._checked
    entries = [entry for split in ("train", "test") for entry in checked.videos[split]]
    return {x.id: (x.labels, list(zip(x.segment_labels, map(tuple, x.image["boxes"].tolist())))) for x in entries}


def test_coco_and_csv_say_the_same(tmp_path, weights):
    root = folder(tmp_path / "data")
    expected = listing(root, tmp_path, weights)
    rows = [line.split(",") for line in (root / "boxes.csv").read_text().splitlines()[1:]]
    names = sorted({row[1] for row in rows})
    annotations = [
        {
            "id": i,
            "image_id": names.index(file),
            "category_id": {"cat": 7, "dog": 9}[label],
            "bbox": [float(x0), float(y0), float(x1) - float(x0), float(y1) - float(y0)],
        }
        for i, (_, file, label, x0, y0, x1, y1) in enumerate(rows)
    ]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": annotations,
    }
    (root / "boxes.csv").unlink()
    (root / "boxes.json").write_text(json.dumps(content))
    assert listing(root, tmp_path, weights) == expected


def test_boxes_of_last_pixels_and_names_of_classes(tmp_path, weights):
    root = folder(tmp_path / "data")
    (root / "classes.csv").write_text('dog,"hound, dog"\ncat,puss\n')
    found = listing(root, tmp_path, weights, inclusive=True)
    assert found["train/cat/train0.png"] == (["puss"], [("puss", (0, 1, 21, 22))])
    assert make(root, tmp_path / "unbuilt", weights)._checked.classes == ["hound, dog", "puss"]


def test_all_that_is_wrong_is_told_at_once(tmp_path, weights):
    root = folder(tmp_path / "data")
    (root / "train" / "cat" / "short.png").write_bytes(write(tmp_path / "x.png").read_bytes()[:200])
    write(root / "test" / "cow" / "new.png")
    write(root / "test" / "cat" / "train0.png")  # now the name alone is not enough
    write(root / "train" / "loose.png")
    with (root / "boxes.csv").open("a") as file:
        file.write("\n,train0.png,cat,1,1,2,2\n,gone.png,cat,1,1,2,2\ntrain,cat/train2.png,cat,1,one,2,2")
        file.write("\ntest,test0.png,cat,10,10,99,20\ntest,test1.png,dog,5,5,5,9")
    with pytest.raises(FolderError) as error:
        make(root, tmp_path / "built", weights)
    said = "\n".join(error.value.problems)
    for words in (
        r"train/cat/short.png: cannot be read",
        "test/cow/new.png: no training image has its class 'cow'",
        "train/loose.png: is a training image without any class",
        "boxes.csv, line 12: 'train0.png': 2 images have this name",
        "boxes.csv, line 13: 'gone.png': there is no such image",
        "boxes.csv, line 14: ('1', 'one', '2', '2'): must be four numbers",
        "test/cat/test0.png: box 10, 10, 99, 20 is outside of the image of 40 x 30",
        "test/dog/test1.png: box 5, 5, 5, 9 is empty",
    ):
        assert words in said, (words, said)
    assert len(error.value.problems) == 8 and not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("boxes.csv", "file,xmin,ymin,xmax\na,1,2,3", "has no column ymax"),
        ("boxes.csv", b"\xff\xfe\x00", "cannot be read as CSV"),
        ("boxes.json", "{", "cannot be read as JSON"),
        ("boxes.json", '{"images": 3}', 'must have lists "images"'),
        ("boxes.json", '{"images": [], "categories": [], "annotations": [{"image_id": [1]}]}', '"image_id" or'),
        ("classes.csv", "cat\ncat\n", "is there twice"),
        ("classes.csv", "cat,puss\n", "has no row for dog"),
    ],
)
def test_tables_that_are_no_tables(name, content, words, tmp_path, weights):
    root = folder(tmp_path / "data")
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FolderError) as error:
        make(root, tmp_path / "built", weights)
    assert any(words in problem for problem in error.value.problems), error.value.problems


def test_changed_images_weights_and_options_are_another_data_set(tmp_path, weights):
    root = folder(tmp_path / "data")

    def name(**options):
        return make(root, tmp_path / "built", weights, **options).builder_config.name

    first = name()
    assert name() == first and name(inclusive=True) != first and name(max_pixels=10**6) != first
    write(root / "train" / "cat" / "more.png")
    assert name() != first


def test_networks_that_are_not_there(tmp_path, weights):
    root = folder(tmp_path / "data")
    with pytest.raises(InputError, match=r"backbone='resnet50': there are efficientnet_lite0, squeezenet"):
        ImageFolder(root=root, backbone="resnet50", data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"reader\.weights: give the file of the weights of vgg16"):
        ImageFolder(root=root, backbone="vgg16", data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"squeezenet\.npz is no file of VGG16"):
        ImageFolder(root=root, backbone="vgg16", weights=str(weights), data_dir=str(tmp_path))


@pytest.mark.skipif(not TINY20.exists(), reason="no real images beside the checkout")
def test_real_images(tmp_path, weights):
    """Counts and floors that are known of this data set, whose boxes end at their last pixels."""
    options = dict(backbone="squeezenet", weights=str(weights), data_dir=str(tmp_path))
    checked = ImageFolder(root=TINY20, inclusive=True, **options)._checked
    assert {split: len(images) for split, images in checked.videos.items()} == {"train": 3000, "test": 1000}
    assert len(checked.classes) == 20 and "trilobite" in checked.classes
    corners = np.stack([image.image["boxes"][0] for image in checked.videos["test"]]) / 64
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    assert (area < 0.5).sum() == 510 and (area >= 0.5).sum() == 490
    ious = boxes.iou(boxes.squares(), corners)
    assert (ious >= 0.5).mean(1).max() == pytest.approx(0.54, abs=0.002)
    assert (ious[:, area < 0.5] >= 0.5).mean(1).max() == pytest.approx(0.19, abs=0.005)
