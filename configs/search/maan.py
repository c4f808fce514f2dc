"""What is searched for MAAN and its baselines; see `common.py`."""

import wsal_jax.configs.search.common as common


def get_search(config):
    return common.get_search(config, **{"method.sparsity": [0.0, 1e-4, 1e-2, 0.3, 1.0, 3.0]})
