"""Features on disk: streaming writes, partial reads, detection of damage and of unfinished builds."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from tests import stored
from tests.stored import tree
from wsal_jax.data import examples, pipeline, store
from wsal_jax.data import synthetic_untrimmed as synthetic
from wsal_jax.data.store import Store, Stream
from wsal_jax.types import InputError

STREAMS = {"rgb": Stream(5, "float16"), "flow": Stream(3, "float32")}


def write(folder, lengths):
    """Some videos, as written and as a store."""
    rng = np.random.default_rng(0)
    videos = [
        {name: rng.standard_normal((n, of.dim)).astype(of.dtype) for name, of in STREAMS.items()} for n in lengths
    ]
    append = store.writer(folder, "train", STREAMS)
    shards, rows = np.array([append(video) for video in videos]).T
    return videos, Store(folder, "train", STREAMS, shards, rows, np.array(lengths))


def test_all_or_some_snippets_come_back_from_small_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 160)  # 10 rows of flow, which are the larger ones
    lengths = [3, 7, 1, 9, 4, 4, 2, 12, 1]
    videos, kept = write(tmp_path, lengths)
    assert kept.shards.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 4]  # the one of 12 is larger than a shard may be
    assert kept.rows.tolist() == [0, 3, 0, 1, 0, 4, 8, 0, 0]
    store.check_sizes(kept)
    rng = np.random.default_rng(1)
    for video, features in enumerate(videos):
        for name, values in features.items():
            whole = store.read(kept, video, name)
            assert whole.dtype == values.dtype
            np.testing.assert_array_equal(whole, values)
            for size in (1, lengths[video], 20):
                snippets = rng.integers(0, lengths[video], size)
                np.testing.assert_array_equal(store.read(kept, video, name, snippets), values[snippets])


def test_a_file_of_rows_can_be_read_with_numpy_alone(tmp_path):
    videos, _ = write(tmp_path, [2, 3])
    rows = np.fromfile(tmp_path / "features-train-rgb-00000.rows", [("features", "<f2", 5), ("crc32", "<u4")])
    np.testing.assert_array_equal(rows["features"], np.concatenate([video["rgb"] for video in videos]))


def test_only_what_is_asked_for_is_read(tmp_path):
    """A damaged row affects only those who read it."""
    videos, kept = write(tmp_path, [30, 30, 30])
    path = tmp_path / "features-train-flow-00000.rows"
    content = bytearray(path.read_bytes())
    content[(30 + 17) * 16 + 5] ^= 1
    path.write_bytes(content)
    for video in (0, 2):
        np.testing.assert_array_equal(store.read(kept, video, "flow"), videos[video]["flow"])
    np.testing.assert_array_equal(store.read(kept, 1, "rgb"), videos[1]["rgb"])
    others = np.array([0, 16, 18, 29])
    np.testing.assert_array_equal(store.read(kept, 1, "flow", others), videos[1]["flow"][others])
    for snippets in (None, np.array([3, 17]), np.full(40, 17)):
        with pytest.raises(InputError, match=rf"{path.name} is damaged \(within rows 30 to 60\)"):
            store.read(kept, 1, "flow", snippets)


def test_rows_that_are_lost_are_noticed(tmp_path):
    """Also if the file was truncated after loading, or a crash left zeros."""
    _, kept = write(tmp_path, [30, 30])
    path = tmp_path / "features-train-rgb-00000.rows"
    content = path.read_bytes()
    os.truncate(path, 40 * 14 + 3)
    for snippets in (None, np.array([5, 10]), np.arange(30)):
        with pytest.raises(InputError, match=f"{path.name} is damaged .it ends early"):
            store.read(kept, 1, "rgb", snippets)
    path.write_bytes(content[:560] + bytes(len(content) - 560))
    with pytest.raises(InputError, match=f"{path.name} is damaged"):
        store.read(kept, 1, "rgb", np.array([20]))
    path.unlink()
    for snippets in (None, np.array([5])):
        with pytest.raises(InputError, match=f"{path.name} is damaged .*No such file"):
            store.read(kept, 1, "rgb", snippets)


def build(folder, **options):
    builder = tfds.builder("synthetic_untrimmed/tiny", data_dir=folder, file_format="array_record")
    builder.download_and_prepare(**options)
    return builder


def test_a_split_may_be_larger_than_the_memory(tiny, tmp_path, monkeypatch):
    """TFDS's writer needs TensorFlow for data beyond its buffer; our writers must not keep a split in memory."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    real, alive = synthetic.render, []

    def render(*args):
        assert sum(reference() is not None for reference in alive) <= 2 * len(synthetic.STREAMS)
        features = real(*args)
        alive.extend(weakref.ref(values) for values in features.values())
        return features

    monkeypatch.setattr(synthetic, "render", render)
    monkeypatch.setattr(store, "SHARD_BYTES", 5000)
    builder = build(tmp_path)
    assert len(list(Path(builder.data_dir).glob("features-train-rgb-*"))) > 4 and len(alive) == 2 * 20
    data, same = pipeline.load(builder, "train"), pipeline.load(tiny, "train")
    assert data.metas == same.metas
    np.testing.assert_array_equal(*(pipeline.flat(x, ["rgb", "flow"]) for x in (data, same)))


