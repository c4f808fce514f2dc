"""Tunes options on held-out training videos: `python -m wsal_jax.tune --config=maan --search=maan [--workdir=DIR]`.

One rule for every method. The training videos are cut into folds, by group where they have groups; each fold is held
out once, and the others are trained on, several seeds at once. The value of a setting is the mean over folds and seeds
of what `wsal_jax.heldout.measure` says of the held-out videos. The test split is not opened.

A trial trains one setting of the options that need training. On the scores of its held-out videos it then searches the
options that do not, `localize.*` and `fusion`, and has the value of the best. Trials follow one another as Optuna's TPE
sampler has it; the first is the config as given. A trial ends early where its value after a fold is below the median of
those that have all folds, after as many: Optuna's median rule, which spares the time for bad settings. The study lies
in the work folder: the same command continues it, and several processes that are given the same folder, on one machine
or several, share it.
"""

import copy
import json
import runpy
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from absl import app, flags, logging
from jaxtyping import Float
from ml_collections import ConfigDict, config_flags
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

import wsal_jax.configs.search.common as common
from wsal_jax import configs, heldout, options, signals, study, train
from wsal_jax.data import pipeline
from wsal_jax.data.builder import locked
from wsal_jax.heldout import Fold, OfFold
from wsal_jax.main import CONFIG, WORKDIR
from wsal_jax.types import InputError
from wsal_jax.workdir import lock, open_run, versions

SEARCH = flags.DEFINE_string("search", None, "<method>, or the path of a file with get_search(config)")
TRIALS = flags.DEFINE_integer("trials", None, "instead of the budget's in configs/search/common.py, as those below")
FOLDS = flags.DEFINE_integer("folds", None, "parts of the training videos")
SEEDS = flags.DEFINE_integer("seeds", None, "trained at once for each fold")
DETECTIONS = flags.DEFINE_integer("detections", None, "settings of localize.* and fusion tried on one training")
MEASURE = flags.DEFINE_string("measure", None, "auto, segments or labels")

WITHOUT_TRAINING = ("localize.", "fusion")
"""Options that begin like this are searched on the scores of one training."""

OVER = TrialState.COMPLETE, TrialState.PRUNED

Space = dict[str, Any]
"""By option: the list of its values, or `dict(low, high, log)`."""
Setting = dict[str, Any]
"""The value of each option of a space."""


def find_search(name: str) -> Path:
    """The file of `--search=<name>`: a path, or the name of a search space that comes with the package.

    Raises:
      InputError: there is no such file.
    """
    folder = Path(configs.__path__[0]) / "search"
    built_in = {path.stem: path for path in folder.glob("*.py") if path.stem not in ("__init__", "common")}
    stem = name.removeprefix("configs/search/").removesuffix(".py")
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    if stem in built_in:
        return built_in[stem]
    raise InputError(f"--search={name}: no such file; there are {', '.join(sorted(built_in))}, and any .py file")


def read_search(path: Path, config: ConfigDict) -> Space:
    """The search space in a file, each with the config's own value.

    Raises:
      InputError: the file has no `get_search`, or an option that the config has not, or values that are neither form.
    """
    search = runpy.run_path(str(path)).get("get_search")
    if search is None:
        raise InputError(f"{path}: has no function get_search(config)")
    space, known = search(config), options.names(config)
    for name, values in space.items():
        if name not in known:
            likely = ", ".join(options.near(name, known)) or "none"
            raise InputError(f"{path}: the config has no option {name!r}; the nearest are {likely}")
        own = value_of(config, name)
        if isinstance(values, list) and values:
            space[name] = values if own in values else [own, *values]
        elif isinstance(values, dict) and {"low", "high"} <= set(values) <= {"low", "high", "log"}:
            space[name] = {**values, "low": min(values["low"], own), "high": max(values["high"], own)}
            if values.get("log") and space[name]["low"] <= 0:
                raise InputError(
                    f"{path}: {name} is {own} in the config, which no logarithmic range holds; give a list"
                )
        else:
            raise InputError(f"{path}: {name}: give a list of values, or dict(low=..., high=..., log=...)")
    return space


def value_of(config: ConfigDict, name: str) -> Any:
    """Of an option with dots."""
    for part in name.split("."):
        config = config[part]
    return config


