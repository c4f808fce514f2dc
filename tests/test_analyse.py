"""Against slow direct versions of DETAD's definitions, on many small random cases, and by hand."""

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from wsal_jax import analyse, metrics, plot_analysis, selection
from wsal_jax.formats import submissions
from wsal_jax.types import Annotation, Detections, InputError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
HIT, DOUBLE, LABEL, LOCALIZATION, CONFUSION, BACKGROUND = analyse.TYPES


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


def exact_ranking(found, truth, c, iou):
    """The detections of a class, best first, as (type, the (video, index) it hits, (video, index) of itself)."""
    rows = [
        (score, video, i)
        for video, d in found.items()
        for i, (label, score) in enumerate(zip(d.labels, d.scores))
        if label == c
    ]
    taken, result = set(), []
    for _, video, i in sorted(rows, key=lambda row: -row[0]):
        segment = found[video].segments[i]
        true = [(exact_iou(segment, s), j) for j, s in enumerate(truth[video].segments)] if video in truth else []
        labels = truth[video].labels if video in truth else []
        free = [(o, j) for o, j in true if labels[j] == c and o >= iou and (video, j) not in taken]
        if free:
            hit = (video, max(free)[1])
            taken.add(hit)
            result.append((HIT, hit, (video, i)))
            continue
        most = max((o for o, _ in true), default=0)
        own = any(labels[j] == c for o, j in [x for x in true if x[0] == most][:1])  # the first in the file
        if most >= iou:
            kind = DOUBLE if own else LABEL
        elif most >= Fraction(1, 10):
            kind = LOCALIZATION if own else CONFUSION
        else:
            kind = BACKGROUND
        result.append((kind, None, (video, i)))
    return result


def exact_ap_n(hits, num_positive, n):
    """The mean over all positives of the best normalized precision from its hit on."""
    precision, true, false = [], 0, 0
    for hit in hits:
        true, false = true + hit, false + (not hit)
        positive = Fraction(true, num_positive) * n
        precision.append(positive / (positive + false))
    return sum((max(precision[k:]) for k, hit in enumerate(hits) if hit), Fraction(0)) / num_positive


def exact_mean(values):
    values = list(values)
    return float(sum(values, Fraction(0)) / len(values)) if values else math.nan


def exact_bucket(value, bounds):
    return next((b for b, bound in enumerate(bounds) if value <= bound), len(bounds))


def official_map(found, truth, classes, iou):
    return metrics.detection_map(found, truth, classes, np.array([float(iou)])).mean[0]


def random_case(seed, classes=3):
    """Integer seconds and few scores, so that all types, equal scores and exactly met thresholds are common."""
    rng = np.random.default_rng(seed)

    def random_segments(k):
        start = rng.integers(0, 15, k)
        return np.stack([start, start + rng.integers(1, 8, k)], axis=1).astype(float)

    truth = {f"v{i}": Annotation(random_segments(k), rng.integers(0, classes - 1, k)) for i, k in enumerate([6, 0, 9])}
    # Segments of class 0 often have class 1 too, like CliffDiving and Diving.
    a = truth["v2"]
    truth["v2"] = Annotation(np.concatenate([a.segments] * 2), np.concatenate([a.labels, 1 - a.labels]))
    found = {"unknown": (random_segments(3), rng.integers(0, classes, 3)), "v1": (random_segments(4), np.zeros(4, int))}
    for video in ("v2", "v0"):
        a = truth[video]
        moved = a.segments + rng.integers(-2, 3, (len(a.labels), 1))
        found[video] = (
            np.concatenate([a.segments[::2], moved, moved, random_segments(12)]),
            np.concatenate([a.labels[::2], a.labels, 1 - a.labels, rng.integers(0, classes, 12)]),
        )
    return {v: Detections(s, y, rng.integers(0, 9, len(y)) / 8) for v, (s, y) in found.items()}, truth, classes


