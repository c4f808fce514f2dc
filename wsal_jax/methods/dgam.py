"""DGAM: discriminative and generative attention modelling (Shi et al., CVPR 2020, https://arxiv.org/abs/2003.12424).

One model per stream.

Two phases take turns. `cvae` teaches a conditional variational auto-encoder what features look like at each value of
the attention; `attention` trains attention and classifier to classify (L_d), to agree with the class activation
(L_guide), and to give each snippet the attention from which the CVAE, frozen, reconstructs its feature best (L_re).

Where the paper is silent, as the authors' code does: squared errors are means over snippets and dimensions and the KL
divergence is one over snippets and latent dimensions (the weights of section 4.2 are made for that); no gradient goes
through the class activation of L_guide; the flanks' weight eta is 0.3; background is the last class, which is only a
matter of order. A video of several classes has the target y / sum(y), and the best of them in L_guide. Testing uses all
snippets of a video, not T_max of them, since each snippet is scored by itself; only the released rule samples.

A product with all features of a batch is what a step costs, so each is done once: pooled logits are means of the
snippets' logits, and reconstructions are not made to know how far they are off (`squared_error`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import nn
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter1d

from wsal_jax import localize
from wsal_jax.layers import attend, dense, drop_dimensions, init_attention, init_dense
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, Meta, Model, Scores, Video

TINY = 1e-6


class Extras(NamedTuple):
    """What `propose` wants; k = c + 1 classes, the last of which is background."""

    logits: Float[Any, "n k"]
    """Of each snippet."""
    tcam: Float[Any, "n c"]
    """Their sigmoid, without bias, as the authors' code has it."""


def dense_given(layer: Params, x: Float[Array, "n i"], given: Float[Array, " n"]) -> Float[Array, "n o"]:
    """A fully-connected layer of [x, given], which is not put together: `given` is the last input."""
    kernel = layer["kernel"]
    # A product for the sake of its gradient, a sum that XLA would put into one slow loop with others on a CPU.
    return x @ kernel[:-1] + given[:, None] @ kernel[-1:] + layer["bias"]


def products(x: Float[Array, "n i"], *kernels: Float[Array, "i _"]) -> list[Float[Array, "n _"]]:
    """`x @ kernel` of each kernel, in one product, whose gradient is one as well.

    Together with a wide kernel a narrow one costs next to nothing, and much for its size alone.
    """
    borders = np.cumsum([kernel.shape[1] for kernel in kernels])[:-1].tolist()
    return jnp.split(x @ jnp.concatenate(kernels, axis=1), borders, axis=1)


def init_layers(key: PRNGKeyArray, **sizes: tuple[int, int]) -> Params:
    """Fully-connected layers by name, of (inputs, outputs)."""
    keys = jax.random.split(key, len(sizes))
    return {name: init_dense(k, *size) for k, (name, size) in zip(keys, sizes.items())}


def encode(
    encoder: Params, features: Float[Array, "n d"], attention: Float[Array, " n"]
) -> tuple[Float[Array, "n z"], Float[Array, "n z"]]:
    """Mean and log variance of q(z | x, lambda).

    Args:
      encoder: the layers hidden0, of d + 1 inputs, hidden1 and out.
      features: x.
      attention: lambda.
    """
    hidden = nn.relu(dense_given(encoder["hidden0"], features, attention))
    return tuple(jnp.split(dense(encoder["out"], nn.relu(dense(encoder["hidden1"], hidden))), 2, axis=-1))


def decode(
    decoder: Params, z: Float[Array, "n z"], attention: Float[Array, " n"], r: float = 0.0
) -> Float[Array, "n h"]:
    """The last hidden layer of f(lambda, z + r lambda); the reconstruction is the layer "out" of it.

    Args:
      decoder: the layers hidden0, of z + 1 inputs, hidden1 and out.
      z: the code.
      attention: lambda.
      r: what is added to the code for a lambda of 1.
    """
    kernel = decoder["hidden0"]["kernel"]
    # r lambda is the same in all dimensions of z, so that its gradient needs no product.
    layer = {**decoder["hidden0"], "kernel": kernel.at[-1].add(r * kernel[:-1].sum(0))}
    return nn.relu(dense(decoder["hidden1"], nn.relu(dense_given(layer, z, attention))))


