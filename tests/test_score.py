import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsal_jax import metrics, score, selection
from wsal_jax.formats import submissions
from wsal_jax.formats.annotations import Record

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
STPN = SHARED / "detections/stpn_thumos14_results.json"
TRUTH_210 = SHARED / "thumos14/gt_210_videos.json"
BAS_NET = SHARED / "thumos14/gt.json"
W_TALC = SHARED / "thumos14/Thumos14reduced-Annotations"
PUBLISHED = "52.1 44.2 34.7 26.1 17.7 10.1 5.0 1.3 0.1".split()
"""Of STPN's detections, by the deterministic rule of `metrics.detection_map`."""

needs_shared = pytest.mark.skipif(
    not all(path.exists() for path in (STPN, TRUTH_210, BAS_NET, W_TALC)),
    reason="needs STPN's detections and THUMOS14's annotations beside the repository, in ../shared/data",
)


def video(subset, *rows):
    """From rows (label, start, end)."""
    return {"subset": subset, "annotations": [{"label": row[0], "segment": list(row[1:])} for row in rows]}


def found(*rows):
    """From rows (label, score, start, end)."""
    return [{"label": row[0], "score": row[1], "segment": list(row[2:])} for row in rows]


TRUTH = {
    "a": video("test", ("Run", 0, 10), ("Run", 20, 30), ("Jump", 40, 50)),
    "b": video("test", ("Jump", 0, 10)),
    "t": video("train", ("Run", 0, 10)),
}
# Run: hit, hit at IoU 0.5 only. Jump: miss, hit.
FOUND = {
    "a": found(("Run", 0.9, 0, 10), ("Run", 0.8, 20, 25), ("Jump", 0.7, 0, 10)),
    "b": found(("Jump", 0.6, 0, 10)),
}
FAST = ("--bootstrap", "0", "--iou", "0.5,0.6")


@pytest.fixture
def command(tmp_path, capsys):
    """Runs the command on files with the given contents, and returns its output."""

    def run(*options, results=FOUND, database=TRUTH):
        files = {"--detections": {"results": results}, "--ground_truth": {"database": database}}
        argv = []
        for option, content in files.items():
            if option not in options:
                path = tmp_path / f"{option[2:]}.json"
                path.write_text(json.dumps(content))
                argv += [option, str(path)]
        score.main([*argv, *map(str, options)])
        return capsys.readouterr().out

    return run


def failure(command, *options, **files):
    """The error message of the command."""
    with pytest.raises(SystemExit) as error:
        command(*options, **files)
    assert str(error.value).startswith("error: ")
    return str(error.value)


def row(out, name):
    """The cells of the first line that begins with the name."""
    return re.search(rf"^{re.escape(name)}  +(.*)$", out, re.M)[1].split()


def test_starts_without_what_it_does_not_need():
    heavy = ("jax", "jaxlib", "flax", "scipy", "matplotlib", "tensorflow_datasets", "etils", "ml_collections")
    code = f"import sys, wsal_jax.score; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_whole_output(command):
    out = command(*FAST, "--protocol", "activitynet")
    assert out == (
        "subset test: for testing, by its name\n"
        "protocol activitynet, videos 2, classes 2, instances 4, detections 4\n"
        "\n"
        "mAP@IoU   0.5   0.6  average\n"
        "mAP      62.5  37.5     50.0\n"
        "\n"
        "AP@IoU  instances    0.5   0.6  average\n"
        "Jump            2   25.0  25.0     25.0\n"
        "Run             2  100.0  50.0     75.0\n"
    )


