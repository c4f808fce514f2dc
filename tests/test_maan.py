"""MAAN and its baselines against the equations, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from configs import maan as config_file
from wsal_jax import aggregate, method, methods
from wsal_jax.method import Step
from wsal_jax.types import InputError, Video

AGGREGATORS = ("maan", "stpn", "dropout", "norm", "softmax_norm")
EPOCH = jnp.int32(0)


def make(aggregator, **options):
    config = config_file.get_config(f"aggregator={aggregator}")
    config.num_snippets = 6
    config.method.update({"hidden": 7, "dropout": 0.0, **options})
    return methods.get(config.method)


def example(n=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = jnp.array([1.0, 0.0, 1.0])
    return Video(jnp.asarray(rng.random((n, 5)), jnp.float32), jnp.ones(n), labels, labels, jnp.int32(n))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def attention_of(params, features):
    hidden, out = params["attention"]["hidden"], params["attention"]["out"]
    h = features @ hidden["kernel"] + hidden["bias"]
    h = np.where(h > 0, h, 0.01 * h)
    return sigmoid(h @ out["kernel"] + out["bias"])[:, 0]


def pooled_of(aggregator, p, x, times):
    """The baselines of section 3.2; `times` scales the sums."""
    weights = {
        "maan": lambda: np.asarray(aggregate.marginal_weights(jnp.asarray(p, jnp.float32))),
        "stpn": lambda: times * p,
        "dropout": lambda: times * p,
        "norm": lambda: p / p.sum(),
        "softmax_norm": lambda: np.exp(p) / np.exp(p).sum(),
    }
    return weights[aggregator]() @ x


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("n", [6, 15])
def test_scores_are_those_of_the_equations(aggregator, n):
    made, video = make(aggregator), example(n)
    params = made.init(jax.random.key(0), method.Spec((5,), 3))
    params["classifier"]["bias"] += jnp.array([0.3, -0.2, 0.1])
    kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
    p = attention_of(params, video.features)
    scores = made.score(params, video)
    np.testing.assert_allclose(scores.attention, p, rtol=1e-5)
    np.testing.assert_allclose(scores.cas, p[:, None] * sigmoid(video.features @ kernel), rtol=1e-5)
    np.testing.assert_allclose(scores.evidence, sigmoid(video.features @ kernel + bias), rtol=1e-5)
    pooled = pooled_of(aggregator, p, video.features, 6 / n)
    np.testing.assert_allclose(scores.video_score, sigmoid(pooled @ kernel + bias), rtol=1e-5)


@pytest.mark.parametrize("aggregator", ["maan", "stpn", "norm", "softmax_norm"])
def test_loss_is_equation_10(aggregator):
    made, video = make(aggregator, sparsity=0.3), example()
    params = made.init(jax.random.key(1), method.Spec((5,), 3))
    probability = np.asarray(made.score(params, video).video_score, np.float64)
    y = np.asarray(video.labels)
    classification = -(y * np.log(probability) + (1 - y) * np.log(1 - probability)).sum()
    attention = attention_of(params, video.features)
    total, metrics = made.phases[0].loss(params, video, Step(jax.random.key(2), EPOCH))
    np.testing.assert_allclose(metrics["classification"], classification, rtol=1e-5)
    np.testing.assert_allclose(total, classification + 0.3 * attention.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["attention"], attention.mean(), rtol=1e-5)


def test_dropout_drops_half_of_the_snippets_in_training_only():
    """Over many keys the features average to those without dropout, and all subsets occur; scores see all snippets."""
    made, video = make("dropout"), example()
    params = made.init(jax.random.key(3), method.Spec((5,), 3))
    keys = jax.random.split(jax.random.key(4), 4000)
    attention = made.score(params, video).attention
    pooled = jax.vmap(lambda key: aggregate.dropout_sum(key, attention, video.features))(keys)
    losses = jax.vmap(lambda key: made.phases[0].loss(params, video, Step(key, EPOCH))[0])(keys)
    np.testing.assert_allclose(pooled.mean(0), attention @ video.features, rtol=0.03)
    assert len(np.unique(losses)) == 2**6
    logits = np.asarray(attention @ video.features) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(made.score(params, video).video_score, sigmoid(logits), rtol=1e-5)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_gradients_of_the_loss(aggregator):
    with jax.enable_x64(True):
        made = make(aggregator, sparsity=0.1)
        video = jax.tree.map(lambda x: x.astype(jnp.float64), example())
        params = made.init(jax.random.key(5), method.Spec((5,), 3))
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        key = jax.random.key(6)
        check_grads(lambda p: made.phases[0].loss(p, video, Step(key, EPOCH))[0], (params,), order=1)


def test_unknown_aggregator_is_named():
    with pytest.raises(InputError, match=r"aggregator='mean'.*softmax_norm"):
        make("mean")


def test_dropped_dimensions_are_dropped_in_all_snippets():
    """Features in one dimension alone: the loss has two values, dropped or kept, whatever the number of snippets."""
    made = make("stpn", dropout=0.7)
    video = example()._replace(features=jnp.zeros((6, 5)).at[:, 2].set(0.3))
    params = made.init(jax.random.key(7), method.Spec((5,), 3))
    loss = jax.jit(jax.vmap(lambda key, x: made.phases[0].loss(params, x, Step(key, EPOCH))[0], (0, None)))
    losses = loss(jax.random.split(jax.random.key(8), 2000), video)
    dropped = loss(jax.random.split(jax.random.key(9), 1), video._replace(features=jnp.zeros((6, 5))))
    assert len(np.unique(losses)) == 2
    assert abs((losses == dropped).mean() - 0.7) < 0.04
