"""Reads TensorFlow's checkpoints (`tf.train.Saver` since 1.0) without TensorFlow.

`<prefix>.index` is a table in LevelDB's format: blocks of sorted keys and values, each with a checksum, and an index
block with the positions of the others. The first value is a BundleHeaderProto. The others, keyed by variable name, are
BundleEntryProtos: dtype, shape, position in a file `<prefix>.data-<shard>-of-<shards>`, and checksum. Checksums are
CRC-32C, "masked" because a CRC of data that contain CRCs is problematic; verifying them takes about 1 s for 7 MB.

Any problem raises an InputError that names the file.
"""

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboardX.record_writer import masked_crc32c

from wsal_jax.files import regular
from wsal_jax.types import InputError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
LARGEST = 2**26
"""Largest size of a decompressed block of names, in bytes."""
_DTYPES = {
    1: "f4",
    2: "f8",
    3: "i4",
    4: "u1",
    5: "i2",
    6: "i1",
    9: "i8",
    10: "?",
    17: "u2",
    19: "f2",
    22: "u4",
    23: "u8",
}
"""NumPy dtypes by the number of TensorFlow's DataType."""


def read(prefix: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by the names of their variables, optimizer slots included.

    Args:
      prefix: the argument of `tf.train.Saver.restore`, or the path of the `.index` file.

    Raises:
      InputError: a file is missing, truncated or damaged, or a variable is not numeric or is stored in slices.
    """
    prefix = os.fspath(prefix).removesuffix(".index")
    index = Path(f"{prefix}.index")
    with _naming(index):
        values = dict(_table(regular(index).read_bytes()))
        header = _fields(values.pop(b""))
        order = "<>"[header.get(2, [0])[-1]]
        entries = {key.decode(): _entry(key.decode(), value, order) for key, value in values.items()}
        files = {entry.file: f"{prefix}.data-{entry.file:05d}-of-{header[1][-1]:05d}" for entry in entries.values()}
    arrays = {}
    for file, path in files.items():
        with _naming(path):
            content = regular(path).read_bytes()
            of_file = {name: entry for name, entry in entries.items() if entry.file == file}
            arrays |= {name: _array(content, name, entry) for name, entry in of_file.items()}
    return {name: arrays[name] for name in entries}


class _Entry(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    file: int
    offset: int
    size: int
    checksum: int


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Any error in the context becomes an InputError about this file."""
    try:
        yield
    except OSError as error:
        advice = "a checkpoint is its .index and .data files together"
        raise InputError(f"{path} cannot be read ({error}): {advice}") from error
    except Exception as error:  # a damaged file can fail in any way
        what = error if isinstance(error, InputError) else f"is damaged, or of another format ({error!r:.300})"
        raise InputError(f"{path} {what}. Get it again from where it is from") from error


def _entry(name: str, value: bytes, order: str) -> _Entry:
    """Parses a BundleEntryProto."""
    fields = _fields(value)
    number, file, offset, size, checksum = (fields.get(field, [0])[-1] for field in (1, 3, 4, 5, 6))
    if number not in _DTYPES or 7 in fields:
        what = "is in slices" if 7 in fields else f"has TensorFlow's dtype {number}, which is not numeric"
        raise InputError(f"has the variable {name}, which {what}: only whole arrays of numbers can be read")
    dtype = np.dtype(order + _DTYPES[number])
    dims = _fields(fields.get(2, [b""])[-1]).get(2, [])
    shape = tuple(_fields(dim).get(1, [0])[-1] for dim in dims)
    if size != dtype.itemsize * math.prod(shape):
        raise InputError(f"says that {name} has the shape {shape} and {size} bytes, which cannot be")
    return _Entry(dtype, shape, file, offset, size, checksum)


def _array(content: bytes, name: str, entry: _Entry) -> np.ndarray:
    part = content[entry.offset : entry.offset + entry.size]
    if len(part) != entry.size:
        end = entry.offset + entry.size
        raise InputError(f"ends at byte {len(content)}, where {name} goes up to {end}: it is truncated")
    if masked_crc32c(part) != entry.checksum:
        raise InputError(f"is damaged: the checksum of {name} does not match")
    return np.ndarray(entry.shape, entry.dtype, part)


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a file in the table format."""
    footer = content[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise InputError("is not the index of a TensorFlow checkpoint, or is truncated")
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    for _, handle in _pairs(_block(content, *index)):
        yield from _pairs(_block(content, *_handle(handle, 0)[0]))


def _block(content: bytes, offset: int, size: int) -> bytes:
    """A decompressed block. In the file, one byte for the kind of compression and the checksum follow the data."""
    end = offset + size + 1
    if end + 4 > len(content) or masked_crc32c(content[offset:end]) != struct.unpack_from("<I", content, end)[0]:
        raise InputError(f"is damaged: the checksum of its block at byte {offset} does not match")
    data, packing = content[offset : end - 1], content[end - 1]
    if packing not in (0, 1):
        raise InputError(f"has a block of compression type {packing}: only 0 (none) and 1 (Snappy) are known")
    return _unsnap(data) if packing else data


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values. A key is stored as its difference from the previous key; restart points come last."""
    end = len(block) - 4 * (1 + struct.unpack("<I", block[-4:])[0])
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + size]
        at += rest + size


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the position after them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number with 7 bits per byte, lowest first, and the position after it."""
    value = 0
    for i in range(10):
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise InputError("has a number of more than 10 bytes")


def _fields(message: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number: int, or bytes for strings and messages."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
            case 2:
                size, at = _varint(message, at)
                value, at = message[at : at + size], at + size
            case 1 | 5 as kind:
                size = 8 if kind == 1 else 4
                value, at = int.from_bytes(message[at : at + size], "little"), at + size
            case kind:
                raise InputError(f"has a protocol buffer with a field of the kind {kind}")
        fields.setdefault(key >> 3, []).append(value)
    if at > len(message):
        raise InputError("has a protocol buffer that ends in the middle of a field")
    return fields


def _unsnap(data: bytes) -> bytes:
    """Decompresses a Snappy block; TensorFlow has not compressed blocks since 1.2."""
    import pyarrow  # imported here because it is slow to import

    size, _ = _varint(data, 0)
    if size > LARGEST:
        raise InputError(f"has a block of {size} bytes: must be at most {LARGEST}")
    return pyarrow.decompress(data, size, codec="snappy", asbytes=True)