def test_runs_as_a_module(tmp_path):
    for name, content in (("d", FOUND), ("g", {"database": TRUTH})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    argv = ["--detections", "d.json", "--ground_truth", "g.json", *FAST]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = [sys.executable, "-m", "wsal_jax.score"]
    done = subprocess.run([*run, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "mAP") == ["62.5", "37.5", "50.0"]
    done = subprocess.run([*run, *argv, "--iou", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --iou '2': thresholds must ascend, each once, and be above 0 and at most 1\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.1:0.9:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.5:0.95:0.05", [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        ("0.1:0.5:0.3", [0.1, 0.4]),
        ("0.5:0.5:0.1", [0.5]),
        ("0.5", [0.5]),
        ("0.3, 0.5,1", [0.3, 0.5, 1.0]),
        ("0.01:1:0.01", [float(f"{i / 100:.2f}") for i in range(1, 101)]),
    ],
)
def test_thresholds_are_the_decimals(text, expected):
    assert score.parse_ious(text) == tuple(expected)  # exactly


@pytest.mark.parametrize(
    "text", ["", "a", "0.1:0.9", "0.1:0.9:0", "0.1:0.9:-0.1", "0.1:0.9:0.1:0.1", "0.1:nan:0.1", "0.5,inf", "0.5,,0.6"]
)
def test_thresholds_that_are_none(command, text):
    form = "must be first:last:step, like 0.1:0.9:0.1, or a list like 0.3,0.5,0.7"
    assert failure(command, "--iou", text) == f"error: --iou {text!r}: {form}"


@pytest.mark.parametrize("text", ["0:0.9:0.1", "0.1:1.1:0.1", "0.9:0.1:0.1", "0.5,0.5", "0.5,0.3", "0", "1.1"])
def test_thresholds_out_of_range(command, text):
    what = "thresholds must ascend, each once, and be above 0 and at most 1"
    assert failure(command, f"--iou={text}") == f"error: --iou {text!r}: {what}"


def test_too_many_thresholds(command):
    message = failure(command, "--iou", "0.1:0.9:0.000000001")
    assert message == "error: --iou '0.1:0.9:0.000000001': more than 100 thresholds; take a larger step"


def test_negative_bootstrap(command):
    message = failure(command, "--bootstrap", "-1")
    assert message == "error: --bootstrap -1: must be how many samples, or 0 for none"


def test_bootstrap_intervals(command, tmp_path):
    """With two equally good videos, all samples are equal; with different ones, the interval spans both."""
    same = {id: video("test", ("Run", 0, 10)) for id in "abcd"}
    hits = {id: found(("Run", 1, 0, 10)) for id in "abcd"}
    out = command("--iou", "0.5", "--bootstrap", "50", results=hits, database=same)
    assert row(out, "95% from") == row(out, "95% to") == ["100.0", "100.0"]
    half = {**hits, "c": [], "d": []}
    path = tmp_path / "out.json"
    out = command("--iou", "0.5", "--bootstrap", "200", "--json", path, results=half, database=same)
    low, high = (float(row(out, name)[0]) for name in ("95% from", "95% to"))
    assert low < float(row(out, "mAP")[0]) == 50 < high
    interval = json.loads(path.read_text())["bootstrap"]
    assert (interval["level"], interval["samples"]) == (0.95, 200)
    assert (
        interval["mAP"]["0.5"]
        == interval["mAP"]["average"]
        == [pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05)]
    )
    again = command("--iou", "0.5", "--bootstrap", "200", results=half, database=same)
    assert again == out


def subset_of(ids, name=None):
    """The result of `choose_subset` for videos by id and subset: names, why, ids."""
    names, why, chosen = selection.choose_subset({id: Record(subset=subset) for id, subset in ids.items()}, name)
    return names, why, "".join(sorted(chosen, key=list(ids).index))


def test_subset_by_default():
    by_name = "for testing, by its name"
    assert subset_of({"a": "training", "b": "validation", "c": "testing"}) == (("validation",), by_name, "b")
    assert subset_of({"a": "train", "b": "test"}) == (("test",), by_name, "b")
    assert subset_of({"a": "train", "b": "val", "c": "Validation"}) == (("Validation", "val"), by_name, "bc")
    assert subset_of({"a": "train", "b": "train"}) == (("train",), "the only one", "ab")
    assert subset_of({"a": ""}) == (("",), "the only one", "a")


def test_subset_that_is_asked_for():
    ids = {"a": "training", "b": "Validation", "c": "validation"}
    assert subset_of(ids, "VALIDATION") == (("Validation", "validation"), "as asked for", "bc")
    assert subset_of(ids, "training") == (("training",), "as asked for", "a")


def test_the_training_videos_of_thumos14_are_not_taken_for_testing():
    why = "the test videos of THUMOS14, by their ids"
    test, val = "video_test_0000004", "video_validation_0000051"
    for in_val, in_test in (("validation", "test"), ("Validation", "Test"), ("training", "validation"), ("", "")):
        assert subset_of({val: in_val, test: in_test}) == ((in_test,), why, test)
    assert subset_of({val: "validation", test: "test"}, "validation") == (("validation",), "as asked for", val)
    assert subset_of({val: "validation"}) == (("validation",), "the only one", val)
    assert subset_of({val: "validation", test: "test", "x": "y"})[0] == ("validation",)  # another data set


def test_subset_that_is_not_there(command):
    message = failure(command, "--subset", "validation")
    assert message == "error: --subset 'validation' is not in the ground truth; there are 'test', 'train'"
    message = failure(command, database={"a": video("x", ("Run", 0, 1)), "b": video("", ("Run", 0, 1))})
    what = "the ground truth has no subset for testing; say which with --subset: there are '', 'x'"
    assert message == f"error: {what}"
    message = failure(command, database={})
    assert message.endswith("say which with --subset: there are no videos at all")


def test_subset_through_the_command(command):
    out = command(*FAST, "--subset", "TRAIN", results={"t": found(("Run", 1, 0, 10))})
    assert out.startswith("subset train: as asked for\n")
    assert "videos 1, classes 1, instances 1, detections 1" in out
    message = failure(command, database={"a": video("test")})
    assert message == "error: no video of the subset test has an annotated segment; choose another --subset"
    message = failure(command, database={"a": video("", ("Ambiguous", 0, 1))})
    assert message == "error: no video of the subset (unnamed) has an annotated segment; choose another --subset"


def test_strings_of_numbers_and_the_inner_mapping(command, tmp_path):
    expected = command(*FAST)
    strings = {
        id: [{**x, "score": str(x["score"]), "segment": list(map(str, x["segment"]))} for x in of]
        for id, of in FOUND.items()
    }
    assert command(*FAST, results=strings) == expected
    path = tmp_path / "bare.json"
    path.write_text(json.dumps(FOUND))
    assert command(*FAST, "--detections", path) == expected
    path.write_text(json.dumps({"version": "VERSION 1.3", "results": FOUND, "external_data": {}}))
    assert command(*FAST, "--detections", path) == expected


def test_no_detections_at_all(command):
    for results in ({}, {"a": [], "b": []}):
        out = command(*FAST, results=results)
        assert "note: 2 annotated videos without any detection: a, b\n" in out
        assert "instances 4, detections 0" in out
        assert row(out, "mAP") == ["0.0"] * 3


@pytest.mark.parametrize(
    "prefixed, plain, how",
    [("v_a", "a", "without"), ("a", "v_a", "with")],
)
def test_ids_with_and_without_a_prefix(command, prefixed, plain, how):
    database = {plain: TRUTH["a"], "b": TRUTH["b"]}
    results = {prefixed: FOUND["a"], "b": FOUND["b"]}
    out = command(*FAST, results=results, database=database)
    assert f'note: 1 id of detections read {how} "v_", as in the ground truth: {prefixed}\n' in out
    assert row(out, "mAP") == ["62.5", "37.5", "50.0"]
    # Whatever other ids there are; but not if the video has detections already.
    out = command(*FAST, results={**results, "v_c": found(("Run", 1, 0, 10))}, database=database)
    assert f'note: 1 id of detections read {how} "v_", as in the ground truth: {prefixed}\n' in out
    assert "note: 1 detection in 1 unknown video kept, as false positives: v_c\n" in out
    out = command(*FAST, results={**results, plain: found(("Run", 1, 0, 10))}, database=database)
    assert "read with" not in out
    assert f"note: 3 detections in 1 unknown video kept, as false positives: {prefixed}\n" in out


def test_ids_are_matched_one_by_one(command):
    """Some ids have a prefix, hundreds are missing from the ground truth; likewise in --exclude."""
    database = {"v_a": TRUTH["a"], "b": TRUTH["b"], "v_v_c": video("test", ("Run", 0, 10))}
    results = {"a": FOUND["a"], "v_b": FOUND["b"], "v_c": found(("Run", 0.95, 0, 10))}
    dead = {f"gone{i}": [] for i in range(300)}
    out = command(*FAST, results={**results, **dead}, database=database)
    assert 'note: 1 id of detections read without "v_", as in the ground truth: v_b\n' in out
    assert 'note: 2 ids of detections read with "v_", as in the ground truth: a, v_c\n' in out
    assert (
        "note: 0 detections in 300 unknown videos kept, as false positives: gone0, gone1, gone2 and 297 more\n" in out
    )
    assert row(out, "Run") == ["3", "100.0", "66.7", "83.3"]
    out = command(*FAST, "--exclude", "v_b,a", results=results, database=database)
    assert "note: 2 videos and 4 detections excluded: b, v_a\n" in out


def test_unknown_videos_are_false_positives(command):
    results = {**FOUND, "z": found(("Run", 1, 0, 10), ("Run", 0.95, 0, 10))}
    out = command(*FAST, results=results)
    assert "note: 2 detections in 1 unknown video kept, as false positives: z\n" in out
    assert "videos 2, classes 2, instances 4, detections 6" in out
    # Ranked miss, miss, hit, hit: precision 1/3 and 1/2, interpolated 1/2 and 1/2.
    assert row(out, "Run") == ["2", "50.0", "16.7", "33.3"]


def test_videos_of_other_subsets_are_left_out(command):
    out = command(*FAST, results={**FOUND, "t": found(("Run", 1, 50, 60))})
    assert "note: 1 detection in 1 video of other subsets left out: t\n" in out
    assert "detections 4" in out
    assert row(out, "mAP") == ["62.5", "37.5", "50.0"]


def test_excluded_videos(command):
    results = {**FOUND, "z": found(("Run", 1, 0, 10))}
    out = command(*FAST, "--exclude", "b, z,gone", results=results)
    assert "note: 1 video and 2 detections excluded: b, z\n" in out
    assert "note: 1 video to exclude nowhere to be found: gone\n" in out
    assert "videos 1, classes 2, instances 3, detections 3" in out
    assert row(out, "mAP") == ["50.0", "25.0", "37.5"]
    out = command(*FAST, "--exclude", "z", results=results)
    assert "note: 0 videos and 1 detection excluded: z\n" in out


def test_videos_without_annotations(command):
    database = {**TRUTH, "empty": video("test"), "unclear": video("test", ("Ambiguous", 0, 5))}
    results = {**FOUND, "empty": found(("Run", 1, 0, 10))}
    out = command(*FAST, results=results, database=database)
    assert "note: 1 video without any annotation; 1 detection there kept, as false positives: empty\n" in out
    assert "videos 3, classes 2, instances 4, detections 5" in out  # with the one that has only ambiguous segments
    assert "without any detection" not in out
    assert row(out, "Run")[1] == "66.7"  # it counts as a false positive


def test_unknown_labels_do_not_count(command):
    results = {**FOUND, "b": [*FOUND["b"], *found(("Swim", 1, 0, 1), ("Fly", 1, 0, 1), ("Swim", 1, 2, 3))]}
    out = command(*FAST, results=results)
    assert "note: 3 detections of 2 unknown labels left out: Swim (2), Fly (1)\n" in out
    assert "detections 4" in out
    assert row(out, "mAP") == ["62.5", "37.5", "50.0"]


def test_classes_without_detections(command):
    results = {"a": found(("Run", 0.9, 0, 10), ("Run", 0.8, 20, 30))}
    out = command(*FAST, results=results)
    assert (
        "note: 1 annotated video without any detection: b\nnote: 1 class without any detection left, AP 0: Jump\n"
        in out
    )
    assert row(out, "mAP") == ["50.0"] * 3
    out = command(*FAST, "--protocol", "wtalc", results=results)
    assert "note: 1 class without any detection left, so by wtalc the mAP of all is 0: Jump\n" in out
    assert row(out, "mAP") == ["0.0"] * 3
    assert row(out, "Run")[-1] == "100.0"


def test_a_protocol_that_spares_ambiguous_segments_says_if_there_are_none(command):
    what = "spares ambiguous segments; the ground truth has none (--ambiguous adds THUMOS14's)"
    for protocol in metrics.PROTOCOLS:
        out = command(*FAST, "--protocol", protocol)
        assert (f"note: {protocol} {what}\n" in out) == (protocol not in ("activitynet", "opentad"))
    known = {**TRUTH, "a": video("test", ("Ambiguous", 60, 70), ("Run", 0, 10), ("Jump", 40, 50))}
    assert what not in command(*FAST, "--protocol", "grid", database=known)


def test_no_label_is_known(command):
    message = failure(command, results={"a": found(("3", 1, 0, 1), ("7", 1, 0, 1))})
    what = "no detection has a class of the ground truth: labels are like 3, 7, classes like Jump, Run"
    assert message == f"error: {what}; give the names of classes as in the ground truth"


def test_no_video_is_known(command):
    message = failure(command, results={f"{i}.mp4": FOUND["a"] for i in range(5)})
    assert message == (
        "error: no video of the detections, like 0.mp4, 1.mp4, 2.mp4 and 2 more, is one of the truth, like a, b; give "
        "the ground truth of the same data set, the right --subset, and ids without endings of file names"
    )


def test_segments_without_length(command):
    results = {"a": [*FOUND["a"], *found(("Run", 1, 5, 5), ("Run", 0.95, 9, 2.5))], "b": FOUND["b"]}
    database = {**TRUTH, "b": video("test", ("Jump", 0, 10), ("Jump", 7, 7))}
    out = command(*FAST, results=results, database=database)
    assert "note: 2 detections of no or negative length kept, as misses: a [5, 5], a [9, 2.5]\n" in out
    assert "note: 1 true segment of no or negative length kept, as missed: b [7, 7]\n" in out
    assert "instances 5, detections 6" in out
    assert row(out, "Run")[1] == "50.0"  # miss, miss, hit, hit
    assert row(out, "Jump")[1] == "16.7"


def test_everything_wrong_with_detections_is_told_at_once(command, tmp_path):
    good = {"label": "Run", "score": 1, "segment": [0, 1]}
    bad = [
        {**good, "score": float("nan")},
        {**good, "score": "inf"},
        {**good, "score": None},
        {**good, "segment": [0, float("inf")]},
        {**good, "segment": [0, 1, 2]},
        {**good, "segment": "0 1"},
        {**good, "label": 3},
        {"label": "Run"},
        "Run",
        {"label": 3.5, "score": "x", "segment": [0]},
    ]
    message = failure(command, results={"a": [good, *bad], "b": {"label": "Run"}, "../c": []})
    assert message.splitlines() == [
        f"error: cannot use {tmp_path}/detections.json:",
        "- 'a', detection 1 (nan), 'a', detection 2 ('inf'), 'a', detection 3 (None) and 1 more: "
        '"score" must be a finite number',
        "- 'a', detection 4 ([0, inf]), 'a', detection 5 ([0, 1, 2]), 'a', detection 6 ('0 1') and 1 more: "
        '"segment" must be [start, end], finite, in seconds',
        "- 'a', detection 7 (3), 'a', detection 10 (3.5): "
        '"label" must be the name of the class as in the ground truth, not a number',
        "- 'a', detection 8: has no \"score\"",
        "- 'a', detection 8: has no \"segment\"",
        '- \'a\', detection 9 (\'Run\'): must be {"label": ..., "score": ..., "segment": ...}',
        "- 'b': is {'label': 'Run'}: must be a list of detections",
        '- detections.json: \'../c\': is no video id: it must be a file name without "/", "\\", control characters '
        "or spaces around it",
    ]


def test_files_that_are_no_detections(command, tmp_path):
    path = tmp_path / "d.json"
    form = 'd.json: must be {"results": {<video>: [{"label": ..., "score": ..., "segment": ...}]}}'
    for content in ("[]", "null", '{"results": []}'):
        path.write_text(content)
        assert failure(command, "--detections", path) == f"error: cannot use {path}:\n- {form}"
    path.write_text('{"results": {"a": [], "a": []}}')
    assert failure(command, "--detections", path).endswith("- d.json: 'a': is there more than once: keep one")
    path.write_text("{")
    assert "- d.json: cannot be read as JSON (" in failure(command, "--detections", path)
    path.unlink()
    assert failure(command, "--detections", path) == f"error: cannot use {path}:\n- d.json: is missing"


def test_files_that_are_no_ground_truth(command, tmp_path):
    path = tmp_path / "g.json"
    assert failure(command, "--ground_truth", path) == f"error: cannot use {path}:\n- g.json: is missing"
    path.write_text('{"a": []}')
    assert "- g.json: must be {" in failure(command, "--ground_truth", path)
    path.write_text(json.dumps({"database": {"a": video("test", ("Run", 0, "nan"))}}))
    assert "- g.json: 'a': annotation {" in failure(command, "--ground_truth", path)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "- folder/videoname.npy, folder/subset.npy, folder/segments.npy and 1 more: is missing" in failure(
        command, "--ground_truth", folder
    )


def write_w_talc(folder, *rows):
    """W-TALC's arrays from rows (id, subset, segments, labels)."""
    folder.mkdir()
    for name, values in zip(("videoname", "subset", "segments", "labels"), zip(*rows)):
        array = np.empty(len(values), object)
        array[:] = values
        np.save(folder / f"{name}.npy", array if name in ("segments", "labels") else np.array(values, "S"))
    return folder


def test_w_talc_folder(command, tmp_path):
    rows = [
        ("a", "test", [[0, 10], [20, 30], [40, 50]], ["Run", "Run", "Jump"]),
        ("b", "test", [[0, 10]], ["Jump"]),
        ("t", "train", [[0, 10]], ["Run"]),
    ]
    folder = write_w_talc(tmp_path / "annotations", *rows)
    assert command(*FAST, "--ground_truth", folder) == command(*FAST)
    folder = write_w_talc(tmp_path / "twice", *rows, rows[0])
    assert "- twice: 'a': is there more than once: keep one" in failure(command, "--ground_truth", folder)


def test_ambiguous_segments_of_a_file(command, tmp_path):
    path = tmp_path / "Ambiguous_test.txt"
    path.write_text("a  60.0 70.0\nc 0 1\nc 2 3\nt 0 1\n")
    results = {"a": found(("Run", 1, 65, 75), ("Run", 0.9, 0, 10), ("Run", 0.8, 20, 30))}
    options = *FAST, "--protocol", "thumos_kit"
    assert row(command(*options, results=results), "Run")[1] == "58.3"  # miss, hit, hit: 1/2 and 2/3, raw
    out = command(*options, "--ambiguous", path, results=results)
    assert "note: 2 ambiguous segments of unknown videos left out: c\n" in out
    assert row(out, "Run")[1] == "100.0"
    known = {**TRUTH, "a": video("test", ("Ambiguous", 60, 70), *(("Run", 0, 10), ("Run", 20, 30), ("Jump", 40, 50)))}
    assert row(command(*options, results=results, database=known), "Run")[1] == "100.0"
    path.write_text("a 60\n")
    message = failure(command, "--ambiguous", path)
    assert message.endswith("- Ambiguous_test.txt: the line 'a 60' is not <video> <start> <end>, in seconds")


def test_ambiguous_segments_of_both_are_counted_once(tmp_path):
    truth, text = tmp_path / "g.json", tmp_path / "times.txt"
    truth.write_text(json.dumps({"database": {"a": video("test", ("Ambiguous", 1, 2), ("Run", 5, 6))}}))
    text.write_text("a 1.0 2.0\na 3 4\n")
    records, notes = selection.read_truth(truth, text)
    assert records["a"].ambiguous == ((1, 2), (3, 4))
    assert notes == []


def test_json_and_csv_have_the_same_numbers(command, tmp_path):
    files = tmp_path / "out.json", tmp_path / "out.csv"
    results = {**FOUND, "z": found(("Run", 1, 0, 10))}
    out = command("--iou", "0.5,0.6", "--bootstrap", "20", "--json", files[0], "--csv", files[1], results=results)
    content = json.loads(files[0].read_text())
    table = list(csv.reader(files[1].open(newline="")))
    assert table[0] == ["class", "instances", "0.5", "0.6", "average"]
    assert [line[0] for line in table] == ["class", "Jump", "Run", "mAP"]
    for name, instances, *values in table[1:]:
        of = content["AP"][name] if name != "mAP" else {"instances": content["instances"], **content["mAP"]}
        assert int(instances) == of.pop("instances")
        assert dict(zip(table[0][2:], map(float, values))) == of  # exactly
        assert row(out, name)[-3:] == [f"{float(x):.1f}" for x in values]
    assert content["AP"]["Run"] == pytest.approx({"0.5": 200 / 3, "0.6": 25, "average": 275 / 6})
    del content["AP"], content["mAP"]
    interval = content.pop("bootstrap")
    assert content == {
        "protocol": "activitynet",
        "subset": ["test"],
        "videos": 2,
        "classes": 2,
        "instances": 4,
        "detections": 5,
        "notes": ["1 detection in 1 unknown video kept, as false positives: z"],
        "ious": [0.5, 0.6],
    }
    ends = zip(*(interval["mAP"][column] for column in ("0.5", "0.6", "average")))
    assert [row(out, name) for name in ("95% from", "95% to")] == [[f"{x:.1f}" for x in end] for end in ends]
    command(*FAST, "--json", files[0])
    assert json.loads(files[0].read_text())["bootstrap"] is None


@pytest.mark.parametrize("option", ["--json", "--csv", "--analyse"])
def test_outputs_that_cannot_be_written(command, tmp_path, monkeypatch, option):
    """Reported before anything is read."""
    missing, file, folder = tmp_path / "missing" / "out", tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    nothing = ("--detections", tmp_path / "none.json")
    message = failure(command, *nothing, option, missing)
    assert message == f"error: {option} {missing}: the folder {missing.parent} is not there; make it, or choose another"
    wrong = file if option == "--analyse" else folder
    message = failure(command, *nothing, option, wrong)
    assert message == f"error: {option} {wrong} is a {wrong.name}; choose another name"
    message = failure(command, "--detections", file, option, file)
    assert message == f"error: {option} {file} is also another file of this command; choose another name"
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode == os.W_OK and Path(path) == tmp_path))
    message = failure(command, *nothing, option, tmp_path / "new")
    assert message == f"error: {option} {tmp_path}/new cannot be written; choose another place"
    assert file.read_text() == "mine"


