"""SAL (wsal_jax/methods/sal.py).

python -m wsal_jax.main --config=configs/sal.py
python -m wsal_jax.main --config=configs/sal.py:terms=mil+act+mix    (mil and any of act, mix, mask, sem, prop, bg, con)
python -m wsal_jax.main --config=configs/sal.py:dataset=thumos14 --config.data.root=DIR        (settings as published)
python -m wsal_jax.main --config=configs/sal.py:dataset=activitynet/1.3 --config.data.root=DIR (settings as published)

The published network has 512 units and, on THUMOS14, 76 million parameters with our half of the second-order layers:
take a GPU. The built-in data and preset=composed have 64 units, T = 100 and 1,000 steps of 8 videos, which two CPU
cores can train.
"""

from wsal_jax.configs import common
from wsal_jax.types import InputError

TERMS = ("mil", "act", "mix", "mask", "sem", "prop", "bg", "con")


def get_config(text=None):
    switches = common.parse(text, terms="all", **common.SWITCHES)
    terms = "+".join(TERMS) if switches.terms == "all" else switches.terms
    if terms.split("+")[0] != "mil" or not set(terms.split("+")) <= set(TERMS):
        raise InputError(f"--config=...:terms={terms}: give all, or mil and any of {', '.join(TERMS[1:])}, joined by +")
    config = common.get_config(switches)
    config.streams, config.fusion = ("rgb+flow",), (1.0,)
    config.num_snippets = 750
    config.batch_size = 2
    config.steps = 10_000  # 100 epochs of 100 steps
    config.optimizer = dict(name="adam", learning_rate=1e-4, coupled_l2=5e-4)
    config.method = dict(
        name="sal",
        terms=terms,
        hidden=512,
        kernel=3,
        dropout=0.5,
        power=2.0,  # G is divided by T^2, as released
        floor=1e-5,
        rgb_share=0.1,
        top=8,
        by="level",
        train_share=1 / 3,
        test_share=1 / 3,
        positives=110 / 750,  # floor(T / 8) + 17, as released, at T = 750
        agree=True,
        decay=0.7,
        spread=0.5,
        q=0.5,
        background=10.0,
        consistency=5.0,
        semantic=3.0,
        beta=0.35,
        num_snippets=config.get_ref("num_snippets"),
        repeat=True,
    )
    config.localize.reject = 0.25
    config.localize.thresholds = tuple(round(0.1 * i, 1) for i in range(1, 10))  # absolute
    config.localize.nms = 0.4  # IoU above which the weaker of two detections of a class is suppressed, and then
    config.localize.decay = 0.3  # comes back with its score times exp(-iou^2 / decay)
    config.localize.prior = 0.2  # weight of the video score in the score of a segment
    config.localize.upsample = 24
    if switches.dataset.startswith("thumos14"):
        config.data.reader.videos = "bas_net"
    if switches.dataset.startswith("activitynet"):
        activitynet(config)
    if switches.preset == "composed" or switches.dataset.startswith("synthetic_untrimmed"):
        config.num_snippets, config.method.hidden = 100, 64
        config.batch_size, config.steps, config.optimizer.learning_rate = 8, 1000, 1e-3
    if switches.preset == "composed":
        # Best of 8 on held-out training videos of composed data without context, one seed.
        config.localize.thresholds = tuple(round(0.05 * i, 2) for i in range(1, 10))
        config.localize.reject, config.localize.nms = 0.4, 0.3
        config.localize.prior, config.localize.decay = 0.0, 0.1
    if switches.dataset.startswith("synthetic_untrimmed"):  # best of 8 on held-out training videos, one seed
        config.localize.reject, config.localize.nms, config.localize.prior = 0.1, 0.5, 1.0
    if switches.quick:
        config.steps = 200
    if "sem" not in terms.split("+"):
        config.method.beta = 1.0
    if not {"act", "mix"} & set(terms.split("+")):  # nothing teaches the actionness
        config.method.train_share = config.method.test_share = 0.0
    return common.tuned(config, "sal", switches)


def activitynet(config):
    """The settings of the released code for ActivityNet 1.3."""
    config.num_snippets, config.batch_size, config.steps = 50, 32, 50_000
    config.method.kernel = 7
    config.method.rgb_share = 0.3
    config.method.top, config.method.by, config.method.test_share = 4, "logits", 0.2
    config.method.positives, config.method.agree = 40 / 50, False
    config.method.decay, config.method.spread = 0.99, 6.0
    config.method.background, config.method.consistency = 1.0, 20.0
    config.method.beta, config.method.repeat = 0.5, False
    config.localize.reject, config.localize.nms, config.localize.decay = 0.1, 0.7, 0.35
