"""Results are files: taking them, the tables made of them, and the comparison of rows."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
from absl import flags

import wsal_jax.configs.search.common as common
from wsal_jax import evaluate, methods, metrics, results, significance, study, tables, tune
from wsal_jax.data import pipeline
from wsal_jax.matching import PROTOCOLS
from wsal_jax.types import Annotation, Detections, InputError, Scores
from wsal_jax.workdir import open_run

ROOT = Path(__file__).parent.parent
TOML = """
[data.tiny]
name = "tiny"
switches = "dataset=synthetic_untrimmed/tiny"
roots = ["", ""]
[table.two]
data = ["tiny"]
options = "--config.seeds=2"
columns = [["final", "0.5", "@.5"], ["final", "average .1:.7", "@.1:.7"], ["rgb", "0.3", "RGB @.3"]]
[table.two.row]
maan = { label = "MAAN", config = "configs/maan.py" }
stpn = { label = "STPN", config = "configs/maan.py:aggregator=stpn", options = "--config.steps=7" }
[table.two.claims]
"It is above" = ["maan", "stpn"]
"It is below" = ["stpn", "maan"]
"""


def scored(noise, rng, videos=8, classes=3, protocol="activitynet", ambiguous=False):
    """Two to five true segments a video, always the same, and a detection near each, by the generator."""
    truth, found, same = {}, {}, np.random.default_rng(5)
    for i in range(videos):
        k = int(same.integers(2, 6))
        start = np.cumsum(same.uniform(6, 12, k))
        segments, labels = np.stack([start, start + 4], 1), same.integers(classes, size=k)
        forgiven = np.array([[0.0, 1.0]]) if ambiguous else np.zeros((0, 2))
        truth[f"v{i}"] = Annotation(segments, labels, forgiven)
        near = np.concatenate([segments + rng.normal(0, noise, segments.shape), [[0.0, 1.0]]])
        found[f"v{i}"] = Detections(near, np.append(labels, 0), rng.uniform(0, 1, k + 1))
    return metrics.match(found, truth, classes, np.array(metrics.IOUS), protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_packed_matches_resample_as_the_matches_do(protocol):
    rng = np.random.default_rng(0)
    seeds = [scored(noise, rng, protocol=protocol, ambiguous=True) for noise in (0.3, 1.0)]
    packed = significance.pack(seeds)
    copies = metrics.draw(8, 50, 0)
    for matched, back in zip(seeds, significance.unpack(packed, 9), strict=True):
        expected = metrics.resample(matched, copies, protocol)
        np.testing.assert_allclose(metrics.resample(back, copies, protocol), expected)
    if protocol == "thumos_kit":
        assert (packed["forgiven"] > 0).any()
    if protocol == "activitynet":  # what comes after the last hit is left out
        assert sum(len(m.videos) for matched in seeds for m in matched) > len(packed["hits"])


def test_a_draw_of_few_has_the_spread_of_their_mean():
    """Of three values, the variance of the mean is that of the values, unbiased, over three."""
    values = np.array([1.0, 2.0, 6.0])
    drawn = significance.redrawn(np.repeat(values[:, None], 20_000, 1), np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(3, abs=0.05)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)
    one = np.arange(5.0)[None]
    np.testing.assert_array_equal(significance.redrawn(one, np.random.default_rng(0)), one[0])


def test_rows_are_told_apart_where_they_differ_and_only_there():
    """Of 40 videos and three seeds: the same quality is not better, less noise is; swapped, the signs are."""

    def row(noise):
        seeds = [scored(noise, np.random.default_rng([7, s, int(100 * noise)]), videos=40) for s in range(3)]
        return [significance.resampled(significance.pack(seeds), "activitynet", [range(9)], 9, 200, 0)]

    good, same, bad = row(0.4), row(0.401), row(0.8)
    assert good[0].shape == (3, 201, 10)
    point, interval = significance.difference(good, bad)
    assert point[-1] > 5 and interval[-1, 0] > 0 and (interval[:, 0] <= interval[:, 1]).all()
    point, interval = significance.difference(good, same)
    assert interval[-1, 0] < 0 < interval[-1, 1]
    rows = {
        "good": {0: bad[0], 2: good[0]},
        "bad": {1: good[0], 2: bad[0]},
        "same": {0: same[0]},
        "alone": {3: same[0]},
    }
    table = significance.compare(rows, [*map(str, range(9)), "average"])
    assert list(table) == ["good"] and list(table["good"]) == ["bad", "same"]  # on repetitions 2 and 0
    forward, back = (tables.difference(table, *pair, "average") for pair in (("good", "bad"), ("bad", "good")))
    assert forward[0] == pytest.approx(significance.difference(good, bad)[0][-1], abs=0.01)
    assert forward == [-back[0], -back[2], -back[1]] and forward[1] > 0
    assert tables.difference(table, "good", "other", "average") is None


def test_the_interval_is_paired():
    """Videos that are hard for both rows do not count as a difference."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, (1, 401, 1))  # what a sample of videos does to both
    a, b = (50 + hard + rng.normal(0, 0.5, (3, 401, 1)) + x for x in (2, 0))
    _, interval = significance.difference([a], [b])
    assert 0 < interval[0, 0] < interval[0, 1] < 6
    _, wide = significance.difference([a, a + 20], [b, b - 20])  # repetitions that do not agree
    assert np.diff(wide)[0, 0] > 3 * np.diff(interval)[0, 0]


