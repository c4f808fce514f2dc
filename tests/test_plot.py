"""The picture has the expected size, and its bars and curves are where their times put them."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from wsal_jax import plot
from wsal_jax.types import Annotation, Detections, Meta, Scores

CLASSES = [f"class {i} $" for i in range(9)]
NONE = Annotation(np.zeros((0, 2)), np.zeros(0, int))
NOTHING = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))


def make_meta(n: int) -> Meta:
    return Meta("video $ 1", n, fps=30.0, stride=15.0, offset=7.5, duration=n / 2)


def make_scores(n: int, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(rng.random(9), rng.normal(size=(n, 9)), rng.random(n))


def draw(path, *args) -> np.ndarray:
    plot.draw(path, *args, CLASSES)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def height(classes: int, models: int) -> int:
    rows = plot.HEADER + plot.TRUE + models * plot.MODEL + plot.DETECTED
    return int((plot.TOP + classes * rows + plot.BOTTOM) * plot.DPI + 1e-6)


def seconds(columns: np.ndarray, duration: float) -> np.ndarray:
    """The times of columns of the picture."""
    inches = (columns + 0.5) / plot.DPI - plot.LEFT
    return inches / (plot.WIDTH - plot.LEFT - plot.RIGHT) * duration


def columns(picture: np.ndarray, color: str) -> np.ndarray:
    """The columns that hold this color under the title and the legend."""
    wanted = np.round(255 * np.array(to_rgb(color)))
    return np.flatnonzero((np.abs(picture[int(plot.TOP * plot.DPI) :] - wanted).max(axis=2) <= 2).any(axis=0))


@pytest.mark.parametrize("n", [1, 2, 700])
@pytest.mark.parametrize("models", [["rgb"], ["rgb", "flow", "fused"]])
def test_no_annotations_and_no_detections(tmp_path, n, models):
    picture = draw(tmp_path / "a.png", make_meta(n), NONE, {name: make_scores(n) for name in models}, NOTHING)
    assert picture.shape == (height(1, len(models)), 1440, 3)
    assert not len(columns(picture, plot.COLOR_TRUE)) and not len(columns(picture, plot.COLOR_DETECTED))


def test_bars_are_at_their_times(tmp_path):
    annotation = Annotation(np.array([[10.0, 20.0], [60.0, 61.0]]), np.array([3, 3]))
    detections = Detections(np.array([[30.0, 45.0], [70.0, 70.001]]), np.array([3, 3]), np.array([0.9, 0.9]))
    args = make_meta(200), annotation, {"rgb": make_scores(200)}, detections
    picture = draw(tmp_path / "a.png", *args)
    assert picture.shape == (height(1, 1), 1440, 3)
    pixel = 100 / (plot.DPI * (plot.WIDTH - plot.LEFT - plot.RIGHT))
    for color, segments in (
        (plot.COLOR_TRUE, annotation.segments),
        (plot.COLOR_DETECTED, detections.segments),
    ):
        time = seconds(columns(picture, color), 100)
        inside = (time[:, None] > segments[:, 0] - 2 * pixel) & (time[:, None] < segments[:, 1] + 2 * pixel)
        assert inside.any(axis=1).all()  # no bars elsewhere
        assert (inside.sum(axis=0) >= np.diff(segments)[:, 0] / pixel - 3).all()  # whole segments
        assert (inside.sum(axis=0) >= 1).all()  # the shortest too


def test_steps_are_midway_between_snippets(tmp_path):
    """Snippets 10 to 14 are centred at 5.25 to 7.25 s: the step is from 5 to 7.5 s."""
    cas = np.zeros((40, 9))
    cas[10:15] = 1.0
    scores = make_scores(40)._replace(cas=cas)
    picture = draw(tmp_path / "a.png", make_meta(40), NONE, {"rgb": scores}, NOTHING)
    top = round((plot.TOP + plot.HEADER + plot.TRUE) * plot.DPI)
    row = picture[top + int(0.5 * plot.MODEL * plot.DPI)].astype(int)  # halfway up the curve
    colored = seconds(np.flatnonzero(np.ptp(row, axis=1) > 30), 20)
    colored = colored[colored > 0]  # what is left of it is the row's name
    np.testing.assert_allclose([colored.min(), colored.max()], [5, 7.5], atol=0.04)


def test_many_classes(tmp_path):
    annotation = Annotation(np.array([[1.0, 2.0]] * 2), np.array([5, 1]))
    detections = Detections(np.array([[2.0, 4.0]] * 6), np.array([1, 0, 2, 3, 4, 7]), np.array([9, -1, 2, 3, 1.5, 8]))
    scores = {"rgb": make_scores(30), "flow": make_scores(30, 1)}
    assert plot.choose_classes(annotation, scores, detections) == [1, 5, 7, 3, 2, 4, 0]
    picture = draw(tmp_path / "a.png", make_meta(30), annotation, scores, detections)
    assert picture.shape == (height(4, 2), 1440, 3)


def test_class_to_show_where_there_is_none():
    first, last = make_scores(5), make_scores(5)._replace(video_score=np.eye(9)[6])
    assert plot.choose_classes(NONE, {"rgb": first, "fused": last}, NOTHING) == [6]


def test_scores_of_no_use(tmp_path):
    """Constant curves, and detections with scores of 0 or less."""
    scores = make_scores(5)._replace(cas=np.zeros((5, 9)))
    for value in (0.0, -3.0):
        detections = Detections(np.array([[0.5, 1.0], [0.5, 2.0]]), np.array([2, 2]), np.array([value, value]))
        picture = draw(tmp_path / "a.png", make_meta(5), NONE, {"rgb": scores}, detections)
        assert len(columns(picture, plot.COLOR_DETECTED))


def test_attention_of_each_class(tmp_path):
    """One more row per class shows its attention (here 1 from 5 to 7.5 s) as a line near the top."""
    attention = np.zeros((40, 9))
    attention[10:15, 5] = 1.0
    scores = make_scores(40)._replace(class_attention=attention)
    detections = Detections(np.array([[5.0, 7.5], [12.0, 14.0]]), np.array([5, 2]), np.array([0.9, 0.8]))
    picture = draw(tmp_path / "a.png", make_meta(40), NONE, {"rgb": scores, "fused": make_scores(40)}, detections)
    assert picture.shape == (height(2, 2) + round(2 * plot.ATTENTION * plot.DPI), 1440, 3)
    color = 255 * np.array(to_rgb(plot.COLORS_MODELS[0]))
    for place, expected in ((0, [5, 7.5]), (1, None)):  # class 5, then class 2
        rows = plot.HEADER + plot.TRUE + 2 * plot.MODEL + plot.ATTENTION + plot.DETECTED
        top = plot.TOP + place * rows + plot.HEADER + plot.TRUE + 2 * plot.MODEL
        row = picture[round(top * plot.DPI) : round((top + plot.ATTENTION / 2) * plot.DPI)].astype(int)
        drawn = seconds(np.flatnonzero((np.abs(row - color).max(axis=2) < 60).any(axis=0)), 20)
        if expected is None:
            assert not len(drawn)
        else:
            np.testing.assert_allclose([drawn.min(), drawn.max()], expected, atol=0.06)
