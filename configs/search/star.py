"""What is searched for STAR; see `common.py`. `num_snippets` is its N."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "num_snippets": [40, 80, 160],
        "method.sparsity": [0.0, 1e-4, 1e-2, 0.1],
        "method.assembly": ["sum", "mean"],
        "localize.thresholds": [(x,) for x in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)],
    }
    return common.get_search(config, **own)
