"""Exports of segments, read by the tools' own readers where those are there, and the way back into gt.json."""

import csv
import itertools
import json
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from wsal_jax import export, import_labels
from wsal_jax.formats import elan, fiftyone, label_studio, submissions, subtitles, tables, via
from wsal_jax.formats.checks import FolderError, Problems
from wsal_jax.formats.labelled import Labelled, Segment, id_of, tidy
from wsal_jax.types import InputError

CLASSES = ["Diving", "Diving (2)", '=1+1 "x" <b>&amp;', "a,b;c\\'d", "Ünï ☃", "-->", "5"]
FPS = 25.0


def made(scores: bool = True, seed: int = 0) -> list[Labelled]:
    """Videos of all classes with segments that overlap, of one class too; one without any."""
    rng = np.random.default_rng(seed)
    videos = []
    for id in ("v_1", "-x 'y' = & <z>", "clip.2"):
        segments = []
        for label in CLASSES:
            for _ in range(3):
                start = rng.uniform(0, 50)
                score = float(rng.uniform(0.01, 1)) if scores else None
                segments.append(Segment(start, start + rng.uniform(0.1, 20), label, score))
        videos.append(Labelled(id, tidy(segments, 60.0), None, FPS, 60.0))
    return [*videos, Labelled("nothing", (), None, FPS, 60.0)]


def read(module, path, fps=None) -> dict[str, Labelled]:
    problems = Problems()
    found = module.read(path, problems, fps)
    assert not problems.lines()
    return found


def same(found, videos, step):
    """The same videos, classes and order; times within `step` of rounding."""
    assert set(found) == {video.id for video in videos}
    for video in videos:
        expected = sorted((one.label, one.start, one.end) for one in video.segments)
        got = sorted((one.label, one.start, one.end) for one in found[video.id].segments)
        assert [x[0] for x in got] == [x[0] for x in expected]
        np.testing.assert_allclose([x[1:] for x in got], [x[1:] for x in expected], atol=step / 2 + 1e-9, rtol=0)


@pytest.mark.parametrize(
    ("module", "path", "step"),
    [
        (via, "truth.json", 0.001),
        (elan, "truth", 0.001),
        (fiftyone, "truth", 0),
        (label_studio, "truth.json", 1 / FPS),
    ],
    ids=["via", "elan", "fiftyone", "label_studio"],
)
def test_what_is_written_is_read_again(tmp_path, module, path, step):
    videos = made(scores=False)
    module.write(videos, CLASSES, tmp_path, "truth")
    same(read(module, tmp_path / path), videos, step)
    assert import_labels.recognise(tmp_path / path) == module.__name__.rpartition(".")[2]


def test_a_detection_comes_back_from_elan_and_via_as_its_class(tmp_path):
    videos = made()
    for module, path in ((elan, "detections"), (via, "detections.json")):
        module.write(videos, CLASSES, tmp_path, "detections")
        same(read(module, tmp_path / path), videos, 0.001)


def test_pympi_reads_the_file_of_elan(tmp_path):
    pympi = pytest.importorskip("pympi", reason="no pympi: pip install pympi-ling")
    video = made()[0]
    (path,) = elan.write([video], CLASSES, tmp_path, "detections")
    file = pympi.Elan.Eaf(str(path))
    assert [one["MEDIA_URL"] for one in file.media_descriptors] == ["./v_1.mp4"]
    names = set(file.get_tier_names())
    assert set(CLASSES) <= names
    got = []
    for name in names:
        values = sorted(file.get_annotation_data_for_tier(name))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(values))  # a tier's do not overlap
        got += [(start, end, float(text)) for start, end, text in values]
    expected = [(round(1000 * x.start), round(1000 * x.end), float(f"{x.score:.6g}")) for x in video.segments]
    assert sorted(got) == sorted(expected)


def test_tiers_of_one_class_do_not_take_the_name_of_another():
    segments = [Segment(0, 2, "x"), Segment(1, 3, "x"), Segment(0, 1, "x (2)"), Segment(1.5, 4, "x")]
    tiers = elan.tiers(segments)
    assert list(tiers) == ["x", "x (3)", "x (4)", "x (2)"]
    assert [label for label, _ in tiers.values()] == ["x", "x", "x", "x (2)"]


