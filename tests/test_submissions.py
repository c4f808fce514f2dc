"""Files of detections give the same result in all formats, and all problems are reported."""

import gzip
import json

import numpy as np
import pytest

from wsal_jax.formats import checks, submissions
from wsal_jax.formats.checks import FolderError
from wsal_jax.types import Detections

ROWS = [("a b", 1.5, 4.0, "Run", 0.75), ("c", 0.0, 2.25, "Long jump", 1e-3), ("a b", 3.0, 3.0, "Run", -2.0)]
"""Video, start, end, label, score."""


def as_json(rows=ROWS):
    results = {}
    for id, start, end, label, score in rows:
        results.setdefault(id, []).append({"label": label, "score": score, "segment": [start, end]})
    return results


def lines(rows, between=","):
    return "".join(between.join(map(str, row)) + "\n" for row in rows)


def shuffled():
    head = "Score,t-end,Class Name,other,t-start,video-id"
    return lines([(head,), *((score, end, label, "?", start, id) for id, start, end, label, score in ROWS)])


FORMS = {
    "d.json": json.dumps({"version": "1", "results": as_json(), "external_data": {}}),
    "inner.json": json.dumps(as_json()),
    "a.jsonl": "\n".join(
        json.dumps({"video_id": id, "start": start, "end": end, "label": label, "score": score})
        for id, start, end, label, score in ROWS
    ),
    "b.ndjson": "\n".join(json.dumps({"video": id, "detections": of}) for id, of in as_json().items()),
    "segments.JSONL": "\n\n".join(json.dumps({"video": id, **one}) for id, of in as_json().items() for one in of),
    "a.csv": "video,start,end,label,score\n" + lines(ROWS),
    "plain.csv": "\n" + lines(ROWS),
    "semicolons.csv": "video;start;end;label;score\n" + lines(ROWS, ";"),
    "quoted.csv": "video,start,end,label,score\n" + lines([(f'"{id}"', *rest) for id, *rest in ROWS]),
    "tabs.tsv": "\ufeff" + lines([("video", "start", "end", "label", "score"), *ROWS], "\t"),
    "any.csv": shuffled(),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_all_forms_are_read_alike(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" if packed else name)
    content = FORMS[name].encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    found = submissions.read(path)
    assert list(found) == ["a b", "c"]
    assert found["a b"].segments.tolist() == [[1.5, 4], [3, 3]] and found["c"].segments.tolist() == [[0, 2.25]]
    assert found["a b"].labels == ("Run", "Run") and found["c"].labels == ("Long jump",)
    assert found["a b"].scores.tolist() == [0.75, -2] and found["c"].scores.tolist() == [0.001]


def test_the_text_of_the_thumos_kit(tmp_path):
    path = tmp_path / "run.txt"
    path.write_text("video_test_0000004 1.0 2.5 9 0.5\nb  3 4  97 1\n\nb 3 4 Long jump 0.1\nb 3 4 8 0\n")
    found = submissions.read(path)
    assert found["video_test_0000004"].labels == ("BasketballDunk",)
    assert found["b"].labels == ("VolleyballSpiking", "Long jump", "8") and found["b"].scores.tolist() == [1, 0.1, 0]
    path.write_text("a 1 2 9\n")
    with pytest.raises(FolderError, match=r"line 1 \(.*must be <video> <start> <end> <class> <score>"):
        submissions.read(path)


def test_what_is_written_is_read(tmp_path):
    detections = {
        "a": Detections(np.array([[0.1, 1 / 3], [2.0, 3.5]]), np.array([2, 0]), np.array([0.2, 0.7])),
        "none": Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0)),
    }
    path = tmp_path / "d.json"
    path.write_text(json.dumps(submissions.to_json(detections, ["x", "y", "z"])))
    found = submissions.read(path)
    assert list(found) == ["a", "none"] and found["none"].labels == ()
    assert found["a"].segments.tolist() == [[2, 3.5], [0.1, 1 / 3]]  # the best first
    assert found["a"].labels == ("x", "z") and found["a"].scores.tolist() == [0.7, 0.2]


GOOD = {"video": "a", "label": "Run", "score": 1, "segment": [0, 1]}


@pytest.mark.parametrize(
    "name, content, what",
    [
        (
            "d.json",
            json.dumps({"a": [{**GOOD, "segment": [0, 1e30]}]}),
            'detection 0 ([0, 1e+30]): "segment" is beyond',
        ),
        ("d.json", json.dumps({"a": [{**GOOD, "segment": ["0", "1_000"]}]}), "must be [start, end], finite"),
        ("d.json", json.dumps({"a": [{**GOOD, "score": "٠"}]}), '"score" must be a finite number'),
        ("d.jsonl", json.dumps(GOOD) + "\n\n{", "line 3: cannot be read as JSON"),
        ("d.jsonl", "[1]", "line 1 ([1]): must be {"),
        ("d.jsonl", json.dumps({**GOOD, "video": "../x"}), "d.jsonl: '../x': is no video id"),
        ("d.jsonl", json.dumps({"label": "Run", "segment": [0, 1], "score": 1}), 'line 1: has no "video"'),
        ("d.jsonl", json.dumps({"video": "a", "start": 1, "score": 1}), 'line 1: has no "label"'),
        ("d.jsonl", json.dumps({"video": "a", "start": 1, "score": 1}), 'line 1: has no "segment"'),
        ("d.jsonl", json.dumps({"video": 3, **{k: v for k, v in GOOD.items() if k != "video"}}), "3: is no video id"),
        ("d.csv", "video,start,end,score\na,0,1,1\n", "needs one column each for video, start, end, label, score"),
        ("d.csv", "a,0,1,Run,1\na,0,1,Run\n", "line 2: has 4 columns: must have 5"),
        ("d.csv", "a,0,x,Run,1\n", "line 1 (['0', 'x']): \"segment\" must be [start, end]"),
        ("d.csv.gz", "not packed", "line 1: has 1 columns"),
        ("d.txt", "a 0 1 9 nan", "line 1 ('nan'): \"score\" must be a finite number"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FolderError) as error:
        submissions.read(path)
    assert what in str(error.value)


def test_damaged_and_endless_archives(tmp_path, monkeypatch):
    path = tmp_path / "d.json.gz"
    packed = gzip.compress(json.dumps(as_json()).encode())
    for content in (packed[:-12], packed[:20] + b"xx" + packed[22:]):
        path.write_bytes(content)
        with pytest.raises(FolderError, match=r"d.json.gz: cannot be read as JSON \("):
            submissions.read(path)
    path.write_bytes(gzip.compress(bytes(10**6)))
    monkeypatch.setattr(checks, "MAX_UNPACKED", 10**5)
    with pytest.raises(FolderError, match="holds more than 100,000 bytes when unpacked"):
        submissions.read(path)
