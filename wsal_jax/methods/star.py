"""STAR: segregated temporal assembly recurrent networks (Xu et al., AAAI 2019, https://arxiv.org/abs/1811.07460).

One model per stream.

A recurrent decoder emits the classes of a video one after the other, then an end token. At each step an attention over
the video's segments assembles the feature of the next action, so each class has its own attention. The gradient of the
class's logit with respect to that feature (ST-GradCAM) scores the segments for the class. The term RAM learns from the
count of each class in a training video, which is more supervision than video labels.

Names: n snippets, of which N = `segments` evenly spaced ones are the segments; d feature dimensions, c classes, a units
of the attention, m of the LSTM, t steps of the decoder. The decoder has c + 1 classes; class c is the end.

Where we differ from the paper, or it is silent:
- Eq. 6: positions are in [0, 1], and sum_k alpha_k k is divided by sum_k alpha_k to give the mean position. As printed,
  the sum is of the order of N^2 / 2, and the gate is always 0 or 1. The first term is added to each unit of W h. The
  gate is 1 at t = 1.
- Eq. 1: see `assemble`.
- The paper does not give the order and the end of the sequence. We order classes by index, because their temporal order
  would exceed weak labels, and add an end token. Training feeds back the true class, testing the chosen one.
- Testing chooses the most probable class at each step, no class twice, and not the end at the first step.
- Sparsity, coverage and RAM losses cover the steps that emit a class; the attention of the end is unconstrained.
- Dropout applies to feature dimensions, the same ones in all segments of a video, as in our MAAN.
- Softmax logits are meaningful only relative to each other, so the zero point of xi, and with it sigmoid(xi) of eq. 13,
  is arbitrary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax import localize
from wsal_jax.layers import drop_dimensions, grid, off_grid
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

if TYPE_CHECKING:
    from wsal_jax.data.pipeline import Dataset

TERMS = ("spa", "cov", "ram")
LOCALIZATIONS = ("attended", "attention", "gradcam")
ASSEMBLIES = ("sum", "mean")
TINY = 1e-6


class Said(NamedTuple):
    """The output of a decoder step."""

    attention: Float[Array, " N"]
    logits: Float[Array, " k"]
    """Logits of the classes and the end."""
    ram: Float[Array, ""]
    """The predicted count of the class, eq. 8; 0 without RAM."""


def lstm(
    params: Params, state: tuple[Float[Array, " m"], Float[Array, " m"]], x: Float[Array, " i"]
) -> tuple[tuple[Float[Array, " m"], Float[Array, " m"]], Float[Array, " m"]]:
    """Long short-term memory with a forget bias of 1, so that it forgets little at first.

    Args:
      params: `input`, `recurrent` and `bias`, for the gates write, forget, new and read.
      state: output and memory.
      x: the input.

    Returns:
      The new state, and its output.
    """
    h, memory = state
    gates = x @ params["input"] + h @ params["recurrent"] + params["bias"]
    write, forget, new, read = jnp.split(gates, 4)
    memory = nn.sigmoid(forget + 1) * memory + nn.sigmoid(write) * jnp.tanh(new)
    h = nn.sigmoid(read) * jnp.tanh(memory)
    return (h, memory), h


def attend(
    params: Params,
    projected: Float[Array, "N a"],
    mask: Float[Array, " N"],
    hidden: Float[Array, " m"],
    before: Float[Array, " N"],
    first: Bool[Array, ""],
) -> Float[Array, " N"]:
    """The attention of a step, eqs. 3, 6 and 7; 0 where masked.

    Args:
      params: `hidden` is W_alpha, `energy` v_alpha, `position` Z; without `position` there is no coverage (eq. 2).
      projected: U_alpha s_i.
      mask: 1 at real segments.
      hidden: h_{t-1}.
      before: the attention of the previous step; ignored at the first.
      first: whether this is the first step.
    """
    shared = hidden @ params["hidden"]
    units = jnp.tanh(shared + projected)
    if "position" in params:
        at = (jnp.arange(len(mask)) + 0.5) / len(mask)
        mean = before @ at / jnp.maximum(before.sum(), TINY)
        gate = nn.sigmoid((params["position"] * (at - mean))[:, None] + shared)
        units *= jnp.where(first, 1, gate)
    return nn.sigmoid(units @ params["energy"]) * mask


def assemble(
    attention: Float[Array, " N"], features: Float[Array, "N d"], mask: Float[Array, " N"], assembly: str
) -> Float[Array, " d"]:
    """x_t, eq. 1: the `sum` of the weighted features as printed, or their `mean` over real segments.

    Eq. 12 distributes the logit over the segments. With a sum, each xi is so small that sigmoid(xi) is about 0.5
    everywhere, and attended ST-GradCAM reduces to the attention. With a mean, xi is as large as the logit.

    Args:
      attention: of each segment.
      features: of each segment.
      mask: 1 at real segments.
      assembly: "sum" or "mean".
    """
    total = attention @ features
    return total / jnp.maximum(mask.sum(), 1) if assembly == "mean" else total


def gradcam_weights(logits_of: Callable[[Array], Array], x: Float[Array, " d"]) -> Float[Array, "k d"]:
    """w_t^c of eq. 11 for each class: the gradient of its logit with respect to the assembled feature."""
    return jax.jacrev(logits_of)(x)


def step(
    params: Params,
    features: Float[Array, "N d"],
    projected: Float[Array, "N a"],
    mask: Float[Array, " N"],
    state: Any,
    before: Float[Array, " N"],
    token: Int[Array, ""],
    first: Bool[Array, ""],
    assembly: str,
) -> tuple[Any, Said, Callable[[Array], Array], Float[Array, " d"]]:
    """One step of the decoder, eqs. 1, 5, 8 and 9.

    Args:
      params: groups `attention`, `decoder` and, with RAM, `ram`.
      features: of the segments.
      projected: U_alpha s_i, which is the same in all steps.
      mask: 1 at real segments.
      state: state of the LSTM; its first part is h_{t-1}.
      before: the attention of the previous step.
      token: y_{t-1}, or the number of classes at the first step.
      first: whether this is the first step.
      assembly: see `assemble`.

    Returns:
      The new state of the LSTM; the output; the logits as a function of x_t with all else fixed; x_t.
    """
    decoder = params["decoder"]
    attention = attend(params["attention"], projected, mask, state[0], before, first)
    x = assemble(attention, features, mask, assembly)
    ram = params["ram"]["weight"] * attention.sum() if "ram" in params else jnp.zeros((), x.dtype)
    others = [decoder["embedding"][token]] + ([ram[None]] if "ram" in params else [])

    def run(x):
        new, h = lstm(decoder["cell"], state, jnp.concatenate([x, *others]))
        return new, h @ decoder["out"]["kernel"] + decoder["out"]["bias"]

    state, logits = run(x)
    return state, Said(attention, logits, ram), lambda x: run(x)[1], x


def start(params: Params) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """The LSTM's state before the first step."""
    h = jnp.zeros_like(params["attention"]["hidden"][:, 0])
    return h, h


