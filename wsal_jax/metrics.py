"""Temporal IoU, average precision, and detection mAP by the rule of the official ActivityNet evaluator.

NumPy, on the host. Average precision is always a fraction, per class; `np.nanmean` over classes is the mAP, for a class
that does not occur in the ground truth has NaN.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Num

from wsal_jax.types import Annotation, Detections

IOUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of THUMOS14. `np.linspace(0.1, 0.9, 9)[2]` is above 0.3 and would miss an overlap of exactly 3 / 10."""


def temporal_iou(a: Float[np.ndarray, "k 2"], b: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "k l"]:
    """Intersection over union of the segments [start, end) of `a` with those of `b`, by their lengths in seconds.

    Lengths are `end - start`; many code bases add 1, which is right for inclusive indices only. Segments that do not
    overlap, have no length, or end before they start have IoU 0, with themselves too.
    """
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    intersection = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def average_precision(scores: Float[np.ndarray, " k"], hits: Bool[np.ndarray, " k"], num_positive: int) -> float:
    """All-point interpolated average precision of VOC 2011: the mean over the positives of the interpolated precision.

    The precision at a hit is interpolated to the best precision at this or any lower score; a positive that is not
    hit counts 0. Equal scores rank in input order (a stable sort), so the result is always the same.

    Returns NaN if there is no positive, and 0 if there is no hit.
    """
    if num_positive == 0:
        return np.nan
    hits = hits[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    return float(interpolated[hits].sum() / num_positive)


def detection_ap(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    ious: Float[np.ndarray, " i"],
) -> Float[np.ndarray, "i c"]:
    """Average precision of detections by video id, for each IoU threshold and class: protocol `activitynet`.

    The rule of `eval_detection.py` of the official ActivityNet evaluator. The detections of a class are ranked by score
    over all videos. In this order each takes, of the true segments of its class and video that are not taken yet, the
    one it overlaps most, and is a hit if their temporal IoU is >= the threshold; otherwise it takes none and is a false
    positive. So a second detection of a segment can still hit its neighbour, unlike in the VOC rule. Each threshold
    is matched for itself. Detections in a video that `truth` does not have, or that lacks the class, are false
    positives.

    A class with true segments and no detection has AP 0. A class without true segments has NaN.

    Of several equally overlapped segments the last is taken. The official code leaves that to an unstable `argsort`,
    reversed; in 15 cases of the published STPN detections it matters, and mAP@0.1 is 52.12 there and 52.10 here.

    How we differ: equal scores rank in the order of the videos in `detections`, then in input order (officially
    up to `argsort`); detections of a class without true segments do not count (officially a
    KeyError); two segments without length do not match (officially 0 / 0 does).

    Raises:
      ValueError: a label that is not in [0, num_classes); the message names the video.
    """
    for kind, videos in (("detections", detections), ("truth", truth)):
        for name, video in videos.items():
            if np.any((video.labels < 0) | (video.labels >= num_classes)):
                raise ValueError(
                    f"{kind} of video {name!r}: labels {np.unique(video.labels)} are not all in [0, {num_classes}); "
                    "number the classes of detections and truth in the same way, and pass how many there are"
                )
    num_positive = np.bincount(
        np.concatenate([np.zeros(0, int), *(video.labels for video in truth.values())]), minlength=num_classes
    )
    scores = [[np.zeros(0)] for _ in range(num_classes)]
    hits = [[np.zeros((0, len(ious)), bool)] for _ in range(num_classes)]
    nothing = Annotation(np.zeros((0, 2)), np.zeros(0, int))
    for name, video in detections.items():
        true = truth.get(name, nothing)
        order = np.argsort(-video.scores, kind="stable")
        for c in np.unique(video.labels):
            of_class = order[video.labels[order] == c]
            overlap = temporal_iou(video.segments[of_class], true.segments[true.labels == c])
            scores[c].append(video.scores[of_class])
            hits[c].append(_match(overlap, ious))
    ap = np.empty((len(ious), num_classes))
    for c in range(num_classes):
        of_class, hit = np.concatenate(scores[c]), np.concatenate(hits[c])
        ap[:, c] = [average_precision(of_class, hit[:, i], int(num_positive[c])) for i in range(len(ious))]
    return ap


def _match(overlap: Float[np.ndarray, "k l"], ious: Float[np.ndarray, " i"]) -> Bool[np.ndarray, "k i"]:
    """Which of k detections, best first, hit one of the l true segments of their class and video, by threshold."""
    hits = np.zeros((len(overlap), len(ious)), bool)
    if not overlap.size:
        return hits
    order = np.argsort(overlap, axis=1, kind="stable")[:, ::-1]
    taken = np.zeros((len(ious), overlap.shape[1]), bool)
    rows = np.arange(len(ious))
    for k in np.flatnonzero(overlap.max(axis=1) >= ious.min()):
        can_take = (overlap[k, order[k]] >= ious[:, None]) & ~taken[:, order[k]]
        best = can_take.argmax(axis=1)
        hits[k] = can_take[rows, best]
        taken[rows, order[k, best]] |= hits[k]
    return hits


def classification_ap(
    video_scores: Float[np.ndarray, "v c"], labels: Num[np.ndarray, "v c"]
) -> Float[np.ndarray, " c"]:
    """Interpolated average precision of ranking all v videos by their score, for each class; its mean is "Cls mAP".

    `labels` are positive where the video has the class. A class that no video has gets NaN. W-TALC's
    `classificationMAP.py`, which many papers use, does not interpolate.
    """
    return np.array([average_precision(s, y, int(y.sum())) for s, y in zip(video_scores.T, labels.T > 0)], np.float64)
