"""DGAM: discriminative and generative attention modelling (Shi et al., CVPR 2020, https://arxiv.org/abs/2003.12424).

One model per stream.

Two phases alternate. `cvae` trains a conditional variational auto-encoder (CVAE) of features given the attention.
`attention` trains attention and classifier to classify (L_d), to agree with the class activation (L_guide), and to give
each snippet the attention from which the frozen CVAE reconstructs its feature best (L_re).

Where the paper is silent, we follow the authors' code:
- Squared errors are means over snippets and dimensions, and the KL divergence is a mean over snippets and latent
  dimensions; the weights of section 4.2 assume this.
- L_guide passes no gradient through the class activation.
- The weight eta of the flanks is 0.3.
- Background is the last class (only the order of classes depends on it).
- A video of several classes has the target y / sum(y); L_guide uses the most probable of them at each snippet.
We test on all snippets of a video rather than on T_max of them, because each snippet is scored independently; only the
released rule samples.

Products with all features of a batch dominate the cost of a step, so each is computed once: pooled logits are means of
the snippets' logits, and reconstruction errors are computed without the reconstructions (`squared_error`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import nn
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter1d

from wsal_jax import localize
from wsal_jax.layers import attend, dense, drop_dimensions, init_attention, init_dense
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, Meta, Model, Scores, Video

TINY = 1e-6


class Extras(NamedTuple):
    """The inputs of `propose`; k = c + 1 classes, the last of which is background."""

    logits: Float[Any, "n k"]
    """Logits of each snippet."""
    tcam: Float[Any, "n c"]
    """Sigmoid of the logits without bias, as in the authors' code."""


def dense_given(layer: Params, x: Float[Array, "n i"], given: Float[Array, " n"]) -> Float[Array, "n o"]:
    """A fully-connected layer of [x, given] without concatenating them; `given` is the last input."""
    kernel = layer["kernel"]
    # A matrix product, because XLA on CPU would fuse the gradient of a broadcast into one slow loop with others.
    return x @ kernel[:-1] + given[:, None] @ kernel[-1:] + layer["bias"]


def products(x: Float[Array, "n i"], *kernels: Float[Array, "i _"]) -> list[Float[Array, "n _"]]:
    """`x @ kernel` for each kernel, in one product, whose gradient is one product too.

    A narrow kernel is slow on its own but costs almost nothing beside a wide one.
    """
    borders = np.cumsum([kernel.shape[1] for kernel in kernels])[:-1].tolist()
    return jnp.split(x @ jnp.concatenate(kernels, axis=1), borders, axis=1)


def init_layers(key: PRNGKeyArray, **sizes: tuple[int, int]) -> Params:
    """Fully-connected layers by name, each of size (inputs, outputs)."""
    keys = jax.random.split(key, len(sizes))
    return {name: init_dense(k, *size) for k, (name, size) in zip(keys, sizes.items())}


def encode(
    encoder: Params, features: Float[Array, "n d"], attention: Float[Array, " n"]
) -> tuple[Float[Array, "n z"], Float[Array, "n z"]]:
    """Mean and log variance of q(z | x, lambda).

    Args:
      encoder: the layers hidden0 (d + 1 inputs), hidden1 and out.
      features: x.
      attention: lambda.
    """
    hidden = nn.relu(dense_given(encoder["hidden0"], features, attention))
    return tuple(jnp.split(dense(encoder["out"], nn.relu(dense(encoder["hidden1"], hidden))), 2, axis=-1))


def decode(
    decoder: Params, z: Float[Array, "n z"], attention: Float[Array, " n"], r: float = 0.0
) -> Float[Array, "n h"]:
    """The last hidden layer of f(lambda, z + r lambda); the layer "out" of it gives the reconstruction.

    Args:
      decoder: the layers hidden0 (z + 1 inputs), hidden1 and out.
      z: the latent code.
      attention: lambda.
      r: r lambda is added to every dimension of the code.
    """
    kernel = decoder["hidden0"]["kernel"]
    # r lambda is equal in all dimensions of z, so adding it to the kernel saves the product of its gradient.
    layer = {**decoder["hidden0"], "kernel": kernel.at[-1].add(r * kernel[:-1].sum(0))}
    return nn.relu(dense(decoder["hidden1"], nn.relu(dense_given(layer, z, attention))))


