"""The treatment of unclean data, and the counts of the real annotations."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import layouts as made
from tests import stored
from tests.stored import tree
from wsal_jax.data import benchmark, builder, thumos14
from wsal_jax.data.activitynet import Activitynet
from wsal_jax.data.thumos14 import Thumos14
from wsal_jax.formats.checks import FolderError
from wsal_jax.times import snippet_to_seconds
from wsal_jax.types import InputError, Meta

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def root(tmp_path):
    made.bas_net(tmp_path / "data")
    return tmp_path / "data"


def check(root, **options):
    return benchmark.check(root, thumos14.BENCHMARK, benchmark.Options(**options))


def ids(folder):
    return {video.id for videos in folder.videos.values() for video in videos}


def problems(root, **options):
    with pytest.raises(FolderError) as caught:
        check(root, **options)
    return "\n".join(caught.value.problems)


def edit(root, id, **values):
    gt = json.loads((root / "gt.json").read_text())
    gt["database"][id].update(values)
    (root / "gt.json").write_text(json.dumps(gt))


def add_video(root, id, **gt):
    """A third test or training video."""
    split = made.split_of(id)
    for stream in ("rgb", "flow"):
        made.save(root / "features" / split / stream / f"{id}.npy", made.features(id, stream))
    with (root / f"split_{split}.txt").open("a") as file:
        file.write(f"\n{id}\n")
    if gt:
        content = json.loads((root / "gt.json").read_text())
        content["database"][id] = {"subset": split, **gt}
        (root / "gt.json").write_text(json.dumps(content))


BAD_VIDEO = "video_test_0000007"
GOOD = {"annotations": [{"segment": ["1", "2"], "label": "Diving"}]}


def no_annotation(root):
    add_video(root, BAD_VIDEO)
    return "has features, but no annotation"


def no_features(root):
    add_video(root, BAD_VIDEO, **GOOD)
    for path in root.rglob(f"{BAD_VIDEO}.npy"):
        path.unlink()
    return "is listed, but has no features"


def twice(root):
    add_video(root, BAD_VIDEO, **GOOD)
    add_video(root, BAD_VIDEO, **GOOD)
    return "is there more than once: keep one"


def not_finite(root):
    add_video(root, BAD_VIDEO, **GOOD)
    path = root / "features/test/rgb" / f"{BAD_VIDEO}.npy"
    array = np.load(path)
    array[3, 1] = np.nan
    np.save(path, array)
    return "NaN or infinite (as float32), first in snippet 3"


def truncated(root):
    add_video(root, BAD_VIDEO, **GOOD)
    path = root / "features/test/rgb" / f"{BAD_VIDEO}.npy"
    path.write_bytes(path.read_bytes()[:-40])
    return f"{BAD_VIDEO}.npy"


def one_stream(root):
    add_video(root, BAD_VIDEO, **GOOD)
    (root / "features/test/rgb" / f"{BAD_VIDEO}.npy").unlink()
    return "has the streams and dimensions {'flow': 4}, most videos {'rgb': 4, 'flow': 4}"


def other_dimension(root):
    add_video(root, BAD_VIDEO, **GOOD)
    np.save(root / "features/test/rgb" / f"{BAD_VIDEO}.npy", np.zeros((20, 5), np.float32))
    return "has the streams and dimensions {'rgb': 5, 'flow': 4}"


def other_length(root):
    add_video(root, BAD_VIDEO, **GOOD)
    np.save(root / "features/test/rgb" / f"{BAD_VIDEO}.npy", np.zeros((19, 4), np.float32))
    return "number of snippets differs, 19 in rgb and 20 in flow"


def integers(root):
    add_video(root, BAD_VIDEO, **GOOD)
    np.save(root / "features/test/rgb" / f"{BAD_VIDEO}.npy", np.zeros((20, 4), int))
    return "dtype is int64"


def unknown_label(root):
    add_video(root, BAD_VIDEO, annotations=[{"segment": [1, 2], "label": "Yoga"}])
    return "has labels that are no classes of the benchmark: ['Yoga']"


def too_long(root):
    add_video(root, BAD_VIDEO, duration=6.0, **GOOD)
    return "has features up to 12.8 s, and lasts 6.0 s: the features end after the video"


BAD_VIDEOS = [
    no_annotation,
    no_features,
    twice,
    not_finite,
    truncated,
    one_stream,
    other_dimension,
    other_length,
    integers,
    unknown_label,
    too_long,
]


@pytest.mark.parametrize("damage", BAD_VIDEOS, ids=lambda f: f.__name__)
def test_a_bad_video_is_refused_or_dropped(root, capsys, damage):
    message = damage(root)
    text = problems(root)
    assert message in text and BAD_VIDEO in text
    folder = check(root, bad_videos="drop")
    assert ids(folder) == set(made.VIDEOS) and message in capsys.readouterr().err


def test_everything_bad_is_listed_at_once(root):
    for i, damage in enumerate((no_annotation, not_finite, integers)):
        damage(root)
        for path in [*root.rglob(f"{BAD_VIDEO}.npy")]:
            path.rename(path.with_stem(f"video_test_100000{i}"))
        for path in (root / "split_test.txt", root / "gt.json"):
            path.write_text(path.read_text().replace(BAD_VIDEO, f"video_test_100000{i}"))
    text = problems(root)
    assert all(f"video_test_100000{i}" in text for i in range(3)) and len(text.splitlines()) == 3


def test_a_training_video_needs_a_label(root):
    edit(root, "video_validation_0000051", annotations=[])
    assert "is a training video without any label" in problems(root)


def test_needs_both_splits(root):
    (root / "split_test.txt").write_text("")
    assert "needs training and test videos, has 2 train, 0 test" in problems(root)


ODD = [[4, 3], [5, 5], [-1, 2], [1, 99.0]]


def test_odd_segments_are_kept_dropped_or_refused(root, capsys):
    odd = [{"segment": segment, "label": "Diving"} for segment in ODD]
    edit(root, "video_test_0000004", annotations=[*odd, {"segment": [1, 2], "label": "Diving"}])

    def segments(folder):
        return next(video.segments for video in folder.videos["test"] if video.id == "video_test_0000004")

    assert (
        segments(check(root)) == [*map(tuple, ODD), (1, 2)]
        and "odd segments, kept as they are" in capsys.readouterr().err
    )
    assert segments(check(root, bad_segments="drop")) == [(1, 2)]
    assert "odd segments, dropped" in capsys.readouterr().err
    text = problems(root, bad_segments="refuse")
    assert "'video_test_0000004': [4, 3] Diving, 'video_test_0000004': [5, 5] Diving: does not end after it" in text
    assert "[-1, 2] Diving: starts before 0" in text
    assert "[1, 99] Diving: ends after the video (12.80 s)" in text
    assert "[1, 99] Diving: ends after" in problems(root, bad_segments="refuse", bad_videos="drop")


def test_a_segment_may_end_a_snippet_after_the_video(root):
    edit(root, "video_test_0000004", duration=12.8, annotations=[{"segment": [1, 13.43], "label": "Diving"}])
    check(root, bad_segments="refuse")
    edit(root, "video_test_0000004", annotations=[{"segment": [1, 13.45], "label": "Diving"}])
    assert "ends after the video (12.80 s)" in problems(root, bad_segments="refuse")


def test_sampling_can_be_given(root):
    video = check(root, fps=50.0, stride=8.0, offset=0.0).videos["test"][0]
    assert (video.fps, video.stride, video.offset) == (50, 8, 0)
    assert video.duration == pytest.approx(19.5 * 8 / 50)


def test_features_that_end_early_are_told(root, capsys):
    edit(root, "video_test_0000004", duration=15.0)
    check(root)
    assert "short" not in capsys.readouterr().err  # 12.8 s, 10 % and two snippets short at most
    edit(root, "video_test_0000004", duration=16.0)
    check(root)
    told = "'video_test_0000004' (up to 12.8 of 16.0 s): the features end before the video"
    assert told in capsys.readouterr().err


LATE = [f"video_test_{i:07d}" for i in range(40, 46)]


def add_late(root):
    for i, id in enumerate(LATE):
        add_video(root, id, duration=10.0 + i / 10, **GOOD)


def test_features_that_end_late_are_all_listed_with_advice(root):
    """As in FTCL's gt.json, whose durations assume 30 instead of 25 frames per second."""
    add_late(root)
    (line,) = [line for line in problems(root).splitlines() if "the features end after the video" in line]
    for i, id in enumerate(LATE):
        assert f"{id!r}" in line and f"has features up to 12.8 s, and lasts {10 + i / 10:.1f} s" in line
    assert all(advice in line for advice in ('durations="features"', 'bad_videos="keep"'))


