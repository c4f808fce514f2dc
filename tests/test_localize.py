import math
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from wsal_jax import localize
from wsal_jax.types import Annotation, Detections, InputError, Meta, Model, Scores


def meta(length, duration=1e9, fps=1.0, stride=1.0, offset=0.5):
    """By default snippet i covers the seconds [i, i + 1)."""
    return Meta("v", length, fps, stride, offset, duration)


def config(reject=0.1, thresholds=(0.2,), nms=0.5, soft_nms=0.0):
    return ConfigDict(dict(reject=reject, thresholds=thresholds, nms=nms, soft_nms=soft_nms))


def scores(cas, video_score):
    cas = np.array(cas, np.float32)
    return Scores(np.array(video_score, np.float32), cas, cas.sum(axis=1), (cas,), 2 * cas)


def propose(scores, meta, options):
    return localize.propose((), Model(scores, options), meta)


def rows(detections):
    """Detections as sorted rows (label, start, end, score)."""
    return sorted(zip(detections.labels.tolist(), *detections.segments.T.tolist(), detections.scores.tolist()))


def approx(expected):
    return [pytest.approx(row, abs=1e-6) for row in expected]


def test_predicted_classes():
    p = np.array([0.05, 0.1, 0.9, 0.0999], np.float32)
    assert localize.predicted_classes(p, 0.1).tolist() == [1, 2]  # 0.1 is not below 0.1, in float32 either
    assert localize.predicted_classes(p, 0.95).tolist() == [2]
    assert localize.predicted_classes(np.zeros(3), 0.1).tolist() == [0]
    assert localize.predicted_classes(np.zeros(3), 0.0).tolist() == [0, 1, 2]


def test_components_of_all_masks():
    for bits in range(2**8):
        mask = np.array([bits >> i & 1 for i in range(8)], bool)
        runs = localize.components(mask)
        covered = np.zeros(8, int)
        for first, end in runs:
            covered[first:end] += 1
            assert first < end and not mask[max(first - 1, 0) : first].any() and not mask[end : end + 1].any()
        np.testing.assert_array_equal(covered, mask)
    assert localize.components(np.zeros(0, bool)).shape == (0, 2)


def test_runs_above_each_level():
    values = np.array([0.1, 0.5, 0.4, 0.0, 0.5])
    assert localize.runs_above(values, [0.4, 0.2, 0.6]).tolist() == [[1, 2], [4, 5], [1, 3], [4, 5]]


