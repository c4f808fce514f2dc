"""MAAN and its baselines (wsal_jax/methods/maan.py).

  python -m wsal_jax.main --config=configs/maan.py
  python -m wsal_jax.main --config=configs/maan.py:aggregator=stpn      (or dropout, norm, softmax_norm)
  python -m wsal_jax.main --config=configs/maan.py:as_released,dataset=thumos14 --config.data.root=DIR

On two CPU cores and the built-in data, which is not a benchmark, seed 0 takes 21 s including the build of the data and
reaches a fused mAP@.5 of 19.2; --config.seeds=5 takes 47 s and reaches 21.6 +- 2.4. For real features see the README.
`as_released` is not MAAN but the reproduction of STPN with published weights, see `released` below.
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
        sparsity=0.0,  # weight of the sum of the attention; 1e-4 in STPN's paper
        dropout=0.7,  # not in the paper; best of 0, 0.5, 0.7, 0.8 on held-out composed videos (RGB, d = 1,024)
        num_snippets=config.get_ref("num_snippets"),
    )
    if switches.dataset.startswith("synthetic_untrimmed"):
        # With 128 dimensions instead of the 1,024 of I3D, Adam moves a logit an eighth as fast, and 30 % of the
        # dimensions are too few for the attention. Chosen by classification mAP on 50 held-out training videos.
        config.optimizer.learning_rate, config.method.dropout = 2e-3, 0.0
    if "activitynet" in switches.dataset:  # section 3.3
        config.localize.thresholds = (0.2, 0.15, 0.1, 0.05)
    if switches.as_released:
        released(config)
    return common.tuned(config, switches.aggregator, switches)


def released(config):
    """The settings of Jae Yoo Park's reproduction of STPN (github.com/bellos1203/STPN) on THUMOS14 that differ from
    ours.

    We do not copy that a video of class 0 alone has no detections.
    """
    config.method.aggregator = "stpn_mean"  # sum(l x) / T; ours is the sum
    config.method.activation = "relu"
    config.method.proposals = "released"  # `as_released` in wsal_jax/methods/maan.py: raw logits as scores
    config.method.sparsity = 1e-4 * 20  # their 1e-4 weighs a mean over 20 classes; ours is a sum
    config.method.dropout = 0.0
    config.localize.thresholds = (0.05,)  # of attention * sigmoid(T-CAM), absolute
    config.localize.snippets = 400  # T at test: evenly spaced snippets, which repeat in a short video
    config.localize.upsample = 24
    config.num_snippets = 400
    config.batch_size = 6
    config.optimizer.learning_rate = 1e-4
    config.steps = 23_100
    if (
        config.data.name == "thumos14"
    ):  # 16 frames of videos resampled to 10 frames per second; the 210 usual test videos
        config.data.reader.update(fps=10.0, stride=16.0, offset=8.0, videos="bas_net")