def test_records_are_read_as_tfds_reads_them(tiny):
    for split in ("train", "test"):
        (path,) = tiny.info.splits[split].filepaths
        read, given = list(examples.read(path)), list(tiny.as_data_source(split=split))
        assert len(read) == len(given)
        for mine, example in zip(read, given):
            assert mine.keys() == example.keys()
            for name, value in example.items():
                np.testing.assert_array_equal(mine[name], value)
                assert name in ("id", "group", "segment_labels") or mine[name].dtype == value.dtype


def test_load_reads_no_features(tiny, monkeypatch):
    monkeypatch.setattr(store, "read", None)
    data = pipeline.load(tiny, "train")
    with pytest.raises(TypeError):
        pipeline.flat(data, ["rgb"])
    assert pipeline.num_bytes(data, ["rgb", "flow"]) == data.lengths.sum() * 2 * 16 * 4


@pytest.fixture
def copy(tiny, config, tmp_path):
    """Options for the tiny data, which may be damaged, and their folder."""
    shutil.copytree(Path(tiny.data_dir).parents[2], tmp_path / "copy")
    config.data.dir = str(tmp_path / "copy")
    return config.data, tmp_path / "copy" / Path(tiny.data_dir).relative_to(Path(tiny.data_dir).parents[2])


def use(options):
    builder = pipeline.build(options)
    for split in ("train", "test"):
        pipeline.flat(pipeline.load(builder, split), ["rgb", "flow"])


def damages(content):
    """A flipped bit at five places, a truncated and an empty file, one that is longer, and none."""
    for position in np.linspace(0, len(content) - 1, 5).astype(int):
        yield content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
    yield content[: len(content) // 2]
    yield content[:-1]
    yield b""
    yield content + b"\n"
    yield None


def test_a_damaged_file_is_named_whichever_it_is(copy):
    options, folder = copy
    use(options)
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 11
    for path in map(folder.joinpath, names):
        content = path.read_bytes()
        for damaged in damages(content):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(
                InputError, match=rf"{path.name} is damaged .*: remove this folder, and it is built anew"
            ):
                use(options)
        path.write_bytes(content)
    use(options)


KILLED = """
import sys, time
from tests.test_store import build, synthetic
real = synthetic.render
def render(config, line, rng):
    render.calls += 1
    if render.calls == 15:  # in the second split
        print("now", flush=True)
        time.sleep(60)
    return real(config, line, rng)
render.calls = 0
synthetic.render = render
build(sys.argv[1])
"""


def test_a_killed_build_is_not_taken_for_whole(tiny, tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("now") for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert any("features-train" in name for name in tree(tmp_path))
    builder = tfds.builder("synthetic_untrimmed/tiny", data_dir=tmp_path, file_format="array_record")
    assert not builder.is_prepared()
    builder.download_and_prepare()
    assert tree(Path(builder.data_dir)) == tree(Path(tiny.data_dir))
    assert not list(tmp_path.rglob("incomplete.*"))  # what the killed one has left is gone


def test_two_that_build_the_same_data_at_once(tiny, tmp_path, monkeypatch):
    """The second starts during the first, waits for it, and builds nothing."""
    first, second = (
        tfds.builder("synthetic_untrimmed/tiny", data_dir=tmp_path, file_format="array_record") for _ in range(2)
    )
    other, calls = threading.Thread(target=second.download_and_prepare), []

    def render(*args, real=synthetic.render):
        calls.append(threading.current_thread())
        if len(calls) == 15:
            other.start()
            time.sleep(0.3)
        return real(*args)

    monkeypatch.setattr(synthetic, "render", render)
    first.download_and_prepare()
    other.join()
    assert len(calls) == 20 and other not in calls
    assert tree(Path(first.data_dir)) == tree(Path(tiny.data_dir))
    assert pipeline.load(second, "test").metas == pipeline.load(first, "test").metas
    assert stored.dims(second) == {"rgb": 16, "flow": 16}
