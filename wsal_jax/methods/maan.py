"""MAAN: marginalized average attentional network (Yuan et al., ICLR 2019, https://arxiv.org/abs/1905.08586), and its
four baselines, of which the first is STPN (Nguyen et al., CVPR 2018, https://arxiv.org/abs/1712.05080).

An attention module gives each snippet a weight; an aggregator turns the weighted snippets into one feature of the
video; a linear classifier with a sigmoid says which classes occur (section 2.4). The five methods of Table 1 differ
in the aggregator alone: `maan`, `stpn` (weighted sum), `dropout` (weighted sum of a random half of the snippets),
`norm` (weighted mean), `softmax_norm` (softmax of the weights).

Where we differ from the paper, for all five alike:
- The classifier has a bias, as an "FC layer" has; eqs. 10 to 14 have none. It counts in the video score (eq. 10), not
  in the CAS (eqs. 12 and 14).
- A weighted sum grows with the number of snippets, and testing uses all snippets where training samples T of them.
  `stpn` and `dropout` score a test video by T / n times its sum, the expectation of what training would see.
- `stpn_mean` is the reproduction of STPN whose weights are published: weighted features are averaged over snippets.
- In training, feature dimensions are dropped at random, the same ones in all snippets of a video (`dropout`), before
  the attention, which is what overfits: dropped from the pooled feature alone, they did not help MAAN on held-out
  videos. STPN and MAAN do not say what they do against it; STAR and IWO-Net drop 0.8.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict
from scipy.special import expit

from wsal_jax import aggregate, layers, localize
from wsal_jax.losses import binary_cross_entropy
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

MEANS = {
    "maan": aggregate.marginalized_average,
    "norm": aggregate.weighted_mean,
    "softmax_norm": aggregate.softmax_mean,
}
SUMS = ("stpn", "dropout", "stpn_mean")
ACTIVATIONS = {"leaky_relu": jax.nn.leaky_relu, "relu": jax.nn.relu}


class Extras(NamedTuple):
    """What `as_released` wants."""

    logits: Float[Any, "n c"]
    """Of each snippet, without bias."""


def attend(config: ConfigDict, params: Params, video: Video) -> Float[Array, " n"]:
    """The attention, or p of MAAN; 0 where masked."""
    return layers.attend(params["attention"], video.features, ACTIVATIONS[config.activation]) * video.mask


def pool(config: ConfigDict, attention: Float[Array, " n"], video: Video) -> Float[Array, " d"]:
    """The video's feature by `config.aggregator`; `attention` weighs the snippets of `video`."""
    if config.aggregator in SUMS:
        scale = (1 if config.aggregator == "stpn_mean" else config.num_snippets) / jnp.maximum(video.mask.sum(), 1)
        return scale * aggregate.weighted_sum(attention, video.features, video.mask)
    return MEANS[config.aggregator](attention, video.features, video.mask)


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The groups attention and classifier."""
    attention_key, classifier_key = jax.random.split(key)
    return {
        "attention": layers.init_attention(attention_key, sum(spec.dims), config.hidden),
        "classifier": layers.init_dense(classifier_key, sum(spec.dims), spec.num_classes),
    }


def loss(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 10 for one video, plus `sparsity` times the sum of the attention over the T snippets (STPN's L1)."""
    dimension_key, snippet_key = jax.random.split(step.key)
    video = video._replace(features=layers.drop_dimensions(dimension_key, video.features, config.dropout))
    attention = attend(config, params, video)
    if config.aggregator == "dropout":
        pooled = aggregate.dropout_sum(snippet_key, attention, video.features, video.mask)
    else:
        pooled = pool(config, attention, video)
    classification = binary_cross_entropy(layers.dense(params["classifier"], pooled), video.labels)
    total = classification + config.sparsity * attention.sum()
    mean_attention = attention.sum() / jnp.maximum(video.mask.sum(), 1)
    return total, {"loss": total, "classification": classification, "attention": mean_attention}


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """Eq. 14 (eq. 12 for the baselines): s_t^c = p_t sigmoid(w_c x_t).

    The bias of the classifier is part of the video score and of evidence, which is what it says of a snippet alone.
    """
    attention = attend(config, params, video)
    video_score = jax.nn.sigmoid(layers.dense(params["classifier"], pool(config, attention, video)))
    logits = video.features @ params["classifier"]["kernel"]
    there = video.mask[:, None]
    evidence = jax.nn.sigmoid(logits + params["classifier"]["bias"]) * there
    extras = Extras(logits * there) if config.proposals == "released" else None
    return Scores(video_score, attention[:, None] * jax.nn.sigmoid(logits), attention, extras, evidence)


def method(config: ConfigDict) -> Method:
    """`config`: aggregator; hidden, units of the attention; sparsity, weight of STPN's L1, the sum of the attention (0
    here, as in the paper's comparison; STPN's own paper has 1e-4); dropout, share of the feature dimensions that
    training drops for a video; num_snippets, the T of training; activation of the attention's hidden layer, leaky_relu
    or relu; proposals, cas (`localize.propose`) or released (`as_released`).

    Raises:
      InputError: an aggregator, activation or rule of proposals that does not exist.
    """
    choices = dict(aggregator=(*MEANS, *SUMS), activation=ACTIVATIONS, proposals=("cas", "released"))
    for option, there in choices.items():
        if config[option] not in there:
            raise InputError(f"config.method.{option}={config[option]!r}: there are {', '.join(there)}")
    phases = (Phase("train", partial(loss, config), ("attention", "classifier")),)
    propose = as_released if config.proposals == "released" else localize.propose
    return Method(partial(init, config), phases, partial(score, config), propose)


def as_released(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """The rule of the reproduction of STPN whose weights are published.

    `snippets` of a video, evenly spaced (repeated in a short one), are interpolated linearly to `upsample` values each.
    Of each model and each class whose video score is at least `reject` (of all snippets, where the released code has
    `snippets`; the best class is never rejected, unlike there), a run of values with attention * sigmoid(logit) of at
    least `thresholds[0]` is a segment. Its score is the mean of the model's attention times the mean logit, without
    bias, of all models; it can be negative. `localize.nms` of each class over all models together.

    Args:
      models: each one's scores, with `Extras`.
      fused: options alone.
      meta: of the same video.
    """
    options = fused.options
    chosen = np.arange(options.snippets) * meta.length // options.snippets
    logits = [np.asarray(model.scores.extras.logits, np.float64)[chosen] for model in models]
    found = []
    for (scores, own), logit in zip(models, logits):
        attention = np.asarray(scores.attention, np.float64)[chosen, None]
        level = localize.upsample(attention * expit(logit), options.upsample)
        value = localize.upsample(attention * np.mean(logits, axis=0), options.upsample)
        for c in localize.predicted_classes(scores.video_score, own.reject):
            runs = localize.components(level[:, c] >= own.thresholds[0])
            score = localize.run_means(value[:, c], runs)
            found.append(localize.detections(runs * (meta.length / len(level)), c, score, meta))
    return localize.nms_by_class(localize.join(found), options.nms)
