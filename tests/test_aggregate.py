"""Bag aggregators against brute force over all subsets, closed forms, and the propositions of the MAAN paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wsal_jax.aggregate import (
    dropout_sum,
    marginal_weights,
    marginalized_average,
    marginalized_average_scan,
    softmax_mean,
    weighted_mean,
    weighted_sum,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng  # every test draws from its own generator

DISTRIBUTIONS = {
    "uniform": lambda rng, n: rng.uniform(size=n),
    "near 0": lambda rng, n: 1e-3 * rng.uniform(size=n),
    "near 1": lambda rng, n: 1 - 1e-3 * rng.uniform(size=n),
    "beta(.1, .3)": lambda rng, n: rng.beta(0.1, 0.3, size=n),
    "0 or 1": lambda rng, n: (rng.uniform(size=n) < 0.3).astype(float),
    "all 0": lambda rng, n: np.zeros(n),
    "all 1": lambda rng, n: np.ones(n),
}


def dropped(weights, features, mask=None):
    return dropout_sum(KEY, weights, features, mask)


AGGREGATORS = {
    "linear": marginalized_average,
    "scan": marginalized_average_scan,
    "sum": weighted_sum,
    "dropout": dropped,
    "mean": weighted_mean,
    "softmax": softmax_mean,
}


# Compilation takes most of the time of these tests, so we compile as much as possible at once.
linear, scan, weights_of = map(jax.jit, (marginalized_average, marginalized_average_scan, marginal_weights))


@jax.jit
def all_aggregates(weights, x, mask=None):
    return {name: aggregate(weights, x, mask) for name, aggregate in AGGREGATORS.items()}


@jax.jit
def all_derivatives(weights, x, directions, mask=None):
    """For a number computed from each aggregate: (value, gradient), and their derivatives along `directions`."""

    def of(aggregate):
        def loss(weights, x):
            out = aggregate(weights, x, mask)
            return jnp.sin(out) @ jnp.arange(1, 1 + out.size, dtype=out.dtype)

        return jax.jvp(jax.value_and_grad(loss, (0, 1)), (weights, x), directions)

    return {name: of(aggregate) for name, aggregate in AGGREGATORS.items()}


over_distributions = pytest.mark.parametrize("draw", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
over_averages = pytest.mark.parametrize("average", [linear, scan], ids=["linear", "scan"])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def brute_force(p, x):
    """E[mean of the chosen x] by its definition: the sum over all subsets, with 0 for the empty one."""
    total = np.zeros(x.shape[1])
    for z in itertools.product([0, 1], repeat=len(p)):
        z = np.array(z)
        if z.any():
            total += np.prod(np.where(z, p, 1 - p)) * (z @ x) / z.sum()
    return total


def brute_force_derivatives(p, x):
    """First [n d] and second [n n d] derivatives in p. The average is affine in every p_k, so differences are exact."""

    def at(changes):
        return brute_force(np.array([changes.get(k, p[k]) for k in range(len(p))]), x)

    n = len(p)
    first = np.stack([at({i: 1}) - at({i: 0}) for i in range(n)])
    second = np.zeros((n, n, x.shape[1]))
    for i, j in itertools.permutations(range(n), 2):
        second[i, j] = at({i: 1, j: 1}) - at({i: 1, j: 0}) - at({i: 0, j: 1}) + at({i: 0, j: 0})
    return first, second


def reference(name, weights, x):
    """The other aggregators as a loop over snippets."""
    if name == "softmax":
        weights = [np.exp(w) for w in weights]
    total = sum(w * row for w, row in zip(weights, x))
    return total if name == "sum" else total / sum(weights)


# Values


@over_averages
@over_distributions
@pytest.mark.parametrize("n", [1, 3, 10])
def test_average_equals_sum_over_subsets(average, draw, n):
    rng = RNG(n)
    p, x = draw(rng, n).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
    expected = brute_force(p.astype(np.float64), x.astype(np.float64))
    np.testing.assert_allclose(average(jnp.asarray(p), jnp.asarray(x)), expected, rtol=2e-6, atol=1e-6)
    with jax.enable_x64(True):
        got = average(jnp.asarray(p, jnp.float64), jnp.asarray(x, jnp.float64))
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


def test_weights_equal_sum_over_subsets(x64):
    p = RNG(0).uniform(size=7)
    np.testing.assert_allclose(weights_of(jnp.asarray(p)), brute_force(p, np.eye(7)), rtol=1e-13)


@over_distributions
@pytest.mark.parametrize("n", [20, 128, 129, 1000])  # around the switch of quadrature, and well above it
def test_linear_equals_scan(draw, n):
    rng = RNG(n)
    p = draw(rng, n).astype(np.float32)
    x = rng.uniform(0.5, 1.5, size=(n, 2)).astype(np.float32)
    with jax.enable_x64(True):
        p64, x64 = jnp.asarray(p, jnp.float64), jnp.asarray(x, jnp.float64)
        expected = scan(p64, x64)
        np.testing.assert_allclose(linear(p64, x64), expected, rtol=3e-13)
    p, x = jnp.asarray(p), jnp.asarray(x)
    np.testing.assert_allclose(linear(p, x), expected, rtol=2e-6)
    np.testing.assert_allclose(scan(p, x), expected, rtol=2e-4)


@over_distributions
def test_linear_equals_scan_at_10000(draw):
    rng = RNG(0)
    p, x = draw(rng, 10_000).astype(np.float32), rng.uniform(0.5, 1.5, size=(10_000, 1)).astype(np.float32)
    with jax.enable_x64(True):
        p64, x64 = jnp.asarray(p, jnp.float64), jnp.asarray(x, jnp.float64)
        expected = scan(p64, x64)
        np.testing.assert_allclose(linear(p64, x64), expected, rtol=1e-12)
    np.testing.assert_allclose(linear(jnp.asarray(p), jnp.asarray(x)), expected, rtol=2e-6)


@pytest.mark.parametrize("n", [1, 20, 20_000, 100_000])
@pytest.mark.parametrize("p", [1e-6, 3e-4, 0.1, 0.5, 1 - 1e-3, 1.0])
def test_equal_probabilities_have_a_closed_form(n, p):
    """lambda_i = (1 - (1 - p)^n) / n, every single weight, to the accuracy that the docstring states."""
    p = np.float32(p)
    expected = (1 - float(1 - np.float64(p)) ** n) / n if p == 1 else -np.expm1(n * np.log1p(-np.float64(p))) / n
    np.testing.assert_allclose(weights_of(jnp.asarray(np.full(n, p))), expected, rtol=1e-5 if n > 20_000 else 1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(weights_of(jnp.asarray(np.full(n, p, np.float64))), expected, rtol=1e-12)


@over_distributions
@pytest.mark.parametrize("n", [1, 9, 300])
def test_weights_sum_to_the_probability_that_any_is_chosen(draw, n, x64):
    """Erratum: sum lambda is 1 - prod(1 - p), not 1, because the empty subset contributes 0."""
    p = draw(RNG(n), n)
    np.testing.assert_allclose(np.sum(weights_of(jnp.asarray(p))), 1 - np.prod(1 - p), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["sum", "mean", "softmax"])
def test_other_aggregators_equal_their_formula(name, x64):
    rng = RNG(3)
    weights, x = rng.uniform(size=6), rng.normal(size=(6, 4))
    got = AGGREGATORS[name](jnp.asarray(weights), jnp.asarray(x))
    np.testing.assert_allclose(got, reference(name, weights, x), rtol=1e-13)


def test_softmax_does_not_overflow():
    x = jnp.array([[1.0], [3.0]])
    np.testing.assert_allclose(softmax_mean(jnp.array([1e4, 1e4]), x), [2.0])
    np.testing.assert_allclose(softmax_mean(jnp.array([-1e4, -2e4]), x, jnp.ones(2)), [1.0])


def test_dropout_scales_what_it_keeps():
    weights = jnp.linspace(0.1, 1, 1000)
    for rate in (0.0, 0.5, 0.8):
        out = np.asarray(dropout_sum(KEY, weights, jnp.eye(1000), rate=rate))  # one entry per snippet
        kept = out != 0
        np.testing.assert_allclose(out[kept], weights[kept] / (1 - rate), rtol=1e-6)
        assert abs(kept.mean() - (1 - rate)) < 0.06  # 4 standard deviations of 1000 draws


def test_dropout_has_the_weighted_sum_as_expectation():
    rng = RNG(4)
    weights, x = jnp.asarray(rng.uniform(size=8)), jnp.asarray(rng.normal(size=(8, 3)))
    mask = jnp.array([1.0] * 6 + [0.0] * 2)
    draws = jax.vmap(lambda key: dropout_sum(key, weights, x, mask))(jax.random.split(KEY, 4000))
    draws = np.asarray(draws)
    error = draws.std(0) / np.sqrt(4000)
    assert (abs(draws.mean(0) - weighted_sum(weights, x, mask)) < 4 * error).all()
    assert (error > 0).all()


# Propositions of the paper


@over_distributions
def test_proposition_1_order_is_preserved(draw, x64):
    """p_i >= p_j <=> c_i >= c_j <=> lambda_i >= lambda_j."""
    p = draw(RNG(5), 12)
    c = np.array([brute_c(p, i) for i in range(12)])
    weights = np.asarray(weights_of(jnp.asarray(p)))
    np.testing.assert_allclose(weights, p * c, rtol=1e-12)
    order = np.argsort(p, kind="stable")
    for values in (c, weights):
        steps = np.diff(values[order])
        assert (steps >= -1e-15).all()
        assert (steps[np.diff(p[order]) > 1e-9] > 0).all()


def brute_c(p, i):
    """c_i = E[1 / (1 + sum_{k != i} z_k)], from the distribution of the sum: the coefficients of a polynomial."""
    sizes = np.ones(1)
    for k in range(len(p)):
        if k != i:
            sizes = np.convolve(sizes, [1 - p[k], p[k]])
    return np.sum(sizes / (1 + np.arange(len(p))))


def holds_inequality_4(p, weights, chosen):
    """|p_i - p_j| / sum p <= |lambda_i - lambda_j| / sum lambda for all i in `chosen` and all j."""
    q, r = p / p.sum(), weights / weights.sum()
    left, right = abs(q[:, None] - q)[chosen], abs(r[:, None] - r)[chosen]
    return (left <= right + 1e-14).all()


def test_proposition_2_dominant_responses_are_suppressed(x64):
    """Inequality (4) on I, and on I' = {i: c_i / sum lambda >= 1 / sum p}, which is never empty."""
    fails_elsewhere = 0
    for name, seed in itertools.product(["uniform", "near 0", "near 1", "beta(.1, .3)"], range(20)):
        p = DISTRIBUTIONS[name](RNG(seed), 9)
        weights = np.asarray(weights_of(jnp.asarray(p)))
        c = np.array([brute_c(p, i) for i in range(9)])
        paper, corrected = c >= 1 / p.sum(), c / weights.sum() >= (1 - 1e-12) / p.sum()
        assert corrected.any()
        assert holds_inequality_4(p, weights, paper)
        assert holds_inequality_4(p, weights, corrected)
        fails_elsewhere += not holds_inequality_4(p, weights, ~corrected)
    assert fails_elsewhere > 10  # so the inequality says something about the sets