def teach(
    params: Params,
    features: Float[Array, "N d"],
    mask: Float[Array, " N"],
    tokens: Int[Array, " t"],
    assembly: str,
) -> Said:
    """All steps [t ...] of the decoder with teacher forcing: step t receives the true class `tokens[t - 1]`.

    Args:
      params: see `step`.
      features: of the segments.
      mask: 1 at real segments.
      tokens: the true class of each step, then the end.
      assembly: see `assemble`.
    """
    projected = features @ params["attention"]["features"]
    num_classes = params["decoder"]["embedding"].shape[0] - 1

    def body(carry, token):
        state, before, told, first = carry
        state, said, *_ = step(params, features, projected, mask, state, before, told, first, assembly)
        return (state, said.attention, token, jnp.array(False)), said

    carry = (start(params), jnp.zeros_like(mask), jnp.int32(num_classes), jnp.array(True))
    return jax.lax.scan(body, carry, tokens)[1]


class Decoded(NamedTuple):
    """The decoder's output for a video, by step."""

    attention: Float[Array, "t N"]
    probability: Float[Array, "t k"]
    """Over the possible choices of the step: the classes not yet chosen and, after the first step, the end."""
    weights: Float[Array, "t c d"]
    """w_t^c of eq. 11."""
    token: Int[Array, " t"]
    """The chosen class; the end in all steps after the end."""


def decode(
    params: Params,
    features: Float[Array, "N d"],
    mask: Float[Array, " N"],
    num_steps: int,
    assembly: str,
) -> Decoded:
    """Greedy decoding with ST-GradCAM in each step; steps after the end are meaningless.

    Args:
      params: see `step`.
      features: of the segments.
      mask: 1 at real segments.
      num_steps: t.
      assembly: see `assemble`.
    """
    projected = features @ params["attention"]["features"]
    end = params["decoder"]["embedding"].shape[0] - 1

    def body(carry, _):
        state, before, token, first, used, over = carry
        args = state, before, token, first, assembly
        state, said, logits_of, x = step(params, features, projected, mask, *args)
        possible = ~used.at[end].set(first)
        probability = nn.softmax(jnp.where(possible, said.logits, -jnp.inf))
        token = jnp.where(over, end, probability.argmax()).astype(jnp.int32)
        over = token == end
        carry = (state, said.attention, token, jnp.array(False), used.at[token].set(True), over)
        return carry, Decoded(said.attention, probability, gradcam_weights(logits_of, x)[:end], token)

    carry = (
        start(params),
        jnp.zeros_like(mask),
        jnp.int32(end),
        jnp.array(True),
        jnp.zeros(end + 1, bool),
        jnp.array(False),
    )
    return jax.lax.scan(body, carry, length=num_steps)[1]


