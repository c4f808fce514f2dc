"""P-MIL: proposal-based multiple instance learning (Ren et al., CVPR 2023, https://arxiv.org/abs/2305.17861).

Section and equation numbers of the paper are not given, as we follow the authors' code where both say something.

A base, any method of one phase that has an attention, is trained first and then stays as it is. The runs of its
attention above several thresholds are candidates: their edges are final. A head for each stream pools the features of
a candidate and its surroundings (SCFE), and learns from video labels alone to classify candidates (MIL over them), to
rank them as the other stream does (instance-level rank consistency, IRC), and to say how complete they are (proposal
completeness evaluation, PCE). Each stream teaches the next one; a single stream teaches itself.

Where we differ from the authors' code:
- Their candidates are made once, of whole videos, by a first model that they do not name. Ours are made in each step,
  of the sampled snippets, by the base as it is after its phase; at test of all snippets. They have a fixed number of
  places. If there are more, the shortest go, where they draw 1,000 at random (in the features alone: their losses take
  all). If there are none, the whole video is one, where theirs is [0, 0].
- A bin's mean is that of the piecewise-linear interpolant, which theirs approaches by ceil(1.5 L / 12) points. Outside
  the video features are 0; theirs go on for half a snippet.
- Weights of the losses ramp up by step, not by epoch, and both lengths are shares of the training.
- The mean of IRC over no candidate is 0, not NaN.
- Soft-NMS uses true lengths, where theirs adds a snippet to each.
- Scores do not come from the base; theirs do not either, so that it does not matter that their candidates for training
  come before suppression, and those for testing after it.
As there, pseudo instances belong to no class, though a video may have several; and a segment that several thresholds
find votes several times, unless `unique`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax import localize, methods
from wsal_jax.keys import named
from wsal_jax.layers import dense, dropout, top_mean
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

BINS = 12
SIDE = 2  # bins of each side: a quarter of the length is 2 of the 12 bins of 1.5 lengths
FAR = 60.0  # logits further below the largest of their class count as this far, so that exponentials stay above 0


class Candidates(NamedTuple):
    """The candidate segments of a video, m places."""

    segments: Float[Array, "m 2"]
    """From edge to edge, in snippets; empty at places without a candidate."""
    valid: Float[Array, " m"]
    """1 where there is a candidate. There is at least one."""


class Heads(NamedTuple):
    """What one stream says of each candidate, or all of them, stacked; k = c + 1 classes, the last is background."""

    logits: Float[Array, "*s m k"]
    attention: Float[Array, "*s m"]
    completeness: Float[Array, "*s m"]


class Extras(NamedTuple):
    """The inputs of `propose`."""

    segments: Float[Any, "m 2"]
    """Of the candidates, in snippets; empty at places without one."""
    scores: Float[Any, "m c"]


def find_candidates(
    attention: Float[Array, " n"],
    mask: Float[Array, " n"],
    length: Int[Array, ""],
    thresholds: Sequence[float],
    size: int,
    unique: bool,
) -> Candidates:
    """The runs of unmasked snippets whose attention is > one of the thresholds, the longest first.

    Args:
      attention: of the snippets.
      mask: runs end where it is 0.
      length: of the video; without a run, all of it is the only candidate.
      thresholds: absolute, ascending.
      size: at most this many candidates; the shortest go.
      unique: whether a run that is the same at several thresholds is one candidate.
    """
    n, at = len(attention), jnp.arange(len(attention))
    above = (attention > jnp.asarray(thresholds)[:, None]) & (mask > 0)
    beside = jnp.pad(above, ((0, 0), (1, 1)))
    ends = jax.lax.cummin(jnp.where(above & ~beside[:, 2:], at + 1, n), axis=1, reverse=True)
    lengths = jnp.where(above & ~beside[:, :-2], ends - at, 0)  # at the start of each run
    if unique:  # runs shrink as the threshold rises, so equal ones are at thresholds that follow each other
        lengths = lengths.at[1:].multiply(lengths[1:] != lengths[:-1])
    most = len(above) * ((n + 1) // 2)
    longest, places = jax.lax.top_k(lengths.ravel().astype(jnp.float32), min(size, most))
    first = (places % n).astype(jnp.float32)
    segments = jnp.stack([first, first + longest], axis=1)
    whole = jnp.zeros_like(segments).at[0, 1].set(jnp.maximum(length, 1))
    segments = jnp.where(longest[0] > 0, segments, whole)
    return Candidates(segments, (segments[:, 0] < segments[:, 1]).astype(jnp.float32))


def overlaps(segments: Float[Array, "m 2"]) -> Float[Array, "m m"]:
    """The temporal IoU of all pairs; 0 for empty segments."""
    start, end = segments[:, 0], segments[:, 1]
    shared = jnp.minimum(end[:, None], end) - jnp.maximum(start[:, None], start)
    shared = jnp.maximum(shared, 0)
    length = end - start
    return shared / jnp.maximum(length[:, None] + length - shared, 1e-6)


def bin_weights(start: Float[Array, " m"], width: Float[Array, " m"], mask: Float[Array, " n"]) -> Float[Array, "m n"]:
    """The weight of each snippet in the mean of the interpolant from `start` to `start + width`.

    The interpolant goes in straight lines through the snippets at t + 1/2. It is constant in the outer half of a
    snippet without a neighbour, and 0 outside unmasked snippets. So a weight is the difference of the integral of a
    hat, or of half a hat and half a box.

    Args:
      start: of each interval, in snippets.
      width: > 0.
      mask: snippets at which it is 0 are not there.
    """
    neighbours = jnp.pad(mask, 1)[:-2], jnp.pad(mask, 1)[2:]

    def integral(t):  # from the centre of each snippet to t
        offset = t[:, None] - (jnp.arange(len(mask)) + 0.5)

        def part(distance, neighbour):
            slope = jnp.clip(distance, 0, 1)
            return jnp.where(neighbour > 0, slope - slope**2 / 2, jnp.clip(distance, 0, 0.5))

        return part(offset, neighbours[1]) - part(-offset, neighbours[0])

    return mask * (integral(start + width) - integral(start)) / width[:, None]


@jax.jit  # so that it is compiled once even if the caller is not
def pool(
    features: Float[Array, "n d"], mask: Float[Array, " n"], segments: Float[Array, "m 2"]
) -> tuple[Float[Array, "m d"], Float[Array, "m d"], Float[Array, "m d"]]:
    """u, v, w: the largest mean of a bin on the left of each segment, inside and on the right.

    A segment with a quarter of its length on each side is cut into 12 bins, of which 2 are outside on each side.
    """
    length = segments[:, 1] - segments[:, 0]
    width = jnp.maximum(1.5 * length, 1) / BINS
    features = features * mask[:, None]

    def add(largest, i):  # one bin at a time, since all of them would be 12 times the features of the candidates
        mean = bin_weights(segments[:, 0] - length / 4 + i * width, width, mask) @ features
        region = (i >= SIDE).astype(int) + (i >= BINS - SIDE)
        return largest.at[region].max(mean), None

    nothing = jnp.full((3, len(segments), features.shape[1]), -jnp.inf)
    return tuple(jax.lax.scan(add, nothing, jnp.arange(BINS))[0])


def init_torch(key: PRNGKeyArray, inputs: int, outputs: int) -> dict[str, Array]:
    """A fully-connected layer as PyTorch initialises it: uniform up to 1 / sqrt(inputs), kernel and bias."""
    drawn = jax.random.uniform(key, (inputs + 1, outputs), minval=-(inputs**-0.5), maxval=inputs**-0.5)
    return {"kernel": drawn[:-1], "bias": drawn[-1]}


def init_head(key: PRNGKeyArray, config: ConfigDict, d: int, num_classes: int) -> Params:
    """The layers of one stream: feature; hidden, those of the three outputs side by side; one for each output."""
    sizes = {"feature": (3 * d, config.width), "hidden": (config.width, 3 * config.hidden)}
    sizes |= {"logits": (config.hidden, num_classes + 1), "attention": (config.hidden, 1)}
    sizes |= {"completeness": (config.hidden, 1)}
    return {name: init_torch(k, *size) for k, (name, size) in zip(jax.random.split(key, len(sizes)), sizes.items())}


def apply_head(layers: Params, pooled: Float[Array, "m i"], rate: float, key: PRNGKeyArray | None) -> Heads:
    """g = D(ReLU(W pooled)), then for each output FC, ReLU, FC.

    Args:
      layers: of one stream.
      pooled: [v - u, v, v - w].
      rate: of the entries of g that are dropped.
      key: None drops nothing.
    """
    g = dropout(key, nn.relu(dense(layers["feature"], pooled)), rate)
    hidden = jnp.split(nn.relu(dense(layers["hidden"], g)), 3, axis=1)
    out = [dense(layers[name], x) for name, x in zip(Heads._fields, hidden)]
    return Heads(out[0], nn.sigmoid(out[1])[:, 0], nn.sigmoid(out[2])[:, 0])


def apply_heads(
    config: ConfigDict, params: Params, video: Video, candidates: Candidates, key: PRNGKeyArray | None = None
) -> Heads:
    """The outputs of all streams, stacked; with a key, entries of g are dropped."""
    streams = [layers for _, layers in sorted(params["head"].items())]
    borders = np.cumsum([len(layers["feature"]["kernel"]) // 3 for layers in streams])[:-1].tolist()
    pooled = zip(*(jnp.split(x, borders, axis=1) for x in pool(video.features, video.mask, candidates.segments)))
    heads = []
    for i, (layers, (u, v, w)) in enumerate(zip(streams, pooled)):
        inputs = jnp.concatenate([v - u, v, v - w] if config.surroundings else [v, v, v], axis=1)
        heads.append(apply_head(layers, inputs, config.dropout, None if key is None else jax.random.fold_in(key, i)))
    return jax.tree.map(lambda *x: jnp.stack(x), *heads)


def masked_mean(x: Float[Array, " m"], mask: Float[Array, " m"]) -> Float[Array, ""]:
    """The mean where the mask is 1; 0 if it nowhere is."""
    return (x * mask).sum() / jnp.maximum(mask.sum(), 1)


def cross_entropy(logits: Float[Array, " k"], labels: Float[Array, " c"], background: float) -> Float[Array, ""]:
    """-sum y log softmax, where y are the labels with that of the background, divided by their sum + 1e-4."""
    target = jnp.append(labels, background)
    return -(target / (target.sum() + 1e-4)) @ nn.log_softmax(logits)


@jax.jit  # as `pool`
def rank_consistency(
    own: Float[Array, "m k"],
    teacher: Float[Array, "m k"],
    attention: Float[Array, " m"],
    overlap: Float[Array, "m m"],
    valid: Float[Array, " m"],
    labels: Float[Array, " c"],
) -> Float[Array, ""]:
    """IRC: how far the ranking of a candidate's neighbours differs between two streams.

    For each true class, and each candidate i whose attention by the teacher is above the mean, KL(softmax of the
    teacher's logits || softmax of one's own), both over the candidates that overlap i, among them i. The mean over
    those i and over the true classes; 0 without any. The teacher has no gradient.

    Args:
      own: the logits.
      teacher: those of the other stream.
      attention: the teacher's.
      overlap: see `overlaps`.
      valid: 1 at candidates.
      labels: of the video.
    """
    near = ((overlap > 0) & (valid > 0)).astype(jnp.float32)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # differences of logarithms of sums follow

    def exponentials(logits):
        logits, there = logits[:, : len(labels)], valid[:, None] > 0
        top = jax.lax.stop_gradient(jnp.where(there, logits, -jnp.inf).max(0))
        logits = jnp.where(there, jnp.maximum(logits - top, -FAR), 0)
        total = product(near, jnp.exp(logits))
        return logits, jnp.exp(logits), jnp.where(total > 0, total, 1)

    own_logits, _, own_sum = exponentials(own)
    logits, exponential, total = exponentials(jax.lax.stop_gradient(teacher))
    # sum_j p_j (log p_j - log q_j) with p_j = e_j / total, so that no array is [m m k].
    divergence = product(near, exponential * (logits - own_logits)) / total - jnp.log(total) + jnp.log(own_sum)
    attention = jax.lax.stop_gradient(attention)
    attended = valid * (attention > masked_mean(attention, valid))
    per_class = attended @ divergence / jnp.maximum(attended.sum(), 1)
    return masked_mean(per_class, labels)


@jax.jit  # as `pool`
def pseudo_instances(
    attention: Float[Array, " m"],
    overlap: Float[Array, "m m"],
    valid: Float[Array, " m"],
    share: float | Float[Array, ""],
) -> Bool[Array, " m"]:
    """Of the candidates with attention > `share` of the largest: the best, the best that does not overlap it, ..."""
    masked = jnp.where(valid > 0, attention, -1)

    def take(state):
        rest, chosen = state
        best = jnp.where(rest, masked, -1).argmax()
        return rest & (overlap[best] <= 0) & (jnp.arange(len(rest)) != best), chosen.at[best].set(True)

    rest = (masked > share * masked.max()) & (valid > 0)
    return jax.lax.while_loop(lambda state: state[0].any(), take, (rest, jnp.zeros_like(rest)))[1]


def completeness_target(
    attention: Float[Array, " m"], overlap: Float[Array, "m m"], valid: Float[Array, " m"], share: float
) -> Float[Array, " m"]:
    """PCE: the largest IoU of each candidate with one of `pseudo_instances`, which see the teacher's attention."""
    return jnp.where(pseudo_instances(attention, overlap, valid, share), overlap, 0).max(1)


