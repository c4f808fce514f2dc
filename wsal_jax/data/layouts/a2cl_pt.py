"""A2CL-PT: the features of all videos of a split in one pickled dict.

Its files are `feature_train.npy` and `feature_val.npy`, each a dict from id to features [n 2d] (rgb | flow), and
`annotation.json` (`annotations.read_activitynet`). The `miscellany` there gives frames per snippet and frame rate, by
default 16 and 25. Its times differ from THUMOS14's by up to 0.13 s.

Videos without annotations are left out. 927 annotations of training videos have a label but no segment. A training
video with only such annotations is used if all its labels are classes of the benchmark.
"""

from functools import partial
from pathlib import Path

import numpy as np

from wsal_jax.data.layouts import Benchmark, Listing, Sampling, Source, halves
from wsal_jax.formats import arrays
from wsal_jax.formats.annotations import Record, read_activitynet
from wsal_jax.formats.checks import Problems, number, read_json
from wsal_jax.text import cut
from wsal_jax.types import InputError

LOOKS_FOR = "feature_{train,val}.npy and annotation.json"


def matches(root: Path) -> bool:
    """Whether the folder has this layout."""
    return (root / "feature_train.npy").exists() and (root / "annotation.json").exists()


def read(root: Path, benchmark: Benchmark, problems: Problems) -> Listing:
    """The videos with annotations."""
    records = read_activitynet(root / "annotation.json", problems)
    subsets = {record.subset for record in records.values()}
    content = read_json(root / "annotation.json", Problems())
    about = content.get("miscellany") or {} if isinstance(content, dict) else {}
    given = about if isinstance(about, dict) else {"fps_extracted": None}
    fps, frames = number(given.get("fps_extracted", 25)), number(given.get("len_feature_chunk", 16))
    if not (fps > 0 and frames > 0):
        what = f'"miscellany" is {cut(repr(about))}: must have positive fps_extracted, len_feature_chunk'
        problems.add("annotation.json", what)
    sources = []
    for name in ("feature_train.npy", "feature_val.npy"):
        try:
            features = arrays.read_npy(root / name)
        except InputError as error:
            problems.add(name, str(error))
            continue
        if features.shape != () or not isinstance(features.item(), dict):
            problems.add(name, f"is an array of {features.dtype} {features.shape}: must be a dict from id to features")
            continue
        for key, of_video in features.item().items():
            id = key.decode() if isinstance(key, bytes) else str(key)
            record = records.get(id)
            split = benchmark.split_of(id, record.subset if record else "", subsets)
            timed = record and (record.segments or record.ambiguous)
            if split and (timed or (split == "train" and record and _is_weak(record, benchmark))):
                sources.append(Source(id, split, f"{name}: {id!r}", partial(_load, of_video), record))
    have = {source.id for source in sources}
    missing = [id for id, x in records.items() if x.segments and id not in have]
    return Listing(sources, missing, Sampling(fps, frames, frames / 2))


def _is_weak(record: Record, benchmark: Benchmark) -> bool:
    """Whether a video without segments has labels, all of them classes of the benchmark."""
    known = set(record.video_labels if benchmark.classes is None else benchmark.classes)
    return bool(record.video_labels) and set(record.video_labels) <= known


def _load(features: object) -> dict[str, np.ndarray]:
    return halves(np.asarray(features))
