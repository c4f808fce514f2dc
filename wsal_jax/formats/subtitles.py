"""WebVTT chapters and SRT subtitles, one file a video: what players show at a time. Line breaks become spaces."""

from collections.abc import Sequence
from pathlib import Path

from wsal_jax.formats.labelled import Labelled, Segment, printable


def clock(seconds: float, point: str) -> str:
    """`hh:mm:ss.mmm`."""
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"


def cues(segments: Sequence[Segment], point: str, vtt: bool) -> list[str]:
    """The blocks of the file, numbered from 1."""
    blocks = []
    for i, one in enumerate(segments):
        text = printable(one.label)
        if vtt:
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        end = max(one.end, one.start + 0.001)
        blocks.append(f"{i + 1}\n{clock(one.start, point)} --> {clock(end, point)}\n{text}\n")
    return blocks


def write_webvtt(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>/<video>.vtt` for each video, for `<track kind="chapters">`."""
    return _write(videos, folder / name, "vtt", lambda of: ["WEBVTT\n", *cues(of, ".", True)])


def write_srt(videos: Sequence[Labelled], classes: Sequence[str], folder: Path, name: str) -> list[Path]:
    """Writes `<name>/<video>.srt` for each video."""
    return _write(videos, folder / name, "srt", lambda of: cues(of, ",", False))


def _write(videos, folder, ending, blocks):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{video.id}.{ending}" for video in videos]
    for path, video in zip(paths, videos):
        path.write_text("\n".join(blocks(video.segments)), encoding="utf-8")
    return paths
