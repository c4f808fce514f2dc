"""What a run keeps, and what the report, the pictures and the exports make of it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from wsal_jax import evaluate, export, film, import_labels, methods, page, plot, record, report
from wsal_jax.data import pipeline
from wsal_jax.formats.checks import FolderError
from wsal_jax.localize import inside
from wsal_jax.types import Detections, InputError, Scores


@pytest.fixture(scope="module")
def data(tfds_dir):
    from configs import maan

    config = maan.get_config("dataset=synthetic_untrimmed/tiny")
    config.data.dir = tfds_dir
    return pipeline.load(pipeline.build(config.data), "test")


def scores_of(data, seed) -> list[Scores]:
    """Noise and, where a class is true, more of it."""
    rng = np.random.default_rng(seed)
    result = []
    for meta, annotation, labels in zip(data.metas, data.annotations, data.labels):
        cas = rng.normal(0, 1, (meta.length, len(data.class_names))).astype(np.float32)
        attention = inside(annotation, meta).astype(np.float32)
        cas += 3 * attention[:, None] * labels
        result.append(Scores(np.clip(labels, 0.1, 0.9).astype(np.float32), cas, attention))
    return result


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of two models, without the training."""
    from configs import maan

    config = maan.get_config("dataset=synthetic_untrimmed/tiny")
    config.plots, config.evaluation.bootstrap = 0, 0
    folder = tmp_path_factory.mktemp("runs") / "one"
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    lines = [{"model": "rgb", "step": s, "train/loss": [1 / s], "train/first_loss": [9.0]} for s in (2, 4, 6, 4)]
    (folder / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), '{"model": "rgb", "st']))
    of_models = {"rgb": [scores_of(data, 0)], "flow": [scores_of(data, 1)]}
    evaluate.report(methods.get(config.method), of_models, data, config, folder, {})
    return folder


def content(path: Path) -> dict:
    """The data of a page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_run_keeps_what_it_was_tested_on_and_its_scores(run, data):
    kept = record.read(run)
    assert kept.metas == data.metas and kept.classes == data.class_names
    for got, expected in zip(kept.annotations, data.annotations):
        np.testing.assert_array_equal(got.segments, expected.segments)
        np.testing.assert_array_equal(got.labels, expected.labels)
    about = kept.data
    assert about["dims"] == data.dims and about["streams"] == list(data.dims) and about["extraction"] is None
    assert about["grid"] is None and len({meta.fps for meta in data.metas}) > 1
    scores = record.read_scores(run, kept)
    assert list(scores) == ["rgb", "flow", "fused"]
    rgb, flow = scores_of(data, 0), scores_of(data, 1)
    for i in range(len(rgb)):
        np.testing.assert_allclose(scores["flow"][i].cas, flow[i].cas, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(scores["fused"][i].cas, (rgb[i].cas + flow[i].cas) / 2, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(scores["rgb"][i].attention, rgb[i].attention)


def test_scores_beyond_half_precision_and_attention_of_classes(run, data, tmp_path):
    shutil.copy(run / "data.json", tmp_path)
    large = [x._replace(cas=1e30 * x.cas, class_attention=np.abs(x.cas)) for x in scores_of(data, 0)]
    record.write_scores(tmp_path, {"rgb": large, "flow": scores_of(data, 1)})
    scores = record.read_scores(tmp_path, record.read(tmp_path))
    assert all(np.isfinite(x.cas).all() for x in scores["rgb"])
    np.testing.assert_allclose(scores["rgb"][2].class_attention, large[2].class_attention, rtol=1e-3, atol=1e-6)
    assert scores["fused"][0].class_attention is None


def test_the_page_of_training_says_what_the_run_says(run, data):
    made = content(run / "report" / "index.html")
    assert [video["id"] for video in made["videos"]] == [meta.id for meta in data.metas]
    found = json.loads((run / "detections.json").read_text())["results"]
    for video, meta, annotation in zip(made["videos"], data.metas, data.annotations):
        assert video["duration"] == meta.duration and video["file"] is None
        truth = [[*s, data.class_names[c]] for s, c in zip(annotation.segments.round(4).tolist(), annotation.labels)]
        assert [[s, e, made["classes"][c]] for s, e, c in video["truth"]] == truth
        got = [(made["classes"][c], score) for _, _, c, score in video["runs"][0]["found"]]
        assert got == [(x["label"], pytest.approx(x["score"], rel=1e-4)) for x in found[meta.id]]
    about = made["runs"][0]
    assert about["results"] == json.loads((run / "results.json").read_text())
    assert about["curves"] == [
        {"model": "rgb", "metric": "train/loss", "steps": [2, 4, 6], "values": [[1 / 2], [1 / 4], [1 / 6]]}
    ]
    assert dict(about["config"])["method.name"] == "maan" and about["command"] is None
    mean = np.mean(list(about["per_class"].values()))
    assert 100 * mean == pytest.approx(about["results"]["rows"]["fused"]["0.5"]["mean"])
    assert about["analysis"]["mean_ap"] == pytest.approx(mean)


def test_curves_in_the_page_are_the_scores(run, data):
    """Decoded as the page's script does it."""
    import base64

    video = content(run / "report" / "index.html")["videos"][3]
    kept, expected, n = video["runs"][0]["scores"], scores_of(data, 0)[3], video["length"]
    model = kept["models"][0]
    steps = np.frombuffer(base64.b64decode(model["cas"]), np.uint8).reshape(len(kept["classes"]), n)
    for k, label in enumerate(kept["classes"]):
        low, high = model["low"][k], model["high"][k]
        np.testing.assert_allclose(
            low + steps[k] / 255 * (high - low), expected.cas[:, label], atol=0.51 * (high - low) / 255 + 0.01
        )
    attention = np.frombuffer(base64.b64decode(model["attention"]), np.uint8) / 255
    np.testing.assert_allclose(attention, expected.attention, atol=1 / 255)


