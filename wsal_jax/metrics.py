"""Temporal IoU, average precision, and mAP of detection, classification and highlights under the rules in use.

Published numbers on the same data come from evaluators that differ: `PROTOCOLS` has them by name. NumPy, on the host.
Average precision is always a fraction, per class, and NaN for a class that does not occur in the ground truth.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from wsal_jax.types import Annotation, Detections, InputError

IOUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of THUMOS14. `np.linspace(0.1, 0.9, 9)[2]` is above 0.3 and would miss an overlap of exactly 3 / 10."""

FALSE, FORGIVEN = -1, -2
"""In `Matched.taken`: a false positive, and a detection that counts neither as that nor as a hit."""

COPY = 1e-3
"""Seconds: `tol` of `remove_duplicate_annotations` in ActionFormer and OpenTAD."""

SNIPPETS_PER_SECOND = 25 / 16
"""The grid of I3D features of 16 frames at 25 fps, which W-TALC and its successors evaluate on."""


class Protocol(NamedTuple):
    """The rule of an evaluator. In all, each IoU threshold is matched for itself, and no true segment is hit twice."""

    matching: str
    """"best": the detections of a class in rank order each take, of the true segments that are free and overlap
    enough, the one that they overlap most (of equal overlaps the last). "first": they take the first in file order.
    "truth": the true segments in file order each take, of the free detections of the video that overlap enough, the
    one that overlaps most (of equal overlaps the best in rank)."""
    strict: bool
    """An IoU of exactly the threshold does not do."""
    interpolated: bool
    """AP is interpolated as in VOC 2011, or the mean over the positives of the precision as it is."""
    ambiguous: str
    """What becomes of detections that overlap an ambiguous segment of the video by any length: "count" as all others;
    "drop" all of them, even where they would hit; "forgive" those that do not hit: they are no false positives."""
    round_truth: bool
    """True and ambiguous segments go to whole snippets: Python 3's `round(seconds * 25 / 16)`, half to even."""
    decimals: int | None
    """Detections go to the snippet grid too, rounded to so many decimals of a snippet; None leaves them in seconds."""
    min_snippets: int
    """Detections of fewer snippets are dropped."""
    undetected: str
    """What it means that no detection is left of a class with true segments: its AP is 0 ("class"), or the mAP over all
    classes is ("all")."""
    drop_copies: bool = False
    """True segments that do not end after they start do not count, nor do copies: those that start and end within
    `COPY` of a segment of their class and video that counts and comes before them in the file."""


PROTOCOLS = {
    "activitynet": Protocol("best", False, True, "count", False, None, 0, "class"),
    "thumos_kit": Protocol("truth", True, False, "forgive", False, None, 0, "class"),
    "wtalc": Protocol("first", False, False, "drop", True, 0, 2, "all"),
    "grid": Protocol("best", False, True, "drop", True, 3, 0, "class"),
    "opentad": Protocol("best", False, True, "count", False, None, 0, "class", drop_copies=True),
}
"""The rules by name. Which videos are in the ground truth is up to the caller: papers take 210 to 213 of THUMOS14's.

`activitynet`: `eval_detection.py` of the official ActivityNet evaluator; also that of BaS-Net and its successors, on
210 videos of THUMOS14. A second detection of a segment can still hit its neighbour, unlike in the VOC rule. Of several
equally overlapped segments the official code takes any, by an unstable `argsort`; in 15 cases of the published STPN
detections it matters, and mAP@0.1 is 52.12 there and 52.10 here. Officially, a detection of a class without true
segments is a KeyError (here it does not count), and two segments without length match (here they do not).

`thumos_kit`: `TH14evalDet` of the THUMOS Challenge 2014 in Matlab, as its later copies have it (the first release
interpolated AP at 11 points).

`wtalc`: `detectionMAP.py` of W-TALC (Paul et al. 2018), with 212 videos. There, detections are runs of snippets; ours,
in seconds, are rounded to them. It scores only videos that have true segments; here, detections in the others are
false positives, as in all protocols. Its grid of 10 / 4 snippets a second for UntrimmedNet features is left out.

`grid`: CO2-Net (Hong et al. 2021) and its successors, with 212 videos: the official code on snippets. There, detections
are runs of snippets, and the overlap with ambiguous segments is counted in whole ones, which is the same for such
detections. Seconds times 25 / 16 are rarely whole numbers in floating point, in single precision least of all, and an
IoU exactly at a threshold would be lost (0.6 points of mAP@0.5 with STPN's detections put on the grid): so detections
are rounded to 0.001 snippet. In the published code no detection is dropped if the file of ambiguous segments is not
where it looks.

`opentad`: `mAP.py` of OpenTAD (Liu et al. 2025), after ActionFormer (Zhang et al. 2022): `activitynet`, but without
copies of true segments and those of no length (ActionFormer keeps the latter, as missed). OpenTAD's THUMOS14 has 211
videos: 270 and 1292 are left out.
"""


