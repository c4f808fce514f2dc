"""From a folder of videos and a list of labels to a feature folder, with a made-up extractor."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra [video]")
pytest.importorskip("cv2", reason="needs the extra [video]")

import tiny_extractor
from tiny_extractor import encode, regular

from wsal_jax import bench, extract, main, sharding, video
from wsal_jax.data import feature_folder
from wsal_jax.formats.checks import FolderError, Problems
from wsal_jax.types import InputError
from wsal_jax.video import bench as video_bench
from wsal_jax.video import clips, decode, extractor, features, folder, labels, pool, sidecar

LABELS = (
    "video,split,labels\na.mp4,train,jump; run\nb,train,run\nvideos/c.mp4,test,run\nd.mkv,test,\nother.mp4,test,x\n"
)
VIDEOS = ("a.mp4", "b.mp4", "c.mp4", "d.mkv")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Four videos, their labels, and true segments of one."""
    root = tmp_path_factory.mktemp("made")
    (root / "videos" / "more").mkdir(parents=True)
    for seed, name in enumerate(VIDEOS):
        encode(root / "videos" / ("more" if name == "b.mp4" else "") / name, regular(50 + 17 * seed, 30), seed=seed)
    (root / "videos" / "notes.txt").write_text("no video")
    (root / "labels.csv").write_text(LABELS)
    truth = {"c": {"annotations": [{"segment": [0.5, 1.5], "label": "run"}], "duration": 99}, "z": {}}
    (root / "truth.json").write_text(json.dumps({"database": truth}))
    return root


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(extractor.EXTRACTORS, "tiny", tiny_extractor.make)


def run(*arguments, extractor="tiny", workers=1):
    """The command; its exit status."""
    with pytest.raises(SystemExit) as exit:
        extract.main([*map(str, arguments), "--extractor", extractor, "--workers", str(workers)])
    return exit.value.code


