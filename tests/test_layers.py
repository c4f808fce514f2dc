"""Dropout of dimensions, and the grid of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsal_jax.layers import attend, drop_dimensions, grid, init_attention, off_grid


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
