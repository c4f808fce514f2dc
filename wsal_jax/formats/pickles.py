"""Reads pickles as data with a restricted subclass of `pickle`'s Unpickler, without executing anything in them.

The usual allow-list in `find_class` of a `pickle.Unpickler` is not enough: in the C version a file of 10 bytes can take
64 GB (LONG_BINPUT), BUILD sets attributes of any object, keys of dicts can take forever to hash, and all arrays are
copied. Our `Unpickler` therefore extends the Python version, which has a method for each opcode, and replaces or
refuses the opcodes that trust the file:

- Functions are looked up only in the table `names`. Nothing is imported, and no attribute is read or set. The table has
  only methods of this class, which check their arguments. Opcodes that create other objects are refused.
- The result is a finite tree: arrays, numbers, str, bytes, bool and None in lists, tuples and dicts. An OrderedDict
  becomes a dict. A str of Python 2 becomes bytes, because its encoding is unknown. Long bytes outside arrays become a
  memoryview. Lists that contain themselves are refused, and so are nested lists that share items so often that
  traversing them would take forever.
- Arrays are views on the file, so their size costs no memory.
"""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from wsal_jax.formats.files import LIMIT, MEMORY, Budget, Path, opened
from wsal_jax.types import InputError

DEPTH = 50
"""Largest nesting depth of lists, tuples, dicts and object arrays."""
OBJECT = 200
"""Bytes that we charge for an opcode or a list item: the size of an empty dict and its memo entry."""
COPIED = 4096
"""Bytes objects up to this length are copied; longer ones stay views on the file."""


def read_pickle(path: Path, limit: int = LIMIT) -> Any:
    """The content of a pickle: arrays, numbers and text in lists, tuples and dicts. Protocols 0 to 5, also of Python
    2."""
    with opened(path, "with np.savez") as view:
        return Unpickler(view, Budget(limit)).load()


# Arrays

_DTYPE = re.compile(r"[<>=|]?(\?|[biufc][0-9]{1,2}|[SU][0-9]{1,6}|O[48]?)")


def dtype(code: Any) -> np.dtype:
    code = text(code)
    check(code, str)
    if not _DTYPE.fullmatch(code):
        raise InputError(f"has an array of dtype {code!a:.100}: must be numbers, strings or objects")
    return np.dtype(object if "O" in code else code)


def count(shape: Any, itemsize: int) -> int:
    """The number of elements. An array without bytes must not declare a huge shape, which would take forever to
    traverse."""
    if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise InputError("has an array whose shape is not up to 32 sizes")
    elements = math.prod(shape)
    if not elements * itemsize and max(itemsize, 1) * math.prod(max(n, 1) for n in shape) > 2**20:
        raise InputError(f"has an array of the shape {shape} without any bytes")
    return elements


def array(budget: Budget, dtype: np.dtype, shape: Any, order: str, data: Any) -> np.ndarray:
    """A view on `data` (bytes), or the object array of `data` (a list).

    Args:
      budget: the limits of the file.
      dtype: the dtype of the array.
      shape: the declared shape, which is checked.
      order: "C" or "F".
      data: bytes, or a list for an object array.
    """
    elements = count(shape, dtype.itemsize)
    if type(data) not in ((list,) if dtype.hasobject else (bytes, memoryview)):
        raise InputError(f"has an array of {dtype} made of a {type(data).__name__}")
    size = elements if dtype.hasobject else elements * dtype.itemsize
    if len(data) != size:
        raise InputError(f"has an array of {dtype} {shape}, which is {size} bytes or elements, and {len(data)} of them")
    if dtype.hasobject:
        budget.take(8 * elements)
        return np.fromiter(data, object, elements).reshape(shape, order=order)
    budget.declare(size)
    if dtype.kind == "U" and np.frombuffer(data, f"{dtype.byteorder}u4").max(initial=0) > 0x10FFFF:
        raise InputError("has text with characters that do not exist")  # NumPy would fail on access
    return np.ndarray(shape, dtype, data, order=order)


# The unpickler


class Name(NamedTuple):
    """A function or class that a pickle names, replaced by a method, a dtype, or None if it is never called."""

    name: str
    value: Callable[..., Any] | np.dtype | None


class _Unbuilt:
    """An array or dtype that BUILD has not completed yet; `value` is the result of BUILD."""

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype, self.value = dtype, None


class _Memo(dict):
    def __getitem__(self, key: int) -> Any:
        value = super().__getitem__(key)
        return value.value if isinstance(value, _Unbuilt) and value.value is not None else value