def tree(root):
    """All files of a folder and what is in them."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def whole(made, tmp_path_factory):
    """What an undisturbed call leaves."""
    root = tmp_path_factory.mktemp("whole") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractor.EXTRACTORS, "tiny", tiny_extractor.make)
        arguments = ("--labels", made / "labels.csv", "--annotations", made / "truth.json", "--out", root)
        assert run(made / "videos", *arguments) == 0
    return root


def slow_features(path, made):
    """Every clip by itself from all pictures of a video."""
    with decode.opened(path) as (container, stream, seen):
        timed = decode.pictures(path, container, stream, seen, made.size)
        images = [one() for one in decode.resample(timed, Fraction(25))]
    images.append(images[-1])
    found = {name: [] for name in made.streams}
    for start in range(0, len(images) - 1 - 16 + 1, 16):
        for name, one in made.streams.items():
            pieces = [one.prepare(*images[start + i : start + i + 1 + one.pair]) for i in one.offsets]
            found[name].append(np.asarray(one.apply(one.load(), np.stack(pieces)[None]))[0])
    return {name: np.array(values) for name, values in found.items()}


def test_features_and_what_is_said_of_them(made, whole):
    for name in VIDEOS:
        id, split = name[0], "train" if name[0] in "ab" else "test"
        (path,) = (made / "videos").rglob(name)
        info = json.loads((whole / "features" / split / f"{id}.json").read_text())
        for stream, expected in slow_features(path, tiny_extractor.make({}, ("rgb", "flow"), 16, None, None)).items():
            found = np.load(whole / "features" / split / stream / f"{id}.npy")
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert info["num_features"] == len(found) and info["dims"][stream] == 5
        assert info["video"] == name and info["bytes"] == path.stat().st_size and info["fps"] == 25
        assert info["source_fps"] == pytest.approx(30, abs=0.01) and not info["vfr"] and not info["truncated"]
        assert info["frames"] == pytest.approx(info["duration"] * 25) and info["extractor"]["name"] == "tiny"
        assert info["num_features"] == info["frames"] // 16 and info["feature_offset_frames"] == 8
        assert set(info["software"]) == {"wsal_jax", "jax", "av", "ffmpeg", "opencv"}


def test_the_folder_is_one_to_train_on(whole):
    found = feature_folder.check(whole)
    entries = {entry.id: entry for split in ("train", "test") for entry in found.videos[split]}
    assert [entry.id for entry in found.videos["train"]] == ["a", "b"] and found.classes == ["jump", "run"]
    assert entries["a"].labels == ["jump", "run"] and entries["d"].labels == []
    assert entries["c"].segments == [(0.5, 1.5)]
    assert (entries["a"].fps, entries["a"].stride, entries["a"].offset) == (25, 16, 8)
    assert not list(whole.rglob("*.tmp")) and "z" not in (whole / "gt.json").read_text()


def test_training_on_it(whole, tfds_dir, tmp_path, monkeypatch):
    """As it is, by the command that is told at the end."""
    from configs import maan

    mesh = sharding.make_mesh(jax.devices()[:2])
    config = maan.get_config("dataset=feature_folder")
    config.data.root, config.data.dir = str(whole), tfds_dir
    config.batch_size, config.num_snippets, config.steps, config.log_every, config.checkpoint_every = 2, 4, 2, 2, 2
    config.plots = 0
    monkeypatch.setattr(sharding, "make_mesh", lambda *given: mesh)  # of 2 of the 8 devices, for 2 videos
    main.run(config, str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"rgb", "flow", "fused"} < set(results["rows"])


def test_workers_make_no_difference(made, whole, tmp_path):
    arguments = ("--labels", made / "labels.csv", "--annotations", made / "truth.json", "--out", tmp_path / "data")
    assert run(made / "videos", *arguments, workers=2) == 0
    assert tree(tmp_path / "data") == tree(whole)


def test_shards_make_no_difference(made, whole, tmp_path):
    """Each is given all videos; together they leave the whole."""
    seen = []
    for shard in ("2/3", "0/3", "1/3"):
        arguments = ("--labels", made / "labels.csv", "--annotations", made / "truth.json", "--out", tmp_path / "data")
        assert run(made / "videos", *arguments, "--shard", shard) == 0
        seen.append(len(list(sidecar.sidecars(tmp_path / "data"))))
    assert seen == [1, 3, 4]
    assert tree(tmp_path / "data") == tree(whole)


def test_gt_of_shards_that_end_together(made, whole, tmp_path, monkeypatch):
    """Where nothing can be locked, a sidecar that comes while gt.json is written is seen before it is left."""
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    (root / "gt.json").unlink()
    late = root / "features" / "test" / "c.json"
    late.rename(tmp_path / "c.json")
    original = sidecar.replace

    def meanwhile(path, write):
        original(path, write)
        if not late.exists():
            (tmp_path / "c.json").rename(late)

    monkeypatch.setattr(sidecar, "replace", meanwhile)
    videos = labels.find_videos([made / "videos"])
    labels.write_gt(root, labels.known(videos, made / "labels.csv", made / "truth.json", None))
    assert tree(root) == tree(whole)


def test_what_is_there_is_kept(made, whole, tmp_path, capsys):
    """By size and time, else by content; what else is in gt.json stays too."""
    shutil.copytree(made, tmp_path / "made")
    root = tmp_path / "data"
    arguments = (tmp_path / "made" / "videos", "--labels", made / "labels.csv", "--out", root)
    assert run(*arguments) == 0
    gt = json.loads((root / "gt.json").read_text())
    gt["classes"], gt["database"]["d"]["note"] = ["run", "jump"], "mine"
    gt["database"]["d"]["annotations"] = [{"segment": [0, 1], "label": "run"}]
    (root / "gt.json").write_text(json.dumps(gt))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*") if path.is_file() and path.name != "gt.json"}
    os.utime(tmp_path / "made" / "videos" / "a.mp4", (1, 1))
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "4 videos: 0 extracted, 4 kept, 0 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((root / "gt.json").read_text()) == gt

    encode(tmp_path / "made" / "videos" / "a.mp4", regular(80, 30), seed=9)  # another video
    (root / "features" / "test" / "flow" / "c.npy").write_bytes(b"damaged")
    assert run(*arguments) == 0
    assert "4 videos: 2 extracted, 2 kept, 0 failed" in capsys.readouterr().out
    assert run(*arguments, "--stride", 8) == 0
    assert "4 extracted" in capsys.readouterr().out
    assert run(*arguments, "--stride", 8, "--clip", 8, "--streams", "rgb") == 0
    assert "4 extracted" in capsys.readouterr().out and not list(root.rglob("flow/*.npy"))


def test_verify_finds_what_time_and_size_hide(made, tmp_path, capsys):
    path = tmp_path / "a.mp4"
    shutil.copy(made / "videos" / "a.mp4", path)
    arguments = (path, "--split", "train", "--out", tmp_path / "data")
    assert run(*arguments) == 0
    state, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_mtime_ns, state.st_mtime_ns))
    assert run(*arguments) == 0 and "1 kept" in capsys.readouterr().out
    run(*arguments, "--verify")
    assert "1 extracted" in capsys.readouterr().out


class Killed(BaseException):
    pass


@pytest.mark.parametrize("older", [False, True])
def test_killed_between_any_two_steps_of_writing(tmp_path, monkeypatch, older):
    """Whatever is done then, a sidecar never stands by features that are not its own, and the next call mends all."""
    values = {"rgb": np.ones((3, 2), np.float32), "flow": np.ones((3, 4), np.float32)}
    (tmp_path / "a.mp4").write_bytes(b"video")
    state = (tmp_path / "a.mp4").stat()
    info = {"bytes": 5, "modified": state.st_mtime_ns, "num_features": 3, "dims": {"rgb": 2, "flow": 4}, "extractor": 1}
    sidecar.write(tmp_path / "whole", "train", "a", values, info)

    def counting(limit):
        steps = [0]

        def wrap(function):
            def step(*arguments, **options):
                steps[0] += 1
                if steps[0] > limit:
                    raise Killed
                return function(*arguments, **options)

            return step

        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, wrap(getattr(os, name)))
        monkeypatch.setattr(np, "save", wrap(np.save))
        return steps

    limit, finished = 0, False
    while not finished:
        root = tmp_path / str(limit)
        if older:  # features of other numbers, of one stream fewer, by another extractor
            sidecar.write(root, "train", "a", {"rgb": np.zeros((3, 2), np.float32)}, {**info, "extractor": 0})
        with monkeypatch.context() as patch:
            monkeypatch, saved = patch, monkeypatch
            counting(limit)
            try:
                sidecar.write(root, "train", "a", values, info)
                finished = True
            except Killed:
                pass
        monkeypatch = saved
        if older and sidecar.done(root, "train", "a", tmp_path / "a.mp4", {"extractor": 0}):
            assert not np.load(root / "features" / "train" / "rgb" / "a.npy").any(), limit
        if sidecar.done(root, "train", "a", tmp_path / "a.mp4", {"extractor": 1}):
            assert np.load(root / "features" / "train" / "rgb" / "a.npy").all(), limit
        else:
            assert not finished
            sidecar.write(root, "train", "a", values, info)
        assert tree(root) == tree(tmp_path / "whole"), limit
        limit += 1
    assert limit > 8


def test_killed_at_random_and_called_again(made, whole, tmp_path):
    """SIGKILL: two as soon as some file appears, two at random; then the bytes are those of the undisturbed call."""
    root = tmp_path / "data"
    code = "import tiny_extractor; tiny_extractor.main()"
    arguments = ["--labels", made / "labels.csv", "--annotations", made / "truth.json", "--out", root]
    command = [sys.executable, "-c", code, made / "videos", *arguments, "--extractor", "tiny", "--workers", "1"]
    paths = [str(Path(tiny_extractor.__file__).parent), str(Path(__file__).parents[1])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
    }
    rng, killed = random.Random(0), 0
    for files in (1, 4, None, None):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            there = sum(path.is_file() for path in root.rglob("*")) if root.exists() else 0
            if rng.random() < 0.02 if files is None else there >= files:
                break
            time.sleep(0.005)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert killed >= 2
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert tree(root) == tree(whole)


def test_features_of_others_are_not_overwritten(made, tmp_path, capsys):
    mine = tmp_path / "data" / "features" / "train" / "rgb" / "a.npy"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert run(made / "videos" / "a.mp4", "--split", "train", "--out", tmp_path / "data") == 1
    assert "was not made by extraction: move it away" in capsys.readouterr().out
    assert mine.read_bytes() == b"mine"


def test_a_video_in_the_other_split(made, tmp_path, capsys):
    assert run(made / "videos" / "a.mp4", "--split", "train", "--out", tmp_path) == 0
    assert run(made / "videos" / "a.mp4", "--split", "test", "--out", tmp_path) == 1
    assert "was extracted for train before" in capsys.readouterr().out


def test_broken_videos_do_not_stop_others(made, tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(made / "videos" / "a.mp4", videos / "good.mp4")
    (videos / "empty.mp4").write_bytes(b"")
    encode(videos / "short.mp4", regular(10))
    encode(videos / "cut.mkv", regular(200), container="matroska")
    (videos / "cut.mkv").write_bytes((videos / "cut.mkv").read_bytes()[:-20000])
    arguments = (videos, videos / "none.mp4", "--split", "test", "--out", tmp_path / "data")
    assert run(*arguments, workers=2) == 1
    told = capsys.readouterr()
    summary = told.out[told.out.index("5 videos:") :]
    assert "5 videos: 2 extracted, 0 kept, 3 failed" in summary
    assert "empty.mp4: is not a video, or damaged" in summary and "none.mp4: there is no such file" in summary
    assert "short.mp4: has 10 frames at 25 fps, and must have 16 or more; --tail repeat" in summary
    assert "warning: " in summary and "cut.mkv: is truncated:" in summary
    assert "empty.mp4" in told.err
    assert json.loads((tmp_path / "data/features/test/cut.json").read_text())["truncated"]
    for path in (videos / "empty.mp4", videos / "short.mp4"):
        path.unlink()
    arguments = (videos, "--split", "test", "--out", tmp_path / "data")
    assert run(*arguments) == 1  # for it is still truncated
    assert run(*arguments, "--accept-truncated") == 0
    assert "2 kept" in capsys.readouterr().out


def crash(image):
    """Ends the process, as a decoder with a defect may, at a gray level that only a long video has."""
    if image[0, 0, 0] > 170:
        os._exit(11)
    return image[::4, ::4]


def test_a_crash_costs_one_video(tmp_path):
    made = tiny_extractor.make({}, ("rgb",), 16, None, None)
    made = made._replace(streams={"rgb": made.streams["rgb"]._replace(prepare=crash)})
    paths = [encode(tmp_path / f"{name}.mp4", regular(60 if name == "b" else 40)) for name in "abc"]
    options = features.Options()
    results = pool.extract_all(paths, made, options, features.make_run(made, options.batch), 1)
    found = {path.stem: result for path, result, _ in results}
    assert isinstance(found["b"], pool.Failure) and "b.mp4: reading it ended a process" in found["b"].reason
    assert all(found[name][1]["num_features"] == 2 for name in "ac")


def test_time_of_tvl1_is_told_before(tmp_path, monkeypatch, capsys):
    """2 videos of 1,500 frames; each pair takes a second, so two workers need 25 minutes, or half as much again."""
    times = iter(range(10))
    monkeypatch.setattr(folder.time, "monotonic", lambda: next(times))
    made = tiny_extractor.make({}, ("rgb",), 16, None, None)
    target = folder.Target(tmp_path, made._replace(identity={"flow": "tvl1"}), features.Options())
    (tmp_path / "a.mp4").write_bytes(b"broken")
    paths = [tmp_path / "a.mp4", *(encode(tmp_path / f"{name}.mp4", regular(60, 1)) for name in "bc")]
    folder.warn_of_tvl1(paths, target, 2)
    assert re.match(
        r"TV-L1 flow of (2,9\d\d|3,0\d\d) frames: about 25 to 37 minutes on 2 cores", capsys.readouterr().out
    )


def test_errors_of_the_network_are_told_by_video(tmp_path):
    made = tiny_extractor.make({}, ("rgb",), 16, None, None)
    infinite = made.streams["rgb"]._replace(load=lambda: np.float32(np.nan), apply=lambda params, clips: clips * params)
    path = encode(tmp_path / "a.mp4", regular(40))
    with pytest.raises(InputError, match=r"a.mp4: its rgb features are not finite"):
        features.extract_video(path, made._replace(streams={"rgb": infinite}), features.Options())


def test_in_memory_as_on_disk(made, whole):
    made_extractor = tiny_extractor.make({}, ("rgb", "flow"), 16, None, None)
    options = features.Options(batch=features.default_batch())
    found, info = features.extract_video(made / "videos" / "a.mp4", made_extractor, options)
    assert info == json.loads((whole / "features/train/a.json").read_text())
    for stream, values in found.items():
        np.testing.assert_array_equal(values, np.load(whole / f"features/train/{stream}/a.npy"))


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_do_not_show(made, whole, batch):
    made_extractor = tiny_extractor.make({}, ("rgb", "flow"), 16, None, None)
    options = features.Options(batch=batch)
    found, _ = features.extract_video(made / "videos" / "a.mp4", made_extractor, options)
    np.testing.assert_allclose(found["rgb"], np.load(whole / "features/train/rgb/a.npy"), rtol=1e-5)


def test_native_rate_tail_and_clip(made, tmp_path):
    path = made / "videos" / "a.mp4"
    made_extractor = tiny_extractor.make({}, ("rgb",), 8, None, None)
    options = features.Options(None, 8, "repeat")
    found, info = features.extract_video(path, made_extractor, options)
    assert info["fps"] == pytest.approx(30, abs=0.01) and info["resampled_to"] == "native" and info["frames"] == 50
    assert len(found["rgb"]) == info["num_features"] == 7 and info["feature_offset_frames"] == 4
    found, info = features.extract_video(path, made_extractor, features.Options(Fraction(30), 4, "cmcs"))
    assert len(found["rgb"]) == info["num_features"] == clips.count(50, clips.Grid(8, 4)) - 1


def test_memory_does_not_grow(tmp_path):
    """All pictures would be 230 MB; what is in memory after the first few is the same at the end."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc")
    path = encode(tmp_path / "long.mkv", regular(4000), size=(160, 120))
    full = extractor.Stream((0, 5, 15), False, np.copy, lambda: (), lambda params, clips: clips.mean(axis=(1, 2, 3)))
    made = extractor.Extractor({"rgb": full}, lambda width, height: (width, height), 1, {"clip": 16})
    resident = {}
    for message in features.prepare(path, made, features.Options(stride=5)):
        if isinstance(message, features.Batch):
            resident[message.frames] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    early = max(value for frames, value in resident.items() if frames < 600)
    late = max(value for frames, value in resident.items() if frames > 3400)
    assert message["num_features"] == 797 and late < early + 20


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.mp4,train\na.mp4,test\n", "line 2: 'a.mp4' is there more than once"),
        ("a.mp4,valid,x\n", "line 1: split is 'valid': must be train or test"),
        ("a.mp4,train,x,y\n", "line 1: has 4 parts, not video,split,label;label"),
        ("a.mp4\n", "line 1: has 1 parts"),
        ("a.mp4,train,x\x00y\n", "line contains NUL|characters that do not print"),
        ("a.mp4,train,x\n", "'b', 'c', 'd': not in labels.csv: add a line, or --split train or test"),
        ("a.mp4,train,\nb,test,\nc,test,\nd,test,\n", "'a': is a training video without any label"),
        (
            "a,train,x\nb,train,x\nc,test,jump\nd,test,\n",
            r"'c': labels are \['jump'\] in labels.csv, \['run'\] in",
        ),
    ],
)
def test_labels_that_are_wrong(made, tmp_path, text, message):
    """Told before anything is extracted."""
    (tmp_path / "labels.csv").write_text(text)
    videos = labels.find_videos([made / "videos"])
    with pytest.raises(InputError, match=message):
        labels.known(videos, tmp_path / "labels.csv", made / "truth.json", None)


