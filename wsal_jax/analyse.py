"""What the errors of a detector are, where it is weak, and what it misses: numbers and a table.

After DETAD: Alwassel, Caba Heilbron, Escorcia and Ghanem, "Diagnosing Error in Temporal Action Detectors", ECCV 2018,
which analyses false positives, sensitivity and false negatives. Where the definitions leave a choice we say what the
authors' code does, and where we differ. NumPy, on the host; `wsal_jax.plot_analysis` draws.

False positives. The detections of each class are split by rank: its best G, the next G, up to 10 G, where G is how
many true segments the class has; counts are summed over classes. What kind of error a detection is says
`error_types`. To tell what a type costs, its errors are taken out of the ranking of all detections, and the mAP is
computed anew. DETAD cuts the ranking at 10 G before that, and prints the gain in mAP_N alone.

Sensitivity. For the mAP_N of a bucket, the true segments of all other buckets and the detections that hit them are
taken out; all false positives stay. A class that has none in the bucket does not count there.

False negatives. A true segment is missed if no detection hits it while the normalized precision, not interpolated,
is above `MIN_PRECISION`: otherwise, a detector that outputs enough segments would miss nothing.

Characteristics of true segments, in the buckets of `BUCKETS[buckets]`:
  coverage: length / duration of the video; beyond 1 it is in the last bucket (DETAD drops the segment).
  length: seconds, to 1e-9, so that 4.4 - 1.4 is 3.
  instances: how many segments of its class the video has. DETAD's file for THUMOS14 counts all classes, so that
    there a video of CliffDiving has each instance twice, as Diving too.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from wsal_jax import metrics
from wsal_jax.types import Annotation, Detections, InputError

TYPES = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
"""Every detection is one of these; all but the first are errors."""

BACKGROUND_IOU = 0.1
"""A detection that overlaps every true segment less than this is a background error."""

RANKS = 10
"""The profile of false positives looks at the best `RANKS` x G detections of a class of G true segments."""

MIN_PRECISION = 0.05
"""A true segment that is hit at a normalized precision of no more than this counts as missed, as in DETAD's code."""

SIZES = ("XS", "S", "M", "L", "XL")

BUCKETS = {
    "activitynet": {"coverage": (0.2, 0.4, 0.6, 0.8), "length": (30.0, 60.0, 120.0, 180.0), "instances": (1, 4, 8)},
    "thumos14": {"coverage": (0.02, 0.04, 0.06, 0.08), "length": (3.0, 6.0, 12.0, 18.0), "instances": (1, 40, 80)},
}
"""DETAD's upper bounds of the buckets XS, S, M, L of each characteristic; what is above the last is in one more."""

UNITS = {"coverage": "length / video", "length": "seconds", "instances": "of the class in the video"}


class Characteristic(NamedTuple):
    """The true segments by one characteristic, in b buckets."""

    buckets: tuple[str, ...]
    """Their names, b of `SIZES`."""
    bounds: tuple[float, ...]
    """Upper bounds, included, of all buckets but the last, which has none."""
    count: Int[np.ndarray, " b"]  # type: ignore[assignment]  # hides tuple.count
    """How many true segments."""
    mean_ap_n: Float[np.ndarray, " b"]
    """mAP_N of the true segments of the bucket; NaN where there are none."""
    missed: Float[np.ndarray, " b"]
    """The fraction of them that is missed; NaN where there are none."""


class Analysis(NamedTuple):
    """What `analyse` returns; all mAP are fractions."""

    iou: float
    num_detections: int
    num_true: int
    average_instances: float
    """N: true segments per class that occurs; NaN if there are none."""
    mean_ap: float
    """As `metrics.detection_map` has it."""
    mean_ap_n: float
    """mAP_N, the mean over classes of `normalized_average_precision`."""
    missed: float
    """The fraction of the true segments that is missed."""
    profile: dict[str, Int[np.ndarray, " 10"]]
    """For each of `TYPES` how many of the best G detections of the classes it is, of their next G, and so on."""
    mean_ap_without: dict[str, float]
    """mAP were there no errors of a type."""
    mean_ap_n_without: dict[str, float]
    """mAP_N were there no errors of a type."""
    characteristics: dict[str, Characteristic]
    """By coverage (if the durations are known), length and instances."""


