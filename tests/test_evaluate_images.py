"""The table of images, and detections."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from configs import maan2d
from wsal_jax import evaluate_images
from wsal_jax.data.pipeline import Dataset
from wsal_jax.data.store import Store
from wsal_jax.types import Annotation, Meta, Scores

N, GRID = 24, (14, 14)


class Made(NamedTuple):
    data: Dataset
    classes: np.ndarray
    corners: np.ndarray
    """Of the boxes, in cells."""


def made(small=True):
    """Images of 28 x 56 with one box each, of one of 8 classes."""
    rng = np.random.default_rng(0)
    size = 4 if small else 10
    start = np.stack([rng.integers(1, 13 - size, N), rng.integers(1, 13 - size, N)], 1)
    corners = np.concatenate([start, start + size], 1)
    classes = rng.integers(0, 8, N)
    metas = [Meta(f"test/{i}.jpg", 196, 1.0, 1.0, 0.5, 196.0, grid=GRID, size=(28, 56)) for i in range(N)]
    annotations = [
        Annotation(np.array([[0.0, 196.0]]), np.array([label]), boxes=box[None])
        for label, box in zip(classes, corners * np.array([2.0, 4.0, 2.0, 4.0]))
    ]
    labels = np.eye(8, dtype=np.float32)[classes]
    store = Store(Path(), "test", {}, *[np.zeros(N, int)] * 3)
    names = [f"class {c}" for c in range(8)]
    return Made(
        Dataset(store, metas, annotations, labels, labels, names, {"rgb": 1}, [""] * len(metas)), classes, corners
    )


def scores_of(images, wrong=0, shift=0):
    """Maps that are 1 in the true box, moved by `shift` cells, for the true class; `wrong` images have class + 1."""
    found = []
    for i, (label, (x0, y0, x1, y1)) in enumerate(zip(images.classes, images.corners)):
        values = np.zeros((*GRID, 8), np.float32)
        values[y0 + shift : y1 + shift, x0:x1, label] = 1
        best = (label + 1) % 8 if i < wrong else label
        probability = np.where(np.arange(8) == best, 0.65, 0.05).astype(np.float32)
        probability[label] += 0.01
        found.append(Scores(probability, values.reshape(196, 8), values.max(2).ravel()))
    return found


@pytest.fixture
def config():
    config = maan2d.get_config()
    config.evaluation.bootstrap, config.evaluation.levels = 50, 6
    return config


def test_maps_that_are_right_are_right(config):
    images = made()
    data = images.data
    table = evaluate_images.measure({"rgb": scores_of(images, wrong=6)}, data, None, config, 0)
    row = {name: cell["value"] for name, cell in table["rgb"].items()}
    assert row["GT-known"] == row["GT-known, small"] == row.get("MaxBoxAcc", 100) == 100  # absent without OpenCV
    assert row["top-1 loc"] == row["classification"] == 75 and row["top-5 loc"] == 100
    low, high = table["rgb"]["top-1 loc"]["interval"]
    assert 50 < low < 75 < high < 97
    floors = {name: table[name]["GT-known"]["value"] for name in ("whole image", "shuffled")}
    assert floors["whole image"] == 0 and floors["shuffled"] < 20
    assert table["centred square"]["GT-known"]["value"] < 100 and "mean training box" not in table


def test_maps_beside_the_object_are_wrong(config):
    images = made()
    data = images.data
    table = evaluate_images.measure({"rgb": scores_of(images, shift=2)}, data, None, config, 0)
    row = {name: cell["value"] for name, cell in table["rgb"].items()}
    assert row["classification"] == 100 and row["GT-known"] == row["top-1 loc"] == row["top-5 loc"] == 0


def test_large_objects_are_not_among_the_small(config):
    images = made(small=False)
    data = images.data
    mean = evaluate_images.mean_box(data)
    np.testing.assert_allclose(mean, images.corners.mean(0) / 14)
    table = evaluate_images.measure({"rgb": scores_of(images)}, data, mean, config, 0)
    assert "GT-known, small" not in table["rgb"]
    assert table["whole image"]["GT-known"]["value"] == 100  # 100 of 196 cells
    assert table["mean training box"]["GT-known"]["value"] == 100


def test_an_attention_that_is_constant_shows():
    constant = Scores(np.zeros(1), np.zeros((4, 1)), np.full(4, 0.9, np.float32))
    other = constant._replace(attention=np.array([0, 1, 0, 1], np.float32))
    row = evaluate_images.attend({"rgb": [constant, other, constant, constant]})["rgb"]
    np.testing.assert_allclose([row[x]["value"] for x in ("mean", "std in an image", "constant")], [80, 12.5, 75])


def test_detections_are_in_cocos_form(config):
    images = made()
    data = images.data
    found = [evaluate_images.find(x, meta, config.localize) for x, meta in zip(scores_of(images), data.metas)]
    content = evaluate_images.to_json(found, data.metas, data.class_names)
    first = content["annotations"][0]
    assert content["images"][0] == {"id": 1, "file_name": "test/0.jpg", "width": 28, "height": 56}
    assert content["categories"][first["category_id"] - 1]["name"] == data.class_names[images.classes[0]]
    x0, y0, x1, y1 = data.annotations[0].boxes[0]
    np.testing.assert_allclose(first["bbox"], [x0, y0, x1 - x0, y1 - y0], atol=2.5)
    assert len(content["annotations"]) == N and 0 < first["score"] <= 0.66
