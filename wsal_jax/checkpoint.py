"""Checkpoints: Orbax writes and reads them; our own checksums ensure that a restored state is the saved one.

Orbax silently casts to the expected dtype, and silently returns wrong numbers if a bit of an array file has flipped. So
`<directory>/<step>/` holds the state in Orbax's format (`state`, a folder for each leaf) and the shape, dtype and
checksum of each leaf (`check`); `restore` returns exactly what was saved or raises. Leaves are named by their path in
the state, such as `params/attention/kernel`.

Orbax's default of joint files for all leaves (OCDBT) and its `CheckpointManager` list folders by glob patterns, so they
lose what is saved below a folder whose name has brackets; neither is used here.
"""

import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from wsal_jax.types import InputError, some

KEEP = 2  # one to fall back to if the newest is damaged


class Damaged(InputError):
    """The files of a checkpoint are not what was saved."""


def save(directory: str | os.PathLike, step: int, state: PyTree) -> None:
    """Saves a pytree of arrays as checkpoint `step`, and deletes all but the newest two.

    Returns when everything is written. A process killed earlier leaves a folder that does not count as a checkpoint;
    the next `save` removes it. With several processes (`jax.distributed`) all must call this, with fully replicated
    arrays and a directory that all of them see; process 0 writes. Random keys must be given as `key_data`.

    Raises:
      ValueError: a checkpoint of this step or of a later one exists, or two leaves have the same path.
      InputError: it cannot be written, as on a full disk; earlier checkpoints are kept.
    """
    directory = Path(directory).absolute()
    leaves = {path: np.asarray(leaf) for path, leaf in _by_path(state).items()}
    if len(leaves) < len(jax.tree.leaves(state)):
        raise ValueError(f"{directory}: two leaves have the same path; use no / in the keys of the state")
    last = latest(directory)
    if last is not None and step <= last:
        raise ValueError(f"{directory}: step {step} does not come after its newest checkpoint, {last}")
    args = ocp.args.Composite(
        # Orbax does not store empty arrays; `check` has all that is needed to restore them.
        state=ocp.args.PyTreeSave({path: leaf for path, leaf in leaves.items() if leaf.size}),
        check=ocp.args.JsonSave({path: _describe(path, leaf) for path, leaf in leaves.items()}),
    )
    first = jax.process_index() == 0
    try:
        if first:
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)
        handlers = dict(state=ocp.PyTreeCheckpointHandler(use_ocdbt=False), check=ocp.JsonCheckpointHandler())
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
            checkpointer.save(epath.Path(directory) / str(step), args=args)
        if first:
            for old in steps(directory)[:-KEEP]:
                _remove(directory / str(old))
    except Exception as error:  # of the operating system, or what Orbax and TensorStore make of it
        kept = f"The checkpoint of step {last} is kept" if last else "There is no checkpoint yet"
        raise InputError(f"{directory / str(step)}: cannot be written ({error!r:.900}). {kept}") from error


def _remove(folder: Path) -> None:
    """A folder that is being removed does not count as a checkpoint any more."""
    shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}.orbax-checkpoint-tmp")))


def steps(directory: str | os.PathLike) -> list[int]:
    """The steps of the complete checkpoints, ascending."""
    directory = Path(directory)
    return sorted(int(x.name) for x in directory.iterdir() if x.name.isdecimal()) if directory.is_dir() else []


def latest(directory: str | os.PathLike) -> int | None:
    """The step of the newest complete checkpoint; None if there is none."""
    return max(steps(directory), default=None)


def newest_whole(directory: str | os.PathLike) -> int | None:
    """The step of the newest checkpoint whose checksums match; None if there is none at all.

    Later ones, which are damaged, get the suffix `.damaged`, and do not count any more; a message on stderr says so.
    With several processes all must call this.

    Raises:
      InputError: there are checkpoints, and all are damaged. They stay as they are.
    """
    directory, bad = Path(directory).absolute(), {}
    for step in reversed(steps(directory)):
        try:
            restore(directory, step=step)
            problem = ""
        except Damaged as error:
            problem = str(error)
        damaged = bool(problem)
        if jax.process_count() > 1:  # what one cannot read is of no use to any
            damaged = bool(multihost_utils.process_allgather(np.bool_(damaged)).any())
        if not damaged:
            for folder, why in bad.items():
                _set_aside(folder, f"{why}. Continuing from step {step}")
            return step
        bad[directory / str(step)] = problem or f"{directory / str(step)}: damaged, as another process reads it"
    if bad:
        raise InputError(
            f"all checkpoints are damaged: {'; '.join(bad.values())}. Nothing was changed: put copies of them back, "
            "or give another --workdir to train from the start"
        )
    return None


def _set_aside(folder: Path, why: str) -> None:
    if jax.process_index():
        return
    names = (f"{folder.name}.damaged", *(f"{folder.name}.damaged.{i}" for i in range(1, 100)))
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    print(f"warning: {why}; the damaged checkpoint is kept as {aside}", file=sys.stderr)
    folder.rename(aside)


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
      Damaged: its files are not what was saved; the message says which.
      InputError: the checkpoint does not exist, or does not match `like`.
    """
    there = steps(directory)
    step = there[-1] if step is None and there else step
    if step not in there:
        raise InputError(f"{directory}: no checkpoint" + (f" of step {step}, only of {there}" if there else ""))
    folder = Path(directory).absolute() / str(step)
    leaves = _read(folder)
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


def _read(folder: Path) -> dict[str, np.ndarray]:
    """The leaves of a checkpoint; raises Damaged where they are not those saved."""
    file = "check/metadata"
    try:
        check = json.loads((folder / file).read_bytes())
        file = "state/_METADATA"  # what Orbax says of other files has their names
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(state=ocp.args.StandardRestore())
            state = checkpointer.restore(epath.Path(folder), args=args).state
        leaves = {
            path: np.asarray(state[path]) if path in state else np.zeros(entry["shape"], entry["dtype"])
            for path, entry in check.items()
        }
        damaged = [f"state/{path}" for path, leaf in leaves.items() if _describe(path, leaf) != check[path]]
    except Exception as error:  # a damaged file can make Orbax raise anything
        where = "" if str(folder / "state") in repr(error) else f"{file}: "
        raise Damaged(f"{folder}: damaged, cannot be read ({where}{error!r:.500})") from error
    if damaged:
        raise Damaged(f"{folder}: damaged, the checksum of {some(damaged)} does not match")
    return leaves


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
