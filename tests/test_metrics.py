import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wsal_jax import metrics
from wsal_jax.types import Annotation, Detections

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def segments(*pairs):
    return np.array(pairs, np.float64).reshape(-1, 2)


def detections(*rows):
    """From rows (start, end, label, score)."""
    rows = np.array(rows, np.float64).reshape(-1, 4)
    return Detections(rows[:, :2], rows[:, 2].astype(int), rows[:, 3])


def annotation(*rows):
    """From rows (start, end, label)."""
    rows = np.array(rows, np.float64).reshape(-1, 3)
    return Annotation(rows[:, :2], rows[:, 2].astype(int))


def exact_iou(a, b):
    """By counting the seconds of integer segments."""
    a, b = set(range(int(a[0]), int(a[1]))), set(range(int(b[0]), int(b[1])))
    return Fraction(len(a & b), len(a | b)) if a & b else Fraction(0)


def exact_ap(hits, num_positive):
    """The VOC 2011 definition, as `interpolated_prec_rec` of the official evaluator writes it, in fractions."""
    recall, precision = [Fraction(0)], [Fraction(0)]
    for k in range(1, len(hits) + 1):
        recall.append(Fraction(sum(hits[:k]), num_positive))
        precision.append(Fraction(sum(hits[:k]), k))
    recall.append(Fraction(1))
    precision.append(Fraction(0))
    for k in reversed(range(len(precision) - 1)):
        precision[k] = max(precision[k], precision[k + 1])
    return sum((recall[k] - recall[k - 1]) * precision[k] for k in range(1, len(recall)) if recall[k] != recall[k - 1])


def exact_detection_ap(found, truth, c, iou):
    """`compute_average_precision_detection` of the official evaluator, line by line, for integer seconds."""
    true = [(v, s) for v, a in truth.items() for s, label in zip(a.segments, a.labels) if label == c]
    if not true:
        return np.nan
    predicted = [(v, *x) for v, d in found.items() for x in zip(d.segments, d.labels, d.scores) if x[1] == c]
    predicted.sort(key=lambda row: -row[3])  # Python's sort is stable
    locked, hits = set(), []
    for video, segment, _, _ in predicted:
        here = [(exact_iou(segment, s), j) for j, (v, s) in enumerate(true) if v == video]
        hit = False
        for i in np.argsort([float(overlap) for overlap, _ in here], kind="stable")[::-1]:
            overlap, j = here[i]
            if overlap < iou:
                break
            if j in locked:
                continue
            locked.add(j)
            hit = True
            break
        hits.append(hit)
    return exact_ap(hits, len(true))


def test_jax_is_not_imported():
    modules = "wsal_jax.metrics, wsal_jax.localize, wsal_jax.fuse"
    code = f"import sys, {modules}; print(*sorted(m for m in sys.modules if m in ('jax', 'jaxlib', 'flax')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_ious_are_the_decimals():
    assert [str(iou) for iou in metrics.IOUS] == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 5 / 15),
        ((0, 10), (2, 4), 0.2),
        ((0, 1), (0.5, 1.5), 1 / 3),  # 0.6 where 1 is added to lengths
        ((0, 1), (1.5, 2.5), 0.0),  # 0.14 there
        ((0, 1), (1, 2), 0.0),
        ((3, 3), (0, 10), 0.0),
        ((3, 3), (3, 3), 0.0),
        ((8, 2), (0, 10), 0.0),
        ((-4, 2), (-2, 4), 0.5),
    ],
)
def test_temporal_iou_of_two(a, b, expected):
    assert metrics.temporal_iou(segments(a), segments(b)) == pytest.approx(expected, abs=1e-12)
    assert metrics.temporal_iou(segments(b), segments(a)) == pytest.approx(expected, abs=1e-12)


def test_temporal_iou_of_many():
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.integers(0, 12, (size, 2)), axis=1).astype(float) for size in (30, 40))
    expected = [[float(exact_iou(x, y)) for y in b] for x in a]
    np.testing.assert_array_equal(metrics.temporal_iou(a, b), expected)
    assert metrics.temporal_iou(a, segments()).shape == (30, 0)
    assert metrics.temporal_iou(segments(), b).shape == (0, 40)


def ap(hits, num_positive, scores=None):
    scores = -np.arange(len(hits), dtype=float) if scores is None else np.array(scores)
    return metrics.average_precision(scores, np.array(hits, bool), num_positive)


