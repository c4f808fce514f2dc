"""MAAN in two dimensions: objects in images from class labels (Yuan et al., ICLR 2019, appendix F).

An image is a video of n = h w locations, so the aggregators are those of `aggregate`. Table 4 compares them on a map of
features of one network: `mean` is CAM (Zhou et al., CVPR 2016), which has no attention; `weighted_sum` is weighted-CAM,
`maan` the marginalized average; `norm` and `softmax_norm` are the two other means of section 3.2.

The paper leaves much open. What we chose:
- the loss is softmax over classes, one label an image; of an image of several labels, the mean of their terms;
- features are pooled to `pool` x `pool` before aggregation, as in F.3, by averages of nearly equal parts (cell i of g
  covers rows floor(i h / g) to ceil((i + 1) h / g)); attention is 1 x 1, so that the map of a test image is the full
  one;
- the map of a class is p_i sigmoid(w_c x_i + b_c), eq. 14 with the bias, or p_i alone, or CAM's w_c x_i;
- `weighted_sum` is divided by the number of cells where `divide`;
- the slope of the leaky ReLU is 0.01, which is JAX's and PyTorch's;
- whole channels are dropped in training, the same ones everywhere in an image.
With a frozen network the 3 x 3 convolution that CAM adds to VGG16 and GoogLeNet is left out.

With `backbone` in the config the network is trained, too, as for the paper's table, and snippets are the rows of a
picture (`data.images.rows`). What the paper leaves open of that, and what we chose:
- the network starts from its ImageNet weights and learns at 1 / `ratio` of the rate of all else, as Choe et al. (CVPR
  2020) have it; its batch normalizations stay folded into the convolutions, whose kernels and biases are trained;
- `convolution` is the number of channels of CAM's 3 x 3 convolution, with padding 1 and a ReLU, that starts anew;
- training pictures are random parts of at least `crop` of the picture, mirrored half of the time (`augment`), of the
  224 x 224 that is kept, where others cut 224 x 224 out of 256 x 256. Test pictures are whole.
"""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from wsal_jax import aggregate, augment, layers
from wsal_jax.backbones import images as networks
from wsal_jax.data.pipeline import Dataset
from wsal_jax.keys import named
from wsal_jax.losses import binary_cross_entropy
from wsal_jax.method import Method, Params, Phase, Spec, Step
from wsal_jax.methods import maan
from wsal_jax.types import InputError, Scores, Video

AGGREGATORS = ("mean", "weighted_sum", *maan.MEANS)
MAPS = ("cas", "attention", "cam")
LOSSES = ("softmax", "bce")


def pooling(grid: tuple[int, int], size: int) -> Float[np.ndarray, "g n"]:
    """The matrix that averages a map, row by row, to size x size cells, as PyTorch's adaptive pooling does."""

    def one(n):
        cells = np.arange(size)
        first, last = cells * n // size, -(-(cells + 1) * n // size)
        inside = (first[:, None] <= np.arange(n)) & (np.arange(n) < last[:, None])
        return inside / (last - first)[:, None]

    return np.kron(one(grid[0]), one(grid[1])).astype(np.float32)


def shrink(config: ConfigDict, video: Video) -> Video:
    """The image pooled to `config.pool` x `config.pool` cells; as it is where the map has as many, or pool is 0.

    A cell counts as real if all its locations are.
    """
    grid = tuple(config.grid)
    if not config.pool or grid == (config.pool, config.pool):
        return video
    average, n = pooling(grid, config.pool), prod(grid)
    mask = video.mask[:n]
    features = jnp.matmul(average, video.features[:n] * mask[:, None], precision="highest")
    whole = jnp.where(average @ (1 - mask) > 0, 0.0, 1.0)
    return video._replace(features=features, mask=whole, length=jnp.minimum(video.length, len(average)))


def attend(config: ConfigDict, params: Params, video: Video) -> Float[Array, " n"]:
    """p, 0 where masked; for `mean`, which has no attention, 1."""
    if config.aggregator == "mean":
        return video.mask
    return maan.attend(config, params, video)


