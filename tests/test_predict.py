"""New videos by a trained run: from files and from features, by the command and from Python."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra [video]")
pytest.importorskip("cv2", reason="needs the extra [video]")

import tiny_extractor
from tiny_extractor import encode, regular

import wsal_jax
from configs import maan
from wsal_jax import evaluate, extract, localizer, main, predict, sharding
from wsal_jax.data import pipeline
from wsal_jax.fuse import fuse
from wsal_jax.localizer import Localizer
from wsal_jax.types import Detections, InputError, Meta
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
        patch.setattr(sharding, "make_mesh", lambda: mesh)
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
    return {
        id: sorted([*one["segment"], one["label"], one["score"]] for one in found) for id, found in results.items()
    }


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
    assert sorted(path.name for path in (run / "predictions" / "c").iterdir()) == [
        "detections.json",
        "scores.npz",
        "video.json",
    ]
