"""IWO-Net: iterative winners-out networks (Zeng et al., TIP 2019, https://ieeexplore.ieee.org/document/8737877).

One model of both streams.

Each of M attention heads per stream computes a weighted mean of K segments (eq. 3), scaled to length 1 / sqrt(M)
(eq. 4). A linear classifier of all heads of all streams predicts the class (eq. 6). Given the lengths, all this is
linear in the segments, so a class logit is a sum over segments. The contribution of a segment, if positive, is its
class-specific score (CSC, eqs. 7 and 8). Winners-out training removes the segments with the highest scores from the
training videos after a round (Algorithm 1). Winners-out testing selects them, removes them, and scores again
(Algorithm 2).

Attention has a bias for each position, so the network sees a grid of K positions. Training samples K snippets; at test
time the grid takes the snippet in the middle of each of K equal parts of the video (`layers.grid`). A snippet gets the
scores of the part that contains its middle.

Where the paper is silent, or we differ:
- The top p of K segments are a share p / K, `share`: in training of the snippets of the video, including removed ones,
  and in testing of the positions; rounded, and at least one. Segments with score 0 are never winners, so there may be
  fewer than p.
- alpha of eq. 4 cancels except for its sign, so it has no gradient. We keep only its sign, because Adam would amplify
  the rounding errors of the gradient and flip signs. With `shift`, beta of attention clusters is added before the
  normalization, and alpha is learnt. A mean of length 0 stays 0.
- `while t < N_step` from t = 1 gives N_step - 1 steps, but the text "sets the number of winners-out steps to 10". We
  follow the text, so 1 step is testing without winners-out (Table IV).
- The score of a segment (eq. 11) is its CSC at the step that selects it: later steps exclude it, and earlier ones share
  the attention with segments selected before.
- CAM (Table V) replaces the heads by the mean of all segments, repeated M times. Eq. 4 still applies.
- Dropout applies to entries of the heads' outputs, before the classifier.

Per video and stream, a training step costs 4 products of [M d] with [K d], and small ones. Testing costs one of [K d]
with [d M c], and then one of [M K] with [K d] for each class and step of Algorithm 2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax import layers, localize
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

SCORES = ("csc", "cam", "attention")

TINY = 1e-12
"""Squared length below which a vector counts as 0."""


class Extras(NamedTuple):
    """The inputs of `revise` and `propose`."""

    winners: Float[Any, "q k"]
    """For each of the q best classes, the selection of Algorithm 2 on the grid (`winners_out`)."""
    classes: Int[Any, " q"]
    """The q best classes."""
    length: Int[Any, ""]
    """Number of snippets of the video."""


def attend(logits: Float[Array, "m k"], mask: Float[Array, " k"]) -> Float[Array, "m k"]:
    """Eq. 3: the softmax over unmasked segments; masked ones get exactly 0, even if all are masked.

    Args:
      logits: W H' + B of each head.
      mask: 1 at segments that are left.
    """
    return jax.nn.softmax(jnp.where(mask > 0, logits, -1e30), axis=1) * (mask > 0)


def shifting_operation(heads: Params, pooled: Float[Array, "m d"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Eq. 4 as `v = scale * A H + shift` of each head, from its weighted mean A H; both are 0 if v has length 0.

    Args:
      heads: `scale` is alpha, `shift` (if any) is beta.
      pooled: A H.
    """
    alpha = heads["scale"] if "shift" in heads else jnp.sign(heads["scale"])
    beta = heads.get("shift", jnp.zeros_like(alpha))
    square = jnp.sum((alpha[:, None] * pooled + beta[:, None]) ** 2, axis=1)
    there = square > TINY  # used twice: the gradient of the root at 0 would be infinite
    inverse = jnp.where(there, jax.lax.rsqrt(jnp.where(there, square, 1.0)), 0.0) / np.sqrt(len(alpha))
    return alpha * inverse, beta * inverse


def redundancy(attention: Float[Array, "m k"]) -> Float[Array, ""]:
    """|A A' - I|_F^2 of eq. 6; it is minimal if each head attends to a single segment, different for each head."""
    return jnp.sum((attention @ attention.T - jnp.eye(len(attention))) ** 2)


def contributions(
    heads: Params,
    logits: Float[Array, "m k"],
    features: Float[Array, "k d"],
    response: Float[Array, "k m c"],
    mask: Float[Array, " k"],
) -> Float[Array, "k c"]:
    """The contribution of each segment to the logit of each class (eq. 7): the CSC of one stream before the ReLU.

    Args:
      heads: the parameters of the stream's heads.
      logits: the attention logits W H' + B.
      features: H.
      response: h_k . z_m^c, with the classifier's weights z.
      mask: 1 at segments that are left; the others contribute 0.
    """
    attention = attend(logits, mask)
    scale, _ = shifting_operation(heads, attention @ features)
    return jnp.einsum("mk,kmc->kc", scale[:, None] * attention, response)