def test_average_precision_by_hand():
    # Precision 1, 1/2, 2/3, 1/2, 3/5; interpolated 1, 2/3, 2/3, 3/5, 3/5; one of four positives is missed.
    assert ap([1, 0, 1, 0, 1], 4) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # Interpolated from 1/3 and 1/2 to 3/5 and from there.
    assert ap([0, 0, 1, 1, 1], 3) == pytest.approx(3 / 5)
    assert ap([1, 1], 2) == 1
    assert ap([0, 0], 2) == 0
    assert ap([], 2) == 0
    assert np.isnan(ap([0], 0))


def test_average_precision_ranks_by_score_and_ties_by_input_order():
    assert ap([0, 1, 1], 2, scores=[0.1, 0.9, 0.5]) == 1
    assert ap([1, 0], 1, scores=[0.5, 0.5]) == 1
    assert ap([0, 1], 1, scores=[0.5, 0.5]) == 0.5


def test_average_precision_of_random_rankings():
    rng = np.random.default_rng(0)
    for _ in range(50):
        k = rng.integers(1, 20)
        scores, hits = rng.integers(0, 5, k) / 4, rng.random(k) < 0.4
        num_positive = int(hits.sum() + rng.integers(0, 4)) or 1
        order = sorted(range(k), key=lambda i: -scores[i])
        expected = exact_ap([bool(hits[i]) for i in order], num_positive)
        assert metrics.average_precision(scores, hits, num_positive) == pytest.approx(float(expected), abs=1e-12)


def one_class(found, truth, *ious):
    """AP of the only class, of video "v" alone."""
    found, truth = {"v": detections(*found)}, {"v": annotation(*truth)}
    return metrics.detection_map(found, truth, 1, np.array(ious)).ap[:, 0].tolist()


def test_a_threshold_that_is_met_exactly_is_a_hit():
    assert one_class([(0, 3, 0, 1)], [(0, 10, 0)], *metrics.IOUS) == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert one_class([(0, 7, 0, 1)], [(0, 10, 0)], *metrics.IOUS) == [1] * 7 + [0] * 2


def test_a_duplicate_is_a_false_positive_unless_a_neighbour_is_free():
    # Both detections overlap the first segment most (6/10); they overlap the second by 4/10.
    pair = [(0, 10, 0, 0.9), (0, 10, 0, 0.8)]
    assert one_class(pair, [(0, 6, 0), (6, 10, 0)], 0.4, 0.5) == [1, 0.5]
    # The duplicate between two hits costs precision: 1, 1/2, 2/3.
    found = [(0, 10, 0, 0.9), (0, 10, 0, 0.8), (20, 30, 0, 0.7)]
    assert one_class(found, [(0, 10, 0), (20, 30, 0)], 0.5) == pytest.approx([(1 + 2 / 3) / 2])


def test_the_first_in_score_takes_the_segment_even_if_the_second_fits_better():
    found = [(0, 5, 0, 0.9), (0, 10, 0, 0.8)]
    assert one_class(found, [(0, 10, 0)], 0.5, 0.6) == [1, 0.5]


def test_scores_rank_over_all_videos():
    truth = {"v": annotation((0, 10, 0)), "w": annotation((0, 10, 0))}
    found = {"v": detections((0, 10, 0, 0.3), (20, 30, 0, 0.2)), "w": detections((20, 30, 0, 0.4), (0, 10, 0, 0.1))}
    # In order: miss, hit, miss, hit: precision 1/2 at both.
    assert metrics.detection_map(found, truth, 1, np.array([0.5])).ap.tolist() == [[0.5]]


def test_other_videos_and_other_classes_are_false_positives():
    truth = {"v": annotation((0, 10, 0)), "w": annotation((0, 10, 1))}
    hit = detections((0, 10, 0, 0.5))
    before = detections((0, 10, 0, 0.9))
    iou = np.array([0.5])
    for video in ("not annotated", "w"):
        assert metrics.detection_map({video: before, "v": hit}, truth, 2, iou).ap[0].tolist() == [0.5, 0]


def test_classes_without_detections_or_without_truth():
    truth = {"v": annotation((0, 10, 0), (0, 10, 2)), "empty": annotation()}
    found = {"v": detections((0, 10, 0, 0.5), (0, 10, 1, 0.9)), "empty": detections()}
    result = metrics.detection_map(found, truth, 4, np.array([0.5, 0.7])).ap
    np.testing.assert_array_equal(result, [[1, np.nan, 0, np.nan]] * 2)
    np.testing.assert_array_equal(metrics.detection_map({}, truth, 4, np.array([0.5])).ap, [[0, np.nan, 0, np.nan]])
    assert np.isnan(metrics.detection_map({}, {}, 4, np.array([0.5])).ap).all()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_an_error(label):
    good = {"v": annotation((0, 10, 0))}
    with pytest.raises(ValueError, match="detections of video 'w'"):
        metrics.detection_map({"w": detections((0, 1, label, 1))}, good, 2, np.array([0.5]))
    with pytest.raises(ValueError, match="truth of video 'w'"):
        metrics.detection_map({}, {**good, "w": annotation((0, 1, label))}, 2, np.array([0.5]))


