"""Users' array files, as written by NumPy, Python and PyTorch: `.npy`, `.npz`, `.pkl`, `.pt` and `.csv`.

`np.load(allow_pickle=True)`, `pickle.load` and older versions of `torch.load` execute code from the file. Here a pickle
is only data, a finite tree of arrays, numbers and text (see `pickles`). Shapes are checked against the size of the
data, and sizes against the limits, before memory is allocated.

Where possible, arrays are read-only views on the file, so a large file opens at once; do not change it meanwhile. Data
that must be in memory (compressed arrays, text, the objects around arrays) have their own limit, `files.MEMORY`.
Members of zip files (`.npz`, `.pt`) are checked against their checksums, which reads them once.

Any problem with a file raises an InputError that names the file.
"""

import os
from collections.abc import Callable
from typing import Any

from wsal_jax.formats.files import LIMIT, Path
from wsal_jax.formats.numpy_files import read_csv, read_npy, read_npz
from wsal_jax.formats.pickles import read_pickle
from wsal_jax.formats.torch_files import read_pt
from wsal_jax.types import InputError

__all__ = ["read", "read_csv", "read_npy", "read_npz", "read_pickle", "read_pt"]

_READERS: dict[str, Callable[[Path, int], Any]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".pkl": read_pickle,
    ".pickle": read_pickle,
    ".pt": read_pt,
    ".pth": read_pt,
    ".csv": read_csv,
}


def read(path: Path, limit: int = LIMIT) -> Any:
    """Reads a file with the reader for its suffix.

    Args:
      path: the file.
      limit: the largest total size of its arrays, in bytes.

    Raises:
      InputError: the file is missing, damaged, of another kind, over the limit, or tries to execute something.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise InputError(f"{path} is not an array file by its name: it must end in {', '.join(_READERS)}")
    return _READERS[suffix](path, limit)