def apply(config: ConfigDict, setting: Setting) -> ConfigDict:
    """A copy of a config with other values; references between its options stay."""
    config = copy.deepcopy(config)
    try:
        config.update_from_flattened_dict(setting)
    except TypeError as error:
        raise InputError(f"the search space: {error}") from error
    return config


def suggest(trial: optuna.Trial, space: Space) -> Setting:
    """The setting of a trial. Values of lists are known to Optuna by their text, so that they may be of any type."""
    setting = {}
    for name, values in space.items():
        if isinstance(values, list):
            setting[name] = values[[*map(text, values)].index(trial.suggest_categorical(name, [*map(text, values)]))]
        else:
            pick = trial.suggest_int if isinstance(values["low"], int) else trial.suggest_float
            setting[name] = pick(name, values["low"], values["high"], log=values.get("log", False))
    return setting


def text(value: Any) -> str:
    """Of a value in a list."""
    return json.dumps(value)


def restore(shared: optuna.Study, space: Space, about: dict[str, Any], path: Path) -> None:
    """Puts the trials of a study.json into a study that has none.

    Args:
      shared: the study.
      space: of the options that need training.
      about: of the study, with its budget.
      path: the study.json, of another folder or machine perhaps.

    Raises:
      InputError: it is of another search.
    """
    kept, now = json.loads(path.read_text()), json.loads(json.dumps(about))
    for name in ("measured", "protocol", "folds", "seeds", "detections", "space"):
        if kept.get(name) != now[name]:
            raise InputError(f"{path} is of another search, with another {name}: move it away to begin anew")
    distributions = {}
    for name, values in space.items():
        if isinstance(values, list):
            distributions[name] = optuna.distributions.CategoricalDistribution([*map(text, values)])
        else:
            of = "Int" if isinstance(values["low"], int) else "Float"
            kind = getattr(optuna.distributions, f"{of}Distribution")
            distributions[name] = kind(values["low"], values["high"], log=values.get("log", False))
    for one in kept["trials_over"]:
        means, whole = np.mean(one["values"], axis=1), study.whole(one, about["folds"])
        trial = optuna.trial.create_trial(
            state=TrialState.COMPLETE if whole else TrialState.PRUNED,
            value=study.value(one),
            params={
                name: text(one["setting"][name]) if isinstance(values, list) else one["setting"][name]
                for name, values in space.items()
            },
            distributions=distributions,
            intermediate_values={i: float(means[: i + 1].mean()) for i in range(len(means))},
            user_attrs={"result": json.dumps({"device": kept["versions"]["device"]} | one)},
        )
        shared.add_trial(trial)


def own_setting(config: ConfigDict, space: Space) -> dict[str, Any]:
    """The config's own values, as Optuna has them."""
    return {
        name: text(value_of(config, name)) if isinstance(values, list) else value_of(config, name)
        for name, values in space.items()
    }


STARTUP = 8
"""As many settings are drawn at random, before the sampler goes by their values."""


ATTEMPTS, NEAR = 50, 10
"""So many draws for a setting that no earlier trial has, the first near the config; then one is tried again."""


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Of the next trial."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)


