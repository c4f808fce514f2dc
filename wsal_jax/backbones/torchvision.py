"""VGG16, GoogLeNet and SqueezeNet 1.0 up to their maps of features, with torchvision's files of ImageNet weights.

They are read without PyTorch. Parameters are `{unit: {"kernel" [h w in out], "bias" [out]}}` with torchvision's names
of the convolutions; GoogLeNet's batch normalizations (eps 1e-3) are folded in. Images are RGB, `normalize` of 0..255.

Each is cut where class activation maps (Zhou et al., CVPR 2016) are made: VGG16 before its last pool, GoogLeNet after
inception4e, SqueezeNet after its last fire. CAM adds a 3 x 3 convolution of 1,024 channels there (but to SqueezeNet),
which is trained with the whole network; it is not part of these.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from wsal_jax.formats import arrays
from wsal_jax.types import InputError

Params = dict[str, dict[str, Any]]

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
EPS = 1e-3

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of the 3 x 3 convolutions; 0 is a pool."""
INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
}
"""Channels in, of branch 1, of branches 2 and 3 before and after, of branch 4."""
FIRES = {3: (96, 16, 64), 4: (128, 16, 64), 5: (128, 32, 128), 7: (256, 32, 128)} | {
    **{8: (256, 48, 192), 9: (384, 48, 192), 10: (384, 64, 256), 12: (512, 64, 256)}
}
"""Channels in, squeezed, and of each of the two that expand, by torchvision's index."""
CAFFE_MEAN = np.float32([123, 117, 104])
"""What the Caffe form of SqueezeNet subtracts of red, green and blue."""


def normalize(images: Any) -> Any:
    """Values in 0..255 as the networks want them."""
    return (images / np.float32(255) - MEAN) / STD


def vgg16_shapes() -> dict[str, tuple[int, ...]]:
    """The kernel of each unit, [h w in out]."""
    shapes, at, before = {}, 0, 3
    for channels in VGG:
        if channels:
            shapes[f"features.{at}"] = (3, 3, before, channels)
            before, at = channels, at + 1  # a ReLU
        at += 1
    return shapes


