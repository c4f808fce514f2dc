"""What lies beside the features of a video: `features/<split>/<id>.json` says of which file, by what, and how.

Writing is atomic. First every file is written whole under another name; then the features get their names, and the
sidecar last. So a video with a sidecar is finished, and one without is made anew.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from wsal_jax.files import regular
from wsal_jax.formats.checks import Problems
from wsal_jax.types import InputError

SPLITS, STREAMS = ("train", "test"), ("rgb", "flow")
EXTRACTION = ("extractor", "resampled_to", "feature_stride_frames", "tail")
"""What of a sidecar decides the features, apart from the video."""


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_of(root: Path, split: str, id: str) -> Path:
    """The sidecar of a video."""
    return root / "features" / split / f"{id}.json"


def features_path(root: Path, split: str, stream: str, id: str) -> Path:
    """The features of a stream of a video."""
    return root / "features" / split / stream / f"{id}.npy"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that its name always leads to a whole one."""
    _write(path, write)
    os.replace(_temporary(path), path)


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_temporary(path), "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes names that were given or taken away outlast a crash of the machine."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


def text(record: dict[str, Any]) -> bytes:
    """A record as JSON."""
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def read(path: Path) -> dict[str, Any] | None:
    """A sidecar; None where there is none that can be read."""
    try:
        record = json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def check_free(root: Path, split: str, id: str) -> None:
    """Makes sure that features of a video may be written.

    Raises:
      InputError: there are some that no extraction left.
    """
    sidecar = path_of(root, split, id)
    if sidecar.exists() or _temporary(sidecar).exists():
        return
    for stream in STREAMS:
        if (path := features_path(root, split, stream, id)).exists():
            raise InputError(f"{path} is there, and was not made by extraction: move it away, or give another --out")


def write(root: Path, split: str, id: str, features: dict[str, Float[np.ndarray, "n _"]], info: dict[str, Any]) -> None:
    """Leaves the features of a video and its sidecar, in place of older ones of the same video.

    Raises:
      InputError: see `check_free`.
    """
    check_free(root, split, id)
    sidecar = path_of(root, split, id)
    _write(sidecar, lambda file: file.write(text(info)))
    for stream, values in features.items():
        path = features_path(root, split, stream, id)
        _write(path, partial(np.save, arr=values, allow_pickle=False))
    # From here on, an older sidecar would lie.
    sidecar.unlink(missing_ok=True)
    _sync(sidecar.parent)
    for stream in STREAMS:
        path = features_path(root, split, stream, id)
        if stream in features:
            os.replace(_temporary(path), path)
            _sync(path.parent)
        else:
            path.unlink(missing_ok=True)
    os.replace(_temporary(sidecar), sidecar)
    _sync(sidecar.parent)


def done(
    root: Path, split: str, id: str, video: Path, wanted: dict[str, Any], verify: bool = False
) -> dict[str, Any] | None:
    """The sidecar of a video that need not be extracted again; None of one that must.

    The file must be the same: its size, and its time or its sha256 (`verify`: the sha256). The extractor and the rest
    of `wanted` must agree with the sidecar, and the features be there with as many snippets as it says.
    """
    info = read(path_of(root, split, id))
    if info is None or any(info.get(key) != value for key, value in wanted.items()):
        return None
    try:
        state = video.stat()
        same = info["bytes"] == state.st_size
        if same and (verify or info["modified"] != state.st_mtime_ns):
            same = info["sha256"] == digest(video)
        for stream, dim in info["dims"].items():
            array = np.lib.format.open_memmap(regular(features_path(root, split, stream, id)), mode="r")
            same = same and array.shape == (info["num_features"], dim)
    except Exception:  # whatever is wrong with them, they are made anew
        return None
    return info if same else None


def sidecars(root: Path) -> Iterator[tuple[str, str, Path]]:
    """(split, id, path) of all sidecars in a folder."""
    for split in SPLITS:
        for path in sorted((root / "features" / split).glob("*.json")):
            if not (path.name.startswith(".") and path.name.endswith(".tmp")):
                yield split, path.name.removesuffix(".json"), path


def extraction(info: dict[str, Any]) -> dict[str, Any] | None:
    """What of a sidecar must be the same for another video's features to be like these; None if it is no sidecar."""
    return {name: info.get(name) for name in EXTRACTION} if isinstance(info.get("extractor"), dict) else None


def check_one_extractor(root: Path, ids: Mapping[str, Iterable[str]], problems: Problems) -> dict[str, Any] | None:
    """How the features of a folder were extracted; adds to its problems that different extractors made them.

    Features without a sidecar were not made here, and nothing is known of them.

    Args:
      root: the folder.
      ids: its videos by split.
      problems: of the folder.

    Returns:
      The `extraction` of all videos; None where it is not known of all, or they differ in the grid of their snippets.
    """
    found: dict[str, list[str]] = defaultdict(list)
    made = []
    for split, id in [(half, id) for half in SPLITS for id in ids[half]]:
        if not (path := path_of(root, split, id)).exists():
            made.append(None)
            continue
        info = read(path)
        if info is None:
            problems.add(f"features/{split}/{id}.json", "cannot be read: extract the video again")
            continue
        made.append(extraction(info))
        if features := [s for s in STREAMS if features_path(root, split, s, id).exists()]:
            extractor = info.get("extractor")
            found[json.dumps(extractor, sort_keys=True)].append(f"features/{split}/{features[0]}/{id}.npy")
    if len(found) > 1:
        most = max(found, key=lambda block: len(found[block]))
        for block, paths in found.items():
            if block != most:
                what = f"was made by extractor {block}, but {found[most][0]} and others by {most}"
                for name in paths:
                    problems.add(name, f"{what}: extract all with one")
    return made[0] if made and all(one == made[0] for one in made) else None
