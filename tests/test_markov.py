"""MAAN over a Markov chain: against MAAN where `stay` is 0, and its segments against enumeration of runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import maan as maan_config
from configs import markov as config_file
from wsal_jax import chain, method, methods
from wsal_jax.method import Step
from wsal_jax.methods import markov
from wsal_jax.types import InputError, Meta, Model, Scores, Video

META = Meta("v", 12, 1.0, 2.0, 1.0, 24.0)  # snippet t is from 2 t to 2 t + 2 seconds
STEP = Step(jax.random.key(2), jnp.int32(0))


def make(file=config_file, **options):
    config = file.get_config()
    config.method.update({"hidden": 7, "dropout": 0.3, **options})
    return methods.get(config.method)


def example(n=8, padding=0):
    labels = jnp.array([1.0, 0.0, 1.0])
    features = jnp.asarray(np.random.default_rng(0).random((n + padding, 5)), jnp.float32)
    return Video(features, (jnp.arange(n + padding) < n) * 1.0, labels, labels, jnp.int32(n))


def params_of(made):
    return made.init(jax.random.key(0), method.Spec((5,), 3))


def test_without_stay_it_is_maan():
    own, other, video = make(stay=0.0, sparsity=0.3), make(maan_config, sparsity=0.3), example(8, 2)
    params = params_of(own)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(other))
    losses = [jax.jit(made.phases[0].loss)(params, video, STEP)[0] for made in (own, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for got, expected in zip(*(jax.jit(made.score)(params, video) for made in (own, other))):
        if expected is not None:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_the_attention_is_the_marginal_and_the_pooled_feature_that_of_the_chain():
    own, other, video = make(stay=2.0), make(maan_config), example()
    params = params_of(own)
    p = other.score(params, video).attention
    scores = jax.jit(own.score)(params, video)
    np.testing.assert_allclose(scores.attention, chain.marginals(p, 2.0), rtol=1e-5)
    cas = scores.attention[:, None] * jax.nn.sigmoid(video.features @ params["classifier"]["kernel"])
    np.testing.assert_allclose(scores.cas, cas, rtol=1e-5)
    logits = chain.chain_average(p, video.features, 2.0) @ params["classifier"]["kernel"]
    np.testing.assert_allclose(scores.video_score, jax.nn.sigmoid(logits), rtol=1e-5)


def test_stay_can_be_learnt():
    fixed, learnt, video = make(stay=1.5), make(stay=1.5, learn_stay=True), example()
    params = params_of(learnt)
    np.testing.assert_allclose(jax.nn.softplus(params["chain"]["stay"]), 1.5, rtol=1e-6)
    gradients, metrics = jax.jit(jax.grad(learnt.phases[0].loss, has_aux=True))(params, video, STEP)
    assert set(learnt.phases[0].trains) == set(params) and gradients["chain"]["stay"] != 0
    np.testing.assert_allclose(metrics["stay"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], jax.jit(fixed.phases[0].loss)(params, video, STEP)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "options", [dict(proposals="runs"), dict(activation="tanh"), dict(stay=-1.0), dict(stay=0.0, learn_stay=True)]
)
def test_what_cannot_be_is_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        make(**options)


def options(**others):
    chosen = dict(reject=0.5, thresholds=(0.3,), nms=0.3)
    chosen |= dict(stay=1.0, cut=0.0, sharpness=2.0, inside=0.5, overlap=1.0, candidates=200)
    return ConfigDict(chosen | others)


def test_segments_are_the_runs_that_the_scores_have():
    """Two clear runs of class 1, one with a snippet that falls below the threshold; class 0 is rejected."""
    cas = np.zeros((12, 2), np.float32)
    cas[:, 1] = 0.02
    cas[1:4, 1], cas[6:11, 1] = 0.8, 0.9
    cas[8, 1] = 0.2
    scores = Scores(np.float32([0.1, 0.9]), cas, cas[:, 1])
    one = Model(scores, options())
    found = make(proposals="posterior").propose((), one, META)
    assert set(found.labels) == {1} and (np.diff(found.scores) <= 0).all()
    assert {tuple(x) for x in found.segments[:2]} == {(2.0, 8.0), (12.0, 22.0)}
    assert found.scores[1] > 2 * found.scores[2]


def test_runs_end_where_the_features_change():
    """The CAS of snippets 2 and 3 says action, but the features change between 3 and 4 and nowhere else."""
    cas = np.float32([0.05] * 2 + [0.5] * 2 + [0.9] * 8)[:, None]
    change = np.zeros(16)  # with padding
    change[3] = 11
    scores = Scores(np.float32([0.9]), cas, cas[:, 0], markov.Extras(change))

    def first(cut, models):
        model = Model(scores, options(cut=cut))
        return tuple(make(proposals="posterior").propose((model,) * models, model, META).segments[0])

    assert first(0.0, 1) == first(0.2, 0) == (4.0, 24.0)
    assert first(0.2, 1) == first(0.2, 2) == (8.0, 24.0)


def test_the_scores_know_the_changes_where_segments_need_them():
    video = example(8, 2)
    other = make(proposals="thresholds")
    assert jax.jit(other.score)(params_of(other), video).extras is None
    own = make(proposals="posterior")
    got = jax.jit(own.score)(params_of(own), video).extras.change
    unit = video.features / np.linalg.norm(video.features, axis=1, keepdims=True)
    expected = np.append(1 - (unit[:-1] * unit[1:]).sum(1), 0) * (np.arange(10) < 7)
    np.testing.assert_allclose(got, expected / expected[:7].mean(), rtol=1e-4)


def test_changes_are_relative_to_their_mean_and_pass_over_masked_snippets():
    x = np.float32([[1, 0], [0, 2], [3, 3], [1, 1], [-1, -1], [5, 0]])
    expected = np.array([1, 1 - 0.5**0.5, 0, 2, 0, 0]) / ((4 - 0.5**0.5) / 4)
    unknown = jnp.zeros(3)

    def of(features, mask):
        return jax.jit(markov.changes)(Video(jnp.asarray(features), jnp.float32(mask), unknown, unknown, jnp.int32(6)))

    np.testing.assert_allclose(of(x, [1, 1, 1, 1, 1, 0]), expected, atol=1e-6)
    np.testing.assert_allclose(of(2 * x, [0, 0, 1, 1, 1, 0]), [0, 0, 0, 2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(of(0 * x, np.ones(6)), [1, 1, 1, 1, 1, 0])
    for features, mask in ((x, np.zeros(6)), (0 * x + [0.1, 0.3], np.ones(6))):
        np.testing.assert_allclose(of(features.astype(np.float32), mask), np.zeros(6), atol=1e-6)


@pytest.mark.parametrize("stay, overlap", [(0.0, 0.0), (1.5, 0.0), (np.linspace(3, -2, 7), 2.0)])
def test_the_score_is_the_expected_overlap_with_a_run_that_matches(stay, overlap):
    """By enumeration of the 2^8 chains."""
    n, cas, stay = 8, np.random.default_rng(1).random(8), np.broadcast_to(stay, 7)
    odds = (cas / (0.4 * cas.max())) ** 2
    runs, got = markov.matched_runs(cas, stay, options(thresholds=(0.4,), overlap=overlap))
    assert len(runs) == n * (n + 1) // 2
    expected, total = np.zeros(len(runs)), 0.0
    for z in np.ndindex(*[2] * n):
        z = np.array(z)
        weight = np.prod(odds**z) * np.exp((stay * (z[1:] == z[:-1])).sum())
        total += weight
        edges = np.flatnonzero(np.diff(z, prepend=0, append=0)).reshape(-1, 2)
        for start, end in edges:
            inner = np.minimum(runs[:, 1], end) - np.maximum(runs[:, 0], start)
            outer = np.maximum(runs[:, 1], end) - np.minimum(runs[:, 0], start)
            expected += weight * (inner / outer > 0.5) * (inner / outer) ** overlap
    np.testing.assert_allclose(got, expected / total, rtol=1e-10)
