"""Scores to table: rows, floors, fusion, the submission; and that test labels have no part in what is detected."""

import json
from operator import itemgetter

import jax
import numpy as np
import pytest

from wsal_jax import evaluate, method, train
from wsal_jax.data import pipeline
from wsal_jax.types import Annotation, Detections, Scores, Video


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "test")


@pytest.fixture
def perfect(data):
    """Scores made of the truth: CAS 1 in the true segments of a class."""
    scores = []
    for meta, annotation, labels in zip(data.metas, data.annotations, data.labels):
        centres = (meta.offset + np.arange(meta.length) * meta.stride) / meta.fps
        inside = (annotation.segments[:, :1] <= centres) & (centres < annotation.segments[:, 1:])
        cas = np.stack([inside[annotation.labels == c].any(0) for c in range(len(labels))], 1).astype(np.float32)
        scores.append(Scores(labels, cas, cas.max(1), {}))
    return scores


def test_scores_are_those_of_each_seed_and_video_alone(config, data):
    config.seeds = 2
    maan = method.get(config.method)
    params = train.init(maan, method.Spec((16, 16), 3), config, 1).params
    scores = evaluate.score(maan, params, data, ["rgb", "flow"])
    assert [len(of) for of in scores] == [8, 8]
    for seed, video in [(0, 0), (1, 3), (1, 7)]:
        features = pipeline.read(data, video, ["rgb", "flow"])
        one = maan.score(
            jax.tree.map(itemgetter(seed), params),
            Video(
                *map(jax.numpy.asarray, (features, np.ones(len(features), np.float32), *[np.zeros(3, np.float32)] * 2))
            ),
        )
        for name in ("video_score", "cas", "attention"):
            np.testing.assert_allclose(getattr(scores[seed][video], name), getattr(one, name), rtol=1e-5, atol=1e-6)


def test_perfect_scores_beat_the_floors(config, data, perfect):
    made = method.get(config.method)
    of_models, rows = evaluate.detect(made, {"rgb": perfect, "flow": perfect}, data, config, seed=0)
    table = evaluate.measure(of_models, rows, data)
    assert list(table) == ["rgb", "flow", "fused", "whole video", "shuffled"]
    assert table["fused"] == table["rgb"] and table["rgb"]["classification"] == 100
    assert table["rgb"]["0.5"] > 90
    assert table["whole video"]["0.5"] < 10 and table["shuffled"]["0.5"] < 10
    assert "classification" not in table["whole video"]
    assert np.isclose(table["rgb"]["average"], np.mean([table["rgb"][f"0.{i}"] for i in range(1, 10)]))
    for detections, meta, labels in zip(rows["whole video"], data.metas, data.labels):
        assert detections.labels.tolist() == np.flatnonzero(labels).tolist()
        assert (detections.segments == [0, meta.duration]).all()


def test_detections_do_not_depend_on_test_labels(config, data, perfect):
    made = method.get(config.method)
    blind = data._replace(
        annotations=[Annotation(np.zeros((0, 2)), np.zeros(0, int)) for _ in data.metas], labels=0 * data.labels
    )
    for seed in (0, 1):
        _, rows = evaluate.detect(made, {"rgb": perfect}, data, config, seed)
        _, same = evaluate.detect(made, {"rgb": perfect}, blind, config, seed)
        assert list(rows) == list(same) == ["rgb", "whole video", "shuffled"]
        jax.tree.map(np.testing.assert_array_equal, rows, same)


def test_videos_without_annotations_are_detected_in_and_not_measured(config, data, perfect, tmp_path):
    none = Annotation(np.zeros((0, 2)), np.zeros(0, int))
    blind = data._replace(annotations=[none] * 8, counts=data.counts * 0 - 1)
    text = evaluate.report(method.get(config.method), {"rgb": [perfect]}, blind, config, tmp_path)
    assert "nothing is measured" in text and not (tmp_path / "results.json").exists()
    assert len(json.loads((tmp_path / "detections.json").read_text())["results"]) == 8


def test_a_video_without_annotations_is_no_false_positive(config, data, perfect):
    made = method.get(config.method)
    of_models, rows = evaluate.detect(made, {"rgb": perfect}, data, config, 0)
    counts, annotations = data.counts.copy(), list(data.annotations)
    counts[2], annotations[2] = -1, Annotation(np.zeros((0, 2)), np.zeros(0, int))
    partly = evaluate.measure(of_models, rows, data._replace(counts=counts, annotations=annotations))
    assert partly["rgb"]["0.5"] > 90
    negative = evaluate.measure(of_models, rows, data._replace(annotations=annotations))
    assert negative["rgb"]["0.5"] < partly["rgb"]["0.5"]


def test_summary_has_mean_and_sample_deviation():
    tables = [{"rgb": {"0.5": 10.0}}, {"rgb": {"0.5": 12.0}}, {"rgb": {"0.5": 17.0}}]
    cell = evaluate.summarise(tables)["rgb"]["0.5"]
    assert cell["mean"] == 13 and np.isclose(cell["std"], np.sqrt((9 + 1 + 16) / 2))
    assert evaluate.summarise(tables[:1])["rgb"]["0.5"]["std"] == 0
    assert evaluate.format_table(evaluate.summarise(tables)).splitlines()[1].split() == ["rgb", "13.0±3.6"]
    assert evaluate.format_table(evaluate.summarise(tables[:1])).splitlines()[1].split() == ["rgb", "10.0"]


def test_submission_is_sorted_and_named(data):
    empty = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    found = Detections(np.array([[0.0, 1.0], [2.0, 3.5]]), np.array([2, 0]), np.array([0.2, 0.7]))
    results = evaluate.submission([found] + [empty] * 7, data)["results"]
    assert list(results) == [meta.id for meta in data.metas]
    assert results[data.metas[0].id] == [
        {"label": data.class_names[0], "score": 0.7, "segment": [2.0, 3.5]},
        {"label": data.class_names[2], "score": 0.2, "segment": [0.0, 1.0]},
    ]
    assert results[data.metas[1].id] == []
