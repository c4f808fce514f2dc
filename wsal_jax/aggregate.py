"""Bag aggregators: from the features of the n snippets of ONE video to one feature (`vmap` over videos outside).

All take an optional mask, 1 at real snippets and 0 at padding; None means that all are real. Masked snippets have
weight 0 and gradient 0, so their features, weights and probabilities may have any finite values.

Features and weights may be bfloat16, float16, float32 or float64. Sums accumulate in at least float32, at full matrix
precision, and results are not cast back: weights come out as promote(probabilities, float32), aggregates as
promote(probabilities or weights, features, float32).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray


def marginalized_average(
    probabilities: Float[Array, " n"], features: Float[Array, "n d"], mask: Float[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """Marginalized average aggregation of MAAN (eqs. 2 and 3) in linear time: `marginal_weights @ features`.

    It is the expected mean feature of a random subset that contains snippet i with probability p_i, independently:
    E[sum_i z_i x_i / sum_i z_i], z_i ~ Bernoulli(p_i). The empty subset contributes 0 (the paper leaves its 0/0 open).
    """
    return _dot(marginal_weights(probabilities, mask), features)


def marginal_weights(probabilities: Float[Array, " n"], mask: Float[Array, " n"] | None = None) -> Float[Array, " n"]:
    """The weights lambda_i = p_i c_i of MAAN, c_i = E[1 / (1 + sum_{k != i} z_k)] (eq. 3), in O(n).

    The paper computes these sums by an O(n^2) recurrence (`marginalized_average_scan`). Here, since
    1 / (1 + s) = integral_0^1 (1 - v)^s dv and the z_k are independent,

        lambda_i = p_i integral_0^1 prod_{k != i} (1 - p_k v) dv,

    by Gauss-Legendre quadrature. Up to n = 128 the nodes suit a polynomial of degree n - 1 and the result is exact up
    to rounding. For larger n, the substitution v = w^3 concentrates 64 nodes (float32) or 128 (float64) near v = 0,
    where the integrand is large; measured relative errors are below 1e-6 and 1e-12 up to n = 20,000, and 1e-5 and 1e-12
    at n = 100,000. The error grows with n, so measure it for much larger n. Memory is a few arrays of n x nodes.

    Errata of the paper. The empty subset contributes 0, so sum_i lambda_i = 1 - prod_k (1 - p_k), not 1 as in the
    proof of Proposition 2. The set I = {i: c_i >= 1 / sum p} of Proposition 2 can be empty: p = (0.1, 0.1) has
    c_i = 0.95 < 5. The proof works with I' = {i: c_i / sum lambda >= 1 / sum p}, which contains I and is empty only if
    p = 0. Inequality (4) therefore holds on I.

    Args:
      probabilities: p_i in [0, 1]; first and second derivatives are finite at 0 and 1 too.
      mask: see the module.
    """
    p = _real(probabilities, mask)
    nodes, node_weights = _quadrature(p.size, p.dtype)
    log_factor = jnp.log1p(-p[:, None] * nodes)  # nodes < 1, so finite at p = 1
    others = jnp.exp(jnp.sum(log_factor, axis=0) - log_factor)  # prod_{k != i} (1 - p_k v) at each node v
    # Mask again: an overflowing cotangent at padding then passes a select, which avoids 0 * inf.
    return _real(p * _dot(others, node_weights), mask)


def _quadrature(n: int, dtype: jnp.dtype) -> tuple[Float[Array, " j"], Float[Array, " j"]]:
    """Nodes in (0, 1) and weights for `integral_0^1 f(v) dv`, where f is a product of n - 1 factors 1 - p_k v."""
    if n <= 128:
        nodes, weights = np.polynomial.legendre.leggauss((n + 1) // 2)
        nodes, weights = (nodes + 1) / 2, weights / 2
    else:
        nodes, weights = np.polynomial.legendre.leggauss(128 if dtype == jnp.float64 else 64)
        nodes, weights = (nodes + 1) / 2, weights / 2
        nodes, weights = nodes**3, weights * 3 * nodes**2
    return jnp.asarray(nodes, dtype), jnp.asarray(weights, dtype)


def marginalized_average_scan(
    probabilities: Float[Array, " n"], features: Float[Array, "n d"], mask: Float[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """`marginalized_average` by the recurrence of the paper (Algorithm 1, eqs. 8 and 9), in O(n^2 d).

    With Z_t = sum_{i <= t} z_i and Y_t = sum_{i <= t} z_i x_i, the state after t snippets is q_i = P(Z_t = i) and
    m_i = P(Z_t = i) E[Y_t / Z_t | Z_t = i], and the result is sum_i m_i. m_0 = 0: the empty subset contributes 0. Use
    it only to check the linear-time form: reverse mode keeps the state of every step, n (n + 1) (d + 1) numbers.
    """
    p = _real(probabilities, mask)
    dtype = jnp.promote_types(p.dtype, features.dtype)
    n, d = features.shape
    i = jnp.arange(n + 1, dtype=dtype)
    b = jnp.maximum(i - 1, 0) / jnp.maximum(i, 1)  # b_{i-1} = (i - 1) / i; at i = 0, m_{-1} = q_{-1} = 0

    def previous(state):
        return jnp.concatenate([jnp.zeros_like(state[:1]), state[:-1]])

    # Recomputing a step is as fast as reading its stored values, and halves the memory of reverse mode.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(state, snippet):
        q, m = state
        p, x = snippet
        chosen = b[:, None] * previous(m) + ((1 - b) * previous(q))[:, None] * x
        return (p * previous(q) + (1 - p) * q, p * chosen + (1 - p) * m), None

    start = jnp.zeros(n + 1, dtype).at[0].set(1), jnp.zeros((n + 1, d), dtype)
    (_, m), _ = lax.scan(step, start, (p.astype(dtype), features.astype(dtype)))
    return jnp.sum(m, axis=0)


def weighted_sum(
    weights: Float[Array, " n"], features: Float[Array, "n d"], mask: Float[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """sum_i l_i x_i, the aggregate of STPN (eq. 1)."""
    return _dot(_real(weights, mask), features)


def dropout_sum(
    key: PRNGKeyArray,
    weights: Float[Array, " n"],
    features: Float[Array, "n d"],
    mask: Float[Array, " n"] | None = None,
    rate: float = 0.5,
) -> Float[Array, " d"]:
    """sum_i r_i l_i x_i / (1 - rate), r_i ~ Bernoulli(1 - rate): "Dropout" of section 3.2, for training only.

    The paper's formula has no 1 / (1 - rate). With it, the expectation over `key` is `weighted_sum`, the aggregate for
    test time. Without it, test features would be twice as large as training features at a rate of 0.5.

    Args:
      key: random key.
      weights: l_i.
      features: x_i.
      mask: see the module.
      rate: the probability that a snippet is dropped.
    """
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return _dot(jnp.where(kept, _real(weights, mask) / (1 - rate), 0), features)


def weighted_mean(
    weights: Float[Array, " n"], features: Float[Array, "n d"], mask: Float[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """sum_i l_i x_i / sum_i l_i for l >= 0: "Norm" of section 3.2. If sum_i l_i = 0, it is 0 with a finite gradient."""
    weights = _real(weights, mask)
    # The mean does not depend on the scale of the weights, but tiny weights would make its derivatives overflow.
    largest = lax.stop_gradient(jnp.max(weights))
    weights = weights / jnp.where(largest > 0, largest, 1)
    return _dot(weights, features) / jnp.where(largest > 0, jnp.sum(weights), 1)


def softmax_mean(
    weights: Float[Array, " n"], features: Float[Array, "n d"], mask: Float[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """sum_i e^{l_i} x_i / sum_i e^{l_i} over real snippets: "SoftMaxNorm" of section 3.2. 0 if all are masked.

    As in the paper, l is the attention after its sigmoid, so no weight among n snippets exceeds e / (n - 1 + e).
    """
    weights = _real(weights, None)
    if mask is not None:
        weights = jnp.where(mask > 0, weights, jnp.finfo(weights.dtype).min)
    return weighted_mean(jnp.exp(weights - lax.stop_gradient(jnp.max(weights))), features, mask)


def _real(values: Float[Array, " n"], mask: Float[Array, " n"] | None) -> Float[Array, " n"]:
    """The values in at least float32, 0 at padding."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return values if mask is None else jnp.where(mask > 0, values, 0)


def _dot(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`a @ b` in the wider of the two dtypes, without the bfloat16 or TF32 passes of TPU and GPU defaults."""
    return jnp.matmul(a, b, precision="highest")
