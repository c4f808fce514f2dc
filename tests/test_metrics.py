import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wsal_jax import matching, metrics
from wsal_jax.types import Annotation, Detections, InputError

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


def exact_raw_ap(hits, num_positive):
    """The mean over the positives of the precision at their rank, in fractions."""
    return sum((Fraction(sum(hits[: k + 1]), k + 1) for k in range(len(hits)) if hits[k]), Fraction(0)) / num_positive


def interval_iou(a, b):
    """Exact IoU of floats, in fractions."""
    (a, b), (c, d) = map(Fraction, map(float, a)), map(Fraction, map(float, b))
    overlap = min(b, d) - max(a, c)
    return overlap / ((b - a) + (d - c) - overlap) if overlap > 0 else Fraction(0)


def of_class(found, truth, c):
    """The detections of a class as (video, index, segment, score) and its true segments as (video, index, segment)."""
    predicted = [
        (v, i, d.segments[i], d.scores[i]) for v, d in found.items() for i in range(len(d.labels)) if d.labels[i] == c
    ]
    true = [(v, j, s) for v, a in truth.items() for j, s in enumerate(a.segments) if a.labels[j] == c]
    return predicted, true


def official_matching(predicted, true, iou):
    """The loop of `compute_average_precision_detection` of the official evaluator, line by line."""
    locked, result = set(), []
    for video, index, segment, _ in sorted(predicted, key=lambda row: -row[3]):  # Python's sort is stable
        here = [(interval_iou(segment, s), j) for v, j, s in true if v == video]
        taken = -1
        for i in np.argsort([float(overlap) for overlap, _ in here], kind="stable")[::-1]:
            overlap, j = here[i]
            if overlap < iou:
                break
            if (video, j) in locked:
                continue
            locked.add((video, j))
            taken = j
            break
        result.append((video, index, taken))
    return result


def by_activitynet(found, truth, c, iou):
    return official_matching(*of_class(found, truth, c), iou)


def by_grid(found, truth, c, iou):
    """CO2-Net: rounds true and ambiguous segments to snippets, drops overlaps with the latter, then matches officially.

    Detections are rounded to 0.001 snippet, so that those on the grid stay on it.
    """
    predicted, true = of_class(found, truth, c)
    predicted = [(v, i, [round(float(t) * 25 / 16, 3) for t in s], score) for v, i, s, score in predicted]
    true = [(v, j, [round(float(t) * 25 / 16) for t in s]) for v, j, s in true]
    kept = []
    for row in predicted:
        ambiguous = truth[row[0]].ambiguous if row[0] in truth else []
        if not any(interval_iou(row[2], [round(float(t) * 25 / 16) for t in a]) > 0 for a in ambiguous):
            kept.append(row)
    return official_matching(kept, true, iou)


def by_wtalc(found, truth, c, iou):
    """W-TALC: everything is a set of snippets."""
    predicted, true = of_class(found, truth, c)
    kept = []
    for video, index, segment, score in predicted:
        start, end = (round(float(t) * 25 / 16) for t in segment)
        if end - start < 2:
            continue
        snippets, dropped = set(range(start, end)), False
        for a in truth[video].ambiguous if video in truth else []:
            dropped |= bool(snippets & set(range(*(round(float(t) * 25 / 16) for t in a))))
        if not dropped:
            kept.append((video, index, snippets, score))
    kept.sort(key=lambda row: -row[3])
    true = [(v, j, set(range(*(round(float(t) * 25 / 16) for t in s)))) for v, j, s in true]
    result = []
    for video, index, snippets, _ in kept:
        taken = -1
        for row in true:
            if row[0] == video and Fraction(len(snippets & row[2]), len(snippets | row[2])) >= iou:
                taken = row[1]
                true.remove(row)
                break
        result.append((video, index, taken))
    return result


