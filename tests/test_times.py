"""Snippet index to seconds and back, for every way in which features are sampled."""

import numpy as np
import pytest

from wsal_jax.times import resampled, seconds_to_snippet, snippet_to_seconds
from wsal_jax.types import Meta

SAMPLINGS = [
    (fps, stride, offset)
    for fps in (24.0, 25.0, 29.97, 30.0)
    for stride in (4.0, 8.0, 16.0, 50.0)
    for offset in (0.0, stride / 2, 7.5, 50.0)
]


def meta(length=9, fps=25.0, stride=16.0, offset=8.0):
    return Meta("v", length, fps, stride, offset, 1e9)


def test_seconds_by_hand():
    assert snippet_to_seconds(3.0, meta()) == pytest.approx(2.24)
    assert snippet_to_seconds(0.0, meta(fps=29.97, stride=50.0, offset=50.0)) == pytest.approx(1.668335)
    assert seconds_to_snippet(2.24, meta()) == pytest.approx(3)


@pytest.mark.parametrize("fps, stride, offset", SAMPLINGS)
def test_indices_are_frames_and_come_back(fps, stride, offset):
    m = meta(100, fps, stride, offset)
    index = np.array([[-0.5, 0.0], [7.25, 99.5]])
    time = snippet_to_seconds(index, m)
    np.testing.assert_allclose(seconds_to_snippet(time, m), index, atol=1e-9)
    for i, t in zip(index.flat, time.flat):
        assert t * fps == pytest.approx(offset + i * stride)  # a frame number


@pytest.mark.parametrize("fps, stride, offset", SAMPLINGS)
def test_the_nearest_snippet_is_within_half_a_stride(fps, stride, offset):
    m = meta(100, fps, stride, offset)
    first, last = snippet_to_seconds(np.array([-0.5, 99.5]), m)
    time = np.random.default_rng(0).uniform(first, last, 500)
    nearest = np.round(seconds_to_snippet(time, m)).clip(0, 99)
    error = np.abs(snippet_to_seconds(nearest, m) - time)
    assert error.max() <= stride / 2 / fps + 1e-9
    assert error.max() > 0.45 * stride / fps  # and not better, or this would not be the stride


@pytest.mark.parametrize("length", [1, 20, 100, 375, 400, 750, 1000])
@pytest.mark.parametrize("fps, stride, offset", SAMPLINGS[::5])
def test_features_sampled_down_or_up_cover_the_same_time(fps, stride, offset, length):
    m = meta(750, fps, stride, offset)
    small = resampled(m, length)
    assert small.length == length and small[0] == m.id and small.duration == m.duration
    ends = snippet_to_seconds(np.array([-0.5, length - 0.5]), small)
    np.testing.assert_allclose(ends, snippet_to_seconds(np.array([-0.5, 749.5]), m), rtol=1e-12)
    # Snippet j has the middle of the j-th of `length` equal parts of the 750.
    j = np.arange(length)
    middle = (j + 0.5) * 750 / length - 0.5
    np.testing.assert_allclose(snippet_to_seconds(j * 1.0, small), snippet_to_seconds(middle, m), rtol=1e-12, atol=1e-9)
    # Sampled are the snippets in which those middles lie: not off by more than half a snippet.
    read = np.floor((j + 0.5) * 750 / length)
    error = np.abs(snippet_to_seconds(read, m) - snippet_to_seconds(j * 1.0, small))
    assert error.max() <= stride / 2 / fps + 1e-9
    time = np.random.default_rng(0).uniform(*ends, 200)
    nearest = np.round(seconds_to_snippet(time, small)).clip(0, length - 1)
    assert np.abs(snippet_to_seconds(nearest, small) - time).max() <= small.stride / 2 / fps + 1e-9
    np.testing.assert_allclose(resampled(small, 750)[2:5], m[2:5], rtol=1e-9, atol=1e-9)


def test_resampling_to_the_same_length_changes_nothing():
    assert resampled(meta(), 9) == meta()