def squared_error(out: Params, hidden: Float[Array, "n h"], features: Float[Array, "n d"]) -> Float[Array, " n"]:
    """|x - dense(out, hidden)|^2 / d of each snippet, without computing the reconstruction.

    If K is the kernel with the bias as its last row, and u = [hidden, 1], it is |x|^2 - 2 u K x + u K K' u. This needs
    one product with the features; its gradient needs another one for K and none for `hidden`. The direct form needs one
    more each. Float32 loses errors below 1e-6 |x|^2, which a code of 128 numbers for 1,024 does not reach.

    Args:
      out: the last layer of the decoder.
      hidden: its input (`decode`).
      features: x.
    """
    kernel = jnp.concatenate([out["kernel"], out["bias"][None]])
    u = jnp.concatenate([hidden, jnp.ones_like(hidden[:, :1])], axis=1)
    # The gradient of u K K' u with respect to u is 2 u K K', which is known; autodiff would compute it again.
    fixed = jax.lax.stop_gradient(u)
    back = fixed @ (kernel @ kernel.T)
    square = fixed * back + 2 * (u - fixed) * jax.lax.stop_gradient(back)
    along = jnp.sum(square - 2 * u * (features @ kernel.T), axis=1)
    return (jnp.sum(features**2, axis=1) + along) / features.shape[1]


def masked_mean(x: Float[Array, " n"], mask: Float[Array, " n"]) -> Float[Array, ""]:
    """The mean over unmasked snippets; 0 if all are masked."""
    return (x * mask).sum() / jnp.maximum(mask.sum(), 1)


def kl_divergence(
    mean: Float[Array, "n z"], log_variance: Float[Array, "n z"], prior: Float[Array, " n"]
) -> Float[Array, " n"]:
    """KL(N(mean, variance) || N(prior 1, I)) / z of each snippet, in closed form.

    Args:
      mean: mean of q.
      log_variance: log variance of q.
      prior: r lambda, the mean of p in all dimensions.
    """
    return jnp.mean(jnp.exp(log_variance) + (mean - prior[:, None]) ** 2 - 1 - log_variance, axis=1) / 2