def test_outputs_must_differ(command, tmp_path):
    message = failure(command, "--json", tmp_path / "x", "--csv", tmp_path / "x")
    assert message == f"error: --csv {tmp_path}/x is also another file of this command; choose another name"


def test_analysis(command, tmp_path):
    folder = tmp_path / "analysis"
    out = command(*FAST, "--analyse", folder)
    what = "analysis of errors, by the rule of activitynet:\n4 detections, 4 true segments, IoU 0.5: mAP 62.5"
    assert f"\n\n{what}" in out
    assert "not by coverage: the ground truth does not give the duration of every video" in out
    content = json.loads((folder / "analysis.json").read_text())
    assert (content["mean_ap"], content["num_detections"]) == (0.625, 4)
    assert set(content["characteristics"]) == {"length", "instances"}
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "false_negatives.png",
        "false_positives.png",
        "sensitivity.png",
    ]
    database = {id: {**of, "duration": 100} for id, of in TRUTH.items()}
    out = command(*FAST, "--analyse", folder, database=database)
    assert "not by coverage" not in out
    content = json.loads((folder / "analysis.json").read_text())
    assert content["characteristics"]["coverage"]["bounds"] == [0.2, 0.4, 0.6, 0.8]
    out = command(*FAST, "--analyse", folder, "--buckets", "thumos14", database=database)
    content = json.loads((folder / "analysis.json").read_text())
    assert content["characteristics"]["coverage"]["bounds"] == [0.02, 0.04, 0.06, 0.08]


