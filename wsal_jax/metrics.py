"""Average precision, and mAP of detection, classification and highlights under the rules of `wsal_jax.matching`.

Average precision is always a fraction, per class, and NaN for a class that does not occur in the ground truth. NumPy,
on the host.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from wsal_jax.matching import FORGIVEN, Matched, match, rule_of
from wsal_jax.matching import IOUS as IOUS  # re-exported for callers of this module
from wsal_jax.matching import PROTOCOLS as PROTOCOLS
from wsal_jax.matching import temporal_iou as temporal_iou
from wsal_jax.types import Annotation, Detections, InputError


class DetectionMap(NamedTuple):
    ap: Float[np.ndarray, "i c"]
    """AP by IoU threshold and class; NaN for a class without true segments."""
    mean: Float[np.ndarray, " i"]
    """The protocol's mAP over the classes with true segments; NaN if there are none."""
    videos: int
    """Number of videos in the ground truth."""
    classes: int
    """Number of classes with true segments."""
    instances: int
    """Number of true segments."""
    detections: int
    """Number of detections of all classes, without those that the protocol drops."""


def average_precision(
    scores: Float[np.ndarray, " k"], hits: Bool[np.ndarray, " k"], num_positive: int, interpolate: bool = True
) -> float:
    """The mean over the positives of the precision at their rank, by default interpolated as in VOC 2011.

    With interpolation, the precision at a hit is the best precision at this or any lower score. A positive without a
    hit counts 0. Equal scores keep the input order (a stable sort), so the result is deterministic.

    Args:
      scores: of the detections.
      hits: which of them are hits.
      num_positive: number of positives, hit or not.
      interpolate: whether to interpolate.

    Returns:
      The average precision; NaN without positives, and 0 without hits.
    """
    if num_positive == 0:
        return np.nan
    hits = hits[np.argsort(-scores, kind="stable")][None]
    return float(_average_precision(hits, np.ones_like(hits), num_positive, interpolate)[0])


def _average_precision(
    hits: Bool[np.ndarray, "i k"], counts: Bool[np.ndarray, "i k"], num_positive: int, interpolate: bool
) -> Float[np.ndarray, " i"]:
    """AP of ranked detections; detections with `counts` False are neither hits nor false positives."""
    precision = np.cumsum(hits, axis=1) / np.maximum(np.cumsum(counts, axis=1), 1)
    if interpolate:
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (precision * hits).sum(axis=1) / num_positive


def detection_map(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    ious: Float[np.ndarray, " i"],
    protocol: str = "activitynet",
) -> DetectionMap:
    """AP and mAP of detections by video id at each IoU threshold, by a rule of `PROTOCOLS`.

    A class with true segments but no detections has AP 0; under `wtalc` it makes the mAP 0. A class without true
    segments has AP NaN, and its detections do not count. Arguments and errors are those of `match`.
    """
    rule = rule_of(protocol)
    matched = match(detections, truth, num_classes, ious, protocol)
    ap = np.full((len(ious), num_classes), np.nan)
    num_positive = np.array([m.num_positive.sum() for m in matched], int)
    present = np.flatnonzero(num_positive)
    for c in present:
        taken = matched[c].taken
        ap[:, c] = _average_precision(taken >= 0, taken != FORGIVEN, int(num_positive[c]), rule.interpolated)
    mean = ap[:, present].mean(axis=1) if len(present) else np.full(len(ious), np.nan)
    if rule.undetected == "all" and any(len(matched[c].videos) == 0 for c in present):
        mean = np.zeros(len(ious))
    return DetectionMap(
        ap=ap,
        mean=mean,
        videos=len(truth),
        classes=len(present),
        instances=int(num_positive.sum()),
        detections=sum(len(m.videos) for m in matched),
    )


