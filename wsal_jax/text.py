"""Text for output: tables, counts and shortened names."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from wsal_jax.types import InputError

MAX_NAME = 60


def cut(name: str, length: int = MAX_NAME) -> str:
    """The name, without its middle if it is longer than `length`."""
    if len(name) <= length:
        return name
    last = length // 3
    return f"{name[: length - last - 3]}...{name[-last:]}"


def count(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun, such as "1 video" or "2 videos"."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: first column left-aligned, others right-aligned, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]


def told(run: Callable[[Any], None], arguments: Any) -> None:
    """Runs a command that prints names of the user's; what cannot work ends it with one line.

    Raises:
      SystemExit: with the message of an InputError or OSError.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal cannot show must not end the command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(arguments)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
