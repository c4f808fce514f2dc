"""Trains and evaluates: `python -m wsal_jax.main --config=configs/maan.py [--workdir=DIR]`."""

import jax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from wsal_jax import evaluate, sharding, train
from wsal_jax import methods as registry
from wsal_jax.data import pipeline
from wsal_jax.types import InputError
from wsal_jax.workdir import open_log, open_run

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/<method>.py[:switches]")
WORKDIR = flags.DEFINE_string("workdir", None, "What the run leaves; runs/<method>-<hash of the config> by default.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes. Cloud TPU and Slurm know the rest; elsewhere give the next three."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def run(config: ConfigDict, workdir: str | None = None) -> str:
    """Builds the data, trains every model of `config.streams`, evaluates; returns the table of results.

    Raises:
      InputError: an option or a file that cannot work; nothing is trained then, and nothing overwritten.
    """
    methods = {model: registry.get(config.method, model) for model in config.streams}
    mesh, first = sharding.make_mesh(), jax.process_index() == 0
    if first:  # the others find it built, unless their disks are their own
        pipeline.build(config.data)
    multihost_utils.sync_global_devices("data built")
    builder = pipeline.build(config.data)
    data = {split: pipeline.load(builder, split) for split in ("train", "test")}
    for chosen in methods.values():
        train.check(chosen, config, data["train"], mesh)
    evaluate.check(config, data["test"])
    folder = open_run(workdir, config, builder.info.full_name)
    multihost_utils.sync_global_devices("workdir opened")
    scores = {}
    for model, chosen in methods.items():
        streams = model.split("+")
        with open_log(folder, model) as log:
            checkpoints = folder / "checkpoints" / model
            params = train.fit(chosen, data["train"], streams, config, mesh, checkpoints, log)
        scores[model] = evaluate.score(chosen, params, data["test"], streams)
    table = evaluate.report(methods[config.streams[0]], scores, data["test"], config, folder) if first else ""
    return f"{table}\nwritten to {folder}"


def main(argv: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every step it takes, TFDS warns of every user's folder
    if argv[1:]:
        raise app.UsageError(f"not an option: {' '.join(argv[1:])}")
    if DISTRIBUTED.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    try:
        print(run(CONFIG.value, WORKDIR.value))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