def step_of_class(decoded: Decoded) -> Int[Array, " c"]:
    """The step that chose each class; for other classes the step, up to the end, at which it was most probable."""
    token = decoded.token[:, None]
    end = decoded.probability.shape[1] - 1
    reached = jnp.append(True, decoded.token[:-1] != end)[:, None]
    rank = jnp.where(reached, decoded.probability[:, :end], -1)
    return jnp.where(token == jnp.arange(end), 2, rank).argmax(axis=0)


def coverage_loss(attention: Float[Array, "t N"], valid: Float[Array, " t"]) -> Float[Array, ""]:
    """Eq. 17 as printed, for adjacent steps, summed over the valid steps after the first.

    Args:
      attention: of each step.
      valid: 1 at steps that emit a class.
    """
    cumulative = jnp.cumsum(attention, axis=1).sum(axis=1)
    return (nn.relu(jnp.diff(cumulative)) * valid[1:]).sum()


def targets(labels: Float[Array, " c"], num_steps: int) -> tuple[Int[Array, " t"], Float[Array, " t"]]:
    """The classes of a video by index, then the end; and 1 at the steps with a class."""
    order = jnp.argsort(labels <= 0, stable=True)
    order = jnp.append(order, jnp.zeros(num_steps, order.dtype))[:num_steps]
    valid = jnp.arange(num_steps) < (labels > 0).sum()
    return jnp.where(valid, order, labels.size).astype(jnp.int32), valid.astype(labels.dtype)


def has_terms(config: ConfigDict) -> tuple[bool, ...]:
    """Whether the model has sparsity, coverage and RAM."""
    return tuple(term in config.terms.split("+") for term in TERMS)


def on_grid(config: ConfigDict, video: Video) -> tuple[Float[Array, "N d"], Float[Array, " N"]]:
    """The features of the segments, and their mask."""
    chosen = grid(video.length, config.segments)
    return video.features[chosen], video.mask[chosen]


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """Z starts at 0, and the count as the mean attention: a sum of N attentions would saturate the LSTM."""
    _, covered, counted = has_terms(config)
    dense, recurrent = nn.initializers.lecun_normal(), nn.initializers.orthogonal()
    keys = iter(jax.random.split(key, 8))
    m, d, c = config.hidden, sum(spec.dims), spec.num_classes
    inputs = d + m + counted
    params = {
        "attention": {
            "features": dense(next(keys), (d, m)),
            "hidden": dense(next(keys), (m, m)),
            "energy": dense(next(keys), (m, 1))[:, 0],
        },
        "decoder": {
            "embedding": jax.random.normal(next(keys), (c + 1, m)) / m**0.5,
            "cell": {
                "input": dense(next(keys), (inputs, 4 * m)),
                "recurrent": recurrent(next(keys), (m, 4 * m)),
                "bias": jnp.zeros(4 * m),
            },
            "out": {"kernel": dense(next(keys), (m, c + 1)), "bias": jnp.zeros(c + 1)},
        },
    }
    if covered:
        params["attention"]["position"] = jnp.zeros(config.segments)
    if counted:
        params["ram"] = {"weight": jnp.float32(1 / config.segments)}
    return params