def by_thumos_kit(found, truth, c, iou):
    """TH14evalDet: video by video, true segments take detections; the others are false unless ambiguous."""
    predicted, true = of_class(found, truth, c)
    taken = {}
    for video in found:
        free = sorted((row for row in predicted if row[0] == video), key=lambda row: -row[3])
        for v, j, segment in true:
            if v == video and free:
                overlaps = [interval_iou(segment, row[2]) for row in free]
                if max(overlaps) > iou:
                    best = free.pop(overlaps.index(max(overlaps)))
                    taken[video, best[1]] = j
        for _, index, segment, _ in free:
            ambiguous = truth[video].ambiguous if video in truth else []
            taken[video, index] = -2 if any(interval_iou(segment, a) > 0 for a in ambiguous) else -1
    return [(v, i, taken[v, i]) for v, i, _, _ in sorted(predicted, key=lambda row: -row[3])]


def without_copies(truth):
    """`remove_duplicate_annotations` of OpenTAD, as (video, index)."""
    kept = []
    for video, a in truth.items():
        for j, ((start, end), label) in enumerate(zip(a.segments, a.labels)):
            before = [truth[v].segments[i] for v, i in kept if v == video and truth[v].labels[i] == label]
            if end - start > 0 and not any(abs(start - s) <= 1e-3 and abs(end - e) <= 1e-3 for s, e in before):
                kept.append((video, j))
    return kept


def by_opentad(found, truth, c, iou):
    predicted, true = of_class(found, truth, c)
    kept = without_copies(truth)
    return official_matching(predicted, [row for row in true if row[:2] in kept], iou)


RULES = {
    "activitynet": by_activitynet,
    "thumos_kit": by_thumos_kit,
    "wtalc": by_wtalc,
    "grid": by_grid,
    "opentad": by_opentad,
}


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


def random_case(seed, half_snippets=False):
    """Few times and scores, so that equal scores, equal overlaps and exactly met thresholds are common.

    All in steps of 1 second; or the truth in steps of 0.32 s, which is half a snippet, and detections in steps of 0.5.
    """
    rng = np.random.default_rng(seed)
    classes, true_step, step = 3, 0.32 if half_snippets else 1, 0.5 if half_snippets else 1

    def random_segments(k, step):
        start = rng.integers(0, 12, k)
        return step * np.stack([start, start + rng.integers(0, 9, k)], axis=1).astype(float)

    truth = {
        f"v{i}": Annotation(
            random_segments(k, true_step),
            rng.integers(0, classes - (seed % 3 == 0), k),
            true_step
            * np.array([[s, s + rng.integers(0, 3)] for s in rng.integers(0, 40, rng.integers(0, 3))]).reshape(-1, 2),
        )
        for i, k in enumerate(rng.integers(0, 8, 4))
    }
    found = {
        f"v{i}": Detections(random_segments(k, step), rng.integers(0, classes, k), rng.integers(0, 6, k) / 5)
        for i, k in [(1, 20), (0, 30), (3, 0), (7, 5)]  # v2 has no entry, v7 no truth
    }
    for video in ("v0", "v1"):  # duplicates, and detections that fit
        d, a = found[video], truth[video]
        found[video] = Detections(
            np.concatenate([d.segments, d.segments[:6], np.round(2 * a.segments) / 2]),
            np.concatenate([d.labels, d.labels[:6], a.labels]),
            np.concatenate([d.scores, d.scores[:6], rng.integers(0, 6, len(a.labels)) / 5]),
        )
    if seed % 5 == 0:  # a class without detections
        found = {
            v: Detections(*(np.asarray(x)[d.labels != 1] for x in (d.segments, d.labels, d.scores)))
            for v, d in found.items()
        }
    return found, truth, classes


