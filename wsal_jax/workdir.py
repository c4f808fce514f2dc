"""The folder of a run: which run it holds, who works in it, and the training curves in it."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from wsal_jax.files import replace
from wsal_jax.train import Log
from wsal_jax.types import InputError

IRRELEVANT = {"resume", "patience", "report", "data.dir", "data.root", "data.placement", "data.device_gb"}
"""Options that do not change what a run trains and detects, given the data's name and version; nor do those of
`evaluation`, so that a run can be measured by another rule without training again."""


RISE = 10
"""A loss that ends at more than this many times its first value is worth a warning."""


def identity(run: dict) -> dict:
    """What must agree for two runs to be the same. Runs that are older than `data.dtype` had features as stored."""
    run = {name: value for name, value in run.items() if name != "evaluation"}
    flat = {"data.dtype": "stored", **flatten_dict(run, sep=".")}
    return {name: value for name, value in flat.items() if name not in IRRELEVANT}


def shared(config: ConfigDict) -> dict:
    """What all processes of a run must be started with: all options but where the data are."""
    options = flatten_dict(json.loads(config.to_json()), sep=".")
    return {name: value for name, value in options.items() if name not in ("data.dir", "data.root")}


def open_run(path: str | None, config: ConfigDict, dataset: str) -> Path:
    """The folder of this run, which holds its config; what is there of the same run is kept to be continued.

    Process 0 checks and writes; with several processes, wait for it before the folder is used.

    Args:
      path: the folder; None is `runs/<method>-<hash of config and data>`, so that each config has its own.
      config: with `config.resume` off, a run found in the folder is set aside, under the folder's name and a number.
      dataset: name and version of the data, which belong to the run as its options do.

    Raises:
      InputError: the folder holds the run of another config; says what differs. Or the run to be set aside is not over.
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
        with lock(workdir):
            workdir.rename(f"{workdir}.{number}")
    if record.exists():
        try:
            old = identity(json.loads(record.read_text()))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{record} is damaged ({error}): delete it if the run is this one") from error
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        differ = [f"{name}: {old.get(name)} there, {new.get(name)} now" for name in names]
        if differ:
            raise InputError(
                f"{workdir} holds a run with other options ({'; '.join(differ)}): give another --workdir, or "
                "--config.resume=False to set that run aside"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    replace(record, json.dumps(run, indent=1, sort_keys=True))
    return workdir


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Within it no other run works in the folder; of several processes, the first holds the lock for all.

    The lock is the kernel's, on the file `lock`, so it ends with its process, however that ends. What the file says is
    for people, and for folders that several machines share without sharing locks.

    Raises:
      InputError: another process works there; says which.
    """
    if jax.process_index():
        yield
        return
    path, host = workdir / "lock", socket.gethostname()
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:  # a file system without locks
            free = True
        file.seek(0)
        holder = _parsed(file.read())
        if not free or holder.get("host", host) != host:
            who = " ".join(f"{name} {holder[name]}" for name in ("process", "host", "since") if name in holder)
            wait = f"if that process is dead, delete {path}" if free else "wait for it"
            raise InputError(f"{workdir} is in use by {who or 'another process'}: {wait}, or give another --workdir")
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps(dict(process=os.getpid(), host=host, since=since)))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages, "device": jax.devices()[0].device_kind}


def _parsed(line: str) -> dict:
    """An object in JSON; empty if it is none, such as a line that a kill cut off."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def forget(workdir: Path, model: str, step: int) -> None:
    """Drops what `metrics.jsonl` says of a model after a step, which will be written again, and damaged lines."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return
    lines = [(line, _parsed(line)) for line in path.read_text(errors="replace").splitlines()]
    kept = [line for line, x in lines if x and not (x.get("model") == model and x.get("step", 0) > step)]
    if len(kept) < len(lines):
        replace(path, "".join(f"{line}\n" for line in kept))


def rise(workdir: Path, model: str) -> str:
    """A warning if a loss of a model ends far above its first value, by `metrics.jsonl`; else empty."""
    first, last, path = {}, {}, workdir / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []  # imported weights have none
    for line in map(_parsed, lines):
        for name, values in line.items() if line.get("model") == model else ():
            phase, _, metric = name.rpartition("/")
            if metric == "first_loss":
                first[phase] = values
            if metric == "loss":
                last[phase] = values
    for phase in first:
        for start, end in zip(first[phase], last.get(phase, ())):
            if end > RISE * abs(start):
                return (
                    f"the loss of {model}, phase {phase}, rose from {start:.3g} to {end:.3g}: training diverged, and "
                    "the results below are those of such a model; give a lower config.optimizer.learning_rate"
                )
    return ""


@contextmanager
def open_log(workdir: Path, model: str, step: int = 0) -> Iterator[Log]:
    """Appends the metrics of a model to `metrics.jsonl`, one value per seed, and their means to TensorBoard.

    `step` is the one that training goes on from; what is there of later ones will be written again, and is dropped.
    """
    if jax.process_index():
        yield lambda step, metrics: None
        return
    forget(workdir, model, step)
    with SummaryWriter(str(workdir / "tensorboard" / model), purge_step=step + 1) as board:

        def log(step: int, metrics: dict[str, Float[np.ndarray, " s"]]) -> None:
            line = {"model": model, "step": step, **{name: x.tolist() for name, x in metrics.items()}}
            with (workdir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            for name, x in metrics.items():
                board.add_scalar(name, float(x.mean()), step)
            board.flush()

        yield log
