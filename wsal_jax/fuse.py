"""Fuses the scores of several models for one video. NumPy, on the host."""

from collections.abc import Sequence

import numpy as np

from wsal_jax.types import Scores


def fuse(scores: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """The weighted mean of the models' scores; MAAN (section 3.1) uses 0.5 / 0.5.

    Args:
      scores: the scores of each model for the same video, with the same snippets [n] and classes [c], without padding.
      weights: one per model, not negative; only their ratios matter.

    Returns:
      The fused scores, float64. A field that some model lacks is None. `extras` is None too, because extras make sense
      for a single model only.

    Raises:
      ValueError: the number of weights differs from the number of models, weights are negative or all 0, or models
        differ in snippets or classes; the message names the model.
    """
    if len(weights) != len(scores):
        raise ValueError(f"config.fusion: {len(weights)} weights for {len(scores)} models; give one for each")
    if min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"config.fusion={tuple(weights)}: weights must not be negative, nor all 0")
    snippets, classes = scores[0].cas.shape
    for i, one in enumerate(scores):
        if one.cas.shape != (snippets, classes):
            raise ValueError(
                f"model {i} scores {one.cas.shape[0]} snippets and {one.cas.shape[1]} classes, "
                f"model 0 {snippets} and {classes}; all must come from the same snippets of the same video"
            )

    def mean(name: str) -> np.ndarray | None:
        arrays = [getattr(one, name) for one in scores]
        if any(x is None for x in arrays):
            return None
        return np.average(np.stack(arrays).astype(np.float64), axis=0, weights=weights)

    return Scores(**{name: mean(name) for name in Scores._fields if name != "extras"})
