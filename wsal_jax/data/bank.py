"""Where the training features lie, and the batches that a training step takes of them.

They lie on every device ("device"); split over the devices, each with videos of its own ("split"); or on disk
("stream"). `config.data.placement` says where; "auto" is the first of these that has room for the bytes of the model's
own streams in their dtype: all on a device up to `config.data.device_gb`, else a device's share up to it, else on disk.

From the device and from disk the batches are the same, whatever the number of devices. Split, they are others, as no
device can draw the videos of another. `share` says how.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PRNGKeyArray
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax import sharding
from wsal_jax.data import pipeline
from wsal_jax.data.pipeline import Dataset
from wsal_jax.keys import named
from wsal_jax.types import Video

PLACEMENTS = ("auto", "device", "split", "stream")
DISPATCH_BYTES = 2**26
"""Up to this size, the features of several steps travel from disk to the device at once."""


class Bank(NamedTuple):
    """The training videos on the device. Where they are split, all arrays have a leading axis of devices."""

    starts: Int[Any, "*d v"]
    """First snippet of each video among the snippets of all videos."""
    rows: Int[Any, "*d v"]
    """First snippet of each video in `features`."""
    lengths: Int[Any, "*d v"]
    """Split: 0 where a device has a video less than others."""
    labels: Float[Any, "*d v c"]
    counts: Float[Any, "*d v c"]
    features: Float[Any, "*d total f"] | None
    """None if they are streamed from disk."""


def placement(data: Dataset, streams: Sequence[str], config: ConfigDict, devices: int) -> str:
    """Where the features of a model lie on so many devices: "device", "split" or "stream"."""
    if config.data.placement != "auto":
        return config.data.placement
    return by_bytes(pipeline.num_bytes(data, streams), config, devices)


def by_bytes(size: int, config: ConfigDict, devices: int) -> str:
    """What "auto" places features of so many bytes in. Pairs of videos cannot be drawn where they are split."""
    limit = config.data.device_gb * 2**30
    if size <= limit:
        return "device"
    return "split" if size / devices <= limit and not config.get("pairs", 0) else "stream"


def deal(lengths: Int[np.ndarray, " v"], devices: int) -> Int[np.ndarray, "devices k"]:
    """The videos of each device; -1 where it has one less than others.

    Of the videos in the order of their lengths, each run of as many as there are devices is dealt at random, the same
    way in every run. So all devices have about as many snippets.
    """
    count = -(-len(lengths) // devices)
    order = np.full(count * devices, -1)
    order[: len(lengths)] = np.argsort(-lengths, kind="stable")
    return np.random.default_rng(0).permuted(order.reshape(count, devices), axis=1).T


def split(data: Dataset, streams: Sequence[str], mesh: Mesh) -> Bank:
    """The bank with the videos dealt to the devices; a process reads those of its own devices alone."""
    dealt = deal(data.lengths, mesh.size)
    there = dealt >= 0
    lengths = np.where(there, data.lengths[dealt], 0).astype(np.int32)
    most, dim = lengths.sum(1).max(), sum(data.dims[name] for name in streams)

    def features(index):
        """Of the devices in the first of these slices."""
        filled = np.zeros((len(there[index[0]]), most, dim), pipeline.kind(data, streams))
        for rows, videos, real in zip(filled, dealt[index[0]], there[index[0]]):
            values = pipeline.flat(pipeline.select(data, videos[real]), streams)
            rows[: len(values)] = values
        return filled

    rows = (np.cumsum(lengths, axis=1) - lengths).astype(np.int32)
    host = Bank(data.starts[dealt], rows, lengths, data.labels[dealt], data.counts[dealt], None)
    device = sharding.split(mesh, axis=0)
    placed = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, device, x.__getitem__), host)
    shape = mesh.size, int(most), dim
    return placed._replace(features=jax.make_array_from_callback(shape, device, features))


def take(
    bank: Bank,
    keep: Bool[Array, " total"],
    key: PRNGKeyArray,
    step: Int[ArrayLike, ""] | int,
    features: Float[Array, "b t f"] | None,
    batch_size: int,
    config: FrozenConfigDict,
) -> Video:
    """The batch of one seed, with a leading axis of videos; `features` as read from disk, or None."""
    pairs = config.get("pairs", 0)
    chosen, snippets = pipeline.plan(
        key, step, bank.lengths, batch_size, config.num_snippets, labels=bank.labels, pairs=pairs
    )
    if features is None:
        features = bank.features[bank.rows[chosen][:, None] + snippets]
    mask = keep[bank.starts[chosen][:, None] + snippets].astype(jnp.float32)
    lengths = jnp.full(batch_size, config.num_snippets)
    return Video(features.astype(jnp.float32), mask, bank.labels[chosen], bank.counts[chosen], lengths)


def share(
    bank: Bank,
    keep: Bool[Array, " total"],
    key: PRNGKeyArray,
    step: Int[ArrayLike, ""] | int,
    device: Int[Array, ""],
    batch_size: int,
    steps_per_epoch: int,
    config: FrozenConfigDict,
) -> Video:
    """What one of several devices adds to the batch of one seed, from its own bank without the axis of devices.

    Each device draws as `pipeline.plan` does, from a key and videos of its own, `batch_size` of them. So a batch has
    equally many videos of every device, and two videos of a device are together in it more rarely than by chance. In
    an epoch a device shows steps_per_epoch * batch_size different videos, drawn anew for each epoch. Over the epochs
    all videos of a device are seen equally often. Where their number is no multiple of that of the devices, some
    devices have k videos and some k - 1, and show each of theirs by 1 / k more rarely than those.
    """
    key = named(key, "device", device)
    noise = jax.random.uniform(named(key, "epoch", step // steps_per_epoch), bank.lengths.shape)
    chosen = jax.lax.top_k(jnp.where(bank.lengths > 0, noise, -1.0), steps_per_epoch * batch_size)[1]
    small = jax.tree.map(lambda x: x[chosen], bank._replace(features=None))
    of_epoch = small._replace(features=bank.features)
    return take(of_epoch, keep, key, step, None, batch_size, config)


def batch(
    bank: Bank,
    keep: Bool[ArrayLike, "s total"],
    keys: Key[Array, " s"],
    step: Int[ArrayLike, ""] | int,
    features: Float[Array, "s b t f"] | None,
    steps_per_epoch: int,
    config: FrozenConfigDict,
    mesh: Mesh,
) -> Video:
    """The batches [s b ...] of all seeds, split over the devices; `features` as read from disk, or None."""
    if bank.lengths.ndim == 1:
        one = partial(take, batch_size=config.batch_size, config=config)
        videos = jax.vmap(one, (None, 0, 0, None, 0))(bank, keep, keys, step, features)
        return jax.lax.with_sharding_constraint(videos, sharding.split(mesh, axis=1))
    size = config.batch_size // mesh.size

    def of_device(bank, keep, keys, step):
        own, device = jax.tree.map(lambda x: x[0], bank), jax.lax.axis_index("data")
        return jax.vmap(lambda keep, key: share(own, keep, key, step, device, size, steps_per_epoch, config))(
            keep, keys
        )

    whole, of_axis = PartitionSpec(), PartitionSpec("data")
    in_specs, out_specs = (of_axis, whole, whole, whole), PartitionSpec(None, "data")
    of_all = jax.shard_map(of_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return of_all(bank, keep, keys, step)


def chunks(first: int, last: int, size: int, borders: Sequence[int] = ()) -> Iterator[range]:
    """Splits the steps from first to last into ranges of at most `size` steps that end at every border."""
    while first < last:
        stop = min([last, first + size, *(b for b in borders if b > first)])
        yield range(first, stop)
        first = stop


def feed(
    data: Dataset,
    streams: Sequence[str],
    keys: Key[Array, " s"],
    windows: Sequence[range],
    config: ConfigDict,
    mesh: Mesh,
    start: int = 0,
) -> tuple[Bank, Iterator[tuple[range, Float[Array, "k s b t f"] | None]]]:
    """The bank, and the dispatches: their steps, with the features of these if the bank has none.

    A dispatch is a window, or where features come from disk a part of one, with features of up to `DISPATCH_BYTES` in
    this process, though at least a step. The memory for them does not depend on the windows.

    Args:
      data: the training videos.
      streams: the streams of the model.
      keys: the key of each seed.
      windows: consecutive steps, at most so many at once.
      config: the whole config.
      mesh: the devices.
      start: the first step to take; dispatches are cut alike, wherever a run goes on.
    """

    def left(parts):
        return [range(max(steps.start, start), steps.stop) for steps in parts if steps.stop > start]

    where = placement(data, streams, config, mesh.size)
    if where == "split":
        return split(data, streams, mesh), ((steps, None) for steps in left(windows))
    features = pipeline.flat(data, streams) if where == "device" else None
    starts = data.starts
    bank = sharding.replicate(mesh, Bank(starts, starts, data.lengths, data.labels, data.counts, features))
    if where == "device":
        return bank, ((steps, None) for steps in left(windows))
    slots, row = sharding.slots(mesh, config.batch_size), sum(data.dims[name] for name in streams)
    videos = len(keys) * (slots.stop - slots.start)
    size = videos * config.num_snippets * row * pipeline.kind(data, streams).itemsize
    most = max(1, DISPATCH_BYTES // size)
    dispatches = []
    for steps in windows:  # in equal parts, so that few sizes are compiled
        parts = -(-len(steps) // most)
        dispatches += chunks(steps.start, steps.stop, -(-len(steps) // parts))
    dispatches = left(dispatches)
    place = partial(jax.make_array_from_process_local_data, sharding.split(mesh, axis=2))
    sizes = config.batch_size, config.num_snippets, slots, config.get("pairs", 0)
    batches = pipeline.stream(data, streams, keys, dispatches, *sizes, place)
    return bank, zip(dispatches, batches)
