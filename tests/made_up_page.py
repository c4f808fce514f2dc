"""A page of made-up data for tests of the browser: nothing in it was trained."""

import base64
import io

import numpy as np

from wsal_jax import page
from wsal_jax.types import Scores

HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASSES = ["Diving", "HighJump", "LongJump", HOSTILE, "PoleVault", "Shotput"]


def strip(count: int = 12, width: int = 96, height: int = 54) -> dict:
    """Pictures of a ball that moves."""
    from matplotlib.image import imsave

    picture = np.zeros((height, width * count, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        shade = np.stack([40 + x * 0.6, 60 + y * 0.9, 90 + x * 0.3 + y * 0.4], -1)
        ball = (x - 10 - i * (width - 20) / max(count - 1, 1)) ** 2 + (y - 30 + 12 * np.sin(i)) ** 2 < 60
        shade[ball] = (240, 200, 120)
        picture[:, i * width : (i + 1) * width] = shade
    file = io.BytesIO()
    imsave(file, picture, format="jpg")
    image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"image": image, "count": count, "width": width, "height": height}


def video(rng, id: str, length: int, runs: int, names: dict[str, bool]) -> dict:
    """One video: true segments, and detections near some of them and elsewhere."""
    fps, stride, offset = 25.0, 16.0, 8.0
    duration = length * stride / fps
    n = rng.integers(2, 5)
    starts = np.sort(rng.uniform(0, duration * 0.85, n))
    labels = rng.integers(0, len(CLASSES), 2)[rng.integers(0, 2, n)]
    truth = [[round(s, 2), round(min(s + rng.uniform(2, 9), duration), 2), int(c)] for s, c in zip(starts, labels)]
    of_runs = []
    for _ in range(runs):
        found = []
        for s, e, c in truth:
            if rng.uniform() < 0.75:
                move = rng.normal(0, 0.5, 2)
                found.append([max(s + move[0], 0), min(e + move[1], duration), c, rng.uniform(0.4, 0.95)])
        for _ in range(9):
            s = rng.uniform(0, duration - 4)
            found.append([s, s + rng.uniform(1, 4), int(rng.integers(0, len(CLASSES))), rng.uniform(0.01, 0.5)])
        found = [[round(s, 2), round(e, 2), int(c), round(p, 4)] for s, e, c, p in found]
        time = (offset + stride * np.arange(length)) / fps
        scores = {}
        for name in ("rgb", "flow", "fused"):
            cas = rng.normal(0, 0.4, (length, len(CLASSES)))
            attention = np.full(length, 0.15) + rng.uniform(0, 0.1, length)
            for s, e, c in truth:
                bump = 1 / (1 + np.exp(-3 * (time - s))) / (1 + np.exp(3 * (time - e)))
                cas[:, c] += 4 * bump
                attention = np.maximum(attention, 0.9 * bump)
            scores[name] = Scores(np.linspace(0.9, 0.1, len(CLASSES)), cas, attention, {})
        of_runs.append({"found": found, "scores": page.curves(scores, range(len(CLASSES)))})
    made = {"id": id, "length": length, "fps": fps, "stride": stride, "offset": offset, "duration": duration}
    return {**made, "file": None, "strip": None, "truth": truth, "runs": of_runs, **names}


def results(rng, shift: float) -> dict:
    """In the form of results.json, of three seeds."""
    rows = {}
    for row, level in (("rgb", 30), ("flow", 34), ("fused", 40), ("whole video", 9), ("shuffled", 4)):
        rows[row] = {}
        for i in range(1, 10):
            x = np.maximum(level * (1.35 - i / 7) + shift + rng.normal(0, 1, 3), 0.1)
            rows[row][f"{i / 10:g}"] = {"mean": x.mean(), "std": x.std(ddof=1), "values": x.tolist()}
        x = np.array([cell["mean"] for cell in rows[row].values()])
        rows[row]["average"] = {"mean": x.mean(), "std": 0.6, "values": [x.mean()] * 3}
    attention = {name: {c: {"mean": 50.0, "std": 1.0, "values": [50.0]} for c in ("hit", "extra")} for name in ("rgb",)}
    about = {"protocol": "activitynet", "dataset": "made up", "supervision": "video labels", "videos": 8}
    return {**about, "classes": 6, "instances": 25, "seeds": [0, 1, 2], "rows": rows, "attention": attention}


def analysis(rng) -> dict:
    """In the form of `analyse.to_json`."""
    types = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
    buckets = {"buckets": ["XS", "S", "M", "L", "XL"], "bounds": [0.2, 0.4, 0.6, 0.8], "count": [9, 7, 5, 3, 1]}
    return {
        "iou": 0.5,
        "num_detections": 96,
        "num_true": 25,
        "average_instances": 4.2,
        "mean_ap": 0.41,
        "mean_ap_n": 0.4,
        "missed": 0.2,
        "profile": {name: rng.integers(1, 12, 10).tolist() for name in types},
        "mean_ap_without": dict(zip(types[1:], (0.42, 0.43, 0.5, 0.44, 0.52))),
        "mean_ap_n_without": dict(zip(types[1:], (0.41, 0.42, 0.49, 0.43, 0.51))),
        "characteristics": {
            "coverage": {**buckets, "mean_ap_n": [0.2, 0.4, 0.5, 0.45, None], "missed": [0.4, 0.2, 0.1, 0.1, None]}
        },
    }


def run(rng, name: str, shift: float, steps: int) -> dict:
    """A run with training curves of three seeds."""
    at = list(range(100, steps + 1, 100))
    curves = [
        {
            "model": model,
            "metric": metric,
            "steps": at,
            "values": [(scale * (np.exp(-s / 700) + rng.normal(0, 0.03, 3))).tolist() for s in at],
        }
        for model in ("rgb", "flow")
        for metric, scale in (("main/loss", 2.0), ("main/sparsity", 0.02))
    ]
    config = [["method.name", "maan"], ["steps", str(steps)], ["optimizer.learning_rate", "0.0005"]]
    return {
        "name": name,
        "folder": f"runs/{name}",
        "command": f"python -m wsal_jax.main --config=maan --config.steps={steps} --workdir=runs/{name}",
        "config": config,
        "results": results(rng, shift),
        "analysis": analysis(rng),
        "per_class": {c: float(rng.uniform(0.1, 0.8)) for c in CLASSES},
        "true_segments": dict.fromkeys(CLASSES, 4),
        "curves": curves,
    }


def page_of(videos: int = 8, runs: int = 1, seed: int = 0) -> dict:
    """Data of a page."""
    rng = np.random.default_rng(seed)
    names = ["maan-3f9c21aa", "star-77d0be14", "iwo-1"][:runs]
    of_videos = [
        video(rng, f"video_test_{4 + 37 * i:07d}", int(rng.integers(60, 240)), runs, {}) for i in range(videos)
    ]
    return page.numbers(
        {
            "title": " against ".join(names),
            "made": "Written by wsal_jax 0.1.0 for a test.",
            "classes": CLASSES,
            "ious": [0.1, 0.3, 0.5, 0.7],
            "iou": 0.5,
            "runs": [run(rng, name, 2.0 * i, 2000 + 500 * i) for i, name in enumerate(names)],
            "videos": of_videos,
            "elsewhere": [],
        }
    )


def image(rng, i: int, runs: int) -> dict:
    """An image of 80 x 60 with a true box, and a map that grows from its first to its last location."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), format="jpg")
    picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    grows = base64.b64encode(np.linspace(0, 255, 12).astype(np.uint8).tobytes()).decode()
    of_runs = []
    for r in range(runs):
        found, verdict = [(0, "right"), (0, "box"), (3, "class")][(i + (i % 5) * r) % 3]
        of_runs.append(
            {
                "found": [[0, 0, 40, 40, found, 0.834 - i / 100]],
                "top": [found, 0.9],
                "verdict": verdict,
                "grid": [3, 4],
                "maps": [[found, grows]],
            }
        )
    made = {"id": f"test/{i}.jpg", "width": 80, "height": 60, "picture": picture, "labels": [0]}
    return {**made, "truth": [[20, 10, 60, 50, 0]], "runs": of_runs}


def page_of_images(images: int = 6, runs: int = 1, seed: int = 0) -> dict:
    """Data of a page of images, of which one is gone, and one has no truth."""
    rng = np.random.default_rng(seed)
    made = page_of(videos=0, runs=runs, seed=seed)
    for run in made["runs"]:
        rows = {name: run["results"]["rows"][name] for name in ("rgb", "shuffled")}
        of_image = {"rgb": rows["rgb"], "whole image": rows["rgb"], "shuffled": rows["shuffled"]}
        about = {"dataset": "made up", "supervision": "image labels", "images": 6, "boxes": 6}
        about |= {
            "threshold": "0.2 of the maximum",
            "small": "below 0.5 of the image",
            "classes": 6,
            "seeds": [0, 1, 2],
        }
        run.update(results={**about, "rows": of_image, "attention": {}}, analysis=None, per_class=None)
    shown = [image(rng, i, runs) for i in range(images)]
    shown[1]["picture"] = None
    shown[5].update(labels=[], truth=None)
    for run in shown[5]["runs"]:
        run["verdict"] = None
    return page.numbers({**made, "iou": 0.5, "images": shown})
