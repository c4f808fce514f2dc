"""The one form in which every builder stores what is known of a video but its features; `pipeline.py` reads it."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from wsal_jax.data.store import Stream

RAW = {
    "length": (np.int64,),
    "shard": (np.int64,),
    "row": (np.int64,),
    "labels": (np.int32, -1),
    "counts": (np.int32, -1),
    "segments": (np.float64, -1, 2),
    "ambiguous": (np.float64, -1, 2),
    "fps": (np.float64,),
    "stride": (np.float64,),
    "offset": (np.float64,),
    "duration": (np.float64,),
}
"""Type and shape of what is stored as raw bytes."""

IMAGE = {"grid": (np.int64, 2), "size": (np.int64, 2), "boxes": (np.float64, -1, 4)}
"""What images have beyond that: rows and columns, width and height, and the boxes of `segment_labels` in pixels."""


def features(class_names: list[str], images: bool = False) -> tfds.features.FeaturesDict:
    """The TFDS features of a video; c classes, k true segments, a ambiguous ones.

    `group` names what a video has in common with others, such as the recording it was cut from; "" where nothing.
    `length` is the number of snippets; `shard` and `row` say where its features are, see `store`.
    `labels` [c] is 1 for every class of the video; `counts` [c] says how often it occurs, -1 where that is not known.
    `segments` [k 2] are seconds, `segment_labels` [k] class indices, `ambiguous` [a 2] seconds where nobody can tell:
    for evaluation only. Images have a segment for each box, and `IMAGE`.
    `fps`, `stride`, `offset` (frames), `duration` (seconds) place the snippets in time, see `types.Meta`.
    """
    lengths = {"labels": len(class_names), "counts": len(class_names)}
    bytes = tfds.features.Encoding.BYTES  # else TFDS stores float64 as float32
    raw = {}
    for name, (dtype, *shape) in (RAW | IMAGE if images else RAW).items():
        shape = tuple(lengths.get(name) if size < 0 else size for size in shape)
        raw[name] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding=bytes)
    labels = tfds.features.Sequence(tfds.features.ClassLabel(names=class_names))
    text = tfds.features.Text()
    return tfds.features.FeaturesDict({"id": text, "group": text, "segment_labels": labels, **raw})


def class_names(info: tfds.core.DatasetInfo) -> list[str]:
    """The names behind the class indices of a builder."""
    return info.features["segment_labels"].feature.names


def metadata(streams: Mapping[str, Stream], extraction: dict[str, Any] | None = None) -> tfds.core.MetadataDict:
    """What `streams` and `extraction` read again."""
    known = {"extraction": extraction} if extraction else {}
    return tfds.core.MetadataDict(streams={name: list(stream) for name, stream in streams.items()}, **known)


def streams(info: tfds.core.DatasetInfo) -> dict[str, Stream]:
    """What the features of a builder are like."""
    return {name: Stream(*of) for name, of in info.metadata["streams"].items()}


def extraction(info: tfds.core.DatasetInfo) -> dict[str, Any] | None:
    """How the features of a builder were made, see `builder.Folder`."""
    return info.metadata.get("extraction")


@contextmanager
def writer(path: PathLike, info: tfds.core.DatasetInfo) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that adds an example to a new file of records, whose bytes depend on the examples alone."""
    serializer = example_serializer.ExampleSerializer(info.features.get_serialized_info())
    records = ArrayRecordWriter(fspath(path), "group_size:1")

    def written(action: Callable[..., Any], *args: Any) -> None:
        try:
            action(*args)
        except RuntimeError as error:  # of a full disk, for example
            raise OSError(errno.EIO, str(error), fspath(path)) from error

    def write(example: dict[str, Any]) -> None:
        encoded = serializer.get_tf_example(info.features.encode_example(example))
        written(records.write, encoded.SerializeToString(deterministic=True))

    try:
        yield write
    finally:
        written(records.close)


def read(path: PathLike) -> Iterator[dict[str, Any]]:
    """All examples of a file of records, as TFDS's data source gives them, in a sixth of its time."""
    for record in ArrayRecordReader(fspath(path)).read_all():
        example = tf_example_pb2.Example.FromString(record).features.feature
        labels = np.array(example["segment_labels"].int64_list.value, np.int64)
        decoded = {name: example[name].bytes_list.value[0] for name in ("id", "group")} | {"segment_labels": labels}
        for name, (dtype, *shape) in (RAW | IMAGE if "grid" in example else RAW).items():
            values = np.frombuffer(example[name].bytes_list.value[0], dtype)
            decoded[name] = values.reshape(shape) if shape else values[0]
        yield decoded