def test_buckets_of_thumos14_by_its_ids(command, tmp_path):
    ids = {"a": "video_test_0000004", "b": "video_test_0000006"}
    results, database = ({ids[id]: of[id] for id in ids} for of in (FOUND, TRUTH))
    command(*FAST, "--analyse", tmp_path / "x", results=results, database=database)
    content = json.loads((tmp_path / "x" / "analysis.json").read_text())
    assert content["characteristics"]["length"]["bounds"] == [3, 6, 12, 18]


def test_buckets_without_analysis(command):
    message = failure(command, "--buckets", "thumos14")
    assert message == "error: --buckets is of --analyse; give that too"


@pytest.mark.usefixtures("unchecked")
@needs_shared
def test_published_detections_of_stpn(command):
    options = "--detections", STPN, "--bootstrap", "0", "--ground_truth"
    out = command(*options, TRUTH_210)
    assert "subset test: the test videos of THUMOS14, by their ids\n" in out
    assert "note: 1 annotated video without any detection: video_test_0000664\n" in out
    assert "protocol activitynet, videos 210, classes 20, instances 3311, detections 9151" in out
    assert row(out, "mAP")[:-1] == PUBLISHED
    assert command(*options, BAS_NET) == out
    assert command(*options, BAS_NET, "--subset", "test").splitlines()[1:] == out.splitlines()[1:]
    excluded = command(*options, W_TALC, "--exclude", "video_test_0000270,video_test_0001496")
    assert excluded.partition("protocol")[2] == out.partition("protocol")[2]