def test_proposition_2_erratum(x64):
    """p = (0.1, 0.1): the paper's I is empty, the corrected one is not."""
    p = np.array([0.1, 0.1])
    weights = np.asarray(weights_of(jnp.asarray(p)))
    c = weights / p
    np.testing.assert_allclose(c, 0.95, rtol=1e-14)
    assert (c < 1 / p.sum()).all()
    assert (c / weights.sum() >= (1 - 1e-14) / p.sum()).all()


# Symmetry, padding, dtypes, transformations


@pytest.mark.parametrize("n", [8, 150])
def test_permutation(n, x64):
    rng = RNG(6)
    p, x, order = rng.uniform(size=n), rng.normal(size=(n, 3)), rng.permutation(n)
    shuffled_p, shuffled_x, p_, x_ = map(jnp.asarray, (p[order], x[order], p, x))
    np.testing.assert_allclose(weights_of(shuffled_p), np.asarray(weights_of(p_))[order], rtol=1e-12)
    got, expected = all_aggregates(shuffled_p, shuffled_x), all_aggregates(p_, x_)
    for name in AGGREGATORS.keys() - {"dropout"}:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-11, atol=1e-13, err_msg=name)


def padded(rng, n, extra, garbage):
    """(weights, features) of n snippets; the same with `extra` garbage snippets in between; the mask of those."""
    mask = rng.permutation(np.r_[np.ones(n), np.zeros(extra)])
    weights, x = np.full(n + extra, garbage), np.full((n + extra, 3), garbage)
    weights[mask > 0], x[mask > 0] = rng.uniform(size=n), rng.normal(size=(n, 3))
    real = weights[mask > 0], x[mask > 0]
    return [jnp.asarray(a, jnp.float32) for a in (*real, weights, x, mask)]


