"""VGG16, GoogLeNet and SqueezeNet against plain NumPy networks: files with torchvision's names and random numbers."""

import jax
import numpy as np
import pytest

from tests.image_files import caffe_squeezenet, random_units
from tests.test_import_checkpoint import write_torch
from wsal_jax.backbones import torchvision as nets
from wsal_jax.types import InputError


def conv(x, kernel, bias, stride=1, pad=0):
    """[h w c] with a kernel [out in h w], then ReLU."""
    side = kernel.shape[2]
    x = np.pad(x, [(pad, pad), (pad, pad), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (0, 1))[::stride, ::stride]
    return np.maximum(np.einsum("yxchw,ochw->yxo", windows, kernel, optimize=True) + bias, 0)


def pool(x, side, stride, pad=0):
    """Maximum; the last window may end outside, as torch's ceil_mode has it."""
    counts = [int(np.ceil((n + 2 * pad - side) / stride)) + 1 for n in x.shape[:2]]
    out = np.zeros((*counts, x.shape[2]))
    for i in range(counts[0]):
        for j in range(counts[1]):
            y, z = i * stride - pad, j * stride - pad
            out[i, j] = x[max(y, 0) : y + side, max(z, 0) : z + side].max((0, 1))
    return out


def of_file(found, name):
    return found[f"{name}.weight"], found[f"{name}.bias"]


def plain_vgg16(found, x):
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        for at in block:
            x = conv(x, *of_file(found, f"features.{at}"), pad=1)
        if block[0] < 24:
            x = pool(x, 2, 2)
    return x


def plain_squeezenet(found, x):
    x = pool(conv(x, *of_file(found, "features.0"), stride=2), 3, 2)
    for at in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12):
        if at in (6, 11):
            x = pool(x, 3, 2)
            continue
        squeezed = conv(x, *of_file(found, f"features.{at}.squeeze"))
        one = conv(squeezed, *of_file(found, f"features.{at}.expand1x1"))
        x = np.concatenate([one, conv(squeezed, *of_file(found, f"features.{at}.expand3x3"), pad=1)], -1)
    return x


def plain_googlenet(found, x):
    def unit(x, name, stride=1, pad=0):
        scale, shift, mean, var = (
            found[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(var + 0.001)
        return conv(x, found[f"{name}.conv.weight"] * factor[:, None, None, None], shift - mean * factor, stride, pad)

    x = np.stack([x[..., c] * (s / 0.5) + (m - 0.5) / 0.5 for c, (m, s) in enumerate(zip(nets.MEAN, nets.STD))], -1)
    x = pool(unit(x, "conv1", 2, 3), 3, 2)
    x = pool(unit(unit(x, "conv2"), "conv3", pad=1), 3, 2)
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e"):
        x = pool(x, 3, 2) if name == "4a" else x
        of = f"inception{name}.branch"
        second = unit(unit(x, f"{of}2.0"), f"{of}2.1", pad=1)
        third = unit(unit(x, f"{of}3.0"), f"{of}3.1", pad=1)
        x = np.concatenate([unit(x, f"{of}1"), second, third, unit(pool(x, 3, 1, 1), f"{of}4.1")], -1)
    return x


@pytest.mark.parametrize(
    ("name", "side", "last"),
    [("vgg16", 32, (2, 2, 512)), ("googlenet", 50, (3, 3, 832)), ("squeezenet", 61, (3, 3, 512))],
)
def test_the_map_is_that_of_a_plain_network(name, side, last, tmp_path):
    found = random_units(getattr(nets, f"{name}_shapes")(), norms=name == "googlenet")
    params = getattr(nets, f"load_{name}")(write_torch(tmp_path / "x.pth", found))
    image = np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)
    ours = jax.jit(getattr(nets, name))(params, image[None])[0]
    expected = globals()[f"plain_{name}"](found, image)
    assert expected.shape == last and expected.std() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * expected.std())


def test_caffes_squeezenet_sees_blue_green_red_less_their_mean(tmp_path):
    """What conv1 of the converted file makes of a normalized image is what Caffe's makes of its own."""
    path = tmp_path / "x.npz"
    found = caffe_squeezenet(path)
    params = nets.load_squeezenet(path)
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.float32)
    renamed = {"features.0.weight": found["conv1.w"], "features.0.bias": found["conv1.b"]}
    for fire, at in enumerate((3, 4, 5, 7, 8, 9, 10, 12), 2):
        for ours, theirs in (("squeeze", "conv1x1_1"), ("expand1x1", "conv1x1_2"), ("expand3x3", "conv3x3_2")):
            renamed[f"features.{at}.{ours}.weight"] = found[f"fire{fire}.{theirs}.w"]
            renamed[f"features.{at}.{ours}.bias"] = found[f"fire{fire}.{theirs}.b"]
    expected = plain_squeezenet(renamed, image[..., ::-1] - np.float32([104, 117, 123]))
    ours = jax.jit(nets.squeezenet)(params, nets.normalize(image)[None])[0]
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-3 * expected.std())


def test_files_of_other_networks_are_refused(tmp_path):
    vgg = {f"features.{i}.{part}": np.zeros(3, np.float32) for i in (0, 2) for part in ("weight", "bias")}
    with pytest.raises(InputError, match=r"x\.pth is no file of GoogLeNet .*conv1\.conv\.weight"):
        nets.load_googlenet(write_torch(tmp_path / "x.pth", vgg))
    wrong = random_units({"features.0": (3, 3, 3, 64)})
    with pytest.raises(InputError, match=r"y\.pth: features\.0 has the shape \(3, 3, 3, 64\), not \(7, 7, 3, 96\)"):
        nets.load_squeezenet(write_torch(tmp_path / "y.pth", wrong))
    with pytest.raises(InputError, match=r"z\.pth"):
        nets.load_vgg16(tmp_path / "z.pth")
