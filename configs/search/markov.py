"""What is searched for the marginalized average over a Markov chain; see `common.py`."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "method.stay": [0.0, 0.5, 1.0, 2.0, 3.0, 4.0],
        "method.sparsity": [0.0, 1e-4, 1e-2, 0.3, 1.0, 3.0],
    }
    if config.method.proposals == "posterior":
        own["localize.stay"] = [0.0, 0.5, 1.0, 2.0, 3.0]
    return common.get_search(config, **own)
