import dataclasses
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from threadpoolctl import threadpool_limits

from tests import stored
from wsal_jax import difficulty, metrics, times
from wsal_jax.data import synthetic_untrimmed as synthetic
from wsal_jax.types import Annotation, Meta

CONFIGS = {config.name: config for config in synthetic.SyntheticUntrimmed.BUILDER_CONFIGS}
TINY, THUMOS = CONFIGS["tiny"], CONFIGS["thumos"]


def build(path):
    builder = tfds.builder("synthetic_untrimmed/tiny", data_dir=path, file_format="array_record")
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tiny"))


def meta(line, n):
    return Meta("", n, line.fps, synthetic.STRIDE, synthetic.STRIDE / 2, line.duration)


def inside(spans, time):
    return ((spans[:, 0] <= time[:, None]) & (time[:, None] < spans[:, 1])).any(1)


def noise_free(index, stream):
    """A THUMOS-like video: its timeline, the time of each snippet, and h [n d] before the softplus."""
    config = dataclasses.replace(THUMOS, noise=0.0)
    line = synthetic.timeline(config, "train", index)
    x = synthetic.render(config, line, np.random.default_rng(index))[stream].astype(np.float64)
    h = np.log(np.expm1(x / synthetic.STREAMS[stream]["scale"]))
    time = times.snippet_to_seconds(np.arange(len(h), dtype=np.float64), meta(line, len(h)))
    return line, time, h, synthetic.world(config)[stream]


def test_same_bytes_again(tiny, tmp_path):
    def digests(builder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in builder.data_path.iterdir()}

    assert sum("array_record" in name for name in digests(tiny)) == 2
    assert sum("rows" in name for name in digests(tiny)) == 4
    assert digests(tiny) == digests(build(tmp_path))


