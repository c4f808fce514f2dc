"""SAL: multilevel semantic and adaptive actionness learning (Li, Wang and Dong, Neural Networks 182, 2025).

One model of two joined streams, rgb and flow, without a background class. The equations are those of the released code
for THUMOS14 and ActivityNet 1.3; of the paper we could read only the abstract. h, h_rgb and h_flow are temporal
convolutions of both streams, of rgb and of flow. Each stream has a class-agnostic actionness, r and f; a is their
weighted mean. Second-order pooling B(h) of the snippets gives the semantic logits z of a video. It also gives what is
added to the snippets in proportion to a, before a classifier gives their logits s.

The actionness learns from pseudo labels: the snippets where it is highest, weighted by the confidence of s. It learns
from sums of two videos, too (`mixed`).

Where we differ:
- G = h' h is symmetric, so the layers on B(h) read its upper triangle. Entries off the diagonal are scaled by sqrt(2).
  |B(h)|, the functions that a layer can be, and the variance of its initial output are then the same, at half the
  parameters. SGD would take the same path; Adam changes the two equal weights of the full layer sqrt(2) times as fast.
- Training draws one snippet of each of T equal parts of a video (`pipeline.plan`); in the release the parts share their
  ends, and the draws of a short video of ActivityNet are sorted.
- Suppression has true lengths; the release adds 1 s to them. A segment's score is at least 0 (`localize.by_contrast`).
- The release loses a run that consists of the first value alone.
- We take the last checkpoint. The release takes the best of 990, which it chooses on the test videos.

What is odd but as released:
- G is divided by T^2, where a mean would need T. The entries are then about as small as the floor under the root, 1e-5,
  and B(h) depends on T: so testing resamples a video to the T of training. `power` and `floor` are options.
- The sign of an entry that is 0 is 0, so dead units stay 0 in spite of the floor.
- Features of mixed videos are summed, to twice the norm, but their labels are a union. Their dropout is another one.
- Pseudo labels know no class. The release loops over the true classes, with the same result for each.
- With batches of 2, the previous video of the batch is always the other one.
We leave out what the release has but does not use: a running distribution of the classes, and labels with times. Its
script for ActivityNet does not run: it imports a module and builds a model that are not there.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax import localize
from wsal_jax.data.pipeline import Dataset
from wsal_jax.layers import conv, dense, dropout, top_mean
from wsal_jax.method import BATCH, Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

TERMS = ("mil", "act", "mix", "mask", "sem", "prop", "bg", "con")
TINY = 1e-7


class Extras(NamedTuple):
    """The input of `propose`."""

    level: Float[Any, "t c"]
    """e at the T positions of a video."""
    size: Int[Any, ""]
    """How many of them the video uses, see `positions`; the others are 0."""


class Seen(NamedTuple):
    """What the network says of a video; n positions in time, 0 where masked."""

    logits: Float[Any, "n c"]
    """s."""
    streams: Float[Any, "2 n"]
    """r and f, the actionness of rgb and of flow."""
    attention: Float[Any, " n"]
    """a."""
    semantic: Float[Any, "3 c"]
    """z of both streams, of rgb and of flow."""
    raw: Float[Any, "2 n h"]
    """The convolutions of rgb and of flow, before ReLU; not masked."""


def init_layer(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Params:
    """A layer whose kernel and bias are uniform in +-1 / sqrt(fan_in), as PyTorch's layers are by default."""
    bound = fan_in**-0.5
    drawn = jax.random.uniform(key, (math.prod(shape[:-1]) + 1, shape[-1]), minval=-bound, maxval=bound)
    return {"kernel": drawn[:-1].reshape(shape), "bias": drawn[-1]}


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The groups net and, with the term mask, state: mean and variance of the confidence.

    Raises:
      InputError: the model does not have two streams.
    """
    if len(spec.dims) != 2:
        raise InputError(f"SAL needs a model of two streams, not {len(spec.dims)}: give config.streams=('rgb+flow',)")
    h, c = config.hidden, spec.num_classes
    inputs = {"joined": sum(spec.dims), "rgb": spec.dims[0], "flow": spec.dims[1]}
    sizes = {"joined": config.kernel, "rgb": 3, "flow": 3}
    keys = iter(jax.random.split(key, 7))
    net = {name: init_layer(next(keys), (sizes[name], i, h), sizes[name] * i) for name, i in inputs.items()}
    net["actionness"] = init_layer(next(keys), (h, 2), h)
    net["classifier"] = init_layer(next(keys), (h, c), h)
    pairs = h * (h + 1) // 2
    if "sem" in config.terms.split("+"):
        net["semantic"] = init_layer(next(keys), (pairs, c), h * h)
    if "prop" in config.terms.split("+"):
        kernel = jax.random.normal(next(keys), (pairs, h)) * (2 / (h * h)) ** 0.5
        net["propagation"] = {"kernel": kernel, "bias": jnp.zeros(h)}
    if "mask" not in config.terms.split("+"):
        return {"net": net}
    return {"net": net, "state": {"mean": jnp.float32(1 / c), "var": jnp.float32(1)}}


def second_order(
    hidden: Float[Array, "n h"], count: Float[Array, ""] | float | int, power: float | int, floor: float | int
) -> Float[Array, " pairs"]:
    """B(h): the upper triangle of q / |q|, where q = sign(G) sqrt(|G| + floor) and G = h' h / T^power.

    Entries off the diagonal are scaled by sqrt(2), so |B| = 1. If all of h is 0, B is 0.

    Args:
      hidden: h; 0 where masked.
      count: T, the number of snippets that are not masked.
      power: 2 in the release.
      floor: 1e-5 in the release.
    """
    gram = hidden.T @ hidden / jnp.maximum(count, 1.0) ** power
    row, column = np.triu_indices(hidden.shape[1])
    gram = gram[row, column]
    q = jnp.sign(gram) * jnp.sqrt(jnp.abs(gram) + floor) * np.where(row == column, 1, 2**0.5)
    return q * jax.lax.rsqrt(jnp.maximum((q**2).sum(), 1e-24))


def actionness(layer: Params, hidden: Float[Array, "2 n h"], mask: Float[Array, " n"]) -> Float[Array, "2 n"]:
    """r and f: the probability that a snippet is of an action, of rgb and of flow; 0 where masked."""
    return nn.sigmoid(jnp.einsum("snh,hs->sn", hidden, layer["kernel"]) + layer["bias"][:, None]) * mask


def forward(
    config: ConfigDict,
    net: Params,
    features: Float[Array, "n d"],
    mask: Float[Array, " n"],
    kept: Float[Array, "3 n h"] | float = 1.0,
) -> Seen:
    """The network; `kept` is the dropout of h, h_rgb and h_flow: 0, or what the entries that stay are scaled by.

    A video whose last snippets are masked gives what it would without them.
    """
    split = net["rgb"]["kernel"].shape[1]
    inputs = {"joined": features, "rgb": features[:, :split], "flow": features[:, split:]}
    raw = jnp.stack([conv(net[name], x, mask) for name, x in inputs.items()])
    hidden = nn.relu(raw) * mask[:, None] * kept
    streams = actionness(net["actionness"], hidden[1:], mask)
    attention = config.rgb_share * streams[0] + (1 - config.rgb_share) * streams[1]
    pool = partial(second_order, count=mask.sum(), power=config.power, floor=config.floor)
    pooled = jax.vmap(pool)(hidden)
    semantic = dense(net["semantic"], pooled) if "semantic" in net else jnp.zeros((3, net["classifier"]["bias"].size))
    snippets = hidden[0]
    if "propagation" in net:
        snippets = snippets + attention[:, None] * dense(net["propagation"], pooled[0])
    logits = dense(net["classifier"], snippets) * mask[:, None]
    return Seen(logits, streams, attention, semantic, raw[1:])


def highest(values: Float[Array, " n"], mask: Float[Array, " n"], count: Int[Array, ""] | int) -> Float[Array, " n"]:
    """1 at the `count` highest unmasked values, at least one; of equal ones the first come first."""
    order = jnp.argsort(-jnp.where(mask > 0, values, -jnp.inf))
    return jnp.zeros(len(values)).at[order].set(jnp.arange(len(values)) < jnp.maximum(count, 1)) * mask


def level(share: float, seen: Seen) -> Float[Array, "n c"]:
    """e, in [0, 1]: the softmax of s and the actionness of each stream, which has this share; the softmax the rest."""
    probability = nn.softmax(seen.logits) * (1 - 2 * share)
    return probability + share * seen.streams.sum(0)[:, None]


def cross_entropy(logits: Float[Array, "*k c"], labels: Float[Array, " c"]) -> Float[Array, ""]:
    """The cross-entropy with the target y / sum(y), summed over rows; 0 without labels."""
    return -(labels / jnp.maximum(labels.sum(), 1) * nn.log_softmax(logits)).sum()


def background(logits: Float[Array, " c"]) -> Float[Array, ""]:
    """L_bg: KL(uniform || softmax(logits))."""
    return -(nn.log_softmax(logits) + jnp.log(logits.size)).mean()


def generalized_cross_entropy(
    a: Float[Array, " n"], y: Float[Array, " n"], w: Float[Array, " n"], q: float | int
) -> Float[Array, ""]:
    """GCE: the weighted means of (1 - p^q) / q over positive and over negative snippets, p the probability of y.

    Without positive snippets, say, their part is 0 / 1e-7 = 0.

    Args:
      a: actionness.
      y: pseudo labels.
      w: weights of the snippets; 0 where masked.
      q: 1 is |a - y|; towards 0 it becomes the cross-entropy.
    """

    def part(p, weights):
        return (weights * (1 - (p + TINY) ** q) / q).sum() / (weights.sum() + TINY)

    return part(a, w * y) + part(1 - a, w * (1 - y))


def pseudo_labels(config: ConfigDict, seen: Seen, mask: Float[Array, " n"]) -> Float[Array, " n"]:
    """y: 1 at the share `positives` of snippets with the highest a; with `agree`, if s is among the upper half, too.

    What s says is sum_c relu(s_c). The release repeats this for each true class, with the same result.
    """
    seen, count = jax.lax.stop_gradient(seen), mask.sum()
    y = highest(seen.attention, mask, jnp.round(config.positives * count).astype(int))
    if config.agree:
        y *= highest(nn.relu(seen.logits).sum(1), mask, count.astype(int) // 2)
    return y


def confidence(
    config: ConfigDict, state: Params, logits: Float[Array, "n c"], mask: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Params]:
    """w, and the new running mean and variance of p = max_c softmax(s)_c, which are updated before use.

    w = exp(-min(p - mean, 0)^2 / (spread variance)), so snippets of at least average confidence have weight 1. The mean
    and the (unbiased) variance are those of all snippets of the batch.
    """
    p = nn.softmax(jax.lax.stop_gradient(logits)).max(1)
    count = jax.lax.psum(mask.sum(), BATCH)
    mean = jax.lax.psum((p * mask).sum(), BATCH) / jnp.maximum(count, 1)
    var = jax.lax.psum(((p - mean) ** 2 * mask).sum(), BATCH) / jnp.maximum(count - 1, 1)
    decay = config.decay
    new = {"mean": decay * state["mean"] + (1 - decay) * mean, "var": decay * state["var"] + (1 - decay) * var}
    new = jax.lax.stop_gradient(new)
    # While p is constant, the variance decays until it underflows.
    return jnp.exp(-(jnp.minimum(p - new["mean"], 0) ** 2) / (config.spread * jnp.maximum(new["var"], 1e-12))), new


def previous(x: Any) -> Any:
    """The same of the previous video of the batch; the first has that of the last."""
    size = jax.lax.axis_size(BATCH)
    return jax.lax.ppermute(x, BATCH, [(i, (i + 1) % size) for i in range(size)])


def mixed(
    net: Params, seen: Seen, mask: Float[Array, " n"], kept: Float[Array, "2 n h"] | float = 1.0
) -> Float[Array, "2 n"]:
    """r~ and f~: the actionness of the sum of this video and the previous one of the batch.

    A convolution is linear, so that of the sum is the sum of both, with the bias once.
    """
    either = jnp.maximum(mask, previous(mask))
    bias = jnp.stack([net[name]["bias"] for name in ("rgb", "flow")])
    raw = seen.raw + previous(seen.raw) - bias[:, None]
    return actionness(net["actionness"], nn.relu(raw) * either[:, None] * kept, either)


def loss(config: ConfigDict, params: Params, video: Video, step: Step) -> tuple[Float[Array, ""], Any]:
    """The sum of the terms in `config.terms`, for one video of a batch."""
    net, mask, terms = params["net"], video.mask, config.terms.split("+")
    kept = dropout(step.key, jnp.ones((5, len(mask), config.hidden)), config.dropout)
    seen = forward(config, net, video.features, mask, kept[:3])
    by = level(config.train_share, seen) if config.by == "level" else seen.logits
    parts = {"mil": cross_entropy(top_mean(seen.logits, mask, config.top, by), video.labels)}
    weights = {"mil": 1.0, "act": 1.0, "mix": 1.0, "sem": config.semantic, "bg": config.background}
    weights["con"] = config.consistency
    if "bg" in terms:
        logits = (1 - seen.attention)[:, None] * seen.logits
        parts["bg"] = background(top_mean(logits, mask, config.top, nn.softmax(logits)))
    if "sem" in terms:
        parts["sem"] = cross_entropy(seen.semantic, video.labels)
    if "con" in terms:
        parts["con"] = ((seen.streams[0] - seen.streams[1]) ** 2).sum() / jnp.maximum(mask.sum(), 1)
    y, w, tracked = pseudo_labels(config, seen, mask), jnp.ones_like(mask), {}
    if "mask" in terms:
        w, tracked["state"] = confidence(config, params["state"], seen.logits, mask)
    w = w * mask

    def teach(streams, y, w):
        return jax.vmap(generalized_cross_entropy, (0, None, None, None))(streams, y, w, config.q).sum()

    if "act" in terms:
        parts["act"] = teach(seen.streams, y, w)
    if "mix" in terms:
        either, weight = jnp.maximum(y, previous(y)), (w + previous(w)) / 2
        parts["mix"] = teach(mixed(net, seen, mask, kept[3:]), either, weight)
    total = sum(weights[name] * part for name, part in parts.items())
    metrics = {"loss": total, **parts, "attention": seen.attention.sum() / jnp.maximum(mask.sum(), 1)}
    return total, (metrics, tracked) if tracked else metrics


def positions(config: ConfigDict, length: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, " t"]]:
    """The number of positions of a test video, and the snippet floor(i n / number) of each of `num_snippets`.

    The number is `num_snippets`. Without `repeat` a video has at most one for each of its snippets, and at least 2;
    what is beyond must be masked.
    """
    most = config.num_snippets
    size = jnp.clip(length, most if config.repeat else 2, most)
    return size, jnp.minimum(jnp.arange(most) * length // size, jnp.maximum(length - 1, 0))


def back(length: Int[Array, ""], size: Int[Array, ""] | int, num_snippets: int) -> Int[Array, " num_snippets"]:
    """For each snippet, the last of `size` positions that begins at or before it; any position at padding."""
    return jnp.minimum(((jnp.arange(num_snippets) + 1) * size - 1) // jnp.maximum(length, 1), size - 1)


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """Resamples the video to `positions`, which have the T of training, and gives each snippet what its position has.

    The CAS is e, the attention a, the evidence softmax(s). The video score is softmax(beta zbar + (1 - beta) z_h);
    zbar is the mean of s over the T // top positions that are highest in e.
    """
    size, snippets = positions(config, video.length)
    mask = video.mask[snippets] * (jnp.arange(len(snippets)) < size)
    seen = forward(config, params["net"], video.features[snippets], mask)
    e = level(config.test_share, seen) * mask[:, None]
    mean = top_mean(seen.logits, mask, config.top, e)
    video_score = nn.softmax(config.beta * mean + (1 - config.beta) * seen.semantic[0])
    at, there = back(video.length, size, len(video.mask)), video.mask[:, None]
    evidence = nn.softmax(seen.logits)[at] * there
    return Scores(video_score, e[at] * there, seen.attention[at] * video.mask, Extras(e, size), evidence)


def check(data: Dataset) -> None:
    """Raises InputError for one class alone: the softmax over classes, without background, would always be 1."""
    if len(data.class_names) < 2:
        raise InputError("SAL tells classes from each other and has no background; these data have one class only")


def propose(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """Runs of e above each of `thresholds` by outer-inner contrast, then suppression with decayed return.

    e is interpolated linearly to `upsample` values a position. See `localize.by_contrast` and `localize.returning_nms`.

    Args:
      models: each one's scores, with `Extras`, and options `reject`, `thresholds`, `prior` and `upsample`.
      fused: options `nms`, the IoU above which a segment is suppressed, and `decay`, the sigma of its score.
      meta: of the same video.
    """
    found = []
    for scores, options in models:
        e = np.asarray(scores.extras.level[: scores.extras.size], np.float64)
        e = localize.upsample(e, options.upsample)
        found.append(localize.by_contrast(e, e, scores.video_score, meta, options))
    rescore = partial(localize.returning_nms, iou=fused.options.nms, sigma=fused.options.decay)
    return localize.rescore_by_class(localize.join(found), rescore)


def method(config: ConfigDict) -> Method:
    """SAL with the options of `config`.

    terms: mil and any of act, mix, mask (else w = 1), sem, prop (else nothing is added to snippets), bg and con, joined
    by +. hidden: units of each convolution. kernel: snippets that the joint convolution sees. dropout: of single units.
    power, floor: see `second_order`. rgb_share: weight of r in a. top: logits are pooled over T // top snippets, which
    are highest in e (by="level") or in s (by="logits"). train_share, test_share: weight of each stream's actionness in
    e. positives: share of positive snippets. agree: see `pseudo_labels`. decay: of the running mean and variance.
    spread: see `confidence`. q: see `generalized_cross_entropy`. background, consistency, semantic: weights of L_bg,
    L_con and L_sem. beta: share of the snippets in the video score. num_snippets: T, in training and at test. repeat:
    whether snippets repeat in a test video that has fewer.

    Raises:
      InputError: an option that cannot work.
    """
    terms = config.terms.split("+")
    if terms[0] != "mil" or len(set(terms)) < len(terms) or not set(terms) <= set(TERMS):
        raise InputError(f"config.method.terms={config.terms!r}: give mil and any of {', '.join(TERMS[1:])}, with +")
    if config.by not in ("level", "logits"):
        raise InputError(f"config.method.by={config.by!r}: there are level, logits")
    if config.kernel % 2 == 0 or config.top < 1 or not 0 < config.q <= 1 or config.spread <= 0:
        given = ", ".join(f"{name}={config[name]}" for name in ("kernel", "top", "q", "spread"))
        raise InputError(f"config.method: {given}: kernel must be odd, top at least 1, q in (0, 1], spread positive")
    tracks = ("state",) if "mask" in terms else ()
    phases = (Phase("train", partial(loss, config), ("net",), tracks=tracks),)
    return Method(partial(init, config), phases, partial(score, config), propose, check=check)
