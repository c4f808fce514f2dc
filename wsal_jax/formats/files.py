"""Access to the bytes of files: memory maps, memory limits, and members of zip files."""

import io
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wsal_jax.files import regular
from wsal_jax.types import InputError

LIMIT = 64 * 2**30
"""Largest total size of the arrays of a file, in bytes; the default of `limit`."""
MEMORY = 4 * 2**30
"""Largest memory for a file, in bytes, apart from views on it."""
DIRECTORY = 2**24
"""Largest table of contents of a zip file, in bytes."""

BEGINNING = 2**14
"""Bytes of a member that are inspected before it is decompressed."""

Path = str | os.PathLike


@contextmanager
def opened(path: Path, advice: str) -> Iterator[memoryview]:
    """The memory-mapped bytes of a file; any error in the context becomes an InputError about this file."""
    try:
        with open(regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError("is empty")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield view
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): is it there, and a file that you may read?") from error
    except Exception as error:  # a damaged file can fail in any way
        what = error if isinstance(error, InputError) else f"is damaged, or of another format ({error!r:.300})"
        raise InputError(f"{path} {what}. Get it again from where it is from, or save it again {advice}.") from error


class Budget:
    """The bytes that a file may still declare and take into memory."""

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


class _Directory(io.FileIO):
    """A file for `zipfile`, which would read a table of contents of any length at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY:
            raise InputError(f"has a table of contents of {size} bytes: must be at most {DIRECTORY}")
        return super().read(size)


def zip_members(path: Path, limit: int) -> dict[str, zipfile.ZipInfo]:
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
    Budget(limit).declare(sum(info.file_size for info in members.values()))
    return members


def zip_member(
    view: memoryview, info: zipfile.ZipInfo, budget: Budget, check: Callable[[bytes, int], Any] | None = None
) -> memoryview:
    """The bytes of a member, without a copy if it is not compressed (`zipfile` always copies).

    Args:
      view: the bytes of the zip file.
      info: the member.
      budget: the limits of the file.
      check: called before decompression, with the first bytes and the declared size.
    """
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
            check(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, BEGINNING), size)
        data = memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1))
    if len(data) != size or zlib.crc32(data) != info.CRC:
        raise InputError(f"is damaged: length or checksum of its member {name!a} are not as declared")
    return data
