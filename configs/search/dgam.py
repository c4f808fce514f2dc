"""What is searched for DGAM; see `common.py`."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "method.alpha": dict(low=0.003, high=1.0, log=True),
        "method.gamma2": dict(low=0.01, high=1.0, log=True),
        "localize.eta": [0.0, 0.3, 1.0],
    }
    return common.get_search(config, **own)
