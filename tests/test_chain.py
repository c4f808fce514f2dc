"""The marginalized average over a Markov chain against enumeration of all subsets, and against MAAN's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wsal_jax import aggregate, chain

RNG = np.random.default_rng
weights_of, marginals_of = jax.jit(chain.chain_weights), jax.jit(chain.marginals)
DISTRIBUTIONS = {
    "uniform": lambda rng, n: rng.uniform(size=n),
    "beta(.1, .3)": lambda rng, n: rng.beta(0.1, 0.3, size=n),
    "near 1": lambda rng, n: 1 - 1e-3 * rng.uniform(size=n),
    "constant": lambda rng, n: np.full(n, 0.3),  # errors of rounding add up
    "runs": lambda rng, n: np.repeat(rng.uniform(size=n // 20) < 0.3, 20) * 0.8 + 0.1 * rng.uniform(size=n),
    "0 or 1": lambda rng, n: (rng.uniform(size=n) < 0.3).astype(float),
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def runs_of(z):
    """The runs [i, j] of ones."""
    edges = np.flatnonzero(np.diff(z, prepend=0, append=0))
    return list(zip(edges[::2], edges[1::2] - 1))


def enumerate_subsets(p, stay):
    """lambda, P(z_t = 1) and P(run from i to j) by their definitions."""
    n, total = len(p), 0.0
    weights, marginals, runs = np.zeros(n), np.zeros(n), np.zeros((n, n))
    for z in map(np.array, itertools.product([0, 1], repeat=n)):
        weight = np.prod(np.where(z, p, 1 - p)) * np.exp((stay * (z[1:] == z[:-1])).sum())
        total += weight
        marginals += weight * z
        weights += weight * z / max(z.sum(), 1)
        for i, j in runs_of(z):
            runs[i, j] += weight
    return weights / total, marginals / total, runs / total


@pytest.mark.parametrize("n", [1, 2, 11])
def test_posteriors_of_pairs_that_agree_each_to_its_own_degree(n):
    p, stay = RNG(n).uniform(size=(2, n)), 3 * RNG(n).normal(size=n - 1)
    of = chain.posterior(p, stay)
    for i in range(2):
        _, _, runs = enumerate_subsets(p[i], stay)
        np.testing.assert_allclose(of.start[i], runs.sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(of.end[i], runs.sum(axis=0), rtol=1e-12)
        logs = chain.run_logs(chain.Posterior(*(x[i] for x in of)), np.arange(n), np.arange(n))
        np.testing.assert_allclose(np.exp(logs), runs, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 11])
def test_all_equals_enumeration_of_subsets(n, x64):
    p = RNG(n).uniform(size=n)
    for stay in (0.0, 1.0, 3.0):
        weights, marginals, runs = enumerate_subsets(p, stay)
        np.testing.assert_allclose(weights_of(p, stay), weights, rtol=1e-12)
        np.testing.assert_allclose(marginals_of(p, stay), marginals, rtol=1e-12)
        of = chain.posterior(p, stay)
        np.testing.assert_allclose(of.start, runs.sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(of.end, runs.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(np.exp(chain.run_logs(of, np.arange(n), np.arange(n))), runs, rtol=1e-12)


def test_masked_snippets_are_passed_through(x64):
    """At the end, where they are padding, and in between, whatever they hold: as if they were not there."""
    p, mask = RNG(0).uniform(size=11), np.array([1.0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0])
    for stay in (0.0, 2.0):
        weights, marginals, _ = enumerate_subsets(p[mask > 0], stay)
        for garbage in (0.0, 1.0, 1e6):
            held = np.where(mask > 0, p, garbage)
            got = [np.asarray(f(held, stay, mask)) for f in (weights_of, marginals_of)]
            np.testing.assert_allclose(got[0][mask > 0], weights, rtol=1e-12)
            np.testing.assert_allclose(got[1][mask > 0], marginals, rtol=1e-12)
            assert not got[0][mask == 0].any() and not got[1][mask == 0].any()
    assert not np.asarray(weights_of(p, 2.0, np.zeros(11))).any()


@pytest.mark.parametrize("n", [50, 300])  # on both sides of the switch of quadrature
def test_without_stay_it_is_maan_and_it_has_no_direction(n, x64):
    p = RNG(n).uniform(size=n)
    np.testing.assert_allclose(weights_of(p, 0.0), aggregate.marginal_weights(jnp.asarray(p)), rtol=1e-12)
    there, back = np.asarray(weights_of(p, 2.0)), np.asarray(weights_of(p[::-1].copy(), 2.0))[::-1]
    np.testing.assert_allclose(there, back, rtol=1e-12)
    assert abs(there - weights_of(p, 0.0)).max() > 1e-4


def test_the_average_is_that_of_the_features():
    p, x = RNG(1).uniform(size=11).astype(np.float32), RNG(2).normal(size=(11, 3)).astype(np.float32)
    expected = enumerate_subsets(p.astype(float), 1.5)[0] @ x
    np.testing.assert_allclose(jax.jit(chain.chain_average)(p, x, 1.5), expected, rtol=1e-5)


def test_float32_is_accurate_for_long_videos():
    """The spec asks for 1e-4."""
    for name, draw in DISTRIBUTIONS.items():
        p = draw(RNG(3), 2000).astype(np.float32)
        for stay in (0.0, 1.0, 4.0, 20.0):
            got = np.asarray(weights_of(p, np.float32(stay)))
            with jax.enable_x64(True):
                expected = np.asarray(weights_of(p.astype(np.float64), stay))
            assert got.dtype == np.float32 and expected.dtype == np.float64
            assert abs(got - expected).max() < 2e-5 * expected.max(), (name, stay)


def test_gradients(x64):
    """Forward and reverse, in probabilities, features and stay; with snippets that are masked."""
    p, x = jnp.asarray(RNG(4).uniform(0.1, 0.9, size=7)), jnp.asarray(RNG(5).normal(size=(7, 2)))
    mask = jnp.array([1.0, 1, 0, 1, 1, 1, 0])
    check_grads(jax.jit(lambda *x: chain.chain_average(*x, mask)), (p, x, jnp.float64(1.3)), order=1)
    check_grads(jax.jit(lambda *x: chain.marginals(*x, mask)), (p, jnp.float64(1.3)), order=1)


@pytest.mark.parametrize("stay", [0.0, 1.0, 20.0])
def test_gradients_are_finite_where_a_snippet_is_certain(stay):
    rng = RNG(6)
    for p in (np.zeros(11), np.ones(11), rng.integers(0, 2, 11), np.arange(11) % 2, rng.beta(0.01, 0.01, 11)):
        for real in (11, 8, 0):
            got = value_and_gradients(p.astype(np.float32), np.float32(stay), (np.arange(11) < real).astype(np.float32))
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


@jax.jit
def value_and_gradients(p, stay, mask):
    def loss(p, stay):
        lists = chain.chain_weights(p, stay, mask), chain.marginals(p, stay, mask)
        return sum(x @ jnp.sin(jnp.arange(1.0, 12)) for x in lists)

    return jax.value_and_grad(loss, (0, 1))(p, stay)
