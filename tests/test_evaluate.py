"""Scores to table: rows, floors, fusion, the submission; and that test labels have no part in what is detected."""

import json
from operator import itemgetter

import jax
import numpy as np
import pytest

from wsal_jax import evaluate, methods, metrics, options, results, sharding, train
from wsal_jax.data import pipeline
from wsal_jax.data.clips import Clips
from wsal_jax.formats import submissions
from wsal_jax.method import Spec
from wsal_jax.types import Annotation, Detections, InputError, Scores, Video


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
        scores.append(Scores(labels, cas, cas.max(1)))
    return scores


def measure(of_models, rows, data, config, clips=None):
    """The values alone."""
    table = results.measure(of_models, rows, data, config.evaluation, clips or {})
    return {row: {column: cell["value"] for column, cell in cells.items()} for row, cells in table.items()}


def test_scores_are_those_of_each_seed_and_video_alone(config, data):
    config.seeds = 2
    maan = methods.get(config.method)
    params = train.init(maan, Spec((16, 16), 3), config, 1).params
    scores = evaluate.score(maan, params, data, ["rgb", "flow"])
    assert [len(of) for of in scores] == [8, 8]
    for seed, video in [(0, 0), (1, 3), (1, 7)]:
        features = pipeline.read(data, video, ["rgb", "flow"])
        n = len(features)
        one = maan.score(
            jax.tree.map(itemgetter(seed), params),
            Video(*map(jax.numpy.asarray, (features, np.ones(n, np.float32), *np.zeros((2, 3), np.float32), n))),
        )
        for name in ("video_score", "cas", "attention"):
            np.testing.assert_allclose(getattr(scores[seed][video], name), getattr(one, name), rtol=1e-5, atol=1e-6)


def test_devices_share_the_videos(config, data, monkeypatch):
    """The scores of eight devices are byte-equal to those of one that has as many videos at a time."""
    maan = methods.get(config.method)
    params = train.init(maan, Spec((16,), 3), config, 1, "rgb").params
    monkeypatch.setattr(pipeline, "PADDED", 2)
    used = []
    for devices in (8, 1):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        monkeypatch.setattr(sharding, "make_mesh", lambda given=None, mesh=mesh: mesh)
        monkeypatch.setattr(sharding, "own", lambda mesh, count: mesh)
        used.append(evaluate.score(maan, params, data, ["rgb"]))
    jax.tree.map(np.testing.assert_array_equal, *used)


def test_perfect_scores_beat_the_floors(config, data, perfect):
    made = methods.get(config.method)
    of_models, rows = evaluate.detect(made, {"rgb": perfect, "flow": perfect}, data, config, seed=0)
    table = measure(of_models, rows, data, config)
    assert list(table) == ["rgb", "flow", "fused", "whole video", "shuffled"]
    assert table["fused"] == table["rgb"] and table["rgb"]["classification"] == 100
    assert table["rgb"]["0.5"] > 90
    assert table["whole video"]["0.5"] < 10 and table["shuffled"]["0.5"] < 10
    assert "classification" not in table["whole video"]
    assert np.isclose(table["rgb"]["average"], np.mean([table["rgb"][f"0.{i}"] for i in range(1, 10)]))
    for detections, meta, labels in zip(rows["whole video"], data.metas, data.labels):
        assert detections.labels.tolist() == np.flatnonzero(labels).tolist()
        assert (detections.segments == [0, meta.duration]).all()


def test_the_floors_are_those_of_the_fused_scores(config, data, perfect):
    """Each model is sure of another class; the weights leave the second one's."""
    sure = [[x._replace(video_score=np.eye(3, dtype=np.float32)[c]) for x in perfect] for c in (0, 1)]
    config.fusion = (0.0, 1.0)
    _, rows = evaluate.detect(methods.get(config.method), dict(zip(("rgb", "flow"), sure)), data, config, 0)
    for name in ("whole video", "shuffled"):
        assert {label for video in rows[name] for label in video.labels.tolist()} == {1}


