"""A disk that is full, for which a limit of the size of files stands in, or read-only: the path is named, and what was
there is kept."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.stored import tree
from wsal_jax import checkpoint, files, main, record
from wsal_jax.data import pipeline
from wsal_jax.types import InputError, Scores
from wsal_jax.workdir import lock, open_log, open_run


@contextmanager
def full(size=0):
    """No file can be longer than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def logged(folder, step):
    with open_log(folder, "rgb", step - 1) as log:
        log(step, {"a/loss": np.ones(1)})


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # of Orbax, as it fails
def test_a_checkpoint_that_cannot_be_written_leaves_those_before(tmp_path):
    state = {"a": np.random.default_rng(0).random((100, 100)), "b": np.zeros(3)}
    checkpoint.save(tmp_path, 1, state)
    for size in (0, 100, 3000):
        with pytest.raises(InputError, match=r"/2: cannot be written .*File too large.* step 1 is kept"), full(size):
            checkpoint.save(tmp_path, 2, state)
        assert checkpoint.newest_whole(tmp_path) == 1
    checkpoint.save(tmp_path, 2, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


WRITERS = {
    "config.json": lambda folder, config: open_run(str(folder), config, "data/1"),
    "scores.npz": lambda folder, config: record.write_scores(folder, {"rgb": [Scores(*3 * [np.ones((1, 1))])] * 9}),
    "results.json": lambda folder, config: files.replace(folder / "results.json", "new"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_a_run_are_old_or_new(config, tmp_path, name):
    (tmp_path / name).write_text(json.dumps({**json.loads(config.to_json()), "dataset": "data/1"}))
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"{name}: cannot be written \(File too large\)"), full():
        WRITERS[name](tmp_path, config)
    assert tree(tmp_path) == before
    WRITERS[name](tmp_path, config)
    assert name == "config.json" or tree(tmp_path) != before


def test_metrics_and_lock(tmp_path):
    logged(tmp_path, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with (
        pytest.raises(InputError, match=f"{tmp_path}.*: cannot be written"),
        files.writing(tmp_path),
        full(len(before)),
    ):
        logged(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(InputError, match=f"{tmp_path}.*: cannot be written"), files.writing(tmp_path), full():
        with lock(tmp_path):
            pass
    with lock(tmp_path):
        logged(tmp_path, 2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_data_that_cannot_be_built_leave_nothing_that_counts(config, tmp_path):
    config.data.dir = str(tmp_path / "data")
    for size in (0, 3000, 12_000):  # the folder's first file, the records, the features
        with pytest.raises(InputError, match=f"{tmp_path}/data.*: cannot be written"), full(size):
            pipeline.build(config.data)
        assert not list((tmp_path / "data").rglob("SHA256SUMS"))
    assert len(pipeline.load(pipeline.build(config.data), "test").metas) == 8
    assert not list(tmp_path.rglob("incomplete*"))


def test_a_folder_without_the_right_to_write(config, tmp_path, monkeypatch):
    """Root may write everywhere, so the answer of the system is injected."""

    def refuse(path, *args, real=Path.mkdir, **kwargs):
        if path.name == "run":
            raise OSError(errno.EROFS, "Read-only file system", os.fspath(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=f"{tmp_path}/run: cannot be written .Read-only file system."):
        main.run(config, str(tmp_path / "run"))


def test_a_disk_that_is_full_during_training(config, tmp_path, monkeypatch):
    def refuse(folder, *args):
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(folder / "metrics.jsonl"))

    monkeypatch.setattr(main, "open_log", refuse)
    with pytest.raises(InputError, match=f"{tmp_path}/run/metrics.jsonl: cannot be written .No space left on device."):
        main.run(config, str(tmp_path / "run"))


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), files.writing(tmp_path):
        (tmp_path / "none").read_text()