def winners(scores: Float[Array, " n"], count: Int[Array, ""] | int) -> Bool[Array, " n"]:
    """The `count` highest positive scores; among equal scores the first."""
    rank = jnp.argsort(jnp.argsort(-scores))
    return (rank < count) & (scores > 0)


def winners_out(
    importance: Callable[[Float[Array, " k"]], Float[Array, " k"]], mask: Float[Array, " k"], count: int, steps: int
) -> Float[Array, " k"]:
    """Algorithm 2 for one class: the score of each selected segment at the step that selects it, 0 for the others.

    Args:
      importance: the scores of all segments, given the mask of those that are left.
      mask: the segments at the start.
      count: the largest number of segments that a step selects.
      steps: number of steps.
    """

    def step(carry, _):
        left, selected = carry
        scores = importance(left)
        won = winners(scores * left, count)
        return (left * ~won, jnp.where(won, scores, selected)), None

    (_, selected), _ = jax.lax.scan(step, (mask, jnp.zeros_like(mask)), length=steps)
    return selected


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """alpha and beta are drawn from N(0, M^-1/4), with M^-1/4 as the standard deviation; W like a fully-connected
    layer."""
    attention_key, classifier_key = jax.random.split(key)
    normal = jax.nn.initializers.lecun_normal()
    streams = []
    for i, d in enumerate(spec.dims):
        keys = jax.random.split(jax.random.fold_in(attention_key, i), 3)
        heads = {"scale": jax.random.normal(keys[0], (config.heads,)) * config.heads**-0.25}
        if config.shift:
            heads["shift"] = jax.random.normal(keys[1], (config.heads,)) * config.heads**-0.25
        if config.scores != "cam":
            heads["kernel"] = normal(keys[2], (d, config.heads)).T
            heads["bias"] = jnp.zeros((config.heads, config.segments))
        streams.append(heads)
    kernel = normal(classifier_key, (sum(spec.dims) * config.heads, spec.num_classes))
    kernels = jnp.split(kernel, np.cumsum(spec.dims)[:-1] * config.heads)
    kernels = [x.reshape(config.heads, -1, spec.num_classes) for x in kernels]
    return {
        "attention": tuple(streams),
        "classifier": {"kernel": tuple(kernels), "bias": jnp.zeros(spec.num_classes)},
    }


def on_grid(
    config: ConfigDict, params: Params, video: Video
) -> tuple[list[tuple[Params, Array, Array, Array]], Float[Array, " k"]]:
    """For each stream its heads, attention logits [m k], features [k d] and classifier [m d c]; and the mask."""
    at = layers.grid(video.length, config.segments)
    streams, start = [], 0
    for heads, kernel in zip(params["attention"], params["classifier"]["kernel"]):
        features = video.features[at, start : start + kernel.shape[1]]
        start += kernel.shape[1]
        cam = "kernel" not in heads
        logits = jnp.zeros((config.heads, config.segments)) if cam else (features @ heads["kernel"].T).T + heads["bias"]
        streams.append((heads, logits, features, kernel))
    return streams, video.mask[at]