class _Stream:
    """The bytes of a pickle from position `at` on; reading them counts against the memory budget."""

    def __init__(self, view: memoryview, budget: Budget):
        self.view, self.budget, self.at = view, budget, 0

    def next(self, size: int) -> memoryview:
        """The next bytes, without a copy."""
        left = len(self.view) - self.at
        if not 0 <= size <= left:
            raise InputError(f"ends too early: {size} bytes should follow, {left} do")
        self.at += size
        return self.view[self.at - size : self.at]

    def read(self, size: int) -> bytes | memoryview:
        part = self.next(size)
        if size > COPIED:
            return part
        self.budget.take(size + OBJECT * (size == 1))  # an opcode, or a number of one byte
        return bytes(part)

    def readline(self) -> bytes:
        newline = re.compile(b"\n").search(self.view, self.at)
        if not newline:
            raise InputError("ends in the middle of a line")
        self.budget.take(2 * (newline.end() - self.at))
        return bytes(self.next(newline.end() - self.at))


class Unpickler(pickle._Unpickler):
    """Reads consecutive pickles from `view`, one with each `load`."""

    def __init__(self, view: memoryview, budget: Budget):
        self.stream, self.budget = _Stream(view, budget), budget
        super().__init__(self.stream, encoding="bytes")

    def load(self) -> Any:
        """The data of the next pickle."""
        self.memo = _Memo()
        value = super().load()
        items, _ = _measure(value, 0, {})
        if items * OBJECT > MEMORY:
            raise InputError(f"has lists that contain each other so often that there are {items:,} items in all")
        return value

    def find_class(self, module: str, name: str) -> Name:
        if (module, name) not in self.names:
            full = ascii(f"{module:.150}.{name:.150}")
            raise InputError(
                f"names {full[1:-1]}, which arrays do not need and which could run something; it is refused"
            )
        return Name(f"{module}.{name}", self.names[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise InputError("has a persistent id, which only tensors have; it is refused")

    # Opcodes whose methods in the base class trust the file

    def load_inst(self):
        self.load_global()  # raises with the name
        raise InputError("has the pickle opcode INST, which arrays do not need; it is refused")

    def load_frame(self):
        self.read(8)  # skip the frame header; the base class would copy the frame

    def load_int(self):
        """False and True are written as 00 and 01."""
        line = self.readline()[:-1]
        if not re.fullmatch(rb"[+-]?[0-9]{1,30}L?", line):
            raise InputError(f"has the integer {line!r:.100}")
        self.append(line == b"01" if line in (b"00", b"01") else int(line.rstrip(b"L")))

    load_long = load_int

    def load_long1(self):
        size = self.read(1)[0]
        if size > 16:
            raise InputError(f"has an integer of {size} bytes")
        self.append(int.from_bytes(self.read(size), "little", signed=True))

    def load_unicode(self):
        self._decode(self.readline()[:-1], "raw-unicode-escape", "strict")

    def load_short_binunicode(self, width: int = 1):
        size = int.from_bytes(self.read(width), "little")
        self._decode(self.read(size), "utf-8", "surrogatepass")

    def load_binunicode(self):
        self.load_short_binunicode(4)

    def load_binunicode8(self):
        self.load_short_binunicode(8)

    def _decode(self, data: bytes | memoryview, encoding: str, errors: str):
        self.budget.take(4 * len(data))
        self.append(str(data, encoding, errors))

    load_bytearray8 = pickle._Unpickler.load_binbytes8  # as a view

    def load_append(self):
        self._extend([self.stack.pop()])

    def load_appends(self):
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]):
        if type(self.stack[-1]) is not list:
            raise InputError(f"appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def load_dict(self):
        items = self.pop_mark()
        self.append(_fill({}, items))

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def load_setitems(self):
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    def load_reduce(self):
        arguments = self.stack.pop()
        called = self.stack[-1]
        if not isinstance(called, Name) or not callable(called.value) or type(arguments) is not tuple:
            raise InputError(
                f"calls {called.name if isinstance(called, Name) else 'a value, not a function'}; it is refused"
            )
        try:
            self.stack[-1] = called.value(self, *arguments)
        except InputError:
            raise
        except (TypeError, ValueError, LookupError) as error:
            raise InputError(f"calls {called.name} with invalid arguments ({error!r:.300})") from error

    def load_build(self):
        """Builds an array from (version, shape, dtype, is Fortran order, data), or a dtype from (version, byte order,
        ...)."""
        state, unbuilt = self.stack.pop(), self.stack[-1]
        if type(unbuilt) is dict and type(state) is dict:
            return  # attributes of an OrderedDict, such as a state_dict's `_metadata`
        if type(unbuilt) is not _Unbuilt or type(state) is not tuple or len(state) < 5:
            raise InputError(f"sets the state of a {type(unbuilt).__name__.strip('_')}; it is refused")
        if unbuilt.dtype is None:
            check(state[2], np.dtype)
            unbuilt.value = array(self.budget, state[2], state[1], "F" if state[3] else "C", state[4])
        elif any(part is not None for part in state[2:5]):
            raise InputError("has a structured array: save each of its fields as an array")
        else:
            unbuilt.value = unbuilt.dtype.newbyteorder(text(state[1]))
        self.stack[-1] = unbuilt.value

    # Replacements for the names in a pickle

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> _Unbuilt:
        """An array that BUILD completes later; shape and code are those of an empty array."""
        if type(kind) is not Name or kind.name != "numpy.ndarray":
            raise TypeError("must be a numpy.ndarray")
        return _Unbuilt()

    def _new_dtype(self, code: Any, align: Any = None, copy: Any = None) -> _Unbuilt:
        return _Unbuilt(dtype(code))

    def _scalar(self, dtype: Any, data: Any) -> Any:
        check(dtype, np.dtype)
        return array(self.budget, dtype, (), "C", data)[()]

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        """Order "K" is an array in order "C" with permuted axes."""
        check(dtype, np.dtype)
        if order == "K":
            return array(self.budget, dtype, shape, "C", data).transpose(axes)
        return array(self.budget, dtype, shape, order, data)

    def _encode(self, characters: Any, encoding: Any) -> bytes:
        """Bytes of Python 3 in protocols 0 to 2."""
        check(characters, str)
        if encoding not in ("latin1", "latin-1"):
            raise ValueError("must be latin1")
        self.budget.take(len(characters))
        return characters.encode("latin1")

    def _no_bytes(self) -> bytes:
        """Empty bytes of Python 3 in protocols 0 to 2."""
        return b""

    def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        check(pairs, list, tuple)
        self.budget.take(OBJECT * len(pairs))
        return _fill({}, [part for key, value in pairs for part in (key, value)])

    names: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _new_dtype,
        ("_codecs", "encode"): _encode,
        ("__builtin__", "bytes"): _no_bytes,
        ("builtins", "bytes"): _no_bytes,
        ("collections", "OrderedDict"): _ordered_dict,
    }
    """All names that a pickle may use, by module and name."""


