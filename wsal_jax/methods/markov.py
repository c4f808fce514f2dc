"""MAAN's network with a pooling of our own: the marginalized average over a Markov chain (`wsal_jax.chain`).

MAAN averages over subsets that choose each snippet by itself. Actions are runs, so here the subsets are a binary chain
whose neighbours tend to agree; `stay` says how much, and with `stay` = 0 everything below is MAAN. Network, loss and
video score are those of MAAN (`wsal_jax.methods.maan`), its differences from the paper too. What changes:

- The aggregate is E[sum z x / sum z] over the chain with the attention as p.
- The attention of the scores, a factor of the CAS, is P(z_t = 1): what a snippet and its neighbours say of it.
- `propose` can rank runs by their posterior, instead of cutting the CAS at a threshold.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax import aggregate, chain, layers, localize
from wsal_jax.losses import binary_cross_entropy
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.methods import maan
from wsal_jax.metrics import temporal_iou
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video


class Extras(NamedTuple):
    """What `by_posterior` wants."""

    change: Float[Any, " n"]
    """See `changes`."""


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The groups attention and classifier, and chain if `stay` is learnt: the inverse of softplus(stay)."""
    params = maan.init(config, key, spec)
    if config.learn_stay:
        params["chain"] = {"stay": jnp.log(jnp.expm1(jnp.float32(config.stay)))}
    return params


def stay_of(config: ConfigDict, params: Params) -> Float[Array, ""] | float:
    """`config.stay`, or what was learnt from there."""
    return jax.nn.softplus(params["chain"]["stay"]) if config.learn_stay else config.stay


def pool(config: ConfigDict, params: Params, p: Float[Array, " n"], video: Video) -> Float[Array, " d"]:
    """The video's feature."""
    if not config.stay:  # the same, without a loop over the snippets
        return aggregate.marginalized_average(p, video.features, video.mask)
    return chain.chain_average(p, video.features, stay_of(config, params), video.mask)


