"""The contract between a method and the rest of the code base. `wsal_jax.methods` lists the methods.

A method is a NamedTuple of pure functions, each written for ONE video; `train.fit` and `evaluate.score` add `vmap`
over videos and seeds, `jit` and sharding. A new method is one file `wsal_jax/methods/<name>.py` with a function
`method(config) -> Method`, and one file in `configs/`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax import localize
from wsal_jax.types import Detections, InputError, Meta, Model, Scores, Video

if TYPE_CHECKING:
    from wsal_jax.data.pipeline import Dataset

BATCH = "batch"
"""Axis name of the videos of a batch. A loss is written for one video, but can reach the others of its batch by
`jax.lax.pmean(x, BATCH)` or `jax.lax.ppermute(x, BATCH, pairs)`."""

Params = dict[str, Any]
"""Named parameter groups, such as {"attention": ..., "classifier": ...}."""


class Spec(NamedTuple):
    """The sizes that a model is built for."""

    dims: tuple[int, ...]
    """Feature dimension of each stream of the model; d = sum(dims). A model of joined streams has several."""
    num_classes: int


class Step(NamedTuple):
    """The training step, as a loss sees it."""

    key: PRNGKeyArray
    """The random key of this video at this step."""
    epoch: Int[Array, ""]
    """Phase cycles completed in this round (for warm-ups); the same for all videos of a batch. Of a method whose phases
    are counted `in_steps`: epochs completed in this round."""


class Phase(NamedTuple):
    """One of the losses that a method minimizes in turn."""

    name: str
    loss: Callable[[Params, Video, Step], tuple[Float[Array, ""], Any]]
    """`loss(params, video, step) -> (scalar, metrics)`, for one training video; metrics are scalars by name. With
    `tracks` it is `(scalar, (metrics, tracked))`, where `tracked` has the new value of each of those groups."""
    trains: tuple[str, ...]
    """The parameter groups that this phase trains. Other groups have no gradient and no optimizer state."""
    length: int = 1
    """Epochs before the next phase takes over, or steps (`Method.in_steps`)."""
    tracks: tuple[str, ...] = ()
    """Groups whose values the loss replaces without a gradient: running statistics, teachers. A new value must be the
    same for the whole batch: from the parameters alone or by `jax.lax.pmean(..., BATCH)`. JAX rejects any other."""
    rates: tuple[tuple[str, float], ...] = ()
    """Groups that learn slower or faster than the others, and by how much: what the optimizer would add to them (weight
    decay included) is multiplied by it."""


def accept(data: "Dataset") -> None:
    """The default `check`: accepts any data with video labels."""


class Method(NamedTuple):
    """A weakly-supervised localization method."""

    init: Callable[[PRNGKeyArray, Spec], Params]
    phases: tuple[Phase, ...]
    score: Callable[[Params, Video], Scores]
    """Scores all snippets of one padded video. `video.labels` and `video.counts` are zeros and must not be used."""
    propose: Callable[[Sequence[Model], Model, Meta], Detections] = localize.propose
    """`propose(models, fused, meta)`: NumPy, on the host, for a video without padding. For a single model, `fused` is
    `models[0]`; otherwise it has the fused scores, without extras, and the options that all models share."""
    rounds: int = 1
    revise: Callable[[Float[Array, " n"], Scores, Float[Array, " c"]], Float[Array, " n"]] | None = None
    """`revise(keep, scores, labels) -> keep` after every round but the last: the snippets of a training video that
    the next round sees. If this would empty a video, the loop leaves the video unchanged."""
    check: Callable[["Dataset"], None] = accept
    """Raises InputError for training data that the method cannot learn from."""
    supervision: str = "video labels"
    """What the method knows of a training video, as shown in results."""
    in_steps: bool = False
    """Whether the lengths of the phases are steps, for phases that follow each other once in a round."""


def options_of(config: ConfigDict, model: str, name: str) -> FrozenConfigDict:
    """The options of one model: `config`, overridden by `config.per_stream.<model>`.

    Args:
      config: `config.method` or `config.localize` of a full config.
      model: an entry of `config.streams`, or "" for the options that all models share.
      name: the name of `config` in error messages.

    Raises:
      InputError: `per_stream.<model>` has an option that `config` lacks.
    """
    options = config.to_dict()
    of_model = options.pop("per_stream", {}).get(model, {})
    if unknown := sorted(set(of_model) - set(options)):
        raise InputError(f"{name}.per_stream.{model}: {name} has no option {', '.join(unknown)}")
    return FrozenConfigDict({**options, **of_model})
