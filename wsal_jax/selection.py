"""Selects what to measure from annotations and from the detections of any program: subset, classes and videos.

Notes report odd input that can still be measured; input that cannot be measured raises an error. NumPy only.
"""

import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsal_jax.formats import annotations
from wsal_jax.formats.annotations import Record
from wsal_jax.formats.checks import FolderError, Problems
from wsal_jax.formats.submissions import FAR, Found
from wsal_jax.text import count, cut
from wsal_jax.types import Annotation, Detections, InputError, some

THUMOS14_TEST, THUMOS14_VALIDATION = "video_test_", "video_validation_"
"""Prefixes of the ids of THUMOS14."""

FRAME = 1 / 60
"""Seconds. Detections shorter than this suggest that times are not in seconds."""


class Subset(NamedTuple):
    """The videos of the ground truth that are measured."""

    names: tuple[str, ...]
    """The names of their subsets, as in the file."""
    why: str
    """The reason for the choice, for messages."""
    ids: frozenset[str]


class Selection(NamedTuple):
    """The selected ground truth and detections."""

    classes: tuple[str, ...]
    """Class names of the selected ground truth; a label is an index into them."""
    truth: dict[str, Annotation]
    detections: dict[str, Detections]
    notes: list[str]
    """What is odd or was left out."""


def read_truth(path: Path, ambiguous: Path | None = None) -> tuple[dict[str, Record], list[str]]:
    """Annotations by video id and notes on what was left out.

    Args:
      path: a JSON file, W-TALC's folder or THUMOS14's folder.
      ambiguous: THUMOS14's text file of ambiguous segments, which are added to the videos of the ground truth. It adds
        no videos.

    Raises:
      FolderError: a file cannot be read.
    """
    problems = Problems()
    texts = [file for pattern in annotations.CLASS_FILES for file in path.glob(pattern)]
    if texts and not (path / "videoname.npy").exists():  # W-TALC's folder has a text file too, of ambiguous segments
        records = annotations.read_thumos_text(path, problems)
    elif path.is_dir():
        records = {}
        for id, record in annotations.read_w_talc(path, problems):
            if id in records:
                problems.add(f"{path.name}: {id!r}", "is there more than once: keep one")
            records[id] = record
    else:
        records = annotations.read_activitynet(path, problems)
    for id, record in records.items():
        far = [times for times in (*record.segments, *record.ambiguous) if max(map(abs, times)) > FAR]
        if far:
            problems.add(f"{path.name}: {id!r}", f"annotation {reprlib.repr(far[0])} is beyond {FAR:g} s")
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
            notes.append(f"{count(len(lost), 'ambiguous segment')} of unknown videos left out: {examples(lost)}")
    return records, notes


def is_thumos14(ids: Collection[str]) -> bool:
    return bool(ids) and all(id.startswith((THUMOS14_TEST, THUMOS14_VALIDATION)) for id in ids)


