"""`.pt` and `.pth`, made by hand and by PyTorch."""

import struct

import numpy as np
import pytest

from tests.foreign import SHARED, equal, named, refused, save, simple, storage, tensor, torch_old, torch_zip
from wsal_jax.formats import arrays


def tensors(old):
    """A state as `torch.save` writes it, with attributes and shared storages, and its expected value."""
    bits = np.array([1.5, -2.0, 3.25], np.float32).view(np.uint32) >> 16  # exact in bfloat16
    values = {
        "weight": ("0", "FloatStorage", np.arange(6, dtype=np.float32)),
        "half": ("1", "HalfStorage", np.arange(2, dtype=np.float16)),
        "flags": ("2", "BoolStorage", np.array([True, False])),
        "count": ("3", "LongStorage", np.array([-1, 2**40])),
        "short": ("4", "BFloat16Storage", bits.astype(np.uint16)),
        "none": ("5", "DoubleStorage", np.zeros(0)),
    }
    storages = {key: (len(array), array.tobytes()) for key, _, array in values.values()}
    of = {name: storage(key, kind, len(array), old) for name, (key, kind, array) in values.items()}
    items = {name: tensor(of[name], 0, (len(array),), (1,)) for name, (_, _, array) in values.items()}
    items["transposed"] = tensor(of["weight"], 0, (3, 2), (1, 3))
    items["part"] = tensor(of["weight"], 4, (2, 1), (1, 1))
    items["scalar"] = tensor(of["weight"], 5, (), ())
    items["none"] = tensor(of["none"], 0, (0, 2048), (2048, 1))
    items["parameter"] = named("torch._utils", "_rebuild_parameter") + b"(" + items["weight"] + b"\x88}tR"
    items["size"] = named("torch", "Size") + simple(((2, 3),)) + b"R"
    items["epoch"] = simple(3)
    parts = b"".join(simple(name) + item for name, item in items.items())
    metadata = b"}" + simple("_metadata") + named("collections", "OrderedDict") + b")Rsb"
    expected = {name: array for name, (_, _, array) in values.items()}
    weight = expected["weight"]
    expected |= {"short": np.array([1.5, -2.0, 3.25], np.float32), "none": np.zeros((0, 2048))}
    expected |= {"transposed": weight.reshape(2, 3).T, "part": weight[4:, None], "scalar": weight[5:].reshape(())}
    expected |= {"parameter": weight, "size": (2, 3), "epoch": 3}
    return (
        b"\x80\x02" + named("collections", "OrderedDict") + b")R(" + parts + b"u" + metadata + b".",
        storages,
        expected,
    )


def test_tensors_of_the_zip_format(tmp_path):
    payload, storages, expected = tensors(old=False)
    assert equal(arrays.read(save(tmp_path, ".pt", torch_zip(payload, storages))), expected)
    payload = b"\x80\x02" + tensor(storage()) + b"."
    big = torch_zip(payload, {"0": (6, np.arange(6, dtype=">f4").tobytes())}, b"big")
    np.testing.assert_array_equal(arrays.read(save(tmp_path, ".pt", big)), np.arange(6).reshape(2, 3))


def test_conjugates_are_not_read_as_if_they_were_none(tmp_path):
    conjugate = tensor(storage())[:-2] + b"}" + simple("conj") + b"\x88stR"
    refused(save(tmp_path, ".pt", torch_zip(conjugate + b".", {"0": (6, bytes(24))})), "resolve_conj")


def test_tensors_of_the_old_format(tmp_path):
    payload, storages, expected = tensors(old=True)
    assert equal(arrays.read(save(tmp_path, ".pth", torch_old(payload, storages))), expected)
    payload = b"\x80\x02" + tensor(storage(old=True)) + b"."
    big = torch_old(payload, {"0": (6, np.arange(6, dtype=">f4").tobytes())}, little=False)
    np.testing.assert_array_equal(arrays.read(save(tmp_path, ".pt", big)), np.arange(6).reshape(2, 3))
    refused(save(tmp_path, ".pt", torch_old(payload, {"0": (5, bytes(24))})), "another length")
    refused(save(tmp_path, ".pt", torch_old(payload, {})), "KeyError('0')")


def test_torch_reads_what_is_made_here_and_the_other_way_round(tmp_path):
    torch = pytest.importorskip("torch")
    for old, make in ((False, torch_zip), (True, torch_old)):
        payload, storages, expected = tensors(old)
        read = torch.load(save(tmp_path, ".pt", make(payload, storages)), weights_only=True)
        assert all(np.array_equal(read[name], expected[name]) for name in ("weight", "transposed", "part"))
        values = {
            "x": torch.arange(6.0).reshape(2, 3).t(),
            "y": [torch.ones(2).bfloat16(), 3, torch.nn.Linear(1, 2).bias],
        }
        torch.save(values, tmp_path / "torch.pt", _use_new_zipfile_serialization=not old)
        expected = {"x": values["x"].numpy(), "y": [np.ones(2, np.float32), 3, values["y"][2].detach().numpy()]}
        assert equal(arrays.read_pt(tmp_path / "torch.pt"), expected)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_real_checkpoint(stream):
    path = SHARED / "checkpoints" / "dgam_thumos14" / f"{stream}.pth"
    if not path.exists():
        pytest.skip("the shared checkpoints are not here")
    state = arrays.read_pt(path)
    shapes = {name.removeprefix("module."): value.shape for name, value in state.items()}
    assert shapes["clf_head.fc1.weight"] == (21, 1024) and shapes["att_head.fc2.bias"] == (1,)
    content = path.read_bytes()
    for value in state.values():
        assert value.dtype == np.float32 and np.isfinite(value).all() and 0 < np.abs(value).max() < 10
        assert struct.pack("<q", value.size) + value.tobytes() in content


@pytest.mark.parametrize(
    "of, offset, shape, strides",
    [
        (storage(), 1, (2, 3), (3, 1)),
        (storage(), 0, (2, 3), (4, 1)),
        (storage(), -1, (2, 3), (3, 1)),
        (storage(), 6, (1,), (1,)),
        (storage(), 0, (2, 3), (3, -1)),
        (storage(), 0, (2, -3), (3, 1)),
        (storage(), 0, (2, 3), (3,)),
        (storage(), 0, (100,), (0,)),
        (storage(), 0, (2**62, 2**62), (0, 0)),
        (storage(), 0, (2**62, 0), (0, 0)),
        (storage(), 2**70, (1,), (1,)),
        (storage(), 0, (1, 2), (2**70, 1)),
        (storage(), 0.0, (2, 3), (3, 1)),
        (storage(), 0, 6, 1),
        (storage("1"), 0, (2, 3), (3, 1)),
        (storage("../data.pkl"), 0, (2, 3), (3, 1)),
        (storage(size=7), 0, (2, 3), (3, 1)),
        (storage(size=-1), 0, (2, 3), (3, 1)),
        (storage(size=2**62), 0, (2, 3), (3, 1)),
        (storage(kind="DoubleStorage"), 0, (2, 3), (3, 1)),
    ],
)
def test_tensors_beyond_their_storage(tmp_path, of, offset, shape, strides):
    payload = b"\x80\x02" + tensor(of, offset, shape, strides) + b"."
    content = {"0": (6, np.arange(6, dtype=np.float32).tobytes())}
    refused(save(tmp_path, ".pt", torch_zip(payload, content)))
