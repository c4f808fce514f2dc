"""The grid of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsal_jax.layers import grid, off_grid


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
