"""Files of users, and files that are whole at any time."""

import errno
import os
import stat
from pathlib import Path


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


def replace(path: Path, text: str) -> None:
    """Writes a file aside and renames it, so that a full disk or a kill leaves the old one."""
    aside = path.with_name(f"{path.name}.new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
