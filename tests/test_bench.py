"""The count of operations that the benchmark compares with the speed of the machine."""

import jax
import jax.numpy as jnp

from wsal_jax import bench


def test_operations_of_matrix_products_are_counted():
    """A batched product and its gradient, in a loop of 5, and a condition, which counts its costliest branch."""
    x, w = jnp.ones((3, 4, 6)), jnp.ones((6, 7))

    def step(w, condition):
        w = w - jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        return jax.lax.cond(condition, lambda: w @ (w.T @ w), lambda: w), None

    run = jax.jit(lambda w: jax.lax.scan(step, w, jnp.arange(5) > 2))
    of_step = 2 * (2 * 3 * 4 * 6 * 7) + 2 * (2 * 7 * 6 * 7)
    assert bench.product_operations(jax.make_jaxpr(run)(w)) == 5 * of_step
