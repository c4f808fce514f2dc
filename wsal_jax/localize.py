"""From the scores of a video to detections in seconds: NumPy, on the host, one video at a time.

The procedure of MAAN (Yuan et al. 2019, sections 2.4 and 3.1) and STPN, and two floors that need no localization.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from wsal_jax.metrics import temporal_iou
from wsal_jax.times import snippet_to_seconds
from wsal_jax.types import Annotation, Detections, InputError, Meta, Scores


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


def nms(segments: Float[np.ndarray, "k 2"], scores: Float[np.ndarray, " k"], iou: float) -> Int[np.ndarray, " kept"]:
    """Non-maximum suppression: indices of the segments that are kept, by descending score.

    A segment goes if its temporal IoU with a kept one of higher score is > `iou`. Equal scores rank in input order.
    Lengths are seconds: BaS-Net and its successors add 1 to them, so they also merge short segments that are disjoint.
    """
    by_start, first, last = _by_start(segments)
    rest, kept = np.ones(len(scores), bool), []
    for best in np.argsort(-scores, kind="stable"):
        if rest[best]:
            kept.append(best)
            near = by_start[first[best] : last[best]]
            rest[near[temporal_iou(segments[[best]], segments[near])[0] > iou]] = False
    return np.array(kept, np.intp)


def nms_by_class(detections: Detections, iou: float) -> Detections:
    """The detections of each class that `nms` keeps, by class."""
    segments, labels, scores = detections
    kept = [np.zeros(0, np.intp)]
    for label in np.unique(labels):
        of_label = np.flatnonzero(labels == label)
        kept.append(of_label[nms(segments[of_label], scores[of_label], iou)])
    kept = np.concatenate(kept)
    return Detections(segments[kept], labels[kept], scores[kept])


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


def propose(scores: Scores, meta: Meta, config: ConfigDict) -> Detections:
    """Detections by thresholding the class activation sequence of each predicted class.

    Of each class in `predicted_classes` and each of `config.thresholds`, a run of snippets whose CAS is > threshold *
    (largest CAS of the class in this video) is a segment, from the left edge of its first to the right edge of its last
    snippet, clipped to [0, meta.duration]. The score is the mean CAS over the snippets of the run times the video score
    of the class; the paper gives no formula. Segments that are empty after clipping go; then `nms` of each class, over
    all thresholds together, or `soft_nms` instead. A class whose CAS is nowhere positive has no detection.

    Args:
      scores: of one video without padding, NumPy.
      meta: of the same video.
      config: `reject` (see `predicted_classes`), `thresholds`, `nms` (the IoU), `soft_nms` (the sigma; 0 for `nms`).

    Raises:
      ValueError: the CAS does not have `meta.length` snippets.
    """
    if len(scores.cas) != meta.length:
        raise ValueError(
            f"video {meta.id!r}: the CAS has {len(scores.cas)} snippets, the video {meta.length}; cut off the padding"
        )
    classes = predicted_classes(scores.video_score, config.reject).tolist()
    found = [_of_class(scores, c, meta, config) for c in classes]
    return Detections(*(np.concatenate(parts) for parts in zip(*found)))


def _of_class(scores: Scores, c: int, meta: Meta, config: ConfigDict) -> Detections:
    """The detections of one class, by descending score."""
    cas = np.asarray(scores.cas[:, c], np.float64)
    peak = cas.max(initial=0)
    runs = np.concatenate([components(cas > threshold * peak) for threshold in config.thresholds])
    segments = snippet_to_seconds(runs - 0.5, meta).clip(0, meta.duration)
    total = np.cumsum(np.append(0, cas))
    score = scores.video_score[c] * (total[runs[:, 1]] - total[runs[:, 0]]) / (runs[:, 1] - runs[:, 0])
    real = segments[:, 0] < segments[:, 1]
    segments, score = segments[real], score[real]
    if config.soft_nms:
        score = soft_nms(segments, score, config.soft_nms)
        kept = np.argsort(-score, kind="stable")
    else:
        kept = nms(segments, score, config.nms)
    return Detections(segments[kept], np.full(len(kept), c), score[kept])


def inside(annotation: Annotation, meta: Meta) -> Bool[np.ndarray, " n"]:
    """The snippets whose centre lies in a true segment [start, end) of any class."""
    centres = snippet_to_seconds(np.arange(float(meta.length)), meta)[:, None]
    return ((annotation.segments[:, 0] <= centres) & (centres < annotation.segments[:, 1])).any(axis=1)


def whole_video(scores: Scores, meta: Meta, config: ConfigDict) -> Detections:
    """The floor without localization: [0, duration] for each of `predicted_classes`, with its video score.

    `config` is that of `propose`, of which only `reject` matters.
    """
    classes = predicted_classes(scores.video_score, config.reject)
    return Detections(np.tile([0.0, meta.duration], (len(classes), 1)), classes, scores.video_score[classes])


def shuffle(scores: Scores, rng: np.random.Generator) -> Scores:
    """The floor of scores at random times: CAS and attention of unpadded scores in one permutation of the snippets.

    The video score stays; extras are dropped, as we do not know which of them run along time.
    """
    order = rng.permutation(len(scores.attention))
    return Scores(scores.video_score, scores.cas[order], scores.attention[order], {})