def cvae_loss(
    encoder: Params,
    decoder: Params,
    features: Float[Array, "n d"],
    attention: Float[Array, " n"],
    mask: Float[Array, " n"],
    noise: Float[Array, "n z"],
    r: float,
    beta: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Eq. 10 with one sample z = mean + noise * deviation: reconstruction error and KL divergence times `beta`.

    Both are means over unmasked snippets and over dimensions.

    Args:
      encoder: see `encode`.
      decoder: see `decode`.
      features: x, the target of the reconstruction.
      attention: lambda, the condition.
      mask: 1 at snippets that count.
      noise: standard normal.
      r: the prior is N(r lambda, I).
      beta: weight of the divergence.
    """
    # Padding may have large values, whose exponential would be infinite.
    mean, log_variance = (x * mask[:, None] for x in encode(encoder, features, attention))
    hidden = decode(decoder, mean + noise * jnp.exp(log_variance / 2), attention)
    error = masked_mean(squared_error(decoder["out"], hidden, features), mask)
    return error, beta * masked_mean(kl_divergence(mean, log_variance, r * attention), mask)


def reconstruction_loss(
    decoder: Params,
    features: Float[Array, "n d"],
    attention: Float[Array, " n"],
    mask: Float[Array, " n"],
    noise: Float[Array, "n z"],
    r: float,
) -> Float[Array, ""]:
    """L_re, eqs. 11 and 12: the error from one sample z = r lambda + noise of the prior.

    The attention gets a gradient through z and as an input of the decoder. The decoder is frozen because the phase does
    not train its group.

    Args:
      decoder: see `decode`.
      features: x.
      attention: lambda.
      mask: 1 at snippets that count.
      noise: standard normal.
      r: the prior is N(r lambda, I).
    """
    hidden = decode(decoder, noise, attention, r)
    return masked_mean(squared_error(decoder["out"], hidden, features), mask)


def pool(
    weights: Float[Array, " n"], activation: Float[Array, "n k"], bias: Float[Array, " k"], epsilon: float = 0.0
) -> Float[Array, " k"]:
    """Logits of the weighted mean feature, eqs. 4 and 5.

    Args:
      weights: one per snippet, 0 at padding.
      activation: features @ kernel, without the bias.
      bias: the bias of the classifier.
      epsilon: added to the sum of the weights.
    """
    return weights @ activation / jnp.maximum(weights.sum() + epsilon, TINY) + bias


def discriminative_losses(
    activation: Float[Array, "n k"],
    bias: Float[Array, " k"],
    attention: Float[Array, " n"],
    mask: Float[Array, " n"],
    labels: Float[Array, " c"],
    epsilon: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """L_fg and L_bg of eq. 6: -log p(y | x_fg) and -log p(background | x_bg), of k = c + 1 classes.

    Args:
      activation: features @ kernel, without the bias.
      bias: the bias of the classifier.
      attention: lambda.
      mask: 1 at snippets that count.
      labels: y; if all are 0, L_fg is 0.
      epsilon: see `pool`; for x_fg only.
    """
    target = jnp.append(labels / jnp.maximum(labels.sum(), 1), 0.0)
    foreground = optax.softmax_cross_entropy(pool(attention * mask, activation, bias, epsilon), target)
    background = -nn.log_softmax(pool((1 - attention) * mask, activation, bias))[-1]
    return foreground, background


def smooth(x: Float[Array, "n k"], sigma: float) -> Float[Array, "n k"]:
    """Gaussian filter along axis 0, truncated at 4 sigma and reflected at the ends, like SciPy's
    `gaussian_filter1d`."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = jnp.pad(x, ((radius, radius), (0, 0)), mode="symmetric")
    return sum(w * padded[i : i + len(x)] for i, w in enumerate((weights / weights.sum()).tolist()))


def guide_loss(
    activation: Float[Array, "n k"],
    attention: Float[Array, " n"],
    mask: Float[Array, " n"],
    labels: Float[Array, " c"],
    sigma: float,
) -> Float[Array, ""]:
    """L_guide, eqs. 13 to 15: the distance between the attention and the smoothed TCAM, which has no gradient.

    Args:
      activation: w_c x_t of the classes and, last, background; without the classifier's bias, as in the equations and
        in the authors' code.
      attention: lambda.
      mask: masked snippets enter the filter with activation 0.
      labels: y; if there are several classes, the foreground is the most probable one at a snippet, after smoothing.
      sigma: standard deviation of the filter, in snippets.
    """
    probability = nn.softmax(jax.lax.stop_gradient(activation))[:, :-1] * mask[:, None]
    tcam = smooth(probability, sigma)
    foreground, background = (tcam * labels).max(1), tcam.sum(1)
    return masked_mean(jnp.abs(attention - foreground) + jnp.abs(attention - background), mask)


def attend_and_classify(
    params: Params, features: Float[Array, "n d"], mask: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, "n k"]]:
    """The attention, and the class activation without the bias."""
    layers, kernel = params["attention"], params["classifier"]["kernel"]
    hidden, activation = products(features, layers["hidden"]["kernel"], kernel)
    logits = dense(layers["out"], nn.relu(hidden + layers["hidden"]["bias"]))
    return nn.sigmoid(logits)[:, 0] * mask, activation


def warm(config: ConfigDict, epoch: Int[Array, ""]) -> Float[Array, ""] | float:
    """The weight of a warmed-up term, which rises from 0 to 1 in `config.warmup` cycles."""
    return jnp.minimum(epoch / config.warmup, 1) if config.warmup else 1.0


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The groups attention and classifier and, if L_re is used, encoder and decoder."""
    keys = jax.random.split(key, 4)
    d, k = sum(spec.dims), spec.num_classes + 1
    z, h = config.latent, config.cvae_hidden
    params = {
        "attention": init_attention(keys[0], d, config.hidden),
        "classifier": init_dense(keys[1], d, k),
    }
    if config.gamma1 > 0:
        params["encoder"] = init_layers(keys[2], hidden0=(d + 1, h), hidden1=(h, h), out=(h, 2 * z))
        params["decoder"] = init_layers(keys[3], hidden0=(z + 1, h), hidden1=(h, h), out=(h, d))
    return params


def loss_cvae(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 10, warmed up, without a gradient for the attention."""
    features, mask = video.features, video.mask
    attention = jax.lax.stop_gradient(attend(params["attention"], features, nn.relu) * mask)
    noise = jax.random.normal(step.key, (len(mask), config.latent), features.dtype)
    error, divergence = cvae_loss(
        params["encoder"], params["decoder"], features, attention, mask, noise, config.r, config.beta
    )
    total = error + divergence
    metrics = {"loss": total, "reconstruction": error, "divergence": divergence}
    return config.cvae_weight * warm(config, step.epoch) * total, metrics


