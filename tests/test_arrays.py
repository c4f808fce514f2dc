import io
import os
import pickle
import shlex
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from wsal_jax.formats import arrays, files
from wsal_jax.types import InputError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
NEVER_IMPORTED = "antigravity"  # a module that does something when it is imported


def equal(a, b):
    """Whether two trees are the same, types, dtypes and shapes included."""
    if isinstance(a, np.ndarray) and a.dtype.hasobject:
        same = isinstance(b, np.ndarray) and b.dtype.hasobject and a.shape == b.shape
        return same and all(equal(x, y) for x, y in zip(a.flat, b.flat))
    if isinstance(a, np.ndarray | np.generic):
        same = type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        return same and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def objects(*values):
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


# Files made by hand


def npy(payload, descr="'|O'", shape="(1,)"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def torch_zip(payload, storages=(), byteorder=b"little"):
    members = {"archive/data.pkl": payload, "archive/byteorder": byteorder, "archive/version": b"3\n"}
    return zipped(members | {f"archive/data/{key}": data for key, (_, data) in dict(storages).items()})


def torch_old(payload, storages=(), little=True):
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [payload, pickle.dumps(list(dict(storages)), 2)]
    return b"".join(
        [*parts, *(struct.pack("<q" if little else ">q", size) + data for size, data in dict(storages).values())]
    )


CONTAINERS = {
    "npy": (".npy", npy),
    "npz": (".npz", lambda payload: zipped({"a.npy": npy(payload)})),
    "compressed npz": (".npz", lambda payload: zipped({"a.npy": npy(payload)}, zipfile.ZIP_DEFLATED)),
    "pkl": (".pkl", lambda payload: payload),
    "pt": (".pt", torch_zip),
    "old pt": (".pth", torch_old),
}


def simple(value):
    """Opcodes that push a str, number or tuple of them."""
    return pickle.dumps(value, 2)[2:-1]


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def storage(key="0", kind="FloatStorage", size=6, old=False):
    parts = simple("storage") + named("torch", kind) + simple(key) + simple("cpu") + simple(size)
    return b"(" + parts + (b"N" if old else b"") + b"tQ"


def tensor(of, offset=0, shape=(2, 3), strides=(3, 1)):
    """As torch.save writes it."""
    parts = (
        of + simple(offset) + simple(shape) + simple(strides) + b"\x89" + named("collections", "OrderedDict") + b")R"
    )
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b"tR"


def python2_array(array, protocol):
    """As Python 2 with NumPy 1 writes it, between PROTO and STOP."""

    def text(value):
        short = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        return short + value if protocol else b"S" + repr(value)[1:].encode() + b"\n"

    def number(value):
        return b"J" + struct.pack("<i", value) if protocol else b"I%d\n" % value

    code = array.dtype.str[1:].encode()
    order = array.dtype.str[:1].encode()
    shape = b"(" + b"".join(map(number, array.shape)) + b"t"
    dtype = named("numpy", "dtype") + b"(" + text(code) + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(order) + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    new = named("numpy.core.multiarray", "_reconstruct") + b"(" + named("numpy", "ndarray")
    new += b"(" + number(0) + b"t" + text(b"b") + b"tR"
    return new + b"(" + number(1) + shape + dtype + b"I00\n" + text(array.tobytes()) + b"tb"


def save(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    return path


def refused(path, *words, limit=files.LIMIT):
    """Reading it fails with a message that names the file, and has the words."""
    with pytest.raises(InputError) as error:
        arrays.read(path, limit)
    assert str(path) in str(error.value) and "save it again" in str(error.value)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


# What can be read

VALUES = [
    np.arange(6, dtype=">f4").reshape(2, 3).T,
    np.arange(24).reshape(2, 3, 4).transpose(0, 2, 1),
    np.arange(6000.0).reshape(2, 3000),
    np.arange(4000, dtype=np.float16).reshape(2, 2000),
    np.zeros((0, 3)),
    np.zeros(0, "U3"),
    np.array(3.5),
    np.array(["a", "bç"]),
    np.array([b"a", b"bc"]),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array([[1, [2]], [None, "x"]], object),
    np.float32(3),
    np.int64(-1),
    [1, -1, 255, 256, 65536, -(2**31), 2**40, 2**63, -(2**70), True, False, None, 1.5, float("inf"), 0],
    ["", "é", "\n", "x" * 300, "\U0001f600", b"", b"\x00\xff\n'", b"y" * 300],
    {"a": {"b": []}, 3: (), b"c": (1,), "": ((1, 2), (1, 2, 3), (1, 2, 3, 4), [[1.0, 2.0], [3.0, 4.0]])},
]
SHARING = [VALUES[2], VALUES[2], VALUES[16], VALUES[16], "s", "s"]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_python_3(tmp_path, protocol):
    assert equal(arrays.read(save(tmp_path, ".pkl", pickle.dumps([*VALUES, SHARING], protocol))), [*VALUES, SHARING])


@pytest.mark.parametrize("protocol", range(6))
def test_object_arrays_in_every_protocol(tmp_path, protocol):
    array = objects(*VALUES)
    assert equal(arrays.read_npy(save(tmp_path, ".npy", npy(pickle.dumps(array, protocol), shape="(17,)"))), array)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("lengths", [(5, 1, 300), (4, 4, 4)])
def test_features_as_published(tmp_path, dtype, lengths):
    rng = np.random.default_rng(0)
    videos = objects(*(rng.normal(size=(t, 32)).astype(dtype) for t in lengths))
    np.save(tmp_path / "features.npy", videos, allow_pickle=True)
    assert equal(arrays.read_npy(tmp_path / "features.npy"), videos)


@pytest.mark.parametrize(
    "column",
    [
        objects(["Diving", "CliffDiving"], [], ["Diving"]),
        objects([b"Diving", b"CliffDiving"], [], [b"Diving"]),
        objects([[0.5, 1.5], [2, 3]], [], [[1, 2]]),
        np.array([b"video_1", b"video_10"]),
        np.array(["video_1", "video_10"]),
        np.array([[1.5], [2.5]]),
    ],
)
def test_annotations_as_published(tmp_path, column):
    np.save(tmp_path / "column.npy", column, allow_pickle=True)
    assert equal(arrays.read_npy(tmp_path / "column.npy"), column)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_pickles_of_python_2(tmp_path, protocol):
    rng = np.random.default_rng(0)
    videos = [rng.normal(size=(4, 3)).astype(dtype) for dtype in ("<f4", ">f8", "<f2")]
    videos += [np.frombuffer(bytes(range(256)), "u1").reshape(16, 16), np.zeros((300, 8), "<f4")]
    parts = [python2_array(video, protocol) for video in videos]
    parts += [b"S'it''s \\x00\\n'\n", b"L12345678901234567890L\n", b"I01\n", b"I-7\n", b"F0.25\n", b"Vabc\\u00e9\n"]
    payload = (b"\x80\x02" if protocol == 2 else b"") + b"(" + b"".join(parts) + b"l."
    expected = [*videos, b"it''s \0\n", 12345678901234567890, True, -7, 0.25, "abcé"]
    by_pickle = pickle.loads(payload, encoding="bytes")  # makes the byte order the machine's
    assert all(map(np.array_equal, by_pickle, expected)) and equal(by_pickle[5:], expected[5:])
    assert equal(arrays.read(save(tmp_path, ".pkl", payload)), expected)


def test_npy_of_python_2_and_others(tmp_path):
    for descr, shape in (("'<f4'", "(3L,)"), ("'<f4'", "( 3, )"), ("'<f4'", "(3, 1)"), ("'<f4'", "(1,3)")):
        path = save(tmp_path, ".npy", npy(np.arange(3, dtype="<f4").tobytes(), descr, shape))
        assert arrays.read_npy(path).ravel().tolist() == [0, 1, 2]
    for version in ((1, 0), (2, 0), (3, 0)):
        with open(tmp_path / "file.npy", "wb") as file:
            np.lib.format.write_array(file, np.asfortranarray(np.arange(6.0).reshape(2, 3)), version)
        assert equal(arrays.read_npy(tmp_path / "file.npy"), np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, write):
    content = {"feature": VALUES[2].astype(np.float32), "frame_cnt": np.array(7), "names": objects("a", [b"b"])}
    write(tmp_path / "video.npz", **content)
    assert equal(arrays.read(tmp_path / "video.npz"), content)


@pytest.mark.parametrize("folder", ["thumos14", "activitynet12", "activitynet13"])
def test_real_annotations(folder):
    files = sorted((SHARED / folder).glob("*-Annotations/*.npy"))
    if not files:
        pytest.skip("the shared annotations are not here")
    for path in files:
        assert equal(arrays.read_npy(path), np.load(path, allow_pickle=True, encoding="bytes")), path


# Tensors


def tensors(old):
    """A state as `torch.save` writes it, with attributes and shared storages, and what it is."""
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


# What is refused

REFUSED_NAMES = [
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("__builtin__", "getattr"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("copyreg", "_reconstructor"),
    ("codecs", "encode"),
    ("_codecs", "lookup"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "defaultdict"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "core.multiarray._reconstruct"),
    ("numpy", "core.multiarray._reconstruct.__globals__"),
    ("numpy", "ndarray.tofile"),
    ("numpy.core", "multiarray._reconstruct"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ("numpy.f2py.crackfortran", "myeval"),
    ("numpy.testing._private.utils", "runstring"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_import_dotted_name"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("wsal_jax.formats.torch_files", "_Unpickler"),
    (NEVER_IMPORTED, "fly"),
    ("", ""),
]


def running(command):
    """Pickles for which `pickle` itself runs `command`, and what the message must have."""
    text = simple(command)
    for module in ("os", "posix"):
        yield named(module, "system") + text + b"\x85R.", f"{module}.system"
        yield b"\x80\x04" + simple(module) + simple("system") + b"\x93" + text + b"\x85R.", f"{module}.system"
    yield b"(" + text + b"ios\nsystem\n.", "os.system"
    yield b"(" + named("os", "system") + text + b"o.", "os.system"


def attacks(command):
    """Those, and others that come near."""
    text = simple(command)
    yield from running(command)
    for module, name in REFUSED_NAMES:
        full = f"{module}.{name}"
        yield named(module, name) + text + b"\x85R.", full
        yield b"\x80\x04" + simple(module) + simple(name) + b"\x93" + text + b"\x85R.", full
    system = named("os", "system")
    yield system + text + b"\x85\x81.", "os.system"
    yield system + text + b"\x85}\x92.", "os.system"
    yield b"}" + simple("__setstate__") + system + b"s" + text + b"b.", "os.system"
    yield b"(inumpy\nndarray\n.", "INST"
    yield b"(" + named("numpy", "ndarray") + simple(3) + b"o.", "OBJ"
    yield named("numpy", "ndarray") + simple((3,)) + b"\x81.", "NEWOBJ"
    yield named("numpy", "ndarray") + simple((3,)) + b"}\x92.", "NEWOBJ_EX"
    yield named("numpy", "ndarray") + simple((3,)) + b"R.", "calls numpy.ndarray"
    yield named("numpy", "dtype") + simple(command) + b"R.", "calls numpy.dtype"
    yield named("numpy", "dtype") + b"}" + simple("call") + text + b"sb.", "sets the state of a Name"
    yield b"]}" + simple("__class__") + text + b"sb.", "sets the state of a list"
    yield b"}" + text + b"b.", "sets the state of a dict"
    yield simple("x") + simple(("y",)) + b"R.", "calls"
    yield b"]" + simple(("y",)) + b"R.", "calls"
    yield simple(1) + simple(2) + b"\x93.", "requires str"
    yield b"](" + named("numpy", "ndarray") + b"e.", "holds a Name"
    yield named("numpy", "ndarray") + simple("x") + simple("y") + b"s.", "sets items of a Name"
    yield named("numpy", "ndarray") + simple("x") + b"a.", "appends to a Name"
    yield named("_codecs", "encode") + simple((command, "rot13")) + b"R.", "_codecs.encode"
    yield named("_codecs", "encode") + simple((command, ("latin1",))) + b"R.", "_codecs.encode"
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    for arguments in [(), (1,), ("0", 0, (1,), (1,), False, None), ([], 0, (1,), (1,), False, None), (None,) * 9]:
        yield rebuild + simple(arguments) + b"R.", "torch._utils._rebuild_tensor_v2"
    yield named("torch._utils", "_rebuild_parameter") + simple((command, False, None)) + b"R.", "_rebuild_parameter"
    yield named("torch", "FloatStorage") + simple((6,)) + b"R.", "calls torch.FloatStorage"
    yield b"P" + command.encode() + b"\n.", "PERSID"
    yield text + b"Q.", "persistent id"
    for id in [(), ("module", "x", "y"), ("storage",) * 5, ("storage", None, "0", "cpu", 6)]:
        yield simple(id) + b"Q.", "persistent id"
    yield b"(" + simple("storage") + system + simple("0") + simple("cpu") + simple(6) + b"tQ.", "os.system"
    yield storage(size=6)[:-2] + simple((1, 2, 3)) + b"tQ.", "persistent id"
    yield b"\x82\x01.", "EXT1"
    yield b"\x83\x01\x00.", "EXT2"
    yield b"\x84\x01\x00\x00\x00.", "EXT4"
    yield b"\x80\x05\x97.", "NEXT_BUFFER"
    yield b"\x80\x05" + simple("x") + b"\x98.", "READONLY_BUFFER"
    yield b"\x80\x04\x8f(" + text + b"\x90.", "EMPTY_SET"
    yield b"\x80\x04(" + text + b"\x91.", "FROZENSET"
    yield b"\x8b\x01\x00\x00\x00\x01.", "LONG4"
    yield b"\xff.", "opcode None"


@pytest.mark.parametrize("container", CONTAINERS)
def test_nothing_in_a_file_runs(tmp_path, container):
    suffix, make = CONTAINERS[container]
    marker = tmp_path / "marker"
    for payload, word in attacks(f"touch {shlex.quote(str(marker))}"):
        if b"ctorch" in payload and suffix not in (".pt", ".pth"):
            word = "names torch"  # at all
        message = refused(save(tmp_path, suffix, make(payload)), word)
        assert message.isprintable()
    assert not marker.exists() and NEVER_IMPORTED not in sys.modules


def test_the_attacks_are_attacks(tmp_path):
    """`pickle` does run them; so what is refused above is not merely malformed."""
    marker = tmp_path / "marker"
    code = "import sys, pickle; pickle.loads(bytes.fromhex(sys.argv[1]))"
    for payload, _ in running(f"touch {shlex.quote(str(marker))}"):
        subprocess.run([sys.executable, "-c", code, payload.hex()], capture_output=True)
        assert marker.exists(), payload
        marker.unlink()


def test_reading_imports_and_executes_nothing(tmp_path):
    """Told by the interpreter's own audit events, in a process without JAX."""
    number = 0
    for suffix, make in CONTAINERS.values():
        for payload, _ in attacks("true"):
            (tmp_path / f"{number}{suffix}").write_bytes(make(payload))
            number += 1
    for i, (suffix, content) in enumerate(small_files()):
        (tmp_path / f"good{i}{suffix}").write_bytes(content)
    code = f"""
import sys
from pathlib import Path
from wsal_jax.formats import arrays
from wsal_jax.types import InputError
for path in Path({str(tmp_path)!r}).glob("good*"):
    arrays.read(path)  # so that the decoders of text are there
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event))
refused = 0
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        arrays.read(path)
    except InputError:
        refused += 1
allowed = {{"open", "mmap.__new__", "os.scandir", "os.listdir", "builtins.id"}}
modules = ("jax", "torch", "scipy", {NEVER_IMPORTED!r})
print(refused, sorted(set(seen) - allowed), [module for module in modules if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{number} [] []\n", (done.stdout, done.stderr)


@pytest.mark.parametrize(
    "payload, word",
    [
        (b"]\x94h\x00a.", "contains itself"),
        (b"}q\x01X\x01\x00\x00\x00xh\x01s.", "contains itself"),
        (b"]q\x01]q\x02h\x01aa.", "contains itself"),
        (b"]q\x01h\x01\x85a.", "contains itself"),
        (b"]" * 20_000 + b"a" * 19_999 + b".", "50 deep"),
        (b")" + b"\x85" * 20_000 + b".", "50 deep"),
        (b"]" + b"".join(b"q%c](h%ch%ch%ce" % (i, i, i, i) for i in range(1, 45)) + b".", "so often"),
        (b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 45)) + b"q\x00}h\x00Ns.", "key of type tuple"),
        (b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 45)) + b"Q.", "persistent id"),
        (b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 45)) + b"q\x00h\x00\x93.", "requires str"),
        (b"}\x8a\x10" + b"\x7f" * 16 + b"Ns.", "key of type int"),
        (b"}" + simple(2.5) + b"Ns.", "key of type float"),
        (b"\x8a\xff" + b"\x7f" * 255 + b".", "integer of 255 bytes"),
        (b"L" + b"9" * 100_000 + b"L\n.", "has the integer"),
        (b"I" + b"9" * 100_000 + b"\n.", "has the integer"),
        (b"I0x10\n.", "has the integer"),
        (b"S__import__('os')\n.", "must be quoted"),
        (b"(t0.", ""),
        (b"a.", ""),
        (b"0.", ""),
        (b"h\x05.", ""),
        (b"t.", ""),
        (b"N", "ends too early"),
        (b"cos", "ends in the middle"),
    ],
)
def test_pickles_that_never_end_or_never_began(tmp_path, payload, word):
    start = time.process_time()
    path = save(tmp_path, ".pkl", payload)
    refused(path, word)
    assert time.process_time() - start < 5


STRUCTURED = np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")])


@pytest.mark.parametrize("value", [STRUCTURED, STRUCTURED[0], np.ma.array([1.0]), np.array(["2020"], "M8[s]"), {1}, 1j])
def test_other_values(tmp_path, value):
    refused(save(tmp_path, ".pkl", pickle.dumps(value)))
    if isinstance(value, np.ndarray):
        np.save(tmp_path / "file.npy", np.asarray(value[:0] if value.dtype.names else value.astype("M8[s]")))
        refused(tmp_path / "file.npy", "numbers, strings or objects")


def test_arrays_whose_bytes_are_not_theirs(tmp_path):
    def array(shape, data, dtype="f8"):
        new = named("numpy.core.multiarray", "_reconstruct") + b"(" + named("numpy", "ndarray") + simple((0,))
        return (
            new + simple("b") + b"tR(" + simple(1) + simple(shape) + simple(np.dtype(dtype)) + b"\x89" + data + b"tb."
        )

    good = array((2, 1), b"U\x10" + bytes(16))
    assert equal(arrays.read(save(tmp_path, ".pkl", good)), np.zeros((2, 1)))
    for shape in [(3,), (-2,), (-2, -1), (2**62, 2**62), (2**61, 8), (2**64,), 2, None, ("2",), (2.0,), (1,) * 100]:
        refused(save(tmp_path, ".pkl", array(shape, b"U\x10" + bytes(16))))
    for shape in [(2**62, 0), (0, 2**62), (0, 2**31, 2**31, 2**31)]:
        refused(save(tmp_path, ".pkl", array(shape, b"U\x00")), "without any bytes")
    for data in (b"]", b"N", simple("x" * 16), simple(16), b")"):
        refused(save(tmp_path, ".pkl", array((2,), data)), "array of float64")
    for data in (b"]", b"U\x10" + bytes(16), b"N", b"N\x85"):
        refused(save(tmp_path, ".pkl", array((2,), data, object)), "array of object")
    fields = named("numpy", "dtype") + simple(("f8", False, True)) + b"R("
    fields += simple(3) + simple("<") + b"N" + simple(("a",)) + b"}" + simple(-1) + simple(-1) + simple(0) + b"tb."
    refused(save(tmp_path, ".pkl", fields), "structured")
    text = struct.pack("<2I", 65, 0x110000)
    refused(save(tmp_path, ".pkl", array((2,), b"U\x08" + text, "<U1")), "characters")
    refused(save(tmp_path, ".npy", npy(text, "'<U1'", "(2,)")), "characters")


@pytest.mark.parametrize(
    "descr, shape, word",
    [
        ("'<f4'", "(4,)", "declares"),
        ("'<f4'", "(2,)", "declares"),
        ("'<f4'", "(4611686018427387904,)", "declares"),
        ("'<f4'", "(4294967296, 4294967296)", "declares"),
        ("'<f4'", f"({'9' * 5000},)", ""),
        ("'<f4'", "(-3,)", "without descr"),
        ("'<f4'", "3", "without descr"),
        ("'<f4'", "(0, 4611686018427387904)", "without any bytes"),
        ("'|S0'", "(4611686018427387904,)", "without any bytes"),
        ("'|V12'", "(1,)", "numbers, strings or objects"),
        ("'<f3'", "(4,)", ""),
        ("'f4,f4,f4'", "(1,)", "numbers, strings or objects"),
        ("[('a', '<f4')]", "(3,)", "numbers, strings or objects"),
        ("__import__('os').system('true')", "(3,)", "without descr"),
    ],
)
def test_headers(tmp_path, descr, shape, word):
    content = npy(bytes(12), descr, shape)
    for suffix, make in ((".npy", bytes), (".npz", lambda content: zipped({"a.npy": content}, zipfile.ZIP_DEFLATED))):
        start = time.process_time()
        refused(save(tmp_path, suffix, make(content)), word)
        assert time.process_time() - start < 1


def test_a_plain_array_may_not_hide_in_an_object_file(tmp_path):
    for value in (np.zeros(1), [None], None, np.empty((1, 1), object)):
        refused(save(tmp_path, ".npy", npy(pickle.dumps(value))), "something else")


def test_names_and_places(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for path, word in [("none.npy", "cannot be read"), ("folder.npy", "cannot be read"), ("x.mat", "must end in .npy")]:
        with pytest.raises(InputError, match=word) as error:
            arrays.read(tmp_path / path)
        assert path in str(error.value)
    for suffix in (".npy", ".npz", ".pkl", ".pt", ".csv"):
        refused(save(tmp_path, suffix, b""), "is empty")
        if suffix != ".csv":
            refused(save(tmp_path, suffix, b"no such format\n" * 20))
    assert equal(arrays.read(save(tmp_path, ".PKL", pickle.dumps([1]))), [1])


# Tables


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("1,2\n3,4", [[1, 2], [3, 4]]),
        ("f0,f1\n1e3,-2\n", [[1000, -2]]),
        ("0,1\n5,6\n", [[5, 6]]),
        ("0,1,3\n", [[0, 1, 3]]),
        ("0\n0\n", [[0], [0]]),
        ("﻿a, b\r\n 1 , 2\r\n", [[1, 2]]),
        ("nan,inf\n", [[np.nan, np.inf]]),
    ],
)
def test_csv(tmp_path, text, expected):
    table = arrays.read(save(tmp_path, ".csv", text.encode()))
    np.testing.assert_array_equal(table, expected)
    assert table.dtype == np.float64


@pytest.mark.parametrize(
    "text, word",
    [
        (b"1,2\n3\n", "number of columns"),
        (b"1,2\n3,x\n", "'x'"),
        (b"1,2\n3,\n", "''"),
        (b",0,1\n0,5,6\n", "index=False"),
        (b"1,2\n" + b"1," * 2**19 + b"1\n", "line of"),
        (b"1," * 2**19 + b"1\n", "line of"),
        (b"\xff\xfe1\x00", "Decode"),
    ],
)
def test_tables_that_are_none(tmp_path, text, word):
    refused(save(tmp_path, ".csv", text), word)


@pytest.mark.filterwarnings("ignore:loadtxt")
def test_table_without_rows(tmp_path):
    refused(save(tmp_path, ".csv", b"a,b\n"), "no numbers")
    refused(save(tmp_path, ".csv", b"1,2\n" * 1000), "memory", limit=10_000)


# Damage


def small_files():
    """One small good file of every kind."""
    small = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": ["a", b"b", (1, 2.5, None)]}
    array = objects(small["x"], ["a"], [[1.0, 2.0]])
    file = io.BytesIO()
    np.save(file, small["x"])
    yield ".npy", file.getvalue()
    yield ".npy", npy(pickle.dumps(array, 4), shape="(3,)")
    for protocol in (0, 5):
        yield ".pkl", pickle.dumps(small, protocol)
    yield ".pkl", b"\x80\x02" + python2_array(small["x"], 2) + b"."
    for write, more in ((np.savez, {}), (np.savez_compressed, {"y": array})):
        file = io.BytesIO()
        write(file, x=small["x"], **more)
        yield ".npz", file.getvalue()
    weights = {"0": (6, small["x"].tobytes())}
    yield ".pt", torch_zip(b"\x80\x02" + tensor(storage()) + b".", weights)
    yield ".pth", torch_old(b"\x80\x02" + tensor(storage(old=True)) + b".", weights)
    yield ".csv", b"a,b\n1.5,2\n3,4\n"


def peak(action):
    """The most memory that Python and NumPy have at a time meanwhile, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


EXPECTED = (ValueError, TypeError, LookupError, OverflowError, OSError, EOFError, NotImplementedError, RuntimeError)
EXPECTED += (struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError)
"""What a damaged file may lead to; not, say, a NameError."""


def read_or_refuse(path):
    """Whether it can be read; anything but InputError fails."""
    try:
        arrays.read(path)
    except InputError as error:
        assert str(path) in str(error) and isinstance(error.__cause__, EXPECTED), repr(error.__cause__)
        assert not isinstance(error.__cause__, RecursionError)
        return False
    return True


@pytest.mark.filterwarnings("ignore")
def test_every_beginning_of_a_file(tmp_path):
    for suffix, content in small_files():
        assert read_or_refuse(save(tmp_path, suffix, content))
        for size in range(len(content)):
            assert not read_or_refuse(save(tmp_path, suffix, content[:size])) or suffix == ".csv", (suffix, size)


@pytest.mark.filterwarnings("ignore")
def test_random_damage(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = set()

    def damage():
        for suffix, content in small_files():
            for _ in range(25):
                damaged = bytearray(content)
                for at in rng.integers(0, len(content), rng.integers(1, 4)):
                    damaged[at] = rng.integers(256) if rng.random() < 0.5 else damaged[at] ^ (1 << rng.integers(8))
                outcomes.add((suffix, read_or_refuse(save(tmp_path, suffix, bytes(damaged)))))

    assert peak(damage) < 50e6 and len(outcomes) >= 10


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_checksums(tmp_path, compression):
    member = npy(np.arange(1000, dtype="<f8").tobytes(), "'<f8'", "(1000,)")
    content = bytearray(zipped({"a.npy": member}, compression))
    assert arrays.read(save(tmp_path, ".npz", content))["a"].sum() == 499500
    content[len(content) // 2] ^= 1
    refused(save(tmp_path, ".npz", content), "damaged")
    refused(save(tmp_path, ".npz", content), "limit", limit=8000)  # known before it is read


def test_other_zip_files(tmp_path):
    member = npy(bytes(8), "'<f8'", "(1,)")
    refused(save(tmp_path, ".npz", zipped({"a.npy": member}, zipfile.ZIP_BZIP2)), "compressed")
    refused(save(tmp_path, ".npz", zipped({"a.npy": member, "b.txt": b""})), "b.txt")
    encrypted = bytearray(zipped({"a.npy": member}))
    encrypted[encrypted.rindex(b"PK\1\2") + 8] |= 1
    refused(save(tmp_path, ".npz", encrypted), "encrypted")
    refused(save(tmp_path, ".pt", zipped({"a.npy": member})), "no file of tensors")


# Limits


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**63) + b"x.",
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x04X" + struct.pack("<I", 2**31) + b"x.",
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x02T" + struct.pack("<i", -1) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".",
    ],
)
def test_absurd_lengths_take_no_memory(tmp_path, payload):
    path = save(tmp_path, ".pkl", payload)
    assert peak(lambda: refused(path)) < 200_000
    path = save(tmp_path, ".pt", torch_old(payload))
    assert peak(lambda: refused(path)) < 200_000


def test_a_long_header_is_not_read(tmp_path):
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 10_000_000
    refused(save(tmp_path, ".npy", npy(bytes(8), "'<f8'", "(1,)" + " " * 20_000)), "header")
    for suffix, content in ((".npy", long), (".npz", zipped({"a.npy": long}, zipfile.ZIP_DEFLATED))):
        path = save(tmp_path, suffix, content)
        assert peak(lambda path=path: refused(path, "header")) < 500_000


def test_zip_bombs(tmp_path):
    zeros = npy(bytes(2**25), "'|u1'", f"({2**25},)")
    path = save(tmp_path, ".npz", zipped({"a.npy": zeros}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000
    assert peak(lambda: refused(path, "bytes", limit=2**25)) < 500_000  # the header is over it
    assert arrays.read_npz(path, limit=2**26)["a"].size == 2**25
    many = zipped({f"{i}.npy": zeros[: 2**20] for i in range(40)}, zipfile.ZIP_DEFLATED)
    path = save(tmp_path, ".npz", many)
    assert peak(lambda: refused(path, limit=2**25)) < 500_000
    # A member that declares less than it has, and one that has not the array that it declares.
    for content in (zeros, npy(bytes(2**25), "'|u1'", "(5,)")):
        bomb = bytearray(zipped({"a.npy": content}, zipfile.ZIP_DEFLATED))
        if content is zeros:
            start = bomb.rindex(b"PK\1\2")
            bomb[start + 24 : start + 28] = struct.pack("<I", 1000)
        path = save(tmp_path, ".npz", bomb)
        assert peak(lambda path=path: refused(path)) < 500_000
    bomb = bytearray(zipped({"archive/data.pkl": bytes(2**25)}, zipfile.ZIP_DEFLATED))
    start = bomb.rindex(b"PK\1\2")
    bomb[start + 24 : start + 28] = struct.pack("<I", 1000)
    path = save(tmp_path, ".pt", bomb)
    assert peak(lambda: refused(path, "damaged")) < 500_000


def test_only_what_is_not_in_the_file_counts_as_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MEMORY", 100_000)
    for write, fits in ((np.savez, True), (np.savez_compressed, False)):
        write(tmp_path / "file.npz", a=np.zeros(100_000))
        if fits:
            assert arrays.read_npz(tmp_path / "file.npz")["a"].size == 100_000
        else:
            refused(tmp_path / "file.npz", "memory")


def test_a_long_table_of_contents_is_not_read(tmp_path):
    content = bytearray(zipped({"a.npy": npy(bytes(8), "'<f8'", "(1,)")}))
    end = content.rindex(b"PK\5\6")
    with open(tmp_path / "file.npz", "wb") as file:
        file.truncate(2**30)
        file.seek(2**30)
        content[end + 12 : end + 16] = struct.pack("<I", 2**29)
        file.write(content[end:])
    assert peak(lambda: refused(tmp_path / "file.npz", "table of contents")) < 1_000_000


def test_small_files_do_not_grow_in_memory(tmp_path):
    new = named("numpy.core.multiarray", "_reconstruct") + b"(" + named("numpy", "ndarray") + simple((0,))
    new += simple("b") + b"t"
    array = b"R(" + simple(1) + simple((1000,)) + b"h\x10\x89h\x11tb"
    amplified = simple(np.dtype(object)) + b"q\x100](" + b"N" * 1000 + b"eq\x110(" + (new + array) * 1000 + b"t."
    dicts = b"(" + b"}" * 20_000 + b"t."
    marks = b"(" * 20_000 + b"."
    encoded = named("_codecs", "encode") + b"q\x010" + simple("x" * 10_000) + b"q\x020"
    encoded += b"(" + b"h\x01h\x02X\x06\x00\x00\x00latin1\x86R" * 1000 + b"t."
    pairs = b"](" + b"".join(simple((i, 0)) for i in range(1000)) + b"e\x85q\x300"
    pairs += b"(" + (named("collections", "OrderedDict") + b"h\x30R") * 20 + b"t."
    text = simple("x" * 600_000) + b"."
    for payload in (amplified, dicts, marks, encoded, pairs, text):
        path = save(tmp_path, ".pkl", payload)
        assert peak(lambda path=path: refused(path, "memory", limit=2 * 10**6)) < 3e6


def test_the_limit_is_exact(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1000))
    assert arrays.read_npy(tmp_path / "a.npy", limit=8000).size == 1000
    with pytest.raises(InputError, match="7,999 bytes"):
        arrays.read_npy(tmp_path / "a.npy", limit=7999)
    path = save(tmp_path, ".pkl", pickle.dumps([np.zeros(10**5), np.ones(10**5)]))
    assert len(arrays.read(path, limit=1_600_000)) == 2
    refused(path, "declares", limit=1_599_999)
    weights = {"0": (10**5, np.zeros(10**5, np.float32).tobytes())}
    both = tensor(storage(size=10**5), 0, (10**5,), (1,))
    path = save(tmp_path, ".pt", torch_zip(b"\x80\x02" + both + both + b"\x86.", weights))
    assert len(arrays.read(path, limit=800_000)) == 2
    refused(path, "declares", limit=799_999)


# Views


def sparse_objects(path, videos, t, d):
    """An object array of float32 zeros that takes no room, with 1 + i at the end of array i."""
    with open(path, "wb") as file:
        file.write(npy(b"", shape=f"({videos},)"))
        head, tail = pickle.dumps(objects(*[()] * videos), 4).split(b")" * videos)
        file.write(head)
        for i in range(videos):
            new = named("numpy._core.multiarray", "_reconstruct") + b"(" + named("numpy", "ndarray") + simple((0,))
            new += b"C\x01btR(" + simple(1) + simple((t, d)) + simple(np.dtype("f4")) + b"\x89"
            file.write(new + b"\x8e" + struct.pack("<Q", 4 * t * d))
            file.seek(4 * t * d - 4, os.SEEK_CUR)
            file.write(struct.pack("<f", 1 + i) + b"tb")
        file.write(tail)


def test_a_large_file_opens_at_once(tmp_path):
    path = tmp_path / "features.npy"
    sparse_objects(path, 3, 131_072, 2048)
    assert path.stat().st_size > 3 * 2**30
    start = time.process_time()
    read = []
    assert peak(lambda: read.append(arrays.read_npy(path))) < 500_000
    assert time.process_time() - start < 1
    for i, video in enumerate(read[0]):
        assert video.shape == (131_072, 2048) and video.dtype == np.float32
        assert not video.flags.writeable and not video.flags.owndata
        assert video[0, 0] == video[70_000, 5] == 0 and video[-1, -1] == 1 + i
    with pytest.raises(InputError, match="declares"):
        arrays.read_npy(path, limit=3 * 2**30 - 1)
    with open(path, "r+b") as file:
        file.truncate(2**30)
    assert peak(lambda: refused(path, "too early")) < 500_000


def test_arrays_are_views(tmp_path):
    array = np.arange(10_000.0)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", objects(array, array[:600]), allow_pickle=True)
    np.savez(tmp_path / "c.npz", a=array)
    content = {"0": (10_000, array.tobytes())}
    of = tensor(storage("0", "DoubleStorage", 10_000), 0, (10_000,), (1,))
    save(tmp_path, ".pt", torch_zip(b"\x80\x02" + of + b".", content))
    read = [arrays.read_npy(tmp_path / "a.npy"), arrays.read_npy(tmp_path / "b.npy")[0]]
    read += [arrays.read_npz(tmp_path / "c.npz")["a"], arrays.read_pt(tmp_path / "file.pt")]
    for one in read:
        assert not one.flags.owndata and not one.flags.writeable and np.array_equal(one, array)
    for path in tmp_path.iterdir():
        assert peak(lambda path=path: arrays.read(path)) < 70_000 < peak(array.copy)
