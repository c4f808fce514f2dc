"""The command that measures detections of any program: `python -m wsal_jax.score --detections D --ground_truth G`.

Detections are an ActivityNet submission or another file of `wsal_jax.formats.submissions`. The ground truth is
ActivityNet's JSON or one of its variants, W-TALC's folder or THUMOS14's folder. Notes report odd input that can still
be measured; input that cannot be measured raises an error. It imports NumPy only, to start fast; `--analyse` imports
Matplotlib.
"""

import argparse
import csv
import itertools
import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wsal_jax import metrics
from wsal_jax.formats import submissions
from wsal_jax.formats.annotations import Record
from wsal_jax.selection import Selection, Subset, choose_subset, examples, is_thumos14, names_of, read_truth, select
from wsal_jax.text import align, count, cut
from wsal_jax.types import InputError

MAX_IOUS = 100
LEVEL = 0.95
"""Confidence level of the bootstrap intervals."""


class Result(NamedTuple):
    """The measured values, as fractions, not percent."""

    protocol: str
    subset: tuple[str, ...]
    classes: tuple[str, ...]
    instances: tuple[int, ...]
    """Number of true segments of each class."""
    ious: tuple[float, ...]
    measured: metrics.DetectionMap
    samples: int
    intervals: Float[np.ndarray, "i+1 2"] | None
    """For each IoU and for the average; None without bootstrap."""
    notes: tuple[str, ...]
    """Remarks on odd input."""


def parse_ious(text: str) -> tuple[float, ...]:
    """IoU thresholds from `first:last:step`, both ends included, or from a comma-separated list.

    Arithmetic is decimal, and each result is the nearest float: 0.1 + 0.1 + 0.1 must be 0.3 (see `metrics.IOUS`).

    Raises:
      InputError: not numbers, not ascending within (0, 1], or more than 100.
    """
    what = f"--iou {text!r}: must be first:last:step, like 0.1:0.9:0.1, or a list like 0.3,0.5,0.7"
    try:
        parts = [Decimal(part.strip()) for part in text.split(":" if ":" in text else ",")]
    except InvalidOperation as error:
        raise InputError(what) from error
    if not all(part.is_finite() for part in parts):
        raise InputError(what)
    if ":" in text:
        if len(parts) != 3 or parts[2] <= 0:
            raise InputError(what)
        first, last, step = parts
        if (last - first) / step >= MAX_IOUS:
            raise InputError(f"--iou {text!r}: more than {MAX_IOUS} thresholds; take a larger step")
        parts = [first + k * step for k in range(math.floor((last - first) / step) + 1)]
    if not parts or parts[0] <= 0 or parts[-1] > 1 or any(a >= b for a, b in itertools.pairwise(parts)):
        raise InputError(f"--iou {text!r}: thresholds must ascend, each once, and be above 0 and at most 1")
    return tuple(map(float, parts))


def score(
    selection: Selection, subset: Subset, ious: Sequence[float], protocol: str = "activitynet", samples: int = 1000
) -> Result:
    """The mAP of a selection.

    Args:
      selection: ground truth and detections.
      subset: their subset.
      ious: thresholds of the temporal IoU.
      protocol: a key of `metrics.PROTOCOLS`.
      samples: number of bootstrap samples; 0 gives no intervals.
    """
    rule = metrics.PROTOCOLS[protocol]
    inputs = selection.detections, selection.truth, len(selection.classes), np.array(ious), protocol
    matched = metrics.match(*inputs)
    notes = []
    undetected = [name for name, of in zip(selection.classes, matched) if not len(of.videos)]
    if undetected:
        what = {"class": "AP 0", "all": f"so by {protocol} the mAP of all is 0"}[rule.undetected]
        many = count(len(undetected), "class", "classes")
        notes.append(f"{many} without any detection left, {what}: {examples(undetected)}")
    if rule.ambiguous != "count" and not any(len(of.ambiguous) for of in selection.truth.values()):
        notes.append(f"{protocol} spares ambiguous segments; the ground truth has none (--ambiguous adds THUMOS14's)")
    return Result(
        protocol=protocol,
        subset=subset.names,
        classes=selection.classes,
        instances=tuple(int(of.num_positive.sum()) for of in matched),
        ious=tuple(ious),
        measured=metrics.detection_map(*inputs),
        samples=samples,
        intervals=metrics.bootstrap(matched, protocol, samples, level=LEVEL) if samples else None,
        notes=(*selection.notes, *notes),
    )