def analyse(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    iou: float = 0.5,
    durations: Mapping[str, float | int] | None = None,
    buckets: str = "activitynet",
) -> Analysis:
    """DETAD's three analyses of detections by video id, at one IoU threshold.

    Hits are those of `metrics.match` under protocol `activitynet`. Classes without true segments count nowhere, nor do
    their detections; means over classes are over the others.

    Args:
      durations: seconds, of all videos with true segments at least. Without it, coverage is left out.
      buckets: a key of `BUCKETS`.

    Raises:
      InputError: an unknown name of buckets, or a video with true segments whose duration is missing or not positive.
      ValueError: a label that is not in [0, num_classes).
    """
    if buckets not in BUCKETS:
        raise InputError(f"no buckets {buckets!r}; choose one of {', '.join(BUCKETS)}")
    rankings = _rank(detections, truth, num_classes, iou)
    labels = _concatenate([a.labels for a in truth.values()])
    average = len(labels) / len(rankings) if rankings else math.nan
    profile = np.zeros((RANKS, len(TYPES)), int)
    missed = np.ones(len(labels), bool)
    for of in rankings:
        rank = np.arange(len(of.kind)) // of.positive
        np.add.at(profile, (rank[rank < RANKS], of.kind[rank < RANKS]), 1)
        precise = of.hits & (_normalized_precision(of.hits, of.positive, average) > MIN_PRECISION)
        missed[of.segment[precise]] = False
    # Without errors of a type; at index 0, as it is.
    mean_ap, mean_ap_n = (
        [
            _mean([normalized_average_precision(of.without(t), of.positive, n or of.positive) for of in rankings])
            for t in range(len(TYPES))
        ]
        for n in (0, average)
    )
    return Analysis(
        iou=float(iou),
        num_detections=sum(len(d.labels) for d in detections.values()),
        num_true=len(labels),
        average_instances=average,
        mean_ap=mean_ap[0],
        mean_ap_n=mean_ap_n[0],
        missed=_mean(missed),
        profile=dict(zip(TYPES, profile.T)),
        mean_ap_without=dict(zip(TYPES[1:], mean_ap[1:])),
        mean_ap_n_without=dict(zip(TYPES[1:], mean_ap_n[1:])),
        characteristics={
            name: _characteristic(values, BUCKETS[buckets][name], labels, rankings, average, missed)
            for name, values in _characteristics(truth, durations).items()
        },
    )


class _Ranking(NamedTuple):
    """The detections of a class that has true segments, best first."""

    label: int
    positive: int
    """How many true segments it has."""
    hits: Bool[np.ndarray, " k"]
    kind: Int[np.ndarray, " k"]
    """Index into `TYPES`."""
    segment: Int[np.ndarray, " k"]
    """Of hits: which true segment, of those of all videos in one row."""

    def without(self, kind: int) -> Bool[np.ndarray, " l"]:
        """`hits` without the errors of a kind; 0 is no error."""
        return self.hits[(self.kind != kind) | self.hits]


def _rank(
    detections: Mapping[str, Detections], truth: Mapping[str, Annotation], num_classes: int, iou: float
) -> list[_Ranking]:
    matched = metrics.match(detections, truth, num_classes, np.array([iou]))
    videos = [*truth, *(video for video in detections if video not in truth)]
    found = [detections.get(video, _NO_DETECTIONS) for video in videos]
    true = [truth.get(video, _NO_TRUTH) for video in videos]
    types = _concatenate([error_types(d, a, iou) for d, a in zip(found, true)])
    first_found = np.cumsum([0, *(len(d.labels) for d in found)])
    first_true = np.cumsum([0, *(len(a.labels) for a in true)])
    rankings = []
    for label, of in enumerate(matched):
        if of.num_positive.any():
            hits = of.taken[0] >= 0
            kind = np.where(hits, 0, types[first_found[of.videos] + of.index])
            segment = first_true[of.videos] + of.taken[0]
            rankings.append(_Ranking(label, int(of.num_positive.sum()), hits, kind, segment))
    return rankings


