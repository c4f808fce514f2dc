"""The contract between a method and the rest of the code base.

A method is a NamedTuple of pure functions, each written for ONE video; `train.fit` and `evaluate.score` add `vmap`
over videos and seeds, `jit` and sharding. A new method is one file `wsal_jax/methods/<name>.py` with a function
`method(config) -> Method`, and one file in `configs/`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax import fuse, localize, methods
from wsal_jax.types import Detections, InputError, Meta, Scores, Video

Params = dict[str, Any]
"""Named parameter groups, such as {"attention": ..., "classifier": ...}."""


class Spec(NamedTuple):
    """What a model must be built for."""

    dims: tuple[int, ...]
    """Feature dimension of each stream of the model; d = sum(dims). Several for a model of joined streams."""
    num_classes: int


class Phase(NamedTuple):
    """One of the losses that a method trains in turn."""

    name: str
    loss: Callable[[Params, Video, PRNGKeyArray, Int[Array, ""]], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
    """`loss(params, video, key, epoch) -> (scalar, metrics)`: for one training video; `epoch` counts the phase cycles
    trained so far in this round (for warm-ups)."""
    trains: tuple[str, ...]
    """The parameter groups that this phase changes; no other group gets a gradient or an optimizer state."""
    length: int = 1
    """Epochs of this phase before the next phase's turn."""


class Method(NamedTuple):
    """A weakly-supervised localization method."""

    init: Callable[[PRNGKeyArray, Spec], Params]
    phases: tuple[Phase, ...]
    score: Callable[[Params, Video], Scores]
    """Of all snippets of one video, padded; `video.labels` and `video.counts` are zeros and must not matter."""
    propose: Callable[[Scores, Meta, ConfigDict], Detections] = localize.propose
    """NumPy, on the host: the (fused) scores of one video without padding, its meta and `config.localize`."""
    rounds: int = 1
    revise: Callable[[Float[Array, " n"], Scores, Float[Array, " c"]], Float[Array, " n"]] | None = None
    """`revise(keep, scores, labels) -> keep` after every round but the last: which snippets of a training video the
    next round sees. The loop leaves a video as it was where this would empty it."""
    fuse: Callable[[Sequence[Scores], Sequence[float]], Scores] = fuse.fuse
    """NumPy, on the host: one model's scores of a video each, and their weights -> what `propose` sees of all."""
    uses_counts: str = ""
    """Not empty if a loss needs `video.counts`, which is more than video labels: how to do without. Results name the
    extra supervision, and training refuses data that do not have it."""
    max_labels: int | None = None
    """The most classes that a training video can have, which is `config.max_classes`; None: any number."""


def names() -> list[str]:
    """The methods there are, one module of `wsal_jax.methods` each."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def get(config: ConfigDict, model: str = "") -> Method:
    """The method called `config.name`, with its options (`config.method` of a full config).

    Args:
      config: where it has `per_stream.<model>`, the options there replace those of the same name for that model.
      model: an entry of `config.streams`. Models of the same options get the same `Method`, so that each is compiled
        once; `fuse` and `propose` see several models at once and must not depend on which one's `Method` they are of.

    Raises:
      InputError: there is no such method; the message lists those there are.
    """
    if config.name not in names():
        raise InputError(f"config.method.name={config.name!r}: no such method; there are {', '.join(names())}")
    options = config.to_dict()
    of_model = options.pop("per_stream", {}).get(model, {})
    if unknown := sorted(set(of_model) - set(options)):
        raise InputError(f"config.method.per_stream.{model}: the method has no option {', '.join(unknown)}")
    return _make(FrozenConfigDict({**options, **of_model}))


@lru_cache
def _make(config: FrozenConfigDict) -> Method:
    return importlib.import_module(f"wsal_jax.methods.{config.name}").method(config)
