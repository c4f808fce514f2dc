"""Options shared by all methods. A method's file calls `parse` and `get_config`, then overrides options.

The text after the colon in `--config=configs/maan.py:dataset=feature_folder,quick` sets switches, which determine the
defaults of the other options; set those with `--config.<option>=<value>`.
"""

from difflib import get_close_matches

from ml_collections import ConfigDict, config_dict

from wsal_jax.configs.tuned import CHOSEN
from wsal_jax.types import InputError


def parse(text: str | None, **defaults):
    """Parses `"a=1,b"` to ConfigDict(a=1, b=True, others as in `defaults`), with the types of the defaults.

    Raises:
      InputError: an unknown switch, a value of the wrong type, or an unknown preset.
    """
    switches = ConfigDict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            near = "".join(f"; did you mean {likely}?" for likely in get_close_matches(name, defaults, 1))
            raise InputError(f"--config=...:{part}: no switch {name!r}; there are {', '.join(defaults)}{near}")
        kind = type(defaults[name])
        try:
            switches[name] = value in ("", "1", "true", "True") if kind is bool else kind(value)
        except ValueError as error:
            raise InputError(f"--config=...:{part}: {error}") from error
    kinds = {"": "", "composed": "feature_folder", **TUNED}
    if not switches.dataset.startswith(kinds.get(switches.preset, "none")):
        known = ", ".join(f"{preset} for dataset={kind}" for preset, kind in kinds.items() if preset)
        raise InputError(f"--config=...:preset={switches.preset}: there are {known}")
    switches.tuned = switches.preset if switches.preset in TUNED else ""
    if switches.tuned:
        switches.preset = "composed" if TUNED[switches.tuned] == "feature_folder" else ""
    return switches


SWITCHES = dict(dataset="synthetic_untrimmed/thumos", preset="", quick=False)
"""`dataset=feature_folder` has the settings of the method's paper, meant for hundreds of videos of some minutes with
I3D features, as in THUMOS14. `preset=composed` has the settings of our results on composed videos (a few clips each,
features of 2 s): start with it if videos have tens of snippets, or if training on a CPU must be short. The presets
`context0`, `context4` and `built_in` have what `wsal_jax.tune` chose for each method on the result tables' data."""

TUNED = {"context0": "feature_folder", "context4": "feature_folder", "built_in": "synthetic_untrimmed"}
"""The presets of `configs/tuned`, and the data that they are for."""


def get_config(switches: ConfigDict) -> ConfigDict:
    """The shared part of a config."""
    config = ConfigDict()

    config.seed = 0
    config.seeds = 1  # number of seeds trained at once, from `seed` on
    config.resume = True  # continue the run in --workdir; False moves that run aside and starts again

    config.data = ConfigDict()
    config.data.name = switches.dataset  # a TFDS builder of wsal_jax.data, with its config if any
    config.data.root = ""  # feature_folder, thumos14, activitynet: the user's folder
    config.data.dir = ""  # the folder of built data; "" is TFDS's default, ~/tensorflow_datasets
    # Features for training: all on every "device", "split" over the devices, "stream" from disk, or "auto", the first
    # of these that fits; see wsal_jax/data/bank.py.
    config.data.placement = "auto"
    config.data.device_gb = 4.0  # "auto" puts training features up to this size on a device
    config.data.dtype = "stored"  # of features on the device: as built, or float32, float16, bfloat16

    benchmark = switches.dataset.partition("/")[0]
    if benchmark in ("thumos14", "activitynet"):  # see wsal_jax/data/benchmark.py, thumos14.py
        config.data.reader = ConfigDict(dict(layout="auto", bad_videos="refuse", bad_segments="keep"))
        for name in ("fps", "stride", "offset"):  # None: those of the layout
            config.data.reader[name] = config_dict.placeholder(float)  # a shared placeholder would set all three
        config.data.reader.durations = "annotated"  # or "features": durations of videos from their features
        config.data.reader.resized = False  # True: the snippets of a video divide its duration equally
        if benchmark == "thumos14":
            config.data.reader.update(videos="all", diving="both")

    # One model per entry; "rgb+flow" is one model on the joined features.
    config.streams = ("rgb", "flow")
    config.fusion = (0.5, 0.5)  # weight of each model's scores in the fused scores

    config.steps = 2000  # per round
    config.batch_size = 32
    config.num_snippets = 20  # sampled from each training video
    # A name in optax and its arguments; a learning rate with a name of its own is a schedule (see configs/iwo.py).
    config.optimizer = ConfigDict(dict(name="adam", learning_rate=5e-4))

    config.log_every = 100  # steps per dispatch
    config.checkpoint_every = 500  # steps; a multiple of log_every
    config.patience = 5  # so many steps in a row whose loss or gradient is not finite end training; fewer are skipped
    config.plots = 4  # number of test videos to plot
    config.report = True  # save the scores of test videos, and write report/index.html

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "activitynet"  # or thumos_kit, wtalc, grid, opentad: see wsal_jax/matching.py
    first, step = (0.5, 0.05) if "activitynet" in switches.dataset else (0.1, 0.1)  # as in papers on each
    config.evaluation.ious = tuple(round(first + i * step, 2) for i in range(10 if first == 0.5 else 9))
    config.evaluation.bootstrap = 1000  # resamplings of the test videos for the 95 % intervals

    config.localize = ConfigDict()
    config.localize.reject = 0.1  # lowest video score of a class with detections (the best class always has some)
    config.localize.thresholds = (0.2,)  # of the CAS, relative to its maximum
    config.localize.nms = 0.5  # temporal IoU above which NMS drops the weaker of two detections of a class
    config.localize.soft_nms = 0.0  # sigma of Gaussian soft-NMS, which decays scores, instead of `nms`; 0.0: off

    if benchmark in ("image_folder", "cub200"):
        for_images(config, benchmark)
    if switches.quick:
        config.steps, config.log_every, config.checkpoint_every = 200, 50, 100
    return config


def tuned(config: ConfigDict, row: str, switches: ConfigDict) -> ConfigDict:
    """Sets what was chosen for a row of the result tables, if the preset asks for it; returns the config.

    Switches that leave a part of the method out must do so after it, or the preset puts the part back.

    Raises:
      InputError: nothing was chosen for that row.
    """
    if switches.tuned:
        chosen = dict(CHOSEN.get(f"{row}.{switches.tuned}", {}))
        if not chosen:
            raise InputError(f"--config=...:preset={switches.tuned}: nothing was tuned for {row}")
        if switches.quick:
            chosen.pop("steps", None)
        config.update_from_flattened_dict(chosen)
    return config


def for_images(config: ConfigDict, dataset: str) -> None:
    """What images have beyond videos; docs/images.md."""
    config.data.reader = dict(backbone="efficientnet_lite0", weights="", max_pixels=50_000_000)
    if dataset == "cub200":
        config.data.reader.update(lists="", split="test")  # see wsal_jax/data/cub200.py
    else:
        config.data.reader.inclusive = False  # True: xmax, ymax are the last pixels of a box, not its edges
    config.streams, config.fusion = ("rgb",), (1.0,)
    config.localize.normalize = "max"  # the threshold is a share of the map's maximum; "minmax": of its range
    config.localize.boxes = 1  # of each class, the largest first
    config.evaluation.small = 0.5  # images whose true boxes all cover less of the image are measured apart
    config.evaluation.levels = 51  # thresholds of MaxBoxAcc; 255 are all there are in maps of 8 bits
