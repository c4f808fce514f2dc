"""Two processes train the model that one process trains."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maan
from tests.test_train import toy
from wsal_jax import checkpoint, evaluate, main, sharding, train
from wsal_jax.data import pipeline

LAUNCH = Path(__file__).parent.parent / "launch" / "local_processes.sh"


def wait_for(condition, seconds):
    """Waits until a condition is true and returns its value; fails after a time limit."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def children(pid):
    """The children of a process, as {pid: command line}."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:  # ended meanwhile
            pass
    return found


def test_two_processes_equal_one_and_stop_together(tfds_dir, tmp_path):
    """Compares the launcher's two processes, with one CPU device each, reading from disk, with this process.

    In a second run, one process gets SIGTERM during training, and both stop. The resumed run gives the same bytes.
    """
    switches = "dataset=synthetic_untrimmed/tiny"
    options = {
        "data.dir": tfds_dir,
        "batch_size": 8,
        "steps": 30,
        "log_every": 1,
        "plots": 0,
        "evaluation.bootstrap": 0,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.1,
        "data.placement": "stream",
    }
    flags = [f"--config=configs/maan.py:{switches}", *(f"--config.{name}={value}" for name, value in options.items())]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def launch(name):
        command, environment = [LAUNCH, "2", *flags, f"--workdir={tmp_path / name}"], {**os.environ, "PATH": path}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with launch("two") as run:
        out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert out.count("mAP@IoU") == 1  # process 0 alone reports

    config = maan.get_config(switches)
    config.update_from_flattened_dict(options)
    config.data.placement = "device"
    main.run(config, str(tmp_path / "one"))
    two, one = (checkpoint.restore(tmp_path / name / "checkpoints" / "rgb")["params"] for name in ("two", "one"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), two, one)
    for name in ("results.json", "detections.json", "config.json"):
        assert (tmp_path / "two" / name).exists()

    (tmp_path / "two" / "detections.json").rename(tmp_path / "detections.json")
    main.run(config, str(tmp_path / "two"))  # one process scores what two have trained
    assert (tmp_path / "two" / "detections.json").read_bytes() == (tmp_path / "detections.json").read_bytes()

    with launch("parts") as run:
        second = wait_for(lambda: [pid for pid, line in children(run.pid).items() if "--process=1" in line], 60)[0]
        wait_for((tmp_path / "parts" / "metrics.jsonl").exists, 240)
        os.kill(second, signal.SIGTERM)
        out, errors = run.communicate(timeout=240)
    assert run.returncode == 143, errors
    stopped = re.findall(r"stopped by SIGTERM after step (\d+) of 30 of rgb", errors)
    assert len(stopped) == 2 and stopped[0] == stopped[1]
    assert checkpoint.latest(tmp_path / "parts" / "checkpoints" / "rgb") == int(stopped[0]) < 30
    with launch("parts") as run:
        out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    for name in ("metrics.jsonl", "results.json", "detections.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for model in ("rgb", "flow"):
        states = [checkpoint.restore(tmp_path / name / "checkpoints" / model) for name in ("parts", "two")]
        jax.tree.map(np.testing.assert_array_equal, *states)


SPLIT = """
import sys
import jax
from pathlib import Path
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
from tests.test_launch import split_over
from wsal_jax import sharding
split_over(sharding.make_mesh(), sys.argv[1], Path(sys.argv[2]))
"""


def split_over(mesh, data_dir, folder):
    """Trains on features that are split over the devices; keeps a checkpoint, and all processes their scores."""
    config = maan.get_config("dataset=synthetic_untrimmed/tiny")
    options = dict(steps=5, checkpoint_every=5, batch_size=8, num_snippets=10)
    options |= {"data.dir": data_dir, "data.placement": "split", "optimizer": dict(name="sgd", learning_rate=0.1)}
    config.update(dict(optimizer=options.pop("optimizer")))
    config.update_from_flattened_dict(options)
    data = [pipeline.load(pipeline.build(config.data), split) for split in ("train", "test")]
    method = toy()
    params = jax.device_get(train.fit(method, data[0], ["rgb"], config, mesh, folder / "checkpoints"))
    removing = toy(rounds=2, revise=lambda keep, scores, labels: keep * (scores.cas[:, 0] > 0))
    keep = np.ones((1, data[0].lengths.sum()), bool)
    with mock.patch.object(pipeline, "PADDED", 2):  # of the 8 videos, all processes have some
        scores = evaluate.score(method, params, data[1], ["rgb"])
        kept = train.revise(removing, params, keep, data[0], ["rgb"], mesh)
    assert kept.any() and not kept.all()
    with mock.patch.object(sharding, "EXCHANGED", 20 * jax.process_count()):  # two results of a process at once
        shared = list(sharding.share([3, 1, 4, 1, 5], lambda i: jnp.full(2, i)))
    assert [item for item, _ in shared] == [3, 1, 4, 1, 5]
    np.savez(folder / f"{jax.process_index()}.npz", *jax.tree.leaves((params, scores, kept, shared)))


def split_over_processes(count, data_dir, folder):
    """The same in so many processes, and in this one with as many devices: what each has found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    for name in ("many", "one"):
        (folder / name).mkdir()
    command = [sys.executable, "-c", SPLIT, data_dir, folder / "many", address, str(count)]
    running = [subprocess.Popen([*command, str(i)]) for i in range(count)]
    split_over(sharding.make_mesh(jax.devices()[:count]), data_dir, folder / "one")
    assert [process.wait(timeout=200) for process in running] == [0] * count
    return [np.load(path) for path in [folder / "one" / "0.npz", *(folder / "many" / f"{i}.npz" for i in range(count))]]


def test_features_split_over_processes_train_as_split_over_devices(tiny, tfds_dir, tmp_path):
    """A sum of two numbers does not depend on their order, so all bytes are equal."""
    one, *both = split_over_processes(2, tfds_dir, tmp_path)
    for found in both:
        assert len(found.files) == len(one.files) >= 5
        for name in one.files:
            np.testing.assert_array_equal(found[name], one[name])


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


STAND_IN = """#!/bin/bash
if [ "$1" = -c ]; then echo 1; exit; fi
case $* in *--process=1*) save=1 ;; *) save=0.1 ;; esac
trap 'echo got INT; sleep $save; echo saved; exit 130' INT
trap 'echo got TERM; sleep $save; echo saved; exit 143' TERM
echo started
for i in {1..600}; do sleep 0.1; done
"""


# A shell that starts the tests in the background lets them inherit that SIGINT is ignored; this undoes it.
HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_passes_a_signal_on_and_waits(tmp_path, number):
    """Uses a stand-in for Python whose second process saves longer than the launcher waits for those that fail."""
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    script = tmp_path / "launch" / LAUNCH.name
    script.parent.mkdir()
    text = LAUNCH.read_text()
    assert text.count("tenths < 100") == 1
    script.write_text(text.replace("tenths < 100", "tenths < 3"))
    script.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in)}
    command = [sys.executable, "-c", HEEDING, script, "2"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert [run.stdout.readline() for _ in range(2)] == ["started\n"] * 2
        run.send_signal(number)
        out = run.communicate(timeout=60)[0]
    name = number.name.removeprefix("SIG")
    assert run.returncode == 128 + number and sorted(out.split("\n")[:-1]) == [f"got {name}"] * 2 + ["saved"] * 2