def squared_error(out: Params, hidden: Float[Array, "n h"], features: Float[Array, "n d"]) -> Float[Array, " n"]:
    """|x - dense(out, hidden)|^2 / d of each snippet, without making the reconstruction.

    With K the kernel and the bias below it, and u = [hidden, 1]: |x|^2 - 2 u K x + u K K' u. It takes one product with
    the features, and its gradient another one for K and none for `hidden`, where the direct form takes one more each.
    Float32 loses what is below 1e-6 |x|^2, of which there is none in a code of 128 numbers for 1,024.

    Args:
      out: the last layer of the decoder.
      hidden: what it is given (`decode`).
      features: x.
    """
    kernel = jnp.concatenate([out["kernel"], out["bias"][None]])
    u = jnp.concatenate([hidden, jnp.ones_like(hidden[:, :1])], axis=1)
    # The gradient of u K K' u with respect to u is 2 u K K', which is there; without this, it would be made anew.
    fixed = jax.lax.stop_gradient(u)
    back = fixed @ (kernel @ kernel.T)
    square = fixed * back + 2 * (u - fixed) * jax.lax.stop_gradient(back)
    along = jnp.sum(square - 2 * u * (features @ kernel.T), axis=1)
    return (jnp.sum(features**2, axis=1) + along) / features.shape[1]


def masked_mean(x: Float[Array, " n"], mask: Float[Array, " n"]) -> Float[Array, ""]:
    """The mean over the snippets there are; 0 if there is none."""
    return (x * mask).sum() / jnp.maximum(mask.sum(), 1)


def kl_divergence(
    mean: Float[Array, "n z"], log_variance: Float[Array, "n z"], prior: Float[Array, " n"]
) -> Float[Array, " n"]:
    """KL(N(mean, variance) || N(prior 1, I)) / z of each snippet, in closed form.

    Args:
      mean: of q.
      log_variance: of q.
      prior: the mean of p in all dimensions, r lambda.
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

    Both are means over the snippets there are, and over dimensions.

    Args:
      encoder: see `encode`.
      decoder: see `decode`.
      features: x, which is to be reconstructed.
      attention: lambda, the condition.
      mask: 1 for each snippet there is.
      noise: standard normal.
      r: the prior is N(r lambda, I).
      beta: weight of the divergence.
    """
    # What padding holds may be large, and the exponential of it infinite.
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

    The attention has a gradient through z and as an input of the decoder. The decoder is frozen in that its group is
    none of those that the phase trains.

    Args:
      decoder: see `decode`.
      features: x.
      attention: lambda.
      mask: 1 for each snippet there is.
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
      weights: of the snippets, 0 at padding.
      activation: features @ kernel, without the bias.
      bias: of the classifier.
      epsilon: the sum of the weights is made that much larger.
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
      bias: of the classifier.
      attention: lambda.
      mask: 1 for each snippet there is.
      labels: y; without one L_fg is 0.
      epsilon: see `pool`, for x_fg alone.
    """
    target = jnp.append(labels / jnp.maximum(labels.sum(), 1), 0.0)
    foreground = optax.softmax_cross_entropy(pool(attention * mask, activation, bias, epsilon), target)
    background = -nn.log_softmax(pool((1 - attention) * mask, activation, bias))[-1]
    return foreground, background


def smooth(x: Float[Array, "n k"], sigma: float) -> Float[Array, "n k"]:
    """Gaussian filter along axis 0, cut at 4 sigma and reflected at the ends, as SciPy's `gaussian_filter1d`."""
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
    """L_guide, eqs. 13 to 15: the attention's distance from the smoothed TCAM, which has no gradient.

    Args:
      activation: w_c x_t of the classes and, last, background; without the classifier's bias, which the equations and
        the authors' code leave out.
      attention: lambda.
      mask: masked snippets count as no activation where the filter reaches them.
      labels: of several true classes, the foreground is the one that is the most probable after smoothing.
      sigma: of the filter, in snippets.
    """
    probability = nn.softmax(jax.lax.stop_gradient(activation))[:, :-1] * mask[:, None]
    tcam = smooth(probability, sigma)
    foreground, background = (tcam * labels).max(1), tcam.sum(1)
    return masked_mean(jnp.abs(attention - foreground) + jnp.abs(attention - background), mask)


def attend_and_classify(
    params: Params, features: Float[Array, "n d"], mask: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, "n k"]]:
    """The attention, and the class activation without its bias."""
    layers, kernel = params["attention"], params["classifier"]["kernel"]
    hidden, activation = products(features, layers["hidden"]["kernel"], kernel)
    logits = dense(layers["out"], nn.relu(hidden + layers["hidden"]["bias"]))
    return nn.sigmoid(logits)[:, 0] * mask, activation


