"""Every layout gives the same examples."""

import json
import pickle
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import layouts as made
from tests import stored
from tests.foreign import storage, tensor, torch_zip
from tests.layouts import DURATION, VIDEOS, WRITERS
from wsal_jax.data import activitynet, layouts  # noqa: F401  the first registers its builder
from wsal_jax.data.thumos14 import CLASSES, Thumos14
from wsal_jax.formats.checks import FolderError


def build(root, data_dir, **options):
    builder = tfds.builder("thumos14", manual_dir=root, data_dir=data_dir, file_format="array_record", **options)
    builder.download_and_prepare()
    return {split: {x["id"].decode(): x for x in stored.videos(builder, split)} for split in ("train", "test")}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_ends_in_the_same_examples(tmp_path, layout):
    WRITERS[layout](tmp_path / "data")
    splits = build(tmp_path / "data", tmp_path / "built")
    for split, videos in splits.items():
        ids = made.by_split(split)
        named = videos
        if layout == "dgam" and split == "train":
            assert set(videos) == {"train_0001", "train_0002"}
            named = {id: videos[f"train_{i + 1:04d}"] for i, id in enumerate(ids)}
        assert set(named) == set(ids)
        for id, example in named.items():
            truth = VIDEOS[id]
            weak = layout == "dgam" and split == "train"
            labels = {label for *_, label in truth.segments}
            np.testing.assert_array_equal(example["labels"], [name in labels for name in CLASSES])
            counts = [sum(label == name for *_, label in truth.segments) for name in CLASSES]
            np.testing.assert_array_equal(example["counts"], [-1] * len(CLASSES) if weak else counts)
            if not weak:
                found = {
                    (*times, CLASSES[label]) for times, label in zip(example["segments"], example["segment_labels"])
                }
                assert found == set(truth.segments)
                np.testing.assert_array_equal(example["ambiguous"], np.reshape(truth.ambiguous, (-1, 2)))
            for stream, values in example["features"].items():
                dim = 1024 if layout == "opentad" else 4
                expected = made.features(id, stream, len(values), dim)
                np.testing.assert_allclose(values, expected, rtol=0, atol=0)
            assert set(example["features"]) == {"rgb", "flow"}
            native = layout in ("cmcs", "opentad")
            sampling = [example[name] for name in ("fps", "stride", "offset")]
            assert sampling == ([30, 4, 8] if native else [25, 16, 8])
            assert example["duration"] == pytest.approx(DURATION)
            assert len(values) == (93 if native else 20)


def test_a2cl_pt_annotations_without_a_segment_are_labels(tmp_path):
    """The published file has 927 of them; videos of other classes than the benchmark's are left out."""
    root = tmp_path / "data"
    made.a2cl_pt(root)
    content = json.loads((root / "annotation.json").read_text())
    weak = {
        "video_validation_0000060": [{"label": "Billiards"}, {"label": "Diving", "segment": []}],
        "video_validation_0000061": [{"label": "Archery"}],
        "video_validation_0000062": [{"label": "Diving"}, {"label": "Billiards", "segment": [1, 2]}],
    }
    for id, annotations in weak.items():
        content["database"][id] = {"subset": "train", "duration": DURATION, "annotations": annotations}
    (root / "annotation.json").write_text(json.dumps(content))
    features = {id: made.joint(id) for id in (*made.by_split("train"), *weak)}
    made.save(root / "feature_train.npy", np.array(features, object))
    train = build(root, tmp_path / "built")["train"]
    assert set(train) == {*made.by_split("train"), "video_validation_0000060", "video_validation_0000062"}
    for id in ("video_validation_0000060", "video_validation_0000062"):
        assert {CLASSES[c] for c in np.flatnonzero(train[id]["labels"])} == {"Billiards", "Diving"}
        np.testing.assert_array_equal(train[id]["counts"], [-1] * len(CLASSES))  # nobody says how often
    assert len(train["video_validation_0000060"]["segments"]) == 0
    np.testing.assert_array_equal(train["video_validation_0000062"]["segments"], [[1, 2]])


