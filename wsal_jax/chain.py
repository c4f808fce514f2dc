"""Marginalized average over a Markov chain: MAAN's expectation with neighbours that agree.

The subsets of MAAN choose each snippet by itself. Here z is a binary chain over the n real snippets of ONE video,

    P(z) ~ prod_t p_t^{z_t} (1 - p_t)^{1 - z_t} prod_t exp(stay [z_t = z_{t+1}]),

so that subsets come in runs, as actions do. `stay` >= 0 is the only number: 0 is MAAN. p_t is what snippet t says by
itself; `marginals` has P(z_t = 1). `probabilities` may be 0 or 1; they have the dtype rules of `aggregate`.

Padding and masked snippets are passed through: they are no part of the chain, and the real snippets on both sides of
them are neighbours. So padding changes nothing.

All is computed from messages. With u = 1 - v, `_messages` has, for the chain with u p_t in place of p_t, what the
snippets before t say of z_t, and the logarithm of the ratio of its normaliser to that at u = 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from wsal_jax import aggregate


class Posterior(NamedTuple):
    """Of the runs of a chain, on the host. A run from i to j has z = 1 there alone, and 0 before i and after j."""

    start: Float[np.ndarray, "*b n"]
    """P(a run starts at t)."""
    end: Float[np.ndarray, "*b n"]
    """P(a run ends with t)."""
    go_on: Float[np.ndarray, "*b m"]
    """P(z_{t+1} = 1 | z_t = 1), m = n - 1."""


class _Messages(NamedTuple):
    """What the snippets on one side say of each snippet; j is the axis of nodes v, u = 1 - v."""

    off: Float[Array, " n"]
    """P(z_t = 0 | snippets before t) at u = 1."""
    on: Float[Array, " n"]
    """P(z_t = 1 | snippets before t) at u = 1."""
    tilted: Float[Array, "n j"]
    """`on` at u."""
    ratio: Float[Array, "n j"]
    """The logarithm of Z(u) / Z(1) of the chain of the snippets before t."""


def chain_average(
    probabilities: Float[Array, " n"],
    features: Float[Array, "n d"],
    stay: Float[Array, ""] | float,
    mask: Float[Array, " n"] | None = None,
) -> Float[Array, " d"]:
    """E[sum_i z_i x_i / sum_i z_i] over the chain of the module: `chain_weights @ features`. An empty z gives 0."""
    return aggregate.weighted_sum(chain_weights(probabilities, stay, mask), features)


def chain_weights(
    probabilities: Float[Array, " n"], stay: Float[Array, ""] | float, mask: Float[Array, " n"] | None = None
) -> Float[Array, " n"]:
    """lambda_i = E[z_i / sum_t z_t; sum_t z_t > 0], exactly, in O(n).

    Since 1 / k = integral_0^1 u^{k - 1} du, with Z(u) the partition function for u p_t in place of p_t,

        lambda_i = integral_0^1 Z(u) / Z(1) P_u(z_i = 1) du / u,

    by the quadrature of `aggregate.marginal_weights`; the integrand is again a polynomial of degree n - 1. A
    forward-backward for each node takes O(n). The logarithm of Z(u) / Z(1) is the sum over the steps of that of the
    ratio of their normalisers, each from the difference of the two: no large numbers cancel, and float32 is accurate.

    Args:
      probabilities: p_t in [0, 1].
      stay: >= 0; the logarithm of how much likelier two neighbours agree than differ, before p is known.
      mask: see the module.
    """
    p = aggregate._real(probabilities, mask)
    nodes, node_weights = aggregate._quadrature(p.size, p.dtype)
    before, after = _both_sides(p, jnp.asarray(stay, p.dtype), mask, nodes)
    on = before.on * after.on
    of_one = p * on + (1 - p) * before.off * after.off
    share = before.tilted / before.on[:, None] * (after.tilted / after.on[:, None])
    integral = aggregate._dot(jnp.exp(before.ratio + after.ratio) * share, node_weights)
    return aggregate._real(p * (on / of_one) * integral, mask)


def marginals(
    probabilities: Float[Array, " n"], stay: Float[Array, ""] | float, mask: Float[Array, " n"] | None = None
) -> Float[Array, " n"]:
    """P(z_t = 1) for each snippet; p_t if `stay` is 0."""
    p = aggregate._real(probabilities, mask)
    before, after = _both_sides(p, jnp.asarray(stay, p.dtype), mask, jnp.zeros(0, p.dtype))
    on, off = p * before.on * after.on, (1 - p) * before.off * after.off
    return aggregate._real(on / (on + off), mask)


def posterior(probabilities: Float[np.ndarray, "*b n"], stay: float | Float[np.ndarray, " m"]) -> Posterior:
    """Starts, ends and continuations of the runs of one or several chains, in float64; `run_logs` has whole runs.

    Args:
      probabilities: p_t in [0, 1], of videos without padding.
      stay: see the module; here also one for each pair of neighbours, m = n - 1, and of any sign: below 0, neighbours
        tend to differ.
    """
    p = np.asarray(probabilities, np.float64)
    switch = 1 / (1 + np.exp(np.broadcast_to(stay, p.shape[-1] - 1)))
    step = np.stack([1 - switch, switch, switch, 1 - switch], axis=-1).reshape(-1, 2, 2)  # [t, z_t, z_{t+1}]
    weight = np.stack([1 - p, p], axis=-1)
    from_here = weight * _from_after(weight, step)  # what snippet t and those after it say of z_t
    up_to_here = weight * _from_after(weight[..., ::-1, :], step[::-1])[..., ::-1, :]
    onward = step * from_here[..., 1:, None, :]  # [t, z_t, z_{t+1}]
    pairs = up_to_here[..., :-1, :, None] * onward
    pairs /= pairs.sum(axis=(-2, -1), keepdims=True)
    first, last = (x / x.sum(axis=-1, keepdims=True) for x in (from_here[..., 0, :], up_to_here[..., -1, :]))
    return Posterior(
        start=np.concatenate([first[..., 1:], pairs[..., 0, 1]], axis=-1),
        end=np.concatenate([pairs[..., 1, 0], last[..., 1:]], axis=-1),
        go_on=onward[..., 1, 1] / onward[..., 1, :].sum(axis=-1),
    )


def _from_after(weight: Float[np.ndarray, "*b n 2"], step: Float[np.ndarray, "m 2 2"]) -> Float[np.ndarray, "*b n 2"]:
    """What the snippets after each one say of it, up to a factor: products of matrices, doubled log n times."""
    product = step * weight[..., 1:, None, :]
    reach, n = 1, weight.shape[-2]
    while reach < n - 1:
        longer = product[..., :-reach, :, :] @ product[..., reach:, :, :]
        product[..., :-reach, :, :] = longer / longer.max(axis=(-2, -1), keepdims=True)
        reach *= 2
    return np.concatenate([product.sum(axis=-1), np.ones_like(weight[..., :1, :])], axis=-2)


def run_logs(of: Posterior, first: Int[np.ndarray, " k"], last: Int[np.ndarray, " m"]) -> Float[np.ndarray, "k m"]:
    """log P(run from i to j) for each i of `first` and j of `last`; -inf where j < i. A run starts at i, goes on to
    each snippet up to j, and does not go on to j + 1.

    Args:
      of: of one chain.
      first: the first snippet of each run.
      last: the last one.
    """
    with np.errstate(divide="ignore"):
        start, go_on = np.log(of.start), np.log(np.maximum(of.go_on, np.finfo(np.float64).tiny))
        stop = np.append(np.log1p(-of.go_on), 0.0)
    along = np.append(0.0, np.cumsum(go_on))
    logs = start[first][:, None] + along[last] - along[first][:, None] + stop[last]
    return np.where(last >= first[:, None], logs, -np.inf)


def _both_sides(
    p: Float[Array, " n"], stay: Float[Array, ""], mask: Float[Array, " n"] | None, nodes: Float[Array, " j"]
) -> tuple[_Messages, _Messages]:
    """The messages from before and from after each snippet."""
    mask = jnp.ones_like(p) if mask is None else mask
    sides = jax.vmap(partial(_messages, nodes=nodes), (0, None, 0))(
        jnp.stack([p, p[::-1]]), stay, jnp.stack([mask, mask[::-1]])
    )
    return jax.tree.map(lambda x: x[0], sides), jax.tree.map(lambda x: x[1, ::-1], sides)


def _messages(
    p: Float[Array, " n"], stay: Float[Array, ""], mask: Float[Array, " n"], nodes: Float[Array, " j"]
) -> _Messages:
    """The messages to each snippet from those before it.

    f = P(z_t | before) at u = 1 and g at u follow the usual recursion; every term is positive. Their difference
    d = f(1) - g(1) has a recursion of its own, also of positive terms,

        d' = tanh(stay / 2) p (1 - p) (d + v g(1) f(0)) / (c_1 c_u),

    with c_1 and c_u the normalisers, so it keeps its relative accuracy where v is small, and so does
    c_u / c_1 - 1 = ((1 - 2 p) d - v p g(1)) / c_1.
    """
    switch, agree = jax.nn.sigmoid(-stay), jnp.tanh(stay / 2)
    u = 1 - nodes

    # Reverse mode keeps the carry of every step alone, 4 n j numbers, and recomputes the rest.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(carry, snippet):
        f0, f1, g0, g1, d, ratio = carry
        p, real = snippet
        c1, cu = (1 - p) * f0 + p * f1, (1 - p) * g0 + u * p * g1
        f0, f1 = (1 - p) / c1 * f0, p / c1 * f1  # given snippet t too
        excess = ((1 - 2 * p) * d - nodes * p * g1) / c1
        near = excess > -0.5
        grown = jnp.where(near, jnp.log1p(jnp.where(near, excess, 0)), jnp.log(jnp.where(near, 1, cu / c1)))
        d = agree * (p / c1) * ((1 - p) / cu) * (d + nodes * g1 * carry[0])
        g0, g1 = (1 - p) / cu * g0, u * p / cu * g1
        new = (
            (1 - switch) * f0 + switch * f1,
            switch * f0 + (1 - switch) * f1,
            (1 - switch) * g0 + switch * g1,
            switch * g0 + (1 - switch) * g1,
            d,
            ratio + grown,
        )
        new = jax.tree.map(lambda new, old: jnp.where(real > 0, new, old), new, carry)
        return new, _Messages(carry[0], carry[1], carry[3], carry[5])

    half, half_at_nodes, zero = jnp.full_like(stay, 0.5), jnp.full_like(u, 0.5), jnp.zeros_like(u)
    start = (half, half, half_at_nodes, half_at_nodes, zero, zero)
    return lax.scan(step, start, (p, mask))[1]