@pytest.mark.parametrize("extra", [3, 140])  # 140: the other quadrature
def test_padding_changes_neither_value_nor_derivatives(extra):
    for garbage in (1.0, 3e38, -3e38):  # large values make the cotangents overflow
        weights, x, padded_weights, padded_x, mask = padded(RNG(7), 6, extra, garbage)
        expected = all_derivatives(weights, x, (weights, x))
        got = all_derivatives(padded_weights, padded_x, (mask * padded_weights, mask[:, None] * padded_x), mask)
        real = np.asarray(mask) > 0
        for name in AGGREGATORS.keys() - {"dropout"}:
            for a, b in zip(map(np.asarray, jax.tree.leaves(got[name])), jax.tree.leaves(expected[name])):
                np.testing.assert_allclose(a[real] if a.ndim else a, b, rtol=1e-4, atol=1e-5, err_msg=name)
                np.testing.assert_array_equal(a[~real] if a.ndim else 0, 0, err_msg=name)


def test_masked_weights_are_zero():
    weights = weights_of(jnp.array([0.5, 0.9, 0.4]), jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(weights, [0.5 * (1 - 0.4 / 2), 0, 0.4 * (1 - 0.5 / 2)], rtol=1e-6)


def test_narrow_features_and_weights_accumulate_in_float32():
    rng = RNG(8)
    x = jnp.asarray(rng.normal(1, 1, size=(400, 3)), jnp.bfloat16)
    for dtype in (jnp.float32, jnp.float16):
        weights = jnp.asarray(rng.uniform(size=400), dtype)
        got = all_aggregates(weights, x)
        expected = all_aggregates(weights.astype(jnp.float32), x.astype(jnp.float32))
        for name in AGGREGATORS:
            assert got[name].dtype == jnp.float32, name
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, err_msg=name)


