"""From the scores of a video to detections in seconds: NumPy, on the host, one video at a time.

The steps that all methods share (classes, runs, their means, seconds, suppression), the procedure of MAAN (Yuan et al.
2019, sections 2.4 and 3.1) and STPN made of them, and two floors that need no localization.

A run [first, end) has the edges of its snippets, which are integers: snippet i is from i to i + 1.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax.metrics import temporal_iou
from wsal_jax.times import snippet_to_seconds
from wsal_jax.types import SEQUENCES, Annotation, Detections, InputError, Meta, Model, Scores


def predicted_classes(video_score: Float[np.ndarray, " c"], reject: float) -> Int[np.ndarray, " k"]:
    """The classes whose probability is at least `reject`, ascending; the most probable class alone if there is none.

    Section 3.1 rejects classes "whose video-level probabilities are below 0.1"; that the best one stays is ours, so
    that every video has a detection.
    """
    classes = np.flatnonzero(video_score >= reject)
    return classes if len(classes) else np.argmax(video_score, keepdims=True)


def components(mask: Bool[np.ndarray, " n"]) -> Int[np.ndarray, "k 2"]:
    """The maximal runs of True as [first, last + 1), in order."""
    return np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)


def runs_above(values: Float[np.ndarray, " n"], levels: Iterable[float | np.floating]) -> Int[np.ndarray, "k 2"]:
    """The `components` above each of the levels, one level after the other.

    Args:
      values: of the snippets.
      levels: absolute.
    """
    return np.concatenate([components(values > level) for level in levels])


def run_sums(values: Float[np.ndarray, " n"], runs: Shaped[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
    """The sum of the values of each run; of a snippet that it covers in part, that part. What is outside adds 0.

    Args:
      values: of the snippets.
      runs: from edge to edge, which need not be those of snippets.
    """
    total = np.append(0, np.cumsum(values, dtype=np.float64))
    start, end = np.interp(runs, np.arange(len(total)), total).T
    return end - start


def run_means(values: Float[np.ndarray, " n"], runs: Shaped[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
    """The mean over the part of each run that is among the n values; 0 where there is none. See `run_sums`."""
    length = np.diff(runs.clip(0, len(values)), axis=1)[:, 0]
    return run_sums(values, runs) / np.where(length > 0, length, 1)


def flanks(
    runs: Int[np.ndarray, "k 2"], length: Float[np.ndarray, "k 1"] | Int[np.ndarray, "k 1"]
) -> tuple[Shaped[np.ndarray, "k 2"], Shaped[np.ndarray, "k 2"]]:
    """The intervals of the given lengths before and after each run; they may extend beyond the video."""
    start, end = runs[:, :1], runs[:, 1:]
    return np.concatenate([start - length, start], axis=1), np.concatenate([end, end + length], axis=1)


def contrast(values: Float[np.ndarray, " n"], runs: Int[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
    """Outer-inner contrast: the mean over each run minus the mean over both its flanks together.

    A flank has a quarter of the run's values, rounded down, less what is outside the video; without any, the outer mean
    is 0.

    Args:
      values: of one class.
      runs: among them.
    """
    around = [flank.clip(0, len(values)) for flank in flanks(runs, np.diff(runs) // 4)]
    total = sum(run_sums(values, flank) for flank in around)
    count = sum(np.diff(flank)[:, 0] for flank in around)
    return run_means(values, runs) - total / np.maximum(count, 1)


def by_contrast(
    level: Float[np.ndarray, "m #c"],
    values: Float[np.ndarray, "m c"],
    video_score: Float[np.ndarray, " c"],
    meta: Meta,
    options: ConfigDict | FrozenConfigDict,
) -> Detections:
    """The detections of each of `predicted_classes`, before suppression: runs at several thresholds, by `contrast`.

    A run of values whose level is > one of the thresholds, which are absolute, is a segment; equal ones of several
    thresholds all stay. Its score is its contrast plus `options.prior` times the video score of the class, and 0 where
    that is negative, since suppression multiplies scores by less than 1, which would raise negative ones.

    Args:
      level: what is cut: of each class, or one for all; m is a multiple of the video's snippets, see `upsample`.
      values: what scores.
      video_score: of each class.
      meta: of the video.
      options: `reject`, `thresholds` and `prior`.
    """
    level = np.broadcast_to(level, values.shape)
    found = []
    for c in predicted_classes(video_score, options.reject):
        runs = runs_above(level[:, c], options.thresholds)
        score = contrast(values[:, c], runs) + options.prior * video_score[c]
        found.append(detections(runs * (meta.length / len(level)), c, np.maximum(score, 0), meta))
    return join(found)


def upsample(values: Float[np.ndarray, "n c"], factor: int) -> Float[np.ndarray, "m c"]:
    """`factor` values for each, interpolated linearly; beyond the last one as between the last two. m = n factor."""
    values = np.concatenate([values, 2 * values[-1:] - values[-2:][:1]])
    at = np.arange((len(values) - 1) * factor) / factor
    return np.stack([np.interp(at, np.arange(len(values)), column) for column in values.T], axis=1)


def detections(
    runs: Shaped[np.ndarray, "k 2"], label: int | np.integer, scores: Float[np.ndarray, " k"], meta: Meta
) -> Detections:
    """Runs of one class in seconds, clipped to [0, meta.duration]; those that are empty then go.

    Args:
      runs: from edge to edge, in snippets.
      label: the class.
      scores: of the runs.
      meta: of the video.
    """
    segments = snippet_to_seconds(runs - 0.5, meta).clip(0, meta.duration)
    real = segments[:, 0] < segments[:, 1]
    return Detections(segments[real], np.full(real.sum(), label), scores[real])


def join(found: Iterable[Detections]) -> Detections:
    """All detections, in the order given."""
    nothing = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    return Detections(*(np.concatenate(parts) for parts in zip(nothing, *found)))


def nms(segments: Float[np.ndarray, "k 2"], scores: Float[np.ndarray, " k"], iou: float) -> Int[np.ndarray, " kept"]:
    """Non-maximum suppression: indices of the segments that are kept, by descending score.

    A segment goes if its temporal IoU with a kept one of higher score is > `iou`. Equal scores rank in input order.
    Lengths are seconds: BaS-Net and its successors add 1 to them, so they also merge short segments that are disjoint.

    Args:
      segments: in any order.
      scores: of the segments.
      iou: the most that two kept segments overlap by.
    """
    order = np.argsort(-scores, kind="stable")
    return order[_suppressing(segments, scores, iou)[order] < 0]


def returning_nms(
    segments: Float[np.ndarray, "k 2"], scores: Float[np.ndarray, " k"], iou: float, sigma: float | int
) -> Float[np.ndarray, " k"]:
    """`nms` after which what goes comes back once, with a decayed score; the scores of all segments, in input order.

    The score of a segment that is not kept becomes `score * exp(-o ** 2 / sigma)`, where o is its temporal IoU with the
    kept one that suppressed it. Scores are >= 0.

    Raises:
      InputError: a sigma that is not positive.
    """
    if not sigma > 0:
        raise InputError(f"sigma of NMS with decayed return is {sigma}: must be positive")
    return scores * np.exp(-(_suppressing(segments, scores, iou).clip(0) ** 2) / sigma)


def _suppressing(
    segments: Float[np.ndarray, "k 2"], scores: Float[np.ndarray, " k"], iou: float
) -> Float[np.ndarray, " k"]:
    """For each segment its IoU with the one that makes it go in `nms`, the first to; -1 for segments that are kept."""
    by_start, first, last = _by_start(segments)
    rest, overlaps = np.ones(len(scores), bool), np.full(len(scores), -1.0)
    for best in np.argsort(-scores, kind="stable"):
        if rest[best]:
            rest[best] = False
            near = by_start[first[best] : last[best]]
            near = near[rest[near]]
            overlap = temporal_iou(segments[[best]], segments[near])[0]
            overlaps[near[overlap > iou]] = overlap[overlap > iou]
            rest[near[overlap > iou]] = False
    return overlaps


def nms_by_class(detections: Detections, iou: float) -> Detections:
    """The detections of each class that `nms` keeps, by class."""
    segments, labels, scores = detections
    kept = [np.zeros(0, np.intp)]
    for label in np.unique(labels):
        of_label = np.flatnonzero(labels == label)
        kept.append(of_label[nms(segments[of_label], scores[of_label], iou)])
    kept = np.concatenate(kept)
    return Detections(segments[kept], labels[kept], scores[kept])


def rescore_by_class(
    detections: Detections,
    rescore: Callable[[Float[np.ndarray, "k 2"], Float[np.ndarray, " k"]], Float[np.ndarray, " k"]],
) -> Detections:
    """All detections, by class, with the scores of `rescore(segments, scores)` of each: `soft_nms`, `returning_nms`."""
    found = []
    for label in np.unique(detections.labels):
        segments, labels, scores = (part[detections.labels == label] for part in detections)
        found.append(Detections(segments, labels, rescore(segments, scores)))
    return join(found)


def soft_nms(
    segments: Float[np.ndarray, "k 2"], scores: Float[np.ndarray, " k"], sigma: float | int
) -> Float[np.ndarray, " k"]:
    """Gaussian soft non-maximum suppression (Bodla et al. 2017, equation 4): the decayed scores, in input order.

    The segment of the highest score is selected, the scores of those not yet selected become `score * exp(-iou ** 2 /
    sigma)` with their temporal IoU with it, and so on until all are selected. Scores are >= 0. Of equal scores the
    first in input order is selected. Lengths are seconds, as in `nms`; no segment goes, whatever becomes of its score.

    Raises:
      InputError: a sigma that is not positive.
    """
    if not sigma > 0:
        raise InputError(f"sigma of soft NMS is {sigma}: must be positive")
    by_start, first, last = _by_start(segments)
    decayed = scores.astype(np.float64)
    waiting = decayed.copy()  # -inf where selected
    for _ in range(len(scores)):
        best = waiting.argmax()
        waiting[best] = -np.inf
        near = by_start[first[best] : last[best]]
        near = near[waiting[near] > -np.inf]
        decayed[near] *= np.exp(-(temporal_iou(segments[[best]], segments[near])[0] ** 2) / sigma)
        waiting[near] = decayed[near]
    return decayed


def _by_start(
    segments: Float[np.ndarray, "k 2"],
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Order by start, and for each segment the range in it that holds all segments that overlap with it."""
    order = np.argsort(segments[:, 0], kind="stable")
    start, end = segments.T
    furthest_end = np.maximum.accumulate(end[order])
    return order, np.searchsorted(furthest_end, start, "right"), np.searchsorted(start[order], end)


