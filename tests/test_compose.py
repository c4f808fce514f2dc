"""Composed data: every snippet of made-up features says which clip of which recording it is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsal_jax import compose
from wsal_jax.data import feature_folder

SHARED = Path(__file__).parents[2] / "shared"
ACTIVITIES = "dog", "skiing"
BACKGROUND = 1000  # recordings from here on


def write_recordings(root: Path, per_activity: int = 6, backgrounds: int = 20) -> tuple[list[str], list[np.ndarray]]:
    """Highlights and backgrounds whose features are [recording, clip]; the activity and the match of each highlight."""
    rng, activities, matches = np.random.default_rng(0), [], []
    clips, splits = {}, {"train": [], "test": []}
    for split in splits:
        for _ in range(per_activity):
            for activity in ACTIVITIES:
                id, match = f"video{len(activities)}", rng.integers(-1, 2, 40)
                match[10:14] = 1  # every recording has a run
                save(root / "highlights/features" / split, id, len(activities), len(match))
                clips[id] = {"domain": activity, "match": match.tolist()}
                splits[split].append(id)
                activities.append(activity)
                matches.append(match)
    for split, ids in splits.items():
        (root / "highlights" / f"split_{split}.txt").write_text("\n".join(ids))
    (root / "highlights/clips.json").write_text(json.dumps(clips))
    for i in range(backgrounds):
        save(root / "backgrounds/features", f"b{i:02d}", BACKGROUND + i, 30)
    return activities, matches


def save(folder: Path, id: str, number: int, length: int) -> None:
    for sign, stream in ((1, "rgb"), (-1, "flow")):
        (folder / stream).mkdir(parents=True, exist_ok=True)
        rows = np.stack([np.full(length, number), np.arange(length)], axis=1)
        np.save(folder / stream / f"{id}.npy", (sign * rows).astype(np.float16))


def run(root: Path, out: Path, *options: str) -> dict:
    """Composes, and reads what was written: by video its gt.json and its snippets [t, (recording, clip)]."""
    highlights, backgrounds = f"--highlights={root / 'highlights'}", f"--backgrounds={root / 'backgrounds'}"
    compose.main([highlights, backgrounds, f"--out={out}", "--train=24", "--test=12", *options])
    videos = json.loads((out / "gt.json").read_text())["database"]
    for id, video in videos.items():
        folder = out / "features" / id.split("_")[1]
        video["snippets"] = np.load(folder / "rgb" / f"{id}.npy").astype(int)
        np.testing.assert_array_equal(np.load(folder / "flow" / f"{id}.npy"), -video["snippets"])
    return videos


@pytest.mark.parametrize("context", [0, 3])
def test_segments_are_runs_of_highlights_and_nothing_else_is(tmp_path, context):
    activities, matches = write_recordings(tmp_path)
    sides, pairs = [], 0
    for video in run(tmp_path, tmp_path / "out", f"--context={context}").values():
        snippets, outside = video["snippets"], np.full(len(video["snippets"]), True)
        assert video["duration"] == 2 * len(snippets) == 2 * video["num_features"]
        assert video["labels"] == sorted({x["label"] for x in video["annotations"]})
        pairs += len(video["labels"]) == 2
        for one in video["annotations"]:
            first, last = (int(x / 2) for x in one["segment"])
            [recording] = set(snippets[first:last, 0])
            clips = snippets[first:last, 1]
            assert activities[recording] == one["label"] and 2 <= len(clips) <= 12
            np.testing.assert_array_equal(np.diff(clips), 1)
            assert (matches[recording][clips] == 1).all()
            outside[first:last] = False
            before, after = first, last
            while snippets[before - 1, 0] == recording:
                before -= 1
            while snippets[after, 0] == recording:
                after += 1
            for beside in (slice(before, first), slice(last, after)):
                assert (matches[recording][snippets[beside, 1]] == -1).all()
                outside[beside] = False
            sides += [first - before, after - last]
        [background] = set(snippets[outside, 0])  # one recording, and in its order
        assert background >= BACKGROUND
        assert set(np.diff(snippets[outside, 1])) <= {1, -29}
    assert set(sides) == set(range(context + 1)) and 0 < pairs < 36 / 2


def test_splits_and_groups_share_no_recording(tmp_path):
    write_recordings(tmp_path)
    videos = run(tmp_path, tmp_path / "out", "--groups=3", "--context=2")
    recordings: dict[str, set[int]] = {}
    for id, video in videos.items():
        assert ("group" in video) == ("train" in id)
        recordings.setdefault(video.get("group", "test"), set()).update(video["snippets"][:, 0])
    assert sorted(recordings) == ["0", "1", "2", "test"]
    together = [x for of in recordings.values() for x in of]
    assert len(together) == len(set(together))


def test_what_is_written_can_be_read_and_is_that_of_the_seed(tmp_path):
    write_recordings(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path, tmp_path / name, f"--seed={seed}", "--groups=2")
    folder = feature_folder.check(tmp_path / "a")
    assert [len(folder.videos[split]) for split in ("train", "test")] == [24, 12]
    assert {video.group for video in folder.videos["train"]} == {"0", "1"}
    files = {name: (tmp_path / name / "gt.json").read_text() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_the_composer_that_made_the_data_of_the_tables(tmp_path):
    given = ["--train=12", "--test=6", "--seed=3", "--context=4"]
    there = SHARED / "data"
    subprocess.run(
        [sys.executable, SHARED / "tools/compose_untrimmed.py", f"--out={tmp_path / 'a'}", *given], check=True
    )
    folders = f"--highlights={there / 'youtube_highlights'}", f"--backgrounds={there / 'tvsum'}"
    compose.main([*folders, f"--out={tmp_path / 'b'}", *given])
    names = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(names) == 2 * 18 + 3
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def shorten(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize(
    "harm, options, problem",
    [
        (lambda root: (root / "highlights/clips.json").unlink(), [], "clips.json"),
        (lambda root: (root / "highlights/split_test.txt").write_text("nobody"), [], "nobody"),
        (lambda root: (root / "backgrounds/features/flow/b00.npy").write_bytes(b""), [], "b00.npy: "),
        (
            lambda root: shorten(root / "highlights/features/train/flow/video0.npy"),
            [],
            "must be numbers [T d], with T = 40",
        ),
        (lambda root: (root / "backgrounds").rename(root / "gone"), [], "nothing for the split train"),
        (lambda root: None, ["--groups=7"], "dog has 6 recordings in the training split"),
        (lambda root: (root / "out/gt.json").parent.mkdir() or (root / "out/gt.json").touch(), [], "not empty"),
    ],
)
def test_what_cannot_be_composed_is_told(tmp_path, harm, options, problem):
    write_recordings(tmp_path)
    harm(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: ") as error:
        run(tmp_path, tmp_path / "out", *options)
    assert problem in str(error.value)
