"""Results are files, and tables are made of them. In a checkout:

    python -m wsal_jax.tables                                   make the documents and configs/tuned anew
    python -m wsal_jax.tables run TABLE [ROW]                   train and evaluate its rows; launch/reproduce.sh does so
    python -m wsal_jax.tables add RUN --table TABLE --row ROW   take the results of a run that is there
    python -m wsal_jax.tables tune [ROW] [--trials N]           tune the rows of the first table, or add trials

`results/tables.toml` has the rows of each table and the data that they are run on. What is known of row R on data D
lies in `results/TABLE/R.D.<i>.json`, i counting the repetitions: what results.json says, the command, the options that
differ from the config's own (what tuning chose, too), versions and time. The .npz beside it has what the comparison of
rows needs (see `wsal_jax.significance`), and `comparisons.json` the comparisons. A ROW of the commands is R, R.D or
R.D.<i>. The study behind a row is `results/tuning/R.D.json`.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from wsal_jax import methods, metrics, options, results, significance, study
from wsal_jax.data import pipeline
from wsal_jax.files import replace
from wsal_jax.formats import submissions
from wsal_jax.study import differences, load_base
from wsal_jax.types import Detections, InputError
from wsal_jax.workdir import IRRELEVANT, identity, versions

DOCUMENTS = ("README.md", "docs/results.md", "docs/tuning.md")
SAMPLES = 1000
"""Of the bootstrap."""


def read_tables(root: Path) -> dict[str, Any]:
    """`results/tables.toml` of a checkout."""
    try:
        return tomllib.loads((root / "results" / "tables.toml").read_text())
    except OSError as error:
        raise InputError(f"{error}: give the command in a checkout of the repository") from error


def rows_of(tables: dict[str, Any], table: str, chosen: str = "") -> dict[str, list[str]]:
    """The arguments of `wsal_jax.main` for each run of a table, by "<row>.<data>.<i>"; all, or those chosen.

    Raises:
      InputError: there is no such table, or no such row in it.
    """
    if table not in tables["table"]:
        raise InputError(f"no table {table!r} in results/tables.toml; there are {', '.join(tables['table'])}")
    of, found = tables["table"][table], {}
    for (row, what), data in ((x, y) for x in of["row"].items() for y in of["data"]):
        for i, root in enumerate(tables["data"][data]["roots"]):
            file, _, switches = what["config"].partition(":")
            switches = ",".join(filter(None, (tables["data"][data]["switches"], switches)))
            arguments = [f"--config={file}:{switches}" if switches else f"--config={file}"]
            arguments += [f"--config.data.root={root}"] if root else []
            found[f"{row}.{data}.{i}"] = [*arguments, *shlex.split(f"{of['options']} {what.get('options', '')}")]
    return pick(found, chosen, table, of["row"])


def pick(found: dict[str, list[str]], chosen: str, table: str, rows: Iterable[str]) -> dict[str, list[str]]:
    """Of what has names with dots, what begins with the chosen ones.

    Raises:
      InputError: nothing does.
    """
    some = {name: x for name, x in found.items() if f"{name}.".startswith(f"{chosen}." if chosen else "")}
    if not some:
        raise InputError(f"no row {chosen!r} in table {table!r}; there are {', '.join(rows)}")
    return some


def studies_of(tables: dict[str, Any], chosen: str = "") -> dict[str, list[str]]:
    """The arguments of `wsal_jax.tune` for each study behind the first table, by "<row>.<data>"; all, or those chosen.

    Raises:
      InputError: there is no such row.
    """
    table, of = next(iter(tables["table"].items()))
    found = {}
    for (row, what), data in ((x, tables["data"][y] | {"key": y}) for x in of["row"].items() for y in of["data"]):
        file, _, switches = what["config"].partition(":")
        switches = ",".join(filter(None, (switches, data["untuned"])))
        arguments = [f"--config={file}:{switches}" if switches else f"--config={file}"]
        arguments += [f"--config.data.root={data['tuning']}"] if data["tuning"] else []
        found[f"{row}.{data['key']}"] = [*arguments, f"--search={Path(file).stem}"]
    return pick(found, chosen, table, of["row"])


def config_of(arguments: Sequence[str]) -> ConfigDict:
    """The config that arguments of `wsal_jax.main` make."""
    file, switches = options.find(arguments[0].removeprefix("--config="))
    argv, values = ["main", f"--config={file}:{switches}", *arguments[1:]], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


def add(root: Path, run: Path, table: str, row: str, seconds: float | None = None) -> Path:
    """Takes the results of a finished run for a row of a table; returns the file.

    Raises:
      InputError: the run is not that of the row's command, or lacks results or detections.
    """
    [(name, arguments)] = rows_of(read_tables(root), table, row).items()
    try:
        record = json.loads((run / "config.json").read_text())
        measured = json.loads((run / "results.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{run} holds no run that is over ({error}): give the folder of one") from error
    wanted = config_of([os.path.expandvars(x) for x in arguments])
    both = identity(record), identity({**json.loads(wanted.to_json()), "dataset": record["dataset"]})
    if wrong := [x for x in sorted({*both[0], *both[1]}) if both[0].get(x) != both[1].get(x)]:
        told = "; ".join(f"{x}: {both[0].get(x)} in the run, {both[1].get(x)} in the row" for x in wrong)
        raise InputError(f"{run} is not the run of {name} in results/tables.toml: {told}")
    packed = pack_run(run, record, measured)
    folder = root / "results" / table
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **packed)
    kept = {
        "command": " ".join(["python -m wsal_jax.main", *arguments]),
        "options": options_of_row(root, table, name),
        "versions": versions(),
        "seconds": seconds and round(seconds),
        **measured,
    }
    replace(folder / f"{name}.json", json.dumps(shortened(kept), indent=1) + "\n")
    return folder / f"{name}.json"


def options_of_row(root: Path, table: str, name: str) -> dict[str, Any]:
    """The options of a row that are not its config's own, what tuning chose among them, as its file has them."""
    tables = read_tables(root)
    row, data, _ = name.split(".")
    [arguments] = rows_of(tables, table, name).values()
    file, _, switches = tables["table"][table]["row"][row]["config"].partition(":")
    of = tables["data"][data]
    switches = ",".join(filter(None, (of.get("untuned", of["switches"]), switches)))
    file, switches = options.find(f"{file}:{switches}")
    changed = differences(config_of(arguments), load_base(f"{file}:{switches}")[2])
    return json.loads(json.dumps(shortened({x: value for x, value in changed.items() if x not in IRRELEVANT})))


