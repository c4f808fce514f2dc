"""Real recordings, from files to actions in recordings that training never saw; about ten minutes on two cores.

    python tests/own_video.py [FOLDER] [--out OUT] [--steps 600] [--seeds 3]

FOLDER has recordings and their true segments, `gt.json` in ActivityNet's form. Its last two recordings, by name, are
for testing. The others are cut into windows of 16 s, every 8 s, those for testing into windows that do not overlap. Of
the true segments, training sees which classes a window has. The windows are files, and all that follows are commands
that a user calls: extract, main, predict on the two recordings as a whole, and score.

Nothing here was chosen by results: the split is by name, the extractor and all options but the steps are the defaults.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av

SECONDS, LEAST = 16, 3
"""Of a window, and of the last one of a recording."""
VISIBLE = 0.5
"""Seconds of a segment that a window must show to have it."""


def cut(source: Path, start: float, end: float, target: Path) -> None:
    """Writes what a recording shows from one time to another as a file of its own."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        made = output.add_stream("libx264", rate=stream.average_rate, options={"crf": "16", "preset": "veryfast"})
        made.width, made.height, made.pix_fmt = stream.width, stream.height, "yuv420p"
        made.codec_context.time_base = Fraction(1, 1000)
        container.seek(int(start * av.time_base))
        for frame in container.decode(stream):
            if frame.time >= end:
                break
            if frame.time >= start:
                frame.pts, frame.time_base = round(1000 * (frame.time - start)), Fraction(1, 1000)
                frame.pict_type = av.video.frame.PictureType.NONE
                output.mux(made.encode(frame))
        output.mux(made.encode(None))


def windows(duration: float, hop: float) -> list[tuple[float, float]]:
    """From and to, in seconds."""
    starts = [i * hop for i in range(int(duration / hop) + 1)]
    found = [(start, min(start + SECONDS, duration)) for start in starts if duration - start >= LEAST]
    return [one for i, one in enumerate(found) if i == 0 or one[1] > found[i - 1][1]]


def make(folder: Path, out: Path) -> None:
    """Cuts all recordings; writes `labels.csv` and `truth.json`, the true segments of the windows for testing."""
    database = json.loads((folder / "gt.json").read_text())["database"]
    (out / "windows").mkdir(parents=True)
    lines, truth, counts = ["video,split,labels"], {}, {"train": Counter(), "test": Counter()}
    for number, id in enumerate(sorted(database)):
        split = "test" if number >= len(database) - 2 else "train"
        for start, end in windows(database[id]["duration"], SECONDS if split == "test" else SECONDS / 2):
            there = []
            for one in database[id]["annotations"]:
                first, last = (min(max(time, start), end) - start for time in one["segment"])
                if last - first >= VISIBLE:
                    there.append({"segment": [round(first, 2), round(last, 2)], "label": one["label"]})
            labels = sorted({one["label"] for one in there})
            if not labels and split == "train":
                continue  # has nothing to learn from
            name = f"{id}_{start:03.0f}"
            cut(folder / f"{id}.mp4", start, end, out / "windows" / f"{name}.mp4")
            lines.append(f"{name},{split},{';'.join(labels)}")
            counts[split].update(labels if split == "train" else [one["label"] for one in there])
            if split == "test":
                truth[name] = {"annotations": there}
    (out / "labels.csv").write_text("\n".join(lines) + "\n")
    (out / "truth.json").write_text(json.dumps({"database": truth}, indent=1))
    splits = Counter(line.split(",")[1] for line in lines[1:])
    print(f"{splits['train']} training windows of {len(database) - 2} recordings, {splits['test']} test windows of 2")
    print(f"{'class':<12} {'training windows':>17} {'test segments':>14}")
    for name in sorted({*counts["train"], *counts["test"]}):
        print(f"{name:<12} {counts['train'][name]:>17} {counts['test'][name]:>14}")


def call(*arguments: object) -> None:
    """Runs a command of the package, and says so."""
    print(f"\n$ python -m {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared" / "data" / "videos" / "indoor_actions"
    parser.add_argument("folder", nargs="?", type=Path, default=shared)
    parser.add_argument("--out", type=Path, help="a new folder, to keep what is made")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary) / "own"
        make(args.folder, out)
        data, run = out / "data", out / "run"
        call("wsal_jax.extract", out / "windows", "--labels", out / "labels.csv", "--annotations", out / "truth.json",
             "--out", data)  # fmt: skip
        options = (f"--config.data.root={data}", f"--config.data.dir={out / 'built'}", f"--config.steps={args.steps}",
                   f"--config.checkpoint_every={args.steps}", f"--config.seeds={args.seeds}")  # fmt: skip
        call("wsal_jax.main", "--config=configs/maan.py:dataset=feature_folder", *options, f"--workdir={run}")
        # The recordings as they are, which were cut for testing only.
        database = json.loads((args.folder / "gt.json").read_text())["database"]
        whole = sorted(database)[-2:]
        call("wsal_jax.predict", *(args.folder / f"{id}.mp4" for id in whole), "--run", run, "--threshold", 0.1)
        results = {}
        for id in whole:
            results |= json.loads((run / "predictions" / id / "detections.json").read_text())["results"]
        (out / "detections.json").write_text(json.dumps({"version": "own", "results": results}))
        truth = {id: {**database[id], "subset": "test"} for id in whole}
        (out / "whole.json").write_text(json.dumps({"database": truth}))
        call("wsal_jax.score", "--detections", out / "detections.json", "--ground_truth", out / "whole.json")


if __name__ == "__main__":
    main()
