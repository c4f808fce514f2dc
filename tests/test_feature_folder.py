"""A tiny valid folder is read back unchanged; every way of breaking it is reported before the build."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import stored
from tests.stored import tree
from wsal_jax.data import examples, pipeline
from wsal_jax.data.feature_folder import FolderError, check
from wsal_jax.types import InputError

LENGTHS = {"train": {"-run.1": 6, "jump Ü": 4}, "test": {"both": 9}}
DIMS = {"rgb": 3, "flow": 3}
SHARED = Path(__file__).parents[2] / "shared"


def features(video: str, stream: str) -> np.ndarray:
    length = {**LENGTHS["train"], **LENGTHS["test"]}[video]
    return np.random.default_rng(len(video + stream)).standard_normal((length, DIMS[stream])).astype(np.float32)


def ground_truth() -> dict:
    """2 frames per second and a snippet every 4 frames: snippet i is seconds 2 i to 2 i + 2."""
    times = {"fps": 2.0, "feature_stride_frames": 4}
    return {
        "database": {
            "-run.1": {
                "subset": "validation",
                "duration": "12.0",
                **times,
                "num_features": 6,
                "labels": ["run"],
                "annotations": [
                    {"segment": ["2.5", "4"], "label": "run"},
                    {"segment": [6, 13.5], "label": "run"},
                ],
            },
            "jump Ü": {**times, "feature_offset_frames": 0, "labels": ["jump"]},
            "both": {
                **times,
                "annotations": [{"segment": [0, 1], "label": "run"}, {"segment": [1, 2], "label": "jump"}],
            },
        }
    }


def write_gt(root: Path, gt: dict):
    (root / "gt.json").write_text(json.dumps(gt))


def save(path: Path, array: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=array.dtype == object)


def write(root: Path, layout: str = "rgb+flow") -> Path:
    for split, lengths in LENGTHS.items():
        for video in lengths:
            if layout == "joint":
                both = np.concatenate([features(video, stream) for stream in DIMS], axis=1)
                save(root / f"features/{split}/{video}.npy", both)
            else:
                for stream in layout.split("+"):
                    save(root / f"features/{split}/{stream}/{video}.npy", features(video, stream))
    write_gt(root, ground_truth())
    return root


def builder(root: Path, data_dir: Path) -> tfds.core.DatasetBuilder:
    return tfds.builder("feature_folder", root=root, data_dir=data_dir, file_format="array_record")


def build(root: Path, data_dir: Path) -> tuple[tfds.core.DatasetBuilder, dict[str, dict]]:
    """The builder and everything it has, by id."""
    made = builder(root, data_dir)
    made.download_and_prepare()
    return made, stored.by_id(made)


def problems(root: Path) -> str:
    with pytest.raises(FolderError) as caught:
        check(root)
    return "\n".join(caught.value.problems)


def test_ambiguous_segments_are_no_class(tmp_path):
    root, gt = write(tmp_path / "data"), ground_truth()
    gt["database"]["both"]["annotations"].append({"segment": [3, "4.5"], "label": "Ambiguous"})
    gt["database"]["jump Ü"]["annotations"] = [{"segment": [1, 2], "label": "Ambiguous"}]
    write_gt(root, gt)
    made, videos = build(root, tmp_path / "built")
    assert examples.class_names(made.info) == ["jump", "run"]
    np.testing.assert_array_equal(videos["both"]["ambiguous"], [[3, 4.5]])
    np.testing.assert_array_equal(videos["both"]["counts"], [1, 1])
    assert videos["-run.1"]["ambiguous"].shape == (0, 2)
    np.testing.assert_array_equal(videos["jump Ü"]["counts"], [-1, -1])  # the class occurs, with an unknown count


@pytest.mark.parametrize("layout", ["rgb+flow", "rgb", "flow", "joint"])
def test_round_trip(tmp_path, layout):
    made, videos = build(write(tmp_path / "data", layout), tmp_path / "built")
    assert examples.class_names(made.info) == ["jump", "run"]
    for split, lengths in LENGTHS.items():
        assert {x["id"].decode() for x in made.as_data_source(split=split)} == set(lengths)
        for video in lengths:
            kept = videos[video]["features"]
            assert set(kept) == set(DIMS if layout == "joint" else layout.split("+"))
            for stream, values in kept.items():
                assert values.dtype == np.float32
                np.testing.assert_array_equal(values, features(video, stream))

    run, jump, both = videos["-run.1"], videos["jump Ü"], videos["both"]
    np.testing.assert_array_equal(run["segments"], [[2.5, 4], [6, 12]])  # 1.5 s over the end: clipped
    np.testing.assert_array_equal(run["segment_labels"], [1, 1])
    np.testing.assert_array_equal(run["labels"], [0, 1])
    np.testing.assert_array_equal(run["counts"], [0, 2])
    assert [run[name] for name in ("fps", "stride", "offset", "duration")] == [2, 4, 2, 12]

    assert jump["segments"].shape == (0, 2) and len(jump["segment_labels"]) == 0
    np.testing.assert_array_equal(jump["labels"], [1, 0])
    np.testing.assert_array_equal(jump["counts"], [-1, -1])
    assert [jump["offset"], jump["duration"]] == [0, 7]  # the centre of the last snippet is 6 s

    np.testing.assert_array_equal(both["segment_labels"], [1, 0])
    np.testing.assert_array_equal(both["counts"], [1, 1])
    assert [both["offset"], both["duration"]] == [2, 18]


@pytest.mark.parametrize("dtype", [np.float16, ">f2", np.float64, ">f4"])
def test_floats_are_stored_as_they_came_or_as_float32(tmp_path, dtype):
    root = write(tmp_path / "data", "rgb")
    for path in (root / "features").rglob("*.npy"):
        save(path, np.asfortranarray(np.load(path).astype(dtype)))
    given = np.load(root / "features/test/rgb/both.npy")
    made, videos = build(root, tmp_path / "built")
    kept = videos["both"]["features"]["rgb"]
    assert kept.dtype == np.float16 if "2" in np.dtype(dtype).str else kept.dtype == np.float32
    np.testing.assert_array_equal(kept, given.astype(np.float32))
    read = pipeline.read(pipeline.load(made, "test"), 0, ["rgb"])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, given.astype(np.float32))


def test_a_stream_of_several_types_is_stored_as_float32(tmp_path):
    root = write(tmp_path / "data")
    given = features("both", "rgb").astype(np.float16)
    save(root / "features/test/rgb/both.npy", given)
    for path in (root / "features").rglob("flow/*.npy"):
        save(path, np.load(path).astype(np.float16))
    kept = build(root, tmp_path / "built")[1]
    assert {x.dtype for video in kept.values() for x in (video["features"]["rgb"],)} == {np.dtype(np.float32)}
    assert {x.dtype for video in kept.values() for x in (video["features"]["flow"],)} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(kept["both"]["features"]["rgb"], given)


def test_defaults_beside_database_and_order_of_classes(tmp_path):
    root, gt = write(tmp_path), ground_truth()
    for video in gt["database"].values():
        del video["fps"], video["feature_stride_frames"]
    gt["database"]["both"] |= {"fps": "4"}
    gt["database"]["-run.1"] |= {"fps": None}
    times = {"fps": 2, "feature_stride_frames": "4", "feature_offset_frames": 1, "duration": "unused"}
    write_gt(root, gt | times | {"classes": ["run", "jump"]})
    folder = check(root)
    assert folder.classes == ["run", "jump"] and {x: y.dim for x, y in folder.streams.items()} == DIMS
    entries = {entry.id: entry for entries in folder.videos.values() for entry in entries}
    assert [(entries[id].fps, entries[id].stride, entries[id].offset) for id in ("-run.1", "jump Ü", "both")] == [
        (2, 4, 1),
        (2, 4, 0),
        (4, 4, 1),
    ]


def test_split_files_choose(tmp_path):
    root = write(tmp_path)
    save(root / "features/train/rgb/unused.npy", np.zeros((2, 2, 2)))  # without an entry, and broken
    gt = ground_truth()
    gt["database"]["elsewhere"] = {}
    write_gt(root, gt)
    (root / "split_train.txt").write_text("jump Ü\r\n\n-run.1\n", encoding="utf-8")
    (root / "split_test.txt").write_text("both\n")
    ids = {split: [entry.id for entry in entries] for split, entries in check(root).videos.items()}
    assert ids == {"train": ["jump Ü", "-run.1"], "test": ["both"]}


def test_test_video_without_annotations(tmp_path):
    root, gt = write(tmp_path / "data"), ground_truth()
    del gt["database"]["both"]["annotations"]
    write_gt(root, gt)
    both = build(root, tmp_path / "built")[1]["both"]
    assert both["segments"].shape == (0, 2)
    np.testing.assert_array_equal(both["labels"], [0, 0])
    np.testing.assert_array_equal(both["counts"], [-1, -1])


def test_class_that_is_only_listed_or_only_tested(tmp_path):
    root, gt = write(tmp_path), ground_truth()
    gt["database"]["both"]["annotations"][0]["label"] = "swim"
    write_gt(root, gt | {"classes": ["swim", "run", "jump", "fly"]})
    assert check(root).classes == ["swim", "run", "jump", "fly"]
    write_gt(root, gt)
    assert "'swim': no training video has it" in problems(root)


def test_links_are_followed(tmp_path):
    root = write(tmp_path / "data")
    shutil.move(root / "features/train", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", root / "features/train")
    shutil.move(root / "features/test/rgb/both.npy", tmp_path / "rgb.npy")
    os.symlink(tmp_path / "rgb.npy", root / "features/test/rgb/both.npy")
    assert [len(entries) for entries in check(root).videos.values()] == [2, 1]


RUN, FLOW = "features/train/rgb/-run.1.npy", "features/train/flow/-run.1.npy"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def rewrite(root: Path, name: str, change):
    save(root / name, change(np.load(root / name)))


def nan(features: np.ndarray) -> np.ndarray:
    features[4, 1] = np.nan
    return features


def array(name: str, change):
    return lambda root: rewrite(root, name, change)


def content(name: str, content: str | bytes):
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def replace(make):
    """Replaces a feature file by what `make(path)` creates."""

    def corrupt(root: Path):
        (root / RUN).unlink()
        make(root / RUN)

    return corrupt


def odd_joint(root: Path):
    shutil.rmtree(root / "features")
    write(root, "joint")
    rewrite(root, "features/test/both.npy", lambda x: x[:, :5])


def npz(path: Path):
    with path.open("wb") as file:
        np.savez(file, np.zeros((6, 3)))


TWICE = json.dumps(ground_truth()).replace('"both":', '"jump \\u00dc": {}, "both":')

BAD_FILES = {
    "no gt": (lambda root: (root / "gt.json").unlink(), ["gt.json: is missing: write", "database"]),
    "gt not JSON": (content("gt.json", '{"database": '), ["gt.json: cannot be read as JSON"]),
    "gt too deep": (content("gt.json", "[" * 200_000), ["gt.json: cannot be read as JSON"]),
    "gt not UTF-8": (content("gt.json", b"\xff"), ["gt.json: cannot be read as JSON"]),
    "gt not an object": (content("gt.json", "[]"), ['gt.json: must be {"database"']),
    "duplicate key": (content("gt.json", TWICE), ["gt.json: 'jump Ü': is there more than once"]),
    "no features": (
        lambda root: shutil.rmtree(root / "features"),
        ["features/train: no features found: looked for features/train/rgb/*.npy", "features/test: no features found"],
    ),
    "no test features": (lambda root: shutil.rmtree(root / "features/test"), ["features/test: no features found"]),
    "split without features": (
        content("split_train.txt", "-run.1\njump Ü\nboth\n"),
        ["split_train.txt: 'both': has no features in features/train (but in features/test)"],
    ),
    "split twice": (content("split_test.txt", "both\nboth\n"), ["split_test.txt: 'both': is there more than once"]),
    "split empty": (content("split_test.txt", "\n"), ["split_test.txt: names no video"]),
    "split not text": (content("split_test.txt", b"\xff\xfe\n"), ["split_test.txt: cannot be read"]),
    "in both splits": (
        lambda root: shutil.copytree(root / "features/train", root / "features/test", dirs_exist_ok=True),
        ["'-run.1', 'jump Ü': is in both splits"],
    ),
    "id of a file": (
        lambda root: (root / RUN).rename(root / "features/train/rgb/a\\b.npy"),
        ["features/train: 'a\\\\b': is no video id", "'-run.1': has no rgb features"],
    ),
    "raw pickle": (
        replace(lambda path: path.write_bytes(pickle.dumps(Payload(path.parents[3] / "executed")))),
        [f"{RUN}: is not an .npy file of numbers", "pickles are never loaded"],
    ),
    "pickle in npy": (
        replace(lambda path: save(path, np.array([Payload(path.parents[3] / "executed")], object))),
        [f"{RUN}: is not an .npy file of numbers", "pickles are never loaded"],
    ),
    "npz": (replace(npz), [f"{RUN}: is not an .npy file"]),
    "empty file": (content(RUN, ""), [f"{RUN}: is not an .npy file"]),
    "bad header": (content(RUN, b"\x93NUMPY\x01\x00\x09\x00{'a': ((("), [f"{RUN}: is not an .npy file"]),
    "truncated": (
        lambda root: os.truncate(root / RUN, (root / RUN).stat().st_size - 1),
        [f"{RUN}: is not an .npy file of numbers, or damaged"],
    ),
    "broken link": (replace(lambda path: path.symlink_to("nowhere")), [f"{RUN}: is not a file (or a broken link)"]),
    "folder": (replace(Path.mkdir), [f"{RUN}: is not a file"]),
    "pipe": (replace(os.mkfifo), [f"{RUN}: is not a file"]),
    "integers": (array(RUN, lambda x: x.astype(np.int32)), [f"{RUN}: dtype is int32"]),
    "complex": (array(RUN, lambda x: x.astype(np.complex64)), [f"{RUN}: dtype is complex64"]),
    "crops": (array(RUN, lambda x: x[None]), [f"{RUN}: shape is (1, 6, 3): must be [n d]"]),
    "no snippet": (array(RUN, lambda x: x[:0]), [f"{RUN}: shape is (0, 3)"]),
    "no dimension": (array(RUN, lambda x: x[:, :0]), [f"{RUN}: shape is (6, 0)"]),
    "dimension": (
        array("features/test/flow/both.npy", lambda x: x[:, :2]),
        ["features/test: 'both': flow features have 2 dimensions, others 3"],
    ),
    "odd joint": (odd_joint, ["features/test/both.npy: joint features have 5 dimensions"]),
    "joint and streams": (
        lambda root: save(root / "features/test/both.npy", np.zeros((9, 6))),
        ["features/test/rgb/both.npy", "features/test/both.npy: the video has a joint file and streams"],
    ),
    "NaN": (array(RUN, nan), [f"{RUN}: NaN or infinite (as float32), first in snippet 4"]),
    "float32 overflow": (array(RUN, lambda x: x * np.float64(1e300)), [f"{RUN}: NaN or infinite (as float32)"]),
    "no flow": (lambda root: (root / FLOW).unlink(), ["'-run.1': has no flow features, but other videos do"]),
    "n differs": (
        array(FLOW, lambda x: x[:-1]),
        [f"{RUN} + {FLOW}: number of snippets differs, 6 in rgb and 5 in flow"],
    ),
    **{
        f"id {id!r}": (content("split_test.txt", f"both\n{id}\n"), [f"split_test.txt: {id!r}: is no video id"])
        for id in ["..", "../x", "/x", "a\\b", "a\0b"]
    },
}


def video(name: str, remove: str = "", **changes):
    """Changes a video of gt.json."""

    def corrupt(gt: dict):
        gt["database"][name] |= changes
        gt["database"][name].pop(remove, None)

    return corrupt


def segment(*times):
    return video("both", annotations=[{"segment": list(times), "label": "run"}], duration=18)


BAD_GT = {
    "no database": (lambda gt: gt.pop("database"), ['gt.json: must be {"database"']),
    "entry no object": (lambda gt: gt["database"].update(both=3), ["gt.json: 'both': must be an object"]),
    "no features": (
        lambda gt: gt["database"].update(more={}),
        ["gt.json: 'more': has no features in features/train or"],
    ),
    "no entry": (lambda gt: gt["database"].pop("both"), ["'both': has features, but no entry in the database"]),
    "num_features": (video("-run.1", num_features=7), ['"num_features" is 7, but the files have 6 snippets']),
    "labels disagree": (
        video("-run.1", labels=["jump"]),
        ["\"labels\" are ['jump'], those of the annotations ['run']"],
    ),
    "labels no list": (video("jump Ü", labels="jump"), ["\"labels\" is 'jump': must be a list of class names"]),
    "label of two lines": (video("jump Ü", labels=["ju\nmp"]), ["must be a list of class names"]),
    "label not in classes": (
        lambda gt: gt.update(classes=["run"]),
        ["label 'jump': it is not in \"classes\" of gt.json"],
    ),
    "classes twice": (
        lambda gt: gt.update(classes=["run", "jump", "run"]),
        ["must be a list of different class names"],
    ),
    "only tested": (video("both", "annotations", labels=["swim"]), ["'both': label 'swim': no training video has it"]),
    "unlabelled training": (video("jump Ü", "labels"), ["gt.json: 'jump Ü': is a training video without any label"]),
    "annotation": (video("both", annotations=[{"segment": [1, 2]}]), ["annotation {'segment': [1, 2]} must be"]),
    "annotations no list": (video("both", annotations="x"), ["annotation 'x' must be"]),
    "three times": (segment(1, 2, 3), ["annotation {", 'must be {"segment": [start, end]']),
    "time no number": (segment("1", "2 s"), ["segment ['1', '2 s'] is not two numbers"]),
    "time true": (segment(0, True), ["segment [0, True] is not two numbers"]),
    "time null": (segment(None, 1), ["segment [None, 1] is not two numbers"]),
    "time NaN": (segment(0, float("nan")), ["segment [0, nan] is not two numbers"]),
    "time infinite": (segment(0, float("inf")), ["segment [0, inf] is not two numbers"]),
    "time huge": (segment(0, 10**400), ["is not two numbers"]),
    "end before start": (segment(3, 2), ["segment [3, 2] must end after it starts"]),
    "no length": (segment(3, 3), ["segment [3, 3] must end after it starts"]),
    "before 0": (segment(-0.5, 2), ["segment [-0.5, 2] starts before 0"]),
    "beyond": (segment(3, 20.01), ["gt.json: 'both': segment [3, 20.01] goes beyond the video (18.00 s)"]),
    "all beyond": (segment(18, 19), ["segment [18, 19] goes beyond the video"]),
    "no fps": (video("both", "fps"), ["gt.json: 'both': \"fps\" is missing", 'beside "database"']),
    "no stride": (video("both", "feature_stride_frames"), ['"feature_stride_frames" is missing', 'beside "database"']),
    "fps 0": (video("both", fps=0), ["gt.json: 'both': \"fps\" is 0: must be a positive number"]),
    "fps no number": (video("both", fps="fast"), ["\"fps\" is 'fast': must be a positive number"]),
    "stride negative": (video("both", feature_stride_frames=-4), ['"feature_stride_frames" is -4: must be a positive']),
    "offset negative": (video("both", feature_offset_frames=-1), ['"feature_offset_frames" is -1: must be a non-neg']),
    "duration": (video("both", duration="0"), ["\"duration\" is '0': must be a positive number"]),
    "features beyond": (video("both", duration=14.9), ["features go on to 18.00 s, but the video has 14.90 s"]),
    **{
        f"id {id!r}": (lambda gt, id=id: gt["database"].update({id: {}}), [f"gt.json: {id!r}: is no video id"])
        for id in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", " a", "\ud800"]
    },
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path, name):
    corrupt, messages = BAD_FILES[name]
    corrupt(write(tmp_path))
    found = problems(tmp_path)
    for message in messages:
        assert message in found
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", BAD_GT)
def test_bad_ground_truth_is_named(tmp_path, name):
    corrupt, messages = BAD_GT[name]
    gt = ground_truth()
    corrupt(gt)
    write_gt(write(tmp_path), gt)
    found = problems(tmp_path)
    for message in messages:
        assert message in found


def test_payload_works(tmp_path):
    """`pickle` does execute the payload above."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_no_folder(tmp_path):
    assert "no such folder" in problems(tmp_path / "nowhere")


