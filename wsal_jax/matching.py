"""Matching of detections with true segments: temporal IoU, and the rules of the common evaluators.

Published numbers on the same data come from different evaluators; `PROTOCOLS` lists them by name. NumPy, on the host.

Cases that the rules leave open, and odd data:

Ties. Among detections with equal scores, the first ranks higher, in the order of the videos in the submission and then
within a video. Official code sorts them by an unstable `argsort`, so its numbers depend on the version of NumPy. The
same holds for true segments that a detection overlaps equally (see `activitynet`).

Empty and reversed segments. They have IoU 0 with everything. Such a detection is therefore a false positive, and such a
true segment is missed (`opentad` drops it). The Matlab kit of THUMOS14 flips reversed segments before it measures them.
The other evaluators do not, and neither does our `thumos_kit`: flip such segments beforehand if necessary.

Video 1292 of the THUMOS14 test videos has only ambiguous segments. If the ground truth contains it, it counts as a
video, and its detections are false positives under `activitynet` and `opentad`; the other protocols forgive or drop
those that overlap an ambiguous segment. The official list contains it (213 videos); the lists of W-TALC (212), BaS-Net
(210) and OpenTAD (211) do not.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from wsal_jax.types import Annotation, Detections, InputError

IOUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of THUMOS14. `np.linspace(0.1, 0.9, 9)[2]` exceeds 0.3 and would reject an overlap of exactly 3 / 10."""

FALSE, FORGIVEN = -1, -2
"""In `Matched.taken`: a false positive, and a detection that is neither a hit nor a false positive."""

COPY = 1e-3
"""Seconds: `tol` of `remove_duplicate_annotations` in ActionFormer and OpenTAD."""

SNIPPETS_PER_SECOND = 25 / 16
"""The grid of I3D features of 16 frames at 25 fps, which W-TALC and its successors evaluate on."""


class Protocol(NamedTuple):
    """The rule of an evaluator. All match each IoU threshold separately, and no true segment is hit twice."""

    matching: str
    """"best": in rank order, each detection of a class takes the free true segment with the largest sufficient overlap
    (among equal overlaps the last). "first": it takes the first sufficient one in file order. "truth": in file order,
    each true segment takes the free detection of the video with the largest sufficient overlap (among equal overlaps
    the best ranked)."""
    strict: bool
    """The IoU must exceed the threshold; equality is not enough."""
    interpolated: bool
    """Whether AP is interpolated as in VOC 2011; otherwise it is the plain mean of the precision at the positives."""
    ambiguous: str
    """Treatment of detections that overlap an ambiguous segment of the video at all. "count": like any other; "drop":
    all are dropped, even if they would hit; "forgive": those that do not hit are not false positives."""
    round_truth: bool
    """Whether true and ambiguous segments are rounded to whole snippets: Python 3's `round(seconds * 25 / 16)`, half to
    even."""
    decimals: int | None
    """Detections are rounded to this many decimals of a snippet on the same grid; None leaves them in seconds."""
    min_snippets: int
    """Detections of fewer snippets are dropped."""
    undetected: str
    """What is 0 if a class with true segments has no detections left: its AP ("class"), or the mAP ("all")."""
    drop_copies: bool = False
    """Whether to drop empty and reversed true segments, and copies: segments that start and end within `COPY` of an
    earlier segment of the file that counts and has the same class and video."""


PROTOCOLS = {
    "activitynet": Protocol("best", False, True, "count", False, None, 0, "class"),
    "thumos_kit": Protocol("truth", True, False, "forgive", False, None, 0, "class"),
    "wtalc": Protocol("first", False, False, "drop", True, 0, 2, "all"),
    "grid": Protocol("best", False, True, "drop", True, 3, 0, "class"),
    "opentad": Protocol("best", False, True, "count", False, None, 0, "class", drop_copies=True),
}
"""The rules by name. The caller chooses the videos in the ground truth: papers use 210 to 213 of THUMOS14.

`activitynet`: `eval_detection.py` of the official ActivityNet evaluator, which BaS-Net and its successors also use, on
210 videos of THUMOS14. Unlike in the VOC rule, a second detection of a segment can still hit a neighbouring segment.
Among equally overlapped segments the official code takes an arbitrary one, by an unstable `argsort`. This affects 15 of
the published STPN detections: mAP@0.1 is 52.12 there and 52.10 here. In the official code, a detection of a class
without true segments raises KeyError (here it does not count), and two empty segments match (here they do not).

`thumos_kit`: `TH14evalDet` of the THUMOS Challenge 2014 in Matlab, in its later copies (the first release interpolated
AP at 11 points).

`wtalc`: `detectionMAP.py` of W-TALC (Paul et al. 2018), with 212 videos. Its detections are runs of snippets; we round
our detections in seconds to snippets. It scores only videos with true segments; here, detections in other videos are
false positives, as in all protocols. We omit its grid of 10 / 4 snippets per second for UntrimmedNet features.

`grid`: CO2-Net (Hong et al. 2021) and its successors, with 212 videos: the official code on snippets. Its detections
are runs of snippets, and it measures the overlap with ambiguous segments in whole snippets, which is equivalent for
such detections. Seconds times 25 / 16 are rarely whole numbers in floating point, especially in single precision, so an
IoU exactly at a threshold would be lost (0.6 points of mAP@0.5 with STPN's detections on the grid). We therefore round
detections to 0.001 snippet. The published code drops no detection if it does not find its file of ambiguous segments.

`opentad`: `mAP.py` of OpenTAD (Liu et al. 2025), after ActionFormer (Zhang et al. 2022): `activitynet`, but without
copies of true segments and without empty ones (ActionFormer keeps the latter, as missed). OpenTAD's THUMOS14 has 211
videos, without 270 and 1292.
"""