@pytest.mark.parametrize("protocol", RULES)
@pytest.mark.parametrize("seed", range(30))
def test_detections_are_matched_and_scored_by_the_rule(protocol, seed):
    found, truth, classes = random_case(seed, half_snippets=protocol in ("wtalc", "grid") and seed % 2 == 0)
    videos = [*truth, *(v for v in found if v not in truth)]
    ious = [Fraction(j, 10) for j in range(1, 10)]
    matched = metrics.match(found, truth, classes, np.array(metrics.IOUS), protocol)
    result = metrics.detection_map(found, truth, classes, np.array(metrics.IOUS), protocol)
    counted = (
        without_copies(truth) if protocol == "opentad" else [(v, j) for v in truth for j in range(len(truth[v][1]))]
    )
    present = [c for c in range(classes) if any(truth[v].labels[j] == c for v, j in counted)]
    for i, iou in enumerate(ious):
        expected_ap, undetected = [], False
        for c in range(classes):
            expected, of = RULES[protocol](found, truth, c, iou), matched[c]
            assert [(videos[v], k, t) for v, k, t in zip(of.videos, of.index, of.taken[i])] == expected
            positives = [v for v, j in counted if truth[v].labels[j] == c]
            num_positive = len(positives)
            assert of.num_positive.tolist() == [positives.count(v) for v in videos]
            assert of.scores.tolist() == [found[v].scores[k] for v, k, _ in expected]
            if num_positive:
                hits = [t >= 0 for _, _, t in expected if t != -2]
                ap = exact_raw_ap if protocol in ("thumos_kit", "wtalc") else exact_ap
                expected_ap.append(float(ap(hits, int(num_positive))))
                undetected |= not expected
        np.testing.assert_allclose(result.ap[i, present], expected_ap, atol=1e-12)
        mean = 0 if protocol == "wtalc" and undetected else np.mean(expected_ap)
        assert result.mean[i] == pytest.approx(mean, abs=1e-12)
    absent = [c for c in range(classes) if c not in present]
    assert np.isnan(result.ap[:, absent]).all()
    assert result[2:5] == (4, len(present), len(counted))
    assert result.detections == sum(len(RULES[protocol](found, truth, c, iou)) for c in range(classes))
    # Neither the order of videos in the truth nor any increasing function of the scores matters.
    found = {video: d._replace(scores=np.exp(d.scores) - 7) for video, d in found.items()}
    again = metrics.detection_map(found, dict(reversed(truth.items())), classes, np.array(metrics.IOUS), protocol)
    np.testing.assert_array_equal(again.ap, result.ap)


def test_the_random_cases_have_what_tells_protocols_apart():
    """Ambiguous segments that matter, undetected classes, and differences between any two rules."""
    maps = {
        p: [metrics.detection_map(*random_case(seed), np.array(metrics.IOUS), p) for seed in range(30)] for p in RULES
    }
    for p in RULES:
        for q in RULES:
            assert p == q or sum(not np.array_equal(a.mean, b.mean) for a, b in zip(maps[p], maps[q])) > 20
    assert 3 < sum((m.mean == 0).all() for m in maps["wtalc"]) < 27
    assert {len(set(m.detections for m in of)) for of in zip(*maps.values())} >= {3}
    forgiven = [(m.taken == matching.FORGIVEN).any() for s in range(30) for m in matched(s, "thumos_kit")]
    assert 10 < sum(forgiven) < len(forgiven)


def matched(seed, protocol):
    return metrics.match(*random_case(seed), np.array(metrics.IOUS), protocol)


def mean_ap(found, truth, protocol, *ious):
    """Of the only class."""
    return metrics.detection_map({"v": found}, {"v": truth}, 1, np.array(ious), protocol).mean.tolist()


def test_true_segments_choose_in_the_thumos_kit():
    # The better one fits worse. Its rank takes the segment officially; in the kit the segment takes the other.
    found, truth = detections((0, 7, 0, 0.9), (0, 9, 0, 0.8)), annotation((0, 10, 0))
    assert mean_ap(found, truth, "activitynet", 0.5, 0.7, 0.8) == [1, 1, 0.5]
    assert mean_ap(found, truth, "thumos_kit", 0.5, 0.7, 0.8) == [0.5, 0.5, 0.5]
    # An IoU equal to the threshold is not enough.
    assert mean_ap(detections((0, 5, 0, 1)), truth, "thumos_kit", 0.4, 0.5) == [1, 0]
    # The first segment in file order takes what the second one needs.
    truth = annotation((0, 10, 0), (0, 9, 0))
    assert mean_ap(detections((0, 9, 0, 1), (0, 14, 0, 0.5)), truth, "thumos_kit", 0.7) == [0.5]
    assert mean_ap(detections((0, 9, 0, 1), (0, 14, 0, 0.5)), truth, "activitynet", 0.7) == [1]


