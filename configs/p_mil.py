"""P-MIL (wsal_jax/methods/p_mil.py): a base, then a head that classifies and ranks the base's candidates.

python -m wsal_jax.main --config=configs/p_mil.py
python -m wsal_jax.main --config=configs/p_mil.py:base=delu         (the base: co2, delu, maan)
python -m wsal_jax.main --config=configs/p_mil.py:terms=scfe+comp   (mil, scfe, scfe+comp, scfe+irc, ..., all)
python -m wsal_jax.main --config=configs/p_mil.py:dataset=thumos14 --config.data.root=DIR

The settings of the base are those of its own config (`--config.method.base.<option>`), as are all that both phases
share: optimizer, batch, num_snippets. `--config.method.base_share` of `--config.steps` trains the base.

thumos14, activitynet and feature_folder have the published settings of base and head; take a GPU. `preset=composed` and
the built-in data are for two CPU cores: MAAN as the base, a quarter of the head's width, 50 snippets, and 64 candidates
of each training video, of which repeated ones count once. On composed data a step of the base is 3 GFLOP, one of the
head 22; with the settings of THUMOS14 1,160 and 830.
"""

import importlib

from wsal_jax.configs import common
from wsal_jax.types import InputError

BASES = {"co2": "delu:terms=co2", "delu": "delu", "maan": "maan"}
TERMS = ("scfe", "comp", "irc")


def get_config(text=None):
    switches = common.parse(text, base="", terms="all", **common.SWITCHES)
    benchmark = switches.dataset.partition("/")[0]
    published = benchmark in ("thumos14", "activitynet", "feature_folder") and not switches.preset
    switches.base = switches.base or ("co2" if published else "maan")
    terms = set() if switches.terms == "mil" else set(switches.terms.replace("all", "+".join(TERMS)).split("+"))
    if terms - set(TERMS):
        raise InputError(f"--config=...:terms={switches.terms}: there are mil, all, and sums of {', '.join(TERMS)}")
    config = base_config(switches)
    config.streams, config.fusion = ("rgb+flow",), (1.0,)
    config.method = dict(
        name="p_mil",
        base=config.method,
        base_share=0.5,
        steps=config.get_ref("steps"),
        thresholds=tuple(round(0.1 + 0.8 * i / 19, 4) for i in range(20)),
        unique=False,
        train_candidates=512,
        test_candidates=1024,
        surroundings="scfe" in terms,
        width=1024,
        hidden=512,
        dropout=0.5,
        top=8,
        orig=2.0,
        supp=1.0,
        irc=2.0,
        comp=20.0,
        pseudo=0.8,
        ramp=0.15,  # 30 of 200 epochs
    )
    config.localize.reject = 0.2
    config.localize.soft_nms = 0.3
    config.localize.prior = 0.2  # weight of the video score in that of a candidate
    base_steps = config.steps
    if published:
        if benchmark != "activitynet":
            config.num_snippets = 750  # candidates are runs of sampled snippets; the authors' are of whole videos
        config.steps = base_steps + (100 if switches.quick else 4000)  # 200 epochs of 20 steps
    else:
        small(config)
        if benchmark == "synthetic_untrimmed":  # its videos have up to 2,000 snippets, and up to 414 candidates
            config.method.test_candidates = 512
        config.steps = base_steps + base_steps // 2
    if switches.base == "maan":
        # MAAN's attention is nearly 0 or 1, so on held-out training videos runs above these levels met far more of the
        # actions than runs above .1 to .9.
        config.method.thresholds = tuple(round(0.001 * 900 ** (i / 19), 5) for i in range(20))
    config.method.base_share = base_steps / config.steps
    common.tuned(config, "p_mil" if switches.base == "maan" else f"p_mil of {switches.base}", switches)
    for term in {"irc", "comp"} - terms:
        config.method[term] = 0.0
    return config


def small(config):
    """What two cores can train on videos of about 100 snippets, which have 23 candidates on average, 70 at most."""
    config.num_snippets = 50
    config.method.update(unique=True, train_candidates=64, test_candidates=128, width=256, hidden=128)


def base_config(switches):
    """The whole config of the base on the same data."""
    if switches.base not in BASES:
        raise InputError(f"--config=...:base={switches.base}: there are {', '.join(BASES)}")
    name, _, own = BASES[switches.base].partition(":")
    shared = [f"{switch}={switches[switch]}" for switch in common.SWITCHES]
    return importlib.import_module(f"wsal_jax.configs.{name}").get_config(",".join([*filter(None, [own]), *shared]))
