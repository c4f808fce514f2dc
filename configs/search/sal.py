"""What is searched for SAL; see `common.py`. `num_snippets` is its T, in training and at test."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "method.positives": [0.1, 0.15, 0.3, 0.5],
        "method.background": [1.0, 10.0],
        "method.semantic": [1.0, 3.0],
        "method.rgb_share": [0.1, 0.5],
        "localize.thresholds": [tuple(round(i * step, 2) for i in range(1, 10)) for step in (0.05, 0.1)],
        "localize.prior": [0.0, 0.2, 1.0],
        "localize.decay": [0.1, 0.3, 1.0],
    }
    return common.get_search(config, **own)
