"""Which detection hits which true segment: temporal IoU, and the rules of the evaluators in use.

Published numbers on the same data come from evaluators that differ: `PROTOCOLS` has them by name. NumPy, on the host.

What the rules leave open, and what they make of odd data:

Ties. Of detections with equal scores, the first is the better one, in the order of the videos in the submission and
then within a video. Official code sorts them by an unstable `argsort`, so that its numbers depend on the version of
NumPy. The same holds of true segments that a detection overlaps equally (see `activitynet`).

Segments of no length and reversed ones. They have IoU 0 with everything, so a detection that does not end after it
starts is a miss, and such a true segment is missed (`opentad` drops it). The Matlab kit of THUMOS14 flips reversed
segments before it measures them, the others do not, and `thumos_kit` does not either: turn them around before, if they
are meant so.

Video 1292 of THUMOS14's test videos has ambiguous segments and nothing else. Where the truth has it, it counts as a
video and its detections are false positives under `activitynet` and `opentad`; the other protocols spare those that
overlap an ambiguous segment. The official list has it (213 videos), W-TALC's has not (212), nor have those of
BaS-Net (210) and OpenTAD (211).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

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
    index: Int[np.ndarray, " k"]  # type: ignore[assignment]
    """Place of the detection in the `Detections` of its video."""
    scores: Float[np.ndarray, " k"]
    taken: Int[np.ndarray, "i k"]
    """By IoU threshold: the true segment that it hits, as its place in the `Annotation` of the video; else `FALSE`, or
    `FORGIVEN`."""
    num_positive: Int[np.ndarray, " v"]
    """How many true segments of the class each video has."""


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


class _Flat(NamedTuple):
    """The segments of all videos in one row."""

    segments: Float[np.ndarray, "k 2"]
    labels: Int[np.ndarray, " k"]
    video: Int[np.ndarray, " k"]
    """Its number."""
    index: Int[np.ndarray, " k"]  # type: ignore[assignment]
    """Place in its video."""

    def take(self, rows: Int[np.ndarray, " l"] | list[int]) -> "_Flat":
        return _Flat(*(x[rows] for x in self))


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
    # Pairs by who chooses, in the order in which they do, then by what they like better.
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
      InputError: there is none.
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
