"""Sharding with one mesh axis, `data`: the videos of a batch are split over it, everything else is replicated."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of those given."""
    return Mesh(np.array(devices or jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int) -> NamedSharding:
    """This axis of an array is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Replicates host arrays, which must be equal in every process, on all devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(x)), tree)