def test_sums_and_means_of_runs():
    """Against integrals of a step function in steps of 1/1000; values outside are 0."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=9)
    runs = np.sort(rng.integers(-2000, 11_000, (200, 2)), axis=1)
    runs[:3] = [[-900, -10], [9000, 9500], [4000, 4000]]
    fine = np.repeat(values, 1000) / 1000
    parts = [fine[max(start, 0) : max(end, 0)] for start, end in runs.tolist()]
    np.testing.assert_allclose(localize.run_sums(values, runs / 1000), [x.sum() for x in parts], atol=1e-12)
    means = [1000 * x.mean() if len(x) else 0 for x in parts]
    np.testing.assert_allclose(localize.run_means(values, runs / 1000), means, atol=1e-9)
    whole = np.array([[0, 4], [4, 9]])
    np.testing.assert_array_equal(
        localize.run_sums(values, whole), [np.cumsum(values)[3], np.cumsum(values)[8] - np.cumsum(values)[3]]
    )
    assert localize.run_means(values, np.zeros((0, 2), int)).shape == (0,)


def test_upsampled_values():
    values = np.array([[0.0, 3], [1, 3], [5, 1]])
    expected = np.array([0, 0.25, 0.5, 0.75, 1, 2, 3, 4, 5, 6, 7, 8])
    found = localize.upsample(values, 4)
    np.testing.assert_allclose(found[:, 0], expected)
    np.testing.assert_allclose(found[:, 1], [3, 3, 3, 3, 3, 2.5, 2, 1.5, 1, 0.5, 0, -0.5])
    np.testing.assert_allclose(localize.upsample(values[:1], 2), [[0, 3], [0, 3]])


def test_no_detections_are_joined():
    assert [x.shape for x in localize.join([])] == [(0, 2), (0,), (0,)]


def plain_nms(segments, scores, iou):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        for j in kept:
            (a, b), (c, d) = segments[i], segments[j]
            intersection = max(min(b, d) - max(a, c), 0)
            if intersection > 0 and intersection / (b - a + d - c - intersection) > iou:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 1.0])
def test_nms_is_the_plain_definition(iou):
    rng = np.random.default_rng(0)
    for k in (0, 1, 2, 40, 40, 40):
        segments = np.sort(rng.integers(0, 15, (k, 2)), axis=1).astype(float)
        p = rng.integers(0, 10, k) / 9
        assert localize.nms(segments, p, iou).tolist() == plain_nms(segments, p, iou)


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7])
def test_nms_of_fractional_segments(iou):
    rng = np.random.default_rng(1)
    for k in (5, 60, 60):
        segments = 20 * rng.random((k, 1)) + np.stack([np.zeros(k), rng.exponential(3, k)], axis=1)
        p = rng.random(k)
        assert localize.nms(segments, p, iou).tolist() == plain_nms(segments, p, iou)


def many_segments():
    rng = np.random.default_rng(0)
    segments = 20_000 * rng.random((10_000, 1)) + np.stack([np.zeros(10_000), rng.exponential(4, 10_000)], axis=1)
    return segments, rng.random(10_000)


def test_nms_of_many_segments_is_fast():
    start = time.process_time()
    assert 5000 < len(localize.nms(*many_segments(), 0.5)) < 10_000
    localize.soft_nms(*many_segments(), 0.5)
    assert time.process_time() - start < 10


def test_nms_at_the_threshold_and_of_short_segments():
    p = np.array([0.5, 0.9])
    assert localize.nms(np.array([[0.0, 1], [0, 2]]), p, 0.5).tolist() == [1, 0]
    assert localize.nms(np.array([[0.0, 1], [0, 1.99]]), p, 0.5).tolist() == [1]
    assert localize.nms(np.array([[0.0, 1], [0.5, 1.5]]), p, 0.5).tolist() == [1, 0]  # 0.6 where 1 is added to lengths


def test_a_suppressed_segment_does_not_suppress():
    segments = np.array([[0.0, 10], [3, 13], [6, 16]])  # neighbours overlap by 7/13, the outer two by 4/16
    assert localize.nms(segments, np.array([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def plain_soft_nms(segments, scores, sigma):
    """Figure 2 of Bodla et al., on segments."""
    rest, result = dict(enumerate(scores.tolist())), {}
    while rest:
        best = max(rest, key=rest.get)  # the first of equal ones
        result[best] = rest.pop(best)
        for i in rest:
            (a, b), (c, d) = segments[best].tolist(), segments[i].tolist()
            intersection = max(min(b, d) - max(a, c), 0)
            iou = intersection / (b - a + d - c - intersection) if intersection > 0 else 0
            rest[i] *= math.exp(-(iou**2) / sigma)
    return [result[i] for i in range(len(scores))]


@pytest.mark.parametrize("sigma", [1e-4, 0.3, 0.5, 2])
def test_soft_nms_is_the_plain_definition(sigma):
    rng = np.random.default_rng(0)
    for k in (0, 1, 2, 40, 40, 40):
        segments = np.sort(rng.integers(0, 15, (k, 2)), axis=1).astype(float)
        p = rng.integers(0, 10, k) / 9
        np.testing.assert_allclose(
            localize.soft_nms(segments, p, sigma), plain_soft_nms(segments, p, sigma), atol=1e-14
        )


def test_soft_nms_by_hand():
    # IoU 1/2 with the best; the third decays by 1/4 with the best and by 1/2 with the second.
    segments = np.array([[0.0, 2], [0, 4], [0, 1]])
    p = np.array([0.8, 1.0, 0.3])
    decay = [np.exp(-(iou**2) / 0.5) for iou in (1 / 2, 1 / 4)]
    expected = [0.8 * decay[0], 1.0, 0.3 * decay[1] * decay[0]]
    np.testing.assert_allclose(localize.soft_nms(segments, p, 0.5), expected)
    np.testing.assert_array_equal(p, [0.8, 1.0, 0.3])  # the input is left alone
    for sigma in (0, -1.0):
        with pytest.raises(InputError, match="sigma"):
            localize.soft_nms(segments, p, sigma)


def test_the_order_of_soft_nms_is_that_of_the_decayed_scores():
    # The second decays to less than the third, which then does not decay by it first.
    segments = np.array([[0.0, 10], [0, 9], [8, 10]])
    p = np.array([0.9, 0.8, 0.7])
    second = 0.8 * np.exp(-(0.9**2) / 0.1)
    third = 0.7 * np.exp(-(0.2**2) / 0.1)
    expected = [0.9, second * np.exp(-(0.1**2) / 0.1), third]
    np.testing.assert_allclose(localize.soft_nms(segments, p, 0.1), expected)


def plain_returning_nms(segments, scores, iou, sigma):
    result, kept = scores.astype(float), []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        overlaps = [localize.temporal_iou(segments[[i]], segments[[j]])[0, 0] for j in kept]
        by = next((o for o in overlaps if o > iou), None)
        if by is None:
            kept.append(i)
        else:
            result[i] *= math.exp(-(by**2) / sigma)
    return result


@pytest.mark.parametrize("iou", [0.0, 0.4, 0.7])
def test_returning_nms_is_the_plain_definition(iou):
    rng = np.random.default_rng(0)
    for k in (0, 1, 2, 40, 40):
        segments = 15 * rng.random((k, 1)) + np.stack([np.zeros(k), rng.exponential(3, k)], axis=1)
        p = rng.integers(0, 10, k) / 9
        expected = plain_returning_nms(segments, p, iou, 0.3)
        np.testing.assert_allclose(localize.returning_nms(segments, p, iou, 0.3), expected, rtol=1e-12)


def test_a_returning_segment_decays_once():
    """The last overlaps two that are kept, by 0.6 and 0.5; the one of higher score suppresses it."""
    segments = np.array([[0.0, 6], [6, 11], [0, 10]])
    found = localize.returning_nms(segments, np.array([0.9, 0.8, 0.7]), 0.4, 0.3)
    np.testing.assert_allclose(found, [0.9, 0.8, 0.7 * math.exp(-(0.6**2) / 0.3)])
    with pytest.raises(InputError, match="sigma of NMS with decayed return is 0"):
        localize.returning_nms(segments, np.ones(3), 0.4, 0)


def test_contrast_is_the_mean_inside_minus_that_of_both_flanks():
    values = np.random.default_rng(0).random(12)
    runs = np.array([[0, 3], [0, 4], [2, 10], [3, 12], [0, 12], [11, 12]])
    for (i, j), found in zip(runs.tolist(), localize.contrast(values, runs)):
        near = [t for t in range(12) if i - (j - i) // 4 <= t < i or j <= t < j + (j - i) // 4]
        assert found == pytest.approx(values[i:j].mean() - (values[near].mean() if near else 0))


def test_proposals_by_contrast():
    """Two classes share the runs of one level; equal runs stay; the upsampled level has edges of parts of snippets."""
    level = np.array([0, 0.6, 0.6, 0, 0.3])
    values = np.stack([level, -level, np.ones(5)], axis=1)
    options = ConfigDict(dict(reject=0.2, thresholds=(0.2, 0.5), prior=0.2))
    found = localize.by_contrast(level[:, None], values, np.array([0.5, 0.3, 0.1]), meta(5), options)
    first = [(0, 1, 3, 0.7), (0, 1, 3, 0.7), (0, 4, 5, 0.4)]
    assert rows(found) == approx([*first, (1, 1, 3, 0), (1, 1, 3, 0), (1, 4, 5, 0)])
    high = localize.upsample(values, 4)
    fine = localize.by_contrast(high, high, np.array([0.9, 0, 0]), meta(5), options)
    assert [row[1:3] for row in rows(fine)] == [(0.5, 2.75), (1.0, 2.25), (3.75, 5.0), (4.75, 5.0)]
    own = localize.by_contrast(values, values, np.array([0, 0.3, 0.3]), meta(5), options)
    assert rows(own) == approx([(2, 0, 5, 1.06), (2, 0, 5, 1.06)])  # of class 1 nothing is above a threshold


def test_scores_are_decayed_within_a_class():
    segments, p = np.array([[0.0, 2], [0, 2], [5, 6], [0, 2]]), np.array([0.5, 0.7, 0.6, 0.9])
    found = Detections(segments, np.array([1, 0, 1, 1]), p)
    decayed = localize.rescore_by_class(found, lambda segments, p: localize.soft_nms(segments, p, 0.5))
    assert rows(decayed) == approx([(0, 0, 2, 0.7), (1, 0, 2, 0.5 * math.exp(-2)), (1, 0, 2, 0.9), (1, 5, 6, 0.6)])
    nothing = Detections(segments[:0], np.zeros(0, int), p[:0])
    assert not len(localize.rescore_by_class(nothing, np.multiply).scores)


def test_propose_by_soft_nms():
    cas = [[0.4], [0.4], [1], [0.4], [0.4], [0.4]]
    # [0, 6) at 0.2 and [2, 3) at 0.5 overlap by 1/6.
    found = propose(scores(cas, [1]), meta(6), config(thresholds=(0.2, 0.5), nms=0.1, soft_nms=0.5))
    assert rows(found) == approx([(0, 0, 6, 0.5 * np.exp(-1 / 18)), (0, 2, 3, 1)])
    assert found.scores[0] == 1
    with pytest.raises(InputError, match="sigma"):
        propose(scores(cas, [1]), meta(6), config(soft_nms=-0.5))


def test_propose_by_hand():
    # Class 0: threshold 0.2 * 0.5 = 0.1, which a snippet must exceed; class 1 is rejected; class 2 is 0 throughout.
    cas = np.zeros((7, 3))
    cas[:, 0] = [0.25, 0.5, 0.05, 0.05, 0.2, 0.3, 0.125]
    cas[:, 1] = 1
    found = propose(scores(cas, [0.8, 0.05, 0.9]), meta(7), config())
    assert rows(found) == approx([(0, 0, 2, 0.8 * 0.375), (0, 4, 7, 0.8 * 0.625 / 3)])


def test_propose_needs_more_than_the_threshold():
    found = propose(scores([[1.0], [0.5], [0.51]], [1]), meta(3), config(thresholds=(0.5,)))
    assert rows(found) == approx([(0, 0, 1, 1), (0, 2, 3, 0.51)])


def test_propose_in_seconds():
    """A snippet of 16 frames about frame 8 + 16 i at 25 fps: the edges of [first, last] are at 16 i / 25."""
    found = propose(scores([[0.0], [0], [1], [1], [0]], [0.5]), meta(5, fps=25.0, stride=16.0, offset=8.0), config())
    assert rows(found) == approx([(0, 2 * 0.64, 4 * 0.64, 0.5)])


def test_propose_clips_and_drops_what_is_outside():
    cas = [[1.0], [0], [1], [1], [0], [1]]
    found = propose(scores(cas, [1]), meta(6, duration=3.25, offset=0.0), config())
    # Snippet 0 begins before the video, snippet 3 ends after it, snippet 5 lies after it.
    assert rows(found) == approx([(0, 0, 0.5, 1), (0, 1.5, 3.25, 1)])
    found = propose(scores(cas, [1]), meta(6, duration=4.5, offset=0.0), config())
    assert rows(found) == approx([(0, 0, 0.5, 1), (0, 1.5, 3.5, 1)])  # snippet 5 begins where the video ends


def test_propose_joins_thresholds_by_nms():
    cas = [[0.4], [0.4], [1], [0.4], [0.4], [0.4]]
    # [0, 6) at 0.2 and [2, 3) at 0.5 overlap by 1/6.
    both = [(0, 0, 6, 0.5), (0, 2, 3, 1)]
    assert rows(propose(scores(cas, [1]), meta(6), config(thresholds=(0.2, 0.5)))) == approx(both)
    assert rows(propose(scores(cas, [1]), meta(6), config(thresholds=(0.2, 0.5), nms=0.1))) == approx(both[1:])
    assert rows(propose(scores(cas, [1]), meta(6), config(thresholds=(0.2, 0.3, 0.5)))) == approx(both)


def test_propose_does_not_suppress_across_classes():
    found = propose(scores([[1.0, 0.9], [0, 0]], [0.5, 0.5]), meta(2), config(nms=0.0))
    assert rows(found) == approx([(0, 0, 1, 0.5), (1, 0, 1, 0.45)])


@pytest.mark.parametrize("seed", range(10))
def test_propose_is_the_plain_definition(seed):
    rng = np.random.default_rng(seed)
    n, c, options = 40, 4, config(thresholds=(0.1, 0.3, 0.6), nms=0.43)  # no ratio of snippet counts is 0.43
    s = scores(rng.random((n, c)) ** 4, rng.random(c) ** 2)
    m = meta(n, fps=29.97, stride=16.0, offset=3.0, duration=20.0)
    expected = []
    for label in [i for i in range(c) if s.video_score[i] >= 0.1] or [int(np.argmax(s.video_score))]:
        cas, segments, p = s.cas[:, label].tolist(), [], []
        for threshold in (0.1, 0.3, 0.6):
            inside = [x > threshold * max(cas) for x in cas]
            for first in range(n):
                if inside[first] and (first == 0 or not inside[first - 1]):
                    last = first
                    while last + 1 < n and inside[last + 1]:
                        last += 1
                    start, end = ((3 + (i * 16)) / 29.97 for i in (first - 0.5, last + 0.5))
                    start, end = max(start, 0), min(end, 20)
                    if start < end:
                        segments.append((start, end))
                        p.append(float(s.video_score[label]) * sum(cas[first : last + 1]) / (last - first + 1))
        expected += [(label, *segments[i], p[i]) for i in plain_nms(segments, p, 0.43)]
    assert len(expected) > 4
    assert rows(propose(s, m, options)) == approx(sorted(expected))


def test_propose_without_detections():
    for cas in (np.zeros((5, 2)), np.zeros((0, 2))):
        found = propose(scores(cas, [0.9, 0.0]), meta(len(cas)), config())
        assert [x.shape for x in found] == [(0, 2), (0,), (0,)]


def test_propose_refuses_padding():
    with pytest.raises(ValueError, match=r"video 'v': the CAS has 5 snippets, the video 4"):
        propose(scores(np.ones((5, 1)), [1]), meta(4), config())


def test_whole_video():
    s = scores(np.zeros((3, 3)), [0.7, 0.01, 0.2])
    assert rows(localize.whole_video(s, meta(3, duration=12.5), config())) == approx(
        [(0, 0, 12.5, 0.7), (2, 0, 12.5, 0.2)]
    )
    assert rows(localize.whole_video(s, meta(3, duration=12.5), config(reject=0.8))) == approx([(0, 0, 12.5, 0.7)])


def test_shuffle():
    cas = np.arange(40.0).reshape(20, 2)
    s = scores(cas, [0.3, 0.6])
    shuffled = localize.shuffle(s, np.random.default_rng(0))
    assert shuffled.extras is None and shuffled.class_attention is None
    np.testing.assert_array_equal(shuffled.evidence, 2 * shuffled.cas)
    np.testing.assert_array_equal(shuffled.video_score, s.video_score)
    np.testing.assert_array_equal(shuffled.attention, shuffled.cas.sum(axis=1))  # the same order in both
    assert shuffled.cas.tolist() != cas.tolist() and sorted(shuffled.cas.tolist()) == cas.tolist()
    np.testing.assert_array_equal(s.cas, cas)  # the original is left alone
    np.testing.assert_array_equal(localize.shuffle(s, np.random.default_rng(0)).cas, shuffled.cas)
    assert localize.shuffle(s, np.random.default_rng(1)).cas.tolist() != shuffled.cas.tolist()


def test_a_snippet_is_inside_by_its_centre():
    """Centres at 0.5, 1.5, ...: a start belongs to the segment, an end does not; classes do not matter."""
    meta = Meta("v", 6, 10.0, 10.0, 5.0, 6.0)
    annotation = Annotation(np.array([[0.6, 1.5], [2.5, 3.5], [2.0, 2.6]]), np.array([0, 1, 0]))
    assert localize.inside(annotation, meta).tolist() == [False, False, True, False, False, False]
    assert not localize.inside(Annotation(np.zeros((0, 2)), np.zeros(0, int)), meta).any()