def test_detections_do_not_depend_on_test_labels(config, data, perfect):
    made = methods.get(config.method)
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
    measured = evaluate.report(methods.get(config.method), {"rgb": [perfect]}, blind, config, tmp_path, {})
    assert "nothing is measured" in results.format_results(measured) and not (tmp_path / "results.json").exists()
    assert len(json.loads((tmp_path / "detections.json").read_text())["results"]) == 8


def test_a_video_without_annotations_is_no_false_positive(config, data, perfect):
    made = methods.get(config.method)
    of_models, rows = evaluate.detect(made, {"rgb": perfect}, data, config, 0)
    counts, annotations = data.counts.copy(), list(data.annotations)
    counts[2], annotations[2] = -1, Annotation(np.zeros((0, 2)), np.zeros(0, int))
    partly = measure(of_models, rows, data._replace(counts=counts, annotations=annotations), config)
    assert partly["rgb"]["0.5"] > 90
    negative = measure(of_models, rows, data._replace(annotations=annotations), config)
    assert negative["rgb"]["0.5"] < partly["rgb"]["0.5"]


def test_summary_has_mean_and_sample_deviation():
    tables = [{"rgb": {"0.5": {"value": x, "interval": [x - 1, x + 2]}}} for x in (10.0, 12.0, 17.0)]
    cell = results.summarise(tables)["rgb"]["0.5"]
    assert cell["mean"] == 13 and np.isclose(cell["std"], np.sqrt((9 + 1 + 16) / 2))
    assert results.summarise(tables[:1])["rgb"]["0.5"]["std"] == 0
    assert cell["intervals"] == [[9, 12], [11, 14], [16, 19]]
    lines = results.format_table(results.summarise(tables)).splitlines()
    assert [line.split() for line in lines[1:]] == [["rgb", "13.0±3.6"]]
    lines = results.format_table(results.summarise(tables[:1])).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["10.0", "9.0", "12.0"]


def test_submission_is_sorted_and_named(data):
    empty = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    found = Detections(np.array([[0.0, 1.0], [2.0, 3.5]]), np.array([2, 0]), np.array([0.2, 0.7]))
    videos = {meta.id: of for meta, of in zip(data.metas, [found] + [empty] * 7)}
    written = submissions.to_json(videos, data.class_names)["results"]
    assert list(written) == [meta.id for meta in data.metas]
    assert written[data.metas[0].id] == [
        {"label": data.class_names[0], "score": 0.7, "segment": [2.0, 3.5]},
        {"label": data.class_names[2], "score": 0.2, "segment": [0.0, 1.0]},
    ]
    assert written[data.metas[1].id] == []


def test_intervals_hold_the_value_and_follow_the_option(config, data, perfect):
    noisy = [x._replace(cas=np.random.default_rng(0).uniform(0, 1, x.cas.shape).astype(np.float32)) for x in perfect]
    of_models, rows = evaluate.detect(methods.get(config.method), {"rgb": noisy}, data, config, 0)
    table = results.measure(of_models, rows, data, config.evaluation, {})
    for row in table.values():
        for column in ("0.1", "0.5", "average"):
            low, high = row[column]["interval"]
            assert 0 <= low <= high <= 100
    low, high = table["rgb"]["0.1"]["interval"]
    assert low < table["rgb"]["0.1"]["value"] < high
    config.evaluation.bootstrap = 0
    assert "interval" not in results.measure(of_models, rows, data, config.evaluation, {})["rgb"]["0.1"]


def test_the_protocol_and_its_thresholds_are_used_and_named(config, data, perfect, tmp_path):
    config.evaluation.protocol, config.evaluation.ious = "wtalc", (0.25, 0.5)
    measured = evaluate.report(methods.get(config.method), {"rgb": [perfect]}, data, config, tmp_path, {})
    text = results.format_results(measured)
    assert text.startswith("protocol wtalc, ") and text.splitlines()[1].split()[:3] == ["mAP@IoU", "0.25", "0.5"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(results.to_json(measured)))
    assert written["protocol"] == "wtalc" and set(written) >= {"videos", "classes", "instances"}
    _, rows = evaluate.detect(methods.get(config.method), {"rgb": perfect}, data, config, 0)
    truth = {meta.id: annotation for meta, annotation in zip(data.metas, data.annotations)}
    found = {meta.id: one for meta, one in zip(data.metas, rows["rgb"])}
    expected = metrics.detection_map(found, truth, 3, np.array([0.25, 0.5]), "wtalc").mean
    assert [written["rows"]["rgb"][c]["mean"] for c in ("0.25", "0.5")] == pytest.approx(100 * expected)


