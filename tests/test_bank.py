"""Where training features lie, and the batches that come of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from scipy.stats import chisquare

from tests.test_train import toy
from wsal_jax import method, sharding, train
from wsal_jax.data import bank, pipeline, store
from wsal_jax.types import InputError, Meta


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


def test_the_bytes_of_its_own_streams_decide(config, data):
    """A float16 stream takes a quarter of two float32 ones."""
    size = int(data.lengths.sum()) * 16 * 4
    for streams, dtype, expected in (
        (["rgb", "flow"], "stored", 2 * size),
        (["flow"], "stored", size),
        (["rgb"], "float16", size // 2),
        (["rgb"], "bfloat16", size // 2),
    ):
        part = data._replace(dtype=dtype)
        assert pipeline.num_bytes(part, streams) == pipeline.flat(part, streams).nbytes == expected
        where = []
        for config.data.device_gb in np.array([expected, expected - 1, expected / 8, expected / 8 - 1]) / 2**30:
            where.append(bank.placement(part, streams, config, 8))
        assert where == ["device", "split", "split", "stream"]
        assert bank.placement(part, streams, config, 1) == "stream"
    config.data.placement = "split"
    assert bank.placement(data, ["rgb"], config, 1) == "split"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_ways_round_alike_and_steps_compute_in_float32(config, data, dtype):
    config.data.placement = "device"
    one, keys, mesh = data._replace(dtype=dtype), train.make_keys(config), sharding.make_mesh(jax.devices()[:1])
    exact = pipeline.flat(data, ["rgb", "flow"])
    flat = pipeline.flat(one, ["rgb", "flow"])
    assert flat.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(flat, exact.astype(jnp.dtype(dtype)))
    assert (flat != exact).any()
    read = pipeline.read(one, 0, ["rgb", "flow"])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, flat[: len(read)].astype(np.float32))
    videos, _ = bank.feed(one, ["rgb", "flow"], keys, [range(2)], config, mesh)
    keep = jnp.ones((1, len(flat)), bool)
    drawn = bank.batch(videos, keep, keys, 1, None, 1, FrozenConfigDict(config), mesh)
    assert videos.features.dtype == flat.dtype and drawn.features.dtype == np.float32
    (read,) = pipeline.stream(one, ["rgb", "flow"], keys, [range(1, 2)], 8, 10, slice(0, 8))
    assert read.dtype == flat.dtype
    np.testing.assert_array_equal(drawn.features, read[0].astype(np.float32))


def test_features_too_large_for_the_dtype_are_refused():
    assert pipeline.rounded(np.float32([7e4]), "bfloat16") == np.float32(7e4).astype(jnp.bfloat16)
    with pytest.raises(InputError, match=r"features of up to 7e\+04; give bfloat16"):
        pipeline.rounded(np.float32([1, -7e4]), "float16")


def test_videos_are_dealt_once_and_evenly():
    lengths = np.random.default_rng(0).integers(1, 300, 1001)
    dealt = bank.deal(lengths, 8)
    videos = dealt[dealt >= 0]
    assert sorted(videos) == list(range(1001)) and dealt.shape == (8, 126)
    snippets = np.where(dealt >= 0, lengths[dealt], 0).sum(1)
    assert np.ptp(snippets) < 300
    assert np.corrcoef(np.arange(8), snippets)[0, 1] < 0.9  # it is not always the first that gets the longest


def made_bank(lengths, mesh, tmp_path):
    """A bank split over devices, whose features are the video and the snippet; and the data."""
    streams = {"rgb": store.Stream(2, "float32")}
    write = store.writer(tmp_path, "train", streams)
    values = [np.stack([np.full(n, v), np.arange(n)], 1).astype(np.float32) for v, n in enumerate(lengths)]
    shards, rows = np.array([write({"rgb": x}) for x in values]).T
    kept = store.Store(tmp_path, "train", streams, shards, rows, np.array(lengths))
    metas = [Meta(str(v), n, 25, 16, 8, n) for v, n in enumerate(lengths)]
    labels = np.arange(len(lengths), dtype=np.float32)[:, None]
    data = pipeline.Dataset(kept, metas, [None] * len(metas), labels, labels, ["c"], {"rgb": 2}, [""] * len(lengths))
    return data, bank.split(data, ["rgb"], mesh)


@pytest.mark.parametrize("count", [24, 22])
def test_split_videos_are_drawn_without_a_bias(config, tmp_path, count):
    """Four devices with two places each: 24 videos are each seen once an epoch. Of 22, two devices have 6 and two 5,
    of which an epoch has 4: all videos of a device equally often.
    """
    rng, mesh, epochs = np.random.default_rng(0), sharding.make_mesh(jax.devices()[:4]), 150
    lengths = rng.integers(1, 60, count).tolist()
    data, videos = made_bank(lengths, mesh, tmp_path)
    keep, keys = rng.random((2, sum(lengths))) < 0.5, jax.random.split(jax.random.key(0), 2)
    per_epoch, config = count // 8, FrozenConfigDict(config)
    draw = jax.jit(lambda videos, step: bank.batch(videos, keep, keys, step, None, per_epoch, config, mesh))
    seen = np.zeros((2, epochs, count), int)
    for step in range(epochs * per_epoch):
        drawn = jax.tree.map(np.asarray, draw(videos, step))
        chosen = drawn.features[:, :, 0, 0].astype(int)
        np.testing.assert_array_equal(drawn.labels[..., 0], chosen)
        for seed in range(2):
            seen[seed, step // per_epoch, chosen[seed]] += 1
        if step == 0:
            n, snippets = data.lengths[chosen][:, :, None], drawn.features[..., 1]
            parts = np.arange(10)
            assert (snippets >= np.floor(parts * n / 10)).all() and (snippets <= (parts + 1) * n / 10).all()
            at = data.starts[chosen][:, :, None] + snippets.astype(int)
            np.testing.assert_array_equal(drawn.mask, np.stack([k[i] for k, i in zip(keep, at)]))
            assert (chosen[0] != chosen[1]).any()
    assert seen.max() == 1
    for own in bank.deal(data.lengths, 4):
        own = own[own >= 0]
        assert (seen[:, :, own].sum(2) == 2 * per_epoch).all()
        if count == 24:
            assert seen[:, :, own].all()
        else:
            assert chisquare(seen[:, :, own].sum((0, 1))).pvalue > 1e-3


def test_a_step_on_split_videos_has_the_gradients_of_one_device(config, data, tmp_path):
    """Of the same batch: SGD moves parameters by the gradient."""
    run, mesh = toy(), sharding.make_mesh()
    config.optimizer = dict(name="sgd", learning_rate=1.0)
    config.steps, config.data.placement = 1, "split"
    videos, keys = bank.split(data, ["rgb"], mesh), train.make_keys(config, "rgb")
    keep = jnp.ones((1, data.lengths.sum()), bool)
    assert videos.features.addressable_shards[0].data.nbytes < pipeline.num_bytes(data, ["rgb"]) / 4
    drawn = jax.device_get(bank.batch(videos, keep, keys, 0, None, 1, FrozenConfigDict(config), mesh))
    params = train.init(run, method.Spec((data.dims["rgb"],), 3), config, 1, "rgb").params
    before = jax.tree.map(lambda x: np.asarray(x[0]), params)
    video = jax.tree.map(lambda x: x[0], drawn)
    optimizer = train.make_optimizer(config.optimizer)
    expected = train.update(
        run.phases[0], optimizer, before, optimizer.init({}), video, jax.random.key(0), jnp.int32(0)
    )[0]
    after = train.fit(run, data, ["rgb"], config, mesh, tmp_path)
    assert np.abs(after["first"][0] - before["first"]).max() > 1e-3
    np.testing.assert_allclose(after["first"][0], expected["first"], atol=1e-6)


def test_memory_of_streaming_does_not_depend_on_the_dispatch(config, data, monkeypatch):
    """Windows are cut by bytes into equal parts, of which a few are read ahead."""
    config.data.placement, config.seeds, placed = "stream", 2, []
    row = 2 * 8 * 10 * 16 * 4
    monkeypatch.setattr(bank, "DISPATCH_BYTES", 7 * row)
    original = jax.make_array_from_process_local_data

    def place(*args):
        placed.append(args[1].nbytes)
        return original(*args)

    monkeypatch.setattr(jax, "make_array_from_process_local_data", place)
    mesh, windows = sharding.make_mesh(jax.devices()[:1]), [range(4), range(4, 24), range(24, 25)]
    _, batches = bank.feed(data, ["rgb"], train.make_keys(config), windows, config, mesh)
    placed.clear()
    dispatches = []
    for taken, (steps, features) in enumerate(batches, 1):
        dispatches.append(steps)
        assert len(features) == len(steps)
        assert len(placed) <= taken + pipeline.AHEAD
    assert dispatches == [range(4), range(4, 11), range(11, 18), range(18, 24), range(24, 25)]
    assert placed and max(placed) <= 7 * row
