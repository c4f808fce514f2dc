"""Trains and evaluates: `python -m wsal_jax.main --config=maan [--workdir=DIR]`."""

import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from wsal_jax import checkpoint, evaluate, evaluate_images, options, peers, results, sharding, signals, train
from wsal_jax import methods as registry
from wsal_jax.data import pipeline, store
from wsal_jax.data.clips import Clips
from wsal_jax.files import writing
from wsal_jax.method import Method
from wsal_jax.types import InputError
from wsal_jax.workdir import lock, open_log, open_run, rise, shared, versions

CONFIG = config_flags.DEFINE_config_file("config", help_string="<method>[:switches], or the path of a config file")
WORKDIR = flags.DEFINE_string("workdir", None, "What the run leaves; runs/<method>-<hash of the config> by default.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes. Cloud TPU and Slurm know the rest; elsewhere give the next three."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout", 300.0, "Seconds without a sign of life of another process, after which this one ends.", 1.0
)


def run(config: ConfigDict, workdir: str | None = None) -> str:
    """Builds the data, trains every model of `config.streams`, evaluates; returns the table of results.

    Raises:
      InputError: an option or a file that cannot work; nothing is trained then, and nothing overwritten.
    """
    peers.agree("options", shared(config))
    peers.agree("software", {**versions(), **peers.code()})
    methods = {model: registry.get(config.method, model) for model in config.streams}
    mesh, first = sharding.make_mesh(), jax.process_index() == 0
    if first:  # the others find it built, unless their disks are their own
        pipeline.build(config.data)
    multihost_utils.sync_global_devices("data built")
    builder = pipeline.build(config.data)
    data = {split: pipeline.load(builder, split, config.data.dtype) for split in ("train", "test")}
    peers.agree("data", {"name": builder.info.full_name, store.SUMS: store.digest(Path(builder.data_dir))})
    highlights = options.check(list(methods.values()), config, data, mesh)
    with writing(workdir or "runs"):
        folder = open_run(workdir, config, builder.info.full_name)
    with writing(folder), lock(folder):
        multihost_utils.sync_global_devices("workdir opened")
        table = train_and_evaluate(methods, data, config, folder, highlights)
    return f"{table}\nwritten to {folder}"


def train_and_evaluate(
    methods: dict[str, Method],
    data: dict[str, pipeline.Dataset],
    config: ConfigDict,
    folder: Path,
    highlights: dict[str, Clips],
) -> str:
    """What `run` does once all is checked and `folder` is its own; `methods` by model."""
    first, scores = jax.process_index() == 0, {}
    for model, chosen in methods.items():
        streams, checkpoints = model.split("+"), folder / "checkpoints" / model
        with open_log(folder, model, checkpoint.newest_whole(checkpoints) or 0) as log:
            params = train.fit(chosen, data["train"], streams, config, sharding.make_mesh(), checkpoints, log)
        if first and (warning := rise(folder, model)):
            print(f"warning: {warning}", file=sys.stderr)
        scores[model] = evaluate.score(chosen, params, data["test"], streams)
    if not first:
        return ""
    if data["test"].metas[0].grid:
        measured = evaluate_images.report(scores, data, config, folder)
    else:
        measured = evaluate.report(methods[config.streams[0]], scores, data["test"], config, folder, highlights)
    return results.format_results(measured)


def told(error: BaseException) -> int:
    """Tells the user of an error; returns the exit status."""
    if isinstance(error, signals.Stopped):
        print(error, file=sys.stderr)
        return error.status
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def main(argv: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every step it takes, TFDS warns of every user's folder
    if argv[1:]:
        raise app.UsageError(f"not an option: {' '.join(argv[1:])}")
    together: AbstractContextManager = nullcontext()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM and do nothing; see signals.py
    if DISTRIBUTED.value:
        at = COORDINATOR.value, PROCESSES.value, PROCESS.value
        together = peers.joined(*at, PEER_TIMEOUT.value, told)
    try:
        with signals.raised(), together:
            print(run(CONFIG.value, WORKDIR.value), flush=True)
    except (InputError, signals.Stopped) as error:
        raise SystemExit(told(error)) from error


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=options.parse)
