"""Two processes train the model that one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

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