def ramp(done: Float[Array, ""] | float, whole: float) -> Float[Array, ""]:
    """rho: from exp(-5) at the beginning to 1 once the steps done are `whole`."""
    return jnp.exp(-5 * (1 - jnp.minimum(done / whole, 1)) ** 2)


def losses(
    config: ConfigDict, own: Heads, teacher: Heads, candidates: Candidates, labels: Float[Array, " c"]
) -> dict[str, Float[Array, ""]]:
    """L_orig, L_supp, L_irc and L_comp of one stream, without weights; the teacher has no gradient."""
    segments, valid = candidates
    overlap = overlaps(segments)
    teacher = jax.lax.stop_gradient(teacher)
    target = completeness_target(teacher.attention, overlap, valid, config.pseudo)
    both = jnp.concatenate([own.logits, own.attention[:, None] * own.logits], axis=1)
    original, suppressed = jnp.split(top_mean(both, valid, config.top), 2)
    return {
        "orig": cross_entropy(original, labels, 1.0),
        "supp": cross_entropy(suppressed, labels, 0.0),
        "irc": rank_consistency(own.logits, teacher.logits, teacher.attention, overlap, valid, labels),
        "comp": masked_mean((own.completeness - target) ** 2, valid),
    }


def init(config: ConfigDict, base: Method, key: PRNGKeyArray, spec: Spec) -> Params:
    """The base's groups, as the base alone would begin; head, by stream; progress, the steps of the head so far."""
    keys = jax.random.split(named(key, "head"), len(spec.dims))
    head = {f"stream{i}": init_head(k, config, d, spec.num_classes) for i, (k, d) in enumerate(zip(keys, spec.dims))}
    return {**base.init(key, spec), "head": head, "progress": {"steps": jnp.zeros(())}}


