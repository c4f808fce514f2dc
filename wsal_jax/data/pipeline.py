"""From a TFDS builder to batches: which snippets a training step sees, and the padded videos that scoring sees.

Training draws its batches by `plan`, a pure function of key and step. Where the features fit on the device, `flat` puts
them there once and the step takes those of its plan; else `stream` reads them from disk by threads of Grain: the same
batches either way.
"""

import importlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Array, ArrayLike, Float, Int, Key, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax.data import BUILDERS, examples, store
from wsal_jax.data.builder import SPLITS
from wsal_jax.data.store import Store
from wsal_jax.keys import named
from wsal_jax.types import Annotation, InputError, Meta


class Dataset(NamedTuple):
    """One split, on the host, in the order of the videos' ids; features stay on disk until `read`."""

    store: Store
    metas: list[Meta]
    annotations: list[Annotation]
    labels: Float[np.ndarray, "v c"]
    counts: Float[np.ndarray, "v c"]
    class_names: list[str]
    dims: dict[str, int]
    """Feature dimension of each stream."""
    num_bytes: int
    """Of all features, as float32."""
    groups: list[str]
    """What each video has in common with others, see `examples.features`; "" where nothing."""
    extraction: dict[str, Any] | None = None
    """How the features were made, see `builder.Folder`."""

    @property
    def lengths(self) -> Int[np.ndarray, " v"]:
        """Snippets of each video."""
        return np.array([meta.length for meta in self.metas], np.int32)

    @property
    def starts(self) -> Int[np.ndarray, " v"]:
        """First snippet of each video among those of all videos, one after the other."""
        return np.cumsum(self.lengths, dtype=np.int32) - self.lengths


def build(config: ConfigDict) -> tfds.core.DatasetBuilder:
    """The builder that `config.data` names, its data built if they are not there yet.

    Raises:
      InputError: no such builder or builder config, or what the builder says of the user's files.
    """
    name, _, variant = config.name.partition("/")
    if name not in BUILDERS:
        raise InputError(f"config.data.name={config.name!r}: no such data set; there are {', '.join(BUILDERS)}")
    importlib.import_module(f"wsal_jax.data.{name}")
    options = dict(config.get("reader", {}), **({"config": variant} if variant else {}))
    if config.root:
        options["root" if name in ("feature_folder", "image_folder", "cub200") else "manual_dir"] = config.root
    try:  # the class itself, for tfds.builder puts all arguments before what it raises
        builder = tfds.builder_cls(name)(data_dir=config.dir or None, file_format="array_record", **options)
    except InputError:
        raise
    except Exception as error:  # TFDS's for a config that is not there, Python's for a root too many, or any of JSON's
        _check_built(config)
        if not isinstance(error, ValueError | TypeError):
            raise
        raise InputError(f"config.data.name={config.name!r}, config.data.root={config.root!r}: {error}") from error
    builder.download_and_prepare()
    return builder


def _check_built(config: ConfigDict) -> None:
    """Raises an InputError that names a damaged file, if there is one, where the builder could not be made."""
    for sums in sorted((Path(config.dir or tfds.core.constants.DATA_DIR) / config.name).rglob(store.SUMS)):
        store.check_seal(sums.parent, SPLITS)


def load(builder: tfds.core.DatasetBuilder, split: str) -> Dataset:
    """Everything of a split but the features, of which only the sizes of the files are looked at.

    Raises:
      InputError: a file that was built is damaged; it says which.
    """
    folder = Path(builder.data_dir)
    store.check_seal(folder, (split,))
    metas, annotations, labels, counts, places, groups = [], [], [], [], [], []
    for path in builder.info.splits[split].filepaths:
        for example in examples.read(path):
            times = {name: float(example[name]) for name in ("fps", "stride", "offset", "duration")}
            image = {name: tuple(example[name].tolist()) for name in ("grid", "size") if name in example}
            metas.append(Meta(example["id"].decode(), int(example["length"]), **times, **image))
            segments, classes, ambiguous = (example[name] for name in ("segments", "segment_labels", "ambiguous"))
            annotations.append(Annotation(segments, classes, ambiguous, example.get("boxes")))
            labels.append(example["labels"].astype(np.float32))
            counts.append(example["counts"].astype(np.float32))
            groups.append(example["group"].decode())
            places.append((example["shard"], example["row"], example["length"]))
    streams = examples.streams(builder.info)
    shards, rows, lengths = np.array(places, np.int64).T
    features = Store(folder, split, streams, shards, rows, lengths)
    store.check_sizes(features)
    return Dataset(
        store=features,
        metas=metas,
        annotations=annotations,
        labels=np.stack(labels),
        counts=np.stack(counts),
        class_names=examples.class_names(builder.info),
        dims={name: stream.dim for name, stream in streams.items()},
        num_bytes=int(lengths.sum()) * sum(stream.dim for stream in streams.values()) * 4,
        groups=groups,
        extraction=examples.extraction(builder.info),
    )


def select(dataset: Dataset, videos: Int[np.ndarray, " k"]) -> Dataset:
    """Some videos of a split, in the order given."""
    lists = {name: [getattr(dataset, name)[i] for i in videos] for name in ("metas", "annotations", "groups")}
    arrays = {name: getattr(dataset, name)[videos] for name in ("labels", "counts")}
    places = {name: getattr(dataset.store, name)[videos] for name in ("shards", "rows", "lengths")}
    num_bytes = int(places["lengths"].sum()) * sum(dataset.dims.values()) * 4
    return dataset._replace(store=dataset.store._replace(**places), num_bytes=num_bytes, **lists, **arrays)