def outdated(root: Path, table: str) -> list[str]:
    """The files of a table that are of other options than their rows have now, as where tuning chose anew."""
    there = files_of(root, table).items()
    return [name for name, one in there if one["options"] != options_of_row(root, table, name)]


def shortened(x: Any) -> Any:
    """With numbers of four decimals, and without the intervals of single seeds."""
    if isinstance(x, dict):
        return {name: shortened(value) for name, value in x.items() if name != "intervals"}
    if isinstance(x, (list, tuple)):
        return [shortened(value) for value in x]
    return round(x, 4) if isinstance(x, float) else x


def pack_run(run: Path, record: dict[str, Any], measured: dict[str, Any]) -> significance.Packed:
    """The matches of the last row of a run, of all seeds; reads its detections and the data.

    Raises:
      InputError: the detections are not those that were measured.
    """
    config = ConfigDict(record)
    data = pipeline.load(pipeline.build(config.data), "test")
    known = results.annotated(data)
    truth = {data.metas[i].id: data.annotations[i] for i in known}
    classes = {name: c for c, name in enumerate(data.class_names)}
    ious, protocol, seeds = np.array(config.evaluation.ious, np.float64), measured["protocol"], []
    values = measured["rows"][results.final_row(measured["rows"])]["average"]["values"]
    for i, seed in enumerate(measured["seeds"]):
        file = run / ("detections.json" if i == 0 else f"detections_seed{seed}.json")
        found = {
            id: Detections(of.segments, np.array([classes[x] for x in of.labels], int), of.scores)
            for id, of in submissions.read(file).items()
            if id in truth
        }
        there = 100 * metrics.detection_map(found, truth, len(classes), ious, protocol).mean.mean()
        if abs(there - values[i]) > 0.01:
            raise InputError(
                f"{file} has an average mAP of {there:.2f}, results.json says {values[i]:.2f}: run it anew"
            )
        seeds.append(metrics.match(found, truth, len(classes), ious, protocol))
    return significance.pack(seeds)


