"""Dropout of dimensions, and the grid of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsal_jax.layers import attend, conv, drop_dimensions, dropout, grid, init_attention, init_conv, off_grid, top_mean


@pytest.mark.parametrize("rate", [0.7, 0.25])
def test_dropped_dimensions_are_0_and_the_others_make_up_for_them(rate):
    features = 1 + np.random.default_rng(0).random((3, 1000)).astype(np.float32)
    dropped = np.asarray(drop_dimensions(jax.random.key(0), jnp.asarray(features), rate))
    gone = (dropped == 0).all(0)
    assert ((dropped == 0) == gone).all() and abs(gone.mean() - rate) < 0.05
    np.testing.assert_allclose(dropped[:, ~gone], features[:, ~gone] / (1 - rate), rtol=1e-6)
    assert (gone != (drop_dimensions(jax.random.key(1), jnp.asarray(features), rate) == 0).all(0)).any()


def test_no_dropout():
    features = jnp.ones((3, 4))
    assert drop_dimensions(jax.random.key(0), features, 0.0) is features


def test_dropout_of_entries():
    dropped = np.asarray(dropout(jax.random.key(0), jnp.full((100, 100), 3.0), 0.7))
    assert set(np.unique(dropped)) == {0, np.float32(3 / (1 - 0.7))} and abs((dropped == 0).mean() - 0.7) < 0.03
    x = jnp.ones(3)
    assert dropout(None, x, 0.7) is x and dropout(jax.random.key(0), x, 0.0) is x


def test_initial_attention():
    """Kernels have variance 1 / inputs, biases are 0, and another key gives other kernels."""
    layers = init_attention(jax.random.key(0), 400, 300)
    for name, inputs in (("hidden", 400), ("out", 300)):
        assert not layers[name]["bias"].any() and abs(layers[name]["kernel"].std() * inputs**0.5 - 1) < 0.1
    x = jax.random.normal(jax.random.key(1), (50, 400))
    one, other = (attend(init_attention(jax.random.key(i), 400, 300), x, jax.nn.relu) for i in (0, 2))
    assert 0 < one.min() < one.max() < 1 and abs(one - other).max() > 0.1


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 100, 20_000])
@pytest.mark.parametrize("size", [1, 3, 8, 400])
def test_grid_is_the_snippet_at_the_middle_of_each_part(length, size):
    chosen = np.asarray(jax.jit(grid, static_argnums=1)(jnp.int32(length), size))
    middles = (np.arange(size) + 0.5) * length / size
    np.testing.assert_array_equal(chosen, np.floor(middles))
    part = np.asarray(off_grid(jnp.int32(length), size, length + 5))
    np.testing.assert_array_equal(part[:length], np.floor((np.arange(length) + 0.5) * size / length))
    assert part.min() >= 0 and part.max() < size
    if length <= size:  # every snippet is in the grid, and back
        np.testing.assert_array_equal(chosen[part[:length]], np.arange(length))


def test_grid_of_nothing():
    assert (
        np.isfinite(np.asarray(grid(jnp.int32(0), 4))).all() and not np.asarray(off_grid(jnp.int32(0), 4, 3)).max() > 3
    )


@pytest.mark.parametrize("width", [1, 3, 7])
def test_convolution_over_time(width):
    """Against numpy.convolve; what is masked counts as 0 wherever it is, and so does all beyond the ends."""
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(9, 2)).astype(np.float32), np.float32([1, 1, 1, 0, 1, 1, 1, 0, 0])
    layer = dict(kernel=rng.normal(size=(width, 2, 3)).astype(np.float32), bias=np.float32([1, 2, 3]))
    taps = layer["kernel"][::-1]  # numpy.convolve turns them round
    ones = (x * mask[:, None]).T
    slow = [sum(np.convolve(ones[i], taps[:, i, o])[width // 2 :][:9] for i in range(2)) + o + 1 for o in range(3)]
    np.testing.assert_allclose(jax.jit(conv)(layer, x, mask), np.transpose(slow), rtol=1e-5, atol=1e-5)
    cut = jax.jit(conv)(layer, x[:7], mask[:7])
    np.testing.assert_allclose(jax.jit(conv)(layer, x, mask)[:7], cut, rtol=1e-6)


def test_initial_convolution():
    layer = init_conv(jax.random.key(0), 3, 40, 500)
    bound = (6 / 120) ** 0.5
    assert not layer["bias"].any() and layer["kernel"].shape == (3, 40, 500)
    assert 0.99 * bound < abs(layer["kernel"]).max() <= bound and abs(layer["kernel"].mean()) < 0.01 * bound


@pytest.mark.parametrize("share", [1, 3, 20])
def test_top_mean(share):
    """Against a loop over classes; k is that of the snippets that are there, and padding changes nothing."""
    rng = np.random.default_rng(0)
    values, by = jnp.asarray(rng.normal(size=(2, 16, 4)), jnp.float32)
    mask = jnp.float32([1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    there = np.flatnonzero(mask)
    k = max(1, len(there) // share)
    for key in (values, by, by[:, :1]):
        best = [sorted(there, key=lambda t: -np.broadcast_to(key, (16, 4))[t, c])[:k] for c in range(4)]
        slow = [values[best[c], c].mean() for c in range(4)]
        found = jax.jit(top_mean, static_argnums=2)(values, mask, share, None if key is values else key)
        np.testing.assert_allclose(found, slow, rtol=1e-5, atol=1e-6)
        hostile = np.where(mask[:, None] > 0, values, 1e9)
        again = jax.jit(top_mean, static_argnums=2)(hostile, mask, share, None if key is values else key)
        np.testing.assert_array_equal(found, again)
    weight = jax.grad(lambda x: top_mean(x, mask, share)[1])(values)
    chosen = sorted(there, key=lambda t: -values[t, 1])[:k]
    np.testing.assert_allclose(weight[chosen, 1], 1 / k, rtol=1e-6)
    assert np.count_nonzero(weight) == k


def test_top_mean_of_nothing():
    value, gradient = jax.value_and_grad(lambda x: top_mean(x, jnp.zeros(3), 2).sum())(jnp.ones((3, 2)))
    assert value == 0 and not gradient.any()
