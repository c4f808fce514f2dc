"""Published weights of I3D: names and shapes, the three kinds of file, what is refused. Files are made by hand.

The network is made narrow for files, for TensorFlow's checksums take a second for each 10 MB.
"""

import json

import numpy as np
import pytest

from tests.test_import_checkpoint import write_bundle, write_torch
from wsal_jax import import_checkpoint
from wsal_jax.backbones import i3d, i3d_weights
from wsal_jax.types import InputError

PUBLISHED = """\
Conv3d_1a_7x7 7 3 64
Conv3d_2b_1x1 1 64 64
Conv3d_2c_3x3 3 64 192
Mixed_3b/Branch_0/Conv3d_0a_1x1 1 192 64
Mixed_3b/Branch_1/Conv3d_0a_1x1 1 192 96
Mixed_3b/Branch_1/Conv3d_0b_3x3 3 96 128
Mixed_3b/Branch_2/Conv3d_0a_1x1 1 192 16
Mixed_3b/Branch_2/Conv3d_0b_3x3 3 16 32
Mixed_3b/Branch_3/Conv3d_0b_1x1 1 192 32
Mixed_3c/Branch_0/Conv3d_0a_1x1 1 256 128
Mixed_3c/Branch_1/Conv3d_0a_1x1 1 256 128
Mixed_3c/Branch_1/Conv3d_0b_3x3 3 128 192
Mixed_3c/Branch_2/Conv3d_0a_1x1 1 256 32
Mixed_3c/Branch_2/Conv3d_0b_3x3 3 32 96
Mixed_3c/Branch_3/Conv3d_0b_1x1 1 256 64
Mixed_4b/Branch_0/Conv3d_0a_1x1 1 480 192
Mixed_4b/Branch_1/Conv3d_0a_1x1 1 480 96
Mixed_4b/Branch_1/Conv3d_0b_3x3 3 96 208
Mixed_4b/Branch_2/Conv3d_0a_1x1 1 480 16
Mixed_4b/Branch_2/Conv3d_0b_3x3 3 16 48
Mixed_4b/Branch_3/Conv3d_0b_1x1 1 480 64
Mixed_4c/Branch_0/Conv3d_0a_1x1 1 512 160
Mixed_4c/Branch_1/Conv3d_0a_1x1 1 512 112
Mixed_4c/Branch_1/Conv3d_0b_3x3 3 112 224
Mixed_4c/Branch_2/Conv3d_0a_1x1 1 512 24
Mixed_4c/Branch_2/Conv3d_0b_3x3 3 24 64
Mixed_4c/Branch_3/Conv3d_0b_1x1 1 512 64
Mixed_4d/Branch_0/Conv3d_0a_1x1 1 512 128
Mixed_4d/Branch_1/Conv3d_0a_1x1 1 512 128
Mixed_4d/Branch_1/Conv3d_0b_3x3 3 128 256
Mixed_4d/Branch_2/Conv3d_0a_1x1 1 512 24
Mixed_4d/Branch_2/Conv3d_0b_3x3 3 24 64
Mixed_4d/Branch_3/Conv3d_0b_1x1 1 512 64
Mixed_4e/Branch_0/Conv3d_0a_1x1 1 512 112
Mixed_4e/Branch_1/Conv3d_0a_1x1 1 512 144
Mixed_4e/Branch_1/Conv3d_0b_3x3 3 144 288
Mixed_4e/Branch_2/Conv3d_0a_1x1 1 512 32
Mixed_4e/Branch_2/Conv3d_0b_3x3 3 32 64
Mixed_4e/Branch_3/Conv3d_0b_1x1 1 512 64
Mixed_4f/Branch_0/Conv3d_0a_1x1 1 528 256
Mixed_4f/Branch_1/Conv3d_0a_1x1 1 528 160
Mixed_4f/Branch_1/Conv3d_0b_3x3 3 160 320
Mixed_4f/Branch_2/Conv3d_0a_1x1 1 528 32
Mixed_4f/Branch_2/Conv3d_0b_3x3 3 32 128
Mixed_4f/Branch_3/Conv3d_0b_1x1 1 528 128
Mixed_5b/Branch_0/Conv3d_0a_1x1 1 832 256
Mixed_5b/Branch_1/Conv3d_0a_1x1 1 832 160
Mixed_5b/Branch_1/Conv3d_0b_3x3 3 160 320
Mixed_5b/Branch_2/Conv3d_0a_1x1 1 832 32
Mixed_5b/Branch_2/Conv3d_0a_3x3 3 32 128
Mixed_5b/Branch_3/Conv3d_0b_1x1 1 832 128
Mixed_5c/Branch_0/Conv3d_0a_1x1 1 832 384
Mixed_5c/Branch_1/Conv3d_0a_1x1 1 832 192
Mixed_5c/Branch_1/Conv3d_0b_3x3 3 192 384
Mixed_5c/Branch_2/Conv3d_0a_1x1 1 832 48
Mixed_5c/Branch_2/Conv3d_0b_3x3 3 48 128
Mixed_5c/Branch_3/Conv3d_0b_1x1 1 832 128
"""
"""Units of the published checkpoints in their index: name, side of the kernel, channels in (RGB) and out."""


