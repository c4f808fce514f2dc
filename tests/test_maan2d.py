"""MAAN in two dimensions: pooling, each aggregator's logits, losses and maps against NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maan2d as config_of
from wsal_jax import methods
from wsal_jax.data import pipeline
from wsal_jax.data.store import Store
from wsal_jax.method import Spec, Step
from wsal_jax.methods import maan2d
from wsal_jax.types import InputError, Meta, Video

D, C = 6, 4


def options(aggregator="maan", grid=(7, 7), **others):
    config = config_of.get_config(f"aggregator={aggregator}").method
    config.update(grid=grid, hidden=5, **others)
    return config


def image(grid=(7, 7), padding=0, seed=0, labels=(0, 1, 0, 0)):
    n = grid[0] * grid[1]
    rng = np.random.default_rng(seed)
    features = np.concatenate([rng.normal(size=(n, D)), 99 * np.ones((padding, D))]).astype(np.float32)
    mask = np.r_[np.ones(n), np.zeros(padding)].astype(np.float32)
    return Video(*map(jnp.asarray, (features, mask, np.float32(labels), np.float32(labels), np.int32(n))))


def params_of(config, seed=0):
    params = methods.get(config).init(jax.random.key(seed), Spec((D,), C))
    return jax.tree.map(lambda x: x + 0.1, params)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("grid", "size"), [((13, 13), 4), ((14, 14), 7), ((7, 5), 4), ((3, 2), 4)])
def test_pooling_averages_what_adaptive_pooling_does(grid, size):
    values = np.random.default_rng(0).random((*grid, 3))
    expected = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            rows = slice(i * grid[0] // size, int(np.ceil((i + 1) * grid[0] / size)))
            columns = slice(j * grid[1] // size, int(np.ceil((j + 1) * grid[1] / size)))
            expected[i, j] = values[rows, columns].mean((0, 1))
    found = maan2d.pooling(grid, size) @ values.reshape(-1, 3)
    np.testing.assert_allclose(found.reshape(size, size, 3), expected, rtol=1e-6)


def plain_attention(params, x):
    hidden = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    return sigmoid(np.where(hidden > 0, hidden, 0.01 * hidden) @ params["out"]["kernel"] + params["out"]["bias"])[:, 0]


def marginal(p):
    """Eq. 3: p_i times the mean of 1 / (1 + s), s being how many of the others are drawn."""
    weights = []
    for i in range(len(p)):
        counts = np.ones(1)
        for other in np.delete(p, i):
            counts = np.convolve(counts, [1 - other, other])
        weights.append(p[i] * (counts / np.arange(1, len(p) + 1)).sum())
    return np.array(weights)


def plain_feature(aggregator, p, x):
    if aggregator == "maan":
        return marginal(p.astype(np.float64)) @ x
    weights = {"mean": np.full(len(x), 1 / len(x)), "weighted_sum": p / len(x), "norm": p / p.sum()}
    return (softmax(p) if aggregator == "softmax_norm" else weights[aggregator]) @ x


@pytest.mark.parametrize(
    ("aggregator", "grid", "pool"), [("maan", (3, 3), 3), *((name, (6, 5), 4) for name in maan2d.AGGREGATORS)]
)
def test_scores_are_those_of_the_paper_by_hand(aggregator, grid, pool):
    config = options(aggregator, grid, pool=pool, map="cas", scale=0.5)
    params, video = params_of(config), image(grid, padding=5)
    found = methods.get(config).score(params, video)
    n = grid[0] * grid[1]
    plain = jax.tree.map(np.asarray, params)
    x = 0.5 * np.asarray(video.features)[:n]
    cells = x if grid == (pool, pool) else maan2d.pooling(grid, pool) @ x
    attention = {"full": np.ones(n), "cells": np.ones(len(cells))}
    if aggregator != "mean":
        attention = {
            "full": plain_attention(plain["attention"], x),
            "cells": plain_attention(plain["attention"], cells),
        }
    kernel, bias = plain["classifier"]["kernel"], plain["classifier"]["bias"]
    logits = plain_feature(aggregator, attention["cells"].astype(np.float32), cells) @ kernel + bias
    np.testing.assert_allclose(found.video_score, softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(found.attention[:n], attention["full"], rtol=1e-5)
    np.testing.assert_allclose(found.cas[:n], attention["full"][:, None] * sigmoid(x @ kernel + bias), rtol=1e-4)
    assert not np.asarray(found.cas[n:]).any()
    if aggregator == "mean":
        cam = methods.get(options(aggregator, grid, pool=pool, map="cam", scale=0.5)).score(params, video)
        np.testing.assert_allclose(cam.cas[:n], x @ kernel, rtol=1e-4, atol=1e-5)


def test_a_map_in_another_order_has_the_same_aggregate():
    config = options()
    params, video = params_of(config), image()
    order = np.random.default_rng(0).permutation(49)
    other = methods.get(config).score(params, video._replace(features=video.features[order]))
    np.testing.assert_allclose(other.video_score, methods.get(config).score(params, video).video_score, rtol=1e-5)


@pytest.mark.parametrize("labels", [(0, 1, 0, 0), (1, 0, 0, 1)])
@pytest.mark.parametrize("kind", maan2d.LOSSES)
def test_the_loss_is_of_the_pooled_image(kind, labels):
    config = options(grid=(6, 5), pool=4, dropout=0.0, loss=kind)
    params, video = params_of(config), image((6, 5), labels=labels)
    phase = methods.get(config).phases[0]
    value, metrics = phase.loss(params, video, Step(jax.random.key(0), jnp.int32(0)))
    score = np.asarray(methods.get(config).score(params, video).video_score, np.float64)
    labels = np.array(labels)
    if kind == "softmax":
        expected = -(labels * np.log(score)).sum() / labels.sum()
    else:
        expected = -(labels * np.log(score) + (1 - labels) * np.log(1 - score)).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert 0 < metrics["attention"] < 1


def test_a_sum_grows_with_the_cells_where_it_is_not_divided():
    params, video = params_of(options("weighted_sum")), image()
    divided, whole = (
        maan2d.aggregated(options("weighted_sum", divide=divide), params, video) for divide in (True, False)
    )
    np.testing.assert_allclose(49 * divided, whole, rtol=1e-5)


def test_cam_has_no_attention_to_train():
    method = methods.get(options("mean"))
    assert method.phases[0].trains == ("classifier",)
    assert set(method.init(jax.random.key(0), Spec((D,), C))) == {"classifier"}


def test_training_sees_every_location_in_its_place():
    """`plan` draws one of each of n parts, and n locations have a part each."""
    _, snippets = jax.jit(lambda key: pipeline.plan(key, 3, np.full(100, 169), 64, 169))(jax.random.key(0))
    wrong = np.asarray(snippets) != np.arange(169)
    assert wrong.mean() < 1e-3 and abs(np.asarray(snippets) - np.arange(169)).max() <= 1


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("aggregator", "stpn", "there are mean, weighted_sum, maan"),
        ("map", "heat", "there are cas, attention, cam"),
        ("loss", "hinge", "there are softmax, bce"),
        ("pool", -1, "give 0 for none"),
    ],
)
def test_options_that_do_not_exist(option, value, words):
    config = options()
    config[option] = value
    with pytest.raises(InputError, match=words):
        methods.get(config)


def test_data_of_another_kind_or_network_are_refused():
    def data(grid=None):
        meta = Meta("x.jpg", 49, 1.0, 1.0, 0.5, 49.0, grid=grid)
        store = Store(Path(), "train", {}, *[np.zeros(1, int)] * 3)
        return pipeline.Dataset(store, [meta], [], np.zeros((1, 1)), np.zeros((1, 1)), ["a"], {"rgb": 1}, [""])

    config = options(num_snippets=49)
    maan2d.check(config, data((7, 7)))
    with pytest.raises(InputError, match="learns from images"):
        maan2d.check(config, data())
    with pytest.raises(InputError, match=r"maps are \(13, 13\).*backbone="):
        maan2d.check(config, data((13, 13)))
    with pytest.raises(InputError, match=r"num_snippets=20: give all 49"):
        maan2d.check(options(num_snippets=20), data((7, 7)))


def test_switches():
    config = config_of.get_config("backbone=squeezenet,aggregator=mean")
    assert config.num_snippets == config.method.num_snippets == 169 and config.method.grid == (13, 13)
    assert (config.method.map, config.method.pool) == ("cam", 0)
    assert config_of.get_config("dataset=cub200").data.reader.split == "test"
    with pytest.raises(InputError, match="there are efficientnet_lite0, squeezenet"):
        config_of.get_config("backbone=resnet50")
