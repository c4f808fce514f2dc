"""MAAN in two dimensions (wsal_jax/methods/maan2d.py): objects in images from class labels.

  python -m wsal_jax.main --config=configs/maan2d.py --config.data.root=DIR
  python -m wsal_jax.main --config=configs/maan2d.py:aggregator=weighted_sum,pool=4 --config.data.root=DIR
  python -m wsal_jax.main --config=configs/maan2d.py:aggregator=mean --config.data.root=DIR    (CAM)
  python -m wsal_jax.main --config=configs/maan2d.py:dataset=cub200 --config.data.root=CUB_200_2011
  python -m wsal_jax.main --config=configs/maan2d.py:backbone=vgg16 --config.data.root=DIR \
    --config.data.reader.weights=vgg16-397923af.pth

The network is frozen; the features of each image are computed once. Measured: docs/images.md.
"""

from wsal_jax.configs import common
from wsal_jax.types import InputError

GRIDS = {"efficientnet_lite0": (7, 7), "squeezenet": (13, 13), "googlenet": (14, 14), "vgg16": (14, 14)}
SCALES = {"squeezenet": 0.025}
"""1 / the standard deviation of the features, of training images, where that is far from 1; VGG16's is not measured."""


def get_config(text=None):
    """`map=""` is cas, for CAM cam."""
    defaults = {**common.SWITCHES, "dataset": "image_folder"}
    switches = common.parse(text, aggregator="maan", backbone="efficientnet_lite0", pool=7, map="", **defaults)
    if switches.backbone not in GRIDS:
        raise InputError(f"--config=...:backbone={switches.backbone}: there are {', '.join(GRIDS)}")
    config = common.get_config(switches)
    grid = GRIDS[switches.backbone]
    if switches.dataset in ("image_folder", "cub200"):
        config.data.reader.backbone = switches.backbone
    config.num_snippets = grid[0] * grid[1]
    config.method = dict(
        name="maan2d",
        aggregator=switches.aggregator,
        grid=grid,
        pool=0 if switches.aggregator == "mean" else switches.pool,
        loss="softmax",  # or "bce", for images of several classes
        map=switches.map or ("cam" if switches.aggregator == "mean" else "cas"),
        divide=True,
        scale=SCALES.get(switches.backbone, 1.0),
        hidden=256,
        activation="leaky_relu",
        dropout=0.5,
        num_snippets=config.get_ref("num_snippets"),
    )
    config.batch_size, config.steps, config.checkpoint_every = 64, 400, 400
    schedule = dict(name="cosine_decay_schedule", init_value=1e-3, decay_steps=config.get_ref("steps"))
    config.optimizer = dict(name="adamw", learning_rate=schedule)
    if switches.quick:
        config.steps, config.log_every = 50, 25
    return config
