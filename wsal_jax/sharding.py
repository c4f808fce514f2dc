"""One mesh axis, `data`: videos of a batch are split over it, everything else is the same on every device."""

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
    """The devices hold parts of this axis of an array."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Puts host arrays, which must be the same in every process, on all devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(x)), tree)
