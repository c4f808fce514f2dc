"""`.npy`, `.npz` and `.csv`."""

import struct
import time
import zipfile

import numpy as np
import pytest

from tests.foreign import SHARED, equal, npy, objects, peak, refused, save, zipped
from wsal_jax.formats import arrays, files


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("lengths", [(5, 1, 300), (4, 4, 4)])
def test_features_as_published(tmp_path, dtype, lengths):
    rng = np.random.default_rng(0)
    videos = objects(*(rng.normal(size=(t, 32)).astype(dtype) for t in lengths))
    np.save(tmp_path / "features.npy", videos, allow_pickle=True)
    assert equal(arrays.read_npy(tmp_path / "features.npy"), videos)


@pytest.mark.parametrize(
    "column",
    [
        objects(["Diving", "CliffDiving"], [], ["Diving"]),
        objects([b"Diving", b"CliffDiving"], [], [b"Diving"]),
        objects([[0.5, 1.5], [2, 3]], [], [[1, 2]]),
        np.array([b"video_1", b"video_10"]),
        np.array(["video_1", "video_10"]),
        np.array([[1.5], [2.5]]),
    ],
)
def test_annotations_as_published(tmp_path, column):
    np.save(tmp_path / "column.npy", column, allow_pickle=True)
    assert equal(arrays.read_npy(tmp_path / "column.npy"), column)


def test_npy_of_python_2_and_others(tmp_path):
    for descr, shape in (("'<f4'", "(3L,)"), ("'<f4'", "( 3, )"), ("'<f4'", "(3, 1)"), ("'<f4'", "(1,3)")):
        path = save(tmp_path, ".npy", npy(np.arange(3, dtype="<f4").tobytes(), descr, shape))
        assert arrays.read_npy(path).ravel().tolist() == [0, 1, 2]
    for version in ((1, 0), (2, 0), (3, 0)):
        with open(tmp_path / "file.npy", "wb") as file:
            np.lib.format.write_array(file, np.asfortranarray(np.arange(6.0).reshape(2, 3)), version)
        assert equal(arrays.read_npy(tmp_path / "file.npy"), np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, write):
    content = {
        "feature": np.arange(6000.0).reshape(2, 3000).astype(np.float32),
        "frame_cnt": np.array(7),
        "names": objects("a", [b"b"]),
    }
    write(tmp_path / "video.npz", **content)
    assert equal(arrays.read(tmp_path / "video.npz"), content)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("folder", ["thumos14", "activitynet12", "activitynet13"])
def test_real_annotations(folder):
    files = sorted((SHARED / folder).glob("*-Annotations/*.npy"))
    if not files:
        pytest.skip("the shared annotations are not here")
    for path in files:
        assert equal(arrays.read_npy(path), np.load(path, allow_pickle=True, encoding="bytes")), path


@pytest.mark.parametrize(
    "descr, shape, word",
    [
        ("'<f4'", "(4,)", "declares"),
        ("'<f4'", "(2,)", "declares"),
        ("'<f4'", "(4611686018427387904,)", "declares"),
        ("'<f4'", "(4294967296, 4294967296)", "declares"),
        ("'<f4'", f"({'9' * 5000},)", ""),
        ("'<f4'", "(-3,)", "without descr"),
        ("'<f4'", "3", "without descr"),
        ("'<f4'", "(0, 4611686018427387904)", "without any bytes"),
        ("'|S0'", "(4611686018427387904,)", "without any bytes"),
        ("'|V12'", "(1,)", "numbers, strings or objects"),
        ("'<f3'", "(4,)", ""),
        ("'f4,f4,f4'", "(1,)", "numbers, strings or objects"),
        ("[('a', '<f4')]", "(3,)", "numbers, strings or objects"),
        ("__import__('os').system('true')", "(3,)", "without descr"),
    ],
)
def test_headers(tmp_path, descr, shape, word):
    content = npy(bytes(12), descr, shape)
    for suffix, make in ((".npy", bytes), (".npz", lambda content: zipped({"a.npy": content}, zipfile.ZIP_DEFLATED))):
        start = time.process_time()
        refused(save(tmp_path, suffix, make(content)), word)
        assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("1,2\n3,4", [[1, 2], [3, 4]]),
        ("f0,f1\n1e3,-2\n", [[1000, -2]]),
        ("0,1\n5,6\n", [[5, 6]]),
        ("0,1,3\n", [[0, 1, 3]]),
        ("0\n0\n", [[0], [0]]),
        ("﻿a, b\r\n 1 , 2\r\n", [[1, 2]]),
        ("nan,inf\n", [[np.nan, np.inf]]),
    ],
)
def test_csv(tmp_path, text, expected):
    table = arrays.read(save(tmp_path, ".csv", text.encode()))
    np.testing.assert_array_equal(table, expected)
    assert table.dtype == np.float64


