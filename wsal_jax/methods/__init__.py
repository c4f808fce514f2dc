"""One method per module: `method(config) -> Method`."""

import importlib
import pkgutil
from functools import lru_cache

from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax.method import Method, options_of
from wsal_jax.types import InputError


def names() -> list[str]:
    """The names of the methods, one module of this package each."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(config: ConfigDict, model: str = "") -> Method:
    """The method `config.name` with its options (`config.method` of a full config).

    Args:
      config: for a model, the options in `per_stream.<model>`, if any, replace those of the same name.
      model: an entry of `config.streams`. Models with equal options get the same `Method`, so it is compiled once.

    Raises:
      InputError: an unknown method (the message lists the methods), or an unknown option in `per_stream`.
    """
    if config.name not in names():
        raise InputError(f"config.method.name={config.name!r}: no such method; there are {', '.join(names())}")
    return _make(options_of(config, model, "config.method"))


@lru_cache
def _make(config: FrozenConfigDict) -> Method:
    return importlib.import_module(f"wsal_jax.methods.{config.name}").method(config)