def test_features_that_end_late_can_be_kept_or_tell_the_duration(root, capsys):
    add_late(root)
    folder = check(root, bad_videos="keep")
    assert ids(folder) == {*made.VIDEOS, *LATE}
    durations = {video.id: video.duration for video in folder.videos["test"]}
    assert durations[LATE[3]] == 10.3 and len(folder.videos["test"][0].load()["rgb"]) == 20
    told = capsys.readouterr().err
    assert "features that end after the video, kept as they are" in told and all(id in told for id in LATE)
    edit(root, "video_validation_0000051", duration=99.0)
    folder = check(root, durations="features")
    assert {round(video.duration, 9) for videos in folder.videos.values() for video in videos} == {12.8}
    with pytest.raises(InputError, match="resized"):
        check(root, durations="features", resized=True)


@pytest.mark.parametrize("damage", [no_annotation, not_finite, twice], ids=lambda f: f.__name__)
def test_what_cannot_be_used_cannot_be_kept(root, damage):
    message = damage(root)
    assert message in problems(root, bad_videos="keep")


def test_resized_features_divide_the_duration(root):
    assert "has no duration in the annotations, which its resized features divide" in problems(root, resized=True)
    for id in made.VIDEOS:
        edit(root, id, duration=30.0)
    video = check(root, resized=True).videos["test"][0]
    times = [snippet_to_seconds(i, Meta("v", 20, video.fps, video.stride, video.offset, 30.0)) for i in (-0.5, 19.5)]
    assert times == [pytest.approx(0), pytest.approx(30)] and video.duration == 30