def _characteristic(
    values: Float[np.ndarray, " t"] | Int[np.ndarray, " t"],
    bounds: tuple[float | int, ...],
    labels: Int[np.ndarray, " t"],
    rankings: list[_Ranking],
    average: float,
    missed: Bool[np.ndarray, " t"],
) -> Characteristic:
    """Of the t true segments of all videos, by bucket."""
    bucket, size = np.searchsorted(bounds, values), len(bounds) + 1
    ap: list[list[float]] = [[] for _ in range(size)]
    for of in rankings:
        here = np.bincount(bucket[labels == of.label], minlength=size)
        hit_bucket = np.where(of.hits, bucket[np.where(of.hits, of.segment, 0)], -1)
        for b, count in enumerate(here):
            rest = of.hits[~of.hits | (hit_bucket == b)]
            ap[b].append(normalized_average_precision(rest, int(count), average))
    return Characteristic(
        buckets=SIZES[:size],
        bounds=bounds,
        count=np.bincount(bucket, minlength=size),
        mean_ap_n=np.array([_mean(of_bucket) for of_bucket in ap]),
        missed=np.array([_mean(missed[bucket == b]) for b in range(size)]),
    )


def error_types(detections: Detections, truth: Annotation, iou: float) -> Int[np.ndarray, " k"]:
    """What error each of the k detections of a video is if it is not a hit, as an index into `TYPES`.

    The true segment that it overlaps most decides, whatever its label, and of several that it overlaps equally the
    first in the file, as in DETAD's code: in THUMOS14, whose instances of CliffDiving are all instances of Diving as
    well, a detection of the class that comes second can so be no double detection. Where this segment is of

    - its own label, and the IoU is >= `iou`: a double detection, for better ones took all such segments;
    - another label, and the IoU is >= `iou`: a wrong label;
    - its own label, and the IoU is in [0.1, `iou`): a localization error;
    - another label, and the IoU is in [0.1, `iou`): a confusion error.

    If it overlaps all true segments less than 0.1, or there are none, it is a background error.
    """
    overlap = metrics.temporal_iou(detections.segments, truth.segments)
    most = overlap.max(axis=1, initial=0)
    first = truth.labels[overlap.argmax(axis=1)] if len(truth.labels) else np.full(len(most), -1)
    right = detections.labels == first
    return np.select(
        [most < min(iou, BACKGROUND_IOU), (most >= iou) & right, most >= iou, right],
        [TYPES.index(name) for name in ("background", "double detection", "wrong label", "localization")],
        TYPES.index("confusion"),
    )


def normalized_average_precision(hits: Bool[np.ndarray, " k"], num_positive: int, average: float | int) -> float:
    """AP_N of k detections, best first: the interpolated average precision, with normalized precision.

    Precision depends on how many positives there are. To compare sets of different size, normalized precision is
    `R N / (R N + F)`, with the recall R and the number of false positives F so far, and the same N = `average` for all
    sets: DETAD, after Hoiem et al., ECCV 2012. With N = `num_positive` this is `metrics.average_precision`.

    Returns NaN if there is no positive.
    """
    if num_positive == 0:
        return math.nan
    precision = _normalized_precision(hits, num_positive, average)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    return float(interpolated[hits].sum() / num_positive)


def _normalized_precision(hits: Bool[np.ndarray, " k"], num_positive: int, average: float | int) -> np.ndarray:
    positive = np.cumsum(hits) / num_positive * average
    return positive / (positive + np.cumsum(~hits))