def loss(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 6 for one video; without a label, the classification term is 0."""
    streams, mask = on_grid(config, params, video)
    logits, penalty = params["classifier"]["bias"], 0.0
    for i, (heads, attention_logits, features, kernel) in enumerate(streams):
        attention = attend(attention_logits, mask)
        pooled = attention @ features
        scale, shift = shifting_operation(heads, pooled)
        kept = jax.random.bernoulli(jax.random.fold_in(step.key, i), 1 - config.dropout, pooled.shape)
        outputs = (scale[:, None] * pooled + shift[:, None]) * kept / (1 - config.dropout)
        logits = logits + jnp.einsum("md,mdc->c", outputs, kernel)
        penalty = penalty + redundancy(attention)
    classification = optax.softmax_cross_entropy(logits, video.labels / jnp.maximum(video.labels.sum(), 1))
    total = classification + config.penalty * penalty
    return total, {"loss": total, "classification": classification, "penalty": penalty}


def fuse_streams(config: ConfigDict, of_streams: Sequence[Float[Array, "k *c"]]) -> Float[Array, "k *c"]:
    """Fuses the scores of the streams (eq. 10)."""
    return of_streams[0] + config.gamma * sum(of_streams[1:])


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """`cas` is the score at the first step; `attention` is the mean of all heads and streams, divided by its maximum.

    `evidence` is the class probability of a video that consists of the segment only.
    """
    streams, mask = on_grid(config, params, video)
    responses = [jnp.einsum("kd,mdc->kmc", features, kernel) for _, _, features, kernel in streams]

    def importance(left, responses):
        if config.scores == "attention":
            weights = [attend(logits, left).mean(axis=0)[:, None] for _, logits, _, _ in streams]
            return jnp.broadcast_to(fuse_streams(config, weights), (config.segments, responses[0].shape[2]))
        parts = [contributions(*stream[:3], response, left) for stream, response in zip(streams, responses)]
        return fuse_streams(config, [jax.nn.relu(x) for x in parts])

    logits = alone = params["classifier"]["bias"]
    for (heads, attention_logits, features, kernel), response in zip(streams, responses):
        total = kernel.sum(axis=1)  # a shift is multiplied by it
        _, shift = shifting_operation(heads, attend(attention_logits, mask) @ features)
        part = contributions(heads, attention_logits, features, response, mask)
        logits = logits + part.sum(axis=0) + shift @ total
        same = jnp.broadcast_to(features[:, None], (config.segments, config.heads, features.shape[1]))
        scale, shift = jax.vmap(shifting_operation, (None, 0))(heads, same)
        alone = alone + jnp.einsum("km,kmc->kc", scale, response) + shift @ total
    video_score = jax.nn.softmax(logits)

    def select(c):
        of_class = [jax.lax.dynamic_slice_in_dim(x, c, 1, axis=2) for x in responses]
        return winners_out(lambda left: importance(left, of_class)[:, 0], mask, count, config.test_steps)

    count = max(1, round(config.share * config.segments))
    _, classes = jax.lax.top_k(video_score, min(config.test_classes, video_score.size))
    attention = sum(attend(stream[1], mask).mean(axis=0) for stream in streams)
    attention = attention / jnp.maximum(attention.max(), jnp.finfo(attention.dtype).tiny)
    at = layers.off_grid(video.length, config.segments, len(video.mask))
    there = video.mask[:, None]
    return Scores(
        video_score,
        importance(mask, responses)[at] * there,
        attention[at] * video.mask,
        Extras(jax.vmap(select)(classes), classes, video.length),
        jax.nn.softmax(alone)[at] * there,
    )


def revise(
    config: ConfigDict, keep: Float[Array, " n"], scores: Scores, labels: Float[Array, " c"]
) -> Float[Array, " n"]:
    """Algorithm 1, lines 4 to 10: removes the winners of each true class from the remaining snippets."""
    count = jnp.maximum(1, jnp.round(config.share * scores.extras.length)).astype(int)
    won = jax.vmap(winners, (1, None), 1)(scores.cas * keep[:, None], count)
    return keep * ~(won & (labels > 0)).any(axis=1)


def method(config: ConfigDict) -> Method:
    """IWO-Net with the options of `config`.

    segments: the K positions of the grid. heads: M. shift: whether eq. 4 has a beta. dropout: share of entries.
    penalty: weight of `redundancy`. gamma: weight of all streams but the first in eq. 10. share: p / K. rounds: rounds
    of training. test_steps, test_classes: N_step and q of Algorithm 2. scores: the scores that winners are chosen by:
    csc, cam or attention.

    Raises:
      InputError: an invalid option.
    """
    if config.scores not in SCORES:
        raise InputError(f"config.method.scores={config.scores!r}: there are {', '.join(SCORES)}")
    for option in ("segments", "heads", "rounds", "test_steps", "test_classes"):
        if config[option] < 1:
            raise InputError(f"config.method.{option}={config[option]}: give at least 1")
    if not 0 < config.share <= 1:
        raise InputError(f"config.method.share={config.share}: give a share of the segments, above 0 and up to 1")
    phases = (Phase("train", partial(loss, config), ("attention", "classifier")),)
    return Method(
        partial(init, config), phases, partial(score, config), propose, config.rounds, partial(revise, config)
    )


def propose(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """Each run of selected segments of a class is a detection, scored by their mean score (eq. 11).

    Segment k of K is [k, k + 1) * n / K of the n snippets, clipped to the video. No NMS is needed, because detections
    of a class do not overlap. Fused scores of several models have no selected segments, so `localize.propose` handles
    them.

    Args:
      models: passed to `localize.propose`.
      fused: scores with `Extras` for a single model, without for several; options for `localize.propose`.
      meta: the Meta of the video.
    """
    extras = fused.scores.extras
    if extras is None:
        return localize.propose(models, fused, meta)
    found = []
    for c, selected in zip(extras.classes, np.asarray(extras.winners, np.float64)):
        runs = localize.components(selected > 0)
        score = localize.run_means(selected, runs)
        found.append(localize.detections(runs * meta.length / len(selected), c, score, meta))
    return localize.join(found)
