"""The count of operations that the benchmark compares with the speed of the machine."""

import argparse

import jax
import jax.numpy as jnp
import pytest

from wsal_jax import bench, bench_scale


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


def test_the_model_of_many_devices_adds_up():
    """By hand: 8 devices on 2 hosts, 1,000 videos of 100 snippets of 10 float16."""
    found = dict(
        step=0.01, arrays=5, gradient=8e6, score=0.02, score_bytes=1e3, score_arrays=3, state=1e6, step_bytes=2e6
    )
    found |= dict(sampled=1e-3, whole=4e-3, detect=1e-3)
    args = argparse.Namespace(devices=8, per_host=4, videos=1000, snippets=100, dim=10, classes=3, dtype="float16")
    args = argparse.Namespace(**vars(args), share=2, cores=2, latency=100, link=1.0, disk=1e-3)
    took = bench_scale.times(args, found, "split", 20)
    assert took["step"] == pytest.approx(dict(compute=0.01, exchange=5e-4 + 2 * 7 / 8 * 8e-3))
    assert took["start"] == pytest.approx(dict(reading=500 * 4e-3))
    rounds, gather = 1000 / 128, 3e-4 / 524 + 16 * 7 * 1e-6  # 524 batches of 8 x 16 kB are in 64 MiB
    expected = dict(compute=0.02, gather=gather, reading=64 * 4e-3, detecting=128e-3)
    assert took["scoring"] == pytest.approx({name: rounds * x for name, x in expected.items()})
    assert bench_scale.times(args, found, "stream", 20)["step"]["reading"] == pytest.approx(8 * 5e-4)
    held = bench_scale.memory(args, found, "split", 20)
    assert held["device"] == dict(features=250e3, labels=3e3, kept=200e3, state=10e6, temporary=2e6)
    assert held["host"] == pytest.approx(dict(videos=2.5e6 + 24e3, features=1e6, scores=1e6 * 100 / 128))
    assert bench_scale.exchange(8e6, 1, bench_scale.Link(1.0, 1.0), 5) == 0
