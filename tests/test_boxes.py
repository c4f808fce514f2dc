"""Overlaps and the metrics of boxes against direct versions."""

import numpy as np
import pytest

from wsal_jax import boxes, localize
from wsal_jax.boxes import Case, Hits
from wsal_jax.types import Annotation, Meta


def plain_iou(a, b, extra=0):
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    common = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b)]
    return common / (sum(areas) - common)


@pytest.mark.parametrize("extra", [0, 1])
def test_iou_is_that_of_a_loop(extra):
    rng = np.random.default_rng(0)
    first, second = (
        np.sort(rng.integers(0, 20, (n, 2, 2)), axis=1).reshape(n, 4) + np.array((0, 0, 1, 1)) for n in (12, 7)
    )
    first, second = first.astype(float), second.astype(float)
    expected = [[plain_iou(a, b, extra) for b in second] for a in first]
    np.testing.assert_allclose(boxes.iou(first, second, extra), expected)
    nothing = np.zeros((1, 4))
    assert boxes.iou(nothing, nothing)[0, 0] == 0


def meta(i, size=(40, 20)):
    return Meta(f"{i}.jpg", 4, 1.0, 1.0, 0.5, 4.0, grid=(2, 2), size=size)


def test_cases_are_of_a_class_each_and_relative():
    true = np.array([[0, 0, 40, 10], [4, 5, 8, 10], [10, 10, 20, 20]], float)
    annotation = Annotation(np.zeros((3, 2)), np.array([1, 0, 1]), boxes=true)
    first, second = boxes.cases_of([1], [annotation] * 2, [meta(0), meta(1)])
    assert (first.image, first.label, second.image, second.label) == (1, 0, 1, 1)
    np.testing.assert_allclose(first.boxes, [[0.1, 0.25, 0.2, 0.5]])
    np.testing.assert_allclose(second.boxes, [[0, 0, 1, 0.5], [0.25, 0.5, 0.5, 1]])
    found = boxes.best_ious(np.array([[0.1, 0.25, 0.2, 0.5], [0.25, 0.5, 0.5, 0.75]]), [first, second])
    np.testing.assert_allclose(found, [1, 0.5])
    small = boxes.small_images([first, second], 0.5, 3)
    assert small.tolist() == [False, False, False]
    assert boxes.small_images([first], 0.5, 3).tolist() == [False, True, False]


def test_top_k_wants_the_class_and_its_own_box():
    """Of four images with classes 0, 1, (0 and 2), 2."""
    cases = [Case(i, label, np.zeros((1, 4))) for i, label in ((0, 0), (1, 1), (2, 0), (2, 2), (3, 2))]
    right = np.array([[True], [False], [False], [True], [True]])
    scores = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.5, 0.4, 0.1]])
    for k, expected in ((1, [1, 0, 0, 0]), (2, [1, 0, 1, 0]), (3, [1, 0, 1, 1])):
        column = boxes.top_k(scores, right, cases, k)
        assert column.hits[:, 0, 0].tolist() == expected and column.image.tolist() == [0, 1, 2, 3]


def test_accuracy_takes_the_best_threshold_for_each_iou_and_weighting():
    rng = np.random.default_rng(0)
    column = Hits(rng.random((9, 3, 5)) < 0.5, np.array([0, 0, 1, 2, 3, 3, 4, 5, 5]))
    weights = rng.integers(0, 3, (4, 6)).astype(float)
    expected = []
    for row in weights:
        of_case = row[column.image]
        best = [max(np.average(column.hits[:, i, j], weights=of_case) for j in range(5)) for i in range(3)]
        expected.append(np.mean(best))
    np.testing.assert_allclose(boxes.accuracy(column, weights), expected)