def test_average_precision_is_not_interpolated_by_two_of_the_protocols():
    found, truth = detections((50, 60, 0, 0.9), (0, 10, 0, 0.8), (20, 30, 0, 0.7)), annotation((0, 10, 0), (20, 30, 0))
    for protocol, expected in {"activitynet": 2 / 3, "grid": 2 / 3, "thumos_kit": 7 / 12, "wtalc": 7 / 12}.items():
        assert mean_ap(found, truth, protocol, 0.5) == pytest.approx([expected])


def test_ambiguous_segments():
    truth = annotation((0, 10, 0))._replace(ambiguous=segments((9, 20), (40, 50)))
    hit, beside, elsewhere = (0, 10, 0, 0.5), (15, 45, 0, 0.9), (70, 80, 0, 0.8)
    for protocol, expected in {"activitynet": 1 / 3, "thumos_kit": 1 / 2, "wtalc": 0, "grid": 0}.items():
        assert mean_ap(detections(hit, beside, elsewhere), truth, protocol, 0.5) == pytest.approx([expected])
    # Touching is no overlap; on the grid (16 / 25 s), [10, 19.8) becomes [16, 31).
    touching = truth._replace(ambiguous=segments((10, 19.8)))
    for protocol in RULES:
        assert mean_ap(detections(hit), touching, protocol, 0.5) == [1]
    at_end = detections(hit, (19.75, 30, 0, 0.9), (20, 30, 0, 0.8))
    assert mean_ap(at_end, touching, "thumos_kit", 0.5) == [0.5]
    assert mean_ap(at_end, touching, "wtalc", 0.5) == pytest.approx([1 / 3])
    assert mean_ap(at_end, touching, "grid", 0.5) == [0.5]


def test_the_snippet_grid():
    # 0.32, 0.96 and 1.6 s are 0.5, 1.5 and 2.5 snippets, which round to even: 0, 2 and 2.
    whole = annotation((0.32, 1.6, 0))
    assert mean_ap(detections((0, 1.28, 0, 1)), whole, "grid", 0.99) == [1]
    assert mean_ap(detections((0, 1.2, 0, 1)), whole, "grid", 0.93, 0.94) == [1, 0]  # 1.875 of 2
    assert mean_ap(detections((0, 1.2, 0, 1)), whole, "wtalc", 0.99) == [1]
    # One snippet is too short for W-TALC, and without detections of a class its mAP is 0.
    assert mean_ap(detections((0, 0.64, 0, 1)), whole, "wtalc", 0.1) == [0]
    assert mean_ap(detections((0, 0.64, 0, 1)), whole, "grid", 0.1) == [1]
    # It takes the first sufficient true segment, not the best.
    truth = annotation((0, 6.4, 0), (0, 12.8, 0))
    found = detections((0, 12.8, 0, 1), (0, 6.4, 0, 0.9))
    assert mean_ap(found, truth, "wtalc", 0.5, 0.6) == [1, 1]
    found = detections((0, 12.8, 0, 1), (0, 4, 0, 0.9))  # 6 snippets of 10, and of 20
    assert mean_ap(found, truth, "wtalc", 0.5) == [0.5]
    assert mean_ap(found, truth, "grid", 0.5) == [1]


def test_detections_on_the_snippet_grid_meet_thresholds_exactly():
    """For all IoUs k / 10 of whole snippets, with times in floating point that are multiples of 0.64 s."""
    for first in range(60):
        truth = annotation((first * 0.64, (first + 10) * 0.64, 0))
        for k in range(1, 10):
            found = detections((first * 0.64, (first + k) * 0.64, 0, 1))
            expected = [float(iou <= k / 10) for iou in metrics.IOUS]
            assert mean_ap(found, truth, "grid", *metrics.IOUS) == expected, (first, k)
            single = found._replace(segments=found.segments.astype(np.float32).astype(np.float64))
            assert mean_ap(single, truth, "grid", *metrics.IOUS) == expected, (first, k)