@pytest.mark.usefixtures("unchecked")
@needs_shared
def test_w_talc_under_all_protocols(command, tmp_path, monkeypatch):
    """Ambiguous segments, from the folder or from a file, matter only if the protocol treats them specially."""
    for module, read in ((score, "read_truth"), (submissions, "read")):  # slow under beartype, and always the same
        monkeypatch.setattr(module, read, functools.cache(getattr(module, read)))
    folder = tmp_path / W_TALC.name
    shutil.copytree(W_TALC, folder, ignore=shutil.ignore_patterns("*.txt"))
    for protocol in metrics.PROTOCOLS:
        options = "--detections", STPN, "--bootstrap", "0", "--iou", "0.5", "--protocol", protocol, "--ground_truth"
        out = command(*options, W_TALC)
        assert f"protocol {protocol}, videos 212, classes 20, instances 3358" in out
        assert 16 < float(row(out, "mAP")[0]) < 20
        assert (command(*options, folder) == out) == (protocol in ("activitynet", "opentad"))
        added = command(*options, folder, "--ambiguous", W_TALC / "Ambiguous_test.txt")
        assert added.partition("protocol")[2] == out.partition("protocol")[2]


@pytest.mark.usefixtures("unchecked")
@needs_shared
def test_the_grid_on_detections_that_lie_on_it():
    """STPN's, rounded to whole snippets: code of CO2-Net's family has 20.04 for them at IoU 0.5."""
    records, _ = selection.read_truth(W_TALC)
    found = submissions.read(STPN)
    found = {id: of._replace(segments=np.rint(of.segments * 25 / 16) * 0.64) for id, of in found.items()}
    chosen = selection.select(records, found, selection.choose_subset(records))
    inputs = chosen.detections, chosen.truth, len(chosen.classes)
    assert 100 * metrics.detection_map(*inputs, np.array([0.5]), "grid").mean == pytest.approx([20.04], abs=0.005)