def propose(models: Sequence[Model], fused: Model, meta: Meta) -> Detections:
    """Detections by thresholding the fused class activation sequence of each predicted class.

    Of each class in `predicted_classes` and each of `thresholds`, a run of snippets whose CAS is > threshold *
    (largest CAS of the class in this video) is a segment, from the left edge of its first to the right edge of its last
    snippet, clipped to [0, meta.duration]. The score is the mean CAS over the snippets of the run times the video score
    of the class; the paper gives no formula. Segments that are empty after clipping go; then `nms` of each class, over
    all thresholds together, or `soft_nms` instead. A class whose CAS is nowhere positive has no detection.

    Args:
      models: not used.
      fused: options `reject` (see `predicted_classes`), `thresholds`, `nms` (the IoU), `soft_nms` (the sigma; 0 for
        `nms`).
      meta: of the same video.

    Raises:
      ValueError: the CAS does not have `meta.length` snippets.
    """
    scores, options = fused
    if len(scores.cas) != meta.length:
        raise ValueError(
            f"video {meta.id!r}: the CAS has {len(scores.cas)} snippets, the video {meta.length}; cut off the padding"
        )
    classes = predicted_classes(scores.video_score, options.reject).tolist()
    return join(_of_class(scores, c, meta, options) for c in classes)


