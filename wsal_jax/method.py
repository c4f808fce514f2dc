"""The contract between a method and the rest of the code base; it knows no method. `wsal_jax.methods` lists those.

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
"""The axis of the videos of a batch. A loss, though written for one video, reaches the others of its batch by it, as in
`jax.lax.pmean(x, BATCH)` or `jax.lax.ppermute(x, BATCH, pairs)`."""

Params = dict[str, Any]
"""Named parameter groups, such as {"attention": ..., "classifier": ...}."""


class Spec(NamedTuple):
    """What a model must be built for."""

    dims: tuple[int, ...]
    """Feature dimension of each stream of the model; d = sum(dims). Several for a model of joined streams."""
    num_classes: int


class Step(NamedTuple):
    """Where training is, as a loss sees it."""

    key: PRNGKeyArray
    """Of this video at this step."""
    epoch: Int[Array, ""]
    """The phase cycles trained so far in this round (for warm-ups); the same for all videos of a batch."""


class Phase(NamedTuple):
    """One of the losses that a method trains in turn."""

    name: str
    loss: Callable[[Params, Video, Step], tuple[Float[Array, ""], Any]]
    """`loss(params, video, step) -> (scalar, metrics)`, for one training video; metrics are scalars by name. With
    `tracks` it is `(scalar, (metrics, tracked))`, where `tracked` has the new value of each of those groups."""
    trains: tuple[str, ...]
    """The parameter groups that this phase changes by gradients; no other has a gradient or an optimizer state."""
    length: int = 1
    """Epochs of this phase before the next phase's turn."""
    tracks: tuple[str, ...] = ()
    """The groups whose values the loss replaces, without a gradient: running statistics, teachers. A new value is one
    for the whole batch, made of the parameters alone or by `jax.lax.pmean(..., BATCH)`; JAX refuses any other."""


def accept(data: "Dataset") -> None:
    """The `check` of a method that learns from any data with video labels."""


class Method(NamedTuple):
    """A weakly-supervised localization method."""

    init: Callable[[PRNGKeyArray, Spec], Params]
    phases: tuple[Phase, ...]
    score: Callable[[Params, Video], Scores]
    """Of all snippets of one video, padded; `video.labels` and `video.counts` are zeros and must not matter."""
    propose: Callable[[Sequence[Model], Model, Meta], Detections] = localize.propose
    """`propose(models, fused, meta)`, NumPy, on the host, for one video without padding. `fused` is `models[0]` where
    there is one model alone, else their fused scores, without extras, with the options that all models share."""
    rounds: int = 1
    revise: Callable[[Float[Array, " n"], Scores, Float[Array, " c"]], Float[Array, " n"]] | None = None
    """`revise(keep, scores, labels) -> keep` after every round but the last: which snippets of a training video the
    next round sees. The loop leaves a video as it was where this would empty it."""
    check: Callable[["Dataset"], None] = accept
    """Raises InputError for training data that the method cannot learn from."""
    supervision: str = "video labels"
    """What the method is told of a training video, as results name it."""


def options_of(config: ConfigDict, model: str, name: str) -> FrozenConfigDict:
    """The options of one model: `config`, where `config.per_stream.<model>` replaces those of the same name.

    Args:
      config: `config.method` or `config.localize` of a full config.
      model: an entry of `config.streams`, or "" for what all share.
      name: of `config`, for messages.

    Raises:
      InputError: `per_stream.<model>` has an option that `config` has not.
    """
    options = config.to_dict()
    of_model = options.pop("per_stream", {}).get(model, {})
    if unknown := sorted(set(of_model) - set(options)):
        raise InputError(f"{name}.per_stream.{model}: {name} has no option {', '.join(unknown)}")
    return FrozenConfigDict({**options, **of_model})
