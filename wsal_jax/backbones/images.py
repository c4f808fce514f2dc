"""The networks that turn an image into a grid of features, by name."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from wsal_jax.backbones import efficientnet_lite0, torchvision
from wsal_jax.types import InputError


class Network(NamedTuple):
    """A network of which the map before its classifier is used."""

    load: Callable[[Any], Any]
    """Parameters of a file of weights."""
    apply: Callable[[Any, Any], Any]
    """`apply(params, images[b side side 3]) -> [b h w d]`"""
    normalize: Callable[[Any], Any]
    """From 0..255."""
    grid: tuple[int, int]
    """h, w for images of `SIDE`."""
    dim: int


SIDE = 224
"""An image is resized to SIDE x SIDE, whatever its shape."""

NETWORKS = {
    "efficientnet_lite0": Network(
        efficientnet_lite0.load,
        efficientnet_lite0.features_map,
        efficientnet_lite0.normalize,
        (7, 7),
        efficientnet_lite0.FEATURES,
    ),
    "squeezenet": Network(torchvision.load_squeezenet, torchvision.squeezenet, torchvision.normalize, (13, 13), 512),
    "googlenet": Network(torchvision.load_googlenet, torchvision.googlenet, torchvision.normalize, (14, 14), 832),
    "vgg16": Network(torchvision.load_vgg16, torchvision.vgg16, torchvision.normalize, (14, 14), 512),
}


def load(name: str, weights: str) -> dict[str, Any]:
    """The parameters of a network.

    Args:
      name: of `NETWORKS`.
      weights: its file; "" for that of the package of efficientnet_lite0.

    Raises:
      InputError: no such network, or a file that is not its own.
    """
    if name not in NETWORKS:
        raise InputError(f"config.data.reader.backbone={name!r}: there are {', '.join(NETWORKS)}")
    if not weights and name != "efficientnet_lite0":
        raise InputError(f"config.data.reader.weights: give the file of the weights of {name}; see docs/images.md")
    return NETWORKS[name].load(weights or None)


def digest(name: str, weights: str) -> str:
    """The sha256 of a network's weights; "" where there are none."""
    path = Path(weights) if weights or name != "efficientnet_lite0" else efficientnet_lite0.weights_file()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@lru_cache(maxsize=1)
def extractor(name: str, weights: str) -> Callable[[UInt8[np.ndarray, "s s 3"]], Float[np.ndarray, "n d"]]:
    """A function from an RGB image to the float16 features of its locations, row by row.

    Arguments and errors are those of `load`.
    """
    params = jax.device_put(load(name, weights))
    network = NETWORKS[name]
    apply = jax.jit(lambda params, image: network.apply(params, network.normalize(image.astype(np.float32))[None])[0])

    def extract(image):
        features = np.asarray(apply(params, image)).reshape(-1, network.dim)
        return features.clip(-65504, 65504).astype(np.float16)

    return extract
