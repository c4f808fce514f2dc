"""Highlight annotations as in YouTube Highlights: whether each clip of a video is a highlight of its activity.

`clips.json` beside the `gt.json` of a feature folder has
`{<video>: {"domain": class name, "match": [...], "clip_frames": [[first, last], ...]}}`: for each clip 1 (highlight), 0
(unclear) or -1 (no highlight), and its first and last frame.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from wsal_jax.formats.checks import FolderError, Problems, number, read_json
from wsal_jax.times import seconds_to_snippet
from wsal_jax.types import Meta, Scores


class Clips(NamedTuple):
    """The clips of one video."""

    domain: str
    label: int
    match: Int[np.ndarray, " k"]
    frames: Float[np.ndarray, "k 2"]


def read(root: Path, class_names: list[str]) -> dict[str, Clips]:
    """The clips by video id; empty if there is no `clips.json`.

    Raises:
      FolderError: the file is invalid; all problems are listed.
    """
    path, problems, clips = root / "clips.json", Problems(), {}
    if not path.exists():
        return {}
    content = read_json(path, problems)
    for id, video in content.items() if isinstance(content, dict) else ():
        where = f"{path.name}: {id!r}"
        fields = [video.get(key) for key in ("domain", "match", "clip_frames")] if isinstance(video, dict) else [None]
        if not isinstance(fields[0], str) or not all(isinstance(field, list) for field in fields[1:]):
            problems.add(where, 'must be {"domain": class name, "match": [...], "clip_frames": [[first, last], ...]}')
            continue
        domain, match, frames = fields
        frames = [[number(x) for x in pair] if isinstance(pair, list) else [] for pair in frames]
        if domain not in class_names:
            problems.add(where, f"the domain {domain!r} is no class of gt.json")
        elif len(match) != len(frames) or not all(x in (-1, 0, 1) for x in match):
            problems.add(where, f"{len(match)} values of match for {len(frames)} clips: must be -1, 0 or 1 for each")
        elif not all(len(pair) == 2 and np.isfinite(pair).all() for pair in frames):
            problems.add(where, "clip_frames must be [[first, last], ...], numbers")
        else:
            clips[id] = Clips(domain, class_names.index(domain), np.array(match, int), np.reshape(frames, (-1, 2)))
    if not problems and not isinstance(content, dict):
        problems.add(path.name, "must be {<video>: {...}}")
    if problems:
        raise FolderError(root, problems.lines())
    return clips


def clip_scores(scores: Scores, meta: Meta, clips: Clips) -> Float[np.ndarray, " k"]:
    """The class activation of the domain at the middle of each clip, interpolated linearly between snippets."""
    middle = seconds_to_snippet(clips.frames.mean(axis=1) / meta.fps, meta)
    return np.interp(middle, np.arange(len(scores.cas)), scores.cas[:, clips.label]).astype(np.float64)
