"""Users' files, spoiled at random or no files at all: each reader ends in a result or an InputError that names them."""

import json
import os
import resource
import signal
import zlib
from contextlib import contextmanager

import numpy as np
import pytest

from tests.hostile import READERS, spoil
from wsal_jax import import_labels, record, selection
from wsal_jax.files import regular
from wsal_jax.types import InputError

CASES, SECONDS, MEMORY = 1000, 5, 100 * 2**20


class Late(BaseException):
    """Which no reader may take for the file's fault."""


@contextmanager
def limited():
    """Fails after some seconds of this process's work, or as a busy machine may be slow, many of waiting."""

    def late(number, frame):
        raise Late(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(reader, folder):
    """Whether it is read; else what is said must name a file or the folder."""
    try:
        with limited():
            reader.read(folder)
    except InputError as error:
        assert str(folder) in str(error)
        return False
    return True


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_spoiled_files_are_read_or_named(tmp_path, name):
    reader = READERS[name]
    reader.make(tmp_path)
    assert outcome(reader, tmp_path)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    refused, before = 0, peak()
    for _ in range(CASES):
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        path.unlink()  # some file systems wait for the disk where a file is written anew in place
        path.write_bytes(spoiled := spoil(content, rng))
        try:
            refused += not outcome(reader, tmp_path)
        except BaseException as error:
            error.add_note(f"{path.name}: {spoiled!r:.1000}")
            raise
        path.unlink()
        path.write_bytes(content)
    assert refused > 0 and peak() - before < MEMORY


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_regular_file_is_not_waited_for(tmp_path, name):
    """A pipe that nobody writes to, and a device without an end, in the place of each file."""
    reader = READERS[name]
    reader.make(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        aside = path.rename(tmp_path.with_name("aside"))
        os.mkfifo(path)
        outcome(reader, tmp_path)
        path.unlink()
        path.symlink_to("/dev/zero")
        outcome(reader, tmp_path)
        path.unlink()
        aside.rename(path)


def test_what_random_damage_has_found(tmp_path):
    """In 1,000 cases of each reader; each once ended in a traceback."""
    task = {"data": {"video": "a.mp4", "fps": 25.0}, "annotations": None}
    truth = {"database": {"a": {"subset": "test", "annotations": []}}, "set_ambiguous": {"a": 3}}
    data = {"version": 1, "classes": [], "videos": [{"id": "a", "length": 3, "fps": 10**400}]}
    readers = {
        "x.json": (import_labels.read, [task], [tmp_path / "x.json"]),
        "gt.json": (selection.read_truth, truth, tmp_path / "gt.json"),
        "data.json": (record.read, data, tmp_path),
    }
    for name, (read, content, path) in readers.items():
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=name):
            read(path)


def test_links_to_files_are_files(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    assert regular(tmp_path / "b").read_text() == "x"
    with pytest.raises(IsADirectoryError, match="is a folder"):
        regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "none")