def candidates_of(config: ConfigDict, attention: Float[Array, " n"], video: Video, size: int) -> Candidates:
    """`find_candidates` with the options of `config`."""
    return find_candidates(attention, video.mask, video.length, config.thresholds, size, config.unique)


def loss(
    config: ConfigDict, base: Method, ramp_steps: float, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], Any]:
    """The head's: orig L_orig + supp L_supp + rho (irc L_irc + comp L_comp), the mean over the streams."""
    attention = jax.lax.stop_gradient(base.score(params, video).attention)
    candidates = candidates_of(config, attention, video, config.train_candidates)
    heads = apply_heads(config, params, video, candidates, step.key)
    teachers = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), heads)
    each = jax.vmap(partial(losses, config), (0, 0, None, None))(heads, teachers, candidates, video.labels)
    terms = jax.tree.map(jnp.mean, each)
    done = params["progress"]["steps"] + 1
    rho = ramp(done, ramp_steps)
    total = config.orig * terms["orig"] + config.supp * terms["supp"]
    total += rho * (config.irc * terms["irc"] + config.comp * terms["comp"])
    metrics = {"loss": total, **terms, "rho": rho, "candidates": candidates.valid.sum()}
    return total, (metrics, {"progress": {"steps": done}})


def rate(heads: Heads, valid: Float[Array, " m"], learnt: bool) -> tuple[Float[Array, " c"], Float[Array, "m c"]]:
    """The video score and the score of each candidate, from the means over the streams.

    The score of a candidate is class probability * attention * completeness, the last if it is `learnt`. The video
    score is the mean class probability, weighted by attention.
    """
    probability = nn.softmax(heads.logits).mean(0)[:, :-1]
    attention = valid * heads.attention.mean(0)
    completeness = heads.completeness.mean(0) if learnt else 1.0
    video_score = attention @ probability / (attention.sum() + 1e-6)
    return video_score, probability * (attention * completeness)[:, None]