def test_label_studio_accepts_the_tasks(tmp_path):
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="no SDK: pip install label-studio-sdk")
    videos = made()
    tasks, config = label_studio.write(videos, CLASSES, tmp_path, "detections")
    interface = sdk.LabelInterface(config.read_text())
    written = json.loads(tasks.read_text())
    for task in written:
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction)
    bad = written[0]["predictions"][0]
    bad["result"][0]["value"]["timelinelabels"] = ["unknown"]
    assert not interface.validate_prediction(bad)


def test_frames_of_label_studio_count_from_1_and_hold_the_last():
    one = Segment(1.0, 2.0, "a")
    task = label_studio.task(Labelled("v", (one, Segment(0, 0.001, "a")), None, 10.0, 9.0), False)
    ranges = [region["value"]["ranges"][0] for region in task["annotations"][0]["result"]]
    assert ranges == [{"start": 11, "end": 20}, {"start": 1, "end": 1}]


def test_fiftyone_imports_the_folder(tmp_path):
    importers = pytest.importorskip("fiftyone.utils.data.importers", reason="no fiftyone: pip install fiftyone")
    metadata = pytest.importorskip("fiftyone.core.metadata")
    (tmp_path / "clip.mp4").write_bytes(b"")
    video = made()[0]._replace(file=tmp_path / "clip.mp4")
    fiftyone.write([video], CLASSES, tmp_path, "detections")
    importer = importers.FiftyOneTemporalDetectionDatasetImporter(str(tmp_path / "detections"))
    importer.setup()
    assert importer.get_dataset_info() == {"classes": CLASSES}
    about = metadata.VideoMetadata(total_frame_count=1500, duration=60.0)
    importer._sample_parser.with_sample((importer._video_paths_map["v_1"], importer._labels_map["v_1"]), metadata=about)
    labels = importer._sample_parser.get_label().detections
    assert [one.label for one in labels] == [one.label for one in video.segments]
    assert [one.confidence for one in labels] == [one.score for one in video.segments]
    starts = [one.support[0] for one in labels]
    np.testing.assert_allclose(starts, [FPS * one.start for one in video.segments], atol=2)


def test_a_project_of_via_has_all_that_via_looks_for(tmp_path):
    (path,) = via.write(made(), CLASSES, tmp_path, "detections")
    project = json.loads(path.read_text())
    assert set(project) == {"project", "config", "attribute", "file", "metadata", "view"}
    assert project["project"]["data_format_version"] == "3.1.1"
    options = project["attribute"]["1"]["options"]
    assert list(options.values()) == CLASSES
    for one in project["metadata"].values():
        assert set(one) == {"vid", "flg", "z", "xy", "av"} and one["vid"] in project["view"]
        assert one["av"]["1"] in options and 0 < float(one["av"]["2"]) <= 1
    assert project["file"][project["view"]["1"]["fid_list"][0]]["fname"] == "v_1.mp4"


def test_subtitles(tmp_path):
    video = Labelled("v", (Segment(1.25, 4.5, "a <1> & -->\nb", 0.5), Segment(3700.0004, 3700.001, "c", 0.1)))
    (vtt,) = subtitles.write_webvtt([video], [], tmp_path, "detections")
    assert vtt.read_text() == (
        "WEBVTT\n\n1\n00:00:01.250 --> 00:00:04.500\na &lt;1&gt; &amp; --&gt; b\n\n"
        "2\n01:01:40.000 --> 01:01:40.001\nc\n"
    )
    (srt,) = subtitles.write_srt([video], [], tmp_path, "detections")
    assert srt.read_text().startswith("1\n00:00:01,250 --> 00:00:04,500\na <1> & --> b\n\n2\n")


def test_ffprobe_reads_the_subtitles(tmp_path):
    av = pytest.importorskip("av", reason="no PyAV: pip install 'wsal_jax[video]'")
    video = made()[0]
    for write in (subtitles.write_srt, subtitles.write_webvtt):
        (path,) = write([video], CLASSES, tmp_path, "detections")
        with av.open(str(path)) as file:
            starts = [float(p.pts * p.time_base) for p in file.demux(file.streams.subtitles[0]) if p.pts is not None]
        np.testing.assert_allclose(starts, [one.start for one in video.segments], atol=6e-4)


def test_a_csv_is_no_formula(tmp_path):
    videos = made()
    (path,) = tables.write_csv(videos, CLASSES, tmp_path, "detections")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["video", "start", "end", "label", "score"] and len(rows) == 1 + 3 * 3 * len(CLASSES)
    assert not [row for row in rows for text in row if text[:1] in tuple("=+-@\t\r")]
    assert {row[3].removeprefix("'") for row in rows[1:]} == set(CLASSES)
    for text in ("=1", " =1", "+1", "-1", "@a", "\t=1"):
        assert tables.cell(text) == f"'{text}"
    assert tables.cell("a=1") == "a=1"