def near(own: dict[str, Any], seed: int) -> dict[str, Any]:
    """Half of the config's own values. Few draws of many options at once would hardly meet a good setting, so random
    settings keep these, others for each trial."""
    kept = np.random.default_rng(seed).permutation([*own])[: len(own) // 2]
    return {name: own[name] for name in kept.tolist()}


def choose_detections(
    config: ConfigDict, space: Space, folds: Sequence[Fold], scores: Sequence[OfFold], by: str, tries: int
) -> tuple[Setting, Float[np.ndarray, "f s"]]:
    """The best of `tries` settings of the options that need no training, and its value of each fold and seed."""
    found: dict[str, tuple[Setting, Float[np.ndarray, "f s"]]] = {}

    def objective(trial):
        setting = suggest(trial, space)
        key = text(setting)
        if key not in found:
            found[key] = setting, heldout.measure(apply(config, setting), folds, scores, by)
        return found[key][1].mean()

    inner = optuna.create_study(direction="maximize", sampler=sampler(config.seed))
    inner.enqueue_trial(own_setting(config, space))
    inner.optimize(objective, n_trials=tries if space else 1)
    return max(found.values(), key=lambda one: one[1].mean())


@contextmanager
def claim(shared: optuna.Study, folder: Path, space: Space, config: ConfigDict, trials: int) -> Iterator[Any]:
    """The next trial, with its folder, which is locked meanwhile; None if there are enough.

    Trials that a process has left when it ended are begun anew, where their training stood.
    """

    def place(trial: optuna.Trial | FrozenTrial) -> Path:
        return folder / "trials" / str(trial.user_attrs.get("begun_as", trial.number))

    with locked(folder):
        for left in shared.get_trials(states=(TrialState.RUNNING,)):
            try:
                with lock(place(left)):
                    pass
            except InputError:
                continue  # another process works on it
            except FileNotFoundError:
                pass
            shared.tell(left.number, state=TrialState.FAIL)
            shared.enqueue_trial(left.params, user_attrs={"begun_as": left.user_attrs.get("begun_as", left.number)})
        taken = len(shared.get_trials(deepcopy=False, states=(*OVER, TrialState.RUNNING)))
        if taken >= trials:
            yield None
            return
        done = [one.params for one in shared.get_trials(deepcopy=False, states=(*OVER, TrialState.RUNNING))]
        own = own_setting(config, space)
        for attempt in range(ATTEMPTS):
            # What follows knows what is stored and no more, so a study that was killed is the study that was not.
            seed = config.seed + taken + 1000 * attempt
            waiting = shared.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if taken < STARTUP and attempt < NEAR and not waiting:
                shared.enqueue_trial(near(own, seed) if taken else own)
            shared.sampler = sampler(seed)
            trial = shared.ask()
            setting = suggest(trial, space)
            if trial.params not in done or attempt == ATTEMPTS - 1:
                break
            shared.tell(trial, state=TrialState.FAIL)
        place(trial).mkdir(parents=True, exist_ok=True)
        hold = lock(place(trial))
        hold.__enter__()
    try:
        yield trial, setting, place(trial)
    finally:
        hold.__exit__(None, None, None)


def one_trial(
    trial: optuna.Trial,
    config: ConfigDict,
    setting: Setting,
    inner: Space,
    folds: Sequence[Fold],
    by: str,
    tries: int,
    at: Path,
) -> dict[str, Any]:
    """Trains a setting and chooses the detections; what is stored of it. A setting that diverges has the value 0.

    The values are those of the folds that were trained, fewer than there are where the trial ended early.
    """
    trained, scores, seconds, searching = apply(config, setting), [], 0.0, 0.0
    for i, fold in enumerate(folds):
        start = time.perf_counter()
        try:
            scores.append(heldout.train_and_score(trained, fold, at / f"fold{i}"))
        except train.Diverged as error:
            seconds += time.perf_counter() - start
            values = np.zeros((len(folds), config.seeds))
            return {"setting": setting, "values": values.tolist(), "seconds": seconds, "error": str(error)}
        middle = time.perf_counter()
        chosen, values = choose_detections(trained, inner, folds[: i + 1], scores, by, tries)
        seconds, searching = seconds + middle - start, searching + time.perf_counter() - middle
        trial.report(float(values.mean()), i)
        if trial.should_prune():
            break
    return {
        "setting": setting | chosen,
        "values": values.tolist(),
        "seconds": seconds,
        "detection_seconds": searching,
    }


def run(config: ConfigDict, base: str, search: str, workdir: str | None = None, **budget: Any) -> str:
    """Continues the study of a config and a search space until it has all trials; returns the table.

    Args:
      config: the config.
      base: where it comes from, `<file>[:switches]`; the chosen config is made of that.
      search: as the flag.
      workdir: where the study lies; by default as for `wsal_jax.main`.
      **budget: instead of `configs.search.common.BUDGET`.

    Raises:
      InputError: an option, or a file of the user's, that cannot work.
    """
    given, budget = config, {**common.BUDGET, **{name: x for name, x in budget.items() if x is not None}}
    config = apply(config, {"seeds": budget["seeds"]})
    builder = pipeline.build(config.data)
    data = pipeline.load(builder, "train", config.data.dtype)
    folds = heldout.make_folds(data, budget["folds"], config.seed)
    heldout.check(config, folds)
    by = heldout.choose_measure(folds, budget["measure"])
    space = read_search(find_search(search), config)
    if by == "labels":  # says nothing of detections
        space = {name: values for name, values in space.items() if not name.startswith("localize.")}
    inner = {name: values for name, values in space.items() if name.startswith(WITHOUT_TRAINING)}
    outer = {name: values for name, values in space.items() if name not in inner}
    own = {name: value_of(config, name) for name in space}
    about = describe(config, data, builder.info.full_name, by) | budget | {"space": space, "base": base, "given": own}
    folder, shared = open_study(workdir, config, about)
    with locked(folder):
        if (folder / "study.json").exists() and not shared.get_trials(deepcopy=False):
            restore(shared, outer, about, folder / "study.json")
    while True:
        with claim(shared, folder, outer, config, budget["trials"]) as mine:
            if mine is None:
                break
            trial, setting, at = mine
            result = one_trial(trial, config, setting, inner, folds, by, budget["detections"], at)
            trial.set_user_attr("result", json.dumps(result | {"device": about["versions"]["device"]}))
            if study.whole(result, budget["folds"]):
                shared.tell(trial, study.value(result))
            else:
                shared.tell(trial, state=TrialState.PRUNED)
            shutil.rmtree(at)
            print(study.format_trial(len(finished(shared)), budget, result), flush=True)
        with locked(folder):
            write(folder, about, shared, given, base)
    with locked(folder):
        written = write(folder, about, shared, given, base)
    return f"{written}\nwritten to {folder}"


def describe(config: ConfigDict, data: pipeline.Dataset, dataset: str, by: str) -> dict[str, Any]:
    """What study.json says beside the trials, the space and the budget."""
    ious = ", ".join(f"{iou:g}" for iou in config.evaluation.ious)
    return {
        "dataset": dataset,
        "supervision": heldout.SUPERVISION[by],
        "measured": f"mean mAP over IoUs of {ious}" if by == "segments" else "classification mAP",
        "protocol": config.evaluation.protocol,
        "videos": len(data.metas),
        "groups": len(set(data.groups) - {""}),
        "versions": versions(),
        "command": shlex.join(["python", "-m", "wsal_jax.tune", *sys.argv[1:]]),
    }


def open_study(workdir: str | None, config: ConfigDict, about: dict[str, Any]) -> tuple[Path, optuna.Study]:
    """The folder of a study, and what is stored in it.

    Raises:
      InputError: the folder holds another study, or a run.
    """
    record = ConfigDict(json.loads(config.to_json()))
    names = ("folds", "seeds", "detections", "supervision", "measured", "protocol")
    record.tune = {name: about[name] for name in names} | {"space": json.dumps(about["space"])}
    folder = open_run(workdir, record, about["dataset"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    with locked(folder):
        # After one whole trial, the config as given, settings that are worse on the first fold end there.
        pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
        found = optuna.create_study(
            storage=storage, study_name="tune", direction="maximize", load_if_exists=True, pruner=pruner
        )
    return folder, found


def finished(shared: optuna.Study) -> list[dict[str, Any]]:
    """What is stored of each trial that is over, in their order."""
    trials = shared.get_trials(deepcopy=False, states=OVER)
    results = [json.loads(trial.user_attrs["result"]) for trial in trials]
    for one in results:  # JSON has no tuples
        one["setting"] = {name: tuple(x) if isinstance(x, list) else x for name, x in one["setting"].items()}
    return results


def write(folder: Path, about: dict[str, Any], shared: optuna.Study, config: ConfigDict, base: str) -> str:
    """Writes study.json, study.md, study.png and chosen.py, and returns the table."""
    return study.write(folder, about, finished(shared), base, config)


def main(argv: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.ERROR)
    if argv[1:]:
        raise app.UsageError(f"not an option: {' '.join(argv[1:])}")
    budget = dict(trials=TRIALS, folds=FOLDS, seeds=SEEDS, detections=DETECTIONS, measure=MEASURE)
    base = config_flags.get_config_filename(flags.FLAGS["config"])
    try:
        with signals.raised():
            print(run(CONFIG.value, base, SEARCH.value, WORKDIR.value, **{name: x.value for name, x in budget.items()}))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.status) from stopped


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "search"])
    app.run(main, flags_parser=options.parse)
