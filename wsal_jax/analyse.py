"""Analysis of detection errors: false positives, sensitivity and false negatives, as numbers and a table.

It follows DETAD: Alwassel, Caba Heilbron, Escorcia and Ghanem, "Diagnosing Error in Temporal Action Detectors", ECCV
2018. Where the definitions are ambiguous, we state what the authors' code does and where we differ. NumPy, on the host;
`wsal_jax.plot_analysis` draws the results.

False positives. The detections of each class are split by rank: its best G, the next G, up to 10 G, where G is the
number of true segments of the class; counts are summed over classes. `error_types` defines the types of error. The cost
of a type is the gain in mAP after its errors are removed from the ranking of all detections. DETAD first truncates the
ranking at 10 G and prints the gain in mAP_N only.

Sensitivity. The mAP_N of a bucket leaves out the true segments of all other buckets and the detections that hit them;
all false positives stay. A class without true segments in the bucket does not count.

False negatives. A true segment is missed if no detection hits it at a normalized precision (not interpolated) above
`MIN_PRECISION`. Without this bound, a detector could miss nothing by emitting enough segments.

Characteristics of true segments, in the buckets of `BUCKETS[buckets]`:
  coverage: length / duration of the video; values above 1 are in the last bucket (DETAD drops such segments).
  length: seconds, rounded to 1e-9, so that 4.4 - 1.4 is 3.
  instances: the number of segments of its class in the video. DETAD's file for THUMOS14 counts all classes, so each
    instance of CliffDiving counts twice there, because it is also an instance of Diving.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from wsal_jax import metrics
from wsal_jax.types import Annotation, Detections, InputError

TYPES = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
"""The types of detections; all but the first are errors."""

BACKGROUND_IOU = 0.1
"""A detection whose IoU with every true segment is below this is a background error."""

RANKS = 10
"""The profile of false positives covers the best `RANKS` x G detections of a class with G true segments."""

MIN_PRECISION = 0.05
"""A true segment hit only at a normalized precision of at most this counts as missed, as in DETAD's code."""

SIZES = ("XS", "S", "M", "L", "XL")

BUCKETS = {
    "activitynet": {"coverage": (0.2, 0.4, 0.6, 0.8), "length": (30.0, 60.0, 120.0, 180.0), "instances": (1, 4, 8)},
    "thumos14": {"coverage": (0.02, 0.04, 0.06, 0.08), "length": (3.0, 6.0, 12.0, 18.0), "instances": (1, 40, 80)},
}
"""DETAD's upper bounds of the buckets XS, S, M, L of each characteristic; a further bucket holds larger values."""

UNITS = {"coverage": "length / video", "length": "seconds", "instances": "of the class in the video"}


class Characteristic(NamedTuple):
    """The true segments in b buckets of one characteristic."""

    buckets: tuple[str, ...]
    """The names of the buckets, b of `SIZES`."""
    bounds: tuple[float, ...]
    """Inclusive upper bounds of all buckets but the last, which has none."""
    count: Int[np.ndarray, " b"]  # type: ignore[assignment]  # hides tuple.count
    """Number of true segments."""
    mean_ap_n: Float[np.ndarray, " b"]
    """mAP_N of the true segments in the bucket; NaN if there are none."""
    missed: Float[np.ndarray, " b"]
    """The fraction of them that is missed; NaN if there are none."""


class Analysis(NamedTuple):
    """The result of `analyse`; all mAP values are fractions."""

    iou: float
    num_detections: int
    num_true: int
    average_instances: float
    """N: true segments per class with true segments; NaN if there are none."""
    mean_ap: float
    """As in `metrics.detection_map`."""
    mean_ap_n: float
    """mAP_N, the mean over classes of `normalized_average_precision`."""
    missed: float
    """The fraction of the true segments that is missed."""
    profile: dict[str, Int[np.ndarray, " 10"]]
    """For each of `TYPES`, its count among the best G detections of each class, among the next G, and so on."""
    mean_ap_without: dict[str, float]
    """mAP without the errors of a type."""
    mean_ap_n_without: dict[str, float]
    """mAP_N without the errors of a type."""
    characteristics: dict[str, Characteristic]
    """Coverage (if the durations are known), length and instances."""


def analyse(
    detections: Mapping[str, Detections],
    truth: Mapping[str, Annotation],
    num_classes: int,
    iou: float = 0.5,
    durations: Mapping[str, float | int] | None = None,
    buckets: str = "activitynet",
) -> Analysis:
    """DETAD's three analyses of detections by video id, at one IoU threshold.

    Hits are those of `metrics.match` under protocol `activitynet`. Classes without true segments and their detections
    do not count; means are over the other classes.

    Args:
      detections: by video id.
      truth: by video id.
      num_classes: c; labels are in [0, c).
      iou: the threshold.
      durations: in seconds, at least for all videos with true segments. Without it, coverage is left out.
      buckets: a key of `BUCKETS`.

    Raises:
      InputError: an unknown name of buckets, or a video with true segments whose duration is missing or not positive.
      ValueError: a label outside [0, num_classes).
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
    # mAP without the errors of each type; index 0 removes nothing.
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
    """Number of true segments."""
    hits: Bool[np.ndarray, " k"]
    kind: Int[np.ndarray, " k"]
    """Index into `TYPES`."""
    segment: Int[np.ndarray, " k"]
    """For hits, the index of the true segment among those of all videos, concatenated."""

    def without(self, kind: int) -> Bool[np.ndarray, " l"]:
        """`hits` without the errors of a kind; kind 0 removes nothing."""
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
    """The t true segments of all videos, by bucket."""
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
    """The type of error of each of the k detections of a video, assuming that it is not a hit, as an index into
    `TYPES`.

    The true segment that it overlaps most decides, whatever its label; among equal overlaps the first in the file, as
    in DETAD's code. In THUMOS14 every instance of CliffDiving is also one of Diving, so a detection of the class that
    comes second in the file cannot be a double detection there. If this true segment has

    - the same label, and the IoU is >= `iou`: a double detection, because better detections took all such segments;
    - another label, and the IoU is >= `iou`: a wrong label;
    - the same label, and the IoU is in [0.1, `iou`): a localization error;
    - another label, and the IoU is in [0.1, `iou`): a confusion error.

    If its IoU with all true segments is below 0.1, or there are none, it is a background error.
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

    Precision depends on the number of positives. For sets of different size, DETAD (after Hoiem et al., ECCV 2012)
    compares the normalized precision `R N / (R N + F)`, with the recall R and the number of false positives F so far,
    and the same N = `average` for all sets. With N = `num_positive` this is `metrics.average_precision`.

    Returns NaN without positives.
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
    """The characteristics of all true segments, video by video."""
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
                "with true segments, or no durations to leave coverage out"
            )
    coverage = [np.round(x / durations[v], 9) for v, x in zip(truth, length) if len(x)]
    return {"coverage": np.concatenate(nothing + coverage), **result}


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates integer arrays; there may be none."""
    return np.concatenate([np.zeros(0, int), *parts])


def _mean(values: np.ndarray | list[float]) -> float:
    """The mean of the values that are not NaN; NaN without a warning if there are none."""
    values = np.asarray(values)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


_NO_TRUTH = Annotation(np.zeros((0, 2)), np.zeros(0, int))
_NO_DETECTIONS = Detections(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis as dictionaries, lists and numbers, with None for NaN, which JSON lacks."""

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
