"""What is searched for P-MIL; see `common.py`. What the base alone has is left as its own search found it."""

import wsal_jax.configs.search.common as common


def get_search(config):
    own = {
        "method.base_share": [0.3, 0.5, 0.7, 0.8],
        "method.unique": [False, True],
        "method.comp": [0.0, 5.0, 20.0, 50.0],
        "method.irc": [0.0, 0.5, 2.0, 8.0],
        "method.pseudo": [0.5, 0.7, 0.8, 0.9],
        "method.top": [4, 8, 16],
        "localize.prior": [0.0, 0.2, 0.5],
        "localize.soft_nms": [0.0, 0.1, 0.3, 0.5],
    }
    space = common.get_search(config, **own)
    del space["localize.thresholds"]  # candidates are the method's
    return space
