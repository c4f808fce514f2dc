"""DELU, and CO2-Net, which is DELU without its evidential losses (wsal_jax/methods/delu.py).

python -m wsal_jax.main --config=configs/delu.py
python -m wsal_jax.main --config=configs/delu.py:terms=co2             (CO2-Net; or co2+edl, co2+uct, all)
python -m wsal_jax.main --config=configs/delu.py:dataset=thumos14 --config.data.root=DIR    (published settings)
python -m wsal_jax.main --config=configs/delu.py --config.method.ranks=False     (L_uct as released)

thumos14, activitynet/1.2 and feature_folder have the published settings; `terms=co2` those of CO2-Net, the other terms
those of DELU. A step on THUMOS14 is 0.5 TFLOP: take a GPU. `preset=composed` and the built-in data are for two CPU
cores: a quarter of the classifier's width, fewer and smaller steps, and a higher rate to make up for it.
"""

from wsal_jax.configs import common
from wsal_jax.types import InputError

TERMS = ("co2", "co2+edl", "co2+uct", "all")


def get_config(text=None):
    switches = common.parse(text, terms="all", **common.SWITCHES)
    if switches.terms not in TERMS:
        raise InputError(f"--config=...:terms={switches.terms}: there are {', '.join(TERMS)}")
    config = common.get_config(switches)
    of_co2 = switches.terms == "co2"
    config.streams, config.fusion = ("rgb+flow",), (1.0,)
    config.num_snippets = 500 if of_co2 else 320
    config.batch_size = 10
    config.pairs = 3  # of videos that share a class, in each batch
    config.steps = 200 if switches.quick else 5000
    config.method = dict(
        name="delu",
        hidden=2048,  # units of the classifier; the attentions have a quarter
        dropout=0.5,
        logit_dropout=0.5,
        fusion_dropout=0.7,
        smooth=1,  # width of an average of all outputs over time
        share=7,  # top-k means are over a 7th of the snippets; of those of L_edl
        edl_share=9,
        co=1.0,
        mutual=1.0,
        norm=0.8,
        guide=0.8 if of_co2 else 0.4,
        edl=1.3 if switches.terms in ("co2+edl", "all") else 0.0,
        edl_form="log",  # or "squared"
        uct=0.4 if switches.terms in ("co2+uct", "all") else 0.0,
        amplitude=0.7,  # of the weights of L_uct
        ranks=True,  # False: as released, by sorting indices
        pairs=config.get_ref("pairs"),
        steps=config.get_ref("steps"),
    )
    config.optimizer = dict(name="adam", learning_rate=5e-5, coupled_l2=1e-3)
    config.localize.reject = 0.2
    count = 10 if of_co2 else 20
    config.localize.thresholds = tuple(round(0.1 + 0.8 * i / (count - 1), 4) for i in range(count))  # absolute
    config.localize.prior = 0.2  # weight of the video score in the score of a segment
    config.localize.soft_nms = 0.3
    if switches.dataset.startswith("activitynet"):
        activitynet(config, switches)
    if switches.preset == "composed" or switches.dataset.startswith("synthetic_untrimmed"):
        small(config, switches)
    return common.tuned(config, "co2" if of_co2 else "delu", switches)


def activitynet(config, switches):
    """As released for ActivityNet 1.2. We do not leave out videos of 10 snippets or fewer."""
    config.num_snippets = 60
    config.steps = 200 if switches.quick else 22_000
    config.optimizer.learning_rate, config.optimizer.coupled_l2 = 3e-5, 5e-4
    config.method.smooth = 13
    config.method.share = config.method.edl_share = 5
    config.method.guide, config.method.amplitude, config.method.edl_form = 0.8, 0.2, "squared"
    if config.method.edl:
        config.method.edl = 1.2
    if config.method.uct:
        config.method.uct = 0.2


def small(config, switches):
    """What two CPU cores can train, for videos of about 100 snippets."""
    config.num_snippets, config.method.hidden = 50, 512
    config.steps = 200 if switches.quick else 1000
    config.optimizer.learning_rate = 2e-4
    if switches.dataset.startswith("synthetic_untrimmed"):  # 128 dimensions instead of 1,024, as for the other methods
        config.optimizer.learning_rate = 1e-3