class Matched(NamedTuple):
    """The detections of one class over all videos, best first, without those that the protocol drops."""

    videos: Int[np.ndarray, " k"]
    """Index of the video among the ids of the truth, in its order, and then the ids that only the detections have."""
    index: Int[np.ndarray, " k"]
    """Place of the detection in the `Detections` of its video."""
    scores: Float[np.ndarray, " k"]
    taken: Int[np.ndarray, "i k"]
    """By IoU threshold: the true segment that it hits, as its place in the `Annotation` of the video; else `FALSE`, or
    `FORGIVEN`."""
    num_positive: Int[np.ndarray, " v"]
    """How many true segments of the class each video has."""


class DetectionMap(NamedTuple):
    ap: Float[np.ndarray, "i c"]
    """By IoU threshold and class; NaN for a class without true segments."""
    mean: Float[np.ndarray, " i"]
    """The protocol's mAP, over the classes that have true segments; NaN if none has."""
    videos: int
    """Of the truth."""
    classes: int
    """That have true segments."""
    instances: int
    """True segments."""
    detections: int
    """Of all classes, without those that the protocol drops."""


def temporal_iou(a: Float[np.ndarray, "k 2"], b: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "k l"]:
    """Intersection over union of the segments [start, end) of `a` with those of `b`, by their lengths in seconds.

    Lengths are `end - start`; many code bases add 1, which is right for inclusive indices only. Segments that do not
    overlap, have no length, or end before they start have IoU 0, with themselves too.
    """
    return _iou(np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None])


def _iou(a: Float[np.ndarray, "*#k 2"], b: Float[np.ndarray, "*#k 2"]) -> Float[np.ndarray, "..."]:
    """`temporal_iou` element by element."""
    intersection = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def average_precision(
    scores: Float[np.ndarray, " k"], hits: Bool[np.ndarray, " k"], num_positive: int, interpolate: bool = True
) -> float:
    """The mean over the positives of the precision at their rank; by default interpolated as in VOC 2011.

    Interpolated, the precision at a hit is the best precision at this or any lower score. A positive that is not hit
    counts 0. Equal scores rank in input order (a stable sort), so the result is always the same.

    Returns NaN if there is no positive, and 0 if there is no hit.
    """
    if num_positive == 0:
        return np.nan
    hits = hits[np.argsort(-scores, kind="stable")][None]
    return float(_average_precision(hits, np.ones_like(hits), num_positive, interpolate)[0])


def _average_precision(
    hits: Bool[np.ndarray, "i k"], counts: Bool[np.ndarray, "i k"], num_positive: int, interpolate: bool
) -> Float[np.ndarray, " i"]:
    """Of detections that are ranked; those that do not count are neither hits nor false positives."""
    precision = np.cumsum(hits, axis=1) / np.maximum(np.cumsum(counts, axis=1), 1)
    if interpolate:
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (precision * hits).sum(axis=1) / num_positive