def choose_subset(records: Mapping[str, Record], name: str | None = None) -> Subset:
    """The videos of the subset of this name, in upper or lower case; without a name, the videos for testing.

    THUMOS14 trains on its validation videos, whose subset has different names in different files. If the ids are
    THUMOS14's and include test videos, the ids therefore decide. Otherwise it takes the only subset, or the subsets for
    testing by `annotations.is_train`.

    Raises:
      InputError: no such subset; the message lists the subsets.
    """
    names = {record.subset for record in records.values()}
    there_are = f"there are {some((cut(repr(x)) for x in sorted(names)), 20) or 'no videos at all'}"
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
    """Selects the ground truth and detections to measure, with integer labels, and notes on the rest.

    Videos of the subset without any annotation are not in the truth. Detections are left out in excluded videos, in
    other subsets, and of classes that the selected truth lacks. Detections in videos that the ground truth lacks are
    kept as false positives, as in the official evaluator.

    ActivityNet's ids come with or without "v_". If the ground truth has an id only in the other form, detections and
    `exclude` are read in that form, unless the detections contain both.

    Args:
      records: annotations by video id.
      found: detections by video id.
      subset: the videos to measure.
      exclude: ids of videos to leave out.

    Raises:
      InputError: nothing is annotated in the subset, or detections and truth have no video or no class in common.
    """
    found, notes = _same_ids(found, records)
    exclude = [_variant(id, records) or id for id in exclude]
    of_subset = {id: records[id] for id in records if id in subset.ids and id not in exclude}
    true = {id: record for id, record in of_subset.items() if record.labels or record.ambiguous}
    classes = tuple(sorted({label for record in true.values() for label in record.labels}))
    if not classes:
        raise InputError(f"no video of the subset {names_of(subset)} has an annotated segment; choose another --subset")
    kept = {id: of for id, of in found.items() if id not in exclude and (id in subset.ids or id not in records)}
    labels = Counter(label for of in kept.values() for label in of.labels)
    _check_common(found, kept, true, labels, classes)

    index = {name: i for i, name in enumerate(classes)}
    detections = {id: _numbered(of, index) for id, of in kept.items()}
    truth = {
        id: Annotation(
            np.array(of.segments, np.float64).reshape(-1, 2),
            np.array([index[label] for label in of.labels], int),
            np.array(of.ambiguous, np.float64).reshape(-1, 2),
        )
        for id, of in true.items()
    }
    unknown = Counter({label: n for label, n in labels.items() if label not in index})
    missing = [id for id, of in true.items() if of.labels and not (id in found and found[id].labels)]
    what = f"{count(unknown.total(), 'detection')} of {count(len(unknown), 'unknown label')} left out"
    reports = [
        *_about_videos(records, found, subset, exclude, [id for id in of_subset if id not in true]),
        ([f"{cut(label)} ({n})" for label, n in unknown.most_common()], what),
        *_about_segments(detections, truth, true),
        (missing, f"{count(len(missing), 'annotated video')} without any detection"),
    ]
    notes += [f"{text}: {examples(of)}" for of, text in reports if of]
    return Selection(classes, truth, detections, notes + unit_notes(detections, true))


def _variant(id: str, ids: Collection[str]) -> str | None:
    """The member of `ids` that differs from `id` only by a leading "v_"; None if `ids` contains `id` itself."""
    variants = [*([id[2:]] if id.startswith("v_") else []), f"v_{id}"] if id not in ids else []
    return next((variant for variant in variants if variant in ids), None)


def _same_ids(found: Mapping[str, Found], records: Mapping[str, Record]) -> tuple[Mapping[str, Found], list[str]]:
    """The detections with the ids of the ground truth where they differ only by "v_", and notes on the change."""
    renamed = {id: new for id in found if (new := _variant(id, records)) and new not in found}
    notes = []
    for what in ("without", "with"):
        ids = [id for id, new in renamed.items() if (len(new) < len(id)) == (what == "without")]
        if ids:
            text = f'{count(len(ids), "id")} of detections read {what} "v_", as in the ground truth'
            notes.append(f"{text}: {examples(ids)}")
    return {renamed.get(id, id): of for id, of in found.items()}, notes


def _check_common(
    found: Mapping[str, Found],
    kept: Mapping[str, Found],
    true: Mapping[str, Record],
    labels: Counter[str],
    classes: Collection[str],
) -> None:
    """Checks that detections and truth have a video and a class in common.

    Raises:
      InputError: they have none.
    """
    if found and not any(id in true for id in kept):
        raise InputError(
            f"no video of the detections, like {examples(found)}, is one of the truth, like {examples(true)}; give "
            "the ground truth of the same data set, the right --subset, and ids without endings of file names"
        )
    if labels and not any(label in classes for label in labels):
        raise InputError(
            f"no detection has a class of the ground truth: labels are like {examples(labels)}, classes like "
            f"{examples(classes)}; give the names of classes as in the ground truth"
        )


Report = tuple[Collection[str], str]
"""Names and a note about them; the note is dropped if there are no names."""


def _about_videos(
    records: Mapping[str, Record],
    found: Mapping[str, Found],
    subset: Subset,
    exclude: Collection[str],
    empty: Collection[str],
) -> list[Report]:
    def detections(ids: Iterable[str]) -> str:
        return count(sum(len(found[id].labels) for id in ids if id in found), "detection")

    excluded = [id for id in exclude if id in records or id in found]
    not_there = [id for id in exclude if id not in excluded]
    other = [id for id in found if id in records and id not in subset.ids and id not in exclude]
    unknown = [id for id in found if id not in records and id not in exclude]
    of_subset = count(len(subset.ids.intersection(exclude)), "video")
    spared = f"{count(len(empty), 'video')} without any annotation; {detections(empty)} there kept, as false positives"
    return [
        (excluded, f"{of_subset} and {detections(exclude)} excluded"),
        (not_there, f"{count(len(not_there), 'video')} to exclude nowhere to be found"),
        (empty, spared),
        (other, f"{detections(other)} in {count(len(other), 'video')} of other subsets left out"),
        (unknown, f"{detections(unknown)} in {count(len(unknown), 'unknown video')} kept, as false positives"),
    ]