@pytest.fixture
def checkout(tmp_path, tfds_dir, tiny, monkeypatch):
    """A folder with two rows of two repetitions each, taken from runs whose scores are made up."""
    monkeypatch.chdir(ROOT)
    toml = TOML.replace(
        '"--config.seeds=2"',
        f'"--config.seeds=2 --config.plots=0 --config.evaluation.bootstrap=0 --config.data.dir={tfds_dir}"',
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "results" / "tables.toml").write_text(toml)
    (tmp_path / "README.md").write_text("<!-- table two @.5 -->\n<!-- end of table -->\n")
    text = "Before.\n\n<!-- table two -->\nold\n<!-- end of table -->\n\nAfter.\n"
    (tmp_path / "docs" / "results.md").write_text(text)
    (tmp_path / "docs" / "tuning.md").write_text("<!-- chosen settings -->\n<!-- end of settings -->\n")
    (tmp_path / "configs" / "tuned").mkdir(parents=True)
    (tmp_path / "configs" / "tuned" / "__init__.py").write_text("")
    tables.make(tmp_path)
    (tmp_path / "docs" / "results.md").write_text(text)
    data = pipeline.load(tiny, "test")
    for name, arguments in tables.rows_of(tables.read_tables(tmp_path), "two").items():
        config = tables.config_of(arguments)
        folder = open_run(str(tmp_path / "runs" / name), config, tiny.info.full_name)
        rng = np.random.default_rng(list(name.encode()))
        scores = {
            x: [[noisy(data, v, rng, 0.2 if "maan" in name else 0.7) for v in range(8)] for _ in "ab"]
            for x in config.streams
        }
        evaluate.report(methods.get(config.method), scores, data, config, folder, {})
    return tmp_path


def noisy(data, video, rng, noise):
    """True segments, and noise."""
    meta, annotation = data.metas[video], data.annotations[video]
    centres = (meta.offset + np.arange(meta.length) * meta.stride) / meta.fps
    inside = (annotation.segments[:, :1] <= centres) & (centres < annotation.segments[:, 1:])
    cas = np.stack([inside[annotation.labels == c].any(0) for c in range(3)], 1) + rng.uniform(
        0, noise, (meta.length, 3)
    )
    return Scores(data.labels[video], cas.astype(np.float32), cas.max(1).clip(0, 1).astype(np.float32))