def test_the_number_of_threads_changes_no_bit():
    """The longest video: with two threads OpenBLAS cuts its product elsewhere, and last bits differ."""
    features = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            rng = np.random.default_rng(0)
            features.append(synthetic.render(THUMOS, synthetic.timeline(THUMOS, "test", 41), rng))
    assert len(features[0]["rgb"]) == 2229
    np.testing.assert_array_equal(features[0]["rgb"], features[1]["rgb"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_records(tiny, split):
    records = stored.videos(tiny, split)
    assert sorted(r["id"] for r in records) == [f"{split}_{i:04d}".encode() for i in range(TINY.videos[split])]
    for r in records:
        assert set(r["features"]) == {"rgb", "flow"}
        for x in r["features"].values():
            n = len(x)
            assert x.shape == (n, 16) and x.dtype == np.float32
            assert np.isfinite(x).all() and (x >= 0).all() and (x.std(0) > 0).all()
            assert n * 16 / r["fps"] <= r["duration"] < (n + 1) * 16 / r["fps"]
        assert (r["stride"], r["offset"]) == (16, 8) and r["fps"] in (24, 25, 29.97, 30)
        labels, segments = np.array(r["segment_labels"], int), r["segments"]
        np.testing.assert_array_equal(r["counts"], np.bincount(labels, minlength=3))
        np.testing.assert_array_equal(r["labels"], r["counts"] > 0)
        assert r["labels"].dtype == r["counts"].dtype == np.int32 and segments.dtype == np.float64
        assert segments.shape == (len(labels), 2) and len(labels) > 0
        line = synthetic.timeline(TINY, split, int(r["id"].decode().split("_")[1]))
        np.testing.assert_array_equal(segments, line.edges[:, [0, 3]])
        assert (r["fps"], r["duration"]) == (line.fps, line.duration)
        times = np.r_[0, segments.ravel(), r["duration"]]
        assert (np.diff(times) > 0).all() and (np.diff(times)[::2] >= synthetic.MIN_GAP - 1e-9).all()


def test_no_two_videos_are_alike(tiny):
    records = [r for split in ("train", "test") for r in stored.videos(tiny, split)]
    assert len({float(r["duration"]) for r in records}) == len(records)
    assert len({r["features"]["rgb"][:3].tobytes() for r in records}) == len(records)


def test_boundaries_are_not_on_the_snippet_grid():
    lines = [synthetic.timeline(THUMOS, "train", i) for i in range(50)]
    phase = np.concatenate([line.edges.ravel() * line.fps / synthetic.STRIDE % 1 for line in lines])
    np.testing.assert_allclose(np.histogram(phase, 10, (0, 1))[0] / len(phase), 0.1, atol=0.02)


@pytest.mark.parametrize("name", ["thumos", "activitynet"])
def test_statistics(name):
    config = CONFIGS[name]
    lines = [synthetic.timeline(config, split, i) for split, n in config.videos.items() for i in range(n)]
    lengths = np.concatenate([line.edges[:, 3] - line.edges[:, 0] for line in lines])
    minutes = sum(line.duration for line in lines) / 60
    two = np.mean([len(np.unique(line.labels)) > 1 for line in lines])
    instances, median, background, two_classes = dict(thumos=(15, 3.5, 0.71, 0.15), activitynet=(1.5, 35, 0.36, 0.0))[
        name
    ]
    assert len(lengths) / len(lines) == pytest.approx(instances, rel=0.05)
    assert np.median(lengths) == pytest.approx(median, rel=0.08)
    assert 1 - lengths.sum() / 60 / minutes == pytest.approx(background, abs=0.02)
    assert two == pytest.approx(two_classes, abs=0.04)
    for split, n in config.videos.items():
        present = [np.unique(synthetic.timeline(config, split, i).labels) for i in range(n)]
        assert np.bincount(np.concatenate(present), minlength=config.classes).min() >= 5


def test_timelines_are_consistent():
    for index in range(100):
        line = synthetic.timeline(THUMOS, "test", index)
        assert (np.diff(line.edges.ravel()) > 0).all()
        assert line.shots[0, 0] == 0 and line.shots[-1, 1] == line.duration
        np.testing.assert_array_equal(line.shots[1:, 0], line.shots[:-1, 1])
        assert (line.scenes[line.home] == index % 20 // 2).all()
        cutaways = line.shots[~line.home]
        assert (
            not inside(cutaways, line.edges.ravel()).any() and not inside(line.edges[:, [0, 3]], cutaways.mean(1)).any()
        )
        assert ((line.movements[:, 0] < line.movements[:, 1]) & (line.movements[:, 1] <= line.duration)).all()


def test_visible_is_the_fraction_of_time():
    rng = np.random.default_rng(0)
    spans = np.sort(rng.uniform(-1, 8, (6, 2)), 1)
    n, fps, fine = 10, 24.0, 4000
    time = (np.arange(n * fine) + 0.5) / fine * 16 / fps
    slow = np.stack([inside(span[None], time).reshape(n, fine).mean(1) for span in spans], 1)
    np.testing.assert_allclose(synthetic.visible(spans, n, fps), slow, atol=2 / fine)
    bounds = np.sort(rng.uniform(0, n * 16 / fps, 5))
    cover = np.stack([np.r_[0, bounds], np.r_[bounds, n * 16 / fps]], 1)
    np.testing.assert_allclose(synthetic.visible(cover, n, fps).sum(1), 1)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_evidence_of_a_class_is_where_and_when_its_instances_are(stream):
    within, outside, shifted = [], [], {shift: 0.0 for shift in range(-2, 3)}
    for index in range(12):
        line, time, h, prototypes = noise_free(index, stream)
        for c in np.unique(line.labels):
            evidence = h @ prototypes["action"][c] / THUMOS.dim
            spans = line.edges[line.labels == c][:, [0, 3]]
            within.append(evidence[inside(spans, time)].mean())
            outside.append(evidence[~inside(spans, time)].mean())
            for shift in shifted:
                at = inside(spans, time[2:-2])
                shifted[shift] += np.corrcoef(evidence[2 + shift : len(h) - 2 + shift], at)[0, 1]
    assert (np.array(within) > np.array(outside)).all()
    assert max(shifted, key=shifted.get) == 0


def test_core_is_salient_and_context_has_the_scene_but_not_the_action():
    parts = dict(core=[], stages=[], context=[], cutaway=[])
    for index in range(30):
        line, time, h, prototypes = noise_free(index, "rgb")
        if len(np.unique(line.labels)) > 1:
            continue
        action = h @ prototypes["action"][line.labels[0]] / THUMOS.dim
        scene = h @ prototypes["scene"][line.labels[0] // 2] / THUMOS.dim
        core, instance = inside(line.edges[:, 1:3], time), inside(line.edges[:, [0, 3]], time)
        cutaway = inside(line.shots[~line.home & (line.scenes != line.labels[0] // 2)], time)
        masks = dict(core=core, stages=instance & ~core, context=~instance & ~cutaway, cutaway=cutaway)
        for name, mask in masks.items():
            if mask.any():
                parts[name].append((action[mask].mean(), scene[mask].mean()))
    action, scene = ({name: np.mean(values, 0)[i] for name, values in parts.items()} for i in (0, 1))
    weight = synthetic.STREAMS["rgb"]
    assert action["core"] - action["context"] == pytest.approx(weight["action"], rel=0.3)
    assert action["stages"] - action["context"] == pytest.approx(weight["action"] * synthetic.WEAK, rel=0.4)
    assert action["context"] < action["stages"] < 0.75 * action["core"]
    assert scene["core"] == pytest.approx(scene["context"], abs=0.1)
    assert scene["context"] - scene["cutaway"] == pytest.approx(weight["scene"], rel=0.25)


def test_rgb_tells_scenes_and_flow_tells_motion():
    between, action = {}, {}
    for stream in ("rgb", "flow"):
        videos = [noise_free(index, stream) for index in range(20)]
        spread = np.concatenate([h for _, _, h, _ in videos]).std(0).mean()
        between[stream] = np.std([h.mean(0) for _, _, h, _ in videos], 0).mean() / spread
        contrast = []
        for line, time, h, prototypes in videos:
            at = inside(line.edges[line.labels == line.labels[0]][:, 1:3], time)
            if at.any():
                evidence = h @ prototypes["action"][line.labels[0]] / THUMOS.dim
                contrast.append(evidence[at].mean() - evidence[~at].mean())
        action[stream] = np.mean(contrast) / spread
    assert between["rgb"] > 1.05 * between["flow"]
    assert action["flow"] > 1.5 * action["rgb"]


def test_true_labels_of_snippets_give_back_the_instances():
    lines = {str(i): synthetic.timeline(THUMOS, "test", i) for i in range(10)}
    truth = {i: Annotation(line.edges[:, [0, 3]], line.labels) for i, line in lines.items()}
    found = {}
    for i, line in lines.items():
        of = meta(line, int(line.duration * line.fps / 16))
        labels = difficulty.snippet_labels(truth[i], of, 20)
        for t in range(of.length):
            centre = (16 * t + 8) / line.fps
            now = line.labels[(line.edges[:, 0] <= centre) & (centre < line.edges[:, 3])]
            assert labels[t].sum() == len(now) and (labels[t][now] == 1).all()
        found[i] = difficulty.detections(labels, of)
        np.testing.assert_array_equal(found[i].scores, 1)
    assert metrics.detection_map(found, truth, 20, np.array([0.5])).mean[0] > 0.95


def test_detections_are_runs_over_one_half():
    p = np.array([[0.6, 0.1], [0.8, 0.1], [0.5, 0.1], [0.7, 0.9]])
    found = difficulty.detections(p, Meta("", 4, 25.0, 16.0, 8.0, 3.0))
    np.testing.assert_allclose(found.segments, np.array([[0, 32], [48, 64], [48, 64]]) / 25)
    np.testing.assert_array_equal(found.labels, [0, 0, 1])
    np.testing.assert_allclose(found.scores, [0.7, 0.7, 0.9])
    assert difficulty.detections(np.full((3, 2), 0.5), Meta("", 3, 25.0, 16.0, 8.0, 3.0)).segments.shape == (0, 2)


def test_logistic_regression_is_at_its_optimum():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 4)) * [1, 10, 0.1, 2] + [0, 5, 0, -3]).astype(np.float32)
    y = (x @ rng.normal(size=(4, 2)) + rng.normal(size=(300, 2)) > 0).astype(np.float32)
    model = difficulty.fit(x, y)
    residual = difficulty.probability(model, x) - y
    std = x.std(0) + 1e-6
    gradient = ((x - x.mean(0)) / std).T @ residual / 300 + difficulty.L2 * model["weights"] * std[:, None]
    np.testing.assert_allclose(gradient, 0, atol=2e-3)
    np.testing.assert_allclose(residual.mean(0), 0, atol=2e-3)
