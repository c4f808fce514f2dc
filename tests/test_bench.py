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


def test_operations_of_convolutions_are_counted():
    """Of 2 groups, so each output reads 4 of 8 channels; one for each of 6 images in a loop."""
    kernel = jnp.ones((3, 5, 4, 10))

    def convolve(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x[None], kernel, (2, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
        )

    counted = bench.product_operations(jax.make_jaxpr(lambda x: jax.lax.map(convolve, x))(jnp.ones((6, 9, 7, 8))))
    assert counted == 6 * 2 * (5 * 7 * 10) * (3 * 5 * 4)