def test_tables_are_made_of_the_files_of_runs(checkout, capsys):
    names = [f"{row}.tiny.{i}" for row in ("maan", "stpn") for i in range(2)]
    for name in names:
        tables.main(["add", str(checkout / "runs" / name), "--table", "two", "--row", name], checkout)
    text = (checkout / "docs" / "results.md").read_text()
    assert text.startswith("Before.\n\n<!-- table two -->\n|") and text.endswith("|\n<!-- end of table -->\n\nAfter.\n")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["", "tiny @.5", "tiny @.1:.7", "tiny RGB @.3"] and [line[0] for line in lines[2:]] == [
        "MAAN",
        "STPN",
    ]
    for line, row in zip(lines[2:], ("maan", "stpn")):
        runs = [
            json.loads((checkout / "runs" / f"{row}.tiny.{i}" / "results.json").read_text())["rows"] for i in range(2)
        ]
        for cell, (model, column) in zip(line[1:], [("fused", "0.5"), ("fused", results.COARSE), ("rgb", "0.3")]):
            values = [x for run in runs for x in run[model][column]["values"]]
            assert len(values) == 4 and cell.strip("*≈ ") == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    short = (checkout / "README.md").read_text().splitlines()
    assert short[1] == "|  | tiny @.5 |" and short[3] == f"| MAAN | {lines[2][1]} |"
    assert all(cell.startswith("**") for cell in lines[2][1:]) and not any("*" in cell for cell in lines[3])
    kept = json.loads((checkout / "results" / "two" / "stpn.tiny.1.json").read_text())
    assert (
        kept["options"] == {"seeds": 2, "steps": 7, "plots": 0, "evaluation.bootstrap": 0}
        and "--config.steps=7" in kept["command"]
    )
    assert kept["versions"]["jax"] and kept["seeds"] == [0, 1]
    assert sum(path.stat().st_size for path in (checkout / "results" / "two").iterdir()) < 60_000

    for i, seconds in enumerate((90, 30)):
        path = checkout / "results" / "two" / f"stpn.tiny.{i}.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps(known | {"seconds": seconds, "versions": {"device": "NVIDIA X1"}}))
    costs = tables.fill(checkout, "<!-- costs two -->\n<!-- end of costs -->\n").splitlines()
    usual = tables.config_of(["--config=configs/maan.py:dataset=synthetic_untrimmed/tiny"]).steps
    assert costs[1:-1] == [
        "|  | tiny |",
        "| --- | --- |",
        f"| MAAN | {usual:,} steps |",
        "| STPN | 7 steps, 2 x 1.0 min (X1) |",
    ]

    cells = next(iter(tables.compare(checkout, "two")["data"]["tiny"].values()))["stpn"]["average .1:.7"]
    claims = tables.fill(checkout, "<!-- claims two -->\nold\n<!-- end of claims -->\nrest").splitlines()
    mean, low, high = cells
    assert mean > low > 0  # the scores are made so
    assert claims[1:] == [
        "| claim | tiny |",
        "| --- | --- |",
        f"| It is above | **holds**: +{mean:.1f} ({low:.1f} to {high:.1f}) |",
        f"| It is below | does not hold: -{mean:.1f} (-{high:.1f} to -{low:.1f}) |",
        "<!-- end of claims -->",
        "rest",
    ]
    assert tables.format_claim([1.2, -0.5, 3.0]) == "cannot be told: +1.2 (-0.5 to 3.0)"
    assert tables.format_claim(None) == ""

    capsys.readouterr()
    tables.main([], checkout)
    assert capsys.readouterr().out == "no document changed\n"
    path = checkout / "results" / "two" / "maan.tiny.0.json"
    kept = json.loads(path.read_text())
    kept["rows"]["fused"]["0.5"]["values"][0] -= 4
    path.write_text(json.dumps(kept))
    assert tables.make(checkout) == ["README.md", "docs/results.md"]

    kept["options"]["steps"] = 8
    path.write_text(json.dumps(kept))
    assert tables.outdated(checkout, "two") == ["maan.tiny.0"]
    capsys.readouterr()
    tables.main([], checkout)
    assert "two/maan.tiny.0.json is of other options than the row has now" in capsys.readouterr().out


