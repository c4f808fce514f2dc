"""Checks for the readers of users' files. They collect all problems and report them at once."""

import gzip
import json
import math
import os
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wsal_jax.files import regular
from wsal_jax.text import cut
from wsal_jax.types import InputError, some

AMBIGUOUS = "Ambiguous"
"""The label of THUMOS14's ambiguous segments; it is not a class."""


class FolderError(InputError):
    """Problems with a user's folder or file: all in `problems`, the first 20 in the message."""

    def __init__(self, root: str | os.PathLike, problems: list[str]):
        self.root, self.problems = root, problems
        line = "\n- "
        super().__init__(f"cannot use {root}:{line}" + some(problems, 20, line, line))

    def __reduce__(self):
        return FolderError, (self.root, self.problems)


class Problems(dict[str, list[str]]):
    """Maps each problem to the places where it occurs."""

    def __init__(self):
        super().__init__()
        self._full: set[str] = set()

    def add(self, where: str, what: str, full: bool = False):
        """Adds a problem; with `full`, messages list all of its places, not only the first three."""
        self.setdefault(what, []).append(where)
        if full:
            self._full.add(what)

    def lines(self) -> list[str]:
        """One line per problem, so that a frequent problem does not hide the others."""
        lines = []
        for what, where in self.items():
            most = len(where) if what in self._full else 3
            lines.append(f"{some((cut(one, 300) for one in where), most)}: {what}")
        return lines


def is_plain(name: Any) -> bool:
    """Whether a name can be written to a file with one name per line, to terminals and as UTF-8."""
    return isinstance(name, str) and name != "" and name.isprintable() and name == name.strip()


def check_id(id: Any, where: str, problems: Problems) -> bool:
    """Whether an id is valid. A bad id could not open any file, because ids only select files that were found."""
    good = is_plain(id) and id not in (".", "..") and not set(id) & set("/\\")
    if not good:
        what = 'is no video id: it must be a file name without "/", "\\", control characters or spaces around it'
        problems.add(f"{where}: {reprlib.repr(id)}", what)
    return good


def number(value: Any) -> float:
    """The value of a number or of its string; NaN for everything else, including infinity, "1_000" and "١٢"."""
    try:
        good = not isinstance(value, bool | str) or (isinstance(value, str) and value.isascii() and "_" not in value)
        result = float(value) if good else math.nan
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return result if math.isfinite(result) else math.nan


def read_json(path: Path, problems: Problems) -> Any:
    """The content of a JSON file; None if it cannot be read. A repeated key is a problem."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                problems.add(f"{path.name}: {cut(repr(key))}", "is there more than once: keep one")
        return dict(pairs)

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except FileNotFoundError:
        problems.add(path.name, "is missing")
    except IsADirectoryError:
        problems.add(path.name, "is a folder: give a file")
    except (OSError, ValueError, RecursionError) as error:
        problems.add(path.name, f"cannot be read as JSON ({error}): write it again")
    return None


def read_lines(path: Path, problems: Problems) -> list[str]:
    """The stripped lines of a text file that are not empty; no lines if it cannot be read."""
    return [line for _, line in numbered_lines(path, problems)]


def numbered_lines(path: Path, problems: Problems) -> list[tuple[int, str]]:
    """`read_lines`, each with its number in the file, from 1."""
    try:
        lines = read_text(path).splitlines()
    except IsADirectoryError:
        problems.add(path.name, "is a folder: give a file")
        return []
    except (OSError, ValueError) as error:
        problems.add(path.name, f"cannot be read ({error}): make it a UTF-8 text file, or remove it")
        return []
    return [(i + 1, line) for i, line in enumerate(map(str.strip, lines)) if line]


MAX_UNPACKED = 2**30


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, which may be compressed with gzip.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not UTF-8, cannot be decompressed, or has more than `MAX_UNPACKED` bytes then.
    """
    content = regular(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                content = file.read(MAX_UNPACKED + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"cannot be decompressed: {error}") from error
        if len(content) > MAX_UNPACKED:
            raise ValueError(f"holds more than {MAX_UNPACKED:,} bytes when unpacked")
    return content.decode("utf-8-sig")


def check_features(array: Any, where: str, problems: Problems) -> Float[np.ndarray, "n d"] | None:
    """The features of a video, one row per snippet; None if they are invalid.

    float16 stays float16; everything else becomes float32, the dtype of the models.
    """
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        problems.add(where, f"dtype is {kind}: save the features as floating-point numbers")
    elif array.ndim != 2 or 0 in array.shape:
        problems.add(where, f"shape is {array.shape}: must be [n d], at least one snippet and one dimension")
    else:
        with np.errstate(over="ignore"):
            values = np.array(array, np.float16 if array.dtype.itemsize == 2 else np.float32)
        finite = np.isfinite(values).all(axis=1)
        if finite.all():
            return values
        what = f"NaN or infinite (as float32), first in snippet {finite.argmin()}"
        problems.add(where, f"{what}: extract the features again")
    return None


def check_lengths(features: Mapping[str, Float[np.ndarray, "_ _"]], where: str, problems: Problems) -> None:
    """Checks that all streams of a video have the same number of snippets."""
    if len({len(values) for values in features.values()}) > 1:
        lengths = " and ".join(f"{len(values)} in {stream}" for stream, values in features.items())
        problems.add(where, f"number of snippets differs, {lengths}: extract both streams from the same frames")


def load_checked(
    root: Path, load: Callable[[Problems], dict[str, Float[np.ndarray, "_ _"]]]
) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Features by stream; they passed the check before, so a problem now means that a file has changed."""
    features = load(problems := Problems())
    if problems:
        raise FolderError(root, problems.lines())
    return features
