"""The page of a run of images: what it says is what the run measured."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import maan2d
from tests.image_files import picture, write
from tests.test_evaluate_images import GRID, made, scores_of
from wsal_jax import evaluate_images, export, plot, record, report, report_images
from wsal_jax.types import Annotation, Boxes

WRONG = 6


def evaluated(folder, root, scores):
    config = maan2d.get_config()
    config.data.root, config.plots = str(root), 0
    config.evaluation.bootstrap, config.evaluation.levels = 0, 1
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    data = made().data
    evaluate_images.report({"rgb": [scores]}, {"train": data, "test": data}, config, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without the training; half of its images are there."""
    root = tmp_path_factory.mktemp("images")
    images = made()
    for i, meta in enumerate(images.data.metas[:12]):
        write(root / "data" / meta.id, picture(*meta.size, seed=i))
    scores = scores_of(images, wrong=WRONG)
    moved = scores_of(images, shift=2)
    return evaluated(root / "one", root / "data", [*scores[:18], *moved[18:]])


def content(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_run_keeps_its_images_boxes_and_maps(run):
    images, kept = made(), record.read(run)
    assert kept.metas == images.data.metas
    for got, expected in zip(kept.annotations, images.data.annotations):
        np.testing.assert_array_equal(got.boxes, expected.boxes)
    np.testing.assert_array_equal([kept.classes.index(*one["labels"]) for one in kept.data["videos"]], images.classes)
    scores = record.read_scores(run, kept)["rgb"]
    np.testing.assert_allclose(scores[3].cas, scores_of(images, wrong=WRONG)[3].cas)


def test_the_page_of_training_says_what_was_measured(run):
    made_page = content(run / "report" / "index.html")
    images = made()
    assert [one["id"] for one in made_page["images"]] == [meta.id for meta in images.data.metas]
    verdicts = [one["runs"][0]["verdict"] for one in made_page["images"]]
    assert verdicts == ["class"] * WRONG + ["right"] * 12 + ["box"] * 6
    measured = json.loads((run / "results.json").read_text())["rows"]["rgb"]["top-1 loc"]["mean"]
    assert 100 * np.mean([one == "right" for one in verdicts]) == measured == 50
    first, later = made_page["images"][0], made_page["images"][12]
    assert first["labels"] == [images.classes[0]] and first["runs"][0]["top"][0] == (images.classes[0] + 1) % 8
    np.testing.assert_allclose(first["truth"], [[*images.data.annotations[0].boxes[0], images.classes[0]]])
    assert Image.open(io.BytesIO(base64.b64decode(first["picture"].partition(",")[2]))).size == (28, 56)
    assert later["picture"] is None and later["runs"][0]["found"]
    maps = dict((label, np.frombuffer(base64.b64decode(x), np.uint8)) for label, x in first["runs"][0]["maps"])
    assert first["runs"][0]["grid"] == list(GRID) and list(maps) == [first["runs"][0]["top"][0], images.classes[0]]
    of_class = scores_of(images)[0].cas[:, images.classes[0]]
    np.testing.assert_array_equal(maps[images.classes[0]], 255 * of_class)


def test_what_is_right():
    true = Annotation(np.zeros((2, 2)), np.array([1, 2]), boxes=np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float))
    found = Boxes(np.array([[20, 0, 30, 9], [0, 0, 10, 9]], float), np.array([1, 2]), np.ones(2))
    swapped = found._replace(labels=found.labels[::-1])
    verdict = report_images.verdict
    assert [verdict(1, x, [1, 2], true) for x in (found, swapped)] == ["box", "right"]
    assert verdict(0, found, [1, 2], true) == "class"
    assert verdict(1, found._replace(labels=np.array([2, 2])), [1, 2], true) == "box"  # no box of it
    assert verdict(1, found, [], true) is verdict(None, found, [1], true) is verdict(1, found, [1], None) is None
    assert verdict(3, found, [3], true) is None  # the class is right, and no box of it is known


def test_maps_become_bytes():
    values = np.array([[-1.0, 0.0], [1.0, np.nan]])
    np.testing.assert_array_equal(report_images.levels(values, "max"), [[0, 0], [255, 0]])
    np.testing.assert_array_equal(report_images.levels(values, "minmax"), [[0, 128], [255, 128]])
    assert not report_images.levels(np.full((2, 2), -3.0), "max").any()


def test_several_runs_and_pages(run, tmp_path, capsys):
    """The other run has its classes in another order and lacks an image."""
    other = tmp_path / "two"
    shutil.copytree(run, other)
    about = json.loads((other / "data.json").read_text())
    about["classes"] = about["classes"][::-1]
    lost = about["videos"].pop(2)["id"]
    (other / "data.json").write_text(json.dumps(about))
    (other / "scores.npz").unlink()
    ids = [one["id"] for one in about["videos"][:3]] + [lost]
    report.main([str(run), str(other), "--ids", ",".join(ids), "--out", str(tmp_path / "x.html")])
    assert "written: " in capsys.readouterr().out
    page = content(tmp_path / "x.html")
    assert [one["name"] for one in page["runs"]] == ["one", "two"]
    for image in page["images"]:
        first, second = image["runs"]
        assert (second is None) == (image["id"] == lost)
        if second:
            assert first["found"] == second["found"] and second["maps"] == [] and second["top"][1] is None
    runs = [report_images.read(run)]
    files = report_images.write(runs, tmp_path / "p.html", report_images.pictures(runs, None), part=3000)
    assert len(files) > 2
    pages = [content(file) for file in files]
    assert sum(len(one["images"]) for one in pages) == 24
    assert pages[1]["elsewhere"][0] == ["page 1", "p.html"] and len(pages[1]["elsewhere"]) == len(files) - 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("detections.json", "{", "cannot be read as JSON"),
        ("detections.json", '{"results": {}}', "not what a run of images writes"),
        ("data.json", '{"version": 1}', "data.json is damaged"),
    ],
)
def test_what_is_wrong_with_a_run_is_said(run, tmp_path, name, text, words):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(SystemExit, match=words):
        report.main([str(tmp_path / "run")])


def test_commands_for_videos_say_that_these_are_images(run):
    for command, options in ((export, ["--format", "csv"]), (plot, ["--ids", "all"])):
        with pytest.raises(SystemExit, match="is a run of images"):
            command.main([str(run), *options])
    with pytest.raises(SystemExit, match="no run has a test image 'nobody'"):
        report.main([str(run), "--ids", "nobody"])
    with pytest.raises(SystemExit, match=r"has none of the images, such as test/0\.jpg"):
        report.main([str(run), "--videos", str(run)])
