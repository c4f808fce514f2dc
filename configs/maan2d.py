"""MAAN in two dimensions (wsal_jax/methods/maan2d.py): objects in images from class labels.

  python -m wsal_jax.main --config=configs/maan2d.py --config.data.root=DIR
  python -m wsal_jax.main --config=configs/maan2d.py:aggregator=weighted_sum,pool=4 --config.data.root=DIR
  python -m wsal_jax.main --config=configs/maan2d.py:aggregator=mean --config.data.root=DIR    (CAM)
  python -m wsal_jax.main --config=configs/maan2d.py:dataset=cub200 --config.data.root=CUB_200_2011
  python -m wsal_jax.main --config=configs/maan2d.py:backbone=vgg16 --config.data.root=DIR \
    --config.data.reader.weights=vgg16-397923af.pth
  python -m wsal_jax.main --config=configs/maan2d.py:dataset=cub200,backbone=googlenet,finetune \
    --config.data.root=CUB_200_2011 --config.data.reader.weights=googlenet-1378be20.pth    (on an accelerator)

The network is frozen, and the features of each image are computed once; with `finetune` it is trained with the rest, of
the pictures themselves. Measured: docs/images.md.
"""

from wsal_jax.configs import common
from wsal_jax.types import InputError

GRIDS = {"efficientnet_lite0": (7, 7), "squeezenet": (13, 13), "googlenet": (14, 14), "vgg16": (14, 14)}
CONVOLUTIONS = {"googlenet": 1024, "vgg16": 1024}
"""Channels of the 3 x 3 convolution that CAM adds."""
SCALES = {"squeezenet": 0.025}
"""1 / the standard deviation of the features, of training images, where that is far from 1; VGG16's is not measured."""


def get_config(text=None):
    """`map=""` is cas, for CAM cam."""
    defaults = {**common.SWITCHES, "dataset": "image_folder"}
    switches = common.parse(
        text, aggregator="maan", backbone="efficientnet_lite0", pool=7, map="", finetune=False, **defaults
    )
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
    if switches.finetune:
        finetune(config, switches.backbone)
    if switches.quick:
        config.steps, config.log_every = 50, 25
    return config


def finetune(config, backbone):
    """The whole network is trained. Steps are 40 epochs of CUB-200-2011; none of these options was tuned."""
    config.data.reader.pixels = True
    config.num_snippets = 224  # rows of the picture
    own = dict(backbone=backbone, weights=config.data.reader.get_ref("weights"))
    own["ratio"] = 10.0  # the learning rate of attention, convolution and classifier over that of the network
    own["convolution"] = CONVOLUTIONS.get(backbone, 0)  # 0: none
    own["crop"] = 0.5  # a training picture is a random part of the image, of at least this share of it; 1.0: all
    config.method.update(own)
    config.batch_size, config.steps, config.checkpoint_every = 32, 7480, 1870
