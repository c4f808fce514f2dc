"""Timings: `python -m wsal_jax.bench <subcommand>`. One function per subcommand, which prints a table."""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from wsal_jax.aggregate import marginalized_average, marginalized_average_scan


def seconds(function, *args) -> float:
    """Median time of a compiled function after one warm-up call: 20 calls, or fewer (at least 3) once 2 s are over."""
    jax.block_until_ready(function(*args))
    times = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 2):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def aggregate(args: argparse.Namespace) -> None:
    """Marginalized average: the linear-time form against the paper's recurrence (scan), forward + backward.

    The gradient is with respect to probabilities and features. `growth` is the time relative to the row above.
    """
    batch, d, most_bytes = 8, 1024, 8e9
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {batch}, d {d}, float32, forward + backward")
    print(f"{'T':>6} {'linear ms':>10} {'growth':>7} {'scan ms':>10} {'growth':>7} {'scan / linear':>14}")
    previous = {}
    for n in (20, 100, 400, 2000, 20_000):
        inputs = jax.random.uniform(jax.random.key(0), (batch, n)), jax.random.normal(jax.random.key(1), (batch, n, d))
        residual_bytes = 4 * batch * n * (n + 1) * (d + 1)  # what reverse mode of the scan keeps
        cells, times = [], {}
        for name, average in (("linear", marginalized_average), ("scan", marginalized_average_scan)):
            if name == "scan" and residual_bytes > most_bytes:
                cells.append(f"none: its reverse mode keeps {residual_bytes / 1e9:,.0f} GB")
                continue

            def loss(p, x, average=average):
                return jnp.sum(jax.vmap(average)(p, x) ** 2)

            times[name] = seconds(jax.jit(jax.value_and_grad(loss, (0, 1))), *inputs)
            growth = f"{times[name] / previous[name]:.1f}x" if name in previous else ""
            cells.append(f"{1e3 * times[name]:>10,.2f} {growth:>7}")
        ratio = f"{times['scan'] / times['linear']:>13,.0f}x" if "scan" in times else ""
        print(f"{n:>6} {cells[0]} {cells[1]} {ratio}", flush=True)
        previous = times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wsal_jax.bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (aggregate,):
        commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0]).set_defaults(run=run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
