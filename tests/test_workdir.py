"""Which run a folder holds."""

import json

import pytest

from wsal_jax.types import InputError
from wsal_jax.workdir import open_run


def test_the_same_run_is_continued_and_another_refused(config, tmp_path):
    folder = open_run(str(tmp_path / "run"), config, "data/1.0.0")
    (folder / "detections.json").write_text("{}")
    config.evaluation.protocol = "wtalc"
    config.data.dir, config.data.placement = "elsewhere", "stream"  # what does not change the results may change
    assert open_run(str(tmp_path / "run"), config, "data/1.0.0") == folder
    assert (folder / "detections.json").read_text() == "{}"
    with pytest.raises(InputError, match=r"dataset: data/1.0.0 there, data/2.0.0 now"):
        open_run(str(tmp_path / "run"), config, "data/2.0.0")
    config.seed, config.method.aggregator = 7, "norm"
    with pytest.raises(InputError, match=r"method.aggregator: maan there, norm now; seed: 0 there, 7 now.*--workdir"):
        open_run(str(tmp_path / "run"), config, "data/1.0.0")
    assert json.loads((folder / "config.json").read_text())["seed"] == 0


def test_without_resume_a_run_is_set_aside_and_nothing_lost(config, tmp_path):
    config.resume = False
    for content in ("first", "second", "third"):
        folder = open_run(str(tmp_path / "run"), config, "data/1.0.0")
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        (folder / "detections.json").write_text(content)
    kept = [(tmp_path / name / "detections.json").read_text() for name in ("run.1", "run.2", "run")]
    assert kept == ["first", "second", "third"]


def test_the_default_folder_depends_on_what_is_computed(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = open_run(None, config, "data/1.0.0")
    assert first.parent == tmp_path / "runs" and first.name.startswith("maan-")
    config.data.device_gb = 1.0
    assert open_run(None, config, "data/1.0.0") == first
    others = {open_run(None, config, "data/2.0.0")}
    config.steps = 7
    others.add(open_run(None, config, "data/1.0.0"))
    assert len({first, *others}) == 3


def test_the_whole_config_is_recorded(config, tmp_path):
    recorded = json.loads((open_run(str(tmp_path / "run"), config, "data/1.0.0") / "config.json").read_text())
    assert recorded["dataset"] == "data/1.0.0"
    del recorded["dataset"]
    assert recorded == json.loads(config.to_json())