def match(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    ious: Float[np.ndarray, " i"],
    protocol: str = "activitynet",
) -> list[Matched]:
    """Which detection hits which true segment of its class and video, for each class, by a rule of `PROTOCOLS`.

    Detections and truth are by video id. The detections of a class rank by score over all videos; equal scores in the
    order of the videos in `detections`, then in input order. Detections in a video that `truth` does not have, or that
    lacks the class, are false positives. Segments that do not overlap never match, whatever the threshold.

    It takes time and memory in proportion to the pairs of a detection and a true segment of its class and video.

    Raises:
      InputError: a protocol that is not there.
      ValueError: a label that is not in [0, num_classes); the message names the video.
    """
    rule = _rule(protocol)
    _check_labels("detections", detections, num_classes)
    _check_labels("truth", truth, num_classes)
    videos = {video: i for i, video in enumerate([*truth, *(video for video in detections if video not in truth)])}
    to_grid = SNIPPETS_PER_SECOND if rule.round_truth else 1.0

    # Everything of all videos in one row: the detections, what is true, what is ambiguous.
    segments = to_grid * _concatenate([d.segments for d in detections.values()], (0, 2))
    labels = _concatenate([d.labels for d in detections.values()], 0, int)
    scores = _concatenate([d.scores for d in detections.values()], 0)
    sizes = [len(d.labels) for d in detections.values()]
    video = np.repeat(np.array([videos[name] for name in detections], int), sizes)
    index = _concatenate([np.arange(size) for size in sizes], 0, int)
    true_segments = to_grid * _concatenate([a.segments for a in truth.values()], (0, 2))
    true_labels = _concatenate([a.labels for a in truth.values()], 0, int)
    true_sizes = [len(a.labels) for a in truth.values()]
    true_video = np.repeat(np.arange(len(truth)), true_sizes)
    true_index = _concatenate([np.arange(size) for size in true_sizes], 0, int)
    ambiguous = to_grid * _concatenate([a.ambiguous for a in truth.values()], (0, 2))
    ambiguous_video = np.repeat(np.arange(len(truth)), [len(a.ambiguous) for a in truth.values()])
    if rule.round_truth:
        true_segments, ambiguous = np.rint(true_segments), np.rint(ambiguous)
    if rule.decimals is not None:
        segments = np.round(segments, rule.decimals)
    if rule.drop_copies:
        kept = _without_copies(true_segments, true_labels * len(videos) + true_video)
        true_segments, true_labels, true_video, true_index = (
            x[kept] for x in (true_segments, true_labels, true_video, true_index)
        )

    in_doubt = np.zeros(len(segments), bool)
    if rule.ambiguous != "count":
        in_doubt[_overlaps(segments, video, ambiguous, ambiguous_video, 0.0)[0]] = True
    ranked = np.lexsort((-scores, labels))
    if rule.min_snippets:
        ranked = ranked[(segments[:, 1] - segments[:, 0] >= rule.min_snippets)[ranked]]
    if rule.ambiguous == "drop":
        ranked = ranked[~in_doubt[ranked]]
    segments, labels, scores, video, index, in_doubt = (
        x[ranked] for x in (segments, labels, scores, video, index, in_doubt)
    )

    groups, true_groups = labels * len(videos) + video, true_labels * len(videos) + true_video
    k, j, overlap = _overlaps(segments, groups, true_segments, true_groups, ious.min(initial=np.inf))
    # Pairs by who chooses, in the order in which they do, then by what they like better.
    by_wish = np.lexsort({"best": (-j, -overlap, k), "first": (j, k), "truth": (k, -overlap, j)}[rule.matching])
    k, j, overlap = k[by_wish], j[by_wish], overlap[by_wish]
    taken = np.full((len(ious), len(segments)), FALSE)
    for i, iou in enumerate(ious):
        enough = np.flatnonzero(overlap > iou if rule.strict else overlap >= iou)
        chooser, chosen = (j, k) if rule.matching == "truth" else (k, j)
        pairs = enough[_choose(chooser[enough], chosen[enough])]
        taken[i, k[pairs]] = true_index[j[pairs]]
    if rule.ambiguous == "forgive":
        taken[(taken == FALSE) & in_doubt] = FORGIVEN

    num_positive = np.bincount(true_groups, minlength=num_classes * len(videos)).reshape(num_classes, len(videos))
    bounds = np.searchsorted(labels, np.arange(num_classes + 1))
    return [
        Matched(video[a:b], index[a:b], scores[a:b], taken[:, a:b], num_positive[c])
        for c, (a, b) in enumerate(itertools.pairwise(bounds))
    ]


def _rule(protocol: str) -> Protocol:
    if protocol not in PROTOCOLS:
        raise InputError(f"there is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def _check_labels(kind: str, videos: Mapping[str, Detections | Annotation], num_classes: int) -> None:
    for name, video in videos.items():
        if np.any((video.labels < 0) | (video.labels >= num_classes)):
            raise ValueError(
                f"{kind} of video {name!r}: labels {np.unique(video.labels)} are not all in [0, {num_classes}); "
                "number the classes of detections and truth in the same way, and pass how many there are"
            )


def _concatenate(parts: Sequence[np.ndarray], empty: int | tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *parts]).astype(dtype, copy=False)