class _Methods(dict):
    def __missing__(self, opcode: int):
        raise InputError(f"has the pickle opcode {_OPCODES.get(opcode)}, which arrays do not need; it is refused")


_OPCODES = {code[0]: name for name, code in vars(pickle).items() if isinstance(code, bytes) and len(code) == 1}
_READ = """
PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST APPEND APPENDS
DICT EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL INST REDUCE BUILD BINPERSID
""".split()
"""The accepted opcodes."""
_BASE = pickle._Unpickler.dispatch
Unpickler.dispatch = _Methods(
    {code: getattr(Unpickler, _BASE[code].__name__) for code, name in _OPCODES.items() if name in _READ}
)


# Values


def _fill(target: Any, items: list[Any]) -> dict[Any, Any]:
    """Adds items to a dict. Keys must have types that hash fast and cannot be made to collide."""
    if type(target) is not dict or len(items) % 2:
        raise InputError(f"sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        if not isinstance(key, str | bytes) and not (type(key) is int and abs(key) < 2**63):
            raise InputError(f"has a dict with a key of type {type(key).__name__}: must be str, bytes or int")
        target[key] = value
    return target


_LEAVES = (str, bytes, int, float, bool, type(None))


def _measure(value: Any, depth: int, seen: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of items (shared ones count each time) and the depth; `seen` caches results by `id`."""
    if isinstance(value, dict):
        children = value.values()
    elif type(value) in (list, tuple):
        children = value
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        children = value.flat
    elif type(value) in _LEAVES or isinstance(value, np.generic | np.ndarray | memoryview):
        return 1, 0
    else:
        raise InputError(f"holds a {type(value).__name__.strip('_')}, which is not data or incomplete; it is refused")
    if id(value) not in seen and depth < DEPTH:
        measured = [_measure(child, depth + 1, seen) for child in children if type(child) not in _LEAVES]
        items = 1 + len(children) + sum(items for items, _ in measured)
        seen[id(value)] = items, 1 + max((below for _, below in measured), default=0)
    if id(value) not in seen or depth + seen[id(value)][1] > DEPTH:
        raise InputError(f"nests lists more than {DEPTH} deep, or has one that contains itself")
    return seen[id(value)]


def check(value: Any, *kinds: type):
    """Checks the type of a value. The message shows nothing else of it, because formatting it might take forever."""
    if not isinstance(value, kinds):
        raise TypeError(f"a {type(value).__name__.strip('_')} instead of a {kinds[0].__name__.strip('_')}")


def text(value: Any) -> Any:
    """Converts bytes to str; Python 2 wrote bytes where Python 3 writes str."""
    return value.decode("latin1") if isinstance(value, bytes) else value