def test_names_and_shapes_of_the_230_published_arrays():
    units = [line.split() for line in PUBLISHED.splitlines()]
    for stream, numbers in (("rgb", 12_704_544), ("flow", 12_682_592)):
        expected = {name: (*[int(side)] * 3, int(before), int(after)) for name, side, before, after in units}
        if stream == "flow":
            expected["Conv3d_1a_7x7"] = (7, 7, 7, 2, 64)
        assert i3d.shapes(stream) == expected
        names = set(i3d_weights.table(stream, "deepmind").values()) | set(i3d_weights.LOGITS["deepmind"])
        parts = ("conv_3d/w", "batch_norm/beta", "batch_norm/moving_mean", "batch_norm/moving_variance")
        logits = {"Logits/Conv3d_0c_1x1/conv_3d/w", "Logits/Conv3d_0c_1x1/conv_3d/b"}
        assert names == {f"{unit}/{part}" for unit in expected for part in parts} | logits and len(names) == 230
        assert sum(np.prod(s) + 3 * s[-1] for s in expected.values()) + 1025 * 400 == numbers
        assert i3d_weights.COUNTS[stream, 400] == numbers


def test_names_in_torch_files():
    """Spelled as in the published code, the block with the odd name included."""
    piergiaj, hassony2 = (i3d_weights.table("rgb", kind) for kind in ("piergiaj", "hassony2"))
    assert len(piergiaj) == len(set(piergiaj.values())) == len(set(hassony2.values())) == 57 * 5
    for ours, p, h in (
        ("params/Conv3d_1a_7x7/conv/kernel", "Conv3d_1a_7x7.conv3d.weight", "conv3d_1a_7x7.conv3d.weight"),
        ("params/Mixed_3c/Branch_0/Conv3d_0a_1x1/bn/bias", "Mixed_3c.b0.bn.bias", "mixed_3c.branch_0.batch3d.bias"),
        (
            "batch_stats/Mixed_5b/Branch_2/Conv3d_0a_3x3/bn/var",
            "Mixed_5b.b2b.bn.running_var",
            "mixed_5b.branch_2.1.batch3d.running_var",
        ),
        (
            "batch_stats/Mixed_4f/Branch_3/Conv3d_0b_1x1/bn/mean",
            "Mixed_4f.b3b.bn.running_mean",
            "mixed_4f.branch_3.1.batch3d.running_mean",
        ),
    ):
        assert (piergiaj[ours], hassony2[ours]) == (p, h)


SHAPES = i3d.shapes


