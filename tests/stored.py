"""Reads what a builder has stored, for tests: the examples of TFDS with their features."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from wsal_jax.data import examples, pipeline, store


def videos(builder: tfds.core.DatasetBuilder, split: str) -> list[dict[str, Any]]:
    """The examples of a split in order, each with "features" by stream in their stored dtype."""
    kept = pipeline.load(builder, split).store
    return [
        {**example, "features": {stream: store.read(kept, video, stream) for stream in kept.streams}}
        for video, example in enumerate(builder.as_data_source(split=split))
    ]


def by_id(builder: tfds.core.DatasetBuilder) -> dict[str, dict[str, Any]]:
    """The examples of both splits."""
    return {video["id"].decode(): video for split in ("train", "test") for video in videos(builder, split)}


def tree(folder: Path) -> dict[str, bytes]:
    """The content of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dims(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    """The dimensions of the streams."""
    return {name: stream.dim for name, stream in examples.streams(builder.info).items()}
