"""Files that are whole at any time."""

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Writes a file aside and renames it, so that a full disk or a kill leaves the old one."""
    aside = path.with_name(f"{path.name}.new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
