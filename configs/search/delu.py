"""What is searched for DELU and CO2-Net; see `common.py`."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "optimizer.learning_rate": [5e-5, 1e-4, 2e-4, 5e-4, 1e-3],
        "optimizer.coupled_l2": [0.0, 5e-4, 1e-3],
        "num_snippets": [25, 50, 100],
        "method.norm": [0.1, 0.4, 0.8, 1.6],
        "method.guide": [0.1, 0.4, 0.8, 1.6],
        "method.co": [0.0, 1.0],
        "localize.thresholds": [tuple(x / count for x in range(1, count)) for count in (5, 10, 25, 50)],
        "localize.prior": [0.0, 0.2, 0.5, 1.0],
        "localize.soft_nms": [0.1, 0.3, 0.5],
    }
    if config.method.uct:
        own["method.amplitude"] = [0.2, 0.7]
    space = common.get_search(config, **own)
    del space["localize.nms"]  # soft_nms is in its place
    return space