def test_activitynet_is_read_as_a_submission(tmp_path):
    videos = made()
    (path,) = tables.write_activitynet(videos, CLASSES, tmp_path, "detections")
    found = submissions.read(path)
    assert set(found) == {video.id for video in videos}
    assert found["v_1"].labels == tuple(one.label for one in videos[0].segments)


def test_segments_are_put_into_the_video():
    given = [Segment(-1, 2, "a"), Segment(8, 12, "b"), Segment(3, 3, "c"), Segment(11, 12, "d"), Segment(10, 10, "e")]
    assert tidy(given, 10.0) == (
        Segment(0, 2, "a"),
        Segment(3, 3.001, "c"),
        Segment(8, 10, "b"),
    )
    assert tidy([Segment(9.9999, 10, "a")], 10.0) == (Segment(9.999, 10.0, "a"),)


@pytest.mark.parametrize(
    ("address", "id"),
    [
        ("file:///home/a%20b/v_1.mp4", "v_1"),
        ("C:\\videos\\clip.2.avi", "clip.2"),
        ("https://x.org/a/b.webm?token=1", "b"),
        ("no ending", "no ending"),
        ("video.2020-01-01", "video.2020-01-01"),
    ],
)
def test_ids_of_files(address, id):
    assert id_of(address) == id


# ---- what people make in the tools


def test_a_project_of_other_attributes(tmp_path):
    project = {
        "attribute": {
            "1": {"aname": "note", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}},
            "2": {"aname": "what", "anchor_id": "FILE1_Z2_XY0", "type": 2, "options": {"0": "run", "1": "jump"}},
        },
        "file": {"1": {"fname": "a.mp4"}, "2": {"fname": "b.mp4"}},
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
        "metadata": {
            "x": {"vid": "1", "z": [1, 2.5], "xy": [], "av": {"1": "?", "2": "0,1"}},
            "region": {"vid": "1", "z": [1.5], "xy": [2, 1, 1, 5, 5], "av": {}},
        },
    }
    path = tmp_path / "via.json"
    path.write_text(json.dumps(project))
    found = read(via, path)
    assert found["a"].segments == (Segment(1, 2.5, "jump"), Segment(1, 2.5, "run")) and found["b"].segments == ()
    project["metadata"]["x"]["av"] = {}
    path.write_text(json.dumps(project))
    with pytest.raises(FolderError, match="'x': has no class"):
        import_labels.read([path])


EAF = """<?xml version="1.0"?><ANNOTATION_DOCUMENT AUTHOR="me"><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///x/a.mp4"/>
</HEADER><TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="1500"/>
<TIME_SLOT TIME_SLOT_ID="t3"/></TIME_ORDER><TIER TIER_ID="jump">{0}<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1"
TIME_SLOT_REF1="t1" TIME_SLOT_REF2="{1}"><ANNOTATION_VALUE>{2}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
</TIER></ANNOTATION_DOCUMENT>"""


def test_other_files_of_elan(tmp_path):
    path = tmp_path / "notes.eaf"
    for text, label in (("", "jump"), (" run ", "run")):
        path.write_text(EAF.format("", "t2", text))
        assert read(elan, path)["a"].segments == (Segment(0.5, 1.5, label),)
    path.write_text(EAF.format("", "t3", ""))
    with pytest.raises(FolderError, match="without times"):
        import_labels.read([path])
    path.write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + EAF.format("", "t2", "").partition("?>")[2])
    with pytest.raises(FolderError, match="document type"):
        import_labels.read([path])


def task(**more):
    value = {"ranges": [{"start": 26, "end": 50}], "timelinelabels": ["run"]}
    done = {"result": [{"type": "timelinelabels", "value": value}, {"type": "choices", "value": {}}]}
    return {"data": {"video": "/data/upload/1/0a1b2c3d-a.mp4"}, "annotations": [done], "predictions": [1], **more}


