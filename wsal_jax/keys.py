"""Random keys by name, so that two purposes cannot share a key by accident."""

import zlib

import jax
from jaxtyping import ArrayLike, Int, PRNGKeyArray


def named(key: PRNGKeyArray, *names: str | int | Int[ArrayLike, ""]) -> PRNGKeyArray:
    """The key for a purpose: `fold_in` of each name in turn, strings as their CRC-32, numbers (such as a step)
    directly.

    `named(named(key, "a"), "b")` equals `named(key, "a", "b")`.
    """
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