def scaled(factor, results=FOUND):
    return {id: [{**one, "segment": [factor * t for t in one["segment"]]} for one in of] for id, of in results.items()}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "factor, unit",
    [(1, None), (25, "frames"), (1000, "milliseconds"), (1 / 60, "fractions of the video"), (1 / 3000, None)],
)
def test_units_that_are_not_seconds(command, factor, unit, known):
    """Videos last one minute; the duration is given or inferred from the last segment."""
    ends = {"a": video("test", *(("Run", 10 * i, 10 * i + 10) for i in range(6)))}
    results = {"a": found(*(("Run", 0.9, 10 * i, 10 * i + 10) for i in range(6)))}
    if known:
        ends["a"]["duration"] = 60
    out = command(*FAST, results=scaled(factor, results), database=ends)
    notes = [line for line in out.splitlines() if "times must be seconds" in line]
    if factor == 1:
        assert not notes
    elif unit:
        assert len(notes) == 1 and notes[0].endswith(f"times must be seconds, and look like {unit}")
    else:
        results = scaled(factor, {"a": found(*(("Run", 0.9, 10 * i, 10 * i + 10) for i in range(600)))})
        notes = [x for x in command(*FAST, results=results, database=ends).splitlines() if "shorter than a frame" in x]
        assert notes == ["note: most detections are shorter than a frame, 0.0033 s: times must be seconds"]