def test_dgam_without_labels_of_the_test_videos(tmp_path):
    """As the reproduction of STPN: they are in the annotations."""
    made.dgam(tmp_path / "data")
    (tmp_path / "data/test_data/test_labels.npy").unlink()
    test = build(tmp_path / "data", tmp_path / "built")["test"]
    assert set(test) == set(made.by_split("test"))
    for id, example in test.items():
        assert {CLASSES[c] for c in np.flatnonzero(example["labels"])} == {label for *_, label in VIDEOS[id].segments}
        assert len(example["segments"]) == len(VIDEOS[id].segments)
    path = tmp_path / "data/test_data/gt.json"
    content = json.loads(path.read_text())
    del content["database"]["video_test_0001496"]
    path.write_text(json.dumps(content))
    with pytest.raises(FolderError, match=r"test_data/rgb_features/2.npy .*: has features, but no annotation"):
        build(tmp_path / "data", tmp_path / "built")


def test_float16_stays_float16(tmp_path):
    """In every layout's own way of reading; one crop needs no mean."""
    for layout, write in WRITERS.items():
        root = tmp_path / layout
        write(root)
        for path in root.rglob("*-*.npz"):
            np.savez(path, feature=np.load(path)["feature"].astype(np.float16))
        for path in root.rglob("*.npy"):
            array = np.load(path, allow_pickle=True)
            if array.dtype == np.float32:
                np.save(path, array.astype(np.float16))
            elif array.shape == () and layout == "a2cl_pt":
                np.save(path, np.array({id: x.astype(np.float16) for id, x in array.item().items()}, object))
            elif path.name.endswith("JOINTFeatures.npy"):
                np.save(path, made.objects([x.astype(np.float16) for x in array]))
        for example in build(root, tmp_path / f"{layout} built")["test"].values():
            assert {values.dtype for values in example["features"].values()} == {np.dtype(np.float16)}, layout


def test_ten_crops_are_averaged(tmp_path):
    made.cmcs(tmp_path / "data", crops=10)
    for videos in build(tmp_path / "data", tmp_path / "built").values():
        for id, example in videos.items():
            np.testing.assert_allclose(example["features"]["flow"], made.features(id, "flow", 93), atol=1e-5)


def test_features_of_untrimmed_net(tmp_path):
    made.cmcs(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.npz"):
        feature = np.load(path)["feature"][:, :75]
        np.savez(path, feature=feature.swapaxes(0, 1)[..., None, None], frame_cnt=384)
    example = build(tmp_path / "data", tmp_path / "built")["test"]["video_test_0000004"]
    np.testing.assert_array_equal(example["features"]["rgb"], made.features("video_test_0000004", "rgb", 93)[:75])
    assert [example[name] for name in ("fps", "stride", "offset")] == [30, 5, 2.5]


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".pkl", ".pt"])
def test_opentad_in_other_files(tmp_path, suffix):
    made.opentad(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.npy"):
        array = np.load(path)[:, :6]
        other = path.with_suffix(suffix)
        if suffix == ".npz":
            np.savez(other, feats=array)
        elif suffix == ".pt":  # as torch.save writes it
            of = storage("0", "FloatStorage", array.size)
            payload = b"\x80\x02" + tensor(of, 0, array.shape, (array.shape[1], 1)) + b"."
            other.write_bytes(torch_zip(payload, {"0": (array.size, array.tobytes())}))
        elif suffix == ".pkl":
            other.write_bytes(pickle.dumps(array, protocol=2))
        else:
            np.savetxt(other, array, delimiter=",", fmt="%.9g")
        path.unlink()
    example = build(tmp_path / "data", tmp_path / "built")["test"]["video_test_0001496"]
    expected = made.joint("video_test_0001496", 93, 1024)[:, :6]
    assert set(example["features"]) == {"rgb"}  # not 2,048 dimensions, so one stream
    np.testing.assert_array_equal(example["features"]["rgb"], expected)


def test_opentad_needs_no_features_of_what_it_blocks(tmp_path):
    made.opentad(tmp_path / "data")
    folder = tmp_path / "data" / "features" / "i3d"
    (folder / "v_video_test_0001496_feats.npy").unlink()
    with pytest.raises(FolderError, match="'video_test_0001496': has annotations or is listed, but has no features"):
        build(tmp_path / "data", tmp_path / "built")
    (folder / "missing_files.txt").write_text("video_test_0001496\n")
    assert set(build(tmp_path / "data", tmp_path / "built")["test"]) == {"video_test_0000004"}


def test_activitynet_ids_with_a_prefix(tmp_path):
    """CMCS puts "v_" before ActivityNet's ids; the server's test videos are left out."""
    root, database = tmp_path / "data", {}
    for id, subset in (("a-b_c", "training"), ("-d", "validation"), ("v_e", "training"), ("f", "testing")):
        annotations = [] if subset == "testing" else [{"segment": [1, 5.0], "label": "Zumba"}]
        database[id] = {"subset": subset, "duration": 6.4, "annotations": annotations}
        for stream in ("rgb", "flow"):
            path = root / stream / f"v_{id}-{stream}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, feature=made.features(id, stream, 10)[None], frame_cnt=160)
    made.write_json(root / "activity_net.v1-3.min.json", {"database": database, "taxonomy": []})
    builder = tfds.builder("activitynet/1.3", manual_dir=root, data_dir=tmp_path / "built", file_format="array_record")
    builder.download_and_prepare()
    videos = {split: {x["id"].decode() for x in builder.as_data_source(split=split)} for split in ("train", "test")}
    assert videos == {"train": {"a-b_c", "v_e"}, "test": {"-d"}}
    example = stored.videos(builder, "test")[0]
    assert [example[name] for name in ("fps", "stride", "offset", "duration")] == [25, 16, 8, 6.4]
    np.testing.assert_array_equal(example["features"]["rgb"], made.features("-d", "rgb", 10))


def test_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "data" / "stuff").mkdir(parents=True)
    (tmp_path / "data" / "notes.md").write_text("")
    with pytest.raises(FolderError) as caught:
        Thumos14(manual_dir=tmp_path / "data", data_dir=tmp_path)
    for name in layouts.NAMES:
        assert f"looked for {name}: " in str(caught.value)
    assert "the folder has notes.md, stuff/" in str(caught.value)