def test_highlights_are_ranked_by_the_models(config, data, perfect, tmp_path):
    """Clips of one snippet each: perfect scores rank all of them right, shuffled ones do not."""
    highlights = {}
    for meta, labels, scores in zip(data.metas, data.labels, perfect):
        label = int(labels.argmax())
        centres = meta.offset + np.arange(meta.length) * meta.stride
        match = np.where(scores.cas[:, label] > 0, 1, -1)
        frames = np.stack([centres - 1, centres + 1], 1)
        highlights[meta.id] = Clips(data.class_names[label], label, match, frames)
    of_models, rows = evaluate.detect(methods.get(config.method), {"rgb": perfect, "flow": perfect}, data, config, 0)
    table = measure(of_models, rows, data, config, highlights)
    assert table["fused"]["clips"] == 100 and table["shuffled"]["clips"] < 90
    assert "clips" not in table["whole video"]
    assert "clips" not in measure(of_models, rows, data, config)["fused"]
    # They were read when the options were checked, and are not looked for again.
    of_models = {"rgb": [perfect], "flow": [perfect]}
    measured = evaluate.report(methods.get(config.method), of_models, data, config, tmp_path, highlights)
    assert measured.rows["fused"]["clips"]["mean"] == 100


def test_attention_is_compared_with_the_true_segments(config, data, perfect, tmp_path):
    """Perfect scores miss nothing, those of the opposite everything; the classifier's columns want evidence."""
    opposite = [x._replace(attention=1 - x.attention, evidence=1 - x.cas) for x in perfect]
    table = results.attend({"rgb": perfect, "flow": opposite}, data)
    values = {row: {column: cell["value"] for column, cell in cells.items()} for row, cells in table.items()}
    assert values["rgb"] == {"|att - gt|": 0, "|gt - att|": 0}
    gt = sum((x.attention > 0).sum() for x in perfect)
    other = sum((x.attention == 0).sum() for x in perfect)
    assert values["flow"]["|att - gt|"] == pytest.approx(100 * other / gt) and values["flow"]["|gt - att|"] == 100
    assert values["flow"]["|(cls - gt) - att|"] == values["flow"]["|(att & gt) - cls|"] == 0
    of_models = {"rgb": [perfect], "flow": [opposite]}
    measured = evaluate.report(methods.get(config.method), of_models, data, config, tmp_path, {})
    text = results.format_results(measured)
    lines = [line.split() for line in text.splitlines() if "|gt|" in line or "fused" in line]
    assert lines[-1][0] == "fused" and "att," in lines[-2]
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written["attention"]) == ["rgb", "flow", "fused"]
    assert written["attention"]["flow"]["|gt - att|"]["mean"] == 100


def test_a_method_sees_each_model_with_its_own_options(config, data, perfect):
    """A row of one model has that model alone, the fused one both, and what all share."""
    seen = []

    def propose(models, fused, meta):
        seen.append(([one.options.nms for one in models], fused.options.nms, fused.scores is models[0].scores))
        return Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))

    with config.unlocked():
        config.localize.per_stream = dict(flow=dict(nms=0.25))
    made = methods.get(config.method)._replace(propose=propose)
    evaluate.detect(made, {"rgb": perfect, "flow": perfect}, data, config, 0)
    assert seen == [([0.5], 0.5, True)] * 8 + [([0.25], 0.25, True)] * 8 + [([0.5, 0.25], 0.5, False)] * 8
    config.localize.per_stream.flow = dict(nsm=0.25)
    with pytest.raises(InputError, match=r"config\.localize\.per_stream\.flow: config\.localize has no option nsm"):
        options.check_evaluation(config, data)
