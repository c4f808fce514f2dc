"""Users' arrays, as NumPy, Python and PyTorch write them: `.npy`, `.npz`, `.pkl`, `.pt` and `.csv`.

`np.load(allow_pickle=True)`, `pickle.load` and older versions of `torch.load` run whatever a file asks for. Here a
pickle is only data, a finite tree of arrays, numbers and text (see `pickles`). Shapes are checked against the bytes
that are there, and sizes against the limits, before memory is taken.

Arrays are views on the file where they can be, read-only, so a large file opens at once; do not change it meanwhile.
What must be taken into memory (compressed arrays, text, the objects around arrays) has a limit of its own,
`files.MEMORY`. Members of zip files (`.npz`, `.pt`) are checked against their checksums, which reads them once.

Whatever is wrong with a file is an InputError that names it.
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
    """What a file holds, read by the function for the suffix of its name.

    Args:
      path: the file.
      limit: bytes that its arrays may have together.

    Raises:
      InputError: the file is missing, damaged, of another kind, over the limit, or asks for something to be run.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise InputError(f"{path} is no file of arrays by its name: it must end in {', '.join(_READERS)}")
    return _READERS[suffix](path, limit)
