"""Files of every kind: names, damage, limits, views."""

import os
import pickle
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest

from tests.foreign import (
    equal,
    named,
    npy,
    objects,
    peak,
    refused,
    save,
    simple,
    small_files,
    storage,
    tensor,
    torch_zip,
)
from wsal_jax.formats import arrays
from wsal_jax.types import InputError


def test_names_and_places(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for path, word in [("none.npy", "cannot be read"), ("folder.npy", "cannot be read"), ("x.mat", "must end in .npy")]:
        with pytest.raises(InputError, match=word) as error:
            arrays.read(tmp_path / path)
        assert path in str(error.value)
    for suffix in (".npy", ".npz", ".pkl", ".pt", ".csv"):
        refused(save(tmp_path, suffix, b""), "is empty")
        if suffix != ".csv":
            refused(save(tmp_path, suffix, b"no such format\n" * 20))
    assert equal(arrays.read(save(tmp_path, ".PKL", pickle.dumps([1]))), [1])


EXPECTED = (ValueError, TypeError, LookupError, OverflowError, OSError, EOFError, NotImplementedError, RuntimeError)
EXPECTED += (struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError)
"""What a damaged file may lead to; not, say, a NameError."""


def read_or_refuse(path):
    """Whether a file can be read; any error except InputError fails the test."""
    try:
        arrays.read(path)
    except InputError as error:
        assert str(path) in str(error) and isinstance(error.__cause__, EXPECTED), repr(error.__cause__)
        assert not isinstance(error.__cause__, RecursionError)
        return False
    return True


@pytest.mark.filterwarnings("ignore")
def test_every_beginning_of_a_file(tmp_path):
    for suffix, content in small_files():
        assert read_or_refuse(save(tmp_path, suffix, content))
        for size in range(len(content)):
            assert not read_or_refuse(save(tmp_path, suffix, content[:size])) or suffix == ".csv", (suffix, size)


@pytest.mark.filterwarnings("ignore")
def test_random_damage(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = set()

    def damage():
        for suffix, content in small_files():
            for _ in range(25):
                damaged = bytearray(content)
                for at in rng.integers(0, len(content), rng.integers(1, 4)):
                    damaged[at] = rng.integers(256) if rng.random() < 0.5 else damaged[at] ^ (1 << rng.integers(8))
                outcomes.add((suffix, read_or_refuse(save(tmp_path, suffix, bytes(damaged)))))

    assert peak(damage) < 50e6 and len(outcomes) >= 10


def test_the_limit_is_exact(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1000))
    assert arrays.read_npy(tmp_path / "a.npy", limit=8000).size == 1000
    with pytest.raises(InputError, match="7,999 bytes"):
        arrays.read_npy(tmp_path / "a.npy", limit=7999)
    path = save(tmp_path, ".pkl", pickle.dumps([np.zeros(10**5), np.ones(10**5)]))
    assert len(arrays.read(path, limit=1_600_000)) == 2
    refused(path, "declares", limit=1_599_999)
    weights = {"0": (10**5, np.zeros(10**5, np.float32).tobytes())}
    both = tensor(storage(size=10**5), 0, (10**5,), (1,))
    path = save(tmp_path, ".pt", torch_zip(b"\x80\x02" + both + both + b"\x86.", weights))
    assert len(arrays.read(path, limit=800_000)) == 2
    refused(path, "declares", limit=799_999)


def sparse_objects(path, videos, t, d):
    """A sparse file of an object array of float32 zeros, with 1 + i at the end of array i."""
    with open(path, "wb") as file:
        file.write(npy(b"", shape=f"({videos},)"))
        head, tail = pickle.dumps(objects(*[()] * videos), 4).split(b")" * videos)
        file.write(head)
        for i in range(videos):
            new = named("numpy._core.multiarray", "_reconstruct") + b"(" + named("numpy", "ndarray") + simple((0,))
            new += b"C\x01btR(" + simple(1) + simple((t, d)) + simple(np.dtype("f4")) + b"\x89"
            file.write(new + b"\x8e" + struct.pack("<Q", 4 * t * d))
            file.seek(4 * t * d - 4, os.SEEK_CUR)
            file.write(struct.pack("<f", 1 + i) + b"tb")
        file.write(tail)


def test_a_large_file_opens_at_once(tmp_path):
    path = tmp_path / "features.npy"
    sparse_objects(path, 3, 131_072, 2048)
    assert path.stat().st_size > 3 * 2**30
    start = time.process_time()
    read = []
    assert peak(lambda: read.append(arrays.read_npy(path))) < 500_000
    assert time.process_time() - start < 1
    for i, video in enumerate(read[0]):
        assert video.shape == (131_072, 2048) and video.dtype == np.float32
        assert not video.flags.writeable and not video.flags.owndata
        assert video[0, 0] == video[70_000, 5] == 0 and video[-1, -1] == 1 + i
    with pytest.raises(InputError, match="declares"):
        arrays.read_npy(path, limit=3 * 2**30 - 1)
    with open(path, "r+b") as file:
        file.truncate(2**30)
    assert peak(lambda: refused(path, "too early")) < 500_000


def test_arrays_are_views(tmp_path):
    array = np.arange(10_000.0)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", objects(array, array[:600]), allow_pickle=True)
    np.savez(tmp_path / "c.npz", a=array)
    content = {"0": (10_000, array.tobytes())}
    of = tensor(storage("0", "DoubleStorage", 10_000), 0, (10_000,), (1,))
    save(tmp_path, ".pt", torch_zip(b"\x80\x02" + of + b".", content))
    read = [arrays.read_npy(tmp_path / "a.npy"), arrays.read_npy(tmp_path / "b.npy")[0]]
    read += [arrays.read_npz(tmp_path / "c.npz")["a"], arrays.read_pt(tmp_path / "file.pt")]
    for one in read:
        assert not one.flags.owndata and not one.flags.writeable and np.array_equal(one, array)
    for path in tmp_path.iterdir():
        assert peak(lambda path=path: arrays.read(path)) < 70_000 < peak(array.copy)
