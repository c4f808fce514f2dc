"""I3D against loops in NumPy, against code in torch where there is one, and against what is often done wrong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsal_jax.backbones import i3d, i3d_weights
from wsal_jax.types import InputError


def random_weights(stream, seed=0, dtype=np.float32):
    """Of the size that keeps features of all layers about as large; variances are small, as in the first layers."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for unit, shape in i3d.shapes(stream).items():
        fan_in = np.prod(shape[:-1])
        arrays[f"params/{unit}/conv/kernel"] = rng.normal(size=shape) * np.sqrt(0.18 / fan_in)
        arrays[f"params/{unit}/bn/bias"] = 0.1 * rng.normal(size=shape[-1])
        arrays[f"batch_stats/{unit}/bn/mean"] = 0.03 * rng.normal(size=shape[-1])
        arrays[f"batch_stats/{unit}/bn/var"] = 0.09 * rng.uniform(0.5, 1.5, shape[-1])
    arrays["params/Logits/kernel"] = rng.normal(size=(1024, 5)) / 32
    arrays["params/Logits/bias"] = rng.normal(size=5)
    header = {"stream": stream, "classes": 5, "eps": 1e-3}
    return i3d.Weights({name: x.astype(dtype) for name, x in arrays.items()}, header)


def smooth_clip(frames, height, width, channels, seed=0):
    """Something like a video: a few waves that move, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    waves = [
        rng.normal() * np.sin(2 * np.pi * (f * t + g * y + h * x + p))
        for f, g, h, p in rng.uniform(-4, 4, (4 * channels, 4))
    ]
    clip = np.stack([sum(waves[c::channels]) for c in range(channels)], -1)
    return (clip / np.abs(clip).max())[None]


# Parts, by loops


def slow_conv(x, kernel, stride):
    """SAME by its definition: the output has ceil(n / s), and of the zeros floor(half) come in front."""
    sides, out = kernel.shape[:3], [-(-n // stride) for n in x.shape[:3]]
    front = [max((o - 1) * stride + k - n, 0) // 2 for o, k, n in zip(out, sides, x.shape)]
    y = np.zeros((*out, kernel.shape[-1]))
    for to in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, sides)):
            at = [stride * o + k - f for o, k, f in zip(to, tap, front)]
            if all(0 <= a < n for a, n in zip(at, x.shape)):
                y[to] += x[tuple(at)] @ kernel[tap]
    return y


def slow_pool(x, window, stride):
    out = [-(-n // s) for n, s in zip(x.shape, stride)]
    front = [max((o - 1) * s + k - n, 0) // 2 for o, s, k, n in zip(out, stride, window, x.shape)]
    y = np.full((*out, x.shape[-1]), -np.inf)
    for to in itertools.product(*map(range, out)):
        begin = [s * o - f for s, o, f in zip(stride, to, front)]
        part = x[tuple(slice(max(b, 0), b + k) for b, k in zip(begin, window))]
        y[to] = part.max((0, 1, 2))
    return y


@pytest.mark.parametrize("size", [(4, 8, 7), (3, 7, 10)])
def test_the_stem_is_a_same_convolution(size):
    """Even and odd sizes: even ones get 2 zeros in front and 3 behind."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*size, 2)), rng.normal(size=(7, 7, 7, 2, 3))
    unit = {"kernel": kernel, "bias": np.zeros(3)}
    expected = np.maximum(slow_conv(x, kernel, 2), 0)
    with jax.enable_x64(True):
        for params in ({"Conv3d_1a_7x7": unit}, i3d.for_cpu({"Conv3d_1a_7x7": unit})):
            found = i3d._unit(params["Conv3d_1a_7x7"], jnp.asarray(x), stride=2)
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 4, 6), (3, 5, 2)])
def test_the_fast_convolution_is_a_same_convolution(size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*size, 50)), rng.normal(size=(3, 3, 3, 50, 61))
    unit = {"kernel": kernel, "bias": np.zeros(61)}
    fast = i3d.for_cpu({"Mixed_3b/x": unit})["Mixed_3b/x"]
    assert len(fast["kernel"]) == 16
    expected = np.maximum(slow_conv(x, kernel, 1), 0)
    with jax.enable_x64(True):
        np.testing.assert_allclose(i3d._unit(unit, jnp.asarray(x)), expected, atol=1e-11)
        np.testing.assert_allclose(i3d._unit(fast, jnp.asarray(x)), expected, atol=1e-11)


@pytest.mark.parametrize(
    ("window", "stride"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))],
)
@pytest.mark.parametrize("size", [(4, 5, 8), (3, 6, 7)])
def test_max_pools_are_same_pools(window, stride, size):
    """With negative numbers, which padding by zeros would hide."""
    x = np.random.default_rng(0).normal(size=(*size, 2)) - 3
    found = i3d.max_pool(jnp.asarray(x, jnp.float32), window, stride)
    np.testing.assert_allclose(found, slow_pool(x, window, stride), rtol=1e-6)