def bootstrap(
    matched: Sequence[Matched],
    protocol: str = "activitynet",
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    averages: Sequence[Sequence[int]] | None = None,
) -> Float[np.ndarray, "rows 2"]:
    """Bootstrap intervals of the mAP at each IoU threshold and, in the last row, of the average over thresholds.

    They are basic (reverse percentile) intervals: if the fraction `level` of the samples has a mAP within
    [m - a, m + b], where m is the mAP of the original videos, the interval is [m - b, m + a], clipped to [0, 1]. The
    mAP of few videos is biased upwards, and that of a sample with repeated videos even more. Plain percentile intervals
    would add to this bias; basic intervals correct it. In a simulation (samples of 200 videos of 6,000, 20 classes, IoU
    0.3, 0.5, 0.7), basic 95 % intervals contained the mAP of all videos in 84, 80 and 90 % of 80 cases, and plain
    percentile intervals in 75, 63 and 30 %.

    Each sample draws as many videos as there are, with replacement, and the protocol evaluates it from the ranking on.
    A video drawn twice counts as two videos, each with its true segments and detections, matched as in the original;
    the copies of a detection have adjacent ranks. The mean of a sample leaves out classes without true segments in it.
    (Under `wtalc`, the mAP of a sample is 0 if a class has true segments but no detections in it.)

    Args:
      matched: what `match` returned under the same protocol.
      protocol: a key of `PROTOCOLS`.
      samples: number of samples.
      seed: of the random draws.
      level: the fraction of samples inside the interval; the rest is split equally between both sides.
      averages: for each average that has a row at the end, the indices of its thresholds; one average of all by default.

    Returns:
      Rows (low, high), as fractions.

    Raises:
      InputError: an unknown protocol, or no true segments.
    """
    rule_of(protocol)
    matched = [m for m in matched if m.num_positive.any()]
    if not matched:
        raise InputError("no true segments, so there is no mAP to resample")
    mean = resample(matched, draw(len(matched[0].num_positive), samples, seed), protocol)
    places = [range(mean.shape[1])] if averages is None else averages
    columns = np.concatenate([mean, *(mean[:, list(of)].mean(axis=1, keepdims=True) for of in places)], axis=1)
    ends = np.nanpercentile(columns[1:], [50 * (1 + level), 50 * (1 - level)], axis=0)
    return np.clip(2 * columns[0] - ends, 0, 1).T


def draw(videos: int, samples: int, seed: int) -> Int[np.ndarray, "s v"]:
    """How often each video is in each sample of as many as there are; in the first, all are once. s = samples + 1."""
    copies = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), samples)
    return np.concatenate([np.ones((1, videos), copies.dtype), copies])


def resample(
    matched: Sequence[Matched], copies: Int[np.ndarray, "s v"], protocol: str = "activitynet"
) -> Float[np.ndarray, "s i"]:
    """The mAP of each sample at each IoU threshold, as `bootstrap` says; NaN where a sample has no true segment."""
    rule = rule_of(protocol)
    matched = [m for m in matched if m.num_positive.any()]
    samples, ious = len(copies), len(matched[0].taken)
    total, classes = np.zeros((samples, ious)), np.zeros((samples, 1))
    undetected = np.zeros(samples, bool)
    for m in matched:
        step = max(1, WEIGHTS_AT_ONCE // max(1, len(m.videos)))
        for part in (slice(start, start + step) for start in range(0, samples, step)):
            positive = copies[part] @ m.num_positive
            weights = copies[part][:, m.videos]
            total[part] += _sum_of_precisions(m.taken, weights, rule.interpolated) / np.maximum(positive, 1)[:, None]
            classes[part] += positive[:, None] > 0
            undetected[part] |= (positive > 0) & ~weights.any(axis=1)
    mean = np.divide(total, classes, out=np.full_like(total, np.nan), where=classes > 0)
    if rule.undetected == "all":
        mean[undetected] = 0
    return mean


WEIGHTS_AT_ONCE = 2**22


def _sum_of_precisions(
    taken: Int[np.ndarray, "i k"], weights: Int[np.ndarray, "s k"], interpolate: bool
) -> Float[np.ndarray, "s i"]:
    """AP times the number of positives if each ranked detection is repeated `weights` times.

    If w copies of a hit follow F false positives, and the last copy is the n-th detection, their precisions are
    `1 - F / (n - w + 1), ..., 1 - F / n`. They increase, so only the last one matters for interpolation.
    """
    sums = np.zeros((len(weights), len(taken)))
    rank = np.cumsum(weights, axis=1)
    harmonic = np.cumsum(np.append(0, 1 / np.arange(1, rank[:, -1:].max(initial=0) + 1)))
    for i, row in enumerate(taken):
        hits = np.flatnonzero(row >= 0)
        w, n = weights[:, hits], rank[:, hits]
        if (row == FORGIVEN).any():
            n = np.cumsum(weights * (row != FORGIVEN), axis=1)[:, hits]
        positive = np.cumsum(w, axis=1)
        if interpolate:
            precision = positive / np.maximum(n, 1)
            sums[:, i] = (w * np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]).sum(axis=1)
        else:
            sums[:, i] = (w - (n - positive) * (harmonic[n] - harmonic[n - w])).sum(axis=1)
    return sums


