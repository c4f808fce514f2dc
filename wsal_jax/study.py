"""What `wsal_jax.tune` leaves: the study as JSON, as a table and as a picture, and the chosen config.

A result is what `tune.one_trial` returns.
"""

import json
import runpy
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from wsal_jax import configs
from wsal_jax.files import replace
from wsal_jax.text import cut


def value(result: dict[str, Any]) -> float:
    """The mean over folds and seeds, in percent."""
    return float(np.mean(result["values"]))


def whole(result: dict[str, Any], folds: int) -> bool:
    """Whether it has all folds."""
    return len(result["values"]) == folds


def best(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of those with all folds, which the first has; of equal ones the first."""
    return max((one for one in results if whole(one, len(results[0]["values"]))), key=value)


def spread(result: dict[str, Any]) -> float:
    """The sample standard deviation over seeds of the mean over folds; 0 for one seed."""
    of_seeds = np.mean(result["values"], axis=0)
    return float(np.std(of_seeds, ddof=min(1, len(of_seeds) - 1)))


def show(x: Any) -> str:
    """A value of an option."""
    return f"{x:.3g}" if isinstance(x, float) else json.dumps(x)


def outcome(result: dict[str, Any], folds: int) -> str:
    """What a trial came to."""
    if "error" in result:
        return "diverged"
    early = "" if whole(result, folds) else f", ended after fold {len(result['values'])} of {folds}"
    return f"{value(result):.2f} ± {spread(result):.2f}{early}"


def format_trial(number: int, budget: dict[str, Any], result: dict[str, Any]) -> str:
    """A line for the terminal."""
    setting = ", ".join(f"{name} {show(x)}" for name, x in result["setting"].items())
    what = result.get("error", outcome(result, budget["folds"]))
    return f"trial {number} of {budget['trials']}: {what} ({setting}), {result['seconds']:.0f} s"


def table(about: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """The study as Markdown, the best setting first, those that ended early last."""
    budget = ", ".join(f"{about[name]} {name}" for name in ("trials", "folds", "seeds", "detections"))
    of_groups = f"{about['groups']} groups of videos" if about["groups"] else "single videos"
    lines = [
        f"{about['dataset']}: {about['measured']}, rule {about['protocol']}, mean over folds and seeds ± standard "
        "deviation over seeds, in percent.",
        f"Supervision of the choice: {about['supervision']}, {about['videos']} in all, held out by {of_groups}.",
        f"Budget: {budget}; {len(results)} trials are over. The first is the config as given.",
        "",
    ]
    names = list(about["space"])
    rows = [["trial", "value", *names, "s"], ["---"] * (len(names) + 3)]
    order = sorted(range(len(results)), key=lambda i: (not whole(results[i], about["folds"]), -value(results[i])))
    for i in order:
        one = results[i]
        setting = [show(one["setting"][name]) if name in one["setting"] else "" for name in names]
        seconds = one["seconds"] + one.get("detection_seconds", 0)
        rows.append([str(i + 1), outcome(one, about["folds"]), *setting, f"{seconds:.0f}"])
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def differences(config: ConfigDict, base: ConfigDict) -> dict[str, Any]:
    """The options of a config that are not as in another one, by name; lists are tuples."""
    flat, other = (flatten_dict(x.to_dict(), sep=".") for x in (config, base))
    return {name: x for name, x in flat.items() if name not in other or other[name] != x}


def load_base(base: str) -> tuple[Path, str, ConfigDict]:
    """The file and the switches of `<file>[:switches]`, and the config that they make."""
    file, _, switches = base.partition(":")
    return Path(file), switches, runpy.run_path(file)["get_config"](switches)


def chosen_config(config: ConfigDict, base: str, about: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """The text of a config file with the best setting.

    Args:
      config: as given to the study.
      base: the file and switches that it was made of.
      about: the study.
      results: of its trials, one at least.
    """
    path, switches, plain = load_base(base)
    chosen = best(results)
    changed = differences(config, plain) | chosen["setting"]
    words = (
        f"Tuned on {about['dataset']}: {about['measured']} {value(chosen):.2f} ± {spread(chosen):.2f} on "
        f"{about['supervision']} ({about['folds']} folds, {about['seeds']} seeds); the config as given has "
        f"{value(results[0]):.2f}. The best of {len(results)} trials of"
    )
    doc = "\n".join(textwrap.wrap(words, 118)) + f"\n\n{about['command']}\n"
    if path.resolve().parent == Path(configs.__path__[0]).resolve():
        head, make = f"from wsal_jax.configs import {path.stem}", f"{path.stem}.get_config"
    else:
        head, make = "import runpy", f'runpy.run_path({str(path.resolve())!r})["get_config"]'
    lines = [
        f'"""{doc}"""\n\n{head}\n\n',
        "def get_config(text=None):",
        f"    config = {make}(text or {json.dumps(switches)})",
        "    config.update_from_flattened_dict(",
        "        {",
        *(f"            {json.dumps(name)}: {x!r}," for name, x in changed.items()),
        "        }",
        "    )",
        "    return config\n",
    ]
    return "\n".join(lines)


def write(folder: Path, about: dict[str, Any], results: Sequence[dict[str, Any]], base: str, config: ConfigDict) -> str:
    """Writes study.json, study.md, study.png and chosen.py; returns the table."""
    from wsal_jax import plot_study  # Matplotlib takes half a second to import

    text = table(about, results)
    replace(folder / "study.json", json.dumps({**about, "trials_over": list(results)}, indent=1))
    replace(folder / "study.md", text + "\n")
    replace(folder / "chosen.py", chosen_config(config, base, about, results))
    values = [value(x) if whole(x, about["folds"]) else None for x in results]
    plot_study.draw(folder / "study.png", about["space"], values, [x["setting"] for x in results])
    return text


def kept(root: Path) -> dict[str, dict[str, Any]]:
    """The studies in `results/tuning` of a checkout by row and data, each the study.json that tuning left."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((root / "results" / "tuning").glob("*.json"))}


def tuned_text(studies: dict[str, dict[str, Any]]) -> str:
    """The text of `configs/tuned`."""
    lines = [
        '"""What `wsal_jax.tune` chose, by row of the result tables and data. `python -m wsal_jax.tables` makes it.',
        "",
        'The studies are in `results/tuning`, and docs/tuning.md shows them side by side.\n"""\n',
        "# fmt: off",
        "CHOSEN: dict[str, dict] = {",
    ]
    for name, study in studies.items():
        lines.append(f"    {json.dumps(name)}: {{")
        for option, x in best(study["trials_over"])["setting"].items():
            lines.append(f"        {json.dumps(option)}: {tuple(x) if isinstance(x, list) else x!r},")
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def tuned_table(studies: dict[str, dict[str, Any]]) -> str:
    """As Markdown: how many settings were trained, the held-out value of the config as given and of the chosen setting,
    and what the choice changed."""
    lines = ["| row | data | trials | as given | chosen | what the choice changed |", "|---|---|---|---|---|---|"]
    for name, study in studies.items():
        row, _, data = name.partition(".")
        first, chosen = study["trials_over"][0], best(study["trials_over"])
        given = study["given"]
        changed = [f"{x} {cut(show(y), 32)}" for x, y in chosen["setting"].items() if given[x] != y]
        values = (f"{value(one):.1f} ± {spread(one):.1f}" for one in (first, chosen))
        trials = len(study["trials_over"])
        lines.append(f"| {row} | {data} | {trials} | {' | '.join(values)} | {', '.join(changed) or 'nothing'} |")
    return "\n".join(lines)
