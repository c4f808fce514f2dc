"""Our own method: marginalized average over a Markov chain (wsal_jax/methods/markov.py).

python -m wsal_jax.main --config=configs/markov.py
python -m wsal_jax.main --config=configs/markov.py --config.method.stay=0      (MAAN)
python -m wsal_jax.main --config=configs/markov.py:pooling     (the chain as pooling alone, all else as MAAN's)
python -m wsal_jax.main --config=configs/markov.py:dataset=feature_folder,preset=composed --config.data.root=DIR
"""

from wsal_jax.configs import common


def get_config(text=None):
    switches = common.parse(text, pooling=False, **common.SWITCHES)
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
    # For proposals=posterior; see `by_posterior` in wsal_jax/methods/markov.py.
    config.localize.stay = 2.0  # of neighbouring snippets of a whole video
    config.localize.sharpness = 2.0  # power of a snippet's odds
    config.localize.overlap = 1.0  # power of the IoU with the run that matches, in the score of a segment
    config.localize.inside = 0.5  # power of the mean CAS inside, in the score of a segment
    config.localize.candidates = 60  # likeliest runs of a class and a threshold
    if switches.dataset.startswith("synthetic_untrimmed"):  # as for MAAN
        config.optimizer.learning_rate, config.method.dropout = 2e-3, 0.0
    if switches.preset == "composed" and not switches.pooling:
        # Neighbours of a sample must be neighbours in the video, so T is larger than MAAN's 20, the batch smaller. On
        # held-out training videos of composed data, one fold and seed, 500 steps, a chain helped where segments are
        # ranked by posteriors (localize.stay 0, 1, 2; mAP over .1:.9: 39.0, 41.8, 43.0 with context, 60.0, 61.4, 62.7
        # without), but not in training (stay 2 instead of 0: 40.3 and 43.0; 63.0 and 64.4).
        config.num_snippets, config.batch_size, config.steps = 64, 16, min(config.steps, 1000)
        config.optimizer.learning_rate, config.method.stay = 1e-3, 0.0
        config.method.proposals = "posterior"
        config.localize.thresholds, config.localize.nms = (0.03,), 0.3
    if "activitynet" in switches.dataset:
        config.localize.thresholds = (0.2, 0.15, 0.1, 0.05)
    return common.tuned(config, "markov_pooling" if switches.pooling else "markov", switches)
