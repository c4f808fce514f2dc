"""What the readers of users' files share: problems are collected, and all of them told at once."""

import json
import math
import os
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wsal_jax.types import InputError

AMBIGUOUS = "Ambiguous"
"""The label of THUMOS14's segments that may or may not be an action; it is not a class."""


class FolderError(InputError):
    """What is wrong with a user's folder or file: all of it in `problems`, the first 20 in the message."""

    def __init__(self, root: str | os.PathLike, problems: list[str]):
        self.root, self.problems = root, problems
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        super().__init__("\n- ".join([f"cannot use {root}:", *problems[:20], *more]))

    def __reduce__(self):
        return FolderError, (self.root, self.problems)


class Problems(dict[str, list[str]]):
    """What is wrong -> where it is."""

    def add(self, where: str, what: str):
        self.setdefault(what, []).append(where)

    def lines(self) -> list[str]:
        """One line per thing wrong; a thing that is wrong everywhere must not hide the rest."""
        return [
            ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "") + f": {what}"
            for what, where in self.items()
        ]


def is_plain(name: Any) -> bool:
    """Whether a name survives files of one name a line, terminals and UTF-8."""
    return isinstance(name, str) and name != "" and name.isprintable() and name == name.strip()


def check_id(id: Any, where: str, problems: Problems) -> bool:
    """Ids only ever look up files that were found, so a bad one opens nothing; it is still refused as what it is."""
    good = is_plain(id) and id not in (".", "..") and not set(id) & set("/\\")
    if not good:
        what = 'is no video id: it must be a file name without "/", "\\", control characters or spaces around it'
        problems.add(f"{where}: {reprlib.repr(id)}", what)
    return good


def number(value: Any) -> float:
    """A number or a string of one; NaN for everything else, infinity included."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return result if math.isfinite(result) else math.nan


def read_json(path: Path, problems: Problems) -> Any:
    """What a JSON file holds; a key that is there twice is a problem. None where the file is of no use."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                problems.add(f"{path.name}: {key!r}", "is there more than once: keep one")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError:
        problems.add(path.name, "is missing")
    except (OSError, ValueError, RecursionError) as error:
        problems.add(path.name, f"cannot be read as JSON ({error}): write it again")
    return None


def read_lines(path: Path, problems: Problems) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them; none where it is of no use."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add(path.name, f"cannot be read ({error}): make it a UTF-8 text file, or remove it")
        return []
    return [line for line in map(str.strip, lines) if line]


def check_features(array: Any, where: str, problems: Problems) -> Float[np.ndarray, "n d"] | None:
    """The float32 features of a video, one row per snippet; None where they are of no use."""
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        problems.add(where, f"dtype is {kind}: save the features as floating-point numbers")
    elif array.ndim != 2 or 0 in array.shape:
        problems.add(where, f"shape is {array.shape}: must be [n d], at least one snippet and one dimension")
    else:
        with np.errstate(over="ignore"):
            values = np.array(array, np.float32)
        finite = np.isfinite(values).all(axis=1)
        if finite.all():
            return values
        what = f"NaN or infinite (as float32), first in snippet {finite.argmin()}"
        problems.add(where, f"{what}: extract the features again")
    return None