def _of_class(scores: Scores, c: int, meta: Meta, options: ConfigDict | FrozenConfigDict) -> Detections:
    """The detections of one class, by descending score."""
    cas = np.asarray(scores.cas[:, c], np.float64)
    peak = cas.max(initial=0)
    runs = runs_above(cas, [threshold * peak for threshold in options.thresholds])
    score = scores.video_score[c] * run_sums(cas, runs) / (runs[:, 1] - runs[:, 0])
    segments, labels, score = detections(runs, c, score, meta)
    if options.soft_nms:
        score = soft_nms(segments, score, options.soft_nms)
        kept = np.argsort(-score, kind="stable")
    else:
        kept = nms(segments, score, options.nms)
    return Detections(segments[kept], labels[kept], score[kept])


def inside(annotation: Annotation, meta: Meta) -> Bool[np.ndarray, " n"]:
    """The snippets whose centre lies in a true segment [start, end) of any class."""
    centres = snippet_to_seconds(np.arange(float(meta.length)), meta)[:, None]
    return ((annotation.segments[:, 0] <= centres) & (centres < annotation.segments[:, 1])).any(axis=1)


def whole_video(scores: Scores, meta: Meta, options: ConfigDict | FrozenConfigDict) -> Detections:
    """The floor without localization: [0, duration] for each of `predicted_classes`, with its video score.

    `options` are those of `propose`, of which only `reject` matters.
    """
    classes = predicted_classes(scores.video_score, options.reject)
    return Detections(np.tile([0.0, meta.duration], (len(classes), 1)), classes, scores.video_score[classes])


