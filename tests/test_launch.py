"""Two processes train the model that one process trains."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import maan
from wsal_jax import checkpoint, main

LAUNCH = Path(__file__).parent.parent / "launch" / "local_processes.sh"


def test_two_processes_equal_one(tfds_dir, tmp_path):
    """The launcher's two processes of one CPU device each, reading from disk, against this process and its devices."""
    switches = "dataset=synthetic_untrimmed/tiny"
    options = {
        "data.dir": tfds_dir,
        "batch_size": 8,
        "steps": 3,
        "log_every": 3,
        "plots": 0,
        "data.placement": "stream",
    }
    flags = [f"--config=configs/maan.py:{switches}", *(f"--config.{name}={value}" for name, value in options.items())]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [LAUNCH, "2", *flags, f"--workdir={tmp_path / 'two'}"],
        env={**os.environ, "PATH": path},
        cwd=LAUNCH.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mAP@IoU") == 1  # process 0 alone reports

    config = maan.get_config(switches)
    config.update_from_flattened_dict(options)
    config.data.placement = "device"
    main.run(config, str(tmp_path / "one"))
    two, one = (checkpoint.restore(tmp_path / name / "checkpoints" / "rgb")["params"] for name in ("two", "one"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), two, one)
    for name in ("results.json", "detections.json", "config.json"):
        assert (tmp_path / "two" / name).exists()


def test_a_failing_process_ends_the_launch(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [LAUNCH, "2", "--config=configs/maan.py:nonsense"],
        env={**os.environ, "PATH": path},
        cwd=LAUNCH.parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and "nonsense" in done.stderr


def wait_for(condition, seconds):
    """What the condition returns once that is true; a process that never gets there is a failure, not a hang."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def children(pid):
    """Of a process, as {pid: command line}."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:  # ended meanwhile
            pass
    return found


def test_sigterm_to_one_of_two_processes_stops_both_where_they_go_on(tfds_dir, tmp_path):
    """Stopped and continued, they write every step once and end as a run that was left alone."""
    options = ["batch_size=4", "steps=400", "log_every=2", "plots=0", "evaluation.bootstrap=0"]
    options += [f"data.dir={tfds_dir}", "checkpoint_every=400", 'streams=("rgb",)']
    flags = ["--config=maan:dataset=synthetic_untrimmed/tiny", *(f"--config.{option}" for option in options)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def launch(name):
        command = [LAUNCH, "2", *flags, f"--workdir={tmp_path / name}"]
        return subprocess.Popen(command, env={**os.environ, "PATH": path}, stderr=subprocess.PIPE, text=True)

    with launch("parts") as run:
        wait_for((tmp_path / "parts" / "metrics.jsonl").exists, 240)
        one = next(pid for pid, line in children(run.pid).items() if "--process=1" in line)
        os.kill(one, signal.SIGTERM)
        errors = run.communicate(timeout=240)[1]
    assert run.returncode == 143, errors
    stopped = re.findall(r"stopped by SIGTERM after step (\d+) of 400 of rgb", errors)
    assert len(stopped) == 2 and stopped[0] == stopped[1]
    assert checkpoint.latest(tmp_path / "parts" / "checkpoints" / "rgb") == int(stopped[0]) < 400
    for name in ("parts", "whole"):
        with launch(name) as run:
            assert run.communicate(timeout=240)[1] is not None and run.returncode == 0
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == list(range(2, 401, 2))
    assert lines == (tmp_path / "whole" / "metrics.jsonl").read_text()
    parts, whole = (checkpoint.restore(tmp_path / name / "checkpoints" / "rgb") for name in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


STAND_IN = """#!/bin/bash
if [ "$1" = -c ]; then echo 1; exit; fi
trap 'echo got INT; sleep 0.3; echo saved; exit 130' INT
trap 'echo got TERM; sleep 0.3; echo saved; exit 143' TERM
echo started
for i in {1..600}; do sleep 0.1; done
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_passes_a_signal_on_and_waits(tmp_path, number):
    """With a stand-in for Python that saves for a while when it is told to end."""
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen([LAUNCH, "2"], env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert [run.stdout.readline() for _ in range(2)] == ["started\n"] * 2
        run.send_signal(number)
        out = run.communicate(timeout=60)[0]
    name = number.name.removeprefix("SIG")
    assert run.returncode == 128 + number and sorted(out.split("\n")[:-1]) == [f"got {name}"] * 2 + ["saved"] * 2
