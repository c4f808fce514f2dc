"""MAAN and its baselines (wsal_jax/methods/maan.py).

  python -m wsal_jax.main --config=configs/maan.py
  python -m wsal_jax.main --config=configs/maan.py:aggregator=stpn      (or dropout, norm, softmax_norm)

Two CPU cores: 24 s with building the data; fused mAP@.5 24.4 (seed 0), 21.2 +- 2.1 with --config.seeds=5 (46 s) on the
built-in data, which is no benchmark. Measured scores on real features: see the README.
"""

from configs import common


def get_config(text=None):
    switches = common.parse(text, aggregator="maan", **common.SWITCHES)
    config = common.get_config(switches)
    config.method = dict(
        name="maan",
        aggregator=switches.aggregator,
        hidden=256,
        sparsity=0.0,
        dropout=0.7,  # the best of 0, 0.5, 0.7, 0.8 for MAAN on RGB, on held-out training videos of the README's data
        num_snippets=config.get_ref("num_snippets"),
    )
    if switches.dataset.startswith("synthetic_untrimmed"):
        # 128 dimensions, not the 1,024 of I3D: Adam moves a logit an eighth as fast, and 0.3 of them is too little to
        # attend by. Chosen by the classification mAP on 50 held-out training videos.
        config.optimizer.learning_rate, config.method.dropout = 2e-3, 0.0
    if "activitynet" in switches.dataset:  # section 3.3
        config.localize.thresholds = (0.2, 0.15, 0.1, 0.05)
    return config