def aggregated(config: ConfigDict, params: Params, video: Video) -> Float[Array, " d"]:
    """The image's feature, of pooled locations."""
    video = shrink(config, video)
    attention = attend(config, params, video)
    if config.aggregator == "mean":
        return aggregate.weighted_mean(attention, video.features, video.mask)
    if config.aggregator == "weighted_sum":
        total = aggregate.weighted_sum(attention, video.features, video.mask)
        return total / jnp.maximum(video.mask.sum(), 1) if config.divide else total
    return maan.MEANS[config.aggregator](attention, video.features, video.mask)


def scaled(config: ConfigDict, video: Video) -> Video:
    """Features in the order of 1, whatever the network."""
    return video._replace(features=video.features * config.scale) if config.scale != 1 else video


def trains_network(config: ConfigDict) -> bool:
    """Whether the network is trained, and videos are pictures."""
    return "backbone" in config


def picture(video: Video) -> Float[Array, "s s 3"]:
    """The pixels, 0 to 255, of which `video` has the rows, and perhaps padding."""
    return video.features[: networks.SIDE].reshape(networks.SIDE, networks.SIDE, 3)


def seen(config: ConfigDict, params: Params, video: Video, pixels: Float[Array, "s s 3"]) -> Video:
    """The map of the network, and of CAM's convolution if there is one; a video without pixels has a mask of 0."""
    network = networks.NETWORKS[config.backbone]
    found = network.apply(params["backbone"], network.normalize(pixels)[None]) * config.scale
    if config.convolution:
        numbers = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(
            found, params["convolution"]["kernel"], (1, 1), "SAME", dimension_numbers=numbers
        )
        found = jax.nn.relu(found + params["convolution"]["bias"])
    n = prod(config.grid)
    return video._replace(features=found.reshape(n, -1), mask=jnp.full(n, video.mask[0]), length=jnp.int32(n))


def located(config: ConfigDict, params: Params, video: Video, key: PRNGKeyArray | None = None) -> Video:
    """The image as locations with features; `key` says that it is a training picture, to be changed at random."""
    if not trains_network(config):
        return scaled(config, video)
    pixels = picture(video)
    if key is not None:
        pixels = augment.crop(named(key, "crop"), pixels, config.crop) if config.crop < 1 else pixels
        pixels = augment.flip(named(key, "flip"), pixels)
    return seen(config, params, video, pixels)


def init(config: ConfigDict, key: PRNGKeyArray, spec: Spec) -> Params:
    """The group classifier, and but for `mean` attention; of a network that is trained also `backbone`, its weights
    from their file, and perhaps `convolution`."""
    own = {}
    if trains_network(config):
        weights = networks.load(config.backbone, config.weights)
        own["backbone"] = {name: jax.tree.map(jnp.asarray, unit) for name, unit in weights.items() if name != "_fc"}
        dim = networks.NETWORKS[config.backbone].dim
        if config.convolution:
            kernel = jax.nn.initializers.he_normal()(named(key, "convolution"), (3, 3, dim, config.convolution))
            own["convolution"] = {"kernel": kernel, "bias": jnp.zeros(config.convolution)}
        spec = spec._replace(dims=(config.convolution or dim,))
    params = {**maan.init(config, key, spec), **own}
    if config.aggregator == "mean":
        del params["attention"]
    return params


def classify(config: ConfigDict, logits: Float[Array, " c"], labels: Float[Array, " c"]) -> Float[Array, ""]:
    """The loss of one image."""
    if config.loss == "bce":
        return binary_cross_entropy(logits, labels)
    return -(labels * jax.nn.log_softmax(logits)).sum() / jnp.maximum(labels.sum(), 1)


