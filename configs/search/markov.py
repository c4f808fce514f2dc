"""What is searched for the marginalized average over a Markov chain; see `common.py`."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "method.stay": [0.0, 0.5, 1.0, 2.0],
        "method.sparsity": [0.0, 1e-4, 1e-2, 0.3, 1.0],
        "num_snippets": [20, 40, 64, 128],
    }
    if config.method.proposals == "posterior":
        own["localize.thresholds"] = [(0.01,), (0.02,), (0.03,), (0.05,), (0.1,), (0.2,), (0.02, 0.1), (0.05, 0.2)]
        own["localize.nms"] = [0.3, 0.5]
        own["localize.stay"] = [0.0, 1.0, 2.0, 3.0, 5.0]
        own["localize.cut"] = [0.0, 2.0, 6.0, 11.0]
        own["localize.sharpness"] = [1.0, 2.0, 4.0]
        own["localize.overlap"] = [0.0, 1.0]
        own["localize.inside"] = [0.5, 1.0]
    return common.get_search(config, **own)
