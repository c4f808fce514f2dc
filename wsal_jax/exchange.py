"""Compares two models by combining the attention of each with the classifier of each (DGAM, table 1).

    python -m wsal_jax.main --config=configs/dgam.py:terms=fg+bg+guide --workdir=runs/old
    python -m wsal_jax.main --config=configs/dgam.py --workdir=runs/new
    python -m wsal_jax.exchange --old runs/old --new runs/new --workdir runs/exchange

`old` and `new` are finished runs of one method on the same data, streams and seeds. All four pairs are evaluated with
the options of the new run, on its data (see `--root`). The table shows the last model of each pair (the fused one if
there are two streams). `--workdir` gets a folder with the full evaluation of each pair, such as
`attention_new_classifier_old`.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from wsal_jax import checkpoint, evaluate, options, results
from wsal_jax import methods as registry
from wsal_jax.data import pipeline
from wsal_jax.method import Params
from wsal_jax.types import InputError
from wsal_jax.workdir import identity


class Run(NamedTuple):
    """A finished run."""

    config: ConfigDict
    dataset: str
    """Name and version of the data."""
    params: dict[str, Params]
    """Parameters of each model, NumPy, with a leading axis of seeds."""
    options: dict[str, Any]
    """`workdir.identity`."""


def load(folder: Path) -> Run:
    """Loads a run from the `--workdir` of `wsal_jax.main`.

    Raises:
      InputError: the folder has no run, or the run is not finished.
    """
    try:
        record = json.loads((folder / "config.json").read_text())
        dataset = record["dataset"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} holds no run ({error!r:.300}): give a --workdir of wsal_jax.main") from error
    config = ConfigDict({name: value for name, value in record.items() if name != "dataset"})
    params = {}
    for model in config.streams:
        total = registry.get(config.method, model).rounds * config.steps
        directory = folder / "checkpoints" / model
        if checkpoint.latest(directory) != total:
            reached = f"{model} is at step {checkpoint.latest(directory) or 0} of {total}"
            raise InputError(f"{folder}: {reached}; finish that run by its own command")
        params[model] = checkpoint.restore(directory)["params"]
    return Run(config, dataset, params, identity(record))


def exchange(attention: Params, classifier: Params) -> Params:
    """The attention of one model with the classifier and all other groups of another."""
    return {**classifier, "attention": attention["attention"]}


def compare(old: Run, new: Run) -> str:
    """A description of the options in which two runs differ.

    Raises:
      InputError: they differ in options that must agree, or in the shapes of their parameters.
    """
    names = ["dataset", "streams", "seed", "seeds", "method.name"]
    differ = [name for name in sorted({*old.options, *new.options}) if old.options.get(name) != new.options.get(name)]
    told = {name: f"{name}: {old.options.get(name)} in old, {new.options.get(name)} in new" for name in differ}
    if wrong := [told[name] for name in names if name in told]:
        raise InputError(f"the runs differ in {'; '.join(wrong)}: give two of the same")
    for model in new.params:
        for group in ("attention", "classifier"):
            shapes = [jax.tree.map(np.shape, run.params[model][group]) for run in (old, new)]
            if shapes[0] != shapes[1]:
                raise InputError(f"the {group} of {model} has shapes {shapes[0]} in old, {shapes[1]} in new")
    return "; ".join(told.values()) or "nothing"


def table(old: Path, new: Path, workdir: Path, root: str = "") -> str:
    """Evaluates the four pairs into folders of `workdir`, writes `exchange.json` there and returns table 1.

    Args:
      old: the folder of a run.
      new: the folder of the run to compare it with.
      workdir: where the results go.
      root: the folder of the data; "" for the one in the config of the new run.

    Raises:
      InputError: see `load` and `compare`; or the data have changed, or no test video is annotated.
    """
    runs = {"old": load(old), "new": load(new)}
    differences = compare(**runs)
    config = runs["new"].config
    config.data.root = root or config.data.root
    config.report = False  # the folders of pairs are no runs
    builder = pipeline.build(config.data)
    if builder.info.full_name != runs["new"].dataset:
        raise InputError(f"the data are {builder.info.full_name} now, and the runs are of {runs['new'].dataset}")
    data = pipeline.load(builder, "test", config.data.get("dtype", "stored"))
    highlights = options.check_evaluation(config, data)
    if not any(len(data.annotations[i].labels) for i in results.annotated(data)):
        raise InputError(f"{config.data.name}: no test video is annotated, so there is nothing to compare")
    methods = {model: registry.get(config.method, model) for model in config.streams}
    rows = {}
    for attention, classifier in itertools.product(runs, runs):
        folder = workdir / f"attention_{attention}_classifier_{classifier}"
        folder.mkdir(parents=True, exist_ok=True)
        scores = {}
        for model, made in methods.items():
            params = exchange(runs[attention].params[model], runs[classifier].params[model])
            scores[model] = evaluate.score(made, params, data, model.split("+"))
        of_models = evaluate.report(methods[config.streams[0]], scores, data, config, folder, highlights).rows
        rows[f"{attention}, {classifier}"] = of_models[results.final_row(of_models)]
    (workdir / "exchange.json").write_text(json.dumps({"old": str(old), "new": str(new), "rows": rows}, indent=1))
    return f"the runs differ in {differences}\n{results.format_table(rows, 'attention, classifier')}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="the folder of a run")
    parser.add_argument("--new", type=Path, required=True, help="the folder of the run to compare it with")
    parser.add_argument("--workdir", type=Path, required=True, help="where the results go")
    parser.add_argument("--root", default="", help="the folder of the data, if it has moved since the new run")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax logs every step it takes
    try:
        print(table(args.old, args.new, args.workdir, args.root))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