def plain_levels(values, true, levels):
    """By the evaluation's own thresholds and SciPy's regions, of a map of 224 x 224, whose areas differ clearly."""
    from scipy import ndimage

    picture = ((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)
    rows = []
    for level in np.linspace(0, 254, levels).astype(int):
        regions, _ = ndimage.label(picture > level, np.ones((3, 3)))
        found = [(x.start, y.start, min(x.stop, 223), min(y.stop, 223)) for y, x in ndimage.find_objects(regions)]
        ious = [max(plain_iou(box, np.trunc(224 * t), 1) for t in true) for box in found]
        areas = [ndimage.binary_fill_holes(regions == i + 1).sum() for i in range(len(found))]
        rows.append((ious[int(np.argmax(areas))], max(ious)))
    return np.array(rows).T


def test_levels_are_those_of_a_plain_evaluation():
    pytest.importorskip("cv2")
    y, x = np.mgrid[:224, :224]
    values = np.exp(-((x - 60) ** 2 + (y - 80) ** 2) / 900) + 0.8 * np.exp(-((x - 170) ** 2 + (y - 150) ** 2) / 400)
    true = np.array([[0.1, 0.2, 0.4, 0.5], [0.7, 0.6, 0.83, 0.75]])
    largest, best = boxes.level_ious(values, true, 12)
    expected = plain_levels(values.astype(np.float32), true, 12)
    np.testing.assert_allclose(largest, expected[0])
    np.testing.assert_allclose(best, expected[1])
    assert (best > largest + 0.1).any()


@pytest.mark.parametrize("values", [np.full((7, 7), 3.0), np.full((7, 7), np.nan)])
def test_maps_that_say_nothing_have_no_box(values):
    pytest.importorskip("cv2")
    largest, best = boxes.level_ious(values, np.array([[0.2, 0.2, 0.9, 0.9]]), 5)
    assert not largest.any() and not best.any()


def test_the_best_square_of_known_boxes():
    """Of true squares of half the side, the best square is it."""
    true = np.array([[0.25, 0.25, 0.75, 0.75]])
    ious = boxes.iou(boxes.squares(), true)[:, 0]
    assert ious.max() == 1 and np.allclose(boxes.squares()[ious.argmax()], true)
    np.testing.assert_array_equal(boxes.squares()[-1], [0, 0, 1, 1])


# localize.propose_box


def rectangle(shape=(14, 14), rows=(3, 8), columns=(2, 12), value=1.0, ground=0.0):
    values = np.full(shape, ground)
    values[slice(*rows), slice(*columns)] = value
    return values


def test_a_rectangle_is_found_in_pixels():
    found = localize.propose_box(rectangle(), (140, 280), 0.5)
    np.testing.assert_allclose(found, [20, 60, 120, 160], atol=0.51 * 20)


def test_the_larger_of_two_blobs_wins_and_the_other_comes_next():
    values = rectangle(rows=(1, 4), columns=(1, 4)) + rectangle(rows=(7, 13), columns=(7, 13), value=0.6)
    found, scores = localize.propose_boxes(values, (14, 14), 0.2, most=2)
    np.testing.assert_allclose(found, [[7, 7, 13, 13], [1, 1, 4, 4]], atol=0.6)
    assert scores[0] < scores[1] <= 1
    assert len(localize.propose_boxes(values, (14, 14), 0.7, most=2)[0]) == 1


def test_max_and_minmax_differ_on_a_map_with_an_offset():
    values = rectangle(ground=0.5)
    np.testing.assert_array_equal(localize.propose_box(values, (14, 14), 0.2), [0, 0, 14, 14])
    assert localize.propose_box(values, (14, 14), 0.2, "minmax")[0] > 1


@pytest.mark.parametrize("normalize", ["max", "minmax"])
@pytest.mark.parametrize("values", [np.zeros((7, 7)), np.full((7, 7), np.nan), -np.ones((3, 5)), np.ones((1, 1))])
def test_maps_without_a_region_give_the_whole_image(values, normalize):
    found, scores = localize.propose_boxes(values, (30, 20), 0.2, normalize)
    np.testing.assert_array_equal(found, [[0, 0, 30, 20]])
    assert scores.tolist() == [1] or values.max() > 0


def test_upscaling_keeps_centres_and_edges():
    values = np.array([[0.0, 1.0], [2.0, 3.0]])
    big = localize.upscale(values, 4, 4)
    np.testing.assert_allclose(big[0], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(big[:, 0], [0, 0.5, 1.5, 2])
    same = np.random.default_rng(0).random((3, 5))
    np.testing.assert_allclose(localize.upscale(same, 3, 5), same)
