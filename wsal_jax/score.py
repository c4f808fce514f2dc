"""The command that measures detections of any program: `python -m wsal_jax.score --detections D --ground_truth G`.

Detections are an ActivityNet submission; the ground truth is ActivityNet's JSON, what became of it, or W-TALC's folder.
What is odd in them and can be measured all the same is said; what cannot be measured is an error. NumPy only, to start
fast; matplotlib is imported for `--analyse`.
"""

import argparse
import csv
import itertools
import json
import math
import os
import reprlib
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wsal_jax import metrics
from wsal_jax.formats import annotations
from wsal_jax.formats.annotations import Record
from wsal_jax.formats.checks import FolderError, Problems, check_id, is_plain, number, read_json
from wsal_jax.types import Annotation, Detections, InputError

THUMOS14_TEST, THUMOS14_VALIDATION = "video_test_", "video_validation_"
"""How the ids of THUMOS14 begin."""

MAX_IOUS = 100
LEVEL = 0.95
"""Of the bootstrap intervals."""


class Found(NamedTuple):
    """The detections of one video as the file has them: with class names."""

    segments: Float[np.ndarray, "k 2"]
    labels: tuple[str, ...]
    scores: Float[np.ndarray, " k"]


class Subset(NamedTuple):
    """Which videos of the ground truth are measured."""

    names: tuple[str, ...]
    """The subsets they are in, as in the file."""
    why: str
    ids: frozenset[str]


class Selection(NamedTuple):
    """What is measured."""

    classes: tuple[str, ...]
    """Of the selected truth, by name; a label is an index into them."""
    truth: dict[str, Annotation]
    detections: dict[str, Detections]
    notes: list[str]
    """What is odd, or was left out."""


class Result(NamedTuple):
    """Fractions, not percent."""

    protocol: str
    subset: tuple[str, ...]
    classes: tuple[str, ...]
    instances: tuple[int, ...]
    """Of each class."""
    ious: tuple[float, ...]
    measured: metrics.DetectionMap
    samples: int
    intervals: Float[np.ndarray, "i+1 2"] | None
    """At each IoU and for the average; None without bootstrap."""
    notes: tuple[str, ...]
    """What is odd about the numbers."""