def _without_copies(segments: Float[np.ndarray, "k 2"], groups: Int[np.ndarray, " k"]) -> list[int]:
    """The segments that count under `Protocol.drop_copies`, by their indices."""
    kept: dict[int, list[int]] = {}
    for i in np.flatnonzero(segments[:, 1] > segments[:, 0]).tolist():
        before = kept.setdefault(int(groups[i]), [])
        if not (np.abs(segments[before] - segments[i]) <= COPY).all(axis=1).any():
            before.append(i)
    return sorted(i for of_group in kept.values() for i in of_group)


PAIRS_AT_ONCE = 2**20


def _overlaps(
    a: Float[np.ndarray, "k 2"],
    groups_a: Int[np.ndarray, " k"],
    b: Float[np.ndarray, "l 2"],
    groups_b: Int[np.ndarray, " l"],
    least: float,
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """The pairs of a segment of `a` and one of `b` of its group that overlap, and by an IoU of at least `least`.

    As their indices and their IoU. Not all IoU are in memory at once, as most of them are 0.
    """
    order = np.argsort(groups_b, kind="stable")
    first, last = (np.searchsorted(groups_b, groups_a, side, sorter=order) for side in ("left", "right"))
    some = np.flatnonzero(last > first)
    count = (last - first)[some]
    before = np.cumsum(count) - count
    found = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
    for part in np.split(
        np.arange(len(some)), np.searchsorted(before, np.arange(PAIRS_AT_ONCE, count.sum(), PAIRS_AT_ONCE))
    ):
        row = np.repeat(part, count[part])
        i = some[row]
        j = order[first[i] + before[part[:1]].sum() + np.arange(len(row)) - before[row]]
        iou = _iou(a[i], b[j])
        good = np.flatnonzero((iou > 0) & (iou >= least))
        found.append((i[good], j[good], iou[good]))
    return tuple(np.concatenate(parts) for parts in zip(*found))


def _choose(chooser: Int[np.ndarray, " p"], chosen: Int[np.ndarray, " p"]) -> Int[np.ndarray, " taken"]:
    """Each chooser in turn, by ascending number, takes the first thing on its list that is still free.

    The lists are the pairs (chooser, chosen), sorted by chooser, then by preference. Returns the pairs that come about.

    All choose at once and repeatedly, each the next on its list when one with a lower number wants the same. As all
    things go to the lowest number, this ends with the same pairs (deferred acceptance, Gale and Shapley 1962).
    """
    at = np.flatnonzero(np.diff(chooser, prepend=-1))
    end = np.append(at[1:], len(chooser))[: len(at)]
    holder = np.zeros(chosen.max(initial=-1) + 1, int)
    while True:
        wanted, rank = chosen[at], np.arange(len(at))
        holder[wanted[::-1]] = rank[::-1]  # of several the last, so the lowest, stays
        wins = holder[wanted] == rank
        if wins.all():
            return at
        at = at + ~wins
        at, end = at[at < end], end[at < end]


def detection_map(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    ious: Float[np.ndarray, " i"],
    protocol: str = "activitynet",
) -> DetectionMap:
    """AP and mAP of detections by video id at each IoU threshold, by a rule of `PROTOCOLS`.

    A class with true segments and no detection has AP 0; under `wtalc` the mAP is 0 then. A class without true
    segments has NaN, and its detections do not count. Arguments and errors are those of `match`.
    """
    rule = _rule(protocol)
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
) -> Float[np.ndarray, "rows 2"]:
    """Intervals of the mAP at each IoU threshold, and in the last row of the average over thresholds.

    They are basic (reverse percentile) intervals: where `level` of the samples have a mAP within [m - a, m + b], m
    being that of all videos once, the interval is [m - b, m + a], cut to [0, 1]. For a mAP of few videos is too high on
    average, that of a sample with repeated ones more so, and percentiles as they are would add to this instead of
    taking it away. In a simulation (samples of 200 videos of 6,000, 20 classes, IoU 0.3, 0.5, 0.7), intervals of 95 %
    held the mAP of all in 84, 80 and 90 % of 80 cases so, and in 75, 63 and 30 % as plain percentiles.

    Each sample draws as many videos as there are, with replacement, and is evaluated by the protocol from its ranking
    on. A video that is drawn twice is two videos, each with its true segments and its detections, matched as in the
    original; the copies of a detection rank next to each other. A class without true segments in a sample is left out
    of its mean. (Under `wtalc`, the mAP of a sample that has true segments and no detection of a class is 0.)

    Args:
      matched: what `match` returned under the same protocol.
      samples: how many.
      level: what fraction of them is in the interval, the same fraction of the others on either side.

    Returns rows (low, high), fractions.

    Raises:
      InputError: an unknown protocol, or no true segments.
    """
    rule = _rule(protocol)
    matched = [m for m in matched if m.num_positive.any()]
    if not matched:
        raise InputError("no true segments, so there is no mAP to resample")
    videos, ious = len(matched[0].num_positive), len(matched[0].taken)
    copies = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), samples)
    copies = np.concatenate([np.ones((1, videos), copies.dtype), copies])
    samples += 1
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
    columns = np.concatenate([mean, mean.mean(axis=1, keepdims=True)], axis=1)
    ends = np.nanpercentile(columns[1:], [50 * (1 + level), 50 * (1 - level)], axis=0)
    return np.clip(2 * columns[0] - ends, 0, 1).T


