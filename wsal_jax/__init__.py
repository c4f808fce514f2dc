"""Weakly-supervised temporal action localization in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsal_jax.localizer import Localizer, Segment

__all__ = ["Localizer", "Segment"]


def __getattr__(name: str) -> Any:
    """Loads what is for use from Python when it is used, so that `import wsal_jax` takes no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wsal_jax import localizer

    return getattr(localizer, name)
