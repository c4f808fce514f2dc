"""I3D (Carreira and Zisserman, CVPR 2017): Inception-v1 with its kernels inflated in time, for RGB and for flow.

As in the authors' code (github.com/google-deepmind/kinetics-i3d): a *unit* is a convolution without bias and with
TensorFlow's SAME padding, a batch normalization without scale, and a ReLU. `fold` joins the first two, so parameters
here are `{unit: {"kernel": [t h w in out], "bias": [out]}}` under the authors' names of the units.

The feature is the average pool of Mixed_5c, 1,024 numbers >= 0, mean over the time steps that remain. Frames are
224 x 224 with values in [-1, 1]: RGB in this order, or flow x, y cut at +-20 pixels (`2 q / 255 - 1` of 8 bits).

XLA's convolutions are slow on CPUs. `for_cpu` brings the kernels of the large ones into a form for matrix products,
which takes a third of the time, and `apply` computes what the form of each kernel asks for.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from wsal_jax.types import InputError

CHANNELS = {"rgb": 3, "flow": 2}
FEATURES = 1024
MIN_FRAMES = 9
"""Fewer leave one time step, and the average pool needs two."""
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of the units of a block, in the order of `BRANCHES`."""
BRANCHES = (
    "Branch_0/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0b_3x3",
    "Branch_2/Conv3d_0a_1x1",
    "Branch_2/Conv3d_0b_3x3",
    "Branch_3/Conv3d_0b_1x1",
)

Params = dict[str, dict[str, Any]]


def names(block: str) -> list[str]:
    """The units of a Mixed block, in the order of `BRANCHES`, as the authors call them."""
    whole = [f"{block}/{branch}" for branch in BRANCHES]
    if block == "Mixed_5b":
        whole[4] = "Mixed_5b/Branch_2/Conv3d_0a_3x3"  # so in the published files, unlike in every other block
    return whole


def shapes(stream: str) -> dict[str, tuple[int, int, int, int, int]]:
    """The kernel's shape [t h w in out] of each of the 57 units."""
    found = {
        "Conv3d_1a_7x7": (7, 7, 7, CHANNELS[stream], 64),
        "Conv3d_2b_1x1": (1, 1, 1, 64, 64),
        "Conv3d_2c_3x3": (3, 3, 3, 64, 192),
    }
    width = 192
    for block, sizes in MIXED.items():
        for name, before, size in zip(names(block), (width, width, sizes[1], width, sizes[3], width), sizes):
            side = 3 if name.endswith("3x3") else 1
            found[name] = (side, side, side, before, size)
        width = sizes[0] + sizes[2] + sizes[4] + sizes[5]
    return found


class Weights(NamedTuple):
    """What a file holds: arrays as Flax names them, `params/<unit>/conv/kernel`, `params/<unit>/bn/bias` (`scale` only
    where it is not 1), `batch_stats/<unit>/bn/mean` and `var`, `params/Logits/kernel` [in classes] and `bias`."""

    arrays: dict[str, np.ndarray]
    header: dict[str, str | int | float]
    """stream, classes (0 without logits), eps, format, source, sha256 of the source."""


def fold(weights: Weights) -> Params:
    """Parameters for `apply`: each batch normalization goes into the kernel and the bias of its convolution."""
    params = {}
    for name in shapes(weights.header["stream"]):
        kernel = weights.arrays[f"params/{name}/conv/kernel"]
        mean, var = (np.float64(weights.arrays[f"batch_stats/{name}/bn/{part}"]) for part in ("mean", "var"))
        scale = weights.arrays.get(f"params/{name}/bn/scale", 1) / np.sqrt(var + weights.header["eps"])
        bias = weights.arrays[f"params/{name}/bn/bias"] - mean * scale
        params[name] = {"kernel": (kernel * scale).astype(kernel.dtype), "bias": bias.astype(kernel.dtype)}
    if weights.header["classes"]:
        params["Logits"] = {part: weights.arrays[f"params/Logits/{part}"] for part in ("kernel", "bias")}
    return params


