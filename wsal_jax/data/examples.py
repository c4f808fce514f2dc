"""The one form in which every builder stores a video; `pipeline.py` reads it."""

import numpy as np
import tensorflow_datasets as tfds


def features(dims: dict[str, int], class_names: list[str]) -> tfds.features.FeaturesDict:
    """The TFDS features of a video with streams of these dimensions; n snippets, c classes, k true segments,
    a ambiguous ones.

    `labels` [c] is 1 for every class of the video; `counts` [c] says how often it occurs, -1 where that is not known.
    `segments` [k 2] are seconds, `segment_labels` [k] class indices, `ambiguous` [a 2] seconds where nobody can tell:
    for evaluation only.
    `fps`, `stride`, `offset` (frames), `duration` (seconds) place the snippets in time, see `types.Meta`.
    """
    tensor = tfds.features.Tensor
    raw = tfds.features.Encoding.BYTES  # else TFDS stores float64 as float32
    scalar = tensor(shape=(), dtype=np.float64, encoding=raw)
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "features": {name: tensor(shape=(None, d), dtype=np.float32, encoding=raw) for name, d in dims.items()},
            "labels": tensor(shape=(len(class_names),), dtype=np.int32),
            "counts": tensor(shape=(len(class_names),), dtype=np.int32),
            "segments": tensor(shape=(None, 2), dtype=np.float64, encoding=raw),
            "segment_labels": tfds.features.Sequence(tfds.features.ClassLabel(names=class_names)),
            "ambiguous": tensor(shape=(None, 2), dtype=np.float64, encoding=raw),
            "fps": scalar,
            "stride": scalar,
            "offset": scalar,
            "duration": scalar,
        }
    )


def class_names(info: tfds.core.DatasetInfo) -> list[str]:
    """The names behind the class indices of a builder."""
    return info.features["segment_labels"].feature.names
