"""ELAN's annotation files (EAF 3.0): one a video, a tier for each class, with a segment's score as its text.

ELAN counts milliseconds, and the annotations of a tier may not overlap: where segments of a class do, there is a second
tier "<class> (2)", and so on, whose participant is the class. Characters that XML cannot hold become spaces.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from wsal_jax.files import regular
from wsal_jax.formats.checks import Problems
from wsal_jax.formats.labelled import Labelled, Segment, add, checked, id_of, printable

AUTHOR = "wsal_jax"
MIME = {".mp4": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska", ".avi": "video/x-msvideo"}
CONSTRAINTS = {
    "Time_Subdivision": "Time subdivision of parent annotation's time interval, no time gaps allowed within this "
    "interval",
    "Symbolic_Subdivision": "Symbolic subdivision of a parent annotation. Annotations refering to the same parent are "
    "ordered",
    "Symbolic_Association": "1-1 association with a parent annotation",
    "Included_In": "Time alignable annotations within the parent annotation's time interval, gaps are allowed",
}
SCHEMA = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"


def tiers(segments: Sequence[Segment]) -> dict[str, tuple[str, list[Segment]]]:
    """The class and the segments of each tier, which do not overlap in whole milliseconds."""
    labels = list(dict.fromkeys(printable(one.label) for one in segments))
    result: dict[str, tuple[str, list[Segment]]] = {}
    for label in labels:
        rows: list[list[Segment]] = []
        for one in segments:
            if printable(one.label) == label:
                row = next((row for row in rows if _ms(row[-1])[1] <= _ms(one)[0]), None)
                if row is None:
                    rows.append(row := [])
                row.append(one)
        name, count = label, 1
        for row in rows:
            while name in result or (count > 1 and name in labels):
                count += 1
                name = f"{label} ({count})"
            result[name] = (label, row)
    return result


def _ms(one: Segment) -> tuple[int, int]:
    """Start and end in milliseconds, which differ."""
    start = round(1000 * one.start)
    return start, max(round(1000 * one.end), start + 1)


def document(video: Labelled) -> ElementTree.Element:
    """The EAF of one video."""
    root = ElementTree.Element("ANNOTATION_DOCUMENT", AUTHOR=AUTHOR, DATE="1970-01-01T00:00:00+00:00", FORMAT="3.0")
    root.attrib.update({"VERSION": "3.0", SCHEMA: "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"})
    header = ElementTree.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    address = video.file.absolute().as_uri() if video.file else f"./{video.media}"
    media = {"MEDIA_URL": address, "RELATIVE_MEDIA_URL": f"./{video.media}"}
    kind = MIME.get(Path(video.media).suffix.lower(), "video/mp4")
    ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", MIME_TYPE=kind, **media)
    order = ElementTree.SubElement(root, "TIME_ORDER")
    rows = tiers(video.segments)
    times = sorted({time for _, row in rows.values() for one in row for time in _ms(one)})
    slots = {time: f"ts{i + 1}" for i, time in enumerate(times)}
    for time, slot in slots.items():
        ElementTree.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(time))
    count = 0
    for name, (label, row) in rows.items():
        kinds = {"LINGUISTIC_TYPE_REF": "default-lt", "PARTICIPANT": label, "TIER_ID": name}
        tier = ElementTree.SubElement(root, "TIER", kinds)
        for one in row:
            count += 1
            first, last = (slots[time] for time in _ms(one))
            around = ElementTree.SubElement(tier, "ANNOTATION")
            ids = {"ANNOTATION_ID": f"a{count}", "TIME_SLOT_REF1": first, "TIME_SLOT_REF2": last}
            inner = ElementTree.SubElement(around, "ALIGNABLE_ANNOTATION", ids)
            ElementTree.SubElement(inner, "ANNOTATION_VALUE").text = "" if one.score is None else f"{one.score:.6g}"
    kinds = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"}
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", kinds)
    for name, text in CONSTRAINTS.items():
        ElementTree.SubElement(root, "CONSTRAINT", DESCRIPTION=text, STEREOTYPE=name)
    return root


def write(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>/<video>.eaf` for each video."""
    paths = []
    (folder / name).mkdir(exist_ok=True)
    for video in videos:
        tree = ElementTree.ElementTree(document(video))
        ElementTree.indent(tree)
        paths.append(folder / name / f"{video.id}.eaf")
        tree.write(paths[-1], encoding="UTF-8", xml_declaration=True)
    return paths


def read(path: Path, problems: Problems, fps: float | None = None) -> dict[str, Labelled]:
    """The time-aligned annotations of a file, or of all `.eaf` files of a folder.

    Of a file that we wrote, the class is the tier's; of others, an annotation's text, or the tier's name where there is
    no text. The video is that of the first media file, else of the name of the file itself.
    """
    found: dict[str, Labelled] = {}
    files = sorted(path.glob("*.eaf")) if path.is_dir() else [path]
    if not files:
        problems.add(path.name, "has no .eaf files")
    for file in files:
        try:
            text = regular(file).read_text(encoding="utf-8-sig")
            if "<!DOCTYPE" in text or "<!ENTITY" in text:
                raise ValueError("it declares a document type, which ELAN does not")
            root = ElementTree.fromstring(text.encode())
        except (OSError, ValueError, ElementTree.ParseError) as error:
            problems.add(file.name, f"cannot be read as a file of ELAN ({error})")
            continue
        media = [one.get("MEDIA_URL", "") for one in root.iter("MEDIA_DESCRIPTOR")]
        name = id_of(media[0]) if media and media[0] else file.stem
        segments = _segments(root, file.name, problems)
        add(found, checked(name, segments, file.name, problems), file.name, problems)
    return found


def _segments(root: ElementTree.Element, where: str, problems: Problems) -> list[Segment]:
    times = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    segments = []
    for tier in root.iter("TIER"):
        name = tier.get("TIER_ID", "")
        ours = tier.get("PARTICIPANT", "") if root.get("AUTHOR") == AUTHOR else ""
        for one in tier.iter("ALIGNABLE_ANNOTATION"):
            start, end = (times.get(one.get(key, "")) for key in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"))
            text = (one.findtext("ANNOTATION_VALUE") or "").strip()
            try:
                span = int(start or "") / 1000, int(end or "") / 1000
            except ValueError:
                problems.add(f"{where}: tier {name!r}", "has an annotation without times: align it in ELAN")
                continue
            segments.append(Segment(*span, ours or text or name))
    return segments