def test_of_many_classes_the_likely_ones_have_curves():
    found = Detections(np.array([[0.0, 1.0]]), np.array([40]), np.array([1.0]))
    scores = {"rgb": Scores(np.linspace(1, 0, 100), np.zeros((3, 100)), np.zeros(3))}
    assert report.shown_classes(scores, found, None, 100) == [0, 1, 2, 3, 4, 40]
    assert report.shown_classes(scores, found, None, 20) == list(range(20))


def test_several_runs_share_a_page(run, data, tmp_path):
    """Another run has its classes in another order and lacks a video."""
    other = tmp_path / "one"
    shutil.copytree(run, other)
    about = json.loads((other / "data.json").read_text())
    about["classes"] = about["classes"][::-1]
    lost = about["videos"].pop(2)["id"]
    (other / "data.json").write_text(json.dumps(about))
    (other / "scores.npz").unlink()
    report.main([str(run), str(other), "--out", str(tmp_path / "both.html")])
    made = content(tmp_path / "both.html")
    assert [x["name"] for x in made["runs"]] == [f"{run.parent.name}/one", f"{tmp_path.name}/one"]
    for video in made["videos"]:
        first, second = video["runs"]
        if video["id"] == lost:
            assert second is None
        else:
            assert first["found"] == second["found"] and second["scores"] is None
    assert made["runs"][0]["per_class"] == pytest.approx(made["runs"][0]["per_class"])


def test_a_large_page_goes_on_in_others(run, tmp_path):
    files = report.write([report.read(run)], tmp_path / "page.html", part=6000)
    assert [file.name for file in files[:2]] == ["page.html", "page-2.html"] and len(files) > 2
    pages = [content(file) for file in files]
    ids = [[video["id"] for video in one["videos"]] for one in pages]
    everything = [id for own in ids for id in own]
    assert len(set(everything)) == len(everything) == 8
    for one, own in zip(pages, ids):
        assert {id for id, _ in one["elsewhere"]} == set(everything) - set(own)
        for id, name in one["elsewhere"]:
            assert id in ids[[file.name for file in files].index(name)]