def _about_segments(
    detections: Mapping[str, Detections], truth: Mapping[str, Annotation], records: Mapping[str, Record]
) -> list[Report]:
    found, true = (
        [(id, *segment) for id, video in videos.items() for segment in video.segments.tolist()]
        for videos in (detections, truth)
    )
    empty_found, empty_true = ([_place(*one) for one in of if one[2] <= one[1]] for of in (found, true))
    twice, copies = (
        [_place(*one) for one, n in _times(videos).items() for _ in range(n - 1)] for videos in (detections, truth)
    )
    late = [_place(*one) for one in true if one[2] > (records[one[0]].duration or FAR) + 1]
    return [
        (empty_found, f"{count(len(empty_found), 'detection')} of no or negative length kept, as misses"),
        (empty_true, f"{count(len(empty_true), 'true segment')} of no or negative length kept, as missed"),
        (twice, f"{count(len(twice), 'detection')} there more than once, with class and score, kept"),
        (copies, f"{count(len(copies), 'true segment')} there more than once (opentad leaves copies out)"),
        (late, f"{count(len(late), 'true segment')} ending more than 1 s after the video"),
    ]


def _times(videos: Mapping[str, Detections | Annotation]) -> Counter[tuple[str, float, float]]:
    """How often each segment occurs with the same label and score; keys are arguments of `_place`."""
    rows: Counter[tuple] = Counter()
    for id, of in videos.items():
        scores = of.scores.tolist() if isinstance(of, Detections) else [0.0] * len(of.labels)
        rows.update((id, *segment, *rest) for segment, *rest in zip(of.segments.tolist(), of.labels.tolist(), scores))
    result: Counter[tuple[str, float, float]] = Counter()
    for (id, start, end, *_), n in rows.items():
        result[id, start, end] = max(result[id, start, end], n)
    return result


def _place(id: str, start: float, end: float) -> str:
    return f"{cut(id)} [{start:g}, {end:g}]"


def unit_notes(detections: Mapping[str, Detections], records: Mapping[str, Record]) -> list[str]:
    """A note if the times of detections seem not to be seconds, with their likely unit; empty otherwise.

    It compares them with the durations of the videos or, if those are not given, with the last true segment.
    """
    of = {id: found for id, found in detections.items() if len(found.labels) and id in records}
    last = {id: max((max(times) for times in records[id].segments), default=0.0) for id in of}
    ends = {id: records[id].duration or last[id] for id in of}
    of = {id: found for id, found in of.items() if ends[id] > 0}
    if not of:
        return []
    segments = np.concatenate([found.segments for found in of.values()])
    # Without a duration, assume that a video ends within three times the end of its last true segment.
    beyond = np.repeat(
        [records[id].duration or 3 * last[id] for id in of], [len(found.labels) for found in of.values()]
    )
    outside = float(np.mean(segments.min(axis=1) >= beyond))
    ratio = float(np.median([found.segments.max() / ends[id] for id, found in of.items()]))
    length = float(np.median(np.abs(segments[:, 1] - segments[:, 0])))
    usual = float(np.median([ends[id] for id in of]))
    if outside > 0.5:
        unit = "milliseconds" if ratio > 300 else "frames" if ratio > 5 else "frames or snippets"
        what = f"{outside:.0%} of the detections begin after the end of the video"
    elif segments.max() <= 1 and usual > 5:
        unit, what = "fractions of the video", f"all detections end within 1 s, and videos last about {usual:.0f} s"
    elif length < FRAME:
        unit, what = "", f"most detections are shorter than a frame, {length:.2g} s"
    else:
        return []
    return [f"{what}: times must be seconds" + (f", and look like {unit}" if unit else "")]


def _numbered(found: Found, index: Mapping[str, int]) -> Detections:
    """The detections with known labels, as integers."""
    labels = np.array([index.get(label, -1) for label in found.labels], int)
    known = labels >= 0
    return Detections(found.segments[known], labels[known], found.scores[known])


def examples(of: Iterable[str]) -> str:
    """Some of the names, without repetition."""
    return some(map(cut, dict.fromkeys(of)))


def names_of(subset: Subset) -> str:
    return ", ".join(cut(name) or "(unnamed)" for name in subset.names)