def score(config: ConfigDict, base: Method, params: Params, video: Video) -> Scores:
    """The base's scores, but with the head's video score; what the head says of the candidates is in `Extras`."""
    scores = base.score(params, video)
    candidates = candidates_of(config, scores.attention, video, config.test_candidates)
    heads = apply_heads(config, params, video, candidates)
    video_score, of_candidates = rate(heads, candidates.valid, config.comp > 0)
    return scores._replace(video_score=video_score, extras=Extras(candidates.segments, of_candidates))


def propose(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """The candidates of every model, for each of its `localize.predicted_classes` (by the head), then suppression.

    The score is that of the candidate plus `prior` times the video score of the class. Gaussian `soft_nms` of each
    class over all models, or `nms` if its sigma is 0.

    Args:
      models: each one's scores, with `Extras`, and options `reject` and `prior`.
      fused: options `soft_nms` and `nms` alone.
      meta: of the same video.
    """
    found = []
    for scores, own in models:
        runs, values = (np.asarray(x, np.float64) for x in scores.extras)
        real = runs[:, 0] < runs[:, 1]
        for c in localize.predicted_classes(scores.video_score, own.reject):
            score = values[real, c] + own.prior * scores.video_score[c]
            found.append(localize.detections(runs[real], c, score, meta))
    options, together = fused.options, localize.join(found)
    if not options.soft_nms:
        return localize.nms_by_class(together, options.nms)
    return localize.rescore_by_class(together, partial(localize.soft_nms, sigma=options.soft_nms))


def base_of(config: ConfigDict | FrozenConfigDict, steps: int) -> Method:
    """The method `config.base`, whose option `steps`, if it has one, is the number of its own steps.

    Raises:
      InputError: it has several phases or rounds.
    """
    options = config.base.to_dict()
    if "steps" in options:
        options["steps"] = steps
    base = methods.get(ConfigDict(options))
    if len(base.phases) > 1 or base.rounds > 1:
        raise InputError(f"config.method.base.name={options['name']!r}: a base has one phase and one round")
    return base


def method(config: ConfigDict) -> Method:
    """P-MIL with the options of `config`.

    base: the options of the base, with its name; base_share: of `steps`, the share that trains it. thresholds, unique,
    train_candidates, test_candidates: see `find_candidates`. surroundings: SCFE; without, a candidate is [v, v, v].
    width: units of g. hidden: of the layer behind it. dropout: share of the entries of g that training drops. top: of m
    candidates, the top m // top count in MIL. orig, supp, irc, comp: weights of the losses. pseudo: see
    `pseudo_instances`. ramp: share of the head's steps until irc and comp have their full weight.

    Raises:
      InputError: a base that cannot be one; thresholds that do not ascend; a share that leaves one of both no step.
    """
    base_steps = round(config.base_share * config.steps)
    head_steps = config.steps - base_steps
    if base_steps < 1 or head_steps < 1:
        raise InputError(f"config.method.base_share={config.base_share}: base and head need a step each")
    if not config.thresholds or list(config.thresholds) != sorted(set(config.thresholds)):
        raise InputError(f"config.method.thresholds={config.thresholds}: must ascend")
    base = base_of(config, base_steps)
    phases = (
        base.phases[0]._replace(name="base", length=base_steps),
        Phase("head", partial(loss, config, base, config.ramp * head_steps), ("head",), head_steps, ("progress",)),
    )
    return Method(
        partial(init, config, base),
        phases,
        partial(score, config, base),
        propose,
        check=base.check,
        supervision=base.supervision,
        in_steps=True,
    )