def loss(
    config: ConfigDict, params: Params, video: Video, step: Step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The classification loss of one image; its features are whole maps, in order."""
    video = located(config, params, video, step.key)
    video = video._replace(features=layers.drop_dimensions(step.key, video.features, config.dropout))
    total = classify(config, layers.dense(params["classifier"], aggregated(config, params, video)), video.labels)
    mean = attend(config, params, video).sum() / jnp.maximum(video.mask.sum(), 1)
    return total, {"loss": total, "attention": mean}


def score(config: ConfigDict, params: Params, video: Video) -> Scores:
    """The map of each class over all locations, as `cas`; the probabilities of the classes as the loss has them."""
    video = located(config, params, video)
    attention, there = attend(config, params, video), video.mask[:, None]
    logits = layers.dense(params["classifier"], aggregated(config, params, video))
    video_score = jax.nn.softmax(logits) if config.loss == "softmax" else jax.nn.sigmoid(logits)
    cam = video.features @ params["classifier"]["kernel"]
    evidence = jax.nn.sigmoid(cam + params["classifier"]["bias"]) * there
    maps = {"cas": attention[:, None] * evidence, "cam": cam * there}
    maps["attention"] = jnp.broadcast_to(attention[:, None], cam.shape)
    return Scores(video_score, maps[config.map], attention, None, evidence)


def check(config: ConfigDict, data: Dataset) -> None:
    """Raises InputError for data whose maps are not those that the config says."""
    there, grid = data.metas[0].grid, tuple(config.grid)
    if there is None:
        raise InputError("config.method.name=maan2d learns from images: give config.data.name=image_folder or cub200")
    if any(meta.grid != grid for meta in data.metas):
        what = f"config.method.grid={grid}, but the images' maps are {there}"
        raise InputError(f"{what}: choose the network by the switch, --config=configs/maan2d.py:backbone=...")
    pixels = data.dims.get("rgb") == 3 * networks.SIDE
    if pixels != trains_network(config):
        raise InputError("the switch finetune and config.data.reader.pixels go together: give --config=...:finetune")
    if pixels and config.num_snippets != networks.SIDE:
        raise InputError(f"config.num_snippets={config.num_snippets}: give all {networks.SIDE} rows of the picture")
    if not pixels and config.num_snippets != prod(grid):
        raise InputError(f"config.num_snippets={config.num_snippets}: give all {prod(grid)} locations of the map")


def method(config: ConfigDict) -> Method:
    """`config`: aggregator; grid, rows and columns of the network's map; pool, 0 for none; loss, softmax or bce; map,
    cas, attention or cam; divide, of weighted_sum; scale, by which features are multiplied; hidden, activation and
    dropout as of `maan`; num_snippets, that of training, which must be all locations (or rows of pixels). If
    the network is trained: backbone, its name; weights, its file; ratio; convolution, 0 for none; crop, 1 for whole
    pictures.

    Raises:
      InputError: an aggregator, map, loss or backbone that does not exist, a pool that is negative, a crop or ratio
        that makes no sense.
    """
    choices = dict(aggregator=AGGREGATORS, map=MAPS, loss=LOSSES, activation=maan.ACTIVATIONS)
    for option, there in choices.items():
        if config[option] not in there:
            raise InputError(f"config.method.{option}={config[option]!r}: there are {', '.join(there)}")
    if config.pool < 0:
        raise InputError(f"config.method.pool={config.pool}: give 0 for none, 4 or 7")
    trains = ("classifier",) if config.aggregator == "mean" else ("attention", "classifier")
    rates: tuple[tuple[str, float], ...] = ()
    if trains_network(config):
        if config.backbone not in networks.NETWORKS or not 0 < config.crop <= 1 or not 0 < config.ratio:
            given = f"backbone={config.backbone!r}, crop={config.crop}, ratio={config.ratio}"
            raise InputError(f"config.method: {given}: give a network, a share in (0, 1] and a positive ratio")
        trains += ("backbone", "convolution") if config.convolution else ("backbone",)
        rates = (("backbone", 1 / config.ratio),)
    phases = (Phase("train", partial(loss, config), trains, rates=rates),)
    return Method(partial(init, config), phases, partial(score, config), check=partial(check, config))