def narrow_shapes(stream):
    return {name: (*s[:3], s[3] // 8 or s[3], s[4] // 8) for name, s in SHAPES(stream).items()}


@pytest.fixture
def narrow(monkeypatch):
    """An eighth of the channels."""
    for module in (i3d, i3d_weights):
        monkeypatch.setattr(module, "shapes", narrow_shapes)
    monkeypatch.setattr(i3d_weights, "FEATURES", 128)


def random_arrays(stream, classes=400, seed=0):
    """Under our names."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for unit, shape in i3d.shapes(stream).items():
        arrays[f"params/{unit}/conv/kernel"] = rng.normal(size=shape)
        arrays[f"params/{unit}/bn/bias"], arrays[f"batch_stats/{unit}/bn/mean"] = rng.normal(size=(2, shape[-1]))
        arrays[f"batch_stats/{unit}/bn/var"] = rng.uniform(0.1, 1, shape[-1])
    if classes:
        arrays["params/Logits/kernel"], arrays["params/Logits/bias"] = rng.normal(size=(128, classes)), np.ones(classes)
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def published(arrays, stream, kind):
    """The same under the names and in the layouts of a kind of file."""
    found = {}
    names = i3d_weights.table(stream, kind) | dict(
        zip(("params/Logits/kernel", "params/Logits/bias"), i3d_weights.LOGITS[kind])
    )
    for ours, theirs in names.items():
        if ours.endswith("scale"):
            found[theirs] = np.ones_like(arrays[ours.replace("scale", "bias")])
        elif ours in arrays:
            x = arrays[ours]
            x = x[None, None, None] if ours == "params/Logits/kernel" else x
            found[theirs] = x.transpose(4, 3, 0, 1, 2).copy() if kind != "deepmind" and x.ndim == 5 else x
    return found


def write(path, arrays, stream, kind):
    found = published(arrays, stream, kind)
    if kind == "deepmind":
        prefix = {"rgb": "RGB", "flow": "Flow"}[stream] + "/inception_i3d/"
        return write_bundle(path, {prefix + name: x for name, x in found.items()})
    return write_torch(f"{path}.pt", found)


@pytest.mark.parametrize("kind", ["deepmind", "piergiaj", "hassony2"])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_the_three_kinds_of_file_have_the_same_weights(tmp_path, narrow, kind, stream):
    """Equal arrays, equal parameters of the network, and equal ones once more by way of the command's file."""
    arrays = random_arrays(stream)
    path = write(tmp_path / "x", arrays, stream, kind)
    found = i3d_weights.read(path, stream)
    assert found.header | {"sha256": "", "source": ""} == {
        "format": kind,
        "eps": 1e-3,
        "stream": stream,
        "classes": 400,
        "sha256": "",
        "source": "",
    }
    import_checkpoint.main(["i3d", f"--{stream}", path, "--out", str(tmp_path)])
    again = i3d_weights.read(tmp_path / f"i3d_{stream}.npz", stream)
    assert again.header == found.header
    for weights in (found, again):
        assert weights.arrays.keys() == arrays.keys()
        for name, x in arrays.items():
            np.testing.assert_array_equal(weights.arrays[name], x, err_msg=name)
    unit = "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    params = i3d.fold(found)
    assert params.keys() == i3d.shapes(stream).keys() | {"Logits"}
    scale = 1 / np.sqrt(arrays[f"batch_stats/{unit}/bn/var"] + 1e-3)
    np.testing.assert_allclose(params[unit]["kernel"], arrays[f"params/{unit}/conv/kernel"] * scale, rtol=1e-6)
    shift = arrays[f"params/{unit}/bn/bias"] - arrays[f"batch_stats/{unit}/bn/mean"] * scale
    np.testing.assert_allclose(params[unit]["bias"], shift, rtol=1e-5, atol=1e-6)
    loaded = i3d.load(path, stream)  # prepared for a CPU, as these tests run on one
    np.testing.assert_array_equal(loaded[unit]["kernel"], params[unit]["kernel"])


def test_a_checkpoint_of_600_classes_and_its_slots(tmp_path, narrow):
    """No prefix, batch normalizations of shape (1, 1, 1, 1, C), and what an optimizer leaves; given as a folder."""
    arrays = random_arrays("rgb", classes=600)
    values = {name: x.reshape(1, 1, 1, 1, -1) if "batch_norm" in name else x for name, x in
              published(arrays, "rgb", "deepmind").items()}  # fmt: skip
    values |= {name + "/Momentum": np.zeros_like(x) for name, x in values.items()} | {"global_step": np.int64(7)}
    write_bundle(tmp_path / "model.ckpt", values)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    found = i3d_weights.read(tmp_path, "rgb")
    assert found.header["classes"] == 600 and found.header["source"] == data.name
    for name, x in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], x)
    for given in (tmp_path / "model.ckpt", tmp_path / "model.ckpt.index", data):
        assert i3d_weights._found(given) == tmp_path / "model.ckpt.index"


def test_any_number_of_classes_and_none(tmp_path, narrow):
    for classes in (0, 157):
        path = write(tmp_path / "x", random_arrays("rgb", classes), "rgb", "piergiaj")
        assert i3d_weights.read(path, "rgb").header["classes"] == classes
        assert ("Logits" in i3d.load(path, "rgb")) == (classes > 0)


