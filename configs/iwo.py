"""IWO-Net (wsal_jax/methods/iwo.py).

python -m wsal_jax.main --config=configs/iwo.py
python -m wsal_jax.main --config=configs/iwo.py:rounds=1                (Table III; 1, 2 or 3)
python -m wsal_jax.main --config=configs/iwo.py:winners_out_test=0      (Table IV, with rounds=1 the other rows)
python -m wsal_jax.main --config=configs/iwo.py:scores=cam              (Table V; csc, cam or attention)
python -m wsal_jax.main --config=configs/iwo.py:heads=1                 (Table VI; Figure 8: segments=800)
"""

from configs import common


def get_config(text=None):
    switches = common.parse(
        text, rounds=2, winners_out_test=True, scores="csc", heads=18, segments=0, **common.SWITCHES
    )
    config = common.get_config(switches)
    thumos14, activitynet = switches.dataset.startswith("thumos14"), switches.dataset.startswith("activitynet")
    config.streams, config.fusion = ("rgb+flow",), (1.0,)
    config.num_snippets = switches.segments or 400
    config.method = dict(
        name="iwo",
        segments=config.get_ref("num_snippets"),
        heads=switches.heads,
        shift=False,
        dropout=0.8,
        penalty=0.0 if switches.scores == "cam" else 0.1,
        gamma=10.0,
        share=30 / 400,
        rounds=switches.rounds,
        test_steps=10 if switches.winners_out_test else 1,
        test_classes=2,
        scores=switches.scores,
    )
    config.steps //= switches.rounds
    config.optimizer = dict(name="adam", learning_rate=1e-3)
    if thumos14 or activitynet:
        pass
    elif not switches.segments:
        config.num_snippets = 100 if switches.dataset == "feature_folder" else 50
    return config