def parse_ious(text: str) -> tuple[float, ...]:
    """IoU thresholds from `first:last:step`, both ends included, or a list with commas, as the nearest float of each.

    By decimal fractions: 0.1 + 0.1 + 0.1 is 0.3, which a threshold must be (see `metrics.IOUS`).

    Raises:
      InputError: not numbers, or not ascending within (0, 1], or more than 100.
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


def read_detections(path: Path) -> dict[str, Found]:
    """Detections by video id from `{"results": {<video>: [{"label", "score", "segment": [start, end]}]}}`, in seconds.

    That is ActivityNet's form of submissions; the inner mapping alone will do, and so will strings of numbers. Segments
    may be empty or end before they start.

    Raises:
      FolderError: the file cannot be read, or with all detections that lack something or are not finite.
    """
    problems = Problems()
    content = read_json(path, problems)
    results = content.get("results", content) if isinstance(content, dict) else content
    if not isinstance(results, dict) and not problems:
        problems.add(path.name, 'must be {"results": {<video>: [{"label": ..., "score": ..., "segment": ...}]}}')
    found = {}
    for id, entries in results.items() if isinstance(results, dict) else ():
        if not check_id(id, path.name, problems):
            continue
        if not isinstance(entries, list):
            problems.add(repr(id), f"is {reprlib.repr(entries)}: must be a list of detections")
            continue
        rows = [_read_detection(one, f"{id!r}, detection {i}", problems) for i, one in enumerate(entries)]
        found[id] = Found(
            segments=np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
            labels=tuple(row[3] for row in rows),
            scores=np.array([row[2] for row in rows], np.float64),
        )
    if problems:
        raise FolderError(path, problems.lines())
    return found


def _read_detection(one: Any, where: str, problems: Problems) -> tuple[float, float, float, str]:
    """Start, end, score and label; of no use where there is a problem."""
    if not isinstance(one, dict):
        problems.add(f"{where} ({reprlib.repr(one)})", 'must be {"label": ..., "score": ..., "segment": ...}')
        return math.nan, math.nan, math.nan, ""
    for key in ("label", "score", "segment"):
        if key not in one:
            problems.add(where, f'has no "{key}"')
    label, score, segment = one.get("label", "-"), one.get("score", 0), one.get("segment", [0, 0])
    if not is_plain(label):
        what = '"label" must be the name of the class as in the ground truth, not a number'
        problems.add(f"{where} ({reprlib.repr(label)})", what)
        label = ""
    value = number(score)
    if math.isnan(value):
        problems.add(f"{where} ({reprlib.repr(score)})", '"score" must be a finite number')
    times = tuple(map(number, segment)) if isinstance(segment, list) else ()
    if len(times) != 2 or math.isnan(sum(times)):
        problems.add(f"{where} ({reprlib.repr(segment)})", '"segment" must be [start, end], finite, in seconds')
        times = (math.nan, math.nan)
    return *times, value, label


def read_truth(path: Path, ambiguous: Path | None = None) -> tuple[dict[str, Record], list[str]]:
    """Annotations by video id from a JSON file or a W-TALC folder, and notes on what was left out.

    `ambiguous`, THUMOS14's text file, adds ambiguous segments to those of the videos that are there: a video that the
    ground truth leaves out stays out.

    Raises:
      FolderError: what cannot be read.
    """
    problems = Problems()
    if path.is_dir():
        records = {}
        for id, record in annotations.read_w_talc(path, problems):
            if id in records:
                problems.add(f"{path.name}: {id!r}", "is there more than once: keep one")
            records[id] = record
    else:
        records = annotations.read_activitynet(path, problems)
    if problems:
        raise FolderError(path, problems.lines())
    notes = []
    if ambiguous is not None:
        times = annotations.read_times(ambiguous, problems)
        if problems:
            raise FolderError(ambiguous, problems.lines())
        for id, segment in times:
            if id in records:
                known = records[id].ambiguous
                records[id] = records[id]._replace(ambiguous=tuple(dict.fromkeys((*known, segment))))
        lost = [id for id, _ in times if id not in records]
        if lost:
            notes.append(f"{_count(len(lost), 'ambiguous segment')} of unknown videos left out: {_examples(lost)}")
    return records, notes


def is_thumos14(ids: Collection[str]) -> bool:
    return bool(ids) and all(id.startswith((THUMOS14_TEST, THUMOS14_VALIDATION)) for id in ids)


def choose_subset(records: Mapping[str, Record], name: str | None = None) -> Subset:
    """The videos of the subset of this name, in any case; without a name, those for testing.

    THUMOS14 trains on its validation videos, and they go by many names of subsets. So where ids are THUMOS14's and
    there are test videos, ids decide. Otherwise the only subset is taken, or those that test by `annotations.is_train`.

    Raises:
      InputError: there is none; the message lists what there is.
    """
    names = {record.subset for record in records.values()}
    there_are = f"there are {', '.join(map(repr, sorted(names))) or 'no videos at all'}"
    if name is not None:
        chosen, why = {x for x in names if x.lower() == name.lower()}, "as asked for"
        if not chosen:
            raise InputError(f"--subset {name!r} is not in the ground truth; {there_are}")
    elif is_thumos14(records) and any(id.startswith(THUMOS14_TEST) for id in records):
        ids = frozenset(id for id in records if id.startswith(THUMOS14_TEST))
        names = sorted({records[id].subset for id in ids})
        return Subset(tuple(names), "the test videos of THUMOS14, by their ids", ids)
    elif len(names) == 1:
        chosen, why = names, "the only one"
    else:
        chosen, why = {x for x in names if annotations.is_train(x, names) is False}, "for testing, by its name"
        if not chosen:
            raise InputError(f"the ground truth has no subset for testing; say which with --subset: {there_are}")
    ids = frozenset(id for id, record in records.items() if record.subset in chosen)
    return Subset(tuple(sorted(chosen)), why, ids)


def select(
    records: Mapping[str, Record], found: Mapping[str, Found], subset: Subset, exclude: Collection[str] = ()
) -> Selection:
    """What is measured of ground truth and detections, with labels as numbers, and notes on the rest.

    Videos of the subset without any annotation are not in the truth. Detections in excluded videos and in other subsets
    are left out, and so are those of classes that the selected truth does not have. Detections in other videos that the
    truth does not have stay, as in the official evaluator, where they are false positives.

    Ids of ActivityNet go with or without "v_": where all ids of detections that the ground truth does not have become
    known without it, or with it, they are renamed.

    Raises:
      InputError: nothing is annotated in the subset, or detections have no video or no class of the truth.
    """
    found, notes = _same_ids(found, records)
    truth = {id: records[id] for id in records if id in subset.ids and id not in exclude}
    empty = [id for id, record in truth.items() if not record.labels and not record.ambiguous]
    for id in empty:
        del truth[id]
    classes = tuple(sorted({label for record in truth.values() for label in record.labels}))
    if not classes:
        raise InputError(f"no video of the subset {_names(subset)} has an annotated segment; choose another --subset")

    other = [id for id in found if id in records and id not in subset.ids and id not in exclude]
    unknown = [id for id in found if id not in records and id not in exclude]
    kept = {id: of for id, of in found.items() if id not in exclude and (id in subset.ids or id not in records)}
    if found and not any(id in truth for id in kept):
        raise InputError(
            f"no video of the detections, like {_examples(found)}, is one of the truth, like {_examples(truth)}; give "
            "the ground truth of the same data set, the right --subset, and ids without endings of file names"
        )
    index = {name: i for i, name in enumerate(classes)}
    unknown_labels = Counter(label for of in kept.values() for label in of.labels if label not in index)
    if unknown_labels and unknown_labels.total() == sum(len(of.labels) for of in kept.values()):
        raise InputError(
            f"no detection has a class of the ground truth: labels are like {_examples(unknown_labels)}, classes like "
            f"{_examples(classes)}; give the names of classes as in the ground truth"
        )
    detections = {id: _numbered(of, index) for id, of in kept.items()}
    empty_found, empty_true = (
        [f"{id} [{a:g}, {b:g}]" for id, of in videos.items() for a, b in of.segments if b <= a]
        for videos in (detections, truth)
    )

    def count(ids: Iterable[str]) -> str:
        return _count(sum(len(found[id].labels) for id in ids if id in found), "detection")

    excluded = [id for id in exclude if id in records or id in found]
    of_subset = _count(len(subset.ids.intersection(exclude)), "video")
    not_there = [id for id in exclude if id not in excluded]
    missing = [id for id, of in truth.items() if of.labels and not (id in found and found[id].labels)]
    labels = [f"{label} ({n})" for label, n in unknown_labels.most_common()]
    reports = [
        (excluded, f"{of_subset} and {count(exclude)} excluded"),
        (not_there, f"{_count(len(not_there), 'video')} to exclude nowhere to be found"),
        (empty, f"{_count(len(empty), 'video')} without any annotation; {count(empty)} there kept, as false positives"),
        (other, f"{count(other)} in {_count(len(other), 'video')} of other subsets left out"),
        (unknown, f"{count(unknown)} in {_count(len(unknown), 'unknown video')} kept, as false positives"),
        (labels, f"{_count(unknown_labels.total(), 'detection')} of {_count(len(labels), 'unknown label')} left out"),
        (empty_found, f"{_count(len(empty_found), 'detection')} of no or negative length kept, as misses"),
        (empty_true, f"{_count(len(empty_true), 'true segment')} of no or negative length kept, as missed"),
        (missing, f"{_count(len(missing), 'annotated video')} without any detection"),
    ]
    notes += [f"{text}: {_examples(names)}" for names, text in reports if names]
    truth = {
        id: Annotation(
            np.array(of.segments, np.float64).reshape(-1, 2),
            np.array([index[label] for label in of.labels], int),
            np.array(of.ambiguous, np.float64).reshape(-1, 2),
        )
        for id, of in truth.items()
    }
    return Selection(classes, truth, detections, notes)


def _same_ids(found: Mapping[str, Found], records: Mapping[str, Record]) -> tuple[Mapping[str, Found], list[str]]:
    """The detections with ids of the ground truth where those differ in "v_" only, and a note if so."""
    unknown = [id for id in found if id not in records]
    for what, new in (("without", [id.removeprefix("v_") for id in unknown]), ("with", [f"v_{id}" for id in unknown])):
        if unknown and all(id in records and id not in found for id in new):
            renamed = dict(zip(unknown, new))
            note = f'{_count(len(unknown), "id")} of detections read {what} "v_", as in the ground truth: '
            return {renamed.get(id, id): of for id, of in found.items()}, [note + _examples(unknown)]
    return found, []


def _numbered(found: Found, index: Mapping[str, int]) -> Detections:
    """The detections of known labels."""
    labels = np.array([index.get(label, -1) for label in found.labels], int)
    known = labels >= 0
    return Detections(found.segments[known], labels[known], found.scores[known])


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _examples(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _names(subset: Subset) -> str:
    return ", ".join(name or "(unnamed)" for name in subset.names)


def score(
    selection: Selection, subset: Subset, ious: Sequence[float], protocol: str = "activitynet", samples: int = 1000
) -> Result:
    """The mAP of a selection, with bootstrap intervals of `samples` samples; without them if 0."""
    rule = metrics.PROTOCOLS[protocol]
    inputs = selection.detections, selection.truth, len(selection.classes), np.array(ious), protocol
    matched = metrics.match(*inputs)
    notes = []
    undetected = [name for name, of in zip(selection.classes, matched) if not len(of.videos)]
    if undetected:
        what = {"class": "AP 0", "all": f"so by {protocol} the mAP of all is 0"}[rule.undetected]
        count = _count(len(undetected), "class", "classes")
        notes.append(f"{count} without any detection left, {what}: {_examples(undetected)}")
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
    """What is odd, header, mAP and AP of each class as text, in percent."""
    counts = {name: getattr(result.measured, name) for name in ("videos", "classes", "instances", "detections")}
    head = ", ".join(f"{name} {value}" for name, value in {"protocol": result.protocol, **counts}.items())
    notes = "".join(f"note: {note}\n" for note in result.notes)
    columns = [*map(str, result.ious), "average"]
    rows = [["mAP@IoU", *columns], ["mAP", *_cells(_with_average(result.measured.mean))]]
    if result.intervals is not None:
        rows += [[f"{LEVEL:.0%} {end}", *_cells(x)] for end, x in zip(("from", "to"), result.intervals.T)]
    ap = [
        [name, str(count), *_cells(_with_average(x))]
        for name, count, x in zip(result.classes, result.instances, result.measured.ap.T)
    ]
    return "\n".join([f"{notes}{head}", "", *_align(rows), "", *_align([["AP@IoU", "instances", *columns], *ap])])


def _with_average(by_iou: Float[np.ndarray, " i"]) -> np.ndarray:
    return np.append(by_iou, np.mean(by_iou))


def _cells(fractions: np.ndarray) -> list[str]:
    return [f"{100 * x:.1f}" for x in fractions]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]


def to_json(result: Result) -> dict[str, Any]:
    """All of it, in percent, by IoU and "average"; None for NaN, which JSON does not have."""
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
            name: {"instances": count, **by_column(_with_average(ap))}
            for name, count, ap in zip(result.classes, result.instances, measured.ap.T)
        },
    }


def to_csv(result: Result) -> list[list[Any]]:
    """The rows of the per-class table, in percent and unrounded; the last is the mAP."""
    total = [("mAP", result.measured.instances, result.measured.mean)]
    rows = [*zip(result.classes, result.instances, result.measured.ap.T), *total]
    head = ["class", "instances", *map(str, result.ious), "average"]
    return [head, *([name, int(n), *(100 * _with_average(ap)).tolist()] for name, n, ap in rows)]


def check_outputs(outputs: Mapping[str, Path | None], inputs: Collection[Path]) -> None:
    """That what is to be written, by option, can be: before anything is computed.

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
    """Writes analysis.json and the pictures of `wsal_jax.analyse` to a folder, and returns its text."""
    from wsal_jax import analyse

    durations = {id: records[id].duration for id, of in selection.truth.items() if len(of.labels)}
    if not all(durations.values()):
        durations = None
    inputs = selection.detections, selection.truth, len(selection.classes)
    analysis = analyse.analyse(*inputs, durations=durations, buckets=buckets)
    directory.mkdir(exist_ok=True)
    (directory / "analysis.json").write_text(json.dumps(analyse.to_json(analysis), indent=1), encoding="utf-8")
    analyse.draw(analysis, directory)
    left_out = "" if durations else "\n\nnot by coverage: the ground truth does not give the duration of every video"
    return f"{analyse.format_analysis(analysis)}{left_out}"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m wsal_jax.score",
        description="Measures detections of temporal actions: mAP at thresholds of the temporal IoU.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--detections", type=Path, required=True, help="JSON in the form of an ActivityNet submission")
    add("--ground_truth", type=Path, required=True, help="ActivityNet's JSON and its kin, or W-TALC's folder")
    add("--protocol", choices=tuple(metrics.PROTOCOLS), default="activitynet", help="rule (default: activitynet)")
    add("--subset", help="of the ground truth (default: for testing)")
    add("--iou", default="0.1:0.9:0.1", metavar="A:B:STEP", help="or a list: 0.3,0.5 (default: 0.1:0.9:0.1)")
    add("--ambiguous", type=Path, help="THUMOS14's text file of ambiguous segments")
    add("--exclude", default="", metavar="ID,ID,...", help="videos to leave out")
    add("--bootstrap", type=int, default=1000, metavar="N", help="samples for intervals; 0: none (default: 1000)")
    add("--analyse", type=Path, metavar="DIR", help="where to write an analysis of the errors at IoU 0.5")
    add("--buckets", choices=("activitynet", "thumos14"), help="of --analyse (default: by the ids)")
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
    print(f"subset {_names(subset)}: {subset.why}")
    exclude = dict.fromkeys(id.strip() for id in args.exclude.split(",") if id.strip())
    selection = select(records, read_detections(args.detections), subset, exclude)
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
    try:
        run(parser().parse_args(argv))
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`; the files are written, and Python must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
