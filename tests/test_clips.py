"""Highlight clips: reading them, and ranking them by a model's scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from wsal_jax import metrics
from wsal_jax.data import clips
from wsal_jax.formats.checks import FolderError
from wsal_jax.types import Meta, Scores

SHARED = Path(__file__).parents[2] / "shared" / "data" / "youtube_highlights"
GOOD = {"domain": "dog", "match": [1, 0, -1], "clip_frames": [[0, 100], [50, 150.0], [100, 200]]}


def read(tmp_path, content):
    (tmp_path / "clips.json").write_text(json.dumps(content))
    return clips.read(tmp_path, ["cat", "dog"])


def test_read(tmp_path):
    assert clips.read(tmp_path, ["dog"]) == {}
    found = read(tmp_path, {"a": GOOD})["a"]
    assert (found.domain, found.label, found.match.tolist()) == ("dog", 1, [1, 0, -1])
    np.testing.assert_array_equal(found.frames, [[0, 100], [50, 150], [100, 200]])


@pytest.mark.parametrize(
    "video, message",
    [
        ([], "must be"),
        ({}, "must be"),
        ({**GOOD, "domain": "fish"}, "the domain 'fish' is no class of gt.json"),
        ({**GOOD, "match": [1, 0]}, "2 values of match for 3 clips"),
        ({**GOOD, "match": [1, 0, 2]}, "must be -1, 0 or 1"),
        ({**GOOD, "clip_frames": [[1], [1, 2], [2, 3]]}, "must be"),
        ({**GOOD, "clip_frames": [[1, "x"], [1, 2], [2, 3]]}, "must be"),
        ({**GOOD, "clip_frames": [1, 2, 3]}, "must be"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, video, message):
    with pytest.raises(FolderError, match=message) as caught:
        read(tmp_path, {"good": GOOD, "bad": video, "worse": None})
    assert "bad" in str(caught.value) and "worse" in str(caught.value) and "good" not in str(caught.value)
    with pytest.raises(FolderError, match="must be"):
        read(tmp_path, [])


def test_a_clip_has_the_activation_at_its_middle():
    """Snippet i is at frame 50 + 50 i, clip i is from 50 i to 50 i + 100; one more lies midway, one after the end."""
    cas = np.array([[0.0, 3.0], [1.0, 5.0], [2.0, 1.0]], np.float32)
    scores = Scores(np.ones(2, np.float32), cas, np.ones(3, np.float32))
    meta = Meta("a", 3, 29.97, 50.0, 50.0, 7.0)
    frames = np.array([[0.0, 100], [50, 150], [100, 200], [25, 125], [400, 500]])
    of_dog = clips.Clips("dog", 1, np.ones(5, int), frames)
    np.testing.assert_allclose(clips.clip_scores(scores, meta, of_dog), [3, 5, 1, 4, 1])


@pytest.mark.skipif(not SHARED.exists(), reason="the real clips are not here")
def test_chance_on_the_real_clips():
    """The published value for random scores on the test videos is 51.1."""
    gt = json.loads((SHARED / "gt.json").read_text())["database"]
    found = clips.read(SHARED, sorted({label for video in gt.values() for label in video["labels"]}))
    test = [found[id] for id in (SHARED / "split_test.txt").read_text().split()]
    rng = np.random.default_rng(0)
    chance = [
        metrics.highlight_map([(x.domain, rng.random(len(x.match)), x.match) for x in test])[1] for _ in range(40)
    ]
    assert 100 * np.mean(chance) == pytest.approx(51.1, abs=0.5)