def format_result(result: Result) -> str:
    """Notes, header, mAP and AP of each class as text, in percent."""
    counts = {name: getattr(result.measured, name) for name in ("videos", "classes", "instances", "detections")}
    head = ", ".join(f"{name} {value}" for name, value in {"protocol": result.protocol, **counts}.items())
    notes = "".join(f"note: {note}\n" for note in result.notes)
    columns = [*map(str, result.ious), "average"]
    rows = [["mAP@IoU", *columns], ["mAP", *_cells(_with_average(result.measured.mean))]]
    if result.intervals is not None:
        rows += [[f"{LEVEL:.0%} {end}", *_cells(x)] for end, x in zip(("from", "to"), result.intervals.T)]
    ap = [
        [cut(name), str(n), *_cells(_with_average(x))]
        for name, n, x in zip(result.classes, result.instances, result.measured.ap.T)
    ]
    return "\n".join([f"{notes}{head}", "", *align(rows), "", *align([["AP@IoU", "instances", *columns], *ap])])


def _with_average(by_iou: Float[np.ndarray, " i"]) -> np.ndarray:
    return np.append(by_iou, np.mean(by_iou))


def _cells(fractions: np.ndarray) -> list[str]:
    return [f"{100 * x:.1f}" for x in fractions]


def to_json(result: Result) -> dict[str, Any]:
    """The whole result, in percent, by IoU and "average"; None for NaN, which JSON lacks."""
    columns = [*map(str, result.ious), "average"]

    def percent(x: Any) -> float | None:
        return None if np.isnan(x) else 100 * float(x)

    def by_column(values: np.ndarray) -> dict[str, Any]:
        return dict(zip(columns, map(percent, values)))

    measured = result.measured
    interval = None
    if result.intervals is not None:
        of_column = {column: [percent(x) for x in pair] for column, pair in zip(columns, result.intervals)}
        interval = {"level": LEVEL, "samples": result.samples, "mAP": of_column}
    return {
        "protocol": result.protocol,
        "subset": list(result.subset),
        **{name: int(getattr(measured, name)) for name in ("videos", "classes", "instances", "detections")},
        "notes": list(result.notes),
        "ious": list(result.ious),
        "mAP": by_column(_with_average(measured.mean)),
        "bootstrap": interval,
        "AP": {
            name: {"instances": n, **by_column(_with_average(ap))}
            for name, n, ap in zip(result.classes, result.instances, measured.ap.T)
        },
    }


def to_csv(result: Result) -> list[list[Any]]:
    """The rows of the per-class table, in percent, not rounded; the last is the mAP."""
    total = [("mAP", result.measured.instances, result.measured.mean)]
    rows = [*zip(result.classes, result.instances, result.measured.ap.T), *total]
    head = ["class", "instances", *map(str, result.ious), "average"]
    return [head, *([name, int(n), *(100 * _with_average(ap)).tolist()] for name, n, ap in rows)]


