"""The command's options: finding the config, reporting misspelt names, and all checks before a run starts."""

import math
import re
import runpy
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from wsal_jax import configs, metrics, train
from wsal_jax.data import bank, clips, pipeline
from wsal_jax.data.clips import Clips
from wsal_jax.method import Method, options_of
from wsal_jax.types import InputError


def near(name: str, known: Sequence[str]) -> list[str]:
    """Up to three known names that resemble this one, the most similar first.

    Of a name with dots, the last part and its initials are compared too: `lr` resembles `optimizer.learning_rate`.
    """

    def likeness(other: str) -> float:
        last = other.rpartition(".")[2]
        forms = (other, last, "".join(word[:1] for word in last.split("_")))
        mine = (name, name.rpartition(".")[2])
        return max(SequenceMatcher(None, x, form).ratio() for x in mine for form in forms)

    return [other for other in sorted(known, key=likeness, reverse=True) if likeness(other) >= 0.6][:3]


def find(text: str) -> tuple[Path, str]:
    """The file and the switches of `--config=<text>`, where text begins with a path or the name of a built-in config.

    Raises:
      InputError: no such file.
    """
    name, _, switches = text.partition(":")
    folder = Path(configs.__path__[0])
    built_in = {path.stem: path for path in folder.glob("*.py") if path.stem not in ("__init__", "common")}
    stem = name.removeprefix("configs/").removesuffix(".py")  # so that configs/maan.py is found from anywhere
    if name.endswith(".py") and Path(name).is_file():
        return Path(name), switches
    if stem in built_in and name in (stem, f"configs/{stem}.py"):
        return built_in[stem], switches
    likely = near(Path(name).stem, sorted(built_in))
    raise InputError(
        f"--config={text}: no such file; "
        + (f"did you mean {' or '.join(likely)}? " if likely else "")
        + f"There are {', '.join(sorted(built_in))}, and any path of a .py file"
    )


def names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All options and groups of options, such as `optimizer` and `optimizer.learning_rate`."""
    found = []
    for name, value in config.items(preserve_field_references=True):
        found += [prefix + name, *(names(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else ())]
    return found


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags with absl; a misspelt option of `--config` gives a message of one line.

    Raises:
      SystemExit: with the message and status 1.
    """
    argv = list(argv)
    try:
        at = next((i for i, x in enumerate(argv) if re.match("--?config(=|$)", x)), None)
        if at is not None and "=" not in argv[at] and at + 1 < len(argv):
            argv[at : at + 2] = [f"{argv[at]}={argv[at + 1]}"]
        if at is not None and "=" in argv[at]:
            path, switches = find(argv[at].partition("=")[2])
            known = names(runpy.run_path(str(path))["get_config"](switches))
            for option in (m[1] for x in argv if (m := re.match(r"--?(?:no)?config\.([^=\[]+)", x))):
                if option not in known:
                    likely = near(option, known) or [name for name in known if "." not in name]
                    likely = ", ".join(f"config.{name}" for name in likely)
                    raise InputError(f"--config.{option}: {path} has no such option; the nearest are {likely}")
            argv[at] = f"--config={path}:{switches}"
        return flags.FLAGS(argv)
    except (flags.Error, InputError) as error:
        raise SystemExit(f"error: {error}") from error


def check(
    methods: Sequence[Method], config: ConfigDict, data: dict[str, pipeline.Dataset], mesh: Mesh
) -> dict[str, Clips]:
    """Checks options and data before training; returns the highlight clips of the test data, if any.

    Args:
      methods: the method of each model.
      config: the whole config.
      data: the splits "train" and "test".
      mesh: the devices.

    Raises:
      InputError: an invalid option or user's file.
    """
    check_training(config, data["train"], mesh)
    for method in methods:
        method.check(data["train"])
    return check_evaluation(config, data["test"])


RANGES = {
    **dict.fromkeys(("seeds", "steps", "batch_size", "num_snippets", "log_every", "checkpoint_every"), (1, math.inf)),
    "patience": (1, math.inf),
    **dict.fromkeys(("method.hidden", "method.latent", "method.cvae_hidden", "method.segments"), (1, math.inf)),
    **dict.fromkeys(("localize.upsample", "localize.snippets", "localize.boxes"), (1, math.inf)),
    **dict.fromkeys(("localize.nms", "localize.reject", "localize.mask_threshold"), (0, 1)),
    "method.dropout": (0, 1 - 1e-6),
    "evaluation.small": (0, 1),
    "evaluation.levels": (1, 255),
}
"""The least and the greatest value of options; no other number may be negative, and none NaN or infinite."""