def test_copies_and_segments_after_the_video(command):
    database = {
        "a": {**video("test", ("Run", 0, 10), ("Run", 0, 10), ("Jump", 0, 10), ("Run", 0, 10)), "duration": 9.5},
        "b": {**video("test", ("Jump", 0, 10)), "duration": 8},
    }
    results = {**FOUND, "b": [*FOUND["b"], *FOUND["b"], *found(("Jump", 0.5, 0, 10))]}
    out = command(*FAST, results=results, database=database)
    assert "note: 2 true segments there more than once (opentad leaves copies out): a [0, 10]\n" in out
    assert "note: 1 detection there more than once, with class and score, kept: b [0, 10]\n" in out
    assert "note: 1 true segment ending more than 1 s after the video: b [0, 10]\n" in out
    assert "instances 5," in out
    assert "instances 3," in command(*FAST, "--protocol", "opentad", results=results, database=database)


@pytest.mark.parametrize(
    "entry, what",
    [
        ({"subset": ["validation"]}, "\"subset\" is ['validation']: must be the name of one"),
        ({"annotations": [{"label": "Run", "segment": [0, 1e30]}]}, "(0.0, 1e+30) is beyond 1e+07 s"),
        ({"annotations": [{"label": "Run", "segment": ["0", "1_000"]}]}, 'must be {"segment": [start, end]'),
        ({"annotations": [{"label": "Run", "segment": ["٠", "١٢"]}]}, 'must be {"segment": [start, end]'),
    ],
)
def test_odd_values_in_the_ground_truth_are_errors(command, entry, what):
    assert what in failure(command, database={**TRUTH, "b": {**TRUTH["b"], **entry}})


