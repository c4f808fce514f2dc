"""Annotations of every published form, read as they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import layouts as made
from wsal_jax.formats import annotations
from wsal_jax.formats.annotations import (
    Record,
    odd_segments,
    read_activitynet,
    read_thumos_text,
    read_times,
    read_w_talc,
)
from wsal_jax.formats.checks import Problems

SHARED = Path(__file__).parents[2] / "shared" / "data"


def activitynet(tmp_path, video=None, **database):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({"database": {**({"a": video} if video is not None else {}), **database}}))
    return read_activitynet(path, problems := Problems()), "\n".join(problems.lines())


def test_activitynet_with_all_there_can_be(tmp_path):
    video = {
        "subset": "validation",
        "duration": "20.5",
        "frame": 615,
        "url": "https://example.org",
        "annotations": [
            {"segment": ["1.5", 3], "label": "Zumba"},
            {"segment": [7, 6.0], "label": "Archery", "label_id": 3},
            {"segment": [8, 9], "label": "Ambiguous"},
            {"segment": [10, 99], "label": "Zumba"},
        ],
    }
    records, wrong = activitynet(tmp_path, video)
    assert not wrong
    expected = Record(
        subset="validation",
        segments=((1.5, 3.0), (7.0, 6.0), (10.0, 99.0)),
        labels=("Zumba", "Archery", "Zumba"),
        ambiguous=((8.0, 9.0),),
        video_labels=("Zumba", "Archery"),
        duration=20.5,
        fps=30.0,
    )
    assert records == {"a": expected}


def test_activitynet_with_little(tmp_path):
    records, wrong = activitynet(tmp_path, {"subset": "testing"}, b={"labels": ["x", "x"], "fps": 24, "frame": 3})
    assert not wrong
    assert records == {"a": Record(subset="testing"), "b": Record(video_labels=("x",), fps=24.0)}


@pytest.mark.parametrize(
    "video, message",
    [
        ([], "gt.json: 'a': must be an object"),
        ({"annotations": 3}, "annotation 3 must be"),
        ({"annotations": [{"segment": [1], "label": "x"}]}, 'must be {"segment": [start, end]'),
        ({"annotations": [{"segment": [1, "nan"], "label": "x"}]}, "in seconds"),
        ({"annotations": [{"segment": [1, 2], "label": ""}]}, "in seconds"),
        ({"annotations": [{"segment": [1, True], "label": "x"}]}, "in seconds"),
        ({"duration": 0}, '"duration" is 0: must be a positive number'),
        ({"fps": "fast"}, "\"fps\" is 'fast': must be a positive number"),
        ({"labels": "x"}, "\"labels\" is 'x': must be a list of class names"),
    ],
)
def test_activitynet_that_cannot_be_read(tmp_path, video, message):
    _, wrong = activitynet(tmp_path, video)
    assert message in wrong


def test_activitynet_that_is_none(tmp_path):
    path = tmp_path / "gt.json"
    for text, message in (("[]", 'must be {"database"'), ('{"x": 1}', 'must be {"database"'), ("{", "as JSON")):
        path.write_text(text)
        assert read_activitynet(path, problems := Problems()) == {}
        assert message in "\n".join(problems.lines())
    path.write_text('{"database": {"a": {}, "a": {}, "../b": {}}}')
    assert set(read_activitynet(path, problems := Problems())) == {"a"}
    assert "'a': is there more than once" in "\n".join(problems.lines())
    assert "'../b': is no video id" in "\n".join(problems.lines())


@pytest.mark.parametrize(
    "subset, subsets, expected",
    [
        ("training", {"training", "validation", "testing"}, True),
        ("Train", {"Train", "Val"}, True),
        ("validation", {"training", "validation", "testing"}, False),
        ("testing", {"training", "validation", "testing"}, None),
        ("testing", {"training", "testing"}, None),
        ("test", {"train", "test"}, False),
        ("Test", {"train", "val", "Test"}, None),
        ("", {""}, None),
    ],
)
def test_what_a_subset_is_for(subset, subsets, expected):
    assert annotations.is_train(subset, subsets) is expected


def test_w_talc_of_python_2_and_3(tmp_path):
    made.w_talc(tmp_path)
    folder = tmp_path / "Thumos14reduced-Annotations"
    first = read_w_talc(folder, problems := Problems())
    assert not problems and [id for id, _ in first] == list(made.VIDEOS)
    for name in ("videoname", "subset"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy").astype(str))
    labels = np.load(folder / "labels.npy", allow_pickle=True)
    texts = made.objects([[label.decode() for label in of] for of in labels])
    np.save(folder / "labels.npy", texts, allow_pickle=True)
    assert read_w_talc(folder, Problems()) == first


def test_w_talc_of_a_video_without_segments(tmp_path):
    made.w_talc(tmp_path)
    folder = tmp_path / "Thumos14reduced-Annotations"
    for name in ("segments", "labels"):
        array = np.load(folder / f"{name}.npy", allow_pickle=True)
        array[0] = []
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    (_, first), (_, second), *_ = read_w_talc(folder, Problems())
    assert first.video_labels == ("Billiards",) and first.segments == ()  # from labels_all
    assert second.video_labels == ("CliffDiving", "Diving")  # not from labels_all, which is wrong


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("labels", [b"x"], "has 2 segments and 1 labels"),
        ("segments", [[1, 2, 3], [1, 2]], "cannot be read"),
        ("segments", [[1, float("inf")], [1, 2]], "must be as many, and finite"),
        ("segments", 3, "cannot be read"),
    ],
)
def test_w_talc_that_cannot_be_read(tmp_path, name, value, message):
    made.w_talc(tmp_path)
    folder = tmp_path / "Thumos14reduced-Annotations"
    array = np.load(folder / f"{name}.npy", allow_pickle=True)
    array[0] = value
    np.save(folder / f"{name}.npy", array, allow_pickle=True)
    read_w_talc(folder, problems := Problems())
    text = "\n".join(problems.lines())
    assert "video_validation_0000051" in text and message in text


def test_text_files(tmp_path):
    (tmp_path / "Diving_test.txt").write_text("v1  1.0 2.5\nv2 3 4\n\n")
    (tmp_path / "CliffDiving_test.txt").write_text("v1  1.0 2.5 \r\n")
    (tmp_path / "Ambiguous_test.txt").write_text("v3  0.0 1.4\n")
    (tmp_path / "Diving_val.txt").write_text("v4 1 2")
    records = read_thumos_text(tmp_path, problems := Problems())
    assert not problems and {id: record.subset for id, record in records.items()} == {
        "v1": "test",
        "v2": "test",
        "v3": "test",
        "v4": "val",
    }
    assert records["v1"].labels == ("CliffDiving", "Diving") and records["v1"].segments == ((1.0, 2.5),) * 2
    assert records["v3"] == Record(subset="test", ambiguous=((0.0, 1.4),))


@pytest.mark.parametrize("line", ["v1 1", "v1 1 2 3", "v1 a 2", "v/1 1 2", "v1 nan 2"])
def test_text_that_cannot_be_read(tmp_path, line):
    (tmp_path / "Diving_test.txt").write_text(line)
    assert read_times(tmp_path / "Diving_test.txt", problems := Problems()) == []
    assert "is not <video> <start> <end>, in seconds" in "\n".join(problems.lines())


def test_odd_segments_are_found_at_their_borders():
    record = Record(segments=((0, 1), (1, 1), (2, 1), (-0.1, 1), (9, 10.5), (9, 10.6), (11, 12)), labels=("x",) * 7)
    assert [i for i, _ in odd_segments(record, 10.0, 0.5)] == [1, 2, 3, 5, 6]


@pytest.mark.skipif(not SHARED.exists(), reason="the real annotations are not here")
def test_the_real_forms_agree():
    """W-TALC's arrays and BaS-Net's JSON, of the videos that both have."""
    folder = SHARED / "thumos14" / "Thumos14reduced-Annotations"
    arrays = dict(read_w_talc(folder, problems := Problems()))
    records = read_activitynet(SHARED / "thumos14" / "gt.json", problems)
    assert not problems and len(set(arrays) & set(records)) == 410

    def instances(record):
        return sorted((*times, label) for times, label in zip(record.segments, record.labels))

    assert all(instances(record) == instances(arrays[id]) for id, record in records.items())
    # The file has 99 lines; one video of them, 1292, is not among the arrays.
    lines = read_times(folder / "Ambiguous_test.txt", problems)
    there = sum(len(record.ambiguous) for record in arrays.values())
    assert len(lines) == 99 and there == sum(id in arrays for id, _ in lines) < 99
    odd = {id for id, x in arrays.items() if odd_segments(x, x.duration, 0.64)}
    numbers = {"270", "814", "1081", "364", "856"}
    assert {id.split("_")[-1].lstrip("0") for id in odd} == numbers