def files_of(root: Path, table: str) -> dict[str, dict[str, Any]]:
    """What is known of the runs of a table, by name, in the order of tables.toml."""
    folder = root / "results" / table
    names = rows_of(read_tables(root), table)
    return {
        name: json.loads((folder / f"{name}.json").read_text()) for name in names if (folder / f"{name}.json").exists()
    }


def digests(root: Path, table: str) -> dict[str, str]:
    """Of the files that comparisons are made of."""
    paths = [root / "results" / table / f"{name}.npz" for name in files_of(root, table)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def compare(root: Path, table: str) -> dict[str, Any]:
    """The comparisons of all rows of a table by data, which it keeps in comparisons.json until a file changes."""
    path, of = root / "results" / table / "comparisons.json", digests(root, table)
    if path.exists() and (kept := json.loads(path.read_text()))["of"] == of:
        return kept
    runs, by_data = files_of(root, table), {}
    for data in read_tables(root)["table"][table]["data"]:
        rows: dict[str, dict[int, Any]] = {}
        columns: list[str] = []
        for name, one in runs.items():
            row, where, i = name.split(".")
            if where == data:
                cells = one["rows"][results.final_row(one["rows"])]
                ious = [x for x in cells if re.fullmatch(r"[\d.]+", x)]
                averages = results.averages_of([float(x) for x in ious])
                columns = [*ious, *averages]
                with np.load(path.parent / f"{name}.npz", allow_pickle=False) as packed:
                    given = dict(packed), one["protocol"], [*averages.values()], len(ious)
                rows.setdefault(row, {})[int(i)] = significance.resampled(*given, SAMPLES, int(i))
        by_data[data] = significance.compare(rows, columns)
    kept = {"of": of, "samples": SAMPLES, "data": by_data}
    replace(path, json.dumps(kept, indent=1) + "\n")
    return kept


def difference(compared: dict[str, Any], a: str, b: str, column: str) -> list[float] | None:
    """Of row a to row b: [difference, low, high]; None where it is not known."""
    if cell := compared.get(a, {}).get(b, {}).get(column):
        return cell
    cell = compared.get(b, {}).get(a, {}).get(column)
    return cell and [-cell[0], -cell[2], -cell[1]]


def format_table(root: Path, table: str, chosen: Sequence[str] = ()) -> str:
    """The table as Markdown, with the columns of all headings or of those chosen.

    Of each column the highest is bold; those that cannot be told from it are marked with ≈.
    """
    tables, runs = read_tables(root), files_of(root, table)
    of, compared = tables["table"][table], compare(root, table)["data"]
    cells: dict[tuple[str, str, str], list[float]] = {}
    for name, one in runs.items():
        row, data, _ = name.split(".")
        for model, column, head in of["columns"]:
            model = results.final_row(one["rows"]) if model == "final" else model
            if cell := one["rows"].get(model, {}).get(column):
                cells.setdefault((row, data, head), []).extend(cell["values"])
    columns = [column for column in of["columns"] if not chosen or column[2] in chosen]
    heads = [(data, *column) for data in of["data"] for column in columns]
    heads = [head for head in heads if any((row, head[0], head[3]) in cells for row in of["row"])]
    lines = [
        ["", *(f"{tables['data'][data]['name']} {head}" for data, _, _, head in heads)],
        ["---"] * (len(heads) + 1),
    ]
    for row, what in of["row"].items():
        line = [what["label"]]
        for data, model, column, head in heads:
            values = cells.get((row, data, head))
            there = {other: np.mean(cells[other, data, head]) for other in of["row"] if (other, data, head) in cells}
            best = max(there, key=there.__getitem__)
            line.append(format_cell(values, row == best, None))
            if values and row != best and model == "final":
                line[-1] = format_cell(values, False, difference(compared.get(data, {}), best, row, column))
        if any(line[1:]):
            lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(values: Sequence[float] | None, best: bool, lead: Sequence[float] | None) -> str:
    """Mean ± standard deviation of the values of all seeds and repetitions; `lead` is that of the best row."""
    if not values:
        return ""
    text = f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
    return f"**{text}**" if best else text + (" ≈" if lead and lead[1] <= 0 else "")


def format_costs(root: Path, table: str) -> str:
    """The steps of training of each row as Markdown, how many runs it has, and their mean time, which has all seeds,
    compilation, scoring and detection.
    """
    tables, runs = read_tables(root), files_of(root, table)
    of, commands = tables["table"][table], rows_of(tables, table)
    lines = [["", *(tables["data"][data]["name"] for data in of["data"])], ["---"] * (len(of["data"]) + 1)]
    for row, what in of["row"].items():
        line = [what["label"]]
        for data in of["data"]:
            there = {name: one for name, one in runs.items() if name.startswith(f"{row}.{data}.")}
            if not there:
                line.append("")
                continue
            config = config_of(commands[next(iter(there))])
            line.append(f"{methods.get(config.method, config.streams[0]).rounds * config.steps:,} steps")
            if times := [one["seconds"] for one in there.values() if one["seconds"]]:
                devices = {one["versions"]["device"].removeprefix("NVIDIA ") for one in there.values()}
                line[-1] += f", {len(there)} x {np.mean(times) / 60:.1f} min ({', '.join(sorted(devices))})"
        if any(line[1:]):
            lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_claims(root: Path, table: str) -> str:
    """What a table says of the claims that tables.toml has for it, `claim = [row, row that it is above]`, as Markdown.

    A claim holds where the 95 % interval of the difference is above 0, and does not where it is below. The difference
    is that of the average over .1:.7, which `results.COARSE` names.
    """
    tables, compared = read_tables(root), compare(root, table)["data"]
    of = tables["table"][table]
    where = [data for data in of["data"] if compared.get(data)]
    lines = [["claim", *(tables["data"][data]["name"] for data in where)], ["---"] * (len(where) + 1)]
    for claim, (above, below) in of["claims"].items():
        cells = [difference(compared[data], above, below, results.COARSE) for data in where]
        lines.append([claim, *map(format_claim, cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_claim(cell: Sequence[float] | None) -> str:
    """A difference [mean, low, high] in words."""
    if not cell:
        return ""
    mean, low, high = cell
    verdict = "**holds**" if low > 0 else "does not hold" if high < 0 else "cannot be told"
    return f"{verdict}: {mean:+.1f} ({low:.1f} to {high:.1f})"


def fill(root: Path, text: str) -> str:
    """A document with its tables made anew, which are between `<!-- table NAME [HEADING ...] -->` and an end mark, or
    `<!-- costs NAME -->`, or `<!-- claims NAME -->`, and one.

    A table without any file of results stays as it is.
    """

    forms: dict[str, Callable[..., str]] = {"table": format_table, "costs": format_costs, "claims": format_claims}

    def new(found: re.Match) -> str:
        start, kind, table, heads, end = found.groups()
        given = [heads.split()] if heads else []
        return f"{start}{forms[kind](root, table, *given)}\n{end}" if files_of(root, table) else found[0]

    mark = rf"(<!-- ({'|'.join(forms)}) (\w+)([^>\n]*) -->\n).*?(<!-- end of \2 -->)"
    text = re.sub(mark, new, text, flags=re.DOTALL)
    chosen = f"<!-- chosen settings -->\n{study.tuned_table(study.kept(root))}\n<!-- end of settings -->"
    return re.sub("<!-- chosen settings -->.*<!-- end of settings -->", lambda _: chosen, text, flags=re.DOTALL)


def make(root: Path) -> list[str]:
    """Makes the tables of all documents and `configs/tuned` anew; returns which of them changed."""
    changed = []
    for name in ("configs/tuned/__init__.py", *DOCUMENTS):  # the first is what the commands of rows go by
        text = (root / name).read_text()
        new = study.tuned_text(study.kept(root)) if name.endswith(".py") else fill(root, text)
        if new != text:
            replace(root / name, new)
            changed.append(name)
    for table in read_tables(root)["table"]:
        for name in outdated(root, table):
            print(f"results/{table}/{name}.json is of other options than the row has now: run the row anew")
    return changed


def run(root: Path, table: str, row: str) -> None:
    """Trains and evaluates the rows in turn, each in its own folder of runs/, and takes their results."""
    rows = rows_of(read_tables(root), table, row)
    for name, arguments in rows.items():
        workdir = root / "runs" / "tables" / table / name
        fresh, start = not workdir.exists(), time.perf_counter()
        call(root, "wsal_jax.main", name, arguments, workdir)
        print(add(root, workdir, table, name, time.perf_counter() - start if fresh else None), flush=True)


def call(root: Path, module: str, name: str, arguments: Sequence[str], workdir: Path) -> None:
    """Runs a command of ours in a folder of its own, with the variables of the environment in its arguments.

    Raises:
      InputError: a variable is not set.
      SystemExit: the command failed.
    """
    for x in re.findall(r"\$(\w+)", " ".join(arguments)):
        if x not in os.environ:
            raise InputError(f"${x} is not set: see [data] in results/tables.toml")
    command = [sys.executable, "-m", module, *map(os.path.expandvars, arguments), f"--workdir={workdir}"]
    print(f"{name}: {shlex.join(command[1:])}", flush=True)
    if status := subprocess.run(command, cwd=root).returncode:
        raise SystemExit(status)


def tune(root: Path, row: str, trials: int | None) -> None:
    """Tunes the rows in turn, each in its own folder of runs/, and keeps their studies; goes on with those kept."""
    for name, arguments in studies_of(read_tables(root), row).items():
        workdir, kept = root / "runs" / "tuning" / name, root / "results" / "tuning" / f"{name}.json"
        if kept.exists() and not workdir.exists():
            workdir.mkdir(parents=True)
            replace(workdir / "study.json", kept.read_text())
        arguments += [f"--trials={trials}"] if trials else []
        call(root, "wsal_jax.tune", name, arguments, workdir)
        found = json.loads((workdir / "study.json").read_text())
        found["command"] = " ".join(["python -m wsal_jax.tune", *arguments])
        replace(kept, json.dumps(found, indent=1))


def main(argv: Sequence[str] | None = None, root: Path = Path()) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("run", help="train and evaluate the rows of a table")
    command.add_argument("table")
    command.add_argument("row", nargs="?", default="")
    command = commands.add_parser("tune", help="tune the rows of the first table")
    command.add_argument("row", nargs="?", default="")
    command.add_argument("--trials", type=int, help="in all, those of the kept study included")
    command = commands.add_parser("add", help="take the results of a run")
    command.add_argument("run", type=Path)
    command.add_argument("--table", required=True)
    command.add_argument("--row", required=True, help="<row>.<data>.<repetition>")
    args = parser.parse_args(argv)
    try:
        if args.command == "run":
            run(root, args.table, args.row)
        elif args.command == "tune":
            tune(root, args.row, args.trials)
        elif args.command == "add":
            print(add(root, args.run, args.table, args.row))
        print("\n".join(f"{name} changed" for name in make(root)) or "no document changed")
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
