"""Random keys by name: what draws from a key says what for, and no two uses share a number by accident."""

import zlib

import jax
from jaxtyping import ArrayLike, Int, PRNGKeyArray


def named(key: PRNGKeyArray, *names: str | int | Int[ArrayLike, ""]) -> PRNGKeyArray:
    """The key of a purpose: `fold_in` of each name in turn, a string by its CRC-32, a number (such as a step) as it is.

    `named(named(key, "a"), "b")` is `named(key, "a", "b")`.
    """
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