def check_outputs(outputs: Mapping[str, Path | None], inputs: Collection[Path]) -> None:
    """Checks before the computation that all outputs, by option, can be written.

    Raises:
      InputError: a folder is missing or not writable, or a file would replace an input or another output.
    """
    taken = {path.resolve() for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise InputError(f"{option} {path} is also another file of this command; choose another name")
        taken.add(path.resolve())
        if path.is_dir() != (option == "--analyse") and path.exists():
            raise InputError(f"{option} {path} is a {'folder' if path.is_dir() else 'file'}; choose another name")
        if not path.parent.is_dir():
            raise InputError(f"{option} {path}: the folder {path.parent} is not there; make it, or choose another")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{option} {path} cannot be written; choose another place")


def analyse(selection: Selection, records: Mapping[str, Record], buckets: str, directory: Path) -> str:
    """Writes analysis.json and the plots of `wsal_jax.analyse` to a folder, and returns its text.

    Args:
      selection: ground truth and detections.
      records: the annotations, for the durations of videos.
      buckets: a key of `analyse.BUCKETS`.
      directory: the folder, which is made if it is missing.
    """
    from wsal_jax import analyse, plot_analysis  # importing Matplotlib takes half a second

    durations = {id: records[id].duration for id, of in selection.truth.items() if len(of.labels)}
    if not all(durations.values()):
        durations = None
    inputs = selection.detections, selection.truth, len(selection.classes)
    analysis = analyse.analyse(*inputs, durations=durations, buckets=buckets)
    directory.mkdir(exist_ok=True)
    (directory / "analysis.json").write_text(json.dumps(analyse.to_json(analysis), indent=1), encoding="utf-8")
    plot_analysis.draw(analysis, directory)
    left_out = "" if durations else "\n\nnot by coverage: the ground truth does not give the duration of every video"
    return f"{analyse.format_analysis(analysis)}{left_out}"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m wsal_jax.score",
        description="Measures detections of temporal actions: mAP at thresholds of the temporal IoU.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--detections", type=Path, required=True, help="an ActivityNet submission (JSON), JSON lines, csv or txt")
    add("--ground_truth", type=Path, required=True, help="ActivityNet's JSON or similar, W-TALC's or THUMOS14's folder")
    add("--protocol", choices=tuple(metrics.PROTOCOLS), default="activitynet", help="rule (default: activitynet)")
    add("--subset", help="subset of the ground truth (default: the one for testing)")
    add("--iou", default="0.1:0.9:0.1", metavar="A:B:STEP", help="or a list: 0.3,0.5 (default: 0.1:0.9:0.1)")
    add("--ambiguous", type=Path, help="THUMOS14's text file of ambiguous segments")
    add("--exclude", default="", metavar="ID,ID,...", help="videos to leave out")
    add("--bootstrap", type=int, default=1000, metavar="N", help="samples for intervals; 0: none (default: 1000)")
    add("--analyse", type=Path, metavar="DIR", help="where to write an analysis of the errors at IoU 0.5")
    add("--buckets", choices=("activitynet", "thumos14"), help="buckets of --analyse (default: by the ids)")
    add("--json", type=Path, metavar="FILE", help="where to write everything")
    add("--csv", type=Path, metavar="FILE", help="where to write the AP of each class")
    return result


def run(args: argparse.Namespace) -> None:
    ious = parse_ious(args.iou)
    if args.bootstrap < 0:
        raise InputError(f"--bootstrap {args.bootstrap}: must be how many samples, or 0 for none")
    if args.buckets and not args.analyse:
        raise InputError("--buckets is of --analyse; give that too")
    outputs = {"--json": args.json, "--csv": args.csv, "--analyse": args.analyse}
    inputs = [path for path in (args.detections, args.ground_truth, args.ambiguous) if path]
    check_outputs(outputs, inputs)
    records, notes = read_truth(args.ground_truth, args.ambiguous)
    subset = choose_subset(records, args.subset)
    print(f"subset {names_of(subset)}: {subset.why}")
    exclude = dict.fromkeys(id.strip() for id in args.exclude.split(",") if id.strip())
    selection = select(records, submissions.read(args.detections), subset, exclude)
    selection = selection._replace(notes=[*notes, *selection.notes])
    result = score(selection, subset, ious, args.protocol, args.bootstrap)
    text = format_result(result)
    if args.json:
        args.json.write_text(json.dumps(to_json(result), indent=1), encoding="utf-8")
    if args.csv:
        with args.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(to_csv(result))
    if args.analyse:
        buckets = args.buckets or ("thumos14" if is_thumos14(records) else "activitynet")
        analysis = analyse(selection, records, buckets, args.analyse)
        text += f"\n\nanalysis of errors, by the rule of activitynet:\n{analysis}"
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal cannot show must not stop the command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(parser().parse_args(argv))
        sys.stdout.flush()
    except BrokenPipeError:  # as in `| head`; the files are written, and Python must not flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
