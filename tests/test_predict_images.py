"""A run from a folder of images to its table, and what it finds in new images."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs import maan2d
from tests.image_files import caffe_squeezenet, picture, write
from wsal_jax import evaluate_images, localizer, localizer_images, main, predict, predict_images, results
from wsal_jax.localizer import Localizer
from wsal_jax.types import InputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, weights and a run of two seeds, and the run's table."""
    folder = tmp_path_factory.mktemp("images")
    root = folder / "data"
    lines = ["split,file,class,xmin,ymin,xmax,ymax"]
    for split, count in (("train", 8), ("test", 4)):
        for i in range(count):
            label = ("cat", "dog")[i % 2]
            write(root / split / label / f"{i}.png", picture(40, 30, i))
            lines.append(f"{split},{label}/{i}.png,{label},{i},5,{i + 15},20")
    (root / "boxes.csv").write_text("\n".join(lines))
    caffe_squeezenet(folder / "w.npz")
    config = maan2d.get_config("backbone=squeezenet,pool=4")
    config.data.update(root=str(root), dir=str(folder / "built"))
    config.data.reader.weights = str(folder / "w.npz")
    config.seeds, config.steps, config.log_every, config.batch_size = 2, 3, 3, 8
    config.evaluation.levels, config.evaluation.bootstrap, config.plots = 3, 10, 2
    config.localize.normalize = "range"
    with pytest.raises(InputError, match="give max or minmax"):
        main.run(config, str(folder / "run"))
    config.localize.normalize = "max"
    return folder, main.run(config, str(folder / "run"))


def call(*arguments):
    """The exit status or message of the command."""
    with pytest.raises(SystemExit) as exit:
        predict.main([str(x) for x in arguments])
    return exit.value.code


def test_a_run_from_a_folder_of_images_to_its_table(trained):
    folder, text = trained
    for row in ("rgb", "whole image", "centred square", "mean training box", "shuffled"):
        assert f"\n{row} " in text
    assert "images 4" in text and "GT-known, small" in text
    content = json.loads((folder / "run" / "results.json").read_text())
    assert len(content["rows"]["rgb"]["GT-known"]["values"]) == 2
    assert results.final_row(content["rows"]) == "rgb"
    assert Image.open(folder / "run" / "plots" / "images.png").size[1] > 400
    found = json.loads((folder / "run" / "detections.json").read_text())
    assert {x["file_name"] for x in found["images"]} == {f"test/{x}.png" for x in ("cat/0", "dog/1", "cat/2", "dog/3")}
    assert (folder / "run" / "detections_seed1.json").exists()
    assert "data:image/jpeg" in (folder / "run" / "report" / "index.html").read_text()


def test_predictions_are_those_of_the_run(trained):
    """Of test images, by its first seed alone."""
    run = localizer.load(trained[0] / "run")
    first = {model: jax.tree.map(lambda x: x[:1], params) for model, params in run.trained.params.items()}
    own = Localizer(run._replace(trained=run.trained._replace(params=first)))
    content = json.loads((trained[0] / "run" / "detections.json").read_text())
    names = [one["name"] for one in content["categories"]]
    for image in content["images"]:
        of_image = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        found = own(trained[0] / "data" / image["file_name"])
        assert sorted(one.label for one in found) == sorted(names[one["category_id"] - 1] for one in of_image)
        for one in found:
            (same,) = [x for x in of_image if names[x["category_id"] - 1] == one.label]
            x, y, width, height = same["bbox"]
            np.testing.assert_allclose(one[:4], [x, y, x + width, y + height], atol=0.006)
            assert one.score == pytest.approx(same["score"], abs=1e-5)


def test_a_folder_of_images_becomes_boxes_overlays_and_a_page(trained, tmp_path, capsys):
    run, images = trained[0] / "run", tmp_path / "new"
    write(images / "a" / "one.jpg", picture(200, 90, 5))
    write(images / "two.png", picture(30, 60, 6))
    write(images / "gray.png", picture(20, 20, 7).convert("L"))
    (images / "broken.jpg").write_text("no picture")
    assert call(images, "--run", run, "--threshold", 0.0) == 1
    out, err = capsys.readouterr()
    assert "broken.jpg: is no picture" in err and "left out: broken.jpg" in err
    content = json.loads((run / "predictions" / "detections.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["a/one.jpg", "gray.png", "two.png"]
    assert content["images"][0]["width"] == 200 and [one["name"] for one in content["categories"]] == ["cat", "dog"]
    assert "a/one.jpg: 200 x 90\n    xmin    ymin    xmax    ymax  class  score" in out
    best = max((x for x in content["annotations"] if x["image_id"] == 1), key=lambda x: x["score"])
    x, y, width, height = best["bbox"]
    label = ("cat", "dog")[best["category_id"] - 1]
    corners = "".join(f"{round(v, 2):8.1f}" for v in (x, y, x + width, y + height))
    assert f"{corners}  {label:<5}  {best['score']:.3f}" in out
    assert Image.open(run / "predictions" / "overlays" / "a" / "one.jpg.jpg").size == (320, 144)
    page = (run / "predictions" / "index.html").read_text()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["images"]
    assert [one["id"] for one in shown] == ["a/one.jpg", "gray.png", "two.png"]
    assert (
        shown[0]["truth"] is None and shown[0]["runs"][0]["verdict"] is None and len(shown[0]["runs"][0]["maps"]) == 1
    )
    assert call(images / "two.png", "--run", run, "--threshold", 2) == 0
    assert "two.png: 30 x 60, no box with a score of 2 or more" in capsys.readouterr().out


def test_seeds_are_averaged(trained):
    own = Localizer.load(trained[0] / "run")
    values, meta = own.extract(trained[0] / "data" / "test" / "cat" / "0.png")
    scores = own.score(values)
    together, found = localizer_images.localize(own.run, scores, meta)
    seeds = scores["rgb"]
    np.testing.assert_allclose(together.cas, (seeds[0].cas + seeds[1].cas) / 2, rtol=1e-6)
    np.testing.assert_allclose(together.video_score, (seeds[0].video_score + seeds[1].video_score) / 2, rtol=1e-6)
    expected = evaluate_images.find(together, meta, own.run.trained.config.localize)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert [one.score for one in own.localize(values, meta)] == sorted(found.scores, reverse=True)
    with pytest.raises(InputError, match="size of the image is not known"):
        own.localize(values)


def test_what_cannot_be_predicted_is_told(trained, tmp_path):
    run, image = trained[0] / "run", trained[0] / "data" / "test" / "cat" / "0.png"
    (tmp_path / "empty").mkdir()
    assert "the folder has no images" in call(tmp_path / "empty", "--run", run)
    assert "nothing matches" in call(tmp_path / "*.jpg", "--run", run)
    assert "is a run of images" in call("--features", tmp_path, "--run", run)
    for name in ("a/x.png", "b/x.png"):
        write(tmp_path / name)
    assert "have one name" in call(tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", "--run", run)
    assert set(predict_images.find([str(tmp_path)])) == {"a/x.png", "b/x.png"}
    caffe_squeezenet(tmp_path / "w.npz")
    other = dict(np.load(tmp_path / "w.npz"))
    other["conv1.b"][0] += 1
    np.savez(tmp_path / "w.npz", **other)
    assert "are others than those of the run" in call(image, "--run", run, "--weights", f"rgb={tmp_path / 'w.npz'}")
    assert "are not there" in call(image, "--run", run, "--weights", f"rgb={tmp_path / 'none.npz'}")
    assert call(tmp_path / "gone.png", "--run", run) == 1