def check_numbers(config: ConfigDict) -> None:
    """Raises InputError for a number that is not finite or out of its range, wherever it is in the config."""
    numbers = flatten_dict(config.to_dict(), sep=".")
    for name, given in sorted(numbers.items(), key=lambda item: item[0].count(".")):
        # config.method.per_stream.rgb.dropout has the range of config.method.dropout
        low, high = RANGES.get(re.sub(r"per_stream\.[^.]*\.", "", name), (0, math.inf))
        for value in given if isinstance(given, list | tuple) else (given,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise InputError(f"config.{name}={given}: must be finite and not negative")
            if not low <= value <= high:
                most = {math.inf: "", 1 - 1e-6: " and less than 1"}.get(high, f" and at most {high}")
                raise InputError(f"config.{name}={given}: give at least {low}{most}")
    if config.seed + config.seeds > 2**31:
        raise InputError(f"config.seed={config.seed}: must be less than 2**31")


def check_streams(config: ConfigDict, there: Collection[str]) -> None:
    """Raises InputError unless config.streams are models of streams that are there, and config.fusion weighs them."""
    models = list(config.streams)
    if not models or len(set(models)) < len(models):
        raise InputError(f"config.streams={config.streams}: give one or several models, each once")
    for model in models:
        streams = model.split("+")
        if missing := [stream for stream in streams if stream not in there]:
            known = ", ".join(there)
            raise InputError(f"config.streams={config.streams}: no {missing[0]!r} in the data; there are {known}")
        if len(set(streams)) < len(streams):
            raise InputError(f"config.streams={config.streams}: {model!r} has a stream twice")
    if len(models) > 1 and (len(config.fusion) != len(models) or not sum(config.fusion)):
        raise InputError(f"config.fusion={config.fusion}: give a weight for each of config.streams={config.streams}")


def check_training(config: ConfigDict, data: pipeline.Dataset, mesh: Mesh) -> None:
    """Raises InputError for options that do not fit the training data, the devices or Optax."""
    check_numbers(config)
    check_streams(config, data.dims)
    if not config.localize.thresholds or not all(0 <= t < 1 for t in config.localize.thresholds):
        raise InputError(f"config.localize.thresholds={config.localize.thresholds}: give some in [0, 1)")
    if config.batch_size > len(data.lengths):
        raise InputError(f"config.batch_size={config.batch_size}: there are only {len(data.lengths)} training videos")
    if config.batch_size % mesh.size:
        raise InputError(f"config.batch_size={config.batch_size}: give a multiple of the {mesh.size} devices")
    check_pairs(config, data)
    choices = dict(placement=bank.PLACEMENTS, dtype=pipeline.DTYPES)
    for name, there in choices.items():
        if config.data[name] not in there:
            raise InputError(f"config.data.{name}={config.data[name]!r}: there are {', '.join(there)}")
    if config.data.placement == "split" and config.get("pairs", 0):
        raise InputError("config.data.placement='split': pairs cannot be drawn from split videos; set config.pairs=0")
    check_optimizer(config)


def check_pairs(config: ConfigDict, data: pipeline.Dataset) -> None:
    """Raises InputError for `config.pairs`, if there is one, that do not fit the batch or the data."""
    pairs = config.get("pairs", 0)
    if not 0 <= 2 * pairs <= config.batch_size:
        raise InputError(f"config.pairs={pairs}: give 0 to {config.batch_size // 2}, half of config.batch_size")
    if pairs and ((data.labels > 0).sum(0) < 2).all():
        raise InputError(f"config.pairs={pairs}: no class has two training videos; give 0")


def check_optimizer(config: ConfigDict) -> None:
    """Raises InputError for an optimizer that Optax lacks, and for a schedule that is negative or not finite."""
    options = config.optimizer.to_dict()
    schedule = options.get("learning_rate")
    try:
        train.make_optimizer(config.optimizer)
        inner = isinstance(schedule, dict)
        rates = np.asarray(jax.vmap(train.from_optax(schedule))(jnp.arange(config.steps))) if inner else np.zeros(1)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"config.optimizer={options}: {error}") from error
    wrong = np.flatnonzero(~((rates >= 0) & (rates < np.inf)))
    if len(wrong):
        rate = f"is {rates[wrong[0]]} in step {wrong[0] + 1}"
        raise InputError(f"config.optimizer.learning_rate={schedule}: {rate}; it must be finite and not negative")


def check_evaluation(config: ConfigDict, data: pipeline.Dataset) -> dict[str, Clips]:
    """Checks the options of evaluation; returns the highlight clips by video id, if any.

    Raises:
      InputError: an invalid option of `config` or an invalid `clips.json`.
    """
    check_numbers(config)
    options = config.evaluation
    if options.protocol not in metrics.PROTOCOLS:
        known = ", ".join(metrics.PROTOCOLS)
        raise InputError(f"config.evaluation.protocol={options.protocol!r}: there are {known}")
    if not options.ious or not all(0 < iou <= 1 for iou in options.ious):
        raise InputError(f"config.evaluation.ious={options.ious}: must be temporal IoUs above 0, up to 1")
    for model in config.streams:
        options_of(config.localize, model, "config.localize")
    if data.metas[0].grid:
        check_images(config)
    if config.data.name != "feature_folder":
        return {}
    return clips.read(Path(config.data.root), data.class_names)


def check_images(config: ConfigDict) -> None:
    """Raises InputError for options of boxes that cannot work."""
    if config.localize.get("normalize") not in ("max", "minmax"):
        raise InputError(f"config.localize.normalize={config.localize.get('normalize')!r}: give max or minmax")
