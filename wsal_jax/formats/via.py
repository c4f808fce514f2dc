"""Projects of VIA 3, the VGG Image Annotator for audio and video: a view for each video, an attribute for the class.

VIA keeps three decimals of a second. It reads and writes whole projects; a detection's score is a second attribute.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsal_jax.formats.checks import Problems, number, read_json
from wsal_jax.formats.labelled import Labelled, Segment, add, checked, id_of, printable

TEXT, CHECKBOX, SELECT = 1, 2, 4
"""Types of attributes."""

VIDEO, LOCAL, FILE_URI = 4, 1, 3
"""The type of a file, and where it is: chosen by hand in the browser, or at a file URI."""

SPAN = "FILE1_Z2_XY0"
"""What an attribute is of: a part of the time of one file."""

CLASS_NAMES = ("class", "label", "action", "activity")
"""What the attribute is called that tells the class, unless it is the only one with options."""


def project(videos: Sequence[Labelled], classes: Sequence[str]) -> dict[str, Any]:
    """A project, as VIA saves it."""
    names = [printable(name) for name in dict.fromkeys(classes)]
    option = {name: str(i + 1) for i, name in enumerate(names)}
    metadata = {}
    for v, video in enumerate(videos):
        for i, one in enumerate(video.segments):
            av = {"1": option[printable(one.label)]}
            if one.score is not None:
                av["2"] = f"{one.score:.6g}"
            z = [round(one.start, 3), round(one.end, 3)]
            metadata[f"{v + 1}_{i + 1}"] = {"vid": str(v + 1), "flg": 0, "z": z, "xy": [], "av": av}
    ids = [str(v + 1) for v in range(len(videos))]
    attribute = {"anchor_id": SPAN, "desc": "", "default_option_id": ""}
    return {
        "project": {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "__VIA_PROJECT_REV_ID__",
            "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
            "pname": "wsal_jax",
            "creator": "wsal_jax",
            "created": 0,
            "data_format_version": "3.1.1",
            "vid_list": ids,
        },
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": _UI},
        "attribute": {
            "1": {"aname": "class", **attribute, "type": SELECT, "options": {id: name for name, id in option.items()}},
            "2": {"aname": "score", **attribute, "type": TEXT, "options": {}},
        },
        "file": {id: _file(id, video) for id, video in zip(ids, videos)},
        "metadata": metadata,
        "view": {id: {"fid_list": [id]} for id in ids},
    }


_UI = {
    "file_content_align": "center",
    "file_metadata_editor_visible": True,
    "spatial_metadata_editor_visible": True,
    "temporal_segment_metadata_editor_visible": True,
    "spatial_region_label_attribute_id": "",
    "gtimeline_visible_row_count": "4",
}


def _file(fid: str, video: Labelled) -> dict[str, Any]:
    where = {"loc": FILE_URI, "src": video.file.absolute().as_uri()} if video.file else {"loc": LOCAL, "src": ""}
    return {"fid": fid, "fname": video.media, "type": VIDEO, **where}


def write(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>.json`, a project to open."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(project(videos, classes), ensure_ascii=False), encoding="utf-8")
    return [path]


def read(path: Path, problems: Problems, fps: float | None = None) -> dict[str, Labelled]:
    """The temporal segments of a project; regions of a picture are left out, and so are views of several files.

    The class is an attribute called "class" or one of `CLASS_NAMES`, or the only one that has options. Of checkboxes,
    each that is ticked is a segment of its own.
    """
    content = read_json(path, problems)
    found: dict[str, Labelled] = {}
    parts = [content.get(name) if isinstance(content, dict) else None for name in ("attribute", "file", "view")]
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not all(isinstance(part, dict) for part in (*parts, metadata)):
        if content is not None:
            problems.add(path.name, 'is no project of VIA 3: it must have "attribute", "file", "view" and "metadata"')
        return found
    attributes, files, views = parts
    key = _class_attribute(attributes)
    if key is None:
        what = 'has no attribute that tells the class: call one of temporal segments "class"'
        problems.add(path.name, what)
        return found
    segments: dict[str, list[Segment]] = {vid: [] for vid in views}
    for id, one in metadata.items():
        where = f"{path.name}: segment {id!r}"
        try:
            vid, times, values = str(one["vid"]), [number(t) for t in one["z"]], one["av"]
            if len(times) != 2 or one.get("xy"):
                continue
            labels = _labels(attributes[key], values.get(key))
            if not labels:
                problems.add(where, "has no class: choose one in VIA")
            segments[vid] += [Segment(times[0], times[1], label) for label in labels]
        except (KeyError, TypeError, AttributeError):
            problems.add(where, 'is not {"vid", "z", "xy", "av"} of a view of the project')
    for vid, view in views.items():
        where = f"{path.name}: view {vid!r}"
        try:
            (fid,) = view["fid_list"]
            name = files[str(fid)]["fname"]
        except (KeyError, TypeError, ValueError):
            problems.add(where, "is not of one file: keep one video a view")
            continue
        add(found, checked(id_of(str(name)), segments[vid], where, problems), where, problems)
    return found


def _class_attribute(attributes: dict[str, Any]) -> str | None:
    temporal = {id: a for id, a in attributes.items() if isinstance(a, dict) and a.get("anchor_id", SPAN) == SPAN}
    for name in CLASS_NAMES:
        for id, attribute in temporal.items():
            if str(attribute.get("aname", "")).lower() == name:
                return id
    chosen = [id for id, attribute in temporal.items() if attribute.get("options")]
    return chosen[0] if len(chosen) == 1 else None


def _labels(attribute: dict[str, Any], value: Any) -> list[str]:
    if value in (None, ""):
        return []
    options = attribute.get("options") or {}
    if not options:
        return [str(value)]
    chosen = str(value).split(",") if attribute.get("type") == CHECKBOX else [str(value)]
    return [str(options[id]) for id in chosen if id]
