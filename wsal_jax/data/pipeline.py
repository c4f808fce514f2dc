"""From a TFDS builder to batches: which snippets a training step sees, and the padded videos that scoring sees.

Training draws its batches by `plan`, a pure function of key and step. `flat` reads all features, for a device that has
room for them; `stream` reads those of the plans, by threads of Grain. `wsal_jax.data.bank` decides between the two.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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

DTYPES = ("stored", "float32", "float16", "bfloat16")
AHEAD = 3
"""Dispatches that are read before they are taken: with one, its plan would wait behind the steps on the device."""


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
    groups: list[str]
    """What each video has in common with others, see `examples.features`; "" where nothing."""
    extraction: dict[str, Any] | None = None
    """How the features were made, see `builder.Folder`."""
    dtype: str = "stored"
    """What features are rounded to, see `kind`."""

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


def load(builder: tfds.core.DatasetBuilder, split: str, dtype: str = "stored") -> Dataset:
    """Everything of a split but the features, of which only the sizes of the files are looked at.

    Args:
      builder: its data are built.
      split: "train" or "test".
      dtype: `config.data.dtype`, see `kind`.

    Raises:
      InputError: a file that was built is damaged; it says which.
    """
    folder = Path(builder.data_dir)
    build = store.which_build(folder)
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
    features = Store(folder, split, streams, shards, rows, lengths, build)
    store.check_sizes(features)
    return Dataset(
        store=features,
        metas=metas,
        annotations=annotations,
        labels=np.stack(labels),
        counts=np.stack(counts),
        class_names=examples.class_names(builder.info),
        dims={name: stream.dim for name, stream in streams.items()},
        groups=groups,
        extraction=examples.extraction(builder.info),
        dtype=dtype,
    )


def select(dataset: Dataset, videos: Int[np.ndarray, " k"]) -> Dataset:
    """Some videos of a split, in the order given."""
    lists = {name: [getattr(dataset, name)[i] for i in videos] for name in ("metas", "annotations", "groups")}
    arrays = {name: getattr(dataset, name)[videos] for name in ("labels", "counts")}
    places = {name: getattr(dataset.store, name)[videos] for name in ("shards", "rows", "lengths")}
    return dataset._replace(store=dataset.store._replace(**places), **lists, **arrays)


def kind(dataset: Dataset, streams: Sequence[str]) -> np.dtype:
    """The dtype of features on the device: `dataset.dtype`, or as stored: that which holds all of the streams.

    Steps compute in float32 whatever it is.
    """
    stored = np.result_type(*(dataset.store.streams[name].dtype for name in streams))
    return stored if dataset.dtype == "stored" else jnp.dtype(dataset.dtype)


def num_bytes(dataset: Dataset, streams: Sequence[str]) -> int:
    """Of the features of some streams on the device."""
    row = sum(dataset.dims[name] for name in streams) * kind(dataset, streams).itemsize
    return int(dataset.lengths.sum()) * row


def rounded(features: Float[np.ndarray, "*n d"], dtype: str | np.dtype) -> Float[np.ndarray, "*n d"]:
    """Features in a dtype; "stored" is the one that they have.

    Raises:
      InputError: some are too large for it.
    """
    if dtype == "stored" or features.dtype == dtype:
        return features
    with np.errstate(over="ignore"):
        cast = features.astype(dtype)
    if cast.dtype == np.float16 and not np.isfinite(cast).all():
        raise InputError(f"config.data.dtype='float16': features of up to {np.abs(features).max():.3g}; give bfloat16")
    return cast


def read(
    dataset: Dataset, video: int | np.integer, streams: Sequence[str], snippets: Int[np.ndarray, " t"] | None = None
) -> Float[np.ndarray, "_ d"]:
    """The features of a video, or of some of its snippets, as float32, those of several streams side by side.

    Raises:
      InputError: a file that was built is damaged; it says which. Or a feature is too large for `dataset.dtype`.
    """
    return _read(dataset, video, streams, snippets).astype(np.float32)


def _read(dataset, video, streams, snippets=None):
    """As `read`, in the dtype of `kind`."""
    features = [store.read(dataset.store, video, name, snippets) for name in streams]
    return rounded(np.concatenate(features, axis=-1), kind(dataset, streams))


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
    """The features of all videos, one after the other, with no padding, in the dtype of `kind`."""
    shape = dataset.lengths.sum(), sum(dataset.dims[name] for name in streams)
    features = np.empty(shape, kind(dataset, streams))
    for video, (start, length) in enumerate(zip(dataset.starts, dataset.lengths)):
        features[start : start + length] = _read(dataset, video, streams)
    return features


def stream(
    dataset: Dataset,
    streams: Sequence[str],
    keys: Key[Array, " s"],
    dispatches: Sequence[range],
    batch_size: int,
    num_snippets: int,
    slots: slice,
    pairs: int = 0,
    place: Callable[[Float[np.ndarray, "k s b t d"]], Any] = lambda features: features,
) -> Iterator[Any]:
    """The features of the plans of several seeds, read from disk by threads, one dispatch after the other.

    Only the planned snippets are read. `AHEAD` dispatches at most are read before they are taken.

    Args:
      dataset: the training videos.
      streams: the streams to read, side by side.
      keys: the key of each seed.
      dispatches: the steps of each dispatch; k is their number.
      batch_size: of the plan.
      num_snippets: of the plan.
      slots: the places in the batch that this process wants; b is their number.
      pairs: of the plan.
      place: what the threads do with the features [k s b t d] of a dispatch, whose dtype is that of `kind`.
    """
    sizes = dict(batch_size=batch_size, num_snippets=num_snippets, labels=dataset.labels, pairs=pairs)
    draw = jax.jit(jax.vmap(partial(plan, lengths=dataset.lengths, **sizes), (0, None)))
    draw = draw.lower(keys, np.int32(0)).compile()  # once, before the threads want it
    rows = num_snippets, sum(dataset.dims[name] for name in streams)

    def read_dispatch(steps: range) -> Any:
        plans = jax.device_get([draw(keys, np.int32(step)) for step in steps])
        videos, snippets = (np.stack(part)[:, :, slots] for part in zip(*plans))
        features = np.empty((*videos.shape, *rows), kind(dataset, streams))
        for at in np.ndindex(videos.shape):
            features[at] = _read(dataset, videos[at], streams, snippets[at])
        return place(features)

    options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    yield from (
        grain.MapDataset.range(len(dispatches)).map(lambda i: read_dispatch(dispatches[i])).to_iter_dataset(options)
    )


PADDED = 16
"""Videos that a device scores at once."""


class Padded(NamedTuple):
    """Whole videos of similar length; rows past them are empty."""

    features: Float[np.ndarray, "b n d"]
    mask: Float[np.ndarray, "b n"]


def padded_lengths(lengths: Int[np.ndarray, " v"]) -> Int[np.ndarray, " v"]:
    """The snippets that videos are padded to for scoring."""
    return np.maximum(32, 2 ** np.ceil(np.log2(lengths)).astype(int))


def batches(dataset: Dataset, batch_size: int) -> list[list[Int[np.ndarray, " k"]]]:
    """All videos in batches of `batch_size` at most; those of one list are padded to the same length, the shortest
    first.
    """
    sizes = padded_lengths(dataset.lengths)
    of_size = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    return [np.split(videos, range(batch_size, len(videos), batch_size)) for videos in of_size]


def pad(dataset: Dataset, streams: Sequence[str], videos: Int[np.ndarray, " k"], rows: int) -> Padded:
    """Videos padded to a power of two of snippets, so that few shapes are compiled, in the first of so many rows.

    Args:
      dataset: has the videos.
      streams: the streams to read, side by side.
      videos: of `batches`.
      rows: b.
    """
    size, lengths = padded_lengths(dataset.lengths[videos]).max(), np.zeros(rows, int)
    lengths[: len(videos)] = dataset.lengths[videos]
    mask = (np.arange(size) < lengths[:, None]).astype(np.float32)
    features = np.zeros((*mask.shape, sum(dataset.dims[name] for name in streams)), np.float32)
    for row, video in zip(features, videos):
        row[: dataset.lengths[video]] = read(dataset, video, streams)
    return Padded(features, mask)