def classification_ap(
    video_scores: Float[np.ndarray, "v c"], labels: Num[np.ndarray, "v c"], interpolate: bool = True
) -> Float[np.ndarray, " c"]:
    """Average precision of ranking all v videos by their score, for each class; its mean is "Cls mAP".

    `labels` are positive where the video has the class. With interpolation this is `eval_classification.py` of the
    official ActivityNet evaluator; without, it is W-TALC's `classificationMAP.py`, which many papers use. A class
    without a video gets NaN: the former does not evaluate it, and in the latter it makes the mean NaN.
    """
    return np.array(
        [average_precision(s, y, int(y.sum()), interpolate) for s, y in zip(video_scores.T, labels.T > 0)], np.float64
    )


def attention_statistics(
    videos: Sequence[tuple[Bool[np.ndarray, " _"], Bool[np.ndarray, " _"], Bool[np.ndarray, " _"] | None]],
) -> dict[str, float]:
    """How far attention and classifier differ from the ground truth, as in table 2 of DGAM (Shi et al. 2020).

    Each video gives three sets of snippets as masks: `gt` (inside a true segment), `att` (attention above a threshold)
    and `cls` (classified as an action; None for all videos if the model has no such classification). Sizes are summed
    over videos, then divided by the size of `gt`. Lower is better for |att - gt| (false activation) and |gt - att|
    (omission). Higher is better for |(cls - gt) - att| (false positives of the classifier that the attention rejects)
    and |(att & gt) - cls| (true snippets that only the attention finds). NaN if no snippet is in a true segment.
    """
    sizes = {"|att - gt|": 0, "|gt - att|": 0, "|(cls - gt) - att|": 0, "|(att & gt) - cls|": 0}
    true = 0
    for gt, att, cls in videos:
        true += gt.sum()
        sizes["|att - gt|"] += (att & ~gt).sum()
        sizes["|gt - att|"] += (gt & ~att).sum()
        if cls is None:
            sizes = {name: sizes[name] for name in list(sizes)[:2]}
        else:
            sizes["|(cls - gt) - att|"] += (cls & ~gt & ~att).sum()
            sizes["|(att & gt) - cls|"] += (att & gt & ~cls).sum()
    return {name: float(size / true) if true else np.nan for name, size in sizes.items()}


def clip_ap(scores: Float[np.ndarray, " k"], match: Int[np.ndarray, " k"]) -> float:
    """Average precision of ranking the clips of one video, for highlight detection.

    `match` is 1 for a highlight, 0 if the annotators were unsure, and -1 for no highlight; the last two are negatives.
    The AP is the area under the precision-recall curve by trapezoids, starting from precision 1 at recall 0. UMT (Liu
    et al. 2022) and its successors use it on YouTube Highlights. Random scores on its 157 test videos then give 51.1
    percent by `highlight_map`. The plain mean of the precisions at the highlights would give 54.6, and 60.1 without the
    unsure clips.

    Equal scores keep the input order. A video of highlights only has AP 1. A video without highlights has NaN (UMT: 0;
    the data have none).
    """
    hits = match[np.argsort(-scores, kind="stable")] > 0
    if not hits.any():
        return np.nan
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    before = np.append(1, precision[:-1])
    return float(((precision + before) / 2)[hits].mean())


def highlight_map(
    videos: Sequence[tuple[str, Float[np.ndarray, " _"], Int[np.ndarray, " _"]]],
) -> tuple[dict[str, float], float]:
    """The mean `clip_ap` of each domain, and its mean over domains, from (domain, scores, match) of each video.

    Videos without a highlight are excluded, and so are domains without any other video. NaN if none remains.
    """
    by_domain: dict[str, list[float]] = {}
    for domain, scores, highlight in videos:
        if (highlight > 0).any():
            by_domain.setdefault(domain, []).append(clip_ap(scores, highlight))
    means = {domain: float(np.mean(values)) for domain, values in by_domain.items()}
    return means, float(np.mean(list(means.values()))) if means else np.nan