def test_a_trained_scale_counts(tmp_path, narrow):
    """Of files that were trained further in torch, where the batch normalization has one."""
    found = published(random_arrays("rgb"), "rgb", "hassony2")
    found["mixed_3b.branch_0.batch3d.weight"] = np.full(8, 2, np.float32)
    found = {f"module.{name}": x for name, x in found.items()}
    params = i3d.load(write_torch(tmp_path / "x.pth", found), "rgb")
    plain = i3d.load(write(tmp_path / "y", random_arrays("rgb"), "rgb", "hassony2"), "rgb")
    name = "Mixed_3b/Branch_0/Conv3d_0a_1x1"
    np.testing.assert_allclose(params[name]["kernel"], 2 * plain[name]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(params["Conv3d_2b_1x1"]["kernel"], plain["Conv3d_2b_1x1"]["kernel"])


def test_the_other_stream_is_refused(tmp_path, narrow):
    for kind in ("deepmind", "hassony2"):
        path = write(tmp_path / kind, random_arrays("flow"), "flow", kind)
        with pytest.raises(InputError, match=r"weights of the flow stream: give it as flow, not as rgb"):
            i3d_weights.read(path, "rgb")
        with pytest.raises(SystemExit, match="give it as flow"):
            import_checkpoint.main(["i3d", "--rgb", path, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mixed_4c.branch_1.1.batch3d.bias", None, "is missing"),
        ("mixed_4c.branch_1.1.batch3d.bias", np.zeros(27, np.float32), r"shape \(27,\): must be \(28,\)"),
        ("mixed_4c.branch_1.1.batch3d.bias", np.full(28, np.nan, np.float32), "is NaN"),
        ("mixed_4c.branch_1.1.batch3d.running_var", np.full(28, -1, np.float32), "is negative"),
        ("mixed_4c.branch_1.1.batch3d.running_var", np.zeros((2, 14), np.float32), r"shape \(2, 14\)"),
        ("mixed_9z.bias", np.zeros(3, np.float32), "is no parameter of I3D"),
        ("conv3d_0c_1x1.conv3d.bias", np.zeros(3, np.float32), r"Logits/kernel: has the shape \(128, 400\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, narrow, name, value, message):
    found = published(random_arrays("rgb"), "rgb", "hassony2")
    found = {k: x for k, x in (found | {name: value}).items() if x is not None}
    with pytest.raises(InputError, match=rf"x\.pth(.|\n)*{message}"):
        i3d_weights.read(write_torch(tmp_path / "x.pth", found), "rgb")


def test_a_missing_file_says_which_fit_and_what_runs_without(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "none.pt", tmp_path / "empty"):
        with pytest.raises(InputError) as error:
            i3d_weights.read(given, "rgb")
        told = str(error.value)
        for word in (str(given), "kinetics-i3d", "rgb_imagenet.pt", "model_rgb.pth", "efficientnet_lite0", "--weights"):
            assert word in told
    (tmp_path / "x.npz").write_bytes(b"")
    np.savez(tmp_path / "y.npz", a=np.zeros(3))
    for name in ("x.npz", "y.npz"):
        with pytest.raises(InputError, match=name):
            i3d_weights.read(tmp_path / name, "rgb")
    with pytest.raises(SystemExit, match="give --rgb, --flow or both"):
        import_checkpoint.main(["i3d", "--out", str(tmp_path)])
    path = write_torch(tmp_path / "z.pt", {"a": np.zeros(3, np.float32)})
    with pytest.raises(SystemExit, match="--out FOLDER"):
        import_checkpoint.main(["i3d", "--rgb", path])


def test_verify_tells_what_is_known_and_what_is_not(tmp_path, narrow, capsys, monkeypatch):
    path = write(tmp_path / "x", random_arrays("rgb"), "rgb", "deepmind")
    numbers = sum(x.size for x in random_arrays("rgb").values())
    monkeypatch.setitem(i3d_weights.COUNTS, ("rgb", 400), numbers)
    import_checkpoint.main(["i3d", "--rgb", path, "--verify"])
    told = capsys.readouterr().out
    assert "CRC-32C" in told and f"230 arrays, {numbers:,} numbers" in told and "not verified" in told
    monkeypatch.setitem(i3d_weights.COUNTS, ("rgb", 400), numbers + 1)
    with pytest.raises(SystemExit, match=f"has {numbers:,} numbers in 230 arrays"):
        import_checkpoint.main(["i3d", "--rgb", path, "--verify"])
    data = tmp_path / "x.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
    with pytest.raises(SystemExit, match="data-00000-of-00001"):
        import_checkpoint.main(["i3d", "--rgb", path, "--verify"])


def test_eps_is_kept_in_the_file(tmp_path, narrow):
    path = write(tmp_path / "x", random_arrays("flow"), "flow", "hassony2")
    import_checkpoint.main(["i3d", "--flow", path, "--out", str(tmp_path / "out"), "--eps", "1e-5"])
    ours = tmp_path / "out" / "i3d_flow.npz"
    assert i3d_weights.read(ours, "flow").header["eps"] == 1e-5
    assert i3d_weights.read(ours, "flow", 1e-3).header["eps"] == 1e-3
    name = "Conv3d_2b_1x1"
    kernels = [i3d.load(path, "flow", eps)[name]["kernel"] for eps in (1e-5, None)]
    np.testing.assert_array_equal(i3d.load(ours, "flow")[name]["kernel"], kernels[0])
    assert np.abs(kernels[0] / kernels[1] - 1).max() > 1e-4
    with np.load(ours) as file:
        header = json.loads(bytes(file["header"]))
    assert len(header["sha256"]) == 64 and header["source"] == "x.pt"
