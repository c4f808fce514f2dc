"""Pickles: valid ones are read, and nothing is executed."""

import pickle
import shlex
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.foreign import (
    CONTAINERS,
    ROOT,
    equal,
    named,
    npy,
    objects,
    peak,
    python2_array,
    refused,
    save,
    simple,
    small_files,
    storage,
    torch_old,
)
from wsal_jax.formats import arrays

NEVER_IMPORTED = "antigravity"  # a module that does something when it is imported


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
    """Pickles that make `pickle` itself run `command`, and words that our message must contain."""
    text = simple(command)
    for module in ("os", "posix"):
        yield named(module, "system") + text + b"\x85R.", f"{module}.system"
        yield b"\x80\x04" + simple(module) + simple("system") + b"\x93" + text + b"\x85R.", f"{module}.system"
    yield b"(" + text + b"ios\nsystem\n.", "os.system"
    yield b"(" + named("os", "system") + text + b"o.", "os.system"


def attacks(command):
    """These and similar pickles."""
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
    """`pickle` does execute them, so the refused pickles above are not just malformed."""
    marker = tmp_path / "marker"
    code = "import sys, pickle; pickle.loads(bytes.fromhex(sys.argv[1]))"
    for payload, _ in running(f"touch {shlex.quote(str(marker))}"):
        subprocess.run([sys.executable, "-c", code, payload.hex()], capture_output=True)
        assert marker.exists(), payload
        marker.unlink()


def test_reading_imports_and_executes_nothing(tmp_path):
    """Verified by the interpreter's audit events, in a process without JAX."""
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


@pytest.mark.usefixtures("unchecked")
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


def test_a_plain_array_may_not_hide_in_an_object_file(tmp_path):
    for value in (np.zeros(1), [None], None, np.empty((1, 1), object)):
        refused(save(tmp_path, ".npy", npy(pickle.dumps(value))), "something else")


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


@pytest.mark.usefixtures("unchecked")
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