def test_names_of_any_length_and_script(tmp_path):
    """On an ASCII terminal; messages stay within a few lines."""
    name, id = "Läufe " + 100_000 * "x" + "end", 100_000 * "v"
    truth = {id: video("test", (name, 0, 10), ("Run", 20, 30)), f"{id}2": video(id, ("Run", 0, 1))}
    for file, content in (("d", {id: found((name, 1, 0, 10), ("y" * 10**5, 1, 2, 2))}), ("g", {"database": truth})):
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = [sys.executable, "-m", "wsal_jax.score", "--detections", tmp_path / "d.json", *FAST, "--ground_truth"]
    done = subprocess.run(
        [*run, tmp_path / "g.json", "--subset", "test"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"L\xe4ufe xxx" in done.stdout and "xend  " in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
    for content in ({id: found((name, "a", 0, 10))}, {"b": found((name, 1, 0, 10))}):
        (tmp_path / "d.json").write_text(json.dumps(content))
        done = subprocess.run(
            [*run, tmp_path / "g.json", "--subset", "test"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr) < 600


def test_a_folder_where_a_file_should_be(command, tmp_path):
    folder = tmp_path / "d.json"
    folder.mkdir()
    assert failure(command, "--detections", folder).endswith("- d.json: is a folder: give a file")
    assert failure(command, "--ambiguous", folder).endswith("- d.json: is a folder: give a file")


def test_text_files_of_thumos14(command, tmp_path):
    for name, lines in {
        "Run_test": "a 0 10\na 20.0 30.0\n",
        "Jump_test": "a  40 50\nb 0 10",
        "Run_val": "",
        "Ambiguous_test": "b 70 80\n",
    }.items():
        (tmp_path / f"{name}.txt").write_text(lines)
    out = command(*FAST, "--ground_truth", tmp_path)
    assert out.partition("protocol")[2] == command(*FAST).partition("protocol")[2]
    results = {**FOUND, "b": [*found(("Jump", 1, 75, 85)), *FOUND["b"]]}
    out = command(*FAST, "--ground_truth", tmp_path, "--protocol", "thumos_kit", results=results)
    assert row(out, "Jump") == ["2", "25.0", "25.0", "25.0"]  # the first is forgiven


def test_the_ground_truth_of_mmaction2(command, tmp_path):
    database = {
        id: {"duration_second": 60.0, "fps": 30.0, "annotations": of["annotations"]}
        for id, of in TRUTH.items()
        if id != "t"
    }
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(database))
    out = command(*FAST, "--ground_truth", path)
    assert out.startswith("subset (unnamed): the only one\n")
    assert out.partition("protocol")[2] == command(*FAST).partition("protocol")[2]
    records, _ = selection.read_truth(path)
    assert records["a"].duration == 60 and records["a"].fps == 30
