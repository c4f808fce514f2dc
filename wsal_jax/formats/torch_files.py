"""Reads files of `torch.save` without torch: pickles of tensors, whose data ("storages") are stored beside them."""

import struct
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from wsal_jax.formats import pickles
from wsal_jax.formats.files import LIMIT, Budget, Path, opened, zip_member, zip_members
from wsal_jax.formats.pickles import Name, check, text
from wsal_jax.types import InputError

_STORAGES = (
    "Double:f8 Float:f4 Half:f2 Long:i8 Int:i4 Short:i2 Char:i1 Byte:u1 Bool:? ComplexFloat:c8 ComplexDouble:c16"
)
_DTYPES = {name: np.dtype(code) for name, code in (pair.split(":") for pair in _STORAGES.split())}
_DTYPES["BFloat16"] = np.dtype([("bfloat16", "u2")])


def read_pt(path: Path, limit: int = LIMIT) -> Any:
    """The content of a file of `torch.save`, in the zip format (since 1.6) or the old one, with arrays for tensors.

    bfloat16 tensors become float32 arrays.
    """
    with opened(path, "with torch.save, as a tensor or a dict of them, contiguous and on the CPU") as view:
        return _read_zip(path, view, Budget(limit)) if view[:2] == b"PK" else _read_old(view, Budget(limit))


class _Storage(NamedTuple):
    """The data behind tensors; `data` is None while its position is unknown."""

    dtype: np.dtype
    data: memoryview | None


class _Unpickler(pickles.Unpickler):
    """An unpickler of tensors; `storage` returns the bytes of a storage by its key."""

    def __init__(self, view: memoryview, budget: Budget, storage: Callable[[str], memoryview | None]):
        super().__init__(view, budget)
        self.storage, self.order = storage, "<"
        self.declared: dict[str, tuple[int, int]] = {}
        """Number of elements and of bytes of each storage, by key."""

    def persistent_load(self, pid: Any) -> _Storage:
        """From ("storage", kind, key, device, number of elements) and, in the old format, None (not part of another
        one)."""
        match pid:
            case (word, Name(value=np.dtype() as dtype), str() | bytes() as key, _, int(count), *part):
                good = text(word) == "storage" and count >= 0 and part in ([], [None])
            case _:
                good = False
        if not good:
            raise InputError("has a persistent id that is not a storage of a tensor; it is refused")
        key, size = text(key), count * dtype.itemsize
        self.declared[key] = (count, size)
        data = self.storage(key)
        if data is not None and len(data) != size:
            raise InputError(f"has a storage of {len(data)} bytes that should be {size}")
        return _Storage(dtype, data)

    def _size(self, sizes: Any) -> tuple[Any, ...]:
        check(sizes, tuple)
        return sizes

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray | None:
        """A view on a storage; None while that is unknown. The first two items of `rest` concern gradients."""
        check(storage, _Storage)
        if any(rest[2:]):
            raise ValueError("metadata: use .resolve_conj() and .resolve_neg()")
        if storage.data is None:
            return None
        itemsize = storage.dtype.itemsize
        count = pickles.count(shape, itemsize)
        if type(strides) is not tuple or not all(type(n) is int and n >= 0 for n in (offset, *strides)):
            raise TypeError("must have an offset and strides")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count and max(count, last + 1) * itemsize > len(storage.data):
            raise ValueError(f"{shape} with strides {strides} from {offset} on is more than the storage: .contiguous()")
        self.budget.declare(count * itemsize)
        if count == 0:
            array = np.zeros(shape, storage.dtype)
        else:
            dtype, steps = storage.dtype.newbyteorder(self.order), [stride * itemsize for stride in strides]
            array = np.ndarray(shape, dtype, storage.data, offset * itemsize, steps)
        if array.dtype.names:
            self.budget.take(4 * count)
            array = np.left_shift(array["bfloat16"], 16, dtype=np.uint32).view(np.float32)
        return array

    def _parameter(self, tensor: Any, gradient: Any, hooks: Any) -> np.ndarray | None:
        check(tensor, np.ndarray, type(None))
        return tensor

    names: ClassVar[dict[tuple[str, str], Any]] = {
        **pickles.Unpickler.names,
        ("torch", "Size"): _size,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        **{(of, f"{name}Storage"): dtype for of in ("torch", "torch.cuda") for name, dtype in _DTYPES.items()},
    }


def _read_zip(path: Path, view: memoryview, budget: Budget) -> Any:
    """Members `<name>/data.pkl`, `<name>/data/<key>` for each storage and, in newer files, `<name>/byteorder`."""
    members = zip_members(path, budget.limit)
    pickled = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(pickled) != 1 or any(name.endswith("/constants.pkl") for name in members):
        raise InputError("is no file of tensors: torch.jit.save is not supported")
    root = pickled[0].removesuffix("data.pkl")
    storage = cache(lambda key: zip_member(view, members[f"{root}data/{key}"], budget))
    reader = _Unpickler(zip_member(view, members[pickled[0]], budget), budget, storage)
    if f"{root}byteorder" in members:
        reader.order = {b"little": "<", b"big": ">"}[bytes(zip_member(view, members[f"{root}byteorder"], budget))]
    return reader.load()


def _read_old(view: memoryview, budget: Budget) -> Any:
    """Pickles of a magic number, the version, the system, the object, and the keys of the storages; then the storages.

    Only the object has the lengths of the storages, so it is read twice: for the lengths, then for the tensors.
    """
    storages: dict[str, memoryview] = {}
    reader = _Unpickler(view, budget, lambda key: None)
    if reader.load() != 0x1950A86A20F9469CFC6C or reader.load() != 1001:
        raise InputError("is not a file of torch.save, or is older than torch 0.1.10")
    system = reader.load()
    check(system, dict)
    system = {text(key): value for key, value in system.items()}
    reader.order = "<" if system["little_endian"] else ">"
    start = reader.stream.at
    reader.load()
    keys = [text(key) for key in reader.load()]
    for key in keys:
        count, size = reader.declared[key]
        if struct.unpack(f"{reader.order}q", reader.stream.read(8))[0] != count:
            raise InputError("is damaged: a storage has another length than is declared")
        storages[key] = reader.stream.next(size)
    reader.stream.at, reader.storage = start, storages.__getitem__
    return reader.load()