def test_an_empty_folder_and_none(tmp_path):
    with pytest.raises(FolderError, match="the folder has nothing"):
        layouts.choose(tmp_path, "auto")
    with pytest.raises(FolderError, match="there is no such folder"):
        layouts.choose(tmp_path / "none", "auto")
    with pytest.raises(FolderError, match=r"there is no layout 'bas-net': there are auto, w_talc, bas_net"):
        layouts.choose(tmp_path, "bas-net")


def test_two_layouts_ask_which(tmp_path):
    made.bas_net(tmp_path / "data")
    made.dgam(tmp_path / "data")
    with pytest.raises(FolderError, match="fits the layouts bas_net and dgam: name the one"):
        build(tmp_path / "data", tmp_path / "built")
    assert set(build(tmp_path / "data", tmp_path / "built", layout="dgam")["train"]) == {"train_0001", "train_0002"}
    assert len(build(tmp_path / "data", tmp_path / "built", layout="bas_net")["train"]) == 2


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_told_from_the_others(tmp_path, layout):
    WRITERS[layout](tmp_path)
    assert layouts.choose(tmp_path, "auto").__name__.endswith(f".{layout}")


def break_w_talc(root):
    np.save(root / "Thumos14reduced-I3D-JOINTFeatures.npy", made.objects([made.joint("x")]), allow_pickle=True)
    return r"Thumos14reduced-I3D-JOINTFeatures.npy: is an array of object \(1,\), the annotations have 4 videos"


def break_w_talc_lengths(root):
    np.save(root / "Thumos14reduced-Annotations" / "subset.npy", np.array([b"test"]))
    return "lengths differ"


def break_w_talc_missing(root):
    (root / "Thumos14reduced-Annotations" / "segments.npy").unlink()
    return "Thumos14reduced-Annotations/segments.npy: is missing"


def break_w_talc_two(root):
    made.save(root / "UNT-Features.npy", np.zeros((2, 2)))
    return "keep each data set in a folder of its own"


def break_bas_net(root):
    (root / "gt.json").write_text("{")
    return "gt.json: cannot be read as JSON"


def break_bas_net_segment(root):
    gt = json.loads((root / "gt.json").read_text())
    gt["database"]["video_test_0000004"]["annotations"].append({"segment": ["1", "x"], "label": "Diving"})
    (root / "gt.json").write_text(json.dumps(gt))
    return r"gt.json: 'video_test_0000004': annotation .* must be \{\"segment\": \[start, end\]"