@pytest.mark.parametrize(
    "option", [{"bad_videos": "x"}, {"durations": "x"}, {"bad_segments": "x"}, {"fps": 0.0}, {"stride": -1.0}]
)
def test_options_are_checked(root, option):
    with pytest.raises(InputError, match=next(iter(option))):
        check(root, **option)


@pytest.mark.parametrize("option", [{"videos": "210"}, {"diving": "none"}])
def test_choices_of_thumos14_are_checked(root, tmp_path, option):
    with pytest.raises(InputError, match="choose one of"):
        Thumos14(manual_dir=root, data_dir=tmp_path, **option)


def build(root, tmp_path, **options):
    made_builder = Thumos14(manual_dir=root, data_dir=tmp_path, **options)
    made_builder.download_and_prepare()
    return stored.by_id(made_builder)


@pytest.mark.parametrize("videos", thumos14.EXCLUDED)
def test_excluded_videos(root, tmp_path, videos):
    add_video(root, "video_test_0000270")  # not annotated, but excluded
    ambiguous = [{"segment": [1, 2], "label": "Ambiguous"}]
    add_video(root, "video_test_0001292", annotations=ambiguous)
    options = dict(videos=videos, bad_videos="drop" if videos in ("all", "w_talc") else "refuse")
    numbers = {int(id[-4:]) for id in build(root, tmp_path, **options) if "test" in id}
    assert numbers == {4, 1292, 1496} - set(thumos14.EXCLUDED[videos])


def test_a_video_with_ambiguous_segments_only_is_annotated(root, tmp_path):
    add_video(root, "video_test_0001292", annotations=[{"segment": [1, 2], "label": "Ambiguous"}])
    example = build(root, tmp_path)["video_test_0001292"]
    np.testing.assert_array_equal(example["counts"], np.zeros(20))
    np.testing.assert_array_equal(example["ambiguous"], [[1, 2]])


def test_cliff_diving_can_be_that_only(root, tmp_path):
    both, only = build(root, tmp_path), build(root, tmp_path, diving="cliff_only")
    diving, cliff = thumos14.CLASSES.index("Diving"), thumos14.CLASSES.index("CliffDiving")
    video = "video_validation_0000052"
    assert (both[video]["counts"][[diving, cliff]] == [2, 1]).all()
    assert (only[video]["counts"][[diving, cliff]] == [1, 1]).all()
    video = "video_test_0001496"
    assert (both[video]["labels"][[diving, cliff]] == [1, 1]).all()
    assert (only[video]["labels"][[diving, cliff]] == [0, 1]).all()
    np.testing.assert_array_equal(only[video]["segments"], [[3, 8]])
    assert (both["video_test_0000004"]["counts"] == only["video_test_0000004"]["counts"]).all()


def test_building_twice_gives_the_same_bytes(root, tmp_path):
    build(root, tmp_path / "a")
    build(root, tmp_path / "b")
    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert first == second and any(".array_record" in name for name in first)