def for_cpu(params: Params) -> Params:
    """The same parameters with the kernels of the large convolutions as `_conv_7x7x7` and `_conv_3x3x3` want them.

    Small ones (few channels, or a map of 7 x 7) gain nothing, and each takes a second to compile.
    """
    prepared = dict(params)
    for name, unit in params.items():
        kernel = unit["kernel"]
        if name == "Conv3d_1a_7x7":
            prepared[name] = unit | {"kernel": kernel.transpose(1, 2, 0, 3, 4).reshape(-1, kernel.shape[-1])}
        elif kernel.shape[0] == 3 and kernel.shape[-2] * kernel.shape[-1] > 3000 and not name.startswith("Mixed_5"):
            rows = _points(*(kernel[:, i] for i in range(3)))
            cells = [cell for row in rows for cell in _points(*(row[:, j] for j in range(3)))]
            prepared[name] = unit | {"kernel": [cell.reshape(-1, cell.shape[-1]) for cell in cells]}
    return prepared


def _points(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def load(path: str | os.PathLike, stream: str, eps: float | None = None) -> Params:
    """Parameters for `apply` on this machine, from any file that `i3d_weights.read` reads.

    Raises:
      InputError: see `i3d_weights.read`.
    """
    from wsal_jax.backbones import i3d_weights

    params = fold(i3d_weights.read(path, stream, eps))
    return for_cpu(params) if jax.default_backend() == "cpu" else params


def apply(params: Params, clips: Float[Any, "b t h w c"], *, logits: bool = False, pool: int = 7) -> Float[Any, "b k"]:
    """The feature of each clip, [b 1024]; or with `logits` its class logits, as the authors' code averages them.

    Args:
      params: of `fold`, `for_cpu` or `load`. Computations have the dtype that they and clips have together.
      clips: at least 9 frames; see the module for what they hold.
      pool: side of the last feature map, 7 for 193 to 224 pixels; other sizes are for tests.

    Raises:
      InputError: too few frames, or frames of a size that does not fit.
    """
    frames, *size = clips.shape[1:4]
    if frames < MIN_FRAMES:
        raise InputError(f"I3D needs at least {MIN_FRAMES} frames in a clip, not {frames}")
    if any(-(-n // 32) != pool for n in size):
        raise InputError(f"I3D takes frames of {32 * pool} x {32 * pool} pixels, not {size[0]} x {size[1]}: crop them")

    def one(clip: Float[Any, "t h w c"]) -> Float[Any, " k"]:
        x = _trunk(params, clip).mean((1, 2))
        feature = ((x[1:] + x[:-1]) / 2).mean(0)  # a window of 2 time steps, then all that there are
        if not logits:
            return feature
        return _dot(feature, params["Logits"]["kernel"]) + params["Logits"]["bias"]

    # prepared kernels are for one core, where clip by clip takes less memory and no more time
    return lax.map(one, clips) if params["Conv3d_1a_7x7"]["kernel"].ndim == 2 else jax.vmap(one)(clips)


def _dot(x: Any, kernel: Any) -> Array:
    return jnp.dot(x, kernel, precision=lax.Precision.HIGHEST)  # without it TPUs and GPUs round to fewer bits


def _trunk(params: Params, x: Float[Any, "t h w c"]) -> Float[Any, "t2 h2 w2 d"]:
    """Mixed_5c of one clip."""
    x = _unit(params["Conv3d_1a_7x7"], x, stride=2)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    x = _unit(params["Conv3d_2b_1x1"], x)
    x = _unit(params["Conv3d_2c_3x3"], x)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    for block in MIXED:
        if block == "Mixed_4b":
            x = max_pool(x, (3, 3, 3), (2, 2, 2))
        if block == "Mixed_5b":
            x = max_pool(x, (2, 2, 2), (2, 2, 2))
        x = _mixed([params[name] for name in names(block)], x)
    return x


def _mixed(units: list, x: Float[Any, "t h w c"]) -> Float[Any, "t h w d"]:
    """Four branches on one input. The three products that read it are one, which is faster than three narrow ones."""
    first = [units[i] for i in (0, 1, 3)]
    joined = {
        "kernel": jnp.concatenate([unit["kernel"] for unit in first], -1),
        "bias": jnp.concatenate([unit["bias"] for unit in first]),
    }
    sizes = np.cumsum([len(unit["bias"]) for unit in first])[:-1]
    branch_0, branch_1, branch_2 = jnp.split(_unit(joined, x), sizes, axis=-1)
    branch_1 = _unit(units[2], branch_1)
    branch_2 = _unit(units[4], branch_2)
    branch_3 = _unit(units[5], max_pool(x, (3, 3, 3), (1, 1, 1)))
    return jnp.concatenate([branch_0, branch_1, branch_2, branch_3], -1)


def _unit(unit: dict, x: Float[Any, "t h w c"], stride: int = 1) -> Float[Any, "t2 h2 w2 d"]:
    kernel = unit["kernel"]
    if isinstance(kernel, list):
        x = _conv_3x3x3(x, kernel)
    elif kernel.ndim == 2:
        x = _conv_7x7x7(x, kernel)
    elif kernel.shape[0] == 1:
        x = _dot(x, kernel[0, 0, 0])
    else:
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        x = lax.conv_general_dilated(
            x[None], kernel, (stride,) * 3, "SAME", dimension_numbers=numbers, precision=lax.Precision.HIGHEST
        )[0]
    return jax.nn.relu(x + unit["bias"])


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding in front and behind: the output has ceil(size / stride), and odd ones go behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def max_pool(
    x: Float[Any, "t h w c"], window: tuple[int, int, int], stride: tuple[int, int, int]
) -> Float[Any, "t2 h2 w2 c"]:
    """SAME max pool, axis by axis as maxima of slices, which XLA computes faster on CPUs than its reduce_window."""
    for axis, (k, s) in enumerate(zip(window, stride)):
        if k == 1:
            continue
        pad = [(0, 0)] * 4
        pad[axis] = same_padding(x.shape[axis], k, s)
        out = -(-x.shape[axis] // s)
        x = jnp.pad(x, pad, constant_values=-jnp.inf)
        parts = [lax.slice_in_dim(x, i, i + (out - 1) * s + 1, s, axis) for i in range(k)]
        x = functools.reduce(jnp.maximum, parts)
    return x


def _conv_3x3x3(x: Float[Any, "t h w c"], kernel: list) -> Float[Any, "t h w d"]:
    """SAME convolution of stride 1 as matrix products, frame by frame, with Winograd's F(2 x 2, 3 x 3).

    Each 2 x 2 cell of the output takes 16 products in height and width, not 36 (Lavin and Gray, CVPR 2016, section
    4.1); the three taps in time are one longer product. In float32 its rounding is that of the plain sum.
    """
    t, h, w, c = x.shape
    rows, columns, d = -(-h // 2), -(-w // 2), kernel[0].shape[-1]
    x = jnp.pad(x, ((1, 1), (1, 2 * rows - h + 1), (1, 2 * columns - w + 1), (0, 0)))

    def before(f, n, axis):
        f = [lax.slice_in_dim(f, i, i + 2 * n - 1, 2, axis) for i in range(4)]
        return f[0] - f[2], f[1] + f[2], f[2] - f[1], f[1] - f[3]

    def after(f):
        return f[0] + f[1] + f[2], f[1] - f[2] - f[3]

    def frame(i):
        three = jnp.concatenate(list(lax.dynamic_slice_in_dim(x, i, 3)), -1)
        cells = [cell for row in before(three, rows, 0) for cell in before(row, columns, 1)]
        cells = [_dot(cell.reshape(rows * columns, 3 * c), k) for cell, k in zip(cells, kernel)]
        sides = [after(cells[4 * i : 4 * i + 4]) for i in range(4)]
        left, right = (after([side[j] for side in sides]) for j in range(2))
        pairs = [jnp.stack([a.reshape(rows, columns, d), b.reshape(rows, columns, d)], 2) for a, b in zip(left, right)]
        return jnp.stack(pairs, 1).reshape(2 * rows, 2 * columns, d)

    return lax.map(frame, jnp.arange(t))[:, :h, :w]


def _conv_7x7x7(x: Float[Any, "t h w c"], matrix: Float[Any, "k d"]) -> Float[Any, "t2 h2 w2 d"]:
    """SAME convolution of stride 2: a few rows of a frame at a time, so that their patches stay in the cache."""
    t, h, w = (-(-n // 2) for n in x.shape[:3])
    x = jnp.pad(x, [same_padding(n, 7, 2) for n in x.shape[:3]] + [(0, 0)])
    size = next(n for n in (4, 2, 1) if h % n == 0)

    def strip(i):
        start = (2 * (i // (h // size)), 2 * size * (i % (h // size)), 0, 0)
        part = lax.dynamic_slice(x, start, (7, 2 * size + 5, *x.shape[2:]))
        part = part.transpose(1, 2, 0, 3).reshape(2 * size + 5, x.shape[2], -1)
        part = jnp.concatenate([part[:, j : j + 2 * w - 1 : 2] for j in range(7)], -1)
        part = jnp.concatenate([part[i : i + 2 * size - 1 : 2] for i in range(7)], -1)
        return _dot(part.reshape(size * w, -1), matrix).reshape(size, w, -1)

    return lax.map(strip, jnp.arange(t * (h // size))).reshape(t, h, w, -1)
