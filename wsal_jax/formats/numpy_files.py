"""Readers of `.npy`, `.npz` and `.csv` without `np.load`, which copies the members of archives and executes pickles.

We do not use `numpy.lib.format` for headers: it compiles them (`ast.literal_eval`), warns about those of Python 2, and
has no public function for version 3.
"""

import re
import struct
from collections.abc import Iterator
from typing import TextIO

import numpy as np
from jaxtyping import Float

from wsal_jax.formats import pickles
from wsal_jax.formats.files import BEGINNING, LIMIT, Budget, Path, opened, zip_member, zip_members
from wsal_jax.types import InputError

LINE = 2**20
"""Largest length of a line of a .csv, in characters."""


def read_npy(path: Path, limit: int = LIMIT) -> np.ndarray:
    """The array of a .npy file; arrays inside an object array are views on the file too."""
    with opened(path, "with np.save(..., allow_pickle=False)") as view:
        return _npy(view, Budget(limit))


def read_npz(path: Path, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; those that are not compressed are views on the file."""
    with opened(path, "with np.savez") as view:
        arrays, budget = {}, Budget(limit)
        for name, info in zip_members(path, limit).items():
            if not name.endswith(".npy"):
                raise InputError(f"has the member {name[:100]!a}, which is not a .npy")
            arrays[name.removesuffix(".npy")] = _npy(zip_member(view, info, budget, _header), budget)
        return arrays


def read_csv(path: Path, limit: int = LIMIT) -> Float[np.ndarray, "n d"]:
    """A comma-separated table of numbers; a first line that has words, or is 0,1,2,... (pandas), is a header."""
    with opened(path, "as lines of numbers with commas between") as view, open(path, encoding="utf-8-sig") as file:
        Budget(limit).take(8 * len(view))  # "1," becomes 8 bytes, in an array that grows
        words = next(_lines(file)).strip().split(",")
        if words[0] == "" and len(words) > 1:
            raise InputError("begins with a column without a name, an index and not a feature: omit it (index=False)")
        counted = len(words) > 1 and words == [str(i) for i in range(len(words))]
        if all(map(_is_number, words)) and not counted:
            file.seek(0)
        table = np.loadtxt(_lines(file), delimiter=",", comments=None, ndmin=2)
        if not table.size:
            raise InputError("has no numbers in it")
        return table


def _npy(view: memoryview, budget: Budget) -> np.ndarray:
    dtype, shape, order, start = _header(view[:BEGINNING], len(view))
    if not dtype.hasobject:
        return pickles.array(budget, dtype, shape, order, view[start:])
    array = pickles.Unpickler(view[start:], budget).load()
    if not isinstance(array, np.ndarray) or not array.dtype.hasobject or array.shape != shape:
        raise InputError(f"declares an object array {shape}, and has something else")
    return array


def _header(head: bytes | memoryview, size: int) -> tuple[np.dtype, tuple[int, ...], str, int]:
    """Dtype, shape, order and start of the data of a .npy file of `size` bytes, from its first bytes."""
    if head[:6] != b"\x93NUMPY" or head[6] not in (1, 2, 3):
        raise InputError("is not a .npy file, or has a member that is not")
    length = struct.Struct("<H" if head[6] == 1 else "<I")
    start = 8 + length.size + length.unpack(head[8 : 8 + length.size])[0]
    if start > min(BEGINNING, size):
        raise InputError(f"declares a header of {start} bytes: must be at most {BEGINNING}, and in the file")
    text = bytes(head[:start]).decode("latin1")
    descr = re.search(r"'descr': *('[^']*'|\[)", text)  # "[" begins the fields of a structured array
    order = re.search(r"'fortran_order': *(True|False)", text)
    shape = re.search(r"'shape': *\(([0-9L, ]*)\)", text)
    if not (descr and order and shape):
        raise InputError("has a header without descr, fortran_order and shape")
    dtype, sizes = pickles.dtype(descr[1].strip("'")), tuple(int(n) for n in re.findall("[0-9]{1,20}", shape[1]))
    needed = pickles.count(sizes, dtype.itemsize) * dtype.itemsize
    if not dtype.hasobject and needed != size - start:
        raise InputError(f"declares an array of {dtype} {sizes}, which is {needed} bytes, and has {size - start}")
    return dtype, sizes, "F" if order[1] == "True" else "C", start


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
