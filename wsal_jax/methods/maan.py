"""MAAN: marginalized average attentional network (Yuan et al., ICLR 2019), and its four baselines.

An attention module gives each snippet a weight; an aggregator turns the weighted snippets into one feature of the
video; a linear classifier with a sigmoid says which classes occur (section 2.4). The five methods of Table 1 differ
in the aggregator alone: `maan`, `stpn` (weighted sum), `dropout` (weighted sum of a random half of the snippets),
`norm` (weighted mean), `softmax_norm` (softmax of the weights).

Where we differ from the paper, for all five alike:
- A weighted sum grows with the number of snippets, and testing uses all snippets where training samples T of them.
  `stpn` and `dropout` score a test video by T / n times its sum, the expectation of what training would see.
- In training, feature dimensions are dropped at random, the same ones in all snippets of a video (`dropout`), before
  the attention, which is what overfits: dropped from the pooled feature alone, they did not help MAAN on held-out
  videos. STPN and MAAN do not say what they do against it; STAR and IWO-Net drop 0.8.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax import aggregate
from wsal_jax.layers import Attention
from wsal_jax.losses import binary_cross_entropy
from wsal_jax.method import Method, Params, Phase, Spec
from wsal_jax.types import InputError, Scores, Video

MEANS = {
    "maan": aggregate.marginalized_average,
    "norm": aggregate.weighted_mean,
    "softmax_norm": aggregate.softmax_mean,
}
SUMS = ("stpn", "dropout")


def method(config: ConfigDict) -> Method:
    """`config`: aggregator; hidden, units of the attention; sparsity, weight of STPN's L1 on the attention (0 here, as
    in the paper's comparison; STPN's own paper has 1e-4); dropout, share of the feature dimensions that training drops
    for a video; num_snippets, the T of training.

    Raises:
      InputError: an aggregator that does not exist.
    """
    if config.aggregator not in (*MEANS, *SUMS):
        raise InputError(f"config.method.aggregator={config.aggregator!r}: there are {', '.join((*MEANS, *SUMS))}")
    attention_module = Attention(config.hidden)

    def classify(params: Params, features: Float[Array, "*n d"], num_classes: int) -> Float[Array, "*n c"]:
        return nn.Dense(num_classes).apply({"params": params["classifier"]}, features)

    def attend(params: Params, video: Video) -> Float[Array, " n"]:
        return attention_module.apply({"params": params["attention"]}, video.features) * video.mask

    def pool(attention: Float[Array, " n"], video: Video) -> Float[Array, " d"]:
        if config.aggregator in SUMS:
            scale = config.num_snippets / jnp.maximum(video.mask.sum(), 1)
            return scale * aggregate.weighted_sum(attention, video.features, video.mask)
        return MEANS[config.aggregator](attention, video.features, video.mask)

    def init(key: PRNGKeyArray, spec: Spec) -> Params:
        attention_key, classifier_key = jax.random.split(key)
        features = jnp.zeros((1, sum(spec.dims)))
        return {
            "attention": attention_module.init(attention_key, features)["params"],
            "classifier": nn.Dense(spec.num_classes).init(classifier_key, features)["params"],
        }

    def loss(
        params: Params, video: Video, key: PRNGKeyArray, epoch: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Eq. 10 for one video, plus `sparsity` times the mean attention (STPN's L1)."""
        del epoch
        dimension_key, snippet_key = jax.random.split(key)
        kept = jax.random.bernoulli(dimension_key, 1 - config.dropout, video.features.shape[1:])
        video = video._replace(features=video.features * kept / (1 - config.dropout))
        attention = attend(params, video)
        if config.aggregator == "dropout":
            pooled = aggregate.dropout_sum(snippet_key, attention, video.features, video.mask)
        else:
            pooled = pool(attention, video)
        classification = binary_cross_entropy(classify(params, pooled, video.labels.size), video.labels)
        mean_attention = attention.sum() / jnp.maximum(video.mask.sum(), 1)
        total = classification + config.sparsity * mean_attention
        return total, {"loss": total, "classification": classification, "attention": mean_attention}

    def score(params: Params, video: Video) -> Scores:
        """Eq. 14 (eq. 12 for the baselines): s_t^c = p_t sigmoid(w_c x_t)."""
        attention = attend(params, video)
        video_score = nn.sigmoid(classify(params, pool(attention, video), video.labels.size))
        evidence = nn.sigmoid(classify(params, video.features, video.labels.size))
        return Scores(video_score, attention[:, None] * evidence, attention, {})

    return Method(init, (Phase("train", loss, ("attention", "classifier")),), score)