def break_bas_net_twice(root):
    text = (root / "gt.json").read_text()
    (root / "gt.json").write_text(text.replace("video_test_0001496", "video_test_0000004"))
    return "'video_test_0000004': is there more than once"


def break_ftcl(root):
    (root / "split_test.txt").write_bytes(b"\xff\xfe\xff")
    return "split_test.txt: cannot be read"


def break_dgam(root):
    np.save(root / "train_data" / "train_labels.npy", np.zeros((2, 3)))
    return r"train_labels.npy: is float64 \(2, 3\): must be numbers \[N 20\]"


def break_dgam_list(root):
    (root / "test_data" / "THUMOS14_test_vid_list.txt").write_text("video_test_0000004\n")
    return "test_labels.npy: has 2 rows, the list of ids 1"


def break_dgam_no_list(root):
    (root / "test_data" / "THUMOS14_test_vid_list.txt").unlink()
    return r"test_data/\*list.txt: there must be one such file, there are \[\]"


def break_a2cl_pt(root):
    np.save(root / "feature_val.npy", np.zeros((3, 4)))
    return r"feature_val.npy: is an array of float64 \(3, 4\): must be a dict from id to features"


def break_a2cl_pt_rate(root):
    content = json.loads((root / "annotation.json").read_text())
    content["miscellany"]["fps_extracted"] = 0
    (root / "annotation.json").write_text(json.dumps(content))
    return "must have positive fps_extracted, len_feature_chunk"


def break_a2cl_pt_miscellany(root):
    content = json.loads((root / "annotation.json").read_text()) | {"miscellany": "25 fps"}
    (root / "annotation.json").write_text(json.dumps(content))
    return "is '25 fps': must have positive fps_extracted"


def break_a2cl_pt_all(root):
    (root / "annotation.json").write_text("[3]")
    return "annotation.json"


def break_cmcs(root):
    path = next(root.rglob("video_test_0000004-rgb.npz"))
    (path.parent / "more").mkdir()
    (path.parent / "more" / path.name).write_bytes(path.read_bytes())
    return "are the same video and stream"


def break_cmcs_mat(root):
    next(root.rglob("*.mat")).write_bytes(b"not a mat file, really not" * 10)
    return "is not one of THUMOS14's files of video metadata, or damaged"


def break_cmcs_no_rate(root):
    for path in root.rglob("*.mat"):
        path.unlink()
    return "has no frame rate in the annotations, and its features are at the video's own: give the option fps"


def break_cmcs_array(root):
    np.savez(next(root.rglob("video_test_0000004-rgb.npz")), features=np.zeros((1, 2, 3)))
    return r"has \['features'\], not `feature`"


def break_cmcs_text(root):
    next(root.rglob("Diving_test.txt")).write_text("video_test_0000004 1.0\n")
    return "the line 'video_test_0000004 1.0' is not <video> <start> <end>"


def break_opentad(root):
    made.save(root / "features" / "other" / "x.npy", np.zeros((2, 2)))
    return "must have one folder with features, has"


def break_opentad_npz(root):
    for path in root.rglob("*.npy"):
        np.savez(path.with_suffix(".npz"), x=np.zeros((2, 3)))
        path.unlink()
    return r"has \['x'\], not `feats`"


BROKEN = [value for name, value in sorted(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_what_is_wrong_is_said(tmp_path, damage):
    layout = next(name for name in WRITERS if re.match(f"break_{name}", damage.__name__))
    WRITERS[layout](tmp_path / "data")
    message = damage(tmp_path / "data")
    with pytest.raises(FolderError, match=message):
        Thumos14(manual_dir=tmp_path / "data", data_dir=tmp_path / "built")
    assert not (tmp_path / "built").exists() or not list((tmp_path / "built").rglob("*.array_record*"))


def test_a_folder_that_is_called_like_a_file(tmp_path):
    WRITERS["opentad"](tmp_path / "data")
    expected = build(tmp_path / "data", tmp_path / "built")
    (tmp_path / "data" / "notes.json").mkdir()
    assert set(build(tmp_path / "data", tmp_path / "again")["test"]) == set(expected["test"])