class Matched(NamedTuple):
    """The detections of one class over all videos, best first, without those that the protocol drops."""

    videos: Int[np.ndarray, " k"]
    """Index of the video: first the ids of the truth in order, then the ids that only the detections have."""
    index: Int[np.ndarray, " k"]  # type: ignore[assignment]
    """Index of the detection in the `Detections` of its video."""
    scores: Float[np.ndarray, " k"]
    taken: Int[np.ndarray, "i k"]
    """By IoU threshold: the true segment that the detection hits, as an index into the `Annotation` of the video;
    otherwise `FALSE` or `FORGIVEN`."""
    num_positive: Int[np.ndarray, " v"]
    """Number of true segments of the class in each video."""


def temporal_iou(a: Float[np.ndarray, "k 2"], b: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "k l"]:
    """Intersection over union of each segment [start, end) of `a` with each segment of `b`, in seconds.

    Lengths are `end - start`; many code bases add 1, which is correct only for inclusive indices. Segments that do not
    overlap have IoU 0. So do empty and reversed segments, even with themselves.
    """
    return _iou(np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None])


def _iou(a: Float[np.ndarray, "*#k 2"], b: Float[np.ndarray, "*#k 2"]) -> Float[np.ndarray, "..."]:
    """Element-wise `temporal_iou`."""
    intersection = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


class _Flat(NamedTuple):
    """The segments of all videos, concatenated."""

    segments: Float[np.ndarray, "k 2"]
    labels: Int[np.ndarray, " k"]
    video: Int[np.ndarray, " k"]
    """Index of the video."""
    index: Int[np.ndarray, " k"]  # type: ignore[assignment]
    """Index of the segment in its video."""

    def take(self, rows: Int[np.ndarray, " l"] | list[int]) -> "_Flat":
        return _Flat(*(x[rows] for x in self))


def match(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    ious: Float[np.ndarray, " i"],
    protocol: str = "activitynet",
) -> list[Matched]:
    """Matches detections with true segments of their class and video, for each class, by a rule of `PROTOCOLS`.

    The detections of a class are ranked by score over all videos; equal scores in the order of the videos in
    `detections`, then in input order. Detections are false positives in a video that `truth` lacks, or that lacks the
    class. Segments that do not overlap never match, whatever the threshold.

    Time and memory are proportional to the number of pairs of a detection and a true segment of its class and video.

    Args:
      detections: by video id.
      truth: by video id.
      num_classes: c; labels are in [0, c).
      ious: the thresholds.
      protocol: a key of `PROTOCOLS`.

    Returns:
      The matches of each class.

    Raises:
      InputError: an unknown protocol.
      ValueError: a label outside [0, num_classes); the message names the video.
    """
    rule = rule_of(protocol)
    _check_labels("detections", detections, num_classes)
    _check_labels("truth", truth, num_classes)
    videos = {video: i for i, video in enumerate([*truth, *(video for video in detections if video not in truth)])}
    found, true = _flat(detections, videos), _flat(truth, videos)
    scores = _concatenate([d.scores for d in detections.values()], 0)
    ambiguous = _concatenate([a.ambiguous for a in truth.values()], (0, 2))
    ambiguous_video = np.repeat(np.arange(len(truth)), [len(a.ambiguous) for a in truth.values()])
    if rule.round_truth:
        found = found._replace(segments=SNIPPETS_PER_SECOND * found.segments)
        true = true._replace(segments=np.rint(SNIPPETS_PER_SECOND * true.segments))
        ambiguous = np.rint(SNIPPETS_PER_SECOND * ambiguous)
    if rule.decimals is not None:
        found = found._replace(segments=np.round(found.segments, rule.decimals))
    if rule.drop_copies:
        true = true.take(_without_copies(true.segments, true.labels * len(videos) + true.video))

    in_doubt = np.zeros(len(scores), bool)
    if rule.ambiguous != "count":
        in_doubt[_overlaps(found.segments, found.video, ambiguous, ambiguous_video, 0.0)[0]] = True
    ranked = np.lexsort((-scores, found.labels))
    if rule.min_snippets:
        ranked = ranked[(found.segments[:, 1] - found.segments[:, 0] >= rule.min_snippets)[ranked]]
    if rule.ambiguous == "drop":
        ranked = ranked[~in_doubt[ranked]]
    found, scores, in_doubt = found.take(ranked), scores[ranked], in_doubt[ranked]
    taken = _taken(rule, found, true, len(videos), ious)
    if rule.ambiguous == "forgive":
        taken[(taken == FALSE) & in_doubt] = FORGIVEN

    num_positive = np.zeros((num_classes, len(videos)), int)
    np.add.at(num_positive, (true.labels, true.video), 1)
    bounds = np.searchsorted(found.labels, np.arange(num_classes + 1))
    return [
        Matched(found.video[a:b], found.index[a:b], scores[a:b], taken[:, a:b], num_positive[c])
        for c, (a, b) in enumerate(itertools.pairwise(bounds))
    ]


