"""The snippets that training sees, which are the same from disk and from the device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from configs import maan
from tests import layouts, stored
from wsal_jax import train
from wsal_jax.data import pipeline
from wsal_jax.types import InputError


def test_plan_draws_one_snippet_of_each_part_and_every_video_once_an_epoch():
    lengths = jnp.array([40, 7, 1, 300, 12, 64, 33, 5, 9])
    draw = jax.jit(partial(pipeline.plan, batch_size=3, num_snippets=10))
    key = jax.random.key(0)
    epochs = []
    for step in range(6):
        videos, snippets = draw(key, step, lengths)
        n = np.asarray(lengths)[videos][:, None]
        parts = np.arange(10)
        assert (snippets >= np.floor(parts * n / 10)).all() and (snippets <= (parts + 1) * n / 10).all()
        assert (snippets < n).all()
        epochs.append(np.asarray(videos))
    assert sorted(np.concatenate(epochs[:3])) == list(range(9)) == sorted(np.concatenate(epochs[3:]))
    assert (np.concatenate(epochs[:3]) != np.concatenate(epochs[3:])).any()


def test_plan_is_uniform_within_a_part():
    lengths = jnp.full(4, 50)
    draw = jax.jit(jax.vmap(partial(pipeline.plan, batch_size=4, num_snippets=5), (None, 0, None)))
    _, snippets = draw(jax.random.key(1), jnp.arange(2000), lengths)
    counts = np.bincount(np.asarray(snippets).ravel(), minlength=50)
    assert chisquare(counts).pvalue > 1e-3


def test_a_batch_that_straddles_no_epoch_leaves_out_the_rest():
    draw = partial(pipeline.plan, batch_size=4, num_snippets=2)
    lengths = jnp.full(10, 8)
    first, second = (draw(jax.random.key(2), step, lengths)[0] for step in (0, 1))
    assert len({*first.tolist(), *second.tolist()}) == 8


def test_pairs_share_a_class_and_the_other_places_stay():
    """Classes and the videos of a class are uniform; classes of one video, and of none, are not drawn."""
    labels = np.float32([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 2, 0, 0]])
    plan = partial(pipeline.plan, batch_size=5, num_snippets=3)
    draw = lambda **pairs: jax.jit(jax.vmap(partial(plan, **pairs), (None, 0, None)))  # noqa: E731
    args = jax.random.key(0), jnp.arange(3000), jnp.full(5, 8)
    videos = np.asarray(draw(labels=labels, pairs=2)(*args)[0])
    pairs = np.sort(videos[:, :4].reshape(-1, 2))
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    assert found.tolist() == [[0, 1], [0, 2], [1, 2], [1, 4]]  # the first three by class 0, the last by class 1
    assert chisquare(counts, np.array([1, 1, 1, 3]) * 1000).pvalue > 1e-3
    first = pairs[::2, 1] == 4
    assert abs(np.corrcoef(first, pairs[1::2, 1] == 4)[0, 1]) < 0.07  # the pairs of a batch are independent
    np.testing.assert_array_equal(videos[:, 4:], draw()(*args)[0][:, 4:])


@pytest.mark.parametrize("streams", [["rgb"], ["flow"], ["rgb", "flow"]])
def test_flat_holds_every_video(tiny, streams):
    data = pipeline.load(tiny, "train")
    flat = pipeline.flat(data, streams)
    starts = np.cumsum(data.lengths) - data.lengths
    assert flat.shape == (data.lengths.sum(), sum(data.dims[s] for s in streams))
    assert [meta.id for meta in data.metas] == [f"train_{i:04d}" for i in range(12)]
    for example in stored.videos(tiny, "train"):
        video = [meta.id for meta in data.metas].index(example["id"].decode())
        expected = np.concatenate([example["features"][s] for s in streams], -1)
        np.testing.assert_array_equal(flat[starts[video] :][: data.lengths[video]], expected)
        np.testing.assert_array_equal(data.labels[video], example["labels"])


@pytest.mark.parametrize("pairs", [0, 2])
def test_stream_reads_what_the_device_would_gather(config, tiny, pairs):
    data = pipeline.load(tiny, "train")
    config.seeds = 2
    keys = train.make_keys(config)
    flat, starts = pipeline.flat(data, ["rgb"]), np.cumsum(data.lengths) - data.lengths
    plan = jax.jit(partial(pipeline.plan, batch_size=8, num_snippets=10, pairs=pairs))
    for slots in (slice(0, 8), slice(2, 4)):
        dispatches = [range(3, 5), range(5, 6), range(6, 8)]
        read = list(pipeline.stream(data, ["rgb"], keys, dispatches, 8, 10, slots, pairs))
        assert [len(features) for features in read] == [2, 1, 2]
        for step, features in zip(range(3, 8), np.concatenate(read)):
            for seed in range(2):
                videos, snippets = plan(keys[seed], step, data.lengths, labels=data.labels)
                expected = flat[starts[videos][:, None] + snippets][slots]
                np.testing.assert_array_equal(features[seed], expected)


def test_batches_have_every_video_once_padded(tiny):
    data = pipeline.load(tiny, "test")
    seen, sizes = [], []
    for of_size in pipeline.batches(data, 3):
        padded = [pipeline.pad(data, ["rgb", "flow"], videos, 3) for videos in of_size]
        shapes = {x.features.shape for x in padded}
        assert len(shapes) == 1
        sizes.append(shapes.pop()[1])
        for videos, (features, mask) in zip(of_size, padded):
            assert features.shape[:2] == mask.shape and mask.shape[0] == 3 >= len(videos) > 0
            for row, video in enumerate(videos):
                n = data.lengths[video]
                np.testing.assert_array_equal(features[row, :n], pipeline.read(data, video, ["rgb", "flow"]))
                assert mask[row].tolist() == [1] * n + [0] * (mask.shape[1] - n)
            assert not features[len(videos) :].any() and not mask[len(videos) :].any()
            seen += videos.tolist()
    assert sorted(seen) == list(range(len(data.metas))) and sizes == sorted(set(sizes))


def test_unknown_data_set_is_named(config):
    config.data.name = "synthetic_untrimed"
    with pytest.raises(InputError, match=r"config.data.name='synthetic_untrimed'"):
        pipeline.build(config.data)
    config.data.name = "synthetic_untrimmed/nope"
    with pytest.raises(InputError, match="nope"):
        pipeline.build(config.data)


def test_options_of_the_reader_reach_the_builder(tmp_path):
    layouts.bas_net(tmp_path / "data")
    config = maan.get_config("dataset=thumos14").data
    config.dir, config.root = str(tmp_path / "built"), str(tmp_path / "data")
    config.reader.fps, config.reader.diving, config.reader.durations = 50.0, "cliff_only", "features"
    data = pipeline.load(pipeline.build(config), "train")
    assert [(meta.fps, meta.stride, meta.offset) for meta in data.metas] == [(50, 16, 8)] * 2
    assert data.counts.sum() == 4 and len(data.class_names) == 20
    np.testing.assert_array_equal(data.annotations[1].ambiguous, [[8, 9.5]])
    config.reader.layout = "cmcs"
    with pytest.raises(InputError, match=r"no video found: looked for <video>-rgb\.npz"):
        pipeline.build(config)
    assert "reader" not in maan.get_config("dataset=feature_folder").data
    assert "videos" not in maan.get_config("dataset=activitynet/1.3").data.reader