def warm(config: ConfigDict, epoch: Int[Array, ""]) -> Float[Array, ""] | float:
    """The weight of what is warmed up: from 0 to 1 in `config.warmup` cycles."""
    return jnp.minimum(epoch / config.warmup, 1) if config.warmup else 1.0


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The groups attention and classifier and, with L_re, encoder and decoder."""
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
    """Eq. 10, warmed up; the attention is taken as it is."""
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
    """Eq. 16, L_re warmed up with `config.warm_reconstruction`."""
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
    """The video score is softmax of the logits of x_fg (without background); the CAS is attention times TCAM.

    TCAM is the softmax over classes and background of eq. 13, unsmoothed; by the released rule a sigmoid. Neither has
    the classifier's bias; evidence, which is what the classifier says of a snippet alone, has it.
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
    """`config`: hidden, units of the attention; latent, dimensions of z; cvae_hidden, units of the CVAE's layers; r and
    beta of the CVAE; foreground, alpha, gamma1 and gamma2, the weights of L_fg, L_bg, L_re and L_guide; sigma, of the
    smoothing, in snippets; warmup, cycles over which L_cvae and, with warm_reconstruction, L_re get their weight;
    dropout, share of the feature dimensions that attention and classifier do not see of a training video;
    foreground_epsilon, cvae_weight and proposals: see configs/dgam.py.

    With gamma1 = 0 there is no CVAE, and no phase for it.
    """
    phases = [Phase("attention", partial(loss_attention, config), ("attention", "classifier"))]
    if config.gamma1 > 0:
        phases.insert(0, Phase("cvae", partial(loss_cvae, config), ("encoder", "decoder")))
    rule = as_released if config.proposals == "released" else by_attention
    return Method(partial(init, config), tuple(phases), partial(score, config), partial(propose, rule))


def propose(
    rule: Callable[[Model, Sequence[Model], Meta], Detections], models: Sequence[Model], fused: Model, meta: Meta
) -> Detections:
    """Section 3.5: segments found in each model alone, those of all models together thinned out by `localize.nms`.

    A class is looked for in the models whose video score for it is high enough (`localize.predicted_classes`). Scores
    are differences of logits (as released, of activations) and can be negative. `soft_nms` is not used.

    Args:
      rule: which segments there are in a model and what they score: `by_attention` or `as_released`.
      models: each one's scores, with `Extras`, and its options.
      fused: option `nms` alone.
      meta: of the same video.
    """
    found = [rule(own, [*models[:i], *models[i + 1 :]], meta) for i, own in enumerate(models)]
    return localize.nms_by_class(localize.join(found), fused.options.nms)


def by_attention(own: Model, others: Sequence[Model], meta: Meta) -> Detections:
    """Runs of snippets with attention above one of `thresholds` (absolute), scored by eq. 17.

    s(t_s, t_e, c) is the logit, before the softmax, of the attention-weighted mean feature from t_s to t_e; where a
    flank covers a part of a snippet, that part counts. A flank that is outside the video, or without attention, has 0.

    Args:
      own: options `reject`, `thresholds` and `eta`, the weight of the flanks.
      others: not used.
      meta: of the same video.
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

        before, after = (mean(flank) for flank in flanks(runs, np.diff(runs) / 4))
        score = mean(runs) - options.eta * (before + after)
        found.append(localize.detections(runs, c, score, meta))
    return localize.join(found)


def flanks(
    runs: Int[np.ndarray, "k 2"], length: Float[np.ndarray, "k 1"] | Int[np.ndarray, "k 1"]
) -> tuple[Shaped[np.ndarray, "k 2"], Shaped[np.ndarray, "k 2"]]:
    """What is before and after each run, of the given lengths; it may reach beyond the video."""
    start, end = runs[:, :1], runs[:, 1:]
    return np.concatenate([start - length, start], axis=1), np.concatenate([end, end + length], axis=1)


def as_released(own: Model, others: Sequence[Model], meta: Meta) -> Detections:
    """The rule of the authors' code, with one other model (the other stream) or none.

    n snippets, at least `min_snippets` and at most `max_snippets`, spread evenly over the video (repeated in a short
    one). A class activation is `attention * sigmoid(features @ kernel)`. Signals are interpolated between snippets,
    `upsample` values for each. Runs of `0.8 * own activation + 0.2 * attention^2` (smoothed by a Gaussian of `smooth`
    values, if that is not 0) above `mask_threshold` are segments. The score of a value is attention times the streams'
    mean activation, `own_share` being the weight of this stream, and both with this stream's attention; that of a
    segment its mean over it, minus `eta` times the means over its flanks, a quarter of the length (rounded down) and 1
    longer each, where a flank at the end of the video has 0.

    Differs in that class 0 is treated as others are, and that a segment may be the first value alone. The classes are
    those of all snippets.

    Args:
      own: this stream's scores and options.
      others: those of the other streams.
      meta: of the same video.
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
        around = flanks(runs, np.diff(runs) // 4 + 1)
        before, after = (localize.run_means(values[:, i], flank) for flank in around)
        score = localize.run_means(values[:, i], runs) - options.eta * (before + after)
        found.append(localize.detections(runs * (length / len(level)), c, score, meta))
    return localize.join(found)