def test_everything_is_said_at_once(tmp_path):
    root, gt = write(tmp_path / "data"), ground_truth()
    rewrite(root, RUN, nan)
    del gt["database"]["both"]
    for one in gt["database"].values():
        del one["fps"]
    gt["database"] |= {f"more{i}": {} for i in range(5)} | {f"../{i}": {} for i in range(3)}
    gt["database"]["jump Ü"]["annotations"] = [{"segment": [2, 1], "label": "jump"}] * 2 + [
        {"segment": [i + 2, i + 1], "label": "jump"} for i in range(40)
    ]
    write_gt(root, gt)
    with pytest.raises(FolderError, match="cannot use") as caught:
        builder(root, tmp_path / "built")
    found = "\n".join(caught.value.problems)
    for message in [
        "NaN",
        "'both': has features",
        "'more2' and 2 more: has no",
        "'jump Ü': \"fps\" is missing",
        "'../2'",
    ]:
        assert message in found
    assert len(caught.value.problems) > 40 and str(caught.value).count("\n- ") == 21
    assert f"and {len(caught.value.problems) - 20} more" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_all_features_that_end_late_are_listed(tmp_path):
    root, gt = write(tmp_path), ground_truth()
    for i in range(6):
        save(root / f"features/test/rgb/late{i}.npy", np.ones((9, 3)))
        save(root / f"features/test/flow/late{i}.npy", np.ones((9, 3)))
        gt["database"][f"late{i}"] = gt["database"]["both"] | {"duration": 10.0 + i}
    write_gt(root, gt)
    (line,) = problems(root).splitlines()
    assert all(f"'late{i}' (features go on to 18.00 s, but the video has {10 + i:.2f} s)" in line for i in range(5))
    assert "'late5'" not in line  # 18 s, 15 s and one and a half snippets of 2 s


