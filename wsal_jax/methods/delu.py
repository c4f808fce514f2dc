"""DELU: dual-evidential learning with uncertainty (Chen et al., ECCV 2022), and CO2-Net (Hong et al., ACM MM 2021,
https://arxiv.org/abs/2107.12589), which is DELU without its two evidential losses: one model of two joined streams.

Each stream is filtered channel by channel, with a gate of its own global mean and of the other stream's local features
(cross-modal consensus, `consensus`). Each filtered stream gives an attention, and the two teach each other. Both
together are classified snippet by snippet, with background as the last class. DELU adds a loss on the evidence of the
whole video, and one that weighs snippets by the rank of their uncertainty, in a direction that turns during training.

We know the papers by their abstracts and released code, so all formulas are from the code. Where we differ from it:
- The weights of L_uct follow the ranks of the snippets by uncertainty. The code takes the sorting indices instead, the
  inverse permutation, which have nothing to do with the uncertainty of a snippet: `ranks=False`.
- A batch without a pair that shares a class has L_co = 0; in the code it is 0 / 0.
- The code keeps the two outer taps of a convolution over a sequence of length 1, which never act, and a layer that
  nothing uses. We have neither.
- Padding counts nowhere: not in means, not in the k of top-k means, not in softmaxes over time.
- Snippets of training are drawn as for all methods (`pipeline.plan`); the released parts include their upper end, too.
  The 4 videos of a batch outside pairs are those of an epoch instead of uniform ones.
- A segment may consist of snippet 0 alone. Negative scores of segments are 0 before suppression, which would raise
  them. IoU has true lengths, where the code adds a snippet. The checkpoint is the last, not the best on the test set.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax import localize
from wsal_jax.layers import conv, dropout, init_conv, top_mean
from wsal_jax.method import BATCH, Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

TINY = 1e-12
leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


# In shapes, k = c + 1: the classes and, last, the background.


class Extras(NamedTuple):
    """What `propose` wants."""

    activation: Float[Any, "n c"]
    """Attention times logits."""


class Noise(NamedTuple):
    """What dropout multiplies with; 1 without dropout."""

    gate: Float[Array, "n+1 d"]
    """Local features of both streams, and last their global ones."""
    attention: Float[Array, "2 n h/4"]
    logit: Float[Array, "2 n"]
    classifier: Float[Array, "3 n h"]
    """Of its hidden features, of what the next layer sees of them, and of that layer."""


class Output(NamedTuple):
    """What the network says of a video; entries at masked snippets are 0 but for `hidden`."""

    logits: Float[Array, "n k"]
    """The CAS before a softmax; background is last."""
    attention: Float[Array, " n"]
    """The mean of those of the streams."""
    of_stream: Float[Array, "2 n"]
    """The attention of each stream."""
    hidden: Float[Array, "n h"]
    """Features of both streams before the classifier, for L_co."""


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The groups attention (one for each stream, with its gate), classifier, and clock, which counts steps.

    Kernels are uniform of variance 2 / fan_in, biases 0. The fan_in of the gate's global layer has three taps, as
    released.

    Raises:
      InputError: the model does not have two streams.
    """
    if len(spec.dims) != 2:
        raise InputError('config.streams: DELU needs one model of two streams, such as ("rgb+flow",)')
    keys = jax.random.split(key, 5)
    first, second = spec.dims
    return {
        "attention": {
            "first": init_consensus(keys[0], first, second, config.hidden // 4),
            "second": init_consensus(keys[1], second, first, config.hidden // 4),
        },
        "classifier": {
            "fuse": init_conv(keys[2], 1, first + second, config.hidden),
            "hidden": init_conv(keys[3], 3, config.hidden, config.hidden),
            "out": init_conv(keys[4], 1, config.hidden, spec.num_classes + 1),
        },
        "clock": {"steps": jnp.zeros(())},
    }


def init_consensus(key: PRNGKeyArray, own: int, other: int, hidden: int) -> dict[str, Any]:
    """The layers of `consensus` and `attend` for a stream of `own` dimensions beside one of `other`."""
    keys = jax.random.split(key, 5)
    return {
        "global": init_conv(keys[0], 1, own, own, 2 / 3),
        "local": init_conv(keys[1], 3, other, own),
        "hidden": init_conv(keys[2], 3, own, hidden),
        "hidden_2": init_conv(keys[3], 3, hidden, hidden),
        "out": init_conv(keys[4], 1, hidden, 1),
    }


def mean(x: Float[Array, "*s n"], mask: Float[Array, " n"]) -> Float[Array, "*s"]:
    """Over the snippets that are there; 0 if there are none."""
    return (x * mask).sum(-1) / jnp.maximum(mask.sum(), 1)


def draw(config: ConfigDict, key: PRNGKeyArray | None, n: int, d: int) -> Noise:
    """The noise of a video of n snippets of d dimensions, those of both streams; few draws, which compile slowly."""
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    shapes = (n + 1, d), (2, n, config.hidden // 4), (2, n), (3, n, config.hidden)
    rates = config.dropout, config.dropout, config.logit_dropout, config.fusion_dropout
    return Noise(*(dropout(k, jnp.ones(shape), rate) for k, shape, rate in zip(keys, shapes, rates)))


def consensus(
    layers: dict[str, Any],
    own: Float[Array, "n d"],
    other: Float[Array, "n e"],
    mask: Float[Array, " n"],
    noise: Float[Array, "m d"],
) -> Float[Array, "n d"]:
    """A stream filtered by its own mean over time and the other's local features (CCM). `noise`: see `Noise.gate`."""
    of_video = leaky_relu(conv(layers["global"], mean(own.T, mask)[None], jnp.ones(1)))
    of_snippet = leaky_relu(conv(layers["local"], other, mask))
    return nn.sigmoid(of_snippet * noise[:-1] * of_video * noise[-1]) * own


def attend(
    layers: dict[str, Any],
    filtered: Float[Array, "n d"],
    mask: Float[Array, " n"],
    noise: Float[Array, "n h"],
    logit_noise: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The attention of a filtered stream. Dropout acts on the logit, too, as released: half of them are 0."""
    hidden = leaky_relu(conv(layers["hidden"], filtered, mask)) * noise
    logit = conv(layers["out"], leaky_relu(conv(layers["hidden_2"], hidden, mask)), mask)[:, 0]
    return nn.sigmoid(logit * logit_noise)


def smooth(x: Float[Array, "n c"], mask: Float[Array, " n"], width: int) -> Float[Array, "n c"]:
    """The mean over a window, which counts zeros where masked and beyond the ends: 1 becomes 7/13 there (width 13)."""
    x = x * mask[:, None]
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (width, 1), (1, 1), "SAME")
    return total / width * mask[:, None]


def forward(config: ConfigDict, params: Params, video: Video, key: PRNGKeyArray | None = None) -> Output:
    """The network; without a key no dropout."""
    mask, of, layers = video.mask, params["attention"], params["classifier"]
    features = jnp.where(mask[:, None] > 0, video.features, 0)
    noise = draw(config, key, *features.shape)
    split = len(of["first"]["global"]["bias"])
    first, second = features[:, :split], features[:, split:]
    filtered = (
        consensus(of["first"], first, second, mask, noise.gate[:, :split]),
        consensus(of["second"], second, first, mask, noise.gate[:, split:]),
    )
    of_stream = [
        attend(of[name], filtered[i], mask, noise.attention[i], noise.logit[i])
        for i, name in enumerate(("first", "second"))
    ]
    hidden = leaky_relu(conv(layers["fuse"], jnp.concatenate(filtered, axis=1), mask)) * noise.classifier[0]
    again = leaky_relu(conv(layers["hidden"], hidden * noise.classifier[1], mask)) * noise.classifier[2]
    logits = conv(layers["out"], again, mask)
    together = jnp.column_stack([logits, *of_stream])
    together = smooth(together, mask, config.smooth) if config.smooth > 1 else together * mask[:, None]
    of_stream = together[:, -2:].T
    return Output(together[:, :-2], of_stream.mean(0), of_stream, hidden)


def suppress(output: Output) -> Float[Array, "n k"]:
    """The suppressed CAS s-: logits drawn towards the least of their snippet where the attention is low."""
    least = output.logits.min(axis=1, keepdims=True)
    return output.attention[:, None] * (output.logits - least) + least


def classification(logits: Float[Array, " k"], labels: Float[Array, " c"], background: float | int) -> Float[Array, ""]:
    """Cross-entropy of a softmax with the labels and the background's, divided by about their sum."""
    target = jnp.append(labels, background)
    return -(target / (target.sum() + 1e-4) * nn.log_softmax(logits)).sum()


def partners(size: int, pairs: int) -> list[int]:
    """The other video of each place of a batch in its pair (`pipeline.plan`); itself in the places without one."""
    return [i ^ 1 if i < 2 * pairs and i ^ 1 < size else i for i in range(size)]


def cosine_distance(x: Float[Array, "h c"], y: Float[Array, "h c"]) -> Float[Array, " c"]:
    """1 - cosine of each column."""
    norms = [jnp.sqrt(jnp.maximum((z**2).sum(0), TINY)) for z in (x, y)]
    return 1 - (x * y).sum(0) / (norms[0] * norms[1])


def co_activity(
    suppressed: Float[Array, "n k"], hidden: Float[Array, "n h"], video: Video, pairs: int
) -> Float[Array, ""]:
    """L_co: of two videos that share a class, the features where it is active are closer to each other than to those
    elsewhere, by a margin of 0.5.

    The same for all videos of a batch: the mean over all pairs and the classes that they share, 0 if there are none.
    Each video of a pair brings the hinge of its own active features.
    """
    there = video.mask[:, None]
    active = nn.softmax(jnp.where(there > 0, suppressed, -1e9), axis=0) * there
    high = hidden.T @ active[:, :-1]
    low = hidden.T @ ((1 - active[:, :-1]) * there) / jnp.maximum(there.sum() - 1, 1)
    other = partners(jax.lax.axis_size(BATCH), pairs)
    places = list(enumerate(other))
    of_other = jax.lax.ppermute((high, low, video.labels), BATCH, places)
    paired = jnp.array([i != j for i, j in places])[jax.lax.axis_index(BATCH)]
    weight = paired * video.labels * of_other[2]
    hinge = nn.relu(cosine_distance(high, of_other[0]) - cosine_distance(high, of_other[1]) + 0.5)
    total, count = jax.lax.pmean(((weight * hinge).sum(), weight.sum()), BATCH)
    return total / jnp.maximum(count, TINY)


def mutual(of_stream: Float[Array, "2 n"], mask: Float[Array, " n"]) -> Float[Array, ""]:
    """L_mut: each attention learns from the other, which has no gradient there."""
    return 0.5 * mean((of_stream - jax.lax.stop_gradient(of_stream[::-1])) ** 2, mask).sum()


def disagreement(attention: Float[Array, "*s n"], background: Float[Array, " n"]) -> Float[Array, "*s n"]:
    """How far attention and background are from excluding each other, at each snippet: |1 - a - b|."""
    return jnp.abs(1 - attention - background)


def evidential(config: ConfigDict, logits: Float[Array, " c"], labels: Float[Array, " c"]) -> Float[Array, ""]:
    """L_edl of the video: the labels should have much evidence, the less so where the evidence is uncertain.

    With `edl_form` "squared", as released for ActivityNet, the squared error of the expected probabilities instead.
    """
    if config.edl_form == "squared":
        alpha = nn.relu(logits) + 1
        return ((labels - alpha / alpha.sum()) ** 2).sum()
    alpha = jnp.exp(logits.clip(-10, 10)) + 1
    total = alpha.sum()
    uncertainty = jax.lax.stop_gradient(len(labels) / total)
    share = labels / alpha
    share = labels.sum() * share / jnp.maximum(share.sum(), TINY)
    return (1 - uncertainty) * (share * (jnp.log(total) - jnp.log(alpha))).sum()


def rank_weights(
    config: ConfigDict, suppressed: Float[Array, "n k"], mask: Float[Array, " n"], done: Float[Array, ""]
) -> Float[Array, " n"]:
    """The weight of each snippet in L_uct, without gradient; their mean over the snippets that are there is 1.

    In the beginning (`done` = 0) uncertain snippets have up to 1 + amplitude tanh 1, in the end (1) as much below 1.
    The uncertainty is C / S as released: S adds up the background's evidence, too, but C does not count it, so it is at
    most C / (C + 1).
    """
    suppressed = jax.lax.stop_gradient(suppressed)
    total = (jnp.exp(suppressed.clip(-10, 10)) + 1).sum(axis=1)
    uncertainty = (suppressed.shape[1] - 1) / total
    order = jnp.argsort(jnp.where(mask > 0, uncertainty, jnp.inf))
    place = jnp.argsort(order) if config.ranks else order  # released: sorting indices in place of ranks
    theta = 2 * (place + 0.5) / jnp.maximum(mask.sum(), 1) - 1
    return 1 + config.amplitude * jnp.tanh(theta * (1 - 2 * done))


def loss(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Params]]:
    """The sum of the losses of one video, with the weights of `config`; L_co is the batch's."""
    output = forward(config, params, video, step.key)
    suppressed, mask, labels = suppress(output), video.mask, video.labels
    both = jnp.stack([output.attention, *output.of_stream])
    background = nn.softmax(output.logits)[:, -1]
    terms = {
        "original": (1.0, classification(top_mean(output.logits, mask, config.share), labels, 1)),
        "suppressed": (1.0, classification(top_mean(suppressed, mask, config.share), labels, 0)),
        "co_activity": (config.co, co_activity(suppressed, output.hidden, video, config.pairs)),
        "mutual": (config.mutual, mutual(output.of_stream, mask)),
        "norm": (config.norm, mean(both, mask).mean()),
        "guide": (config.guide, mean(disagreement(both, background), mask).mean()),
    }
    if config.edl:
        of_video = top_mean(suppressed[:, :-1], mask, config.edl_share, output.attention[:, None])
        terms["evidence"] = config.edl, evidential(config, of_video, labels)
    if config.uct:
        weights = rank_weights(config, suppressed, mask, params["clock"]["steps"] / config.steps)
        terms["uncertain"] = config.uct, mean(weights * disagreement(both, background), mask).mean()
    total = sum(weight * value for weight, value in terms.values())
    metrics = {name: value for name, (_, value) in terms.items()}
    clock = {"clock": {"steps": params["clock"]["steps"] + 1}}
    return total, ({"loss": total, **metrics}, clock)


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """The video score is the softmax of the mean of the n / 10 largest a_t s_tc of each class, without background.

    Training suppresses by s-, testing by s times a, as released. The CAS is a_t softmax(s_t)_c.
    """
    output = forward(config, params, video)
    there, attention = video.mask[:, None], output.attention[:, None]
    activation = attention * output.logits
    video_score = nn.softmax(top_mean(activation, video.mask, 10))[:-1]
    evidence = nn.softmax(output.logits)[:, :-1] * there
    return Scores(video_score, attention * evidence, output.attention, Extras(activation[:, :-1]), evidence)


def method(config: ConfigDict) -> Method:
    """DELU with the options of `config`.

    hidden: units of the classifier; the attentions have a quarter. dropout: of the gates and attentions; logit_dropout:
    of the attention's logit; fusion_dropout: of the classifier. smooth: width of the average over time of all outputs,
    1 for none. share, edl_share: k of the top-k means is the number of snippets divided by it. co, mutual, norm, guide,
    edl, uct: weights of the losses; edl = uct = 0 is CO2-Net. edl_form: log, or squared. amplitude: of the weights of
    L_uct. ranks: true ranks in them, or the sorting indices as released. pairs, steps: those of the whole config.

    Raises:
      InputError: an unknown form of L_edl, or an even width of the average.
    """
    if config.edl_form not in ("log", "squared"):
        raise InputError(f"config.method.edl_form={config.edl_form!r}: there are log, squared")
    if config.smooth < 1 or config.smooth % 2 == 0:
        raise InputError(f"config.method.smooth={config.smooth}: give an odd number")
    phases = (Phase("train", partial(loss, config), ("attention", "classifier"), tracks=("clock",)),)
    return Method(partial(init, config), phases, partial(score, config), propose)


def propose(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """`localize.by_contrast`: runs of attention above `thresholds`, the same for all classes, scored by a_t s_tc.

    Then Gaussian `soft_nms` of each class over all thresholds and models, or `nms` if its sigma is 0.

    Args:
      models: scores with `Extras`; options `reject`, `thresholds` and `prior`, the weight of the video score.
      fused: its options `soft_nms` and `nms` are used.
      meta: of the same video.
    """
    found = []
    for scores, own in models:
        attention = np.asarray(scores.attention, np.float64)[:, None]
        activation = np.asarray(scores.extras.activation, np.float64)[: meta.length]
        found.append(localize.by_contrast(attention, activation, scores.video_score, meta, own))
    joined, options = localize.join(found), fused.options
    if not options.soft_nms:
        return localize.nms_by_class(joined, options.nms)
    return localize.rescore_by_class(joined, partial(localize.soft_nms, sigma=options.soft_nms))