def test_chosen_videos(run, data, tmp_path):
    chosen = [data.metas[5].id, data.metas[1].id]
    report.main([str(run), "--ids", ",".join(chosen), "--out", str(tmp_path / "a.html")])
    assert {video["id"] for video in content(tmp_path / "a.html")["videos"]} == set(chosen)
    with pytest.raises(SystemExit, match="--ids: no run has a test video 'nobody'"):
        report.main([str(run), "--ids", "nobody"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "data.json").unlink(), "data.json is missing"),
        (lambda run: (run / "data.json").write_text('{"version": 1}'), "data.json is damaged"),
        (lambda run: (run / "data.json").write_text('{"version": 7}'), "version 7"),
        (lambda run: (run / "scores.npz").write_bytes(b"PK\x03\x04 no"), "scores.npz is damaged"),
        (lambda run: (run / "detections.json").write_text("{"), "cannot be read as JSON"),
        (lambda run: np.savez(run / "scores.npz", **{"rgb/cas": np.zeros(3)}), "scores.npz is damaged"),
        (lambda run: (run / "results.json").write_text("[]"), "results.json must be an object"),
    ],
)
def test_what_is_wrong_with_a_run_is_said(run, tmp_path, change, message):
    shutil.copytree(run, tmp_path / "run")
    before = (tmp_path / "run" / "report" / "index.html").read_bytes()
    change(tmp_path / "run")
    with pytest.raises(SystemExit, match=re.escape(message)):
        report.main([str(tmp_path / "run")])
    assert (tmp_path / "run" / "report" / "index.html").read_bytes() == before


def test_no_scores_no_truth(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((run / "data.json").read_text())
    for video in about["videos"]:
        video["annotations"] = None
    (tmp_path / "run" / "data.json").write_text(json.dumps(about))
    for name in ("scores.npz", "results.json", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    report.main([str(tmp_path / "run")])
    made = content(tmp_path / "run" / "report" / "index.html")
    assert all(video["truth"] is None and video["runs"][0]["scores"] is None for video in made["videos"])
    assert made["runs"][0]["results"] is made["runs"][0]["analysis"] is made["runs"][0]["per_class"] is None
    with pytest.raises(SystemExit, match=r"keeps no scores.*config\.report"):
        plot.main([str(tmp_path / "run"), "--ids", about["videos"][0]["id"]])


def test_names_of_runs():
    names = report.short_names
    assert names([Path("a/x"), Path("a/y")]) == ["x", "y"]
    assert names([Path("/a/x"), Path("/b/x")]) == ["a/x", "b/x"]
    assert names([Path("/a/x"), Path("/a/x")]) == ["x (1)", "x (2)"]


def test_the_page_runs_only_its_own_script(run):
    """The hashes in the policy are those of the style and of the script, and no name ends the data."""
    import base64
    import hashlib

    made = content(run / "report" / "index.html")
    made["title"] = made["classes"][0] = "</script><script>alert(1)</script> \u2028 <!--"
    text = page.render(made)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag, name in (("style", "style-src"), ('script type="module"', "script-src")):
        inner = re.search(f"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert len(re.findall("<script", text)) == 2
    inner = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(inner)["classes"][0] == made["classes"][0]


def test_videos_are_found_and_named(tmp_path):
    for name in ("a/v_1 ä#.mp4", "a/x.txt", "2.webm", "2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    found = film.find(tmp_path, ["v_1 ä#", "v_2", "none"])
    assert {id: path.name for id, path in found.items()} == {"v_1 ä#": "v_1 ä#.mp4", "v_2": "2.mp4"}
    out = tmp_path / "run" / "report" / "index.html"
    assert film.address(found["v_1 ä#"], out, False) == "../../a/v_1%20%C3%A4%23.mp4"
    assert film.address(found["v_2"], out, True) == "data:video/mp4;base64,dmlkZW8="
    with pytest.raises(InputError, match="has none of the videos"):
        film.find(tmp_path, ["nobody"])
    with pytest.raises(InputError, match="no such folder"):
        film.find(tmp_path / "nowhere", [])


def test_a_film_strip_shows_each_time(tmp_path):
    """Of a video that gets brighter."""
    av = pytest.importorskip("av", reason="no PyAV: pip install 'wsal_jax[video]'")
    pytest.importorskip("wsal_jax.video.decode")
    import base64
    import io

    from PIL import Image

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(80):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 2 * i, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    strip = film.strip(path, 8.0, 4)
    assert (strip["count"], strip["width"], strip["height"]) == (4, 96, 72)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip["image"].partition(",")[2]))).convert("L"))
    shades = image.reshape(72, 4, 96).mean((0, 2))
    np.testing.assert_allclose(shades, [20 + 2 * 10 * t for t in (1, 3, 5, 7)], atol=4)
    assert film.strip(path, 8.0, 200)["count"] == 8
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert film.strip(broken, 8.0, 4) is None


