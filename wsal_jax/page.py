"""The report page: one HTML file that asks nothing of any server, from data and the files of `wsal_jax/web`.

The page's data is a dict; k classes of a video have curves, all times are seconds:

    {"title", "made": a line on when and by what, "classes": [name], "ious": [...], "iou": the one chosen at first,
     "runs": [{"name", "folder", "command": text or None, "config": [[option, value as text]],
               "results": as results.json or None, "analysis": `analyse.to_json` or None,
               "per_class": {class: AP} or None, "true_segments": {class: how many},
               "curves": [{"model", "metric", "steps": [...], "values": [[of each seed] of each step]}]}],
     "videos": [{"id", "length", "fps", "stride", "offset", "duration", "file": URL or None,
                 "strip": {"image": data URL of pictures side by side, "count", "width", "height"} or None,
                 "truth": [[start, end, class]] or None,
                 "runs": [{"found": [[start, end, class, score]], "scores": `curves` or None} or None, one a run]}],
     "elsewhere": [[video, file of the page that has it]]}

`wsal_jax.report_images` says what the data of a page of images are. Users' names are data: they reach the page as JSON,
and its script sets them as text.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from wsal_jax.types import Scores

MODULES = (
    "dom.js",
    "frame.js",
    "data.js",
    "player.js",
    "timeline.js",
    "detections.js",
    "video.js",
    "list.js",
    "cards.js",
    "errors.js",
    "results.js",
    "main.js",
)
"""Of a page of videos, in the order in which they need each other."""

IMAGE_MODULES = ("dom.js", "frame.js", "data.js", "cards.js", "errors.js", "results.js", "heat.js", "gallery.js")
"""Of a page of images."""

KINDS = {
    "videos": ("index.html", ("style.css",), MODULES),
    "images": ("images.html", ("style.css", "images.css"), IMAGE_MODULES),
}
"""The document, styles and modules of each kind of page."""

POLICY = (
    "default-src 'none'; img-src data:; media-src 'self' file: data: blob:; style-src 'sha256-{style}'; "
    "script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
)
"""What the browser lets the page do: run its own script and show its own pictures, and play videos beside it."""


def render(page: Mapping[str, Any], shown: Sequence[str] | None = None, kind: str = "videos") -> str:
    """The HTML of a page of a kind of `KINDS`; `shown` are its videos or images where they are JSON already."""
    there = resources.files("wsal_jax.web")  # an installed one has __pycache__ in it, too
    document, styles, modules = KINDS[kind]
    files = {name: (there / name).read_text(encoding="utf-8") for name in (document, *styles, *modules)}
    style, script = "\n".join(files[name] for name in styles), joined([files[name] for name in modules])
    policy = POLICY.format(style=_digest(style), script=_digest(script))
    data = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if shown is not None:
        data = f'{data[:-1]},"{kind}":[{",".join(shown)}]}}'
    parts = {
        "policy": policy,
        "title": html.escape(page["title"]),
        "style": style,
        # No tag ends or starts in data; the other two end lines in JavaScript, not in JSON.
        "data": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        "script": script,
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], files[document])
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair in a name


def joined(modules: Sequence[str]) -> str:
    """Modules as one: without imports, all in one scope. No name may be there twice, which a test makes sure of."""
    text = "\n".join(modules)
    text = re.sub(r"^import [^;]*;\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def curves(scores: Mapping[str, Scores], classes: Sequence[int]) -> dict[str, Any]:
    """What the models say of a video, of some of its classes, in bytes: 255 levels are more than a screen tells apart.

    Returns `{"classes", "models": [{"name", "video": [k], "attention": base64 of [n], "cas": base64 of [k n],
    "low": [k], "high": [k]}]}`, where a byte b of the CAS means low + b / 255 (high - low), and one of the attention
    b / 255. What is not finite counts as 0.
    """
    models = []
    for name, one in scores.items():
        cas = np.nan_to_num(np.asarray(one.cas, np.float64)[:, list(classes)], posinf=0, neginf=0).T
        low, high = cas.min(axis=1, initial=0), cas.max(axis=1, initial=0)
        level = (cas - low[:, None]) / np.where(high > low, high - low, 1)[:, None]
        models.append(
            {
                "name": name,
                "video": [_short(x) for x in np.asarray(one.video_score, np.float64)[list(classes)].tolist()],
                "attention": _bytes(np.clip(np.nan_to_num(np.asarray(one.attention, np.float64)), 0, 1)),
                "cas": _bytes(level),
                "low": low.tolist(),
                "high": high.tolist(),
            }
        )
    return {"classes": [int(c) for c in classes], "models": models}


def _bytes(values: np.ndarray) -> str:
    return base64.b64encode(np.round(255 * values).astype(np.uint8).tobytes()).decode()


def _short(x: float) -> float:
    return float(f"{x:.4g}") if np.isfinite(x) else 0.0


def numbers(value: Any) -> Any:
    """The same with None for what is not finite, which JSON does not have, and plain numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): numbers(x) for key, x in value.items()}
    if isinstance(value, np.ndarray):
        return numbers(value.tolist())
    if isinstance(value, list | tuple):
        return [numbers(x) for x in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.integer) else value
