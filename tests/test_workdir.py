"""The binding of a work folder to its run."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from wsal_jax.types import InputError
from wsal_jax.workdir import lock, open_log, open_run, rise


def test_the_same_run_is_continued_and_another_refused(config, tmp_path):
    folder = open_run(str(tmp_path / "run"), config, "data/1.0.0")
    (folder / "detections.json").write_text("{}")
    config.evaluation.protocol = "wtalc"
    config.data.dir, config.data.placement = "elsewhere", "stream"  # what does not change the results may change
    assert open_run(str(tmp_path / "run"), config, "data/1.0.0") == folder
    assert (folder / "detections.json").read_text() == "{}"
    with pytest.raises(InputError, match=r"dataset: data/1.0.0 there, data/2.0.0 now"):
        open_run(str(tmp_path / "run"), config, "data/2.0.0")
    config.seed, config.method.aggregator = 7, "norm"
    with pytest.raises(InputError, match=r"method.aggregator: maan there, norm now; seed: 0 there, 7 now.*--workdir"):
        open_run(str(tmp_path / "run"), config, "data/1.0.0")
    assert json.loads((folder / "config.json").read_text())["seed"] == 0


def test_a_run_older_than_an_option_is_continued(config, tmp_path):
    folder = open_run(str(tmp_path / "run"), config, "tiny/1")
    old = json.loads((folder / "config.json").read_text())
    del old["data"]["dtype"]
    (folder / "config.json").write_text(json.dumps(old))
    assert open_run(str(folder), config, "tiny/1") == folder
    config.data.dtype = "bfloat16"
    with pytest.raises(InputError, match=r"data\.dtype: stored there, bfloat16 now"):
        open_run(str(folder), config, "tiny/1")


def test_without_resume_a_run_is_set_aside_and_nothing_lost(config, tmp_path):
    config.resume = False
    for content in ("first", "second", "third"):
        folder = open_run(str(tmp_path / "run"), config, "data/1.0.0")
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        (folder / "detections.json").write_text(content)
    kept = [(tmp_path / name / "detections.json").read_text() for name in ("run.1", "run.2", "run")]
    assert kept == ["first", "second", "third"]


def test_the_default_folder_depends_on_what_is_computed(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = open_run(None, config, "data/1.0.0")
    assert first.parent == tmp_path / "runs" and first.name.startswith("maan-")
    config.data.device_gb = 1.0
    assert open_run(None, config, "data/1.0.0") == first
    others = {open_run(None, config, "data/2.0.0")}
    config.steps = 7
    others.add(open_run(None, config, "data/1.0.0"))
    assert len({first, *others}) == 3


def test_the_whole_config_is_recorded(config, tmp_path):
    recorded = json.loads((open_run(str(tmp_path / "run"), config, "data/1.0.0") / "config.json").read_text())
    assert recorded["dataset"] == "data/1.0.0"
    del recorded["dataset"]
    assert recorded == json.loads(config.to_json())


def test_a_config_that_cannot_be_written_leaves_the_old_one(config, tmp_path, monkeypatch):
    record = open_run(str(tmp_path), config, "data/1.0.0") / "config.json"
    before = record.read_text()
    config.evaluation.protocol = "wtalc"

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"config\.json: cannot be written \(No space"):
        open_run(str(tmp_path), config, "data/1.0.0")
    assert record.read_text() == before
    record.write_text("")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        open_run(str(tmp_path), config, "data/1.0.0")


def test_two_runs_in_one_folder_are_refused(config, tmp_path):
    folder = open_run(str(tmp_path / "run"), config, "data/1.0.0")
    with lock(folder):
        with pytest.raises(InputError, match=rf"in use by process {os.getpid()} host {socket.gethostname()} since 2"):
            with lock(folder):
                pass
        config.resume = False
        with pytest.raises(InputError, match="in use by process"):
            open_run(str(folder), config, "data/1.0.0")
    open_run(str(folder), config, "data/1.0.0")
    assert (tmp_path / "run.1" / "config.json").exists()


def test_the_lock_of_a_dead_process_is_taken_over_unless_it_may_live_elsewhere(tmp_path):
    hold = f"import fcntl, time; f = open({str(tmp_path / 'lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    write = f'f.write(\'{{"process": 7, "host": "{socket.gethostname()}"}}\'); f.flush(); print(flush=True)'
    with subprocess.Popen([sys.executable, "-c", f"{hold}; {write}; time.sleep(60)"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=r"in use by process 7 host .*: wait for it"):
            with lock(tmp_path):
                pass
        other.send_signal(signal.SIGKILL)
    with lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    (tmp_path / "lock").write_text('{"process": 7, "host": "elsewhere"}')
    with pytest.raises(InputError, match=r"process 7 host elsewhere: if that process is dead, delete .*lock"):
        with lock(tmp_path):
            pass


def test_what_a_continued_run_writes_again_is_dropped(tmp_path):
    for model in ("rgb", "flow"):
        with open_log(tmp_path, model) as log:
            for step in (2, 4, 6):
                log(step, {"train/loss": np.float32([step])})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"model": "fl')  # killed here
    with open_log(tmp_path, "flow", 4) as log:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(x["model"], x["step"]) for x in lines] == [*(("rgb", i) for i in (2, 4, 6)), ("flow", 2), ("flow", 4)]
        log(6, {"train/loss": np.float32([0])})
    assert len(path.read_text().splitlines()) == 6


@pytest.mark.parametrize(("end", "rose"), [(2.0, False), (19.0, False), (2e6, True)])
def test_a_loss_that_ends_far_above_its_start_is_told(tmp_path, end, rose):
    assert rise(tmp_path, "rgb") == ""  # imported weights
    with open_log(tmp_path, "rgb") as log:
        log(2, {"b/loss": np.float32([1, 1e5]), "b/first_loss": np.float32([2, 2])})
        log(4, {"b/loss": np.float32([2, end])})
    with open_log(tmp_path, "flow") as log:
        log(4, {"b/loss": np.float32([1e9])})
    warning = rise(tmp_path, "rgb")
    assert ("of rgb, phase b, rose from 2 to 2e+06" in warning) if rose else warning == ""