def read(
    dataset: Dataset, video: int | np.integer, streams: Sequence[str], snippets: Int[np.ndarray, " t"] | None = None
) -> Float[np.ndarray, "_ d"]:
    """The features of a video, or of some of its snippets, as float32, those of several streams side by side.

    Raises:
      InputError: a file that was built is damaged; it says which.
    """
    features = [store.read(dataset.store, video, name, snippets) for name in streams]
    return np.concatenate(features, axis=-1, dtype=np.float32)


def draw_pairs(key: PRNGKeyArray, labels: Float[ArrayLike, "v c"], pairs: int) -> Int[Array, " k"]:
    """`pairs` times two different videos that share a class; k = 2 pairs, and those of a pair are neighbours.

    The class of each pair is uniform among those of two videos or more (there must be one), with replacement; its two
    videos are uniform, too.
    """
    has = jnp.asarray(labels).T > 0
    class_key, video_key = jax.random.split(key)
    shared = jnp.where(has.sum(1) > 1, 0.0, -jnp.inf)
    classes = jax.random.categorical(class_key, shared, shape=(pairs,))
    noise = jax.random.uniform(video_key, (pairs, has.shape[1]))
    return jax.lax.top_k(jnp.where(has[classes], noise, -1.0), 2)[1].reshape(-1)


def plan(
    key: PRNGKeyArray,
    step: Int[ArrayLike, ""] | int,
    lengths: Int[ArrayLike, " v"],
    batch_size: int,
    num_snippets: int,
    labels: Float[ArrayLike, "v c"] | None = None,
    pairs: int = 0,
) -> tuple[Int[Array, " b"], Int[Array, "b t"]]:
    """The videos of a training step and the snippets of each.

    Videos come in epochs of v // batch_size steps, shuffled anew for each; what does not fill a batch waits for another
    epoch. A video of n snippets is cut into `num_snippets` equal parts with one random snippet of each (MAAN section
    3.1), so snippets repeat where n is smaller.

    With `pairs`, the first 2 pairs places of a batch have the videos of `draw_pairs` instead: places (0, 1), (2, 3) and
    so on. The other places keep those of the epoch, so that some videos of an epoch are seen in pairs alone.
    """
    lengths = jnp.asarray(lengths)
    epoch, position = jnp.divmod(step, lengths.size // batch_size)
    order = jax.random.permutation(named(key, "order", epoch), lengths.size)
    videos = jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,))
    if pairs:
        videos = videos.at[: 2 * pairs].set(draw_pairs(named(key, "pairs", step), labels, pairs))
    within = jax.random.uniform(named(key, "snippets", step), (batch_size, num_snippets))
    n = lengths[videos][:, None]
    snippets = jnp.floor((jnp.arange(num_snippets) + within) * n / num_snippets).astype(jnp.int32)
    return videos, jnp.minimum(snippets, n - 1)  # rounding can reach n


def flat(dataset: Dataset, streams: Sequence[str]) -> Float[np.ndarray, "total d"]:
    """The features of all videos, one after the other, with no padding."""
    features = np.empty((dataset.lengths.sum(), sum(dataset.dims[name] for name in streams)), np.float32)
    for video, (start, length) in enumerate(zip(dataset.starts, dataset.lengths)):
        features[start : start + length] = read(dataset, video, streams)
    return features


def stream(
    dataset: Dataset,
    streams: Sequence[str],
    keys: Key[Array, " s"],
    steps: range,
    batch_size: int,
    num_snippets: int,
    slots: slice,
    pairs: int = 0,
) -> Iterator[Float[np.ndarray, "s b t d"]]:
    """The features of the plans of several seeds, read from disk by threads, one step after the other.

    `slots` are the places in the batch that this process wants; b is their number. `pairs`: see `plan`.
    """
    sizes = dict(batch_size=batch_size, num_snippets=num_snippets, labels=dataset.labels, pairs=pairs)
    draw = jax.jit(jax.vmap(partial(plan, **sizes), (0, None, None)))
    planned = lru_cache(maxsize=64)(lambda step: jax.device_get(draw(keys, step, dataset.lengths)))
    shape = (len(keys), slots.stop - slots.start)

    def batch(index: int) -> Float[np.ndarray, "s b t d"]:
        videos, snippets = (part[:, slots] for part in planned(steps[index]))
        rows = [read(dataset, videos[at], streams, snippets[at]) for at in np.ndindex(shape)]
        return np.stack(rows).reshape(*shape, *rows[0].shape)

    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    yield from grain.MapDataset.range(len(steps)).map(batch).to_iter_dataset(options)


class Padded(NamedTuple):
    """Whole videos of similar length; rows past `len(videos)` are empty."""

    videos: Int[np.ndarray, " k"]
    features: Float[np.ndarray, "b n d"]
    mask: Float[np.ndarray, "b n"]


def padded_lengths(lengths: Int[np.ndarray, " v"]) -> Int[np.ndarray, " v"]:
    """The snippets that videos are padded to for scoring."""
    return np.maximum(32, 2 ** np.ceil(np.log2(lengths)).astype(int))


def padded(dataset: Dataset, streams: Sequence[str], batch_size: int = 16) -> Iterator[Padded]:
    """All videos, shortest first, padded to a power of two of snippets, so that few shapes are compiled."""
    lengths = dataset.lengths
    sizes = padded_lengths(lengths)
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        for first in range(0, len(members), batch_size):
            videos = members[first : first + batch_size]
            features = np.zeros((batch_size, size, sum(dataset.dims[name] for name in streams)), np.float32)
            for row, video in enumerate(videos):
                features[row, : lengths[video]] = read(dataset, video, streams)
            mask = np.zeros((batch_size, size), np.float32)
            mask[: len(videos)] = np.arange(size) < lengths[videos][:, None]
            yield Padded(videos, features, mask)