def _flat(of: Mapping[str, Detections | Annotation], number: Mapping[str, int]) -> _Flat:
    sizes = [len(x.labels) for x in of.values()]
    return _Flat(
        segments=_concatenate([x.segments for x in of.values()], (0, 2)),
        labels=_concatenate([x.labels for x in of.values()], 0, int),
        video=np.repeat(np.array([number[name] for name in of], int), sizes),
        index=_concatenate([np.arange(size) for size in sizes], 0, int),
    )


def _taken(
    rule: Protocol, found: _Flat, true: _Flat, num_videos: int, ious: Float[np.ndarray, " i"]
) -> Int[np.ndarray, "i k"]:
    """`Matched.taken` of ranked detections."""
    groups, true_groups = found.labels * num_videos + found.video, true.labels * num_videos + true.video
    k, j, overlap = _overlaps(found.segments, groups, true.segments, true_groups, ious.min(initial=np.inf))
    # Sort pairs by the chooser, in the order of choice, then by its preference.
    by_wish = np.lexsort({"best": (-j, -overlap, k), "first": (j, k), "truth": (k, -overlap, j)}[rule.matching])
    k, j, overlap = k[by_wish], j[by_wish], overlap[by_wish]
    taken = np.full((len(ious), len(groups)), FALSE)
    for i, iou in enumerate(ious):
        enough = np.flatnonzero(overlap > iou if rule.strict else overlap >= iou)
        chooser, chosen = (j, k) if rule.matching == "truth" else (k, j)
        pairs = enough[_choose(chooser[enough], chosen[enough])]
        taken[i, k[pairs]] = true.index[j[pairs]]
    return taken


def rule_of(protocol: str) -> Protocol:
    """The rule of this name.

    Raises:
      InputError: an unknown protocol.
    """
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
    """Indices of the segments that count under `Protocol.drop_copies`."""
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
    """The overlapping pairs of a segment of `a` and a segment of `b` of the same group, with an IoU of at least
    `least`.

    Returns both indices and the IoU of each pair. It works in parts, because most IoUs are 0 and all of them would not
    fit in memory.

    Args:
      a: segments, k of them.
      groups_a: the group of each.
      b: segments, l of them.
      groups_b: the group of each.
      least: the lowest IoU to return.
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
    """Each chooser, in ascending order, takes the first item of its list that is still free.

    The lists are the pairs (chooser, chosen), sorted by chooser, then by preference. Returns the resulting pairs.

    All choosers propose in parallel; a chooser moves on to its next item when a chooser with a lower number wants the
    same one. Every item prefers the lowest number, so the result is the same (deferred acceptance, Gale and Shapley
    1962).
    """
    at = np.flatnonzero(np.diff(chooser, prepend=-1))
    end = np.append(at[1:], len(chooser))[: len(at)]
    holder = np.zeros(chosen.max(initial=-1) + 1, int)
    while True:
        wanted, rank = chosen[at], np.arange(len(at))
        holder[wanted[::-1]] = rank[::-1]  # the last write wins, which is the lowest rank
        wins = holder[wanted] == rank
        if wins.all():
            return at
        at = at + ~wins
        at, end = at[at < end], end[at < end]
