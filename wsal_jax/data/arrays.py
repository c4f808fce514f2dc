"""Users' arrays, as NumPy, Python and PyTorch write them, read without running anything that is in them.

`.npy`, `.npz`, `.pkl`, `.pt` and `.csv`, with NumPy and the standard library only. `np.load(allow_pickle=True)`,
`pickle.load` and older versions of `torch.load` run whatever a file asks for. Here a pickle is only data:

- `_Pickle` reads its opcodes itself. The name of a function in it is looked up in the table `_NAMES` and nowhere else;
  nothing is imported, and no attribute looked up or set. The table has only functions of this module, which check what
  they are given. Opcodes that make other objects are refused.
- What comes back is a finite tree: arrays, numbers, str, bytes, bool and None in lists, tuples and dicts. (An
  OrderedDict is a dict; a tensor is an array, of bfloat16 a float32 one; what Python 2 wrote as str is bytes, for its
  encoding is not known; long bytes that are no array are a memoryview.) Lists that contain themselves are refused, and
  those that contain each other so often that it would take forever to go through them.
- Shapes are checked against the bytes that are there, and sizes against the limits, before memory is taken.

Arrays are views on the file where they can be, read-only, so a large file opens at once; do not change it meanwhile.
What must be taken into memory (compressed arrays, text, the objects around arrays) has a limit of its own, MEMORY.
Members of zip files (`.npz`, `.pt`) are checked against their checksums, which reads them once.

Whatever is wrong with a file is an InputError that names it.
"""

import codecs
import io
import math
import mmap
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TextIO

import numpy as np
from jaxtyping import Float

from wsal_jax.types import InputError

LIMIT = 64 * 2**30
"""Bytes that the arrays of a file may have together; the default of `limit`."""
MEMORY = 4 * 2**30
"""Bytes that a file may take in memory, apart from views on it."""
DEPTH = 50
"""How deep lists, tuples, dicts and object arrays may be nested."""
OBJECT = 200
"""Bytes that an opcode of a pickle, or an item of a list, counts for; an empty dict with its place in the memo."""
COPIED = 4096
"""Bytes of a pickle up to this length are copied; longer ones stay in the file."""
HEADER = 2**14
"""Bytes that the header of a .npy may have."""
LINE = 2**20
"""Characters that a line of a .csv may have."""
DIRECTORY = 2**24
"""Bytes that the table of contents of a zip file may have."""

Path = str | os.PathLike


def read(path: Path, limit: int = LIMIT) -> Any:
    """What a file holds, read by the function below for the suffix of its name (.pickle and .pth too)."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise InputError(f"{path} is no file of arrays by its name: it must end in {', '.join(_READERS)}")
    return _READERS[suffix](path, limit)


def read_npy(path: Path, limit: int = LIMIT) -> np.ndarray:
    """The array of a .npy file; the arrays in an object array are views on the file as well."""
    with _opened(path, "with np.save(..., allow_pickle=False)") as view:
        return _npy(view, _Budget(limit))


def read_npz(path: Path, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; views on the file where it is not compressed."""
    with _opened(path, "with np.savez") as view:
        arrays, budget = {}, _Budget(limit)
        for name, info in _members(path, limit).items():
            if not name.endswith(".npy"):
                raise InputError(f"has the member {name[:100]!a}, which is no .npy")
            arrays[name.removesuffix(".npy")] = _npy(_member(view, info, budget, _header), budget)
        return arrays


def read_pickle(path: Path, limit: int = LIMIT) -> Any:
    """What a pickle of arrays, numbers and text in lists, tuples and dicts holds; protocols 0 to 5, of Python 2 too."""
    with _opened(path, "with np.savez") as view:
        return _Pickle(view, _Budget(limit)).load()


def read_pt(path: Path, limit: int = LIMIT) -> Any:
    """What `torch.save` wrote, in the zip format (since 1.6) or the old one, with arrays for tensors; without torch."""
    with _opened(path, "with torch.save, as a tensor or a dict of them, contiguous and on the CPU") as view:
        return _torch_zip(path, view, _Budget(limit)) if view[:2] == b"PK" else _torch_old(view, _Budget(limit))