def test_copies_do_not_count_in_opentad():
    truth = annotation((0, 10, 0), (0.001, 9.9991, 0), (0, 10, 1), (0, 10.0011, 0), (5, 5, 0), (7, 6, 0), (0, 10, 0))
    found = {"v": detections((0, 10, 0, 0.9), (20, 30, 0, 0.8), (0, 10, 0, 0.7), (0, 10, 1, 0.9))}
    result = metrics.detection_map(found, {"v": truth, "w": annotation((0, 10, 0))}, 2, np.array([0.5]), "opentad")
    # Of class 0, one each at 10 s and at 10.0011 s, and that of the other video.
    assert (result.instances, result.classes) == (4, 2)
    assert result.ap[0].tolist() == pytest.approx([(1 + 2 / 3) / 3, 1])
    matched = metrics.match(found, {"v": truth}, 2, np.array([0.5]), "opentad")
    assert matched[0].taken.tolist() == [[0, -1, 3]]  # places in the file
    assert metrics.detection_map(found, {"v": truth}, 2, np.array([0.5])).instances == 7


def test_an_undetected_class():
    truth = {"v": annotation((0, 10, 0), (20, 30, 2))}
    found = {"v": detections((0, 10, 0, 1), (0, 10, 1, 1))}
    for protocol in RULES:
        result = metrics.detection_map(found, truth, 4, np.array([0.5]), protocol)
        np.testing.assert_array_equal(result.ap, [[1, np.nan, 0, np.nan]])
        assert result.mean.tolist() == [0 if protocol == "wtalc" else 0.5]
        assert result[2:] == (1, 2, 2, 2)
        assert np.isnan(metrics.detection_map(found, {}, 4, np.array([0.5]), protocol).mean).all()


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(InputError, match=r"no protocol 'thumos'.*activitynet, thumos_kit, wtalc, grid"):
        metrics.match({}, {}, 1, np.array([0.5]), "thumos")


@pytest.mark.parametrize("protocol", RULES)
def test_pairs_in_parts(protocol, monkeypatch):
    whole = [matched(seed, protocol) for seed in range(5)]
    for size in (1, 7):
        monkeypatch.setattr(matching, "PAIRS_AT_ONCE", size)
        for seed in range(5):
            for a, b in zip(whole[seed], matched(seed, protocol)):
                for x, y in zip(a, b):
                    np.testing.assert_array_equal(x, y)


def test_many_detections_are_matched_fast():
    """They take a few hundredths of a second; one at a time in Python they would take minutes."""
    rng = np.random.default_rng(0)
    truth, found = {}, {}
    for v in range(212):
        start = 200 * rng.random((16 + 142, 1))
        all_segments = np.concatenate([start, start + 1 + rng.exponential(4, start.shape)], axis=1)
        truth[str(v)] = Annotation(all_segments[:16], np.full(16, v % 20))
        found[str(v)] = Detections(all_segments[16:], np.full(142, v % 20), rng.random(142))
    for protocol in RULES:
        start = time.process_time()
        result = metrics.detection_map(found, truth, 20, np.array(metrics.IOUS), protocol)
        assert time.process_time() - start < 2
        assert (result.mean[:5] > 0.01).all()


def resampled(found, truth, copies):
    """The data set with each video repeated according to `copies`."""
    videos = [*truth, *(v for v in found if v not in truth)]
    times = dict(zip(videos, copies))
    return tuple({f"{v}#{j}": x for v, x in of.items() for j in range(times[v])} for of in (found, truth))


