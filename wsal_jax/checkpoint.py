"""Checkpoints: Orbax writes and keeps them; our own checksums ensure that a restored state is the saved one.

Orbax silently casts to the expected dtype, and silently returns wrong numbers if a bit of an array file has flipped. So
`<directory>/<step>/` holds the state in Orbax's format (`state`) and the shape, dtype and checksum of each leaf
(`check`); `restore` returns exactly what was saved or raises. Leaves are named by their path in the state, such as
`params/attention/kernel`.
"""

import os
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree

from wsal_jax.types import InputError, some

KEEP = 2  # one to fall back to if the newest is damaged


def save(directory: str | os.PathLike, step: int, state: PyTree) -> None:
    """Saves a pytree of arrays as checkpoint `step`, and deletes all but the newest two.

    Returns when everything is written. A process killed earlier leaves a folder that does not count as a checkpoint;
    the next `save` removes it. With several processes (`jax.distributed`) all must call this, with fully replicated
    arrays and a directory that all of them see; process 0 writes. Random keys must be given as `key_data`.

    Raises:
      ValueError: a checkpoint of this step or of a later one exists, or two leaves have the same path.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in _by_path(state).items()}
    if len(leaves) < len(jax.tree.leaves(state)):
        raise ValueError(f"{directory}: two leaves have the same path; use no / in the keys of the state")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    with ocp.CheckpointManager(epath.Path(directory).absolute(), options=options) as manager:
        saved = manager.save(
            step,
            args=ocp.args.Composite(
                # Orbax does not store empty arrays; `check` has all that is needed to restore them.
                state=ocp.args.StandardSave({path: leaf for path, leaf in leaves.items() if leaf.size}),
                check=ocp.args.JsonSave({path: _describe(path, leaf) for path, leaf in leaves.items()}),
            ),
        )
    if not saved:
        raise ValueError(f"{directory}: step {step} does not come after its newest checkpoint, {latest(directory)}")


def latest(directory: str | os.PathLike) -> int | None:
    """The step of the newest complete checkpoint; None if there is none."""
    return max(ocp.utils.checkpoint_steps(directory), default=None)


def restore(
    directory: str | os.PathLike, like: PyTree | None = None, step: int | None = None, part: bool = False
) -> PyTree:
    """Reads a checkpoint, bit for bit as it was saved.

    Args:
      directory: the directory given to `save`.
      like: arrays or `jax.ShapeDtypeStruct`s with the expected structure, shapes and dtypes. A leaf of the result has
        the sharding of its leaf in `like`, on any mesh; without a sharding it is a NumPy array. Without `like`, the
        result is the whole saved state, as nested dicts of NumPy arrays, with keys "0", "1" for a tuple.
      step: the step to read; the newest by default.
      part: whether to ignore saved leaves that are not in `like`; otherwise they are an error.

    Raises:
      InputError: the checkpoint does not exist, is damaged, or does not match `like`.
    """
    steps = sorted(ocp.utils.checkpoint_steps(directory))
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        raise InputError(f"{directory}: no checkpoint" + (f" of step {step}, only of {steps}" if steps else ""))
    folder = epath.Path(directory).absolute() / str(step)
    before = [f"step {other}" for other in steps if other < step]
    advice = f"delete this folder to continue from {before[-1] if before else 'the start'}"

    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), check=ocp.args.JsonRestore())
            read = checkpointer.restore(folder, args=args)
        leaves = {
            path: np.asarray(read.state[path]) if path in read.state else np.zeros(entry["shape"], entry["dtype"])
            for path, entry in read.check.items()
        }
        damaged = [path for path, leaf in leaves.items() if _describe(path, leaf) != read.check[path]]
    except Exception as error:  # a damaged file can make Orbax raise anything
        raise InputError(f"{folder}: cannot be read: {error!r:.300}. If it is damaged, {advice}") from error
    if damaged:
        raise InputError(f"{folder}: damaged, the checksum of {some(damaged)} does not match; {advice}")

    if like is None:
        return traverse_util.unflatten_dict(leaves, sep="/")
    expected = _by_path(like)
    wrong = [
        f"{path} ({_form(leaves.get(path))} saved, {_form(expected.get(path))} expected)"
        for path in (expected if part else expected | leaves)
        if _form(leaves.get(path)) != _form(expected.get(path))
    ]
    if wrong:
        raise InputError(
            f"{folder}: not a state of this run: {some(wrong)}; "
            "give the options that it was saved with, or another directory"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [_place(leaves[path], x) for path, x in expected.items()])


def _by_path(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(path: str, leaf: np.ndarray) -> dict[str, Any]:
    """The JSON entry of a leaf. The checksum also covers the rest of the entry, which may be damaged too."""
    crc32 = zlib.crc32(leaf.tobytes(), zlib.crc32(f"{path} {_form(leaf)}".encode()))
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32": crc32}


def _form(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _place(leaf: np.ndarray, like: Any) -> np.ndarray | jax.Array:
    if getattr(like, "sharding", None) is None:
        return leaf
    return jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])