def read_csv(path: Path, limit: int = LIMIT) -> Float[np.ndarray, "n d"]:
    """A table of numbers with commas between; a first line with words in it, or 0,1,2,... (pandas), is a header."""
    with _opened(path, "as lines of numbers with commas between") as view, open(path, encoding="utf-8-sig") as file:
        _Budget(limit).take(8 * len(view))  # "1," becomes 8 bytes, in an array that grows
        words = next(_lines(file)).strip().split(",")
        if words[0] == "" and len(words) > 1:
            raise InputError("begins with a column without a name, an index and no feature: leave it out (index=False)")
        counted = len(words) > 1 and words == [str(i) for i in range(len(words))]
        if all(map(_is_number, words)) and not counted:
            file.seek(0)
        table = np.loadtxt(_lines(file), delimiter=",", comments=None, ndmin=2)
        if not table.size:
            raise InputError("has no numbers in it")
        return table


_READERS: dict[str, Callable[[Path, int], Any]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".pkl": read_pickle,
    ".pickle": read_pickle,
    ".pt": read_pt,
    ".pth": read_pt,
    ".csv": read_csv,
}


@contextmanager
def _opened(path: Path, advice: str) -> Iterator[memoryview]:
    """The bytes of a file, mapped; whatever goes wrong with them is told of this file."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError("is empty")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield view
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): is it there, and a file that you may read?") from error
    except Exception as error:  # a damaged file can fail in any way
        what = error if isinstance(error, InputError) else f"is damaged, or of another format ({error!r:.300})"
        raise InputError(f"{path} {what}. Get it again from where it is from, or save it again {advice}.") from error


class _Budget:
    """What a file may still declare and take into memory."""

    def __init__(self, limit: int):
        self.declared, self.memory, self.limit = limit, min(limit, MEMORY), limit

    def declare(self, size: int):
        self.declared -= size
        if self.declared < 0:
            raise InputError(f"declares arrays of more than {self.limit:,} bytes together, the limit: split it")

    def take(self, size: int):
        self.memory -= size
        if self.memory < 0:
            most = min(self.limit, MEMORY)
            raise InputError(f"would take more than {most:,} bytes of memory, the limit: split it, uncompressed")


# Arrays

_DTYPE = re.compile(r"[<>=|]?(\?|[biufc][0-9]{1,2}|[SU][0-9]{1,6}|O[48]?)")


def _dtype(text: Any) -> np.dtype:
    text = _text(text)
    _check(text, str)
    if not _DTYPE.fullmatch(text):
        raise InputError(f"has an array of dtype {text!a:.100}: must be numbers, strings or objects")
    return np.dtype(object if "O" in text else text)


def _count(shape: Any, itemsize: int) -> int:
    """How many elements; an array without bytes may not pretend to be long, for one would go through it forever."""
    if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise InputError("has an array whose shape is not up to 32 sizes")
    count = math.prod(shape)
    if not count * itemsize and max(itemsize, 1) * math.prod(max(n, 1) for n in shape) > 2**20:
        raise InputError(f"has an array of the shape {shape} without any bytes")
    return count


def _array(budget: _Budget, dtype: np.dtype, shape: Any, order: str, data: Any) -> np.ndarray:
    """The view on `data` (bytes), or the object array of `data` (a list)."""
    count = _count(shape, dtype.itemsize)
    if type(data) not in ((list,) if dtype.hasobject else (bytes, memoryview)):
        raise InputError(f"has an array of {dtype} made of a {type(data).__name__}")
    size = count if dtype.hasobject else count * dtype.itemsize
    if len(data) != size:
        raise InputError(f"has an array of {dtype} {shape}, which is {size} bytes or elements, and {len(data)} of them")
    if dtype.hasobject:
        budget.take(8 * count)
        return np.fromiter(data, object, count).reshape(shape, order=order)
    budget.declare(size)
    if dtype.kind == "U" and np.frombuffer(data, f"{dtype.byteorder}u4").max(initial=0) > 0x10FFFF:
        raise InputError("has text with characters that do not exist")  # NumPy would fail when they are looked at
    return np.ndarray(shape, dtype, data, order=order)


def _header(head: Any, size: int) -> tuple[np.dtype, tuple[int, ...], str, int]:
    """Dtype, shape, order and where the data begins, of a .npy of `size` bytes, from its first bytes."""
    if head[:6] != b"\x93NUMPY" or head[6] not in (1, 2, 3):
        raise InputError("is no .npy, or has a member that is none")
    length = struct.Struct("<H" if head[6] == 1 else "<I")
    start = 8 + length.size + length.unpack(head[8 : 8 + length.size])[0]
    if start > min(HEADER, size):
        raise InputError(f"declares a header of {start} bytes: must be at most {HEADER}, and in the file")
    text = bytes(head[:start]).decode("latin1")
    descr = re.search(r"'descr': *('[^']*'|\[)", text)  # "[" begins the fields of a structured array
    order = re.search(r"'fortran_order': *(True|False)", text)
    shape = re.search(r"'shape': *\(([0-9L, ]*)\)", text)
    if not (descr and order and shape):
        raise InputError("has a header without descr, fortran_order and shape")
    dtype, sizes = _dtype(descr[1].strip("'")), tuple(int(n) for n in re.findall("[0-9]{1,20}", shape[1]))
    needed = _count(sizes, dtype.itemsize) * dtype.itemsize
    if not dtype.hasobject and needed != size - start:
        raise InputError(f"declares an array of {dtype} {sizes}, which is {needed} bytes, and has {size - start}")
    return dtype, sizes, "F" if order[1] == "True" else "C", start


def _npy(view: memoryview, budget: _Budget) -> np.ndarray:
    dtype, shape, order, start = _header(view[:HEADER], len(view))
    if not dtype.hasobject:
        return _array(budget, dtype, shape, order, view[start:])
    array = _Pickle(view[start:], budget).load()
    if not isinstance(array, np.ndarray) or not array.dtype.hasobject or array.shape != shape:
        raise InputError(f"declares an object array {shape}, and has something else")
    return array


# Pickles


class _Name(NamedTuple):
    """What stands for a function or class that a pickle names."""

    text: str
    call: Callable[..., Any] | None = None
    dtype: np.dtype | None = None
    """Of a torch storage."""


class _Storage(NamedTuple):
    """What tensors are views on; `data` is None as long as nobody knows where it is."""

    dtype: np.dtype
    data: memoryview | None


class _Unbuilt:
    """An array or dtype for which BUILD has still to come, and what it was built to then."""

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype, self.value = dtype, None


_OPCODES = {code[0]: name for name, code in vars(pickle).items() if isinstance(code, bytes) and len(code) == 1}
_LAYOUTS = {
    "<B": "BININT1 BINPUT BINGET SHORT_BINSTRING SHORT_BINBYTES SHORT_BINUNICODE LONG1 PROTO",
    "<H": "BININT2",
    "<i": "BININT BINSTRING",
    "<I": "LONG_BINPUT LONG_BINGET BINBYTES BINUNICODE",
    "<Q": "BINBYTES8 BYTEARRAY8 BINUNICODE8 FRAME",
    ">d": "BINFLOAT",
}
_OPERANDS = {opcode: struct.Struct(layout) for layout, opcodes in _LAYOUTS.items() for opcode in opcodes.split()}
"""The number that follows an opcode."""


class _Pickle:
    """Pickles in `view`, read one after the other from `at` on. `storage` finds the bytes of a torch storage."""

    def __init__(self, view: memoryview, budget: _Budget, storage: Callable[[str], memoryview | None] | None = None):
        self.view, self.budget, self.storage, self.at = view, budget, storage, 0
        self.order = "<"
        """Of the bytes in torch storages."""
        self.declared: dict[str, tuple[int, int]] = {}
        """How many elements and bytes a torch storage has, by key."""

    def load(self) -> Any:
        """The tree of data that the next pickle stands for."""
        value = self.run()
        items, _ = _measure(value, 0, {})
        if items * OBJECT > MEMORY:
            raise InputError(f"has lists that contain each other so often that there are {items:,} items in all")
        return value

    def run(self) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def popped() -> list[Any]:
            """What is above the last mark."""
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        while self.at < len(self.view):
            self.budget.memory -= OBJECT
            if self.budget.memory < 0:
                self.budget.take(0)  # raises
            opcode, operand = _OPCODES.get(self.view[self.at]), None
            self.at += 1
            if opcode in _OPERANDS:
                (operand,) = _OPERANDS[opcode].unpack_from(self.view, self.at)
                self.at += _OPERANDS[opcode].size
            match opcode:
                case "BININT1" | "BININT2" | "BININT" | "BINFLOAT":
                    stack.append(operand)
                case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                    key = len(memo) if opcode == "MEMOIZE" else self.integer() if opcode == "PUT" else operand
                    memo[key] = stack[-1]
                case "BINGET" | "LONG_BINGET" | "GET":
                    value = memo[self.integer() if opcode == "GET" else operand]
                    stack.append(value.value if isinstance(value, _Unbuilt) and value.value is not None else value)
                case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                    self.budget.take(4 * operand)
                    stack.append(str(self.next(operand), "utf-8", "surrogatepass"))
                case "SHORT_BINSTRING" | "BINSTRING" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                    payload = self.next(operand)
                    if operand <= COPIED:
                        self.budget.take(operand)
                    stack.append(bytes(payload) if operand <= COPIED else payload)
                case "UNICODE":
                    stack.append(self.line(5).decode("raw-unicode-escape"))
                case "STRING":
                    text = self.line(2)
                    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
                        raise InputError("has a string without quotes")
                    stack.append(codecs.escape_decode(text[1:-1])[0])
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode == "NEWTRUE")
                case "INT" | "LONG":
                    stack.append(self.integer())
                case "LONG1":
                    if operand > 16:
                        raise InputError(f"has an integer of {operand} bytes")
                    stack.append(int.from_bytes(self.next(operand), "little", signed=True))
                case "FLOAT":
                    stack.append(float(self.line()))
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(opcode[-1])
                    stack[-size:] = [tuple(stack[-size:])]
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE":
                    stack.append(tuple(popped()))
                case "LIST":
                    stack.append(popped())
                case "DICT":
                    stack.append(_fill({}, popped()))
                case "APPEND" | "APPENDS":
                    items = popped() if opcode == "APPENDS" else [stack.pop()]
                    if type(stack[-1]) is not list:
                        raise InputError(f"appends to a {type(stack[-1]).__name__}")
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS":
                    items = popped() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
                    _fill(stack[-1], items)
                case "POP":
                    stack.pop()
                case "POP_MARK":
                    popped()
                case "DUP":
                    stack.append(stack[-1])
                case "GLOBAL":
                    stack.append(_named(self.line().decode(), self.line().decode()))
                case "STACK_GLOBAL":
                    stack.append(_named(stack.pop(-2), stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack[-1] = self.call(stack[-1], arguments)
                case "BUILD":
                    state = stack.pop()
                    stack[-1] = self.build(stack[-1], state)
                case "BINPERSID":
                    stack[-1] = self.persistent(stack[-1])
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case _:
                    if opcode == "INST":
                        _named(self.line().decode(), self.line().decode())  # says which
                    raise InputError(f"has the pickle opcode {opcode}, which arrays do not need; it is refused")
        raise InputError("ends too early: its pickle does not say that it is over")

    def next(self, size: int) -> memoryview:
        """The next bytes, not copied."""
        left = len(self.view) - self.at
        if not 0 <= size <= left:
            raise InputError(f"ends too early: {size} bytes should follow, {left} do")
        self.at += size
        return self.view[self.at - size : self.at]

    def line(self, factor: int = 1) -> bytes:
        """The rest of the line, which becomes at most `factor` times as many bytes."""
        newline = re.compile(b"\n").search(self.view, self.at)
        if not newline:
            raise InputError("ends in the middle of a line")
        self.budget.take(factor * (newline.end() - self.at))
        return bytes(self.next(newline.end() - self.at)[:-1])

    def integer(self) -> int | bool:
        """False and True are written as 00 and 01."""
        line = self.line()
        if not re.fullmatch(rb"[+-]?[0-9]{1,30}L?", line):
            raise InputError(f"has the integer {line!r:.100}")
        return line == b"01" if line in (b"00", b"01") else int(line.rstrip(b"L"))

    def call(self, name: Any, arguments: Any) -> Any:
        if not isinstance(name, _Name) or name.call is None or type(arguments) is not tuple:
            raise InputError(f"calls {name.text if isinstance(name, _Name) else 'what is no function'}; it is refused")
        try:
            return name.call(self, *arguments)
        except InputError:
            raise
        except (TypeError, ValueError, LookupError) as error:
            raise InputError(f"calls {name.text} with what it cannot take ({error!r:.300})") from error

    def build(self, unbuilt: Any, state: Any) -> Any:
        """An array from (version, shape, dtype, Fortran's order?, data), or a dtype from (version, byte order, ...)."""
        if type(unbuilt) is dict and type(state) is dict:
            return unbuilt  # attributes of an OrderedDict, such as a state_dict's `_metadata`
        if type(unbuilt) is not _Unbuilt or type(state) is not tuple or len(state) < 5:
            raise InputError(f"sets the state of a {type(unbuilt).__name__.strip('_')}; it is refused")
        if unbuilt.dtype is None:
            _check(state[2], np.dtype)
            unbuilt.value = _array(self.budget, state[2], state[1], "F" if state[3] else "C", state[4])
        elif any(part is not None for part in state[2:5]):
            raise InputError("has a structured array: save each of its fields as an array")
        else:
            unbuilt.value = unbuilt.dtype.newbyteorder(_text(state[1]))
        return unbuilt.value

    def persistent(self, id: Any) -> _Storage:
        """From ("storage", kind, key, device, number of elements), and None in the old format: part of no other one."""
        match id:
            case (word, _Name(dtype=np.dtype() as dtype), str() | bytes() as key, _, int(count), *part):
                good = _text(word) == "storage" and count >= 0 and part in ([], [None])
            case _:
                good = False
        if not good or self.storage is None:
            raise InputError("has a persistent id that is no storage of a tensor; it is refused")
        key, size = _text(key), count * dtype.itemsize
        self.declared[key] = (count, size)
        data = self.storage(key)
        if data is not None and len(data) != size:
            raise InputError(f"has a storage of {len(data)} bytes that should be {size}")
        return _Storage(dtype, data)


# What the names in a pickle stand for; each is given the `_Pickle` and what the pickle calls it with


def _reconstruct(pickle: _Pickle, kind: Any, shape: Any, code: Any) -> _Unbuilt:
    """An array that has still to be built; shape and code are those of an empty one."""
    if kind is not _NAMES["numpy", "ndarray"]:
        raise TypeError("must be a numpy.ndarray")
    return _Unbuilt()


def _new_dtype(pickle: _Pickle, text: Any, align: Any = None, copy: Any = None) -> _Unbuilt:
    return _Unbuilt(_dtype(text))


def _scalar(pickle: _Pickle, dtype: Any, data: Any) -> Any:
    _check(dtype, np.dtype)
    return _array(pickle.budget, dtype, (), "C", data)[()]


def _frombuffer(pickle: _Pickle, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Order "K": an array in the order "C", whose axes are then permuted."""
    _check(dtype, np.dtype)
    if order == "K":
        return _array(pickle.budget, dtype, shape, "C", data).transpose(axes)
    return _array(pickle.budget, dtype, shape, order, data)


def _encode(pickle: _Pickle, text: Any, encoding: Any) -> bytes:
    """Bytes of Python 3 in the protocols 0 to 2."""
    _check(text, str)
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("must be latin1")
    pickle.budget.take(len(text))
    return text.encode("latin1")


def _no_bytes(pickle: _Pickle) -> bytes:
    """Empty bytes of Python 3 in the protocols 0 to 2."""
    return b""


def _ordered_dict(pickle: _Pickle, pairs: Any = ()) -> dict[Any, Any]:
    _check(pairs, list, tuple)
    pickle.budget.take(OBJECT * len(pairs))
    return _fill({}, [part for key, value in pairs for part in (key, value)])


def _size(pickle: _Pickle, sizes: Any) -> tuple[Any, ...]:
    _check(sizes, tuple)
    return sizes


def _tensor(pickle: _Pickle, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray | None:
    """A part of its storage; None as long as nobody knows where that is. The first two of `rest` are for gradients."""
    _check(storage, _Storage)
    if any(rest[2:]):
        raise ValueError("metadata: use .resolve_conj() and .resolve_neg()")
    if storage.data is None:
        return None
    itemsize = storage.dtype.itemsize
    count = _count(shape, itemsize)
    if type(strides) is not tuple or not all(type(n) is int and n >= 0 for n in (offset, *strides)):
        raise TypeError("must have an offset and strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count and max(count, last + 1) * itemsize > len(storage.data):
        raise ValueError(f"{shape} with strides {strides} from {offset} on is more than the storage: use .contiguous()")
    pickle.budget.declare(count * itemsize)
    if count == 0:
        array = np.zeros(shape, storage.dtype)
    else:
        dtype, steps = storage.dtype.newbyteorder(pickle.order), [stride * itemsize for stride in strides]
        array = np.ndarray(shape, dtype, storage.data, offset * itemsize, steps)
    if array.dtype.names:
        pickle.budget.take(4 * count)
        array = np.left_shift(array["bfloat16"], 16, dtype=np.uint32).view(np.float32)
    return array


def _parameter(pickle: _Pickle, tensor: Any, gradient: Any, hooks: Any) -> np.ndarray | None:
    _check(tensor, np.ndarray, type(None))
    return tensor


_CALLS: dict[str, Callable[..., Any] | None] = {
    "numpy.core.multiarray _reconstruct": _reconstruct,
    "numpy.core.multiarray scalar": _scalar,
    "numpy.core.numeric _frombuffer": _frombuffer,
    "numpy._core.multiarray _reconstruct": _reconstruct,
    "numpy._core.multiarray scalar": _scalar,
    "numpy._core.numeric _frombuffer": _frombuffer,
    "numpy ndarray": None,
    "numpy dtype": _new_dtype,
    "_codecs encode": _encode,
    "__builtin__ bytes": _no_bytes,
    "builtins bytes": _no_bytes,
    "collections OrderedDict": _ordered_dict,
    "torch Size": _size,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
_STORAGES = (
    "Double:f8 Float:f4 Half:f2 Long:i8 Int:i4 Short:i2 Char:i1 Byte:u1 Bool:? ComplexFloat:c8 ComplexDouble:c16"
)
_DTYPES = {name: np.dtype(code) for name, code in (pair.split(":") for pair in _STORAGES.split())}
_DTYPES["BFloat16"] = np.dtype([("bfloat16", "u2")])
_NAMES = {tuple(key.split()): _Name(key.replace(" ", "."), call) for key, call in _CALLS.items()} | {
    (module, f"{name}Storage"): _Name(f"{module}.{name}Storage", None, dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in _DTYPES.items()
}
"""All that a pickle may name, by module and name."""


def _named(module: Any, name: Any) -> _Name:
    _check(module, str)
    _check(name, str)
    if (module, name) not in _NAMES:
        full = ascii(f"{module:.150}.{name:.150}")
        raise InputError(f"names {full[1:-1]}, which arrays do not need and which could run something; it is refused")
    return _NAMES[module, name]


def _fill(target: Any, items: list[Any]) -> dict[Any, Any]:
    """Keys only of the kinds that are quick to hash and cannot be made to collide."""
    if type(target) is not dict or len(items) % 2:
        raise InputError(f"sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        if not isinstance(key, str | bytes) and not (type(key) is int and abs(key) < 2**63):
            raise InputError(f"has a dict with a key of type {type(key).__name__}: must be str, bytes or int")
        target[key] = value
    return target


_LEAVES = (str, bytes, int, float, bool, type(None))


def _measure(value: Any, depth: int, seen: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many items there are, shared ones counted every time, and how deep; `seen` are those known, by `id`."""
    if isinstance(value, dict):
        children = value.values()
    elif type(value) in (list, tuple):
        children = value
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        children = value.flat
    elif type(value) in _LEAVES or isinstance(value, np.generic | np.ndarray | memoryview):
        return 1, 0
    else:
        raise InputError(f"holds a {type(value).__name__.strip('_')}, which is no data or not finished; it is refused")
    if id(value) not in seen and depth < DEPTH:
        measured = [_measure(child, depth + 1, seen) for child in children if type(child) not in _LEAVES]
        items = 1 + len(children) + sum(items for items, _ in measured)
        seen[id(value)] = items, 1 + max((below for _, below in measured), default=0)
    if id(value) not in seen or depth + seen[id(value)][1] > DEPTH:
        raise InputError(f"nests lists more than {DEPTH} deep, or has one that contains itself")
    return seen[id(value)]


def _check(value: Any, *kinds: type):
    """Nothing else of `value` may be shown, for that might take forever."""
    if not isinstance(value, kinds):
        raise TypeError(f"a {type(value).__name__.strip('_')} instead of a {kinds[0].__name__.strip('_')}")


def _text(value: Any) -> Any:
    """Python 2 wrote bytes where Python 3 writes str."""
    return value.decode("latin1") if isinstance(value, bytes) else value


# Files of several parts


class _Directory(io.FileIO):
    """A file that `zipfile` reads the table of contents of, which it does at once, however long that is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY:
            raise InputError(f"has a table of contents of {size} bytes: must be at most {DIRECTORY}")
        return super().read(size)


def _members(path: Path, limit: int) -> dict[str, zipfile.ZipInfo]:
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
    _Budget(limit).declare(sum(info.file_size for info in members.values()))
    return members


def _member(
    view: memoryview, info: zipfile.ZipInfo, budget: _Budget, check: Callable[[bytes, int], Any] | None = None
) -> memoryview:
    """The bytes of a member; before they are decompressed, `check` sees the first ones, and how many there will be."""
    name, start, size = info.filename[:100], max(info.header_offset, 0), info.file_size
    header = view[start : start + 30]
    if header[:4] != b"PK\3\4":
        raise InputError(f"is damaged: its member {name!a} is not where it should be")
    start += 30 + sum(struct.unpack("<HH", header[26:]))
    data = view[start : start + info.compress_size]
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"has the member {name!a}, which is encrypted, or compressed in another way than by deflate")
    if info.compress_type == zipfile.ZIP_DEFLATED:
        budget.take(size)
        if check:
            check(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, HEADER), size)
        data = memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1))
    if len(data) != size or zlib.crc32(data) != info.CRC:
        raise InputError(f"is damaged: length or checksum of its member {name!a} are not as declared")
    return data


def _torch_zip(path: Path, view: memoryview, budget: _Budget) -> Any:
    """Members `<name>/data.pkl`, `<name>/data/<key>` for each storage and, in newer files, `<name>/byteorder`."""
    members = _members(path, budget.limit)
    pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in members):
        raise InputError("is no file of tensors: torch.jit.save is not supported")
    root = pickles[0].removesuffix("data.pkl")
    storage = cache(lambda key: _member(view, members[f"{root}data/{key}"], budget))
    reader = _Pickle(_member(view, members[pickles[0]], budget), budget, storage)
    if f"{root}byteorder" in members:
        reader.order = {b"little": "<", b"big": ">"}[bytes(_member(view, members[f"{root}byteorder"], budget))]
    return reader.load()


def _torch_old(view: memoryview, budget: _Budget) -> Any:
    """Pickles of a magic number, the version, the system, the object, and the keys of the storages, which follow.

    How long each is only the object tells, so that is read once for their lengths, and again for the tensors.
    """
    storages: dict[str, memoryview] = {}
    reader = _Pickle(view, budget, lambda key: None)
    if reader.load() != 0x1950A86A20F9469CFC6C or reader.load() != 1001:
        raise InputError("is not of torch.save, or older than torch 0.1.10")
    system = reader.load()
    _check(system, dict)
    system = {_text(key): value for key, value in system.items()}
    reader.order = "<" if system["little_endian"] else ">"
    start = reader.at
    reader.run()
    keys = [_text(key) for key in reader.load()]
    for key in keys:
        count, size = reader.declared[key]
        if struct.unpack(f"{reader.order}q", reader.next(8))[0] != count:
            raise InputError("is damaged: a storage has another length than is declared")
        storages[key] = reader.next(size)
    reader.at, reader.storage = start, storages.__getitem__
    return reader.load()


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(LINE):
        if len(line) == LINE:
            raise InputError(f"has a line of {LINE} characters or more")
        yield line


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