def test_other_runs_and_other_detections_are_refused(checkout):
    with pytest.raises(
        InputError, match=r"is not the run of maan\.tiny\.0 .* method\.aggregator: stpn in the run, maan"
    ):
        tables.add(checkout, checkout / "runs" / "stpn.tiny.0", "two", "maan.tiny.0")
    run = checkout / "runs" / "maan.tiny.0"
    (run / "detections_seed1.json").write_text(
        (checkout / "runs" / "stpn.tiny.0" / "detections_seed1.json").read_text()
    )
    with pytest.raises(InputError, match=r"detections_seed1.json has an average mAP of .*: run it anew"):
        tables.add(checkout, run, "two", "maan.tiny.0")
    (run / "results.json").unlink()
    with pytest.raises(InputError, match="holds no run that is over"):
        tables.add(checkout, run, "two", "maan.tiny.0")
    assert not (checkout / "results" / "two").exists()


def test_rows_are_chosen_by_name_and_misspelt_ones_are_told(checkout):
    known = tables.read_tables(checkout)
    assert list(tables.rows_of(known, "two", "stpn")) == ["stpn.tiny.0", "stpn.tiny.1"]
    assert list(tables.rows_of(known, "two", "stpn.tiny.1")) == ["stpn.tiny.1"]
    with pytest.raises(InputError, match="no row 'st' in table 'two'; there are maan, stpn"):
        tables.rows_of(known, "two", "st")
    with pytest.raises(InputError, match="no table 'three'"):
        tables.rows_of(known, "three")


def test_the_documents_have_what_the_files_say():
    """If this fails: `python -m wsal_jax.tables`."""
    for table in tables.read_tables(ROOT)["table"]:
        if tables.files_of(ROOT, table):
            kept = json.loads((ROOT / "results" / table / "comparisons.json").read_text())
            assert kept["of"] == tables.digests(ROOT, table), table
    for name in tables.DOCUMENTS:
        text = (ROOT / name).read_text()
        assert tables.fill(ROOT, text) == text, name
        for table in re.findall(r"<!-- table (\w+).* -->", text):
            assert table in tables.read_tables(ROOT)["table"]


def test_the_files_are_of_the_options_that_their_rows_have(monkeypatch):
    """If this fails, tuning chose other options for the row: train it anew, or remove its files."""
    monkeypatch.chdir(ROOT)
    assert {table: tables.outdated(ROOT, table) for table in tables.read_tables(ROOT)["table"]} == {
        table: [] for table in tables.read_tables(ROOT)["table"]
    }


def test_every_row_of_the_documents_is_a_command(monkeypatch):
    """Or says that nothing was tuned for it."""
    monkeypatch.chdir(ROOT)
    known, studies = tables.read_tables(ROOT), study.kept(ROOT)
    for table in known["table"]:
        for name, arguments in tables.rows_of(known, table).items():
            if name.endswith(".0") and (table != "methods" or name[:-2] in studies):
                config = tables.config_of(arguments)
                assert config.seeds >= 3 and (config.data.root or "built_in" in name)
            elif table == "methods" and name[:-2] not in studies:
                assert not (ROOT / "results" / table / f"{name}.json").exists()
                with pytest.raises(flags.IllegalFlagValueError, match="nothing was tuned for"):
                    tables.config_of(arguments)
    by_name = tables.rows_of(known, "methods")
    assert {name.split(".")[0] for name in by_name} >= {*methods.names()} - {"maan2d"} and len(by_name) == 14 * 7


