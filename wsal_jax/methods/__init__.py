"""One method per module: `method(config) -> Method`."""

import importlib
import pkgutil
from functools import lru_cache

from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax.method import Method, options_of
from wsal_jax.types import InputError


def names() -> list[str]:
    """The methods there are, one module of this package each."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(config: ConfigDict, model: str = "") -> Method:
    """The method called `config.name`, with its options (`config.method` of a full config).

    Args:
      config: where it has `per_stream.<model>`, the options there replace those of the same name for that model.
      model: an entry of `config.streams`. Models of the same options get the same `Method`, so that each is compiled
        once.

    Raises:
      InputError: there is no such method; the message lists those there are. Or an option that the method has not.
    """
    if config.name not in names():
        raise InputError(f"config.method.name={config.name!r}: no such method; there are {', '.join(names())}")
    return _make(options_of(config, model, "config.method"))


@lru_cache
def _make(config: FrozenConfigDict) -> Method:
    return importlib.import_module(f"wsal_jax.methods.{config.name}").method(config)