def test_neither_jax_nor_matplotlib_is_imported():
    code = "import sys, wsal_jax.analyse; print(*(m for m in ('jax', 'scipy', 'matplotlib') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "found, expected",
    [
        ((0, 10, 0), DOUBLE),  # IoU 1 with its own label
        ((0, 5, 0), DOUBLE),  # 1/2, exactly the threshold
        ((0, 4, 0), LOCALIZATION),
        ((0, 1, 0), LOCALIZATION),  # 1/10, exactly
        ((10, 20, 0), BACKGROUND),
        ((9, 28, 0), BACKGROUND),  # 1/28
        ((40, 50, 0), LABEL),
        ((45, 50, 0), LABEL),
        ((46, 50, 0), CONFUSION),
        ((49, 50, 0), CONFUSION),
        # Where several hold, the segment overlapped most decides.
        ((100, 106, 0), LABEL),  # 6/10 of its own label, 1 of another
        ((100, 110, 0), DOUBLE),  # 1 of its own label, 6/10 of another
        ((107, 110, 0), LOCALIZATION),  # 3/10 of its own label, none of another
        ((103, 105, 0), CONFUSION),  # 2/10 of its own label, 2/6 of another
        ((100, 120, 0), DOUBLE),  # 1/2 of its own label, 6/20 of another
        # Of two that are overlapped equally, the first in the file, which here has label 1.
        ((200, 210, 0), LABEL),
        ((200, 203, 0), CONFUSION),
        ((200, 210, 1), DOUBLE),
        ((200, 203, 1), LOCALIZATION),
        ((200, 210, 2), LABEL),
        ((200, 204, 2), CONFUSION),
    ],
)
def test_error_types_by_hand(found, expected):
    truth = annotation((0, 10, 0), (40, 50, 1), (100, 106, 1), (100, 110, 0), (200, 210, 1), (200, 210, 0))
    types = analyse.error_types(detections((*found, 1.0)), truth, 0.5)
    assert [analyse.TYPES[t] for t in types] == [expected]


def test_error_types_of_nothing():
    nothing = analyse.error_types(detections((0, 1, 0, 1.0)), annotation(), 0.5)
    assert [analyse.TYPES[t] for t in nothing] == [BACKGROUND]
    assert analyse.error_types(detections(), annotation((0, 1, 0)), 0.5).shape == (0,)


def test_profile_and_impact_by_hand():
    truth = {"v": annotation((0, 10, 0), (20, 30, 0), (50, 60, 1))}
    found = {
        "w": detections((0, 10, 0, 0.95)),  # background: this video has no truth
        "v": detections(
            (50, 60, 0, 0.9),  # wrong label
            (0, 10, 0, 0.8),  # hit
            (0, 9, 0, 0.7),  # double detection
            (20, 24, 0, 0.6),  # localization
            (50, 53, 0, 0.5),  # confusion
            (20, 30, 0, 0.4),  # hit
            (50, 60, 2, 1.0),  # a class that is never true
        ),
    }
    result = analyse.analyse(found, truth, 3)
    # Of class 0, two by two; class 1 has no detections.
    expected = {HIT: [0, 1, 0, 1], DOUBLE: [0, 1], LABEL: [1], LOCALIZATION: [0, 0, 1], CONFUSION: [0, 0, 1]}
    expected[BACKGROUND] = [1]
    assert {name: n.tolist() for name, n in result.profile.items()} == {
        name: counts + [0] * (10 - len(counts)) for name, counts in expected.items()
    }
    assert (result.num_detections, result.num_true, result.average_instances) == (8, 3, 1.5)
    # Precision 1/3 and 2/7, and AP 0 of class 1. Without an error before the first hit: 1/2 and 2/6, and without
    # one after it 1/3 and 2/6, so that interpolation raises the 1/3 no further.
    assert result.mean_ap == pytest.approx((1 / 3 + 2 / 7) / 2 / 2)
    early, late = (1 / 2 + 2 / 6) / 2 / 2, (1 / 3 + 2 / 6) / 2 / 2
    gains = {DOUBLE: late, LABEL: early, LOCALIZATION: late, CONFUSION: late, BACKGROUND: early}
    assert result.mean_ap_without == pytest.approx(gains)
    # Recall 1/2 and 1 times N = 1.5, with 2 and 5 false positives; without one of the first two, with 1 and 4.
    assert result.mean_ap_n == pytest.approx((0.75 / 2.75 + 1.5 / 6.5) / 2 / 2)
    assert result.mean_ap_n_without[BACKGROUND] == pytest.approx((0.75 / 1.75 + 1.5 / 5.5) / 2 / 2)
    assert result.missed == pytest.approx(1 / 3)


def test_detections_beyond_ten_times_the_true_segments_are_not_in_the_profile():
    truth = {"v": annotation((0, 10, 0), (0, 10, 1), (0, 10, 1))}
    rows = [(20 + i, 21 + i, c, 1 - i / 100) for c in range(2) for i in range(14)]
    profile = analyse.analyse({"v": detections(*rows)}, truth, 2).profile
    assert profile[BACKGROUND].tolist() == [3] * 7 + [1] * 3  # 10 of class 0, 14 of class 1
    assert sum(int(n.sum()) for n in profile.values()) == 24


