"""The folder of a run: which run it holds, and the training curves in it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from wsal_jax.train import Log
from wsal_jax.types import InputError

IRRELEVANT = {"resume", "data.dir", "data.root", "data.placement", "data.device_gb"}
"""Options that do not change what a run trains and detects, given the data's name and version; nor do those of
`evaluation`, so that a run can be measured by another rule without training again."""


def identity(run: dict) -> dict:
    """What must agree for two runs to be the same."""
    run = {name: value for name, value in run.items() if name != "evaluation"}
    return {name: value for name, value in flatten_dict(run, sep=".").items() if name not in IRRELEVANT}


def open_run(path: str | None, config: ConfigDict, dataset: str) -> Path:
    """The folder of this run, which holds its config; what is there of the same run is kept to be continued.

    Process 0 checks and writes; with several processes, wait for it before the folder is used.

    Args:
      path: the folder; None is `runs/<method>-<hash of config and data>`, so that each config has its own.
      config: with `config.resume` off, a run found in the folder is set aside, under the folder's name and a number.
      dataset: name and version of the data, which belong to the run as its options do.

    Raises:
      InputError: the folder holds the run of another config; says what differs.
    """
    run = {**json.loads(config.to_json()), "dataset": dataset}
    new = identity(run)
    digest = hashlib.sha256(json.dumps(new, sort_keys=True).encode()).hexdigest()[:8]
    workdir = Path(path or f"runs/{config.method.name}-{digest}").absolute()
    if jax.process_index():
        return workdir
    record = workdir / "config.json"
    if record.exists() and not config.resume:
        number = next(i for i in range(1, 10**6) if not Path(f"{workdir}.{i}").exists())
        workdir.rename(f"{workdir}.{number}")
    if record.exists():
        old = identity(json.loads(record.read_text()))
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        differ = [f"{name}: {old.get(name)} there, {new.get(name)} now" for name in names]
        if differ:
            raise InputError(
                f"{workdir} holds a run with other options ({'; '.join(differ)}): give another --workdir, or "
                "--config.resume=False to set that run aside"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(run, indent=1, sort_keys=True))
    return workdir


@contextmanager
def open_log(workdir: Path, model: str) -> Iterator[Log]:
    """Appends the metrics of a model to `metrics.jsonl`, one value per seed, and their means to TensorBoard."""
    if jax.process_index():
        yield lambda step, metrics: None
        return
    with SummaryWriter(str(workdir / "tensorboard" / model)) as board:

        def log(step: int, metrics: dict[str, Float[np.ndarray, " s"]]) -> None:
            line = {"model": model, "step": step, **{name: x.tolist() for name, x in metrics.items()}}
            with (workdir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            for name, x in metrics.items():
                board.add_scalar(name, float(x.mean()), step)
            board.flush()

        yield log