@pytest.mark.parametrize(
    "text, word",
    [
        (b"1,2\n3\n", "number of columns"),
        (b"1,2\n3,x\n", "'x'"),
        (b"1,2\n3,\n", "''"),
        (b",0,1\n0,5,6\n", "index=False"),
        (b"1,2\n" + b"1," * 2**19 + b"1\n", "line of"),
        (b"1," * 2**19 + b"1\n", "line of"),
        (b"\xff\xfe1\x00", "Decode"),
    ],
)
def test_tables_that_are_none(tmp_path, text, word):
    refused(save(tmp_path, ".csv", text), word)


@pytest.mark.filterwarnings("ignore:loadtxt")
def test_table_without_rows(tmp_path):
    refused(save(tmp_path, ".csv", b"a,b\n"), "no numbers")
    refused(save(tmp_path, ".csv", b"1,2\n" * 1000), "memory", limit=10_000)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_checksums(tmp_path, compression):
    member = npy(np.arange(1000, dtype="<f8").tobytes(), "'<f8'", "(1000,)")
    content = bytearray(zipped({"a.npy": member}, compression))
    assert arrays.read(save(tmp_path, ".npz", content))["a"].sum() == 499500
    content[len(content) // 2] ^= 1
    refused(save(tmp_path, ".npz", content), "damaged")
    refused(save(tmp_path, ".npz", content), "limit", limit=8000)  # known before it is read


def test_other_zip_files(tmp_path):
    member = npy(bytes(8), "'<f8'", "(1,)")
    refused(save(tmp_path, ".npz", zipped({"a.npy": member}, zipfile.ZIP_BZIP2)), "compressed")
    refused(save(tmp_path, ".npz", zipped({"a.npy": member, "b.txt": b""})), "b.txt")
    encrypted = bytearray(zipped({"a.npy": member}))
    encrypted[encrypted.rindex(b"PK\1\2") + 8] |= 1
    refused(save(tmp_path, ".npz", encrypted), "encrypted")
    refused(save(tmp_path, ".pt", zipped({"a.npy": member})), "no file of tensors")


def test_a_long_header_is_not_read(tmp_path):
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 10_000_000
    refused(save(tmp_path, ".npy", npy(bytes(8), "'<f8'", "(1,)" + " " * 20_000)), "header")
    for suffix, content in ((".npy", long), (".npz", zipped({"a.npy": long}, zipfile.ZIP_DEFLATED))):
        path = save(tmp_path, suffix, content)
        assert peak(lambda path=path: refused(path, "header")) < 500_000


def test_zip_bombs(tmp_path):
    zeros = npy(bytes(2**25), "'|u1'", f"({2**25},)")
    path = save(tmp_path, ".npz", zipped({"a.npy": zeros}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000
    assert peak(lambda: refused(path, "bytes", limit=2**25)) < 500_000  # the header is over it
    assert arrays.read_npz(path, limit=2**26)["a"].size == 2**25
    many = zipped({f"{i}.npy": zeros[: 2**20] for i in range(40)}, zipfile.ZIP_DEFLATED)
    path = save(tmp_path, ".npz", many)
    assert peak(lambda: refused(path, limit=2**25)) < 500_000
    # A member that declares less than it has, and one that has not the array that it declares.
    for content in (zeros, npy(bytes(2**25), "'|u1'", "(5,)")):
        bomb = bytearray(zipped({"a.npy": content}, zipfile.ZIP_DEFLATED))
        if content is zeros:
            start = bomb.rindex(b"PK\1\2")
            bomb[start + 24 : start + 28] = struct.pack("<I", 1000)
        path = save(tmp_path, ".npz", bomb)
        assert peak(lambda path=path: refused(path)) < 500_000
    bomb = bytearray(zipped({"archive/data.pkl": bytes(2**25)}, zipfile.ZIP_DEFLATED))
    start = bomb.rindex(b"PK\1\2")
    bomb[start + 24 : start + 28] = struct.pack("<I", 1000)
    path = save(tmp_path, ".pt", bomb)
    assert peak(lambda: refused(path, "damaged")) < 500_000


def test_only_what_is_not_in_the_file_counts_as_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MEMORY", 100_000)
    for write, fits in ((np.savez, True), (np.savez_compressed, False)):
        write(tmp_path / "file.npz", a=np.zeros(100_000))
        if fits:
            assert arrays.read_npz(tmp_path / "file.npz")["a"].size == 100_000
        else:
            refused(tmp_path / "file.npz", "memory")


def test_a_long_table_of_contents_is_not_read(tmp_path):
    content = bytearray(zipped({"a.npy": npy(bytes(8), "'<f8'", "(1,)")}))
    end = content.rindex(b"PK\5\6")
    with open(tmp_path / "file.npz", "wb") as file:
        file.truncate(2**30)
        file.seek(2**30)
        content[end + 12 : end + 16] = struct.pack("<I", 2**29)
        file.write(content[end:])
    assert peak(lambda: refused(tmp_path / "file.npz", "table of contents")) < 1_000_000