def test_tasks_of_others(tmp_path):
    path = tmp_path / "project.json"
    path.write_text(json.dumps([task(), task(data={"video": "s3://b/none.mp4"}, annotations=[])]))
    assert read(label_studio, path, 25.0)["a"].segments == (Segment(1, 2, "run"),)
    with pytest.raises(FolderError, match="give --fps"):
        import_labels.read([path])
    cancelled = {"was_cancelled": True, "result": []}
    path.write_text(json.dumps([task(annotations=[*task()["annotations"], cancelled])]))
    assert len(import_labels.read([path], fps=25.0)["a"].segments) == 1
    path.write_text(json.dumps([{"video": "a.mp4", "class": []}]))
    with pytest.raises(FolderError, match="not JSON-MIN"):
        import_labels.read([path])


def test_frames_of_fiftyone(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"classes": None, "labels": {"a": [{"label": "run", "support": [26, 50]}], "b": None}}))
    found = import_labels.read([path], fps=25.0)
    assert found["a"].segments == (Segment(1, 2, "run"),) and found["b"].segments == ()
    with pytest.raises(FolderError, match="--fps"):
        import_labels.read([path])


@pytest.mark.parametrize("content", ["[1, 2", "{}", "[]", '"x"', '{"labels": {"a": 3}}', "[[]]"])
def test_files_of_no_use(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError):
        import_labels.read([path])


# ---- the commands


def test_labels_replace_those_of_gt_json_and_nothing_else(tmp_path):
    via.write(made(scores=False), CLASSES, tmp_path, "truth")
    out = tmp_path / "gt.json"
    old = {"fps": 25, "classes": ["Diving"], "database": {"v_1": {"labels": ["x"], "fps": 30}, "other": {"labels": []}}}
    out.write_text(json.dumps(old))
    import_labels.main([str(tmp_path / "truth.json"), "--out", str(out)])
    gt = json.loads(out.read_text())
    assert gt["fps"] == 25 and gt["database"]["other"] == {"labels": []}
    assert gt["classes"][0] == "Diving" and set(gt["classes"]) == set(CLASSES)
    assert set(gt["database"]["v_1"]) == {"fps", "annotations"} and gt["database"]["v_1"]["fps"] == 30
    assert len(gt["database"]["v_1"]["annotations"]) == 3 * len(CLASSES)
    out.write_text("{")
    with pytest.raises(SystemExit, match="cannot be read"):
        import_labels.main([str(tmp_path / "truth.json"), "--out", str(out)])
    assert out.read_text() == "{"


def test_labels_csv(tmp_path):
    videos = [Labelled("a,b", (Segment(0, 1, "x, y"), Segment(2, 3, "x, y"), Segment(1, 2, "b")), None, FPS, 9.0)]
    via.write(videos, ["x, y", "b"], tmp_path, "truth")
    out = tmp_path / "labels.csv"
    import_labels.main([str(tmp_path / "truth.json"), "--out", str(out), "--split", "test"])
    assert out.read_text() == 'video,split,labels\n"a,b",test,"b;x, y"\n'
    via.write([Labelled("a", (Segment(0, 1, "x;y"),))], ["x;y"], tmp_path, "truth")
    with pytest.raises(SystemExit, match=r"write a gt\.json"):
        import_labels.main([str(tmp_path / "truth.json"), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"must end in \.json"):
        import_labels.main([str(tmp_path / "truth.json"), "--out", str(tmp_path / "labels.txt")])


def test_a_video_in_two_files_is_told(tmp_path):
    elan.write(made(), CLASSES, tmp_path, "a")
    elan.write(made()[:1], CLASSES, tmp_path, "b")
    with pytest.raises(FolderError, match="in another of the files"):
        import_labels.read([tmp_path / "a", tmp_path / "b"])


def test_unknown_formats_are_told():
    with pytest.raises(InputError, match="there are activitynet, fiftyone"):
        export.parse_formats("via,viia")
    assert export.parse_formats("via, csv,via") == ["via", "csv"]


def test_names_that_xml_cannot_hold(tmp_path):
    hostile = "a\x00b\n\ud800c"
    video = Labelled("v", (Segment(0, 1, hostile, 0.5),), None, FPS, 2.0)
    elan.write([video], [hostile], tmp_path, "d")
    label_studio.write([video], [hostile], tmp_path, "detections")
    assert ElementTree.parse(tmp_path / "d" / "v.eaf").find("TIER").get("TIER_ID") == "a b  c"
    labels = ElementTree.parse(tmp_path / "config.xml").iter("Label")
    assert [label.get("value") for label in labels] == ["a b  c"]
    assert "a b  c" in (tmp_path / "detections.json").read_text()


def test_formats_start_without_jax():
    """Both commands must start at once."""
    import subprocess

    code = "import sys, wsal_jax.export, wsal_jax.import_labels, wsal_jax.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
