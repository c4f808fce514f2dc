"""Foreign files made by hand, byte by byte, and helpers for the tests of their readers."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsal_jax.formats import arrays, files
from wsal_jax.types import InputError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


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
    """A tensor as torch.save writes it."""
    parts = (
        of + simple(offset) + simple(shape) + simple(strides) + b"\x89" + named("collections", "OrderedDict") + b")R"
    )
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b"tR"


def python2_array(array, protocol):
    """An array as Python 2 with NumPy 1 pickles it, between PROTO and STOP."""

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
    """Checks that reading fails with a message that names the file and contains the words."""
    with pytest.raises(InputError) as error:
        arrays.read(path, limit)
    assert str(path) in str(error.value) and "save it again" in str(error.value)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


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
    """Peak memory of Python and NumPy during the call, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
