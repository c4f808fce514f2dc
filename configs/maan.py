"""MAAN and its baselines (wsal_jax/methods/maan.py).

  python -m wsal_jax.main --config=configs/maan.py
  python -m wsal_jax.main --config=configs/maan.py:aggregator=stpn      (or dropout, norm, softmax_norm)
  python -m wsal_jax.main --config=configs/maan.py:as_released,dataset=thumos14 --config.data.root=DIR

Two CPU cores: 29 s with building the data; fused mAP@.5 24.4 (seed 0), 21.2 +- 2.1 with --config.seeds=5 (56 s) on the
built-in data, which is no benchmark. Measured scores on real features: see the README. `as_released` is not MAAN but
the reproduction of STPN whose weights are published: see `released` below.
"""

from wsal_jax.configs import common


def get_config(text=None):
    switches = common.parse(text, aggregator="maan", **common.SWITCHES, as_released=False)
    config = common.get_config(switches)
    config.method = dict(
        name="maan",
        aggregator=switches.aggregator,
        hidden=256,
        activation="leaky_relu",
        proposals="cas",  # localize.propose; or "released"
        sparsity=0.0,  # of the sum of the attention; STPN's own paper: 1e-4
        dropout=0.7,  # the paper has none; the best of 0, 0.5, 0.7, 0.8 on held-out composed videos (RGB), with 1,024 d
        num_snippets=config.get_ref("num_snippets"),
    )
    if switches.dataset.startswith("synthetic_untrimmed"):
        # 128 dimensions, not the 1,024 of I3D: Adam moves a logit an eighth as fast, and 0.3 of them is too little to
        # attend by. Chosen by the classification mAP on 50 held-out training videos.
        config.optimizer.learning_rate, config.method.dropout = 2e-3, 0.0
    if "activitynet" in switches.dataset:  # section 3.3
        config.localize.thresholds = (0.2, 0.15, 0.1, 0.05)
    if switches.as_released:
        released(config)
    return config


def released(config):
    """STPN as reproduced by Jae Yoo Park (github.com/bellos1203/STPN) on THUMOS14, where it differs from STPN here.

    Not copied: that a video of class 0 alone has no detections.
    """
    config.method.aggregator = "stpn_mean"  # sum(l x) / T; ours is the sum
    config.method.activation = "relu"
    config.method.proposals = "released"  # `as_released` in wsal_jax/methods/maan.py: raw logits as scores
    config.method.sparsity = 1e-4 * 20  # 1e-4 beside a mean over THUMOS14's 20 classes, which is a sum here
    config.method.dropout = 0.0
    config.localize.thresholds = (0.05,)  # of attention * sigmoid(T-CAM), absolute
    config.localize.snippets = 400  # T at test: as many, evenly spaced, repeated in a short video
    config.localize.upsample = 24
    config.num_snippets = 400
    config.batch_size = 6
    config.optimizer.learning_rate = 1e-4
    config.steps = 23_100
    if (
        config.data.name == "thumos14"
    ):  # 16 frames of videos resampled to 10 frames per second; the 210 usual test videos
        config.data.reader.update(fps=10.0, stride=16.0, offset=8.0, videos="bas_net")