def loss(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eqs. 15 to 18 for one video; the metrics are the weighted terms and the mean attention."""
    sparse, covered, counted = has_terms(config)
    features, mask = on_grid(config, video)
    features = drop_dimensions(step.key, features, config.dropout)
    wanted, valid = targets(video.labels, min(config.max_classes, video.labels.size) + 1)
    said = teach(params, features, mask, wanted, config.assembly)
    log_p = nn.log_softmax(said.logits)[jnp.arange(len(wanted)), wanted]
    steps = jnp.maximum(valid.sum(), 1)
    metrics = {"classification": -(log_p * (jnp.arange(len(wanted)) <= valid.sum())).sum()}
    if sparse:
        metrics["sparsity"] = config.sparsity * (said.attention.sum(axis=1) * valid).sum()
    if covered:
        metrics["coverage"] = config.coverage * coverage_loss(said.attention, valid)
    if counted:
        counts = jnp.append(video.counts, 0)[wanted]
        metrics["ram"] = config.ram * ((counts - said.ram) ** 2 * valid).sum() / (2 * steps)
    total = sum(metrics.values())
    mean = (said.attention.sum(axis=1) * valid).sum() / (steps * jnp.maximum(mask.sum(), 1))
    return total, {"loss": total, **metrics, "attention": mean}  # type: ignore[dict-item]


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """Scores each class by its step (`step_of_class`); segments represent the snippets around them.

    The video score is the probability of the class at its step, among the possible choices. The CAS is the sequence in
    which segments are searched. The attention is the maximum over the steps that chose a class. The evidence is the
    sigmoid of xi of eq. 13, computed for each snippet.
    """
    features, mask = on_grid(config, video)
    num_classes = video.labels.size
    decoded = decode(params, features, mask, min(config.max_classes, num_classes), config.assembly)
    of_class = step_of_class(decoded)
    at = off_grid(video.length, config.segments, len(video.mask))
    there = video.mask[:, None]
    attention = decoded.attention[of_class].T[at] * there
    xi = video.features @ decoded.weights[of_class, jnp.arange(num_classes)].T * there
    evidence = nn.sigmoid(xi) * there
    chosen = (decoded.token < num_classes)[:, None]
    agnostic = jnp.where(chosen, decoded.attention, 0).max(axis=0)[at] * video.mask
    cas = {"attended": attention * evidence, "attention": attention, "gradcam": evidence}[config.localization]
    video_score = decoded.probability[of_class, jnp.arange(num_classes)]
    return Scores(video_score, cas, agnostic, None, evidence, attention)


def check(config: ConfigDict, data: "Dataset") -> None:
    """Raises InputError if counts are needed but unknown, or a video has more classes than `max_classes`."""
    unknown = [meta.id for meta, counts in zip(data.metas, data.counts) if counts.min() < 0]
    terms = config.terms.split("+")
    if "ram" in terms and unknown:
        raise InputError(
            f"star learns from the count of each class in a training video, which is unknown for "
            f"{len(unknown)} of {len(data.metas)} (the first is {unknown[0]}): annotate them, or train without "
            f"RAM: --config=configs/star.py:terms={'+'.join(term for term in terms if term != 'ram')}"
        )
    most = data.labels.sum(axis=1)
    if most.max() > config.max_classes:
        raise InputError(
            f"config.method.max_classes={config.max_classes}: the training video {data.metas[most.argmax()].id} "
            f"has {int(most.max())} classes; give at least as many"
        )


def method(config: ConfigDict) -> Method:
    """STAR with the options of `config`.

    terms: the terms of the model, "stem" and any of "spa", "cov" and "ram", joined by + (Table 1). hidden: units of
    attention, LSTM and embedding. segments: N. max_classes: of a video. sparsity, coverage, ram: the weights of eq. 15.
    dropout: share of the feature dimensions that training drops for a video. assembly: see `assemble`. localization:
    the sequence in which segments are searched: attended, attention or gradcam (Table 2).

    Raises:
      InputError: an unknown term, assembly or localization.
    """
    for option, there in dict(assembly=ASSEMBLIES, localization=LOCALIZATIONS).items():
        if config[option] not in there:
            raise InputError(f"config.method.{option}={config[option]!r}: there are {', '.join(there)}")
    terms = config.terms.split("+")
    if unknown := set(terms) - {"stem", *TERMS}:
        raise InputError(f"config.method.terms={config.terms!r}: no {min(unknown)!r}; there are stem, spa, cov and ram")
    counted = "ram" in terms
    phases = (Phase("train", partial(loss, config), ("attention", "decoder", *(["ram"] if counted else []))),)
    return Method(
        partial(init, config),
        phases,
        partial(score, config),
        propose,
        check=partial(check, config),
        supervision="video labels and counts" if counted else "video labels",
    )


def propose(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """Section 3.2: segments from each model's localization sequence, scored by eq. 14, with NMS over all models.

    It searches for a class in every model if its fused video score is high enough (`localize.predicted_classes`).
    Segments are runs of snippets with a CAS above `thresholds` times its maximum. The score is the mean over the run of
    the fused class attention (eq. 14, where lambda is the share of a weight) times the model's sigmoid(xi); if
    `localization` is "attention" or "gradcam", it is the mean of that factor only. With `confidence` the score is
    multiplied by the fused video score of the class, which eq. 14 does not do. `soft_nms` is not used.

    Args:
      models: the scores of each model, and its options except `reject` and `nms`.
      fused: the fused scores, and options `reject` and `nms`.
      meta: the Meta of the video.
    """
    attention = np.asarray(fused.scores.class_attention, np.float64)
    found = []
    for scores, options in models:
        evidence = np.asarray(scores.evidence, np.float64)
        values = {"attended": attention * evidence, "attention": attention, "gradcam": evidence}[options.localization]
        for c in localize.predicted_classes(fused.scores.video_score, fused.options.reject):
            cas = scores.cas[:, c]
            runs = localize.runs_above(cas, [threshold * cas.max() for threshold in options.thresholds])
            score = localize.run_means(values[:, c], runs)
            if options.confidence:
                score *= fused.scores.video_score[c]
            found.append(localize.detections(runs, c, score, meta))
    return localize.nms_by_class(localize.join(found), fused.options.nms)
