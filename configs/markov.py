"""Our own method: marginalized average over a Markov chain (wsal_jax/methods/markov.py).

python -m wsal_jax.main --config=configs/markov.py
python -m wsal_jax.main --config=configs/markov.py --config.method.stay=0      (MAAN)
python -m wsal_jax.main --config=configs/markov.py:dataset=feature_folder,preset=composed --config.data.root=DIR
"""

from wsal_jax.configs import common


def get_config(text=None):
    switches = common.parse(text, **common.SWITCHES)
    config = common.get_config(switches)
    config.method = dict(
        name="markov",
        stay=1.0,  # of neighbouring snippets of a training sample; 0 is MAAN
        learn_stay=False,
        hidden=256,
        activation="leaky_relu",
        proposals="thresholds",  # localize.propose; or "posterior"
        sparsity=0.0,
        dropout=0.7,  # as for MAAN
    )
    config.localize.stay = 1.0  # of neighbouring snippets of a whole video, for proposals=posterior
    config.localize.candidates = 200  # runs of a class and a threshold, for proposals=posterior
    if switches.dataset.startswith("synthetic_untrimmed"):  # as for MAAN
        config.optimizer.learning_rate, config.method.dropout = 2e-3, 0.0
    if "activitynet" in switches.dataset:
        config.localize.thresholds = (0.2, 0.15, 0.1, 0.05)
    return common.tuned(config, "markov", switches)
