"""New videos by a trained run: from files and from features, by the command and from Python."""

import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

pytest.importorskip("av", reason="needs the extra [video]")
pytest.importorskip("cv2", reason="needs the extra [video]")

import tiny_extractor
from tiny_extractor import encode, regular

import wsal_jax
from configs import maan
from wsal_jax import extract, localize, main, predict, record, sharding
from wsal_jax import localizer as localizer_module
from wsal_jax.data import pipeline
from wsal_jax.localizer import Localizer
from wsal_jax.method import options_of
from wsal_jax.types import InputError, Meta, Model
from wsal_jax.video import extractor

LABELS = "a.mp4,train,jump;run\nb.mp4,train,run\nc.mp4,test,run\nd.mp4,test,\n"
VIDEOS = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(extractor.EXTRACTORS, "tiny", tiny_extractor.make)


def call(command, *arguments):
    """A command; its exit status or message."""
    with pytest.raises(SystemExit) as exit:
        command.main([str(x) for x in arguments])
    return exit.value.code


def train(root, tfds_dir, workdir, seeds, **options):
    config = maan.get_config("dataset=feature_folder")
    config.data.root, config.data.dir, config.seeds = str(root), tfds_dir, seeds
    config.batch_size, config.num_snippets, config.steps, config.log_every, config.checkpoint_every = 2, 4, 4, 4, 4
    config.plots, config.evaluation.bootstrap = 0, 0
    config.update(options)
    with pytest.MonkeyPatch.context() as patch:
        mesh = sharding.make_mesh(jax.devices()[:2])  # of 2 of the 8 devices, for 2 videos
        patch.setattr(sharding, "make_mesh", lambda *given: mesh)
        main.run(config, str(workdir))
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory, tfds_dir):
    """Four videos, their features, and a run of one seed."""
    root = tmp_path_factory.mktemp("made")
    (root / "videos").mkdir()
    for seed, name in enumerate(VIDEOS):
        encode(root / "videos" / name, regular(70 + 40 * seed), seed=seed)
    (root / "labels.csv").write_text(LABELS)
    (root / "truth.json").write_text(
        json.dumps({"database": {"c": {"annotations": [{"segment": [0.5, 1.5], "label": "run"}]}}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractor.EXTRACTORS, "tiny", tiny_extractor.make)
        data, known = root / "data", ("--labels", root / "labels.csv", "--annotations", root / "truth.json")
        assert call(extract, root / "videos", *known, "--out", data, "--extractor", "tiny", "--workers", 1) == 0
    train(data, tfds_dir, root / "run", 1)
    return root


def detections(path):
    """Of each video, sorted (segment, label, score)."""
    results = json.loads(path.read_text())["results"]
    return {id: sorted([*one["segment"], one["label"], one["score"]] for one in found) for id, found in results.items()}


def assert_equal(found, expected):
    assert [one[2] for one in found] == [one[2] for one in expected] and len(found) > 0
    for i in (0, 1, 3):
        np.testing.assert_allclose([one[i] for one in found], [one[i] for one in expected], rtol=1e-5)


def test_predictions_are_those_of_the_run(made, tmp_path, capsys):
    """Of test videos, from the files, in a run that was moved, while nothing else of it is there."""
    run = tmp_path / "moved" / "run"
    shutil.copytree(made / "run", run)
    expected = detections(run / "detections.json")
    assert call(predict, made / "videos" / "c.mp4", made / "videos" / "[d].mp4", "--run", run) == 0
    out = capsys.readouterr().out
    assert "c.mp4: 6.0 s, 9 snippets" in out and "start      end  class  score" in out
    for id in "cd":
        folder = run / "predictions" / id
        (found,) = detections(folder / "detections.json").items()
        assert found[0] == id
        assert_equal(found[1], expected[id])
        for start, end, label, score in found[1]:
            assert f"{start:8.2f} {end:8.2f}  {label:<5}  {score:.3f}" in out
        with np.load(folder / "scores.npz") as scores:
            assert {name: scores[name].shape for name in ("fused/cas", "rgb/attention", "flow/video_score")} == {
                "fused/cas": (len(scores["rgb/cas"]), 2),
                "rgb/attention": (len(scores["rgb/cas"]),),
                "flow/video_score": (2,),
            }
            assert scores["fused/cas"].dtype == np.float16
        video = json.loads((folder / "video.json").read_text())
        assert video["file"] == str(made / "videos" / f"{id}.mp4") and video["stride"] == 16
        assert Localizer.load(run)(made / "videos" / f"{id}.mp4") == [tuple(one) for one in found[1]]
    (page,) = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>',
        (run / "predictions" / "index.html").read_text("utf-8"),
        re.S,
    )
    shown = {video["id"]: video for video in json.loads(page)["videos"]}
    assert list(shown) == ["c", "d"] and shown["c"]["truth"] is None and shown["c"]["strip"]
    assert len(shown["c"]["runs"][0]["found"]) == len(expected["c"]) and shown["c"]["runs"][0]["scores"]
    assert sorted(path.name for path in (run / "predictions" / "c").iterdir()) == [
        "detections.json",
        "scores.npz",
        "video.json",
    ]


def test_a_run_knows_its_data(made, tmp_path):
    """Also where the folder that they were built from is gone."""
    data = json.loads((made / "run" / "data.json").read_text())
    sidecar = json.loads((made / "data" / "features" / "train" / "a.json").read_text())
    assert data["classes"] == ["jump", "run"] and data["dims"] == {"rgb": 5, "flow": 5}
    assert data["grid"] == {"fps": 25.0, "stride": 16.0, "offset": 8.0}
    assert data["extraction"]["extractor"] == sidecar["extractor"] and data["extraction"]["resampled_to"] == 25.0
    config = json.loads((made / "run" / "config.json").read_text())
    (folder,) = Path(config["data"]["dir"]).glob(f"{config['dataset']}")
    test = pipeline.load(tfds.builder_from_directory(folder), "test")  # knows nothing of made / "data"
    record.write(tmp_path, test, ConfigDict(config))
    assert {**json.loads((tmp_path / "data.json").read_text()), "command": None} == {**data, "command": None}


def test_one_broken_video_does_not_stop_others(made, tmp_path, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    shutil.copy(made / "videos" / "c.mp4", tmp_path / "videos" / "-c 100%.mp4")
    arguments = (tmp_path / "videos", tmp_path / "gone.mp4", "--run", tmp_path / "run", "--threshold", 2)
    assert call(predict, *arguments) == 1
    out, err = capsys.readouterr()
    assert "broken.mp4: is not a video" in err and "gone.mp4" in err and "written to" in out
    assert "no segment with a score of 2 or more" in out
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir() if path.is_dir()] == ["-c 100%"]
    (found,) = detections(tmp_path / "run" / "predictions" / "-c 100%" / "detections.json").items()
    assert found[0] == "-c 100%" and found[1]
    shutil.copy(made / "videos" / "c.mp4", tmp_path / "videos" / "line\nbreak.mp4")
    assert "is no video id" in call(predict, tmp_path / "videos", "--run", tmp_path / "run")
    assert not (tmp_path / "run" / "predictions" / "line\nbreak").exists()


def test_features_instead_of_videos(made, tmp_path, capsys):
    """Those of extraction; without sidecars, on the grid of the run; joint; and what is wrong with some."""
    run, folder = tmp_path / "run", tmp_path / "features"
    shutil.copytree(made / "run", run)
    shutil.copytree(made / "data" / "features" / "test", folder)
    values = {stream: np.load(folder / stream / "c.npy") for stream in ("rgb", "flow")}
    np.save(folder / "joint.npy", np.concatenate([*values.values()], axis=1).astype(np.float16))
    for id, stream, array in (
        ("wide", "rgb", np.zeros((9, 7), np.float32)),
        ("wide", "flow", values["flow"]),
        ("alone", "rgb", values["rgb"]),
        ("other", "rgb", values["rgb"]),
        ("other", "flow", values["flow"]),
        ("longer", "rgb", values["rgb"][:-1]),
        ("longer", "flow", values["flow"]),
        ("timed", "rgb", values["rgb"]),
        ("timed", "flow", values["flow"]),
        ("untimed", "rgb", values["rgb"]),
        ("untimed", "flow", values["flow"]),
    ):
        np.save(folder / stream / f"{id}.npy", array)
    info = json.loads((folder / "c.json").read_text())
    (folder / "other.json").write_text(json.dumps({**info, "extractor": {**info["extractor"], "name": "i3d"}}))
    (folder / "timed.json").write_text(json.dumps({"fps": 50, "duration": 2.5}))
    (folder / "untimed.json").write_text(json.dumps({"fps": "fast"}))
    assert call(predict, "--features", folder, "--run", run) == 1
    err = capsys.readouterr().err
    for part in (
        "wide: rgb features have 7 dimensions, and the run was trained on 5 dimensions, of tiny",
        "alone: there are no flow features, and the run needs rgb and flow",
        "other: features of another extractor than the model was trained on, i3d instead of tiny",
        '(name: "i3d", not "tiny")',
        "number of snippets differs, 8 in rgb and 9 in flow",
        "untimed: \"fps\" is 'fast'",
    ):
        assert part in err
    expected = detections(run / "detections.json")
    found = {}
    for id in ("c", "d", "joint", "timed"):
        found |= detections(run / "predictions" / id / "detections.json")
    assert sorted(path.name for path in (run / "predictions").iterdir() if path.is_dir()) == sorted(found)
    for id in "cd":
        assert_equal(found[id], expected[id])
    assert json.loads((run / "predictions" / "joint" / "video.json").read_text())["duration"] == 9 * 16 / 25
    np.testing.assert_allclose([one[0] for one in found["joint"]], [one[0] for one in found["c"]])
    assert [one[0] for one in found["timed"]] == [one[0] / 2 for one in found["c"] if one[0] < 5]
    assert max(one[1] for one in found["timed"]) <= 2.5
    # From Python: by the grid of the run, or by a meta of one's own.
    localizer = Localizer.load(run)
    segments = localizer.localize(values)
    assert [one[:1] for one in segments] == [tuple(one[:1]) for one in found["joint"]]
    assert localizer.score(values)["rgb"][0].cas.shape == (9, 2)
    with pytest.raises(InputError, match="there are no flow features"):
        localizer.score({"rgb": values["rgb"]})


def test_seeds_are_fused_as_models_are(made, tfds_dir, tmp_path):
    """Brute force: the fused scores are the means over all, with the weights of the models."""
    config = train(made / "data", tfds_dir, tmp_path / "run", 2, fusion=(0.75, 0.25))
    localizer = Localizer.load(tmp_path / "run")
    values = {stream: np.load(made / "data" / "features" / "test" / stream / "d.npy") for stream in ("rgb", "flow")}
    scores = localizer.score(values)
    assert [len(scores[model]) for model in ("rgb", "flow")] == [2, 2]
    meta = Meta("d", len(values["rgb"]), 25.0, 16.0, 8.0, 7.6)
    of_models, found = localizer_module.localize(localizer.run, scores, meta)
    for field in ("cas", "attention", "video_score"):
        rgb, flow = ([np.float64(getattr(one, field)) for one in scores[model]] for model in ("rgb", "flow"))
        np.testing.assert_allclose(getattr(of_models["rgb"], field), (rgb[0] + rgb[1]) / 2)
        expected = 0.375 * (rgb[0] + rgb[1]) + 0.125 * (flow[0] + flow[1])
        np.testing.assert_allclose(getattr(of_models["fused"], field), expected)
    options = options_of(config.localize, "", "config.localize")
    direct = localize.propose((), Model(of_models["fused"], options), meta)
    for mine, other in zip(found, direct):
        np.testing.assert_array_equal(mine, other)


def test_runs_that_cannot_predict(made, tmp_path):
    run, video = tmp_path / "run", made / "videos" / "c.mp4"
    assert "holds no run" in call(predict, video, "--run", tmp_path)
    shutil.copytree(made / "run", run)
    data = json.loads((run / "data.json").read_text())

    def message(change):
        (run / "data.json").write_text(json.dumps({**data, **change}))
        return call(predict, video, "--run", run)

    assert "trained on features of which nothing is known" in message({"extraction": None})
    extraction = data["extraction"]
    other = message({"extraction": {**extraction, "extractor": {**extraction["extractor"], "version": 2}}})
    assert "version: 1, not 2" in other and "tiny instead of tiny" in other
    assert "no extractor 'gone'" in message(
        {"extraction": {**extraction, "extractor": {**extraction["extractor"], "name": "gone"}}}
    )
    for wrong in ({"dims": {"rgb": 5}}, {"classes": 1}, {"grid": {}}, {"extraction": {"extractor": 1}}):
        assert "data.json is damaged" in message(wrong), wrong
    (run / "data.json").unlink()
    assert "data.json is missing" in call(predict, video, "--run", run)
    assert call(predict, "--run", run) == call(predict, video, "--features", run, "--run", run) == 2


def test_only_the_streams_of_the_run_are_extracted(made, tmp_path):
    run = localizer_module.load(made / "run")
    made_by = {"name": "efficientnet_lite0", "version": 1, "weights_sha256": {"rgb": "0"}, "flow": "dis_medium",
               "clip": 16, "crop": "resize", "frames_per_clip": 4, "dtype": "float32"}  # fmt: skip
    data = {
        **run.data,
        "extraction": {**run.data["extraction"], "extractor": made_by, "resampled_to": 29.97002997002997},
    }
    run = run._replace(data=data, methods={"flow": run.methods["flow"]})
    made_again, options = localizer_module.make_extractor(run)
    assert list(made_again.streams) == ["flow"]
    assert options.fps == Fraction(30000, 1001) and options.record() == {
        name: data["extraction"][name] for name in ("resampled_to", "feature_stride_frames", "tail")
    }
    with pytest.raises(InputError, match=r'weights_sha256: \{"rgb": ".*"\}, not \{"rgb": "0"\}'):
        localizer_module.make_extractor(run._replace(methods={"rgb": None, "flow": None}))


def test_the_package_imports_nothing_until_it_is_used():
    code = "import sys, wsal_jax; assert not {'jax', 'numpy'} & {*sys.modules}; print(wsal_jax.Localizer)"
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "wsal_jax.localizer.Localizer" in found
    with pytest.raises(AttributeError, match="no attribute 'localiser'"):
        wsal_jax.localiser  # noqa: B018
