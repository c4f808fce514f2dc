"""What is searched for MAAN in two dimensions, CAM and weighted-CAM, by the classes of held-out training images; see
`common.py`. An image has all its locations, so their number is not searched.
"""

import wsal_jax.configs.search.common as common


def get_search(config):
    space = common.get_search(config, **{"optimizer.learning_rate.init_value": dict(low=1e-4, high=1e-2, log=True)})
    return {name: values for name, values in space.items() if name != "num_snippets"}