def googlenet_shapes() -> dict[str, tuple[int, ...]]:
    """The kernel of each unit, [h w in out]."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (7, 7, 3, 64), "conv2": (1, 1, 64, 64), "conv3": (3, 3, 64, 192)}
    for name, (before, one, two, two_out, three, three_out, four) in INCEPTION.items():
        of = f"inception{name}."
        shapes |= {f"{of}branch1": (1, 1, before, one), f"{of}branch4.1": (1, 1, before, four)}
        shapes |= {f"{of}branch2.0": (1, 1, before, two), f"{of}branch2.1": (3, 3, two, two_out)}
        shapes |= {f"{of}branch3.0": (1, 1, before, three), f"{of}branch3.1": (3, 3, three, three_out)}
    return shapes


def squeezenet_shapes() -> dict[str, tuple[int, ...]]:
    """The kernel of each unit, [h w in out]."""
    shapes: dict[str, tuple[int, ...]] = {"features.0": (7, 7, 3, 96)}
    for at, (before, squeezed, expanded) in FIRES.items():
        of = f"features.{at}."
        shapes[f"{of}squeeze"] = (1, 1, before, squeezed)
        shapes[f"{of}expand1x1"], shapes[f"{of}expand3x3"] = (1, 1, squeezed, expanded), (3, 3, squeezed, expanded)
    return shapes


def load_vgg16(path: str | Path) -> Params:
    """Parameters for `vgg16` of torchvision's file (vgg16-397923af.pth).

    Raises:
      InputError: the file is missing, damaged, or another network's.
    """
    return _load(path, vgg16_shapes(), {name: name for name in vgg16_shapes()}, "VGG16")


def load_squeezenet(path: str | Path) -> Params:
    """Parameters for `squeezenet` of torchvision's file (squeezenet1_0-b66bff10.pth), or of Caffe's weights as `.npz`.

    The Caffe form has arrays `conv1.w`, `fire2.conv1x1_1.w` (squeeze), `fire2.conv1x1_2.w`, `fire2.conv3x3_2.w` and so
    on, [out in h w], for images of blue, green, red less their mean; what `normalize` does otherwise goes into conv1.

    Raises:
      InputError: as of `load_vgg16`.
    """
    names, caffe = {name: name for name in squeezenet_shapes()}, str(path).endswith(".npz")
    if caffe:
        parts = {"squeeze": "conv1x1_1", "expand1x1": "conv1x1_2", "expand3x3": "conv3x3_2"}
        for fire, at in enumerate(FIRES, 2):
            names |= {f"features.{at}.{part}": f"fire{fire}.{caffe}" for part, caffe in parts.items()}
        names["features.0"] = "conv1"
    params = _load(path, squeezenet_shapes(), names, "SqueezeNet 1.0")
    if caffe:  # nothing is padded before this layer, so that this is exact
        kernel, bias = (np.float64(params["features.0"][part]) for part in ("kernel", "bias"))
        kernel = kernel[:, :, ::-1]
        bias = bias + (kernel * (255 * MEAN - CAFFE_MEAN)[:, None]).sum((0, 1, 2))
        kernel = kernel * (255 * STD)[:, None]
        params["features.0"] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return params


def load_googlenet(path: str | Path) -> Params:
    """Parameters for `googlenet` of torchvision's file (googlenet-1378be20.pth).

    Raises:
      InputError: as of `load_vgg16`.
    """
    return _load(path, googlenet_shapes(), {name: f"{name}.conv" for name in googlenet_shapes()}, "GoogLeNet")


def _load(path: str | Path, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str], network: str) -> Params:
    """The units by the names in the file; those with a batch normalization have it beside them, under `.bn`."""
    found, params = arrays.read(path), {}
    short = str(path).endswith(".npz")
    for unit, shape in shapes.items():
        try:
            kernel = np.asarray(found[names[unit] + (".w" if short else ".weight")])
            if names[unit].endswith(".conv"):
                norm = names[unit].removesuffix("conv") + "bn."
                scale, shift, mean, var = (
                    np.float64(found[norm + part]) for part in ("weight", "bias", "running_mean", "running_var")
                )
                scale = scale / np.sqrt(var + EPS)
                kernel, bias = kernel * scale[:, None, None, None], shift - mean * scale
            else:
                bias = np.asarray(found[names[unit] + (".b" if short else ".bias")])
            kernel = np.transpose(kernel, (2, 3, 1, 0))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"{path} is no file of {network} ({error}): give torchvision's") from error
        if kernel.shape != shape or bias.shape != shape[-1:]:
            raise InputError(f"{path}: {unit} has the shape {kernel.shape}, not {shape}: give a file of {network}")
        params[unit] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return params


def vgg16(params: Params, images: Float[Any, "b h w 3"]) -> Float[Any, "b y x 512"]:
    """The features before the last pool; 14 x 14 for 224 x 224."""
    x, at = images, 0
    for channels in VGG:
        x = _conv(x, params[f"features.{at}"], pad=1) if channels else _max_pool(x, 2, 2)
        at += 2 if channels else 1
    return x


def googlenet(params: Params, images: Float[Any, "b h w 3"]) -> Float[Any, "b y x 832"]:
    """The features after inception4e; 14 x 14 for 224 x 224."""
    x = images * (STD / 0.5) + (MEAN - 0.5) / 0.5  # as torchvision's `transform_input`
    x = _max_pool(_conv(x, params["conv1"], 2, 3), 3, 2)
    x = _max_pool(_conv(_conv(x, params["conv2"]), params["conv3"], pad=1), 3, 2)
    for name in INCEPTION:
        if name == "4a":
            x = _max_pool(x, 3, 2)
        unit = {part: params[f"inception{name}.branch{part}"] for part in ("1", "2.0", "2.1", "3.0", "3.1", "4.1")}
        branches = [_conv(x, unit["1"])]
        branches += [_conv(_conv(x, unit[f"{i}.0"]), unit[f"{i}.1"], pad=1) for i in (2, 3)]
        x = jnp.concatenate([*branches, _conv(_max_pool(x, 3, 1, 1), unit["4.1"])], -1)
    return x


def squeezenet(params: Params, images: Float[Any, "b h w 3"]) -> Float[Any, "b y x 512"]:
    """The features after the last fire; 13 x 13 for 224 x 224."""
    x = _max_pool(_conv(images, params["features.0"], 2), 3, 2)
    for at in FIRES:
        squeezed = _conv(x, params[f"features.{at}.squeeze"])
        expanded = (_conv(squeezed, params[f"features.{at}.expand{side}x{side}"], pad=side // 2) for side in (1, 3))
        x = jnp.concatenate([*expanded], -1)
        if at in (5, 10):
            x = _max_pool(x, 3, 2)
    return x


def _conv(x: Float[Any, "b h w c"], unit: dict[str, Any], stride: int = 1, pad: int = 0) -> Float[Any, "b y x d"]:
    """Convolution and ReLU."""
    y = lax.conv_general_dilated(
        x,
        unit["kernel"],
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return jax.nn.relu(y + unit["bias"])


def _max_pool(x: Float[Any, "b h w c"], side: int, stride: int, pad: int = 0) -> Float[Any, "b y x c"]:
    """The last window may end outside (torch's `ceil_mode`)."""
    counts = [-(-(n + 2 * pad - side) // stride) + 1 for n in x.shape[1:3]]
    pads = [(pad, max(0, (count - 1) * stride + side - n - pad)) for n, count in zip(x.shape[1:3], counts)]
    window, steps = (1, side, side, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, [(0, 0), *pads, (0, 0)])