def test_built_twice_is_identical(tmp_path):
    """Even in another process, with other hashes and threads."""
    root = write(tmp_path / "data")
    build(root, tmp_path / "one")
    code = "import sys\nfrom tests.test_feature_folder import *\nbuild(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, root, tmp_path / "two"], check=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert any("array_record" in name for name in tree(tmp_path / "one"))


def test_changed_data_are_built_anew(tmp_path):
    root, data_dir = write(tmp_path / "data"), tmp_path / "built"
    first, _ = build(root, data_dir)
    assert builder(root, data_dir).data_dir == first.data_dir

    rewrite(root, "features/test/rgb/both.npy", lambda x: x + 1)
    second, videos = build(root, data_dir)
    np.testing.assert_array_equal(videos["both"]["features"]["rgb"], features("both", "rgb") + 1)

    gt = ground_truth()
    gt["database"]["jump Ü"]["labels"] = ["hop", "jump"]
    write_gt(root, gt)
    third, videos = build(root, data_dir)
    np.testing.assert_array_equal(videos["jump Ü"]["labels"], [1, 1, 0])

    (root / "split_train.txt").write_text("-run.1\njump Ü\n", encoding="utf-8")
    assert len({first.data_dir, second.data_dir, third.data_dir, builder(root, data_dir).data_dir}) == 4