WEIGHTS_AT_ONCE = 2**22


def _sum_of_precisions(
    taken: Int[np.ndarray, "i k"], weights: Int[np.ndarray, "s k"], interpolate: bool
) -> Float[np.ndarray, "s i"]:
    """AP times the number of positives, if each ranked detection is there `weights` times in a row.

    Of w copies of a hit after F false positives, the last being the n-th detection, the precisions are
    `1 - F / (n - w + 1), ..., 1 - F / n`. They increase, so that only the last one matters to interpolation.
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

    `labels` are positive where the video has the class. Interpolated, it is that of `eval_classification.py` of the
    official ActivityNet evaluator; not interpolated, that of W-TALC's `classificationMAP.py`, which many papers use.
    A class that no video has gets NaN: in the former it is not evaluated, in the latter it makes the mean NaN.
    """
    return np.array(
        [average_precision(s, y, int(y.sum()), interpolate) for s, y in zip(video_scores.T, labels.T > 0)], np.float64
    )


def hit_at_k(video_scores: Float[np.ndarray, "v c"], labels: Num[np.ndarray, "v c"], k: int) -> float:
    """The fraction of the videos with a label of which at least one label is among the k classes of the best scores.

    As in `eval_classification.py` of the official ActivityNet evaluator, where k is 3. Of equal scores the first class
    is the better one (officially, any). NaN if no video has a label.
    """
    best = np.argsort(-video_scores, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(labels > 0, best, axis=1).any(axis=1)
    labelled = (labels > 0).any(axis=1)
    return float(hits[labelled].mean()) if labelled.any() else np.nan


def attention_statistics(
    videos: Sequence[tuple[Bool[np.ndarray, " _"], Bool[np.ndarray, " _"], Bool[np.ndarray, " _"] | None]],
) -> dict[str, float]:
    """How attention and classifier miss the truth, as table 2 of DGAM (Shi et al. 2020) has it.

    Of each video, three sets of snippets as masks: `gt` (in a true segment), `att` (attention above a threshold) and
    `cls` (classified as an action; None if that is not known of a model, of all videos alike). Sizes are summed over
    videos, then divided by that of `gt`: |att - gt|, false activation, and |gt - att|, omission, are the better the
    lower; |(cls - gt) - att|, false positives of the classifier that the attention rejects, and |(att & gt) - cls|,
    true snippets that it has beyond the classifier's, the higher. NaN if no snippet is in a true segment.
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

    `match` is 1 for a highlight, 0 where annotators were not sure, and -1 for none; the last two are negatives. It is
    the area under precision over recall by trapezoids, from precision 1 at recall 0, as UMT (Liu et al. 2022) and its
    successors have it on YouTube Highlights. The mean of random scores on its 157 test videos is then 51.1 percent by
    `highlight_map`. With the plain mean of the precisions at the highlights it would be 54.6, and 60.1 were the unsure
    clips left out.

    Equal scores rank in input order. A video of highlights only has 1. One without any has NaN (UMT: 0; there is none
    in the data).
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
    """The mean `clip_ap` of the videos of each domain, and its mean over domains, from (domain, scores, match) of each.

    Videos without a highlight are left out, and so is a domain that has no others. NaN if none is left.
    """
    by_domain: dict[str, list[float]] = {}
    for domain, scores, match in videos:
        if (match > 0).any():
            by_domain.setdefault(domain, []).append(clip_ap(scores, match))
    means = {domain: float(np.mean(values)) for domain, values in by_domain.items()}
    return means, float(np.mean(list(means.values()))) if means else np.nan