def test_pictures_on_request(run, data, tmp_path, capsys):
    plot.main([str(run), "--ids", f"{data.metas[4].id},{data.metas[0].id}", "--out", str(tmp_path / "pictures")])
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == [data.metas[0].id, data.metas[4].id]
    assert str(tmp_path / "pictures") in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no test video 'nobody'"):
        plot.main([str(run), "--ids", "nobody"])


def test_exports_come_back_as_labels(run, data, tmp_path, capsys):
    """Truth goes out and comes back into gt.json; detections stay apart from it."""
    export.main([str(run), "--format", "via,csv,activitynet", "--out", str(tmp_path / "x"), "--score", "0.001"])
    assert "of detections and truth" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "x" / "via").iterdir()) == ["detections.json", "truth.json"]
    out = tmp_path / "gt.json"
    import_labels.main([str(tmp_path / "x" / "via" / "truth.json"), "--out", str(out)])
    gt = json.loads(out.read_text())["database"]
    for meta, annotation in zip(data.metas, data.annotations):
        got = sorted((one["label"], *one["segment"]) for one in gt[meta.id]["annotations"])
        expected = sorted((data.class_names[c], *s) for s, c in zip(annotation.segments.tolist(), annotation.labels))
        assert [x[0] for x in got] == [x[0] for x in expected]
        np.testing.assert_allclose([x[1:] for x in got], [x[1:] for x in expected], atol=0.00051)
    export.main([str(run), "--format", "csv", "--out", str(tmp_path / "y"), "--ids", data.metas[0].id, "--score", "99"])
    assert (tmp_path / "y" / "csv" / "detections.csv").read_text().count("\n") == 1
    with pytest.raises(SystemExit, match="--format 'xml'"):
        export.main([str(run), "--format", "xml"])


def test_no_report_where_it_is_not_wanted(data, tmp_path):
    from configs import maan

    config = maan.get_config("dataset=synthetic_untrimmed/tiny")
    config.plots, config.evaluation.bootstrap, config.report = 0, 0, False
    evaluate.report(methods.get(config.method), {"rgb": [scores_of(data, 0)]}, data, config, tmp_path, {})
    assert (tmp_path / "data.json").exists()
    assert not (tmp_path / "scores.npz").exists() and not (tmp_path / "report").exists()


def test_the_extractor_of_a_feature_folder_is_kept(run, data, tmp_path):
    from configs import maan

    config = maan.get_config("dataset=feature_folder")
    metas = [meta._replace(fps=25.0, stride=16.0, offset=8.0) for meta in data.metas]
    data = data._replace(metas=metas, extraction={"extractor": {"name": "i3d"}})
    record.write(tmp_path, data, config)
    about = record.read(tmp_path).data
    assert about["extraction"] == {"extractor": {"name": "i3d"}} and about["grid"] == {
        "fps": 25,
        "stride": 16,
        "offset": 8,
    }
    with pytest.raises(FolderError, match=r"data\.json is missing"):
        record.read(tmp_path / "gone")


def test_the_files_of_the_page_may_lie_beside_others(monkeypatch, tmp_path):
    """An installed package has a folder `__pycache__` there."""
    web = shutil.copytree(Path(page.__file__).parent / "web", tmp_path / "web")
    (web / "__pycache__").mkdir(exist_ok=True)
    monkeypatch.setattr(page.resources, "files", lambda package: web)
    assert "<title>a run</title>" in page.render({"title": "a run", "videos": []})