def test_failed_build_leaves_earlier_one(tmp_path):
    root, data_dir = write(tmp_path / "data"), tmp_path / "built"
    first, _ = build(root, data_dir)
    stats = {path: path.stat() for path in (root / "features/train/rgb").iterdir()}
    before = tree(data_dir)

    rewrite(root, "features/train/rgb/jump Ü.npy", lambda x: x + 1)
    late = builder(root, data_dir)
    rewrite(root, RUN, nan)  # after the check, before the build
    with pytest.raises(FolderError, match="NaN"):
        late.download_and_prepare()
    with pytest.raises(FolderError, match="NaN"):
        builder(root, data_dir)

    rewrite(root, RUN, np.nan_to_num)
    late = builder(root, data_dir)
    rewrite(root, RUN, lambda x: x + 1)
    os.utime(root / RUN, (1, 1))  # the clock of the file system may not have moved
    with pytest.raises(FolderError, match="changed since it was checked"):
        late.download_and_prepare()
    assert tree(data_dir) == before

    for path, stat in stats.items():  # the data as they were
        save(path, features(path.stem, "rgb"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert builder(root, data_dir).data_dir == first.data_dir
    kept = stored.by_id(builder(root, data_dir))["-run.1"]["features"]["rgb"]
    np.testing.assert_array_equal(kept, features("-run.1", "rgb"))


def test_other_features_of_the_same_size_and_time_are_noticed(tmp_path):
    root = write(tmp_path / "data")
    first, _ = build(root, tmp_path / "built")
    stat = (root / RUN).stat()
    rewrite(root, RUN, lambda x: x + 1)
    os.utime(root / RUN, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second, videos = build(root, tmp_path / "built")
    assert first.data_dir != second.data_dir
    np.testing.assert_array_equal(videos["-run.1"]["features"]["rgb"], features("-run.1", "rgb") + 1)


def test_a_run_never_mixes_two_builds(tmp_path):
    """It goes on with its own while changed data are built. Where its folder was removed and built anew, it ends.

    In the second case the features have the same name, size, time and samples, so that the folder has the same name.
    """
    root = write(tmp_path / "data")
    values = np.tile(np.float32([1, 2, 3]), (500, 1))
    gt = ground_truth()
    gt["database"]["-run.1"] |= {"duration": 1000.0, "num_features": 500}
    write_gt(root, gt)
    save(root / RUN, values)
    save(root / FLOW, np.ones((500, DIMS["flow"]), np.float32))
    first, _ = build(root, tmp_path / "built")
    data = pipeline.load(first, "train")
    video = [meta.id for meta in data.metas].index("-run.1")
    read = lambda: pipeline.read(data, video, ["rgb"], np.arange(0, 500, 50))  # noqa: E731
    stat = (root / RUN).stat()
    rewrite(root, RUN, lambda x: x + 1)
    second, _ = build(root, tmp_path / "built")
    assert second.data_dir != first.data_dir
    np.testing.assert_array_equal(read(), values[::50])

    values[50] = 7  # no place that the fingerprint samples
    save(root / RUN, values)
    os.utime(root / RUN, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.rmtree(first.data_dir)
    with pytest.raises(InputError, match="No such file"):
        read()
    again, _ = build(root, tmp_path / "built")
    assert again.data_dir == first.data_dir
    with pytest.raises(InputError, match="was built anew while this run read it"):
        read()


def test_reopened_builder_knows_all_and_pickles(tmp_path, monkeypatch):
    root = write(tmp_path / "data")
    _, videos = build(root, tmp_path / "built")
    monkeypatch.setattr(np.lib.format, "open_memmap", None)  # features are not read again
    made = pickle.loads(pickle.dumps(builder(root, tmp_path / "built")))
    assert examples.class_names(made.info) == ["jump", "run"]
    assert stored.dims(made) == DIMS
    again = stored.by_id(made)
    for id, x in videos.items():
        np.testing.assert_array_equal(again[id]["features"]["flow"], x["features"]["flow"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_real_features(tmp_path):
    """float16 features of a few real videos, one with a segment that ends 0.15 s after the video."""
    source = SHARED / "data/youtube_highlights"
    gt = json.loads((source / "gt.json").read_text())["database"]
    (tmp_path / "gt.json").symlink_to(source / "gt.json")
    (tmp_path / "features").symlink_to(source / "features")
    (tmp_path / "split_train.txt").write_text("BsjTtq337mM\n7o628W-bFy0\n")
    dogs = [id for id in (source / "split_test.txt").read_text().split() if gt[id]["labels"] == ["dog"]]
    (tmp_path / "split_test.txt").write_text("\n".join(dogs[:5]))
    folder = check(tmp_path)
    assert folder.streams == {"rgb": (1024, "float16"), "flow": (1024, "float16")} and folder.classes == [
        "dog",
        "skiing",
    ]
    assert len(folder.videos["test"]) == 5
    late = folder.videos["train"][1]
    assert late.id == "7o628W-bFy0" and late.segments[-1] == (82.5, late.duration) and late.duration == 313.6333
    for video in folder.videos["test"]:
        assert [list(segment) for segment in video.segments] == [x["segment"] for x in gt[video.id]["annotations"]]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_composed_videos(tmp_path):
    tool = SHARED / "tools/compose_untrimmed.py"
    subprocess.run([sys.executable, tool, "--out", tmp_path, "--train", "24", "--test", "2"], check=True)
    folder = check(tmp_path)
    assert [len(folder.videos[split]) for split in ("train", "test")] == [24, 2]
    assert all(video.segments and video.stride / video.fps == 2 for video in folder.videos["test"])


def test_counts_of_a_training_video_without_annotations(tmp_path):
    root, gt = write(tmp_path / "data"), ground_truth()
    gt["database"]["jump Ü"]["counts"] = {"jump": 3}
    write_gt(root, gt)
    _, videos = build(root, tmp_path / "built")
    np.testing.assert_array_equal(videos["jump Ü"]["counts"], [3, 0])  # jump, run
    assert len(videos["jump Ü"]["segments"]) == 0
    np.testing.assert_array_equal(videos["-run.1"]["counts"], [0, 2])


@pytest.mark.parametrize(
    "video, counts, problem",
    [
        ("jump Ü", {"jump": 0}, "whole numbers of 1 or more"),
        ("jump Ü", {"jump": True}, "whole numbers of 1 or more"),
        ("jump Ü", {"jump": 2.0}, "whole numbers of 1 or more"),
        ("jump Ü", [3], "must be {class name: number}"),
        ("jump Ü", {"jump": 1, "run": 2}, "give one for each label"),
        ("jump Ü", {}, "give one for each label"),
        ("-run.1", {"run": 2}, 'remove the "counts"'),
    ],
)
def test_counts_that_cannot_be_used(tmp_path, video, counts, problem):
    root, gt = write(tmp_path), ground_truth()
    gt["database"][video]["counts"] = counts
    write_gt(root, gt)
    assert f"gt.json: {video!r}" in problems(root) and problem in problems(root)


def test_counts_of_a_test_video_are_refused(tmp_path):
    """Otherwise it would count as a video without true segments."""
    root, gt = write(tmp_path), ground_truth()
    del gt["database"]["both"]["annotations"]
    gt["database"]["both"].update(labels=["run"], counts={"run": 2})
    write_gt(root, gt)
    assert '"counts" are for training videos' in problems(root)


def test_groups_are_stored(tmp_path):
    root, gt = write(tmp_path / "data"), ground_truth()
    gt["database"]["jump Ü"]["group"] = "Straße 7"
    write_gt(root, gt)
    builder, videos = build(root, tmp_path / "built")
    assert videos["jump Ü"]["group"].decode() == "Straße 7" and videos["-run.1"]["group"] == b""
    data = pipeline.load(builder, "train")
    assert dict(zip([meta.id for meta in data.metas], data.groups)) == {"-run.1": "", "jump Ü": "Straße 7"}


@pytest.mark.parametrize("group", [7, ["a"], " a", "a\nb"])
def test_groups_that_are_no_names_are_told(tmp_path, group):
    root, gt = write(tmp_path), ground_truth()
    gt["database"]["jump Ü"]["group"] = group
    write_gt(root, gt)
    assert "gt.json: 'jump Ü'" in problems(root) and '"group" is' in problems(root)