def test_the_tuned_presets_are_what_the_studies_chose():
    """If this fails: `python -m wsal_jax.tables`."""
    studies = study.kept(ROOT)
    assert len(studies) == 14 * 3
    assert (ROOT / "configs" / "tuned" / "__init__.py").read_text() == study.tuned_text(studies)
    for name, one in studies.items():
        row, _, data = name.partition(".")
        base, _, switches = one["base"].partition(":")
        switches = (
            switches.replace("preset=composed", f"preset={data}")
            if data != "built_in"
            else (",".join(filter(None, [switches, "preset=built_in"])))
        )
        config = runpy.run_path(str(ROOT / base))["get_config"](switches)
        for option, x in study.best(one["trials_over"])["setting"].items():
            x = tuple(x) if isinstance(x, list) else x
            assert tune.value_of(config, option) == x, (row, option)
        assert {option: one[option] for option in common.BUDGET} == common.BUDGET, name  # the same for every row
        assert len(one["trials_over"]) == one["trials"] and "held-out" in one["supervision"]
        trained = [
            {option: x for option, x in trial["setting"].items() if not option.startswith(tune.WITHOUT_TRAINING)}
            for trial in one["trials_over"]
        ]
        assert all(setting not in trained[:i] for i, setting in enumerate(trained)), name


def test_reproduce_runs_the_rows_of_a_table(tmp_path, monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"\$DATA is not set"):
        tables.main(["run", "methods", "maan.context0"], ROOT)
    done = []

    def stand_in(command, cwd):
        done.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setattr(subprocess, "run", stand_in)
    monkeypatch.setattr(tables, "add", lambda *given: tmp_path)
    tables.run(ROOT, "methods", "stpn.context4")
    assert [command[0] for command in done] == [
        "--config=configs/maan.py:dataset=feature_folder,preset=context4,aggregator=stpn"
    ] * 3
    assert [command[1] for command in done] == [f"--config.data.root=/data/context4_seed{i}" for i in range(3)]
    assert all(command[-1].endswith(f"stpn.context4.{i}") for i, command in enumerate(done))


def test_tuning_goes_on_from_the_study_that_is_kept(tmp_path, monkeypatch):
    (tmp_path / "results" / "tuning").mkdir(parents=True)
    (tmp_path / "results" / "tables.toml").write_text((ROOT / "results" / "tables.toml").read_text())
    (tmp_path / "results" / "tuning" / "stpn.context0.json").write_text('{"command": "old", "given": 1}')
    monkeypatch.delenv("DATA", raising=False)
    with pytest.raises(InputError, match=r"\$DATA is not set"):
        tables.tune(tmp_path, "stpn.context0", 3)
    done = []

    def stand_in(command, cwd):
        workdir = Path(command[-1].removeprefix("--workdir="))
        before = workdir / "study.json"
        done.append([*command[3:-1], before.read_text() if before.exists() else ""])
        workdir.mkdir(parents=True, exist_ok=True)
        before.write_text('{"command": "new, with paths of this machine", "given": 2}')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setattr(subprocess, "run", stand_in)
    tables.tune(tmp_path, "stpn", 3)
    common = ["--config=configs/maan.py:aggregator=stpn,dataset=feature_folder,preset=composed"]
    assert done == [
        [
            *common,
            "--config.data.root=/data/tune_context0",
            "--search=maan",
            "--trials=3",
            '{"command": "old", "given": 1}',
        ],
        [*common, "--config.data.root=/data/tune_context4", "--search=maan", "--trials=3", ""],
        ["--config=configs/maan.py:aggregator=stpn", "--search=maan", "--trials=3", ""],
    ]
    kept = json.loads((tmp_path / "results" / "tuning" / "stpn.context0.json").read_text())
    command = f"python -m wsal_jax.tune {common[0]} --config.data.root=$DATA/tune_context0 --search=maan --trials=3"
    assert kept == {"command": command, "given": 2}


def test_the_studies_are_those_that_the_file_describes():
    tables_toml, studies = tables.read_tables(ROOT), study.kept(ROOT)
    commands = tables.studies_of(tables_toml)
    for name, one in studies.items():
        assert re.sub(r" --trials=\d+$", "", one["command"]) == " ".join(["python -m wsal_jax.tune", *commands[name]])
