"""Files of users, and files that are whole at any time."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wsal_jax.types import InputError


def regular(path: str | os.PathLike) -> Path:
    """The path, if a regular file is there: reading a pipe may wait for ever, and a device need not end.

    Raises:
      OSError: there is nothing, a folder, or something else.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe, a device or a socket, not a regular file", os.fspath(path))
    return Path(path)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk that is full, read-only or broken answers, a quota, or missing rights."""


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Context in which an error of writing becomes an InputError that names the file, or else `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or os.fspath(path)
        advice = "make room there or give another place; what was there is kept"
        raise InputError(f"{where}: cannot be written ({error.strerror}): {advice}") from error


@contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write, which takes the place of an old one when all is written: a full disk or a kill leaves that one.

    Raises:
      InputError: it cannot be written.
    """
    aside = path.with_name(f"{path.name}.new")
    with writing(path):
        try:
            with aside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def replace(path: Path, text: str) -> None:
    """Writes a file as `whole` does."""
    with whole(path) as file:
        file.write(text)