def loss(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the pooled video (MAAN's eq. 10), plus `sparsity` times the sum of the attention."""
    dimension_key = jax.random.split(step.key)[0]  # MAAN's, which splits it for an aggregator that is random
    video = video._replace(features=layers.drop_dimensions(dimension_key, video.features, config.dropout))
    attention = maan.attend(config, params, video)
    logits = layers.dense(params["classifier"], pool(config, params, attention, video))
    classification = binary_cross_entropy(logits, video.labels)
    total = classification + config.sparsity * attention.sum()
    metrics = {
        "loss": total,
        "classification": classification,
        "attention": attention.sum() / jnp.maximum(video.mask.sum(), 1),
        "stay": jnp.float32(stay_of(config, params)),
    }
    return total, metrics


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """As for MAAN (eq. 14), with P(z_t = 1) in place of p_t: s_t^c = P(z_t = 1) sigmoid(w_c x_t)."""
    p = maan.attend(config, params, video)
    attention = chain.marginals(p, stay_of(config, params), video.mask)
    logits = video.features @ params["classifier"]["kernel"]
    evidence = jax.nn.sigmoid(logits + params["classifier"]["bias"]) * video.mask[:, None]
    video_score = jax.nn.sigmoid(layers.dense(params["classifier"], pool(config, params, p, video)))
    extras = Extras(changes(video)) if config.proposals == "posterior" else None
    return Scores(video_score, attention[:, None] * jax.nn.sigmoid(logits), attention, extras, evidence)


def changes(video: Video) -> Float[Array, " n"]:
    """How much the features change from each snippet to the next: 1 - cosine, divided by its mean over the video.

    0 where either snippet is masked, and in a video that does not change at all. The cosine with features of 0 is 0.
    """
    squares = (video.features**2).sum(axis=1)
    length = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    unit = video.features / length[:, None]
    distance = jnp.maximum(1 - (unit[:-1] * unit[1:]).sum(axis=1), 0)
    both = video.mask[:-1] * video.mask[1:]
    distance = jnp.where(both > 0, distance, 0)
    mean = distance.sum() / jnp.maximum(both.sum(), 1)
    return jnp.append(distance / jnp.where(mean > 1e-5, mean, 1), 0.0)  # below are errors of rounding


def method(config: ConfigDict) -> Method:
    """`config`: stay, >= 0, of neighbouring snippets among those that training samples; learn_stay, whether that is
    only where learning starts (then > 0); proposals, thresholds (`localize.propose`) or posterior (`by_posterior`);
    hidden, activation, sparsity and dropout as for `maan.method`.

    Raises:
      InputError: an activation, a rule of proposals or a `stay` that cannot be.
    """
    for option, there in dict(activation=maan.ACTIVATIONS, proposals=("thresholds", "posterior")).items():
        if config[option] not in there:
            raise InputError(f"config.method.{option}={config[option]!r}: there are {', '.join(there)}")
    if not 0 <= config.stay <= 20 or (config.learn_stay and not config.stay):
        raise InputError(f"config.method.stay={config.stay}: give 0 to 20, and more than 0 with learn_stay")
    groups = ("attention", "classifier", *(("chain",) if config.learn_stay else ()))
    phases = (Phase("train", partial(loss, config), groups),)
    propose = by_posterior if config.proposals == "posterior" else localize.propose
    return Method(partial(init, config), phases, partial(score, config), propose)


def by_posterior(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """Segments ranked by the posterior of runs, for each of `localize.predicted_classes`.

    For each of `thresholds`, snippet t says by itself that it is action with odds

        (CAS / (threshold * largest CAS)) ** `sharpness`,

    so that a threshold cuts where the odds are even. A chain of the snippets follows (`wsal_jax.chain`), in which two
    neighbours tend to agree by `stay` + `cut` * (1 - change), where the mean over the models of `changes` says how much
    the features change: 1 on average. Where they change much, neighbours even tend to differ. The sharper, the more
    this is `localize.propose`. The `candidates` likeliest runs of each of these chains are the candidates. The
    score of a candidate is E[IoU ** `overlap`] with the run that matches it, the one of temporal IoU > 1/2 (two would
    overlap), 0 where none does, averaged over the thresholds, times the video score and (mean CAS inside) ** `inside`.
    With `overlap` 0 it is the probability that a run matches, however well. Then `localize.nms` of each class.

    Args:
      models: each one's `Extras`; without a model, every change is 1.
      fused: options `reject`, `thresholds`, `nms` as for `localize.propose`; sharpness; stay; cut; candidates;
        overlap; inside.
      meta: of the same video.
    """
    scores, options = fused
    change = [np.asarray(model.scores.extras.change, np.float64)[: meta.length - 1] for model in models]
    stay = options.stay + options.cut * (1 - np.mean(change, axis=0)) if change else options.stay
    found = []
    for c in localize.predicted_classes(scores.video_score, options.reject).tolist():
        cas = np.asarray(scores.cas[:, c], np.float64)
        if cas.max(initial=0) > 0:
            runs, match = matched_runs(cas, stay, options)
            score = scores.video_score[c] * match * localize.run_means(cas, runs) ** options.inside
            found.append(localize.detections(runs, c, score, meta))
    return localize.nms_by_class(localize.join(found), options.nms)


def matched_runs(
    cas: Float[np.ndarray, " n"], stay: float | Float[np.ndarray, " m"], options: ConfigDict | FrozenConfigDict
) -> tuple[Float[np.ndarray, "k 2"], Float[np.ndarray, " k"]]:
    """The candidates [first, end) of one class, see `by_posterior`, and how well a run is expected to match each.

    `stay` may be one for each pair of neighbours.
    """
    odds = (cas / (np.array(options.thresholds)[:, None] * cas.max())) ** options.sharpness
    of = chain.posterior(odds / (1 + odds), stay)
    likely = [likely_runs(chain.Posterior(*one), options.candidates) for one in zip(*of)]
    keys = np.unique(np.concatenate([runs @ [len(cas) + 1, 1] for runs, _ in likely]))
    candidates = np.stack(np.divmod(keys, len(cas) + 1), axis=1).astype(np.float64)
    match = np.zeros(len(candidates))
    for runs, probability in likely:
        iou = temporal_iou(candidates, runs.astype(np.float64))
        match += np.where(iou > 0.5, iou**options.overlap, 0) @ probability
    return candidates, match / len(likely)


def likely_runs(of: chain.Posterior, most: int) -> tuple[Int[np.ndarray, "k 2"], Float[np.ndarray, " k"]]:
    """The likeliest runs [first, end) of a chain, and their posteriors."""
    # Among the likeliest starts and ends alone: all of them together would be too many in a long video.
    first, last = (np.sort(np.argsort(-x, kind="stable")[:most]) for x in (of.start, of.end))
    logs = chain.run_logs(of, first, last)
    best = np.argsort(-logs, axis=None, kind="stable")[:most]
    best = best[logs.flat[best] > -np.inf]
    row, column = np.unravel_index(best, logs.shape)
    return np.stack([first[row], last[column] + 1], axis=1), np.exp(logs.flat[best])
