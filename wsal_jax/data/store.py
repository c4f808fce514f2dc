"""The format of features on disk, beside TFDS's files, which hold all other fields of a video.

`features-<split>-<stream>-<shard>.rows` has the rows of one stream, one per snippet, video after video, in the order of
the ids. A row is the d features in their original dtype (float16 or float32, little endian) and the CRC-32 of these
bytes; `np.fromfile(path, row_type(stream))` reads a whole file. A model therefore reads only its own streams, and only
the sampled snippets of a video. Reading a damaged row raises an error. All streams start a new shard at the same video,
before a file would exceed `SHARD_BYTES`.

`SHA256SUMS` has the digest of every small file, in the format of the program `sha256sum`, and at the end its own.

Alternatives are records of ArrayRecord. Milliseconds per video, for 60 videos of 1,000 x 1,024 float16 in the page
cache of a busy machine with two cores:

                                         whole video   20 snippets   file / features
    a record per video, compressed               6.6          4.2           0.92
    a record per video                           0.7          1.0           1.00
    a record per snippet, groups of 16           3.3          0.4           1.00
    rows                                         1.1          0.07          1.00
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from wsal_jax.types import InputError

SHARD_BYTES = 2**30
SUMS = "SHA256SUMS"


class Stream(NamedTuple):
    """Dimension and dtype of the features of a stream."""

    dim: int
    dtype: str
    """"float16" or "float32"."""


class Store(NamedTuple):
    """The features of a split on disk."""

    folder: Path
    split: str
    streams: Mapping[str, Stream]
    shards: Int[np.ndarray, " v"]
    """The shard of each video."""
    rows: Int[np.ndarray, " v"]
    """The first row of each video in its shard."""
    lengths: Int[np.ndarray, " v"]
    """The number of snippets of each video."""
    build: tuple[int, int] | None = None
    """Which build this is (`which_build`), so that reading notices when the folder is replaced; None: it does not."""


def row_type(stream: Stream) -> np.dtype:
    """The NumPy type of a row."""
    kind = np.dtype(stream.dtype).newbyteorder("<")
    return np.dtype([("features", kind, (stream.dim,)), ("crc32", "<u4")])


def path_of(folder: Path, split: str, stream: str, shard: int | np.integer) -> Path:
    """The file of a shard."""
    return folder / f"features-{split}-{stream}-{shard:05d}.rows"


Write = Callable[[Mapping[str, Float[np.ndarray, "_ _"]]], tuple[int, int]]
"""Writes the features [n d] of the next video; returns its shard and its first row."""


def writer(folder: Path, split: str, streams: Mapping[str, Stream]) -> Write:
    """Writes the features of a split into an empty folder, video by video; only one video is in memory."""
    row_bytes = max(row_type(stream).itemsize for stream in streams.values())
    shard, rows = 0, 0

    def write(features):
        nonlocal shard, rows
        n = len(next(iter(features.values())))
        if rows and (rows + n) * row_bytes > SHARD_BYTES:
            shard, rows = shard + 1, 0
        for name, stream in streams.items():
            packed = np.empty(n, row_type(stream))
            packed["features"] = features[name]
            packed["crc32"] = _crc32(np.ascontiguousarray(packed["features"]))
            with path_of(folder, split, name, shard).open("ab") as file:
                file.write(packed)
        rows += n
        return shard, rows - n

    return write


def _crc32(features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    return np.fromiter(map(zlib.crc32, features), np.int64, len(features))


def read(
    store: Store, video: int | np.integer, stream: str, snippets: Int[np.ndarray, " t"] | None = None
) -> Float[np.ndarray, "_ d"]:
    """The features of a video in their stored dtype.

    Args:
      store: the split.
      video: index of the video.
      stream: name of the stream.
      snippets: the snippets to read; all if None.

    Raises:
      InputError: a file is damaged, truncated or missing, and the message names it; or the folder is another build.
    """
    kind, n, first = row_type(store.streams[stream]), store.lengths[video], int(store.rows[video])
    path = path_of(store.folder, store.split, stream, store.shards[video])
    try:
        if snippets is None or len(snippets) >= n:
            packed = np.fromfile(path, kind, n, offset=first * kind.itemsize)
            packed = packed if snippets is None or len(packed) < n else packed[snippets]
        else:
            packed = _read_rows(path, kind, first + snippets)
    except OSError as error:
        raise damaged(path, str(error)) from error
    features = np.ascontiguousarray(packed["features"])
    if len(packed) < (n if snippets is None else len(snippets)):
        raise damaged(path, "it ends early")
    if (_crc32(features) != packed["crc32"]).any():
        raise damaged(path, f"within rows {first} to {first + n}")
    if store.build and which_build(store.folder) != store.build:  # after the read, so that it was of this build
        raise InputError(f"{store.folder} was built anew while this run read it: start the run again")
    return features.astype(kind["features"].base.newbyteorder("="), copy=False)


def _read_rows(path: Path, kind: np.dtype, rows: Int[np.ndarray, " t"]) -> np.ndarray:
    """Some rows of a file, up to the first missing one."""
    packed = np.empty(len(rows), kind)
    with path.open("rb", buffering=0) as file:
        for i, row in enumerate(rows):
            if os.preadv(file.fileno(), [packed[i : i + 1]], int(row) * kind.itemsize) < kind.itemsize:  # type: ignore[list-item]
                return packed[:i]
    return packed


def damaged(path: Path, why: str) -> InputError:
    """The error for a built file that has changed."""
    return InputError(f"{path.parent}: {path.name} is damaged ({why}): remove this folder, and it is built anew")


def check_sizes(store: Store) -> None:
    """Raises an InputError for a file of features that is missing or has changed its size."""
    for shard in np.unique(store.shards):
        rows = (store.rows + store.lengths)[store.shards == shard].max()
        for name, stream in store.streams.items():
            path = path_of(store.folder, store.split, name, shard)
            size, wanted = path.stat().st_size if path.exists() else None, int(rows) * row_type(stream).itemsize
            if size != wanted:
                raise damaged(path, "it is missing" if size is None else f"{size} bytes, not {wanted}")


def seal(folder: Path) -> None:
    """Writes the digests of all small files of a folder that is complete except for this file."""
    files = sorted(path for path in folder.iterdir() if path.suffix != ".rows" and path.name != SUMS)
    lines = "".join(f"{_digest(path.read_bytes())}  {path.name}\n" for path in files)
    (folder / SUMS).write_text(f"{lines}{_digest(lines.encode())}  {SUMS}\n")


def which_build(folder: Path) -> tuple[int, int]:
    """Inode and time of the digests, which are another in each build."""
    try:
        stat = (folder / SUMS).stat()
    except OSError as error:
        raise damaged(folder / SUMS, str(error)) from error
    return stat.st_ino, stat.st_mtime_ns


def digest(folder: Path) -> str:
    """Of all small files of a folder, and so of the videos and their times; data that are built alike have the same."""
    return _digest((folder / SUMS).read_bytes())


def check_seal(folder: Path, splits: Sequence[str]) -> None:
    """Raises an InputError for a small file that is missing or has changed.

    It opens the records of the given splits only.
    """
    path = folder / SUMS
    try:
        *lines, last = path.read_bytes().splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if last.decode("latin1") != f"{_digest(b''.join(lines))}  {SUMS}\n":
        raise damaged(path, "its own digest is another")
    for line in lines:
        digest, name = line.decode().rstrip("\n").split("  ", 1)
        file = folder / name
        if ".array_record" in name and not any(f"-{split}.array_record" in name for split in splits):
            continue
        if not file.is_file() or _digest(file.read_bytes()) != digest:
            raise damaged(file, "it is missing" if not file.is_file() else "its digest is another")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
