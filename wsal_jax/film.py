"""Video files for the report: which belong to which id, how the page names them, and film strips of them."""

import base64
import io
import mimetypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from wsal_jax.types import InputError

MOST = 200
"""Pictures of a strip."""

WIDTH = 96
"""Pixels of a picture."""

QUALITY = 60
"""Of the JPEG; about 2 KB a picture."""


def find(folder: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The video files of these ids, in a folder and those below it: `<id>.<ending of a video>`, or without "v_".

    Raises:
      InputError: there is no such folder, or it has none of the videos.
    """
    if not folder.is_dir():
        raise InputError(f"--videos {folder}: there is no such folder")
    by_stem: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        kind = mimetypes.guess_type(path.name)[0] or ""
        if kind.startswith("video/") or path.suffix.lower() in (".mkv", ".ts", ".flv"):
            by_stem.setdefault(path.stem, path)
    ids = list(ids)
    found = {id: by_stem.get(id, by_stem.get(id.removeprefix("v_"))) for id in ids}
    found = {id: path for id, path in found.items() if path and path.is_file()}
    if ids and not found:
        raise InputError(f"--videos {folder}: has none of the videos; they must be called by id, as {ids[0]}.mp4")
    return found


def address(path: Path, page: Path, embed: bool) -> str:
    """How the page names a file: relative to itself, or as a data URL with all of it."""
    if embed:
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    path = Path(os.path.abspath(path))
    try:
        return quote(Path(os.path.relpath(path, os.path.abspath(page.parent))).as_posix())
    except ValueError:  # another drive
        return path.as_uri()


def strip(path: Path, duration: float, most: int) -> dict[str, Any] | None:
    """Up to `most` pictures of a video, a second or more apart, side by side in one JPEG, as a data URL.

    None, and a warning, where the video cannot be read; None without PyAV, which comes with the extra [video].
    """
    try:
        from wsal_jax.video import decode
    except ImportError:
        print(f"no film strip of {path.name}: it takes PyAV, pip install 'wsal_jax[video]'", file=sys.stderr)
        return None
    from PIL import Image  # Matplotlib's

    count = max(1, min(most, int(duration)))
    pictures: list[np.ndarray] = []
    try:
        with decode.opened(path) as (container, stream, seen):
            for time, picture in decode.pictures(path, container, stream, seen, _small):
                while len(pictures) < count and time >= (len(pictures) + 0.5) * duration / count - 0.5 / 25:
                    pictures.append(picture())
                if len(pictures) == count:
                    break
    except InputError as error:
        print(f"no film strip: {error}", file=sys.stderr)
        return None
    if not pictures:
        return None
    pictures += [np.zeros_like(pictures[0])] * (count - len(pictures))  # the file ends before the features do
    height, width = pictures[0].shape[:2]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(file, "JPEG", quality=QUALITY)
    image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"image": image, "count": count, "width": width, "height": height}


def _small(width: int, height: int) -> tuple[int, int]:
    return WIDTH, max(2, round(WIDTH * height / width))