@pytest.mark.parametrize("iou", [Fraction(1, 2), Fraction(7, 10), Fraction(1, 10)])
@pytest.mark.parametrize("seed", range(12))
def test_analysis_of_random_cases(seed, iou):
    found, truth, classes = random_case(seed)
    durations = {"v0": 25, "v2": 50.0}
    result = analyse.analyse(found, truth, classes, float(iou), durations, "thumos14")
    true = [(video, j) for video, a in truth.items() for j in range(len(a.labels))]
    label = {(v, j): truth[v].labels[j] for v, j in true}
    occurs = sorted(set(label.values()))
    positives = {c: [t for t in true if label[t] == c] for c in occurs}
    n = Fraction(len(true), len(occurs))
    ranking = {c: exact_ranking(found, truth, c, iou) for c in occurs}

    counts = {name: [0] * 10 for name in analyse.TYPES}
    for c in occurs:
        for rank, (kind, _, _) in enumerate(ranking[c][: 10 * len(positives[c])]):
            counts[kind][rank // len(positives[c])] += 1
    assert {name: x.tolist() for name, x in result.profile.items()} == counts
    looked_at = sum(min(len(ranking[c]), 10 * len(positives[c])) for c in occurs)
    assert sum(map(sum, counts.values())) == looked_at
    assert result.mean_ap == pytest.approx(official_map(found, truth, classes, iou))
    ap_n = [exact_ap_n([kind == HIT for kind, _, _ in ranking[c]], len(positives[c]), n) for c in occurs]
    assert result.mean_ap_n == pytest.approx(exact_mean(ap_n))

    # Removing the errors of a type equals not detecting them; without any errors, only recall matters.
    for kind in analyse.TYPES[1:]:
        rest = without(found, [here for c in occurs for k, _, here in ranking[c] if k == kind])
        assert result.mean_ap_without[kind] == pytest.approx(official_map(rest, truth, classes, iou))
        again = analyse.analyse(rest, truth, classes, float(iou))
        assert result.mean_ap_n_without[kind] == pytest.approx(again.mean_ap_n)
        assert result.mean_ap_n_without[kind] >= result.mean_ap_n - 1e-12
        assert not again.profile[kind].any()
    rest = without(found, [here for c in occurs for k, _, here in ranking[c] if k != HIT])
    recall = exact_mean(Fraction(sum(k == HIT for k, _, _ in ranking[c]), len(positives[c])) for c in occurs)
    best = analyse.analyse(rest, truth, classes, float(iou))
    assert [best.mean_ap, best.mean_ap_n] == pytest.approx([recall, recall])
    assert [*best.mean_ap_without.values(), *best.mean_ap_n_without.values()] == pytest.approx([recall] * 10)

    found_precisely = set()
    for c in occurs:
        hits, false = 0, 0
        for kind, hit, _ in ranking[c]:
            hits, false = hits + (kind == HIT), false + (kind != HIT)
            positive = Fraction(hits, len(positives[c])) * n
            if hit and positive / (positive + false) > Fraction(1, 20):
                found_precisely.add(hit)
    assert result.missed == pytest.approx(1 - len(found_precisely) / len(true))

    lengths = {(v, j): Fraction(int(np.diff(truth[v].segments[j])[0])) for v, j in true}
    values = {
        "coverage": {t: lengths[t] / int(durations[t[0]]) for t in true},
        "length": lengths,
        "instances": {(v, j): int((truth[v].labels == label[v, j]).sum()) for v, j in true},
    }
    bounds = {
        "coverage": [Fraction(x, 100) for x in (2, 4, 6, 8)],
        "length": [3, 6, 12, 18],
        "instances": [1, 40, 80],
    }
    assert list(result.characteristics) == list(values)
    for name, of in result.characteristics.items():
        members = [set() for _ in range(len(bounds[name]) + 1)]
        for t in true:
            members[exact_bucket(values[name][t], bounds[name])].add(t)
        assert of.count.tolist() == [len(m) for m in members]
        missed = [1 - len(m & found_precisely) / len(m) if m else math.nan for m in members]
        np.testing.assert_allclose(of.missed, missed, atol=1e-12)
        for b, m in enumerate(members):
            ap_n = [
                exact_ap_n([hit is not None for _, hit, _ in ranking[c] if hit is None or hit in m], len(here), n)
                for c in occurs
                if (here := m & set(positives[c]))
            ]
            np.testing.assert_allclose(of.mean_ap_n[b], exact_mean(ap_n), atol=1e-12)


def without(found, rows):
    """The same detections but those at these (video, index)."""
    result = {}
    for video, d in found.items():
        keep = np.setdiff1d(np.arange(len(d.labels)), [i for v, i in rows if v == video])
        result[video] = Detections(d.segments[keep], d.labels[keep], d.scores[keep])
    return result


def test_random_cases_have_all_types():
    total = np.zeros(len(analyse.TYPES))
    for seed in range(12):
        found, truth, classes = random_case(seed)
        total += [n.sum() for n in analyse.analyse(found, truth, classes).profile.values()]
    assert (total > 20).all()


def test_normalized_average_precision_is_average_precision_at_its_own_size():
    rng = np.random.default_rng(0)
    for _ in range(50):
        hits = rng.random(rng.integers(0, 20)) < 0.4
        positive = int(hits.sum()) + int(rng.integers(1, 4))
        ap = metrics.average_precision(-np.arange(len(hits), dtype=float), hits, positive)
        assert analyse.normalized_average_precision(hits, positive, positive) == pytest.approx(ap)
        # With N above the number of instances, the same false positives weigh less.
        assert analyse.normalized_average_precision(hits, positive, 2 * positive) >= ap - 1e-12
    assert math.isnan(analyse.normalized_average_precision(np.array([False]), 0, 3))


def test_a_hit_at_low_precision_is_missed():
    """The one true segment of a class is hit after k errors at precision N / (N + k), which must be above 1/20."""
    truth = {"v": annotation((0, 10, 0))}
    for errors, missed in [(0, 0), (18, 0), (19, 1), (30, 1)]:
        rows = [(20, 30, 0, 1.0)] * errors + [(0, 10, 0, 0.5)]
        result = analyse.analyse({"v": detections(*rows)}, truth, 1)
        assert result.missed == missed and result.mean_ap == pytest.approx(1 / (1 + errors))
    # Another class that has three makes it N = 2.
    truth["w"] = annotation((0, 10, 1), (20, 30, 1), (40, 50, 1))
    for errors, missed in [(37, 3), (38, 4)]:
        rows = [(20, 30, 0, 1.0)] * errors + [(0, 10, 0, 0.5)]
        assert analyse.analyse({"v": detections(*rows)}, truth, 2).missed == missed / 4


def test_bounds_belong_to_the_bucket_below():
    rows = [(1.4, 4.4, 0), (20, 23.01, 0), (30, 36, 0), (40, 52, 0), (60, 78, 0), (80, 98.1, 0)]
    truth = {"v": annotation(*rows)}
    assert 4.4 - 1.4 > 3  # in floating point
    durations = {"v": 150.0}
    result = analyse.analyse({}, truth, 1, durations=durations, buckets="thumos14").characteristics
    assert result["length"].count.tolist() == [1, 2, 1, 1, 1]
    assert result["coverage"].count.tolist() == [1, 2, 0, 1, 2]  # 3/150, 3.01/150, 6/150, 12/150, 18/150, ...
    assert result["instances"].count.tolist() == [0, 6, 0, 0]
    long = {"v": annotation((0, 30, 0), (0, 60, 0), (0, 120, 0), (0, 180, 0), (0, 200, 0))}
    result = analyse.analyse({}, long, 1, durations={"v": 150}).characteristics
    assert result["length"].count.tolist() == [1, 1, 1, 1, 1]
    assert result["coverage"].count.tolist() == [1, 1, 0, 1, 2]  # 30/150 is XS, 120/150 is L, longer than all is XL
    assert result["instances"].count.tolist() == [0, 0, 5, 0]


def test_instances_are_counted_by_class_and_video():
    truth = {"v": annotation((0, 1, 0), (2, 3, 0), (4, 5, 1)), "w": annotation((0, 1, 0))}
    result = analyse.analyse({}, truth, 2)
    assert result.characteristics["instances"].count.tolist() == [2, 2, 0, 0]
    assert list(result.characteristics) == ["length", "instances"]  # durations are not known


def test_nothing_detected_or_nothing_true():
    truth = {"v": annotation((0, 10, 0)), "empty": annotation()}
    result = analyse.analyse({}, truth, 2, durations={"v": 10.0})
    assert (result.mean_ap, result.mean_ap_n, result.missed, result.num_detections) == (0, 0, 1, 0)
    assert not any(n.any() for n in result.profile.values())
    assert set(result.mean_ap_without.values()) == {0}
    coverage = result.characteristics["coverage"]
    np.testing.assert_array_equal(coverage.mean_ap_n, [math.nan] * 4 + [0])
    np.testing.assert_array_equal(coverage.missed, [math.nan] * 4 + [1])
    for videos in ({}, {"v": annotation()}):
        result = analyse.analyse({"v": detections((0, 1, 0, 0.5))}, videos, 2, durations={})
        assert math.isnan(result.mean_ap) and math.isnan(result.missed) and math.isnan(result.average_instances)
        assert not any(n.any() for n in result.profile.values()) and result.num_true == 0
        assert analyse.format_analysis(result)


def test_errors_name_what_is_wrong():
    truth = {"v": annotation((0, 10, 0)), "w": annotation((0, 10, 0)), "empty": annotation()}
    analyse.analyse({}, truth, 1, durations={"v": 20, "w": 20})
    with pytest.raises(InputError, match="duration of video 'w' is missing"):
        analyse.analyse({}, truth, 1, durations={"v": 20})
    for bad in (0, -1.0, math.nan):
        with pytest.raises(InputError, match="duration of video 'v' is"):
            analyse.analyse({}, truth, 1, durations={"v": bad, "w": 20})
    with pytest.raises(InputError, match="activitynet, thumos14"):
        analyse.analyse({}, truth, 1, buckets="thumos")
    with pytest.raises(ValueError, match="video 'w'"):
        analyse.analyse({"w": detections((0, 1, 3, 0.5))}, truth, 1)


def test_json_and_table():
    found, truth, classes = random_case(0)
    result = analyse.analyse(found, truth, classes, buckets="thumos14")
    data = json.loads(json.dumps(analyse.to_json(result), allow_nan=False))
    assert data["profile"][HIT] == result.profile[HIT].tolist()
    assert data["mean_ap_n_without"] == result.mean_ap_n_without
    assert data["characteristics"]["length"]["bounds"] == [3, 6, 12, 18]
    assert (
        data["characteristics"]["instances"]["missed"][3] is None and not result.characteristics["instances"].count[3]
    )

    lines = analyse.format_analysis(result).splitlines()
    assert max(map(len, lines)) <= 100
    table = {line[:36].strip(): line[36:].split() for line in lines}
    assert f"mAP {100 * result.mean_ap:.1f}, mAP_N {100 * result.mean_ap_n:.1f}" in lines[0]
    row = next(line for line in lines if line.startswith(CONFUSION)).split()
    counts = np.stack(list(result.profile.values()))
    assert row[2] == f"{100 * result.profile[CONFUSION][0] / counts[:, 0].sum():.1f}"
    gain = result.mean_ap_n_without[CONFUSION] - result.mean_ap_n
    assert row[-1] == f"{100 * gain:+.1f}"
    assert table["instances, of the class in the video"[:36].strip()] == ["XS", "S", "M", "L"]
    assert table["missed %"] == [
        f"{100 * x:.1f}" if x == x else "-" for x in result.characteristics["instances"].missed
    ]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def is_color(picture, color):
    return np.abs(picture - np.round(255 * np.array(to_rgb(color)))).max(axis=2) <= 2


@pytest.mark.parametrize("known", [True, False])
def test_pictures(tmp_path, known):
    """Of class 0, segments of 10 s and 40 s, and detections: a hit, background, confusion, a hit. Class 1 is missed."""
    truth = {"v": annotation((0, 10, 0), (100, 140, 0), (200, 210, 1))}
    rows = [(0, 10, 0, 0.9), (50, 60, 0, 0.8), (207, 210, 0, 0.7), (100, 140, 0, 0.6)]
    durations = {"v": 400.0} if known else None
    result = analyse.analyse({"v": detections(*rows)}, truth, 2, durations=durations)
    paths = plot_analysis.draw(result, tmp_path)
    assert [path.name for path in paths] == ["false_positives.png", "sensitivity.png", "false_negatives.png"]
    for path in paths:
        picture = pixels(path)
        assert picture.shape[1] == 1440
        edge = np.concatenate([picture[:4], picture[-4:]]), np.concatenate([picture[:, :4], picture[:, -4:]], axis=1)
        assert all((side == 255).all() for side in edge)  # nothing is cut off
    # In the profile, the first bar is half hits and half background, the second half hits and half confusion.
    picture = pixels(paths[0])[120:, :860]
    area = {name: is_color(picture, color).sum() for name, color in zip(analyse.TYPES, plot_analysis.COLORS)}
    assert area[HIT] > 10000
    assert area[HIT] / area[CONFUSION] == pytest.approx(2, rel=0.05)
    assert area[BACKGROUND] / area[CONFUSION] == pytest.approx(1, rel=0.05)
    assert area[DOUBLE] == area[LABEL] == area[LOCALIZATION] == 0
    # The segment of 10 s of class 1 is missed: half of the short segments, all that are alone in their video, and a
    # third of those with low coverage.
    picture = pixels(paths[2])
    area = {name: is_color(picture, color).sum() for name, color in plot_analysis.COLORS_CHARACTERISTICS.items()}
    assert area["instances"] / area["length"] == pytest.approx(2, rel=0.05)
    assert area["coverage"] / area["length"] == pytest.approx(2 / 3 if known else 0, rel=0.05)


def test_pictures_of_nothing(tmp_path):
    for result in (analyse.analyse({}, {}, 1), analyse.analyse({}, {"v": annotation((0, 10, 0))}, 1)):
        assert all(path.stat().st_size > 1000 for path in plot_analysis.draw(result, tmp_path))


def test_published_detections_of_stpn():
    files = [
        SHARED / "detections/stpn_thumos14_results.json",
        SHARED / "thumos14/gt_210_videos.json",
        SHARED / "thumos14/Thumos14reduced-Annotations/videoname.npy",
        SHARED / "thumos14/Thumos14reduced-Annotations/duration.npy",
    ]
    if not all(file.exists() for file in files):
        pytest.skip("needs the published detections of STPN beside the repository, in ../shared/data")
    results, database = (json.loads(file.read_text()) for file in files[:2])
    results, database = results["results"], database["database"]
    index = {
        name: i for i, name in enumerate(sorted({x["label"] for v in database.values() for x in v["annotations"]}))
    }
    truth = {
        video: annotation(*((*map(float, x["segment"]), index[x["label"]]) for x in entry["annotations"]))
        for video, entry in database.items()
    }
    found = {
        video: detections(*((*x["segment"], index[x["label"]], x["score"]) for x in entries))
        for video, entries in results.items()
    }
    durations = {name.decode(): float(x) for name, x in zip(np.load(files[2]), np.load(files[3]).ravel())}
    result = analyse.analyse(found, truth, len(index), durations=durations, buckets="thumos14")
    assert result.mean_ap == pytest.approx(official_map(found, truth, len(index), 0.5))
    assert 100 * result.mean_ap == pytest.approx(17.7, abs=0.05)
    assert sum(int(n.sum()) for n in result.profile.values()) == 9151
    assert sum(int(n[0]) for n in result.profile.values()) == 3311
    # Such a detector mislocates the boundaries of actions, mainly of short ones.
    gains = {name: x - result.mean_ap_n for name, x in result.mean_ap_n_without.items()}
    assert max(gains, key=gains.get) == LOCALIZATION
    length = result.characteristics["length"]
    assert length.count.tolist() == [1607, 843, 711, 114, 36]
    assert length.missed[0] > 0.8 and length.missed.argmax() == 0 and length.mean_ap_n.argmin() == 0


@pytest.mark.usefixtures("unchecked")
def test_errors_of_stpn_are_those_of_the_code_of_detad():
    """Its figures for the same files (shares of the best 1G, in percent)."""
    detected = SHARED / "detections/stpn_thumos14_results.json"
    folder = SHARED / "thumos14/Thumos14reduced-Annotations"
    if not (detected.exists() and folder.exists()):
        pytest.skip("needs the published detections of STPN beside the repository, in ../shared/data")
    records, _ = selection.read_truth(folder)
    chosen = selection.select(records, submissions.read(detected), selection.choose_subset(records))
    profile = analyse.analyse(chosen.detections, chosen.truth, len(chosen.classes)).profile
    first = {name: 100 * n[0] / 3358 for name, n in profile.items()}
    assert first[LOCALIZATION] == pytest.approx(37.3, abs=0.05) and first[CONFUSION] == pytest.approx(7.7, abs=0.05)