def loss_attention(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 16; L_re is warmed up if `config.warm_reconstruction`."""
    features, mask = video.features, video.mask
    noise_key, dropout_key = jax.random.split(step.key)
    seen = drop_dimensions(dropout_key, features, config.dropout)
    attention, activation = attend_and_classify(params, seen, mask)
    bias = params["classifier"]["bias"]
    foreground, background = discriminative_losses(
        activation, bias, attention, mask, video.labels, config.foreground_epsilon
    )
    total = config.foreground * foreground + config.alpha * background
    metrics = {"foreground": foreground, "background": background, "attention": masked_mean(attention, mask)}
    if config.gamma2:
        metrics["guide"] = guide_loss(activation, attention, mask, video.labels, config.sigma)
        total += config.gamma2 * metrics["guide"]
    if config.gamma1 > 0:
        noise = jax.random.normal(noise_key, (len(mask), config.latent), features.dtype)
        metrics["reconstruction"] = reconstruction_loss(params["decoder"], features, attention, mask, noise, config.r)
        weight = warm(config, step.epoch) if config.warm_reconstruction else 1.0
        total += config.gamma1 * weight * metrics["reconstruction"]
    return total, {"loss": total, **metrics}


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """The video score is the softmax of the logits of x_fg (without background); the CAS is attention times TCAM.

    TCAM is the softmax over classes and background of eq. 13, not smoothed; in the released rule it is a sigmoid.
    Neither includes the classifier's bias. Evidence, the classifier's output for a single snippet, includes it.
    """
    mask = video.mask[:, None]
    attention, activation = attend_and_classify(params, video.features, video.mask)
    bias = params["classifier"]["bias"]
    video_score = nn.softmax(pool(attention, activation, bias))[:-1]
    evidence = nn.softmax(activation + bias)[:, :-1] * mask
    extras = Extras((activation + bias) * mask, nn.sigmoid(activation)[:, :-1] * mask)
    tcam = extras.tcam if config.proposals == "released" else nn.softmax(activation)[:, :-1] * mask
    return Scores(video_score, attention[:, None] * tcam, attention, extras, evidence)


def method(config: ConfigDict) -> Method:
    """DGAM with the options of `config`.

    hidden: units of the attention. latent: dimensions of z. cvae_hidden: units of the CVAE's layers. r, beta: of the
    CVAE. foreground, alpha, gamma1, gamma2: the weights of L_fg, L_bg, L_re and L_guide. sigma: of the smoothing, in
    snippets. warmup: cycles in which L_cvae and, with warm_reconstruction, L_re reach their full weight. dropout: share
    of the feature dimensions of a training video that attention and classifier do not see. foreground_epsilon,
    cvae_weight, proposals: see configs/dgam.py.

    With gamma1 = 0 there is no CVAE and no phase for it.
    """
    phases = [Phase("attention", partial(loss_attention, config), ("attention", "classifier"))]
    if config.gamma1 > 0:
        phases.insert(0, Phase("cvae", partial(loss_cvae, config), ("encoder", "decoder")))
    rule = as_released if config.proposals == "released" else by_attention
    return Method(partial(init, config), tuple(phases), partial(score, config), partial(propose, rule))


def propose(
    rule: Callable[[Model, Sequence[Model], Meta], Detections], models: Sequence[Model], fused: Model, meta: Meta
) -> Detections:
    """Section 3.5: finds segments in each model separately, then applies `localize.nms` to those of all models.

    It searches for a class in the models whose video score for it is high enough (`localize.predicted_classes`). Scores
    are differences of logits (as released, of activations) and can be negative. `soft_nms` is not used.

    Args:
      rule: finds and scores the segments of a model: `by_attention` or `as_released`.
      models: the scores of each model, with `Extras`, and its options.
      fused: only its option `nms` is used.
      meta: the Meta of the video.
    """
    found = [rule(own, [*models[:i], *models[i + 1 :]], meta) for i, own in enumerate(models)]
    return localize.nms_by_class(localize.join(found), fused.options.nms)


def by_attention(own: Model, others: Sequence[Model], meta: Meta) -> Detections:
    """Runs of snippets with attention above one of `thresholds` (absolute), scored by eq. 17.

    s(t_s, t_e, c) is the logit, before the softmax, of the attention-weighted mean feature from t_s to t_e. If a flank
    covers part of a snippet, that part counts. A flank outside the video, or without attention, contributes 0.

    Args:
      own: the model's scores, and options `reject`, `thresholds` and `eta`, the weight of the flanks.
      others: not used.
      meta: the Meta of the video.
    """
    scores, options = own
    attention = np.asarray(scores.attention, np.float64)
    logits = np.asarray(scores.extras.logits[: meta.length, :-1], np.float64)
    runs = localize.runs_above(attention, options.thresholds)
    found = []
    for c in localize.predicted_classes(scores.video_score, options.reject):

        def mean(runs, weighted=attention * logits[:, c]):
            """s of eq. 17."""
            weight = localize.run_sums(attention, runs)
            return np.divide(localize.run_sums(weighted, runs), weight, out=np.zeros(len(runs)), where=weight > TINY)

        before, after = (mean(flank) for flank in localize.flanks(runs, np.diff(runs) / 4))
        score = mean(runs) - options.eta * (before + after)
        found.append(localize.detections(runs, c, score, meta))
    return localize.join(found)


def as_released(own: Model, others: Sequence[Model], meta: Meta) -> Detections:
    """The rule of the authors' code, with one other model (the other stream) or none.

    It samples n snippets evenly from the video, at least `min_snippets` and at most `max_snippets` (snippets of a short
    video repeat). A class activation is `attention * sigmoid(features @ kernel)`. Signals are interpolated between
    snippets, with `upsample` values for each. Segments are the runs where `0.8 * own activation + 0.2 * attention^2`
    (smoothed by a Gaussian of `smooth` values unless that is 0) exceeds `mask_threshold`. The score of a value is the
    attention times the streams' mean activation, where this stream has the weight `own_share` and both activations use
    this stream's attention. The score of a segment is the mean over it, minus `eta` times the means over its flanks. A
    flank has a quarter of the segment's length (rounded down) plus 1; a flank at the end of the video contributes 0.

    We differ in two points: class 0 is treated like other classes, and a segment may consist of the first value only.
    The classes are predicted from all snippets.

    Args:
      own: this stream's scores and options.
      others: the scores and options of the other streams.
      meta: the Meta of the video.
    """
    scores, options = own
    length = meta.length
    n = int(np.clip(length, options.min_snippets, options.max_snippets))
    chosen = np.arange(n) * length // n
    attention = np.asarray(scores.attention, np.float64)[chosen, None]
    classes = localize.predicted_classes(scores.video_score, options.reject)

    def activation(model):
        return attention * np.asarray(model.scores.extras.tcam, np.float64)[chosen][:, classes]

    signal = activation(own)
    share = options.own_share if others else 1.0
    mixed = share * signal + (1 - share) * sum(activation(other) for other in others) / max(len(others), 1)
    level = localize.upsample(0.8 * signal + 0.2 * attention**2, options.upsample)
    if options.smooth:
        level = gaussian_filter1d(level, options.smooth, axis=0)
    values = localize.upsample(attention * mixed, options.upsample)
    found = []
    for i, c in enumerate(classes):
        runs = localize.components(level[:, i] > options.mask_threshold)
        around = localize.flanks(runs, np.diff(runs) // 4 + 1)
        before, after = (localize.run_means(values[:, i], flank) for flank in around)
        score = localize.run_means(values[:, i], runs) - options.eta * (before + after)
        found.append(localize.detections(runs * (length / len(level)), c, score, meta))
    return localize.join(found)
