"""Sharding with one mesh axis, `data`: the videos of a batch are split over it, everything else is replicated."""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

EXCHANGED = 2**26
"""Bytes of results that the processes exchange at once, see `share`."""
Item = TypeVar("Item")


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, those of a process side by side; or of those given."""
    every = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices or every), ("data",))


def own(mesh: Mesh, count: int) -> Mesh:
    """A mesh of this process's devices, no more of them than its part of so much work needs."""
    return make_mesh(mesh.local_devices[: -(-count // jax.process_count())])


def share(work: Sequence[Item], do: Callable[[Item], PyTree]) -> Iterator[tuple[Item, PyTree]]:
    """Each item with its result, in order, as host arrays. The processes share the work, and all get all results.

    Args:
      work: the same in all processes, which must all come to the end.
      do: gives arrays on the devices of this process, of the same shapes for all items.
    """
    if jax.process_count() == 1:
        yield from ((item, jax.tree.map(np.asarray, do(item))) for item in work)
        return
    count, me, last, at = jax.process_count(), jax.process_index(), len(work) - 1, 0
    while at <= last:
        # Who has no item left does the last one again: the shapes stay the same, and others compute as long.
        done = [do(work[min(at + me, last)])]
        rows = max(1, EXCHANGED // (count * sum(x.nbytes for x in jax.tree.leaves(done))))
        end = min(at + rows * count, last + 1)
        done += [do(work[min(i, last)]) for i in range(at + me + count, at + me + end - at, count)]
        every = multihost_utils.process_allgather(jax.tree.map(lambda *x: np.stack(x), *done))
        found = [jax.tree.map(itemgetter((i % count, i // count)), every) for i in range(end - at)]
        yield from zip(work[at:end], found)
        at = end


def slots(mesh: Mesh, rows: int) -> slice:
    """Which of the rows of an axis that is split over the devices are this process's."""
    mine = [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    return slice(mine[0] * rows // mesh.size, (mine[-1] + 1) * rows // mesh.size)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int) -> NamedSharding:
    """This axis of an array is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Replicates host arrays, which must be equal in every process, on all devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(x)), tree)


def place(mesh: Mesh, axis: int, x: np.ndarray) -> jax.Array:
    """An array whose axis is split over the devices; `x` is this process's part of it."""
    return jax.make_array_from_process_local_data(split(mesh, axis), x)


def over_videos(mesh: Mesh, axes: Sequence[int | None], function: Callable[..., PyTree]) -> Any:
    """Compiles a function of batches of videos. Each device computes its own part, as a single device would that had no
    more than that; all get the results of all, whose videos are on axis 1.

    Args:
      mesh: the devices.
      axes: the axis of the videos in each argument; None where it has none.
      function: works on videos that are independent of each other.
    """
    specs = tuple(PartitionSpec() if axis is None else split(mesh, axis).spec for axis in axes)
    of_device = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(None, "data"), check_vma=False
    )
    return jax.jit(of_device, out_shardings=replicated(mesh))
