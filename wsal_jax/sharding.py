"""Sharding with one mesh axis, `data`: the videos of a batch are split over it, everything else is replicated."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, those of a process side by side; or of those given."""
    every = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices or every), ("data",))


def at_most(mesh: Mesh, count: int) -> Mesh:
    """The mesh, or where one process alone works, no more of its devices than there is work for."""
    return mesh if jax.process_count() > 1 else make_mesh(list(mesh.devices[:count]))


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
