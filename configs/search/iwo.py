"""What is searched for IWO-Net; see `common.py`. `num_snippets` is its K."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "num_snippets": [100, 200, 400],
        "method.penalty": [0.0, 1e-3, 1e-2, 0.1],
        "method.gamma": [1.0, 3.0, 10.0],
        "method.test_steps": [3, 5, 10],
    }
    space = common.get_search(config, **own)
    if config.method.scores == "csc":  # its proposals have no threshold and do not overlap
        for name in ("thresholds", "nms", "reject"):
            del space[f"localize.{name}"]
    return space