def _characteristics(
    truth: Mapping[str, Annotation], durations: Mapping[str, float | int] | None
) -> dict[str, np.ndarray]:
    """Of all true segments, video by video."""
    nothing = [np.zeros(0)]
    length = [np.round(a.segments[:, 1] - a.segments[:, 0], 9) for a in truth.values()]
    instances = [np.bincount(a.labels, minlength=1)[a.labels] for a in truth.values()]
    result = {"length": np.concatenate(nothing + length), "instances": np.concatenate(nothing + instances)}
    if durations is None:
        return result
    for video, a in truth.items():
        if len(a.labels) and not durations.get(video, 0) > 0:
            raise InputError(
                f"the duration of video {video!r} is {durations.get(video, 'missing')}; give seconds for all videos "
                "with true segments, or no durations at all to leave coverage out"
            )
    coverage = [np.round(x / durations[v], 9) for v, x in zip(truth, length) if len(x)]
    return {"coverage": np.concatenate(nothing + coverage), **result}


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    """Of integers, and perhaps of nothing."""
    return np.concatenate([np.zeros(0, int), *parts])


def _mean(values: np.ndarray | list[float]) -> float:
    """Of those that are not NaN; NaN, and no warning, if there are none."""
    values = np.asarray(values)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


_NO_TRUTH = Annotation(np.zeros((0, 2)), np.zeros(0, int))
_NO_DETECTIONS = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The same as dictionaries, lists and numbers, with None for NaN, which JSON does not have."""

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, dict):
            return {key: plain(x) for key, x in value.items()}
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple):
            return [plain(x) for x in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return plain(analysis)


def format_analysis(analysis: Analysis) -> str:
    """Text tables, in percent: false positives and what they cost, then each characteristic by bucket."""
    a = analysis
    counts = np.stack([a.profile[name] for name in TYPES])
    total = counts.sum(axis=0)
    lines = [
        f"{a.num_detections} detections, {a.num_true} true segments, IoU {a.iou:g}: mAP {percent(a.mean_ap)}, "
        f"mAP_N {percent(a.mean_ap_n)} (N = {a.average_instances:.1f}), missed {percent(a.missed)}",
        "",
        "best detections of each class (G: its true segments), and what mAP and mAP_N gain without an error",
        _row("", [f"{r + 1}G" for r in range(RANKS)], 6) + _row("", ["mAP", "mAP_N"], 8, name_width=0),
        _row("detections", [str(n) for n in total], 6),
    ]
    for name, count in zip(TYPES, counts):
        line = _row(f"{name} %", [percent(n / t) if t else "-" for n, t in zip(count.tolist(), total.tolist())], 6)
        if name in a.mean_ap_without:
            gains = a.mean_ap_without[name] - a.mean_ap, a.mean_ap_n_without[name] - a.mean_ap_n
            line += _row("", [percent(gain, "+") for gain in gains], 8, name_width=0)
        lines.append(line)
    for name, of in a.characteristics.items():
        lines += [
            "",
            _row(f"{name}, {UNITS[name]}", of.buckets, 8, name_width=36),
            _row("", bucket_ranges(of), 8, name_width=36),
            _row("true segments", [str(n) for n in of.count], 8, name_width=36),
            _row("mAP_N %", [percent(x) for x in of.mean_ap_n], 8, name_width=36),
            _row("missed %", [percent(x) for x in of.missed], 8, name_width=36),
        ]
    return "\n".join(line.rstrip() for line in lines)


def bucket_ranges(characteristic: Characteristic) -> list[str]:
    """Like "<= 30" for each bucket, and "> 180" for the last."""
    bounds = [f"{bound:g}" for bound in characteristic.bounds]
    return [*(f"<= {bound}" for bound in bounds), f"> {bounds[-1]}"]


def _row(name: str, values: Any, width: int, name_width: int = 20) -> str:
    return name.ljust(name_width) + "".join(value.rjust(width) for value in values)


def percent(fraction: float, sign: str = "") -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:{sign}.1f}"
