"""Is one row of a table better than another? A paired bootstrap over videos and seeds.

What it needs of a run is which detection of which video hits at which IoU threshold: `pack` makes small arrays of that.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Shaped

from wsal_jax import metrics
from wsal_jax.matching import FALSE, FORGIVEN, Matched

Packed = dict[str, Shaped[np.ndarray, "..."]]
"""Of k detections, all seeds and classes one after the other, best first: `videos` [k] and, as bits by IoU threshold,
`hits` [k] and `forgiven` [k]; `detections` [s c] says how many there are, `positives` [c v] how many true segments."""


def pack(seeds: Sequence[Sequence[Matched]]) -> Packed:
    """By seed and class what `metrics.match` returned, without what no average precision depends on.

    That are the detections of a class after its last hit; the first one stays, for `wtalc` asks whether there is any.
    """
    videos, hits, forgiven, counts = [], [], [], []
    for matched in seeds:
        for one in matched:
            bits = 1 << np.arange(len(one.taken), dtype=np.uint16)
            hit = (bits[:, None] * (one.taken >= 0)).sum(axis=0, dtype=np.uint16)
            k = max(np.flatnonzero(hit).max(initial=-1), min(0, len(hit) - 1)) + 1
            videos.append(one.videos[:k].astype(np.uint16))
            hits.append(hit[:k])
            forgiven.append((bits[:, None] * (one.taken == FORGIVEN)).sum(axis=0, dtype=np.uint16)[:k])
            counts.append(k)
    return {
        "videos": np.concatenate(videos),
        "hits": np.concatenate(hits),
        "forgiven": np.concatenate(forgiven),
        "detections": np.array(counts, np.uint32).reshape(len(seeds), -1),
        "positives": np.stack([one.num_positive for one in seeds[0]]).astype(np.uint16),
    }


def unpack(packed: Mapping[str, np.ndarray], ious: int) -> list[list[Matched]]:
    """What was packed, as far as `metrics.resample` wants it, by seed and class; `ious` is how many thresholds."""
    bits = 1 << np.arange(ious, dtype=np.uint16)[:, None]
    taken = np.where(packed["hits"] & bits, 0, np.where(packed["forgiven"] & bits, FORGIVEN, FALSE))
    ends = np.cumsum(packed["detections"].ravel()).tolist()
    positives = packed["positives"].astype(int)
    matched = []
    for i, (start, end) in enumerate(zip([0, *ends], ends)):
        nothing = np.zeros(end - start)
        videos, part = packed["videos"][start:end].astype(int), taken[:, start:end]
        matched.append(Matched(videos, nothing.astype(int), nothing, part, positives[i % len(positives)]))
    return [matched[i : i + len(positives)] for i in range(0, len(matched), len(positives))]


def resampled(
    packed: Mapping[str, np.ndarray],
    protocol: str,
    averages: Sequence[Sequence[int]],
    ious: int,
    samples: int,
    seed: int,
) -> Float[np.ndarray, "r n c"]:
    """The mAP in percent of r seeds and n = `samples` + 1 samples, at each IoU threshold and of each average.

    In the first sample all videos are once.
    Runs on the same videos get the same samples by the same `seed`.
    """
    copies = metrics.draw(packed["positives"].shape[1], samples, seed)
    columns = []
    for matched in unpack(packed, ious):
        by_iou = metrics.resample(matched, copies, protocol)
        columns.append(np.concatenate([by_iou, *(by_iou[:, list(x)].mean(axis=1, keepdims=True) for x in averages)], 1))
    return 100 * np.stack(columns)


def redrawn(values: Float[np.ndarray, "r n ..."], rng: np.random.Generator) -> Float[np.ndarray, "n ..."]:
    """The mean of r things, of which each of n samples draws r with replacement.

    The deviation from the mean of all is stretched by sqrt(r / (r - 1)), for that of so few things is too small.
    """
    r, n = values.shape[:2]
    mean = values.mean(axis=0)
    if r == 1:
        return mean
    chosen = rng.integers(r, size=(n, r))
    return mean + np.sqrt(r / (r - 1)) * (values[chosen, np.arange(n)[:, None]].mean(axis=1) - mean)


def difference(
    first: Sequence[Float[np.ndarray, "_ n c"]], second: Sequence[Float[np.ndarray, "_ n c"]], seed: int = 0
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "c 2"]]:
    """How much higher the first row is than the second, and the 95 % interval of that, column by column.

    Each sample draws videos, which both rows share, and the seeds of each row for themselves; of several repetitions
    (compositions of the data) it draws those, too, for both. The interval is a basic one, as in `metrics.bootstrap`.

    Args:
      first: what `resampled` returned for each repetition.
      second: likewise, with the same repetitions, samples and columns.
      seed: of what is drawn here.
    """
    rng = np.random.default_rng(seed)
    drawn = np.stack([redrawn(a[:, 1:], rng) - redrawn(b[:, 1:], rng) for a, b in zip(first, second, strict=True)])
    point = np.mean([a[:, 0].mean(axis=0) - b[:, 0].mean(axis=0) for a, b in zip(first, second)], axis=0)
    low, high = np.nanpercentile(redrawn(drawn, rng), [2.5, 97.5], axis=0)
    return point, np.stack([2 * point - high, 2 * point - low], axis=1)


def compare(
    rows: Mapping[str, Mapping[int, Float[np.ndarray, "_ n c"]]], columns: Sequence[str]
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """`difference` of every two rows, by the first, the second and the column: [difference, low, high].

    Rows, which have what `resampled` returned by number of the repetition, are compared on the repetitions of both.
    """
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for a, b in combinations(rows, 2):
        if both := sorted(rows[a].keys() & rows[b].keys()):
            point, interval = difference([rows[a][i] for i in both], [rows[b][i] for i in both])
            cells = {name: [round(float(x), 2) for x in (p, *i)] for name, p, i in zip(columns, point, interval)}
            table.setdefault(a, {})[b] = cells
    return table