@pytest.mark.parametrize("protocol", RULES)
@pytest.mark.parametrize("seed", range(6))
def test_bootstrap_is_the_evaluation_of_resampled_videos(protocol, seed):
    found, truth, classes = random_case(seed)
    rng = np.random.default_rng(seed)
    scores = iter(rng.permutation(1000) / 1000)  # no equal ones
    found = {v: d._replace(scores=np.array([next(scores) for _ in d.scores])) for v, d in found.items()}
    ious, samples, level = np.array([0.1, 0.3, 0.7]), 12, 0.6
    copies = np.random.default_rng(3).multinomial(5, [0.2] * 5, samples)
    assert (copies == 0).any() and (copies > 2).any()
    by_hand = np.array(
        [metrics.detection_map(*resampled(found, truth, c), classes, ious, protocol).mean for c in copies]
    )
    columns = [*by_hand.T, by_hand.mean(axis=1)]
    mean = metrics.detection_map(found, truth, classes, ious, protocol).mean
    whole = [*mean, mean.mean()]
    expected = [np.clip(2 * m - np.nanpercentile(column, [80, 20]), 0, 1) for m, column in zip(whole, columns)]
    result = metrics.bootstrap(metrics.match(found, truth, classes, ious, protocol), protocol, samples, 3, level)
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_bootstrap_in_parts_and_copies_of_equal_scores(monkeypatch):
    for protocol in RULES:
        of = matched(1, protocol)
        whole = metrics.bootstrap(of, protocol, 50)
        monkeypatch.setattr(metrics, "WEIGHTS_AT_ONCE", 100)
        np.testing.assert_array_equal(metrics.bootstrap(of, protocol, 50), whole)
        monkeypatch.undo()
    # As many copies of the only video as there are: itself.
    found, truth = {"v": detections((0, 10, 0, 0.5), (0, 9, 0, 0.5), (20, 30, 0, 0.5))}, {"v": annotation((20, 30, 0))}
    of = metrics.match(found, truth, 1, np.array([0.5]))
    np.testing.assert_allclose(metrics.bootstrap(of, samples=5), [[1 / 3, 1 / 3]] * 2)


def test_bootstrap_leaves_out_a_class_that_does_not_occur():
    """By W-TALC's rule, a class that occurs and is never detected makes the mAP 0; one that does not occur does not."""
    found, truth = {"v": detections((0, 10, 0, 1.0))}, {"v": annotation((0, 10, 0))}
    of = metrics.match(found, truth, 2, np.array([0.5]), "wtalc")
    np.testing.assert_allclose(metrics.bootstrap(of, "wtalc", samples=5), [[1, 1]] * 2)


def test_bootstrap_interval():
    """Each of 100 videos is a hit or not; the interval must have the spread of a binomial distribution."""
    hit = np.arange(100) < 60
    truth = {str(v): annotation((0, 10, 0)) for v in range(100)}
    found = {str(v): detections((0, 10, 0, 1.0)) for v in range(100) if hit[v]}
    low, high = metrics.bootstrap(metrics.match(found, truth, 1, np.array([0.5])), samples=4000)[0]
    spread = 1.96 * np.sqrt(0.6 * 0.4 / 100)
    assert low == pytest.approx(0.6 - spread, abs=0.015) and high == pytest.approx(0.6 + spread, abs=0.015)
    with pytest.raises(InputError, match="no true segments"):
        metrics.bootstrap(metrics.match(found, {}, 1, np.array([0.5])))


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
    assert [f"{x:.1f}" for x in result] == ["52.1", "44.2", "34.7", "26.1", "17.7", "10.1", "5.0", "1.3", "0.1"]


def test_classification_ap():
    labels = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    scores = np.array([[0.9, 0.5, 0.1, 0.8], [0.8, 0.9, 0.2, 0.7], [0.7, 0.9, 0.3, 0.1], [0.1, 0.9, 0.9, 0.1]])
    # Class 0: hit, miss, hit, miss. Class 1: no video has it. Class 2: miss, hit, hit, miss. Class 3: hit, hit, misses.
    expected = [(1 + 2 / 3) / 2, np.nan, 2 / 3, 1]
    np.testing.assert_allclose(metrics.classification_ap(scores, labels), expected)
    np.testing.assert_allclose(metrics.classification_ap(scores.astype(np.float32), labels.astype(float)), expected)
    # Not interpolated, class 2 has 1/2 and 2/3.
    expected[2] = (1 / 2 + 2 / 3) / 2
    np.testing.assert_allclose(metrics.classification_ap(scores, labels, interpolate=False), expected)