def test_videos_that_are_found(made, tmp_path):
    videos = made / "videos"
    assert list(labels.find_videos([videos])) == ["a", "b", "c", "d"]
    assert list(labels.find_videos([f"{videos}/*.mp4", videos / "a.mp4"])) == ["a", "c"]
    assert list(labels.find_videos([f"{videos}/**/*.mp4"])) == ["a", "b", "c"]
    with pytest.raises(InputError, match="the folder has no videos"):
        labels.find_videos([tmp_path])
    odd = tmp_path / "a[1].mp4"
    odd.touch()
    assert labels.find_videos([odd]) == {"a[1]": odd}
    with pytest.raises(InputError, match="nothing matches"):
        labels.find_videos([f"{videos}/*.mov"])
    (tmp_path / "a.mkv").touch()
    with pytest.raises(InputError, match=r"have one id, 'a': rename one"):
        labels.find_videos([tmp_path / "a.mkv", videos / "a.mp4"])


def test_a_gt_that_cannot_be_read_is_left(made, tmp_path):
    (tmp_path / "gt.json").write_text("{")
    assert "gt.json" in run(made / "videos" / "a.mp4", "--split", "train", "--out", tmp_path)
    assert (tmp_path / "gt.json").read_text() == "{"


def test_one_extractor_in_a_folder(whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    ids, problems = {"train": ["a", "b"], "test": ["c", "d"]}, Problems()
    extraction = sidecar.check_one_extractor(root, ids, problems)
    assert not problems
    options = {"resampled_to": 25, "feature_stride_frames": 16, "tail": "drop"}
    assert extraction == {
        "extractor": json.loads((root / "features" / "test" / "c.json").read_text())["extractor"],
        **options,
    }
    path = root / "features" / "test" / "c.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "tail": "repeat"}))
    assert sidecar.check_one_extractor(root, ids, problems) is None and not problems
    path.write_text(json.dumps({**info, "extractor": {**info["extractor"], "version": 2}}))
    assert sidecar.check_one_extractor(root, {**ids, "test": ["d"]}, problems) == extraction and not problems
    with pytest.raises(FolderError, match="extract all with one"):
        feature_folder.check(root)
    assert sidecar.check_one_extractor(root, ids, problems) is None
    (line,) = problems.lines()
    assert "features/test/rgb/c.npy" in line and '"version": 2' in line and "features/train/rgb/a.npy" in line
    path.write_text("{")
    problems = Problems()
    sidecar.check_one_extractor(root, ids, problems)
    assert "features/test/c.json: cannot be read" in problems.lines()[0]


def test_without_the_extra(monkeypatch, made, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    message = run(made / "videos", "--split", "test", "--out", tmp_path / "data")
    assert "videos need the extra [video]" in message and 'pip install "wsal_jax[video]"' in message
    assert "\n" not in message and not (tmp_path / "data").exists()
    monkeypatch.undo()
    monkeypatch.delattr("cv2.optflow", raising=False)
    with pytest.raises(InputError, match="without its contributed modules"):
        video.require()


def test_options_that_are_wrong(made, tmp_path, capsys):
    for option, value in (("--fps", "0"), ("--shard", "3/3"), ("--stride", "0"), ("--nonsense", "1")):
        assert run(made / "videos", "--split", "test", "--out", tmp_path, option, value) == 2, option
    assert "i/n with 0 <= i < n" in capsys.readouterr().err


def test_bench_counts_the_operations_of_all_clips():
    """Also of a network that takes one clip after the other; the last batch is filled up."""
    weights = np.ones((6, 7), np.float32)

    def apply(params, clips):
        return jax.lax.map(lambda clip: clip @ params, clips)

    stream = extractor.Stream((0,), False, None, lambda: weights, apply)
    clock, operations = video_bench.time_network(
        stream, [np.zeros((4, 6), np.float32), np.zeros((1, 6), np.float32)], 4
    )
    assert operations == 2 * 4 * 2 * 6 * 7 and clock.wall > 0


def test_bench_tells_of_each_stage(monkeypatch, capsys):
    monkeypatch.setattr(bench, "product_rate", lambda: 1e9)
    monkeypatch.setattr(sys, "argv", ["bench", "extract", "--extractor", "tiny"])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert "10.0 s, 15 snippets" in lines[1]
    assert [line[:28].strip() for line in lines[3:-1]] == [
        "decode, resample, resize",
        "None for flow",
        "network for rgb",
        "network for flow",
        "total",
    ]
    times = [float(line[28:].split()[0]) for line in lines[3:-1]]
    assert sum(times[:-1]) == pytest.approx(times[-1], abs=0.3)