def test_a_failed_build_leaves_nothing_and_can_be_repeated(root, tmp_path, monkeypatch):
    real, calls = builder.examples.class_names, itertools.count()
    path = root / "features/test/rgb/video_test_0001496.npy"
    good = path.read_bytes()

    def damage_in_the_middle(info):
        if next(calls) == 1:  # when the second split begins
            path.write_bytes(good[: len(good) // 2])
        return real(info)

    monkeypatch.setattr(builder.examples, "class_names", damage_in_the_middle)
    failing = Thumos14(manual_dir=root, data_dir=tmp_path / "built")
    with pytest.raises(InputError, match="video_test_0001496"):
        failing.download_and_prepare()
    assert not tree(tmp_path / "built")
    monkeypatch.undo()
    path.write_bytes(good)
    assert set(build(root, tmp_path / "built")) == set(made.VIDEOS)


def test_other_files_and_options_are_another_data_set(root, tmp_path):
    def name(**options):
        return Thumos14(manual_dir=root, data_dir=tmp_path, **options).builder_config.name

    first = name()
    assert name() == first
    others = {first, name(videos="bas_net"), name(diving="cliff_only"), name(fps=24.0), name(bad_segments="drop")}
    edit(root, "video_test_0000004", duration=12.9)
    assert len({*others, name()}) == 6


def test_data_may_be_built_inside_the_folder(root):
    assert set(build(root, root / "built")) == set(made.VIDEOS)
    assert Thumos14(manual_dir=root, data_dir=root / "built").is_prepared()


def test_the_manual_dir_of_tfds_is_the_default(tmp_path):
    folder = tmp_path / "downloads" / "manual" / "thumos14"
    made.ftcl(folder)
    assert set(build(None, tmp_path)) == set(made.VIDEOS)


def test_versions_of_activitynet(tmp_path):
    with pytest.raises(InputError, match=r"there are activitynet/1.2 and activitynet/1.3"):
        Activitynet(config="1.1", manual_dir=tmp_path, data_dir=tmp_path)
    names = [f"c{i:03d}" for i in range(101)]
    annotations = [{"segment": [1, 2], "label": name} for name in names]
    content = {
        "database": {
            id: {"subset": subset, "duration": 12.8, "annotations": annotations}
            for id, subset in (("a", "training"), ("b", "validation"))
        }
    }
    root = tmp_path / "data"
    made.write_json(root / "anno.json", content)
    for id in "ab":
        made.save(root / "features" / f"{id}.npy", made.joint(id))
    with pytest.raises(FolderError, match=r"have 101 classes, activitynet has 100: is this another version\?"):
        Activitynet(config="1.2", manual_dir=root, data_dir=tmp_path)
    options = dict(fps=25.0, stride=16.0, offset=8.0)
    info = Activitynet(config="1.3", manual_dir=root, data_dir=tmp_path, **options).info
    assert info.features["segment_labels"].feature.names == names


REAL = {
    "thumos14": ("thumos14/Thumos14reduced-Annotations", (200, 3007), (212, 3358)),
    "activitynet/1.2": ("activitynet12/ActivityNet1.2-Annotations", (4819, 7151), (2383, 3582)),
    "activitynet/1.3": ("activitynet13/ActivityNet1.3-Annotations", (9032, 13913), (4427, 6836)),
}


BUILD_AND_COUNT = """
import sys
import tensorflow_datasets as tfds
from wsal_jax.data import activitynet, thumos14
name, root, data_dir, *videos = sys.argv[1:]
options = {"videos": videos[0]} if videos else {}
builder = tfds.builder(name, manual_dir=root, data_dir=data_dir, file_format="array_record", **options)
builder.download_and_prepare()
for split in ("train", "test"):
    videos = builder.as_data_source(split=split)
    videos = [videos[i] for i in range(len(videos))]
    assert all(((x["counts"] > 0) == x["labels"]).all() for x in videos)
    print(len(videos), sum(len(x["segments"]) for x in videos), sum(x["counts"].sum() for x in videos))
"""


@pytest.mark.skipif(not SHARED.exists(), reason="the real annotations are not here")
@pytest.mark.parametrize("name", REAL)
def test_counts_of_the_real_annotations(tmp_path, name):
    """Builds with two-dimensional features as long as each video, in a process without the slow shape checks."""

    def counts(*options):
        command = [sys.executable, "-c", BUILD_AND_COUNT, name, root, tmp_path, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [[int(x) for x in line.split()] for line in done.stdout.splitlines()[-2:]]

    folder, train, test = REAL[name]
    root = tmp_path / "data"
    shutil.copytree(SHARED / folder, root / Path(folder).name)
    durations = np.load(SHARED / folder / "duration.npy").ravel()
    features = made.objects([np.zeros((max(1, round(x * 25 / 16)), 2), np.float32) for x in durations])
    made.save(root / "JOINTFeatures.npy", features)
    assert counts() == [[*train, train[1]], [*test, test[1]]]
    if name == "thumos14":
        assert counts("bas_net")[1] == [210, 3311, 3311]


@pytest.mark.skipif(not SHARED.exists(), reason="the real annotations are not here")
def test_the_real_json_has_the_same_videos(tmp_path):
    """BaS-Net's gt.json against W-TALC's arrays, with features of two dimensions."""
    root = tmp_path / "data"
    root.mkdir()
    for file in ("gt.json", "split_train.txt", "split_test.txt"):
        shutil.copy(SHARED / "thumos14" / file, root / file)
    for split in ("train", "test"):
        for id in (root / f"split_{split}.txt").read_text().split():
            made.save(root / split / f"{id}.npy", np.zeros((3000, 2), np.float32))
    folder = benchmark.check(root, thumos14.BENCHMARK, benchmark.Options())
    has = {split: (len(of), sum(len(x.segments) for x in of)) for split, of in folder.videos.items()}
    assert has == {"train": (200, 3007), "test": (210, 3311)}