def test_clip_ap_by_hand():
    match = np.array([1, 0, 1, -1])
    # Precision 1 (before: 1), 1/2, 2/3 (before: 1/2).
    assert metrics.clip_ap(np.array([0.9, 0.8, 0.7, 0.6]), match) == pytest.approx((1 + (2 / 3 + 1 / 2) / 2) / 2)
    # A miss first: 0, 1/2 (before: 0), 1/3, 1/2 (before 1/3).
    assert metrics.clip_ap(np.array([0.8, 0.7, 0.6, 0.9]), match) == pytest.approx((1 / 4 + 5 / 12) / 2)
    assert metrics.clip_ap(np.array([0.2, 0.1, 0.3, 0.1]), match) == 1
    assert metrics.clip_ap(np.zeros(4), match) == metrics.clip_ap(-np.arange(4.0), match)
    assert metrics.clip_ap(np.zeros(3), np.ones(3, int)) == 1
    assert np.isnan(metrics.clip_ap(np.zeros(2), np.array([0, -1])))


def test_clip_ap_is_the_area_by_trapezoids():
    rng = np.random.default_rng(0)
    for _ in range(30):
        k = rng.integers(2, 12)
        scores, match = rng.random(k), np.append(1, rng.integers(-1, 2, k - 1))
        order, positives = sorted(range(k), key=lambda i: -scores[i]), sum(match > 0)
        recall, precision = [Fraction(0)], [Fraction(1)]
        for n in range(1, k + 1):
            hits = sum(int(match[i] > 0) for i in order[:n])
            recall.append(Fraction(hits, int(positives)))
            precision.append(Fraction(hits, n))
        area = sum((recall[n] - recall[n - 1]) * (precision[n] + precision[n - 1]) / 2 for n in range(1, k + 1))
        assert metrics.clip_ap(scores, match) == pytest.approx(float(area))


def test_highlight_map():
    good, bad, none = np.array([0.9, 0.1]), np.array([0.1, 0.9]), np.array([-1, 0])
    videos = [("a", good, np.array([1, -1])), ("b", bad, np.array([1, -1])), ("a", bad, np.array([1, 1]))]
    videos += [("b", good, none), ("c", good, none), ("b", good, np.array([1, 0]))]
    assert metrics.highlight_map(videos) == ({"a": 1, "b": (1 / 4 + 1) / 2}, (1 + 5 / 8) / 2)
    assert metrics.highlight_map([])[0] == {} and np.isnan(metrics.highlight_map([])[1])


def test_random_scores_of_highlights():
    folder = SHARED / "youtube_highlights"
    if not folder.exists():
        pytest.skip("needs the clips of YouTube Highlights beside the repository, in ../shared/data")
    clips = json.loads((folder / "clips.json").read_text())
    test = (folder / "split_test.txt").read_text().split()
    rng = np.random.default_rng(0)
    maps = []
    for _ in range(60):
        videos = [(clips[v]["domain"], rng.random(len(clips[v]["match"])), np.array(clips[v]["match"])) for v in test]
        by_domain, mean = metrics.highlight_map(videos)
        maps.append(mean)
    assert len(test) == 157 and len(by_domain) == 6
    assert 100 * np.mean(maps) == pytest.approx(51.1, abs=0.5)


def test_attention_statistics_are_those_of_sets():
    """Table 2 of DGAM, by Python's sets over (video, snippet)."""
    rng = np.random.default_rng(0)
    videos = [rng.random((3, n)) < 0.5 for n in (4, 30, 1)]
    gt, att, cls = ({(v, int(t)) for v, video in enumerate(videos) for t in np.flatnonzero(video[i])} for i in range(3))
    expected = [len(att - gt), len(gt - att), len((cls - gt) - att), len((att & gt) - cls)]
    result = metrics.attention_statistics([tuple(video) for video in videos])
    assert list(result.values()) == [x / len(gt) for x in expected]
    assert list(result) == ["|att - gt|", "|gt - att|", "|(cls - gt) - att|", "|(att & gt) - cls|"]
    without = metrics.attention_statistics([(video[0], video[1], None) for video in videos])
    assert without == {name: result[name] for name in list(result)[:2]}
    nothing = np.zeros(3, bool)
    assert np.isnan(metrics.attention_statistics([(nothing, ~nothing, nothing)])["|att - gt|"])