def test_a_mixed_block_is_four_branches_on_one_input():
    rng = np.random.default_rng(0)
    sizes = dict(zip(i3d.BRANCHES, ((1, 6, 4), (1, 6, 3), (3, 3, 5), (1, 6, 2), (3, 2, 3), (1, 6, 2))))
    units = [{"kernel": rng.normal(size=(k, k, k, c, d)), "bias": rng.normal(size=d)} for k, c, d in sizes.values()]
    x = rng.normal(size=(2, 3, 4, 6))

    def unit(i, x):
        return np.maximum(slow_conv(x, units[i]["kernel"], 1) + units[i]["bias"], 0)

    pooled = slow_pool(x, (3, 3, 3), (1, 1, 1))
    expected = [unit(0, x), unit(2, unit(1, x)), unit(4, unit(3, x)), unit(5, pooled)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(i3d._mixed(units, jnp.asarray(x)), np.concatenate(expected, -1), atol=1e-11)


def test_too_few_frames_and_other_sizes_are_refused():
    for shape, message in (
        ((1, 8, 224, 224, 3), "at least 9 frames.*not 8"),
        ((1, 16, 256, 224, 3), "224 x 224.*256 x"),
    ):
        with pytest.raises(InputError, match=message):
            i3d.apply({}, np.zeros(shape, np.float32))


# The whole network, on small frames


SMALL = jax.jit(lambda params, clips: i3d.apply(params, clips, pool=1))


def test_what_is_often_done_wrong_changes_the_feature(monkeypatch):
    """By more than 1 % of its norm: channels in OpenCV's order, values in [0, 1], eps of torch, symmetric padding."""
    weights, clip = random_weights("rgb"), smooth_clip(9, 32, 32, 3).astype(np.float32)
    params = i3d.fold(weights)
    batch = np.concatenate([clip, clip[..., ::-1], (clip + 1) / 2])
    right, *wrong = np.asarray(SMALL(params, batch))
    assert right.shape == (1024,) and (right >= 0).all() and right.std() > 1e-2
    wrong.append(np.asarray(SMALL(i3d.fold(weights._replace(header=weights.header | {"eps": 1e-5})), batch))[0])
    monkeypatch.setattr(i3d, "same_padding", lambda size, kernel, stride: (kernel // 2, kernel // 2))
    stem = i3d.for_cpu({"Conv3d_1a_7x7": params["Conv3d_1a_7x7"]})  # its padding, and that of the pools, is our own
    wrong.append(np.asarray(jax.jit(lambda p, x: i3d.apply(p, x, pool=1))(params | stem, clip))[0])
    for feature in wrong:
        assert np.linalg.norm(feature - right) > 0.01 * np.linalg.norm(right)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_feature_is_the_mean_of_pools_of_two_steps(monkeypatch, prepared):
    """And the logits are the mean of those of each pool, as in the authors' code."""
    rng = np.random.default_rng(0)
    maps = rng.random((2, 3, 7, 7, 1024))
    kernel, bias = rng.normal(size=(1024, 4)), rng.normal(size=4)
    stem = {"kernel": np.zeros((2, 2) if prepared else (7, 7, 7, 3, 2))}
    params = {"Conv3d_1a_7x7": stem, "Logits": {"kernel": kernel, "bias": bias}}
    with jax.enable_x64(True):
        monkeypatch.setattr(i3d, "_trunk", lambda params, clip: jnp.asarray(maps)[clip[0, 0, 0, 0].astype(int)])
        clips = jnp.asarray(np.arange(2.0)[:, None, None, None, None] * np.ones((1, 24, 224, 224, 1)))
        pools = [[maps[b, t : t + 2].mean((0, 1, 2)) for t in range(2)] for b in range(2)]
        np.testing.assert_allclose(i3d.apply(params, clips), np.mean(pools, 1), rtol=1e-12)
        np.testing.assert_allclose(i3d.apply(params, clips, logits=True), np.mean(pools @ kernel + bias, 1), rtol=1e-10)


# torch, where it is installed


def torch_network(torch, channels, style):
    """Modules named as in piergiaj/pytorch-i3d or, style "hassony2", as in hassony2/kinetics_i3d_pytorch."""
    nn = torch.nn
    hassony2 = style == "hassony2"

    def padded(x, window, stride):
        pads = []
        for n, k, s in reversed(list(zip(x.shape[2:], window, stride))):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return nn.functional.pad(x, pads)

    class Unit(nn.Module):
        def __init__(self, before, after, side, stride=1):
            super().__init__()
            self.conv3d = nn.Conv3d(before, after, side, stride, bias=False)
            norm = nn.BatchNorm3d(after, eps=1e-3, momentum=1.0)
            self.add_module("batch3d" if hassony2 else "bn", norm)
            self.norm = lambda x: norm(x)

        def forward(self, x):
            x = padded(x, self.conv3d.kernel_size, self.conv3d.stride)
            return nn.functional.relu(self.norm(self.conv3d(x)))

    class Pool(nn.Module):
        def __init__(self, window, stride):
            super().__init__()
            self.window, self.stride = window, stride

        def forward(self, x):
            return nn.functional.max_pool3d(padded(x, self.window, self.stride), self.window, self.stride)

    class Mixed(nn.Module):
        def __init__(self, before, sizes):
            super().__init__()
            a, b, c, d, e, f = sizes
            units = [Unit(before, a, 1), Unit(before, b, 1), Unit(b, c, 3), Unit(before, d, 1), Unit(d, e, 3)]
            units.append(Unit(before, f, 1))
            pool = Pool((3, 3, 3), (1, 1, 1))
            if hassony2:
                self.branch_0 = units[0]
                self.branch_1, self.branch_2 = nn.Sequential(*units[1:3]), nn.Sequential(*units[3:5])
                self.branch_3 = nn.Sequential(pool, units[5])
            else:
                for name, unit in zip(("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), units):
                    self.add_module(name, unit)
            self.branches = lambda x: [
                units[0](x), units[2](units[1](x)), units[4](units[3](x)), units[5](pool(x))
            ]  # fmt: skip

        def forward(self, x):
            return torch.cat(self.branches(x), 1)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv3d = nn.Conv3d(1024, 7, 1)

    steps = [("Conv3d_1a_7x7", Unit(channels, 64, 7, 2)), (None, Pool((1, 3, 3), (1, 2, 2)))]
    steps += [
        ("Conv3d_2b_1x1", Unit(64, 64, 1)),
        ("Conv3d_2c_3x3", Unit(64, 192, 3)),
        (None, Pool((1, 3, 3), (1, 2, 2))),
    ]
    before = 192
    for name, sizes in {
        "3b": (64, 96, 128, 16, 32, 32),
        "3c": (128, 128, 192, 32, 96, 64),
        "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64),
        "4d": (128, 128, 256, 24, 64, 64),
        "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128),
        "5b": (256, 160, 320, 32, 128, 128),
        "5c": (384, 192, 384, 48, 128, 128),
    }.items():
        if name in ("4b", "5b"):
            steps.append((None, Pool((3,) * 3, (2,) * 3) if name == "4b" else Pool((2,) * 3, (2,) * 3)))
        steps.append((f"Mixed_{name}", Mixed(before, sizes)))
        before = sizes[0] + sizes[2] + sizes[4] + sizes[5]

    class I3D(nn.Module):
        def __init__(self):
            super().__init__()
            for name, step in steps:
                if name:
                    self.add_module(name[0].lower() + name[1:] if hassony2 else name, step)
            self.add_module("conv3d_0c_1x1" if hassony2 else "logits", Logits())

        def forward(self, x, pool):
            for _, step in steps:
                x = step(x)
            return nn.functional.avg_pool3d(x, (2, pool, pool), 1)[:, :, :, 0, 0].mean(2)

    return I3D()


@pytest.mark.parametrize(
    ("frames", "channels", "style", "fast"),
    [
        (9, 2, "piergiaj", False),
        (9, 3, "hassony2", False),
        (16, 3, "piergiaj", True),
        (21, 2, "hassony2", True),
        (24, 3, "hassony2", False),
    ],
)
def test_features_are_those_of_torch(tmp_path, frames, channels, style, fast):
    """In float64 to 1e-10 and in float32 to 1e-4 of the largest, from files that torch writes. Frames are small."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    clip = smooth_clip(frames, 64, 50, channels)
    network = torch_network(torch, channels, style).double()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    x = torch.from_numpy(clip).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        several = np.concatenate([smooth_clip(frames, 64, 50, channels, seed) for seed in range(12)])
        network.train()(torch.from_numpy(several).permute(0, 4, 1, 2, 3), 2)  # sets the moving statistics
        expected = network.eval()(x, 2).numpy()
    assert 0.01 < expected.std() < 100
    torch.save(network.float().state_dict(), tmp_path / "float32.pt")
    with torch.no_grad():
        expected = network.double()(x, 2).numpy()
    torch.save(network.state_dict(), tmp_path / "float64.pt")
    stream = {2: "flow", 3: "rgb"}[channels]
    for dtype, bound in (("float64", 1e-10), ("float32", 1e-4)):
        with jax.enable_x64(dtype == "float64"):
            params = i3d.load(tmp_path / f"{dtype}.pt", stream)
            if not fast:
                params = i3d.fold(i3d_weights.read(tmp_path / f"{dtype}.pt", stream))
            found = jax.jit(lambda p, x: i3d.apply(p, x, pool=2))(params, clip.astype(dtype))
        assert found.dtype == dtype
        assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