@pytest.mark.parametrize("seed", range(30))
def test_detection_ap_is_the_official_rule(seed):
    """Integer seconds and few scores, so that equal scores, equal overlaps and exactly met thresholds are common."""
    rng = np.random.default_rng(seed)
    classes = 3

    def random_segments(k):
        start = rng.integers(0, 12, k)
        return np.stack([start, start + rng.integers(0, 9, k)], axis=1).astype(float)

    truth = {
        f"v{i}": Annotation(random_segments(k), rng.integers(0, classes - (seed % 3 == 0), k))
        for i, k in enumerate(rng.integers(0, 8, 4))
    }
    found = {
        f"v{i}": Detections(random_segments(k), rng.integers(0, classes, k), rng.integers(0, 6, k) / 5)
        for i, k in [(1, 20), (0, 30), (3, 0), (7, 5)]  # v2 has no entry, v7 no truth
    }
    for video in ("v0", "v1"):  # duplicates, and detections that fit
        d, a = found[video], truth[video]
        found[video] = Detections(
            np.concatenate([d.segments, d.segments[:6], a.segments]),
            np.concatenate([d.labels, d.labels[:6], a.labels]),
            np.concatenate([d.scores, d.scores[:6], rng.integers(0, 6, len(a.labels)) / 5]),
        )
    ious = [Fraction(j, 10) for j in range(1, 10)]
    expected = [[float(exact_detection_ap(found, truth, c, iou)) for c in range(classes)] for iou in ious]
    result = metrics.detection_map(found, truth, classes, np.array(metrics.IOUS)).ap
    np.testing.assert_allclose(result, expected, atol=1e-12)
    # Neither the order of videos in the truth nor any increasing function of the scores matters.
    found = {video: d._replace(scores=np.exp(d.scores) - 7) for video, d in found.items()}
    again = metrics.detection_map(found, dict(reversed(truth.items())), classes, np.array(metrics.IOUS)).ap
    np.testing.assert_array_equal(again, result)


def test_published_detections_of_stpn():
    files = [SHARED / "detections/stpn_thumos14_results.json", SHARED / "thumos14/gt_210_videos.json"]
    if not all(file.exists() for file in files):
        pytest.skip("needs the published detections of STPN beside the repository, in ../shared/data")
    results, database = (json.loads(file.read_text()) for file in files)
    results, database = results["results"], database["database"]
    names = sorted({x["label"] for video in database.values() for x in video["annotations"]})
    index = {name: i for i, name in enumerate(names)}
    truth = {
        video: annotation(*((*map(float, x["segment"]), index[x["label"]]) for x in entry["annotations"]))
        for video, entry in database.items()
    }
    found = {
        video: detections(*((*x["segment"], index[x["label"]], x["score"]) for x in entries))
        for video, entries in results.items()
    }
    assert (len(truth), len(names), sum(len(d.labels) for d in found.values())) == (210, 20, 9151)
    result = 100 * metrics.detection_map(found, truth, len(names), np.array(metrics.IOUS)).mean
    # Officially 52.12 44.20 34.70 26.06 17.71 10.09 4.99 1.34 0.10, from an unstable order of equal overlaps.
    np.testing.assert_allclose(result, [52.10, 44.22, 34.72, 26.07, 17.71, 10.09, 4.99, 1.34, 0.10], atol=0.01)


def test_classification_ap():
    labels = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    scores = np.array([[0.9, 0.5, 0.1, 0.8], [0.8, 0.9, 0.2, 0.7], [0.7, 0.9, 0.3, 0.1], [0.1, 0.9, 0.9, 0.1]])
    # Class 0: hit, miss, hit, miss. Class 1: no video has it. Class 2: miss, hit, hit, miss. Class 3: hit, hit, misses.
    expected = [(1 + 2 / 3) / 2, np.nan, 2 / 3, 1]
    np.testing.assert_allclose(metrics.classification_ap(scores, labels), expected)
    np.testing.assert_allclose(metrics.classification_ap(scores.astype(np.float32), labels.astype(float)), expected)