def shuffle(scores: Scores, rng: np.random.Generator) -> Scores:
    """The floor of scores at random times: all sequences of unpadded scores in one permutation of the snippets.

    The video score stays; extras are dropped, as we do not know which of them run along time.
    """
    order = rng.permutation(len(scores.attention))
    sequences = {name: getattr(scores, name) for name in SEQUENCES if getattr(scores, name) is not None}
    return scores._replace(extras=None, **{name: x[order] for name, x in sequences.items()})


RASTER = 224
"""Maps of images are scaled to RASTER x RASTER values before they are cut, whatever the image's size and shape."""


def upscale(values: Float[np.ndarray, "h w"], rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """A map scaled bilinearly, cell centres to cell centres; beyond the outermost centres it stays as there."""

    def along(values, m):  # of the first axis; a product of matrices would wake all threads for nothing
        n = len(values)
        at = ((np.arange(m) + 0.5) * n / m - 0.5).clip(0, n - 1)
        low = np.floor(at).astype(int)
        share = (at - low)[:, None]
        return values[low] * (1 - share) + values[np.minimum(low + 1, n - 1)] * share

    return along(along(values, rows).T, columns).T


def propose_boxes(
    values: Float[np.ndarray, "h w"],
    size: tuple[int, int],
    threshold: float,
    normalize: str = "max",
    most: int = 1,
) -> tuple[Float[np.ndarray, "k 4"], Float[np.ndarray, " k"]]:
    """The boxes of the largest regions (8-connected, by area) of a map of one class; the whole image if there is none.

    Args:
      values: the map; a NaN anywhere makes it of no use.
      size: width and height of the image.
      threshold: regions are above this share of the map's maximum, or of its range.
      normalize: "max" or "minmax", which are different metrics.
      most: how many boxes at most.

    Returns:
      x0, y0, x1, y1 in pixels, the largest region first, and each region's mean on a scale where the level of
      `normalize` is 0 and the maximum 1.
    """
    from scipy import ndimage

    raster = upscale(values.astype(np.float64), RASTER, RASTER)
    high, low = raster.max(), raster.min() if normalize == "minmax" else 0.0
    regions, count = ndimage.label(raster > low + threshold * (high - low), np.ones((3, 3)))
    if not count:
        return np.array([[0.0, 0.0, *size]]), np.ones(1)
    largest = np.argsort(-np.bincount(regions.ravel())[1:], kind="stable")[:most]
    slices = ndimage.find_objects(regions)
    edges = np.array([[x.start, y.start, x.stop, y.stop] for y, x in (slices[i] for i in largest)]) / RASTER
    means = ndimage.mean(raster, regions, largest + 1)
    return edges * np.array([*size, *size]), (np.asarray(means) - low) / (high - low)


def propose_box(
    values: Float[np.ndarray, "h w"], size: tuple[int, int], threshold: float, normalize: str = "max"
) -> Float[np.ndarray, "4"]:
    """The first of `propose_boxes`."""
    return propose_boxes(values, size, threshold, normalize)[0][0]