def test_wide_weights_or_features_give_wide_aggregates(x64):
    for dtypes in [(jnp.float32, jnp.float64), (jnp.float64, jnp.float32)]:
        shapes = jax.ShapeDtypeStruct((3,), dtypes[0]), jax.ShapeDtypeStruct((3, 2), dtypes[1])
        assert {out.dtype for out in jax.eval_shape(all_aggregates, *shapes).values()} == {jnp.dtype("float64")}


def test_jit_and_vmap_equal_the_plain_loop():
    rng = RNG(9)
    weights, x = jnp.asarray(rng.uniform(size=(2, 5))), jnp.asarray(rng.normal(size=(2, 5, 3)))
    mask = jnp.array([[1.0, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    batch = jax.vmap(all_aggregates)(weights, x, mask)
    for k in range(2):
        with jax.disable_jit():
            expected = all_aggregates(weights[k], x[k], mask[k])
        for name in AGGREGATORS:
            got = np.asarray(batch[name])[k]
            np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# Derivatives


@pytest.mark.parametrize("names", [["linear"], ["scan"], ["sum", "dropout", "mean", "softmax"]], ids="-".join)
def test_derivatives_equal_finite_differences(names, x64):
    rng = RNG(10)
    weights, x = jnp.asarray(rng.uniform(0.1, 0.9, size=6)), jnp.asarray(rng.normal(size=(6, 2)))
    mask = jnp.array([1.0, 1, 0, 1, 1, 0])
    together = jax.jit(lambda w, x: [AGGREGATORS[name](w, x, mask) for name in names])  # one compilation
    check_grads(together, (weights, x), order=2, modes=["fwd", "rev"])


@over_distributions
def test_derivatives_of_linear_and_scan_agree_above_128_snippets(draw, x64):
    rng = RNG(11)
    p, x = jnp.asarray(draw(rng, 140)), jnp.asarray(rng.normal(size=(140, 2)))
    derivatives = all_derivatives(p, x, (jnp.asarray(rng.normal(size=140)), jnp.asarray(rng.normal(size=(140, 2)))))
    for got, expected in zip(jax.tree.leaves(derivatives["linear"]), jax.tree.leaves(derivatives["scan"])):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


EDGES = [
    [[0.0], [1.0], [0.3]],
    [[0.0] * 5, [1.0] * 5, [0.0, 1, 0.3, 1, 0], [0.0, 0, 1, 0, 0]],
]


@over_averages
@pytest.mark.parametrize(
    "edges, dtype, tolerance",
    [(EDGES[0], "float64", 1e-12), (EDGES[1], "float64", 1e-12), (EDGES[1], "float32", 1e-5)],
    ids=["T=1", "T=5", "T=5, float32"],
)
def test_edges_have_exact_derivatives(average, edges, dtype, tolerance):
    x = RNG(12).normal(size=(len(edges[0]), 2))
    with jax.enable_x64(dtype == "float64"):
        values = jax.jit(jax.vmap(lambda p, x: (average(p, x), jax.jacrev(average)(p, x), jax.hessian(average)(p, x))))
        got = values(jnp.asarray(edges, dtype), jnp.asarray(np.broadcast_to(x, (len(edges), *x.shape)), dtype))
    for k, p in enumerate(np.array(edges)):
        first, second = brute_force_derivatives(p, x)
        expected = brute_force(p, x), np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)  # [d], [d n], [d n n]
        for order in range(3):
            np.testing.assert_allclose(got[order][k], expected[order], rtol=tolerance, atol=tolerance, err_msg=str(p))


@pytest.mark.parametrize("n", [1, 130])
def test_extremes_have_finite_derivatives(n):
    rng = RNG(13)
    x, x_direction, w_direction = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((n, 1), (n, 1), n))
    for value, real in itertools.product([0.0, 1e-15, 1.0], [0.0, 1.0]):
        weights, mask = (jnp.asarray(np.full(n, number), jnp.float32) for number in (value, real))
        for name, derivatives in all_derivatives(weights, x, (w_direction, x_direction), mask).items():
            for leaf in jax.tree.leaves(derivatives):
                assert np.isfinite(leaf).all(), name
                assert real or not np.any(leaf), name  # all masked: the value and its derivatives are 0


def test_mean_is_zero_where_all_weights_are_zero_and_right_where_they_are_tiny():
    x = jnp.array([[1.0], [5.0]])
    np.testing.assert_array_equal(weighted_mean(jnp.zeros(2), x), 0)
    tiny = 1e-36 * jnp.array([1.0, 3.0])
    np.testing.assert_allclose(weighted_mean(tiny, x), [4.0], rtol=1e-6)
    # d/dl_i of the mean is (x_i - mean) / sum l.
    np.testing.assert_allclose(jax.jacrev(weighted_mean)(tiny, x), [[-3 / 4e-36, 1 / 4e-36]], rtol=1e-5)
