"""The budget of tuning, the same for every method, and the options that most methods have.

A method's file has `get_search(config)`, which returns the values of each option that is searched: a list to choose
from, or `dict(low=..., high=..., log=...)` for a number in between. The value that the config has is always among them.
`localize.*` and `fusion` are searched on the scores of one training, all else by training.
"""

from ml_collections import ConfigDict

from wsal_jax import options

BUDGET = dict(
    trials=4,  # settings that are trained; the config's own is the first
    seeds=2,  # trained at once for each fold, from config.seed on
    folds=2,  # parts of the training videos; each is held out once
    detections=20,  # settings of localize.* and fusion that are tried on the scores of each training
    measure="auto",  # "segments": mAP of detection; "labels": of classification; "auto": segments where they are known
)
"""Small, so that all methods of the repository can be tuned alike in a few hours; give more for one method."""


def get_search(config: ConfigDict, **own) -> dict:
    """The options that this config has of those that most methods share, then a method's own."""
    space = {
        "optimizer.learning_rate": [2e-4, 5e-4, 1e-3, 2e-3, 5e-3],
        "steps": [max(1, config.steps // 2), config.steps, 2 * config.steps],
        "num_snippets": [20, 40, 80],
        "method.dropout": [0.0, 0.3, 0.5, 0.7, 0.8],
        "localize.thresholds": [(x,) for x in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)] + [(0.05, 0.1, 0.2, 0.4)],
        "localize.nms": [0.3, 0.5, 0.7],
        "localize.reject": [0.05, 0.1, 0.2, 0.4],
        "localize.confidence": [False, True],
    }
    if len(config.streams) == 2:
        space["fusion"] = [(0.3, 0.7), (0.5, 0.5), (0.7, 0.3)]
    space |= own
    known = set(options.names(config))
    groups = {name for name in known if any(other.startswith(f"{name}.") for other in known)}  # a schedule, say
    return {name: values for name, values in space.items() if name in known - groups or name in own}
