"""Several models' scores of one video -> one: NumPy, on the host."""

from collections.abc import Sequence

import numpy as np

from wsal_jax.types import Scores


def fuse(scores: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """The weighted mean of the models' scores; MAAN (section 3.1) uses 0.5 / 0.5.

    Args:
      scores: of the same video by each model, with the same snippets [n] and classes [c], without padding.
      weights: one for each model, not negative; only their ratios matter.

    Returns:
      The fused scores, float64. A field that not all models have is None, and so are extras, which mean something to
      one model only.

    Raises:
      ValueError: another number of weights than models, weights that are negative or all 0, or models that differ in
        snippets or classes; the message says which model.
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
