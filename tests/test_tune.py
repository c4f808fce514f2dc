"""Held-out parts, the search, and a study that is killed, shared and continued. The test split is never opened."""

import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.search import common
from tests.test_evaluate_images import made
from wsal_jax import evaluate, heldout, methods, metrics, options, plot_study, sharding, study, train, tune
from wsal_jax.data import pipeline
from wsal_jax.types import Annotation, InputError, Scores

SEARCH = """
def get_search(config):
    return {
        "steps": [3, 12],
        "optimizer.learning_rate": dict(low=1e-4, high=1e-1, log=True),
        "localize.thresholds": [(0.1,), (0.5,)],
        "fusion": [(0.5, 0.5), (0.2, 0.8)],
    }
"""
BASE = "configs/maan.py:dataset=synthetic_untrimmed/tiny"


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """Matplotlib takes its time; only the picture of 9 trials is drawn, which one test looks at."""
    draw = plot_study.draw
    monkeypatch.setattr(plot_study, "draw", lambda *given: draw(*given) if len(given[2]) == 9 else None)


@pytest.fixture
def search(tmp_path):
    (tmp_path / "space.py").write_text(SEARCH)
    return str(tmp_path / "space.py")


@pytest.fixture
def config(config, monkeypatch):
    """On one device, for a fold has too few videos for eight."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda *given: mesh)
    config.batch_size = 4
    return config


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


def perfect(data, video):
    """CAS 1 in the true segments of a class."""
    meta, annotation = data.metas[video], data.annotations[video]
    centres = (meta.offset + np.arange(meta.length) * meta.stride) / meta.fps
    inside = (annotation.segments[:, :1] <= centres) & (centres < annotation.segments[:, 1:])
    cas = np.stack([inside[annotation.labels == c].any(0) for c in range(3)], 1).astype(np.float32)
    return Scores(data.labels[video], cas, cas.max(1))


def fake(calls):
    """A training that takes no time: the better the nearer its learning rate is to 0.01, and with 12 steps."""

    def train_and_score(config, fold, folder):
        calls.append(config.to_dict())
        error = abs(np.log10(config.optimizer.learning_rate) + 2) + (config.steps != 12)
        rng = np.random.default_rng(len(fold.held_out.metas[0].id) + fold.held_out.metas[0].length)
        of = {"rgb": [], "flow": []}
        for seed in range(config.seeds):
            for model in of:
                true = [perfect(fold.held_out, v) for v in range(len(fold.held_out.metas))]
                noise = 1 + 0.5 * error + 0.1 * seed + 0.2 * (model == "rgb")
                of[model].append([x._replace(cas=x.cas + noise * rng.uniform(0, 1, x.cas.shape)) for x in true])
        return of

    return train_and_score


def test_parts_are_even_and_share_no_group():
    groups = ["a"] * 5 + ["b"] * 3 + ["c"] * 3 + [""] * 4 + ["d"] * 2
    parts = heldout.split(groups, 3, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(17))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for name in "abcd":
        assert sum(any(groups[i] == name for i in part) for part in parts) == 1
    free = [sorted(i for i in part if not groups[i]) for part in parts]
    assert sum(map(bool, free)) > 1, "videos without a group are not one group"
    assert any(not np.array_equal(x, y) for x, y in zip(heldout.split([""] * 9, 3, 0), heldout.split([""] * 9, 3, 1)))
    with pytest.raises(InputError, match="3 folds of 2 groups"):
        heldout.split(["a", "a", "b"], 3, 0)


def test_folds_are_parts_of_the_training_videos(data):
    data = data._replace(groups=["x"] * 6 + ["y"] * 6)
    for fold in heldout.make_folds(data, 2, 0):
        assert len(fold.train.metas) == len(fold.held_out.metas) == 6
        assert len(set(fold.train.groups)) == len(set(fold.held_out.groups)) == 1
        ids = [meta.id for meta in data.metas]
        for part in fold:
            for i, meta in enumerate(part.metas):
                there = ids.index(meta.id)
                np.testing.assert_array_equal(pipeline.read(part, i, ["flow"]), pipeline.read(data, there, ["flow"]))
                np.testing.assert_array_equal(part.annotations[i].segments, data.annotations[there].segments)
                np.testing.assert_array_equal(part.labels[i], data.labels[there])
            assert pipeline.num_bytes(part, ["flow"]) == 4 * sum(meta.length for meta in part.metas) * 16


def test_the_value_is_that_of_the_last_row_of_an_evaluation(config, data):
    """Detections of the fused scores, by the protocol's rule and thresholds, averaged over them."""
    config.fusion, config.evaluation.ious = (0.3, 0.7), (0.3, 0.5)
    folds = heldout.make_folds(data, 2, 0)
    config.seeds = 2
    scores = [fake([])(config, fold, None) for fold in folds]
    values = heldout.measure(config, folds, scores, "segments")
    assert values.shape == (2, 2)
    for (f, fold), seed in [(x, y) for x in enumerate(folds) for y in range(2)]:
        of = {model: x[seed] for model, x in scores[f].items()}
        _, rows = evaluate.detect(methods.get(config.method), of, fold.held_out, config, 0)
        found = {meta.id: one for meta, one in zip(fold.held_out.metas, rows["fused"])}
        truth = {meta.id: one for meta, one in zip(fold.held_out.metas, fold.held_out.annotations)}
        expected = metrics.detection_map(found, truth, 3, np.array([0.3, 0.5]), "activitynet").mean.mean()
        assert values[f, seed] == pytest.approx(100 * expected)
    assert 0 < values.min() < values.max()


def test_without_segments_labels_choose_and_it_says_so(config, data, search, tmp_path, monkeypatch):
    blind = data._replace(annotations=[Annotation(np.zeros((0, 2)), np.zeros(0, int))] * 12)
    monkeypatch.setattr(pipeline, "load", lambda *given: blind)
    monkeypatch.setattr(heldout, "train_and_score", wrong_videos(data))
    said = tune.run(config, BASE, search, str(tmp_path / "run"), trials=1, folds=2, seeds=1)
    assert "video labels of held-out training videos" in said and "classification mAP" in said
    assert "localize.thresholds" not in said and "fusion" in said
    [one] = json.loads((tmp_path / "run" / "study.json").read_text())["trials_over"]
    assert one["setting"]["fusion"] == [0.2, 0.8] and np.mean(one["values"]) == 100
    with pytest.raises(InputError, match="the held-out videos of a fold have none"):
        tune.run(config, BASE, search, str(tmp_path / "other"), trials=1, folds=2, measure="segments")


def wrong_videos(data):
    """Flow knows the labels, and RGB is sure of the opposite: alone with half of the weight it leaves ties."""

    def train_and_score(config, fold, folder):
        def of(right):
            return [[Scores(x if right else 1 - x, np.zeros((2, 3)), np.zeros(2)) for x in fold.held_out.labels]]

        return {"rgb": of(False), "flow": of(True)}

    return train_and_score


def test_a_killed_study_ends_as_one_that_was_not(config, search, tmp_path, monkeypatch):
    budget = dict(trials=10, folds=2, seeds=2, detections=2)
    calls = []
    monkeypatch.setattr(heldout, "train_and_score", fake(calls))
    tune.run(config, BASE, search, str(tmp_path / "whole"), **budget)
    assert calls[0]["steps"] == config.steps == 6  # the first is the config as given
    assert {call["steps"] for call in calls} == {3, 6, 12} and all(call["seeds"] == 2 for call in calls)
    over = json.loads((tmp_path / "whole" / "study.json").read_text())["trials_over"]
    trained = [len(one["values"]) for one in over]
    assert len(over) == 10 and sum(trained) == len(calls) and set(trained) == {1, 2}

    parts, folders, middle = [], [], sum(trained[:8]) + 1

    def killed(config, fold, folder):
        folders.append(folder)
        if len(folders) == middle:
            raise KeyboardInterrupt
        return fake(parts)(config, fold, folder)

    monkeypatch.setattr(heldout, "train_and_score", killed)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config, BASE, search, str(tmp_path / "parts"), **budget)
    assert len(json.loads((tmp_path / "parts" / "study.json").read_text())["trials_over"]) == 8
    tune.run(config, BASE, search, str(tmp_path / "parts"), **budget)
    assert folders[middle] == folders[middle - 1], "what was trained of the killed trial is continued"
    assert parts == calls
    results = [json.loads((tmp_path / x / "study.json").read_text())["trials_over"] for x in ("whole", "parts")]
    for one in (*results[0], *results[1]):
        del one["seconds"], one["detection_seconds"]
    assert results[0] == results[1]
    tune.run(config, BASE, search, str(tmp_path / "parts"), **budget)
    assert parts == calls, "a study that is over trains nothing"
    tune.run(config, BASE, search, str(tmp_path / "parts"), **{**budget, "trials": 11})
    assert len(parts) > len(calls)
    with pytest.raises(InputError, match=r"holds a run with other options.*tune\.folds"):
        tune.run(config, BASE, search, str(tmp_path / "parts"), **{**budget, "folds": 3})


def test_trials_below_the_median_of_the_first_fold_end_there(config, search, tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "train_and_score", fake([]))
    said = tune.run(config, BASE, search, str(tmp_path / "run"), trials=9, folds=2, seeds=2, detections=1)
    over = json.loads((tmp_path / "run" / "study.json").read_text())["trials_over"]
    whole = [np.mean(over[0]["values"][0])]
    for one in over[1:]:
        first = np.mean(one["values"][0])
        assert (len(one["values"]) == 1) == (first < np.median(whole))
        whole += [first] if len(one["values"]) == 2 else []
    assert 1 < len(whole) < 9
    assert said.count("ended after fold 1 of 2") == 9 - len(whole)
    rows = [line for line in said.splitlines() if line.startswith("|")][2:]
    assert all(("ended" in row) == (i >= len(whole)) for i, row in enumerate(rows)), "those come last"


def test_the_first_settings_stay_near_the_config(config, tmp_path, monkeypatch):
    """Half of four options have the config's value in each, not always the same, and later trials are free."""
    names = {"steps": [6], "num_snippets": [config.num_snippets], "batch_size": [4], "log_every": [config.log_every]}
    values = {name: [*own, *range(100, 140)] for name, own in names.items()}
    (tmp_path / "space.py").write_text(f"def get_search(config): return {values}")
    monkeypatch.setattr(heldout, "train_and_score", fake([]))
    tune.run(config, BASE, str(tmp_path / "space.py"), str(tmp_path / "run"), trials=12, folds=2, seeds=1, detections=1)
    over = json.loads((tmp_path / "run" / "study.json").read_text())["trials_over"]
    kept = [{name for name, own in names.items() if one["setting"][name] == own[0]} for one in over]
    assert len(kept[0]) == 4 and all(2 <= len(x) < 4 for x in kept[1:8])
    assert len({frozenset(x) for x in kept[1:8]}) > 1 and set.union(*kept[1:8]) == set(names)
    assert min(len(x) for x in kept[8:]) < 2


def test_no_setting_is_trained_twice_while_there_are_others(config, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(heldout, "train_and_score", fake(calls))
    (tmp_path / "space.py").write_text(
        'def get_search(config): return {"steps": [3, 6, 12], "method.dropout": [0.0, 0.5]}'
    )
    given = config, BASE, str(tmp_path / "space.py"), str(tmp_path / "run")
    tune.run(*given, trials=6, folds=2, seeds=1, detections=1)
    over = json.loads((tmp_path / "run" / "study.json").read_text())["trials_over"]
    assert len({(one["setting"]["steps"], one["setting"]["method.dropout"]) for one in over}) == 6
    tune.run(*given, trials=7, folds=2, seeds=1, detections=1)  # there is no seventh
    assert len(json.loads((tmp_path / "run" / "study.json").read_text())["trials_over"]) == 7


def test_a_study_goes_on_from_its_json_alone(config, search, tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "train_and_score", fake([]))
    budget = dict(folds=2, seeds=2, detections=1)
    for name, trials in dict(whole=10, start=7).items():
        tune.run(config, BASE, search, str(tmp_path / name), trials=trials, **budget)
    (tmp_path / "on").mkdir()
    (tmp_path / "on" / "study.json").write_text((tmp_path / "start" / "study.json").read_text())
    calls = []
    monkeypatch.setattr(heldout, "train_and_score", fake(calls))
    tune.run(config, BASE, search, str(tmp_path / "on"), trials=10, **budget)
    whole, on = [json.loads((tmp_path / x / "study.json").read_text())["trials_over"] for x in ("whole", "on")]
    same = ("setting", "values", "device")
    assert [[x[name] for name in same] for x in whole] == [[x[name] for name in same] for x in on]
    assert len(calls) == sum(len(x["values"]) for x in whole[7:]) and {len(x["values"]) for x in whole[:7]} == {1, 2}
    (tmp_path / "on" / "study.journal").unlink()
    (tmp_path / "on" / "config.json").unlink()
    with pytest.raises(InputError, match=r"study\.json is of another search, with another seeds: move it away"):
        tune.run(config, BASE, search, str(tmp_path / "on"), trials=10, **{**budget, "seeds": 1})


def test_a_trial_that_another_process_works_on_is_left_to_it(config, search, tmp_path):
    about = dict(folds=2, seeds=1, detections=1, supervision="", measured="", protocol="", dataset="", space={})
    folder, shared = tune.open_study(str(tmp_path), config, about)
    space = tune.read_search(tune.find_search(search), config)
    with tune.claim(shared, folder, space, config, 2) as (first, *_):
        with tune.claim(shared, folder, space, config, 2) as (second, *_):
            assert second.number != first.number
            with tune.claim(shared, folder, space, config, 2) as none:
                assert none is None
        with tune.claim(shared, folder, space, config, 2) as (again, _, at):  # the second ended without a word
            assert again.number not in (first.number, second.number) and at.name == str(second.number)


def test_the_best_setting_becomes_a_config(config, search, tmp_path, monkeypatch):
    """Also by `--config=FILE`, which takes switches of its own; and the study says how it came to it."""
    calls = []
    monkeypatch.setattr(heldout, "train_and_score", fake(calls))
    said = tune.run(config, BASE, search, str(tmp_path / "run"), trials=9, folds=2, seeds=1, detections=4)
    kept = json.loads((tmp_path / "run" / "study.json").read_text())
    values = [np.mean(one["values"]) if len(one["values"]) == 2 else 0.0 for one in kept["trials_over"]]
    best = kept["trials_over"][int(np.argmax(values))]
    assert max(values) > values[0]
    assert kept["base"] == BASE and set(kept["given"]) == set(kept["space"])
    assert all(tune_value(x) == tune.value_of(config, name) for name, x in kept["given"].items())
    written: dict = {}
    exec(study.tuned_text({"toy.data": kept}), written)
    assert written["CHOSEN"]["toy.data"] == {name: tune_value(x) for name, x in best["setting"].items()}
    assert f"| toy | data | 9 | {values[0]:.1f} ± 0.0 | {max(values):.1f} ± 0.0 |" in study.tuned_table(
        {"toy.data": kept}
    )
    chosen = runpy.run_path(str(tmp_path / "run" / "chosen.py"))["get_config"]("")
    expected = tune.apply(config, {name: tune_value(x) for name, x in best["setting"].items()})
    assert chosen.to_dict() == expected.to_dict() and isinstance(chosen.localize.thresholds, tuple)
    path, switches = options.find(f"{tmp_path}/run/chosen.py:aggregator=stpn")
    other = runpy.run_path(str(path))["get_config"](switches)
    assert other.method.aggregator == "stpn" and other.steps == best["setting"]["steps"]
    first_row = [line for line in said.splitlines() if line.startswith("|")][2]
    assert first_row.split("|")[2].split()[0] == f"{max(values):.2f}"
    assert (tmp_path / "run" / "study.md").read_text().rstrip("\n") in said
    assert (tmp_path / "run" / "study.png").read_bytes().startswith(b"\x89PNG")
    assert kept["supervision"] == heldout.SUPERVISION["segments"] and kept["videos"] == 12 and kept["seeds"] == 1


def tune_value(x):
    return tuple(x) if isinstance(x, list) else x


def test_settings_without_training_are_searched_on_one_training(config, data, search, monkeypatch):
    """The best of all four combinations, which 30 tries reach."""
    space = tune.read_search(tune.find_search(search), config)
    inner = {name: x for name, x in space.items() if name.startswith(tune.WITHOUT_TRAINING)}
    assert list(inner) == ["localize.thresholds", "fusion"]
    folds = heldout.make_folds(data, 2, 0)
    config.seeds = 1
    scores = [fake([])(config, fold, None) for fold in folds]
    setting, values = tune.choose_detections(config, inner, folds, scores, "segments", 30)
    every = [
        heldout.measure(tune.apply(config, {"localize.thresholds": x, "fusion": y}), folds, scores, "segments").mean()
        for x in inner["localize.thresholds"]
        for y in inner["fusion"]
    ]
    assert values.mean() == max(every) > min(every)
    again = heldout.measure(tune.apply(config, setting), folds, scores, "segments")
    np.testing.assert_array_equal(values, again)


def test_a_setting_that_diverges_is_worth_nothing(config, search, tmp_path, monkeypatch):
    def diverge(config, fold, folder):
        if config.steps == 3:
            raise train.Diverged("training diverged: in step 1")
        return fake([])(config, fold, folder)

    monkeypatch.setattr(heldout, "train_and_score", diverge)
    said = tune.run(config, BASE, search, str(tmp_path / "run"), trials=8, folds=2, seeds=1, detections=1)
    assert "| diverged |" in said
    assert runpy.run_path(str(tmp_path / "run" / "chosen.py"))["get_config"]().steps != 3


def test_nothing_of_the_test_split_is_opened(config, tiny, search, tmp_path, monkeypatch):
    """A real training; every file of the test split is spoilt, and opening one is an error besides."""
    config.streams, config.fusion, config.steps, config.method.aggregator = ("rgb",), (1.0,), 2, "norm"
    (tmp_path / "space.py").write_text('def get_search(config): return {"localize.thresholds": [(0.1,), (0.5,)]}')
    budget = dict(trials=1, folds=2, seeds=2, detections=2)
    kept, names = {}, []
    tune.run(config, BASE, search, str(tmp_path / "before"), **budget)
    for path in [path for path in tiny.data_path.iterdir() if "-test" in path.name]:
        kept[path] = path.read_bytes()
        path.write_bytes(b"spoilt")
    assert len(kept) == 3  # records, RGB, flow
    # The last part of a path alone, for the folders above may have any name.
    sys.addaudithook(lambda event, args: names.append(Path(str(args[0])).name) if event == "open" and kept else None)
    try:
        tune.run(config, BASE, search, str(tmp_path / "after"), **budget)
        with pytest.raises(InputError, match="-test"):
            pipeline.load(pipeline.build(config.data), "test")
    finally:
        spoilt = dict(kept)
        kept.clear()
        for path, content in spoilt.items():
            path.write_bytes(content)
    opened = names[: next(i for i, name in enumerate(names) if "-test" in name)]
    assert any("-train" in name for name in opened) and any("study.journal" in name for name in opened)
    assert sum("-test" in name for name in names) == 1  # by the line above, which shows that the hook sees it
    values = [json.loads((tmp_path / x / "study.json").read_text())["trials_over"][0] for x in ("before", "after")]
    assert values[0]["values"] == values[1]["values"] and values[0]["setting"] == values[1]["setting"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"optimizer.lr": [1.0]}', "no option 'optimizer.lr'; the nearest are optimizer.learning_rate"),
        ('{"steps": 3}', "steps: give a list of values, or dict"),
        ('{"steps": dict(low=1)}', "steps: give a list of values, or dict"),
        ('{"method.dropout": dict(low=0.1, high=1.0, log=True)}', "method.dropout is 0.0 .* give a list"),
    ],
)
def test_spaces_that_cannot_work_are_refused(config, search, tmp_path, values, message):
    (tmp_path / "space.py").write_text(f"def get_search(config): return {values}")
    with pytest.raises(InputError, match=message):
        tune.read_search(tune.find_search(search), config)


@pytest.mark.parametrize("dataset", ["synthetic_untrimmed/thumos", "feature_folder,preset=composed", "thumos14"])
@pytest.mark.parametrize("name", sorted({*methods.names()} - {"maan2d"}))  # of images, below
def test_every_method_has_a_space_with_its_own_values(name, dataset):
    path, switches = options.find(f"{name}:dataset={dataset}")
    config = runpy.run_path(str(path))["get_config"](switches)
    space = tune.read_search(tune.find_search(name), config)
    assert {"steps", "num_snippets", "method.dropout"} <= set(space)
    for option, values in space.items():
        own = tune.value_of(config, option)
        assert own in values if isinstance(values, list) else values["low"] <= own <= values["high"]
    first = {option: values[0] if isinstance(values, list) else values["low"] for option, values in space.items()}
    assert isinstance(tune.apply(config, first), ConfigDict)


def test_images_are_tuned_by_their_classes():
    """Boxes of training images are not looked at."""
    path, switches = options.find("maan2d:aggregator=mean")
    config = runpy.run_path(str(path))["get_config"](switches)
    space = tune.read_search(tune.find_search("maan2d"), config)
    assert {"steps", "method.dropout", "optimizer.learning_rate.init_value"} <= set(space)
    assert "num_snippets" not in space
    chosen = tune.apply(config, {"steps": 800, "optimizer.learning_rate.init_value": 3e-3})
    assert chosen.optimizer.learning_rate.to_dict() == {
        "name": "cosine_decay_schedule",
        "init_value": 3e-3,
        "decay_steps": 800,
    }
    images = made().data
    folds = heldout.make_folds(images, 2, 0)
    assert heldout.choose_measure(folds, "auto") == heldout.choose_measure(folds, "labels") == "labels"
    with pytest.raises(InputError, match=r"'segments'.*take 'labels'"):
        heldout.choose_measure(folds, "segments")


def test_the_search_is_found_by_name_and_misspelt_names_are_told():
    assert tune.find_search("configs/search/dgam.py").samefile(tune.find_search("dgam"))
    with pytest.raises(InputError, match=r"--search=maam: no such file; there are .*maan, .*star"):
        tune.find_search("maam")
    assert set(common.BUDGET) == {"trials", "folds", "seeds", "detections", "measure"}


def test_the_spread_is_over_seeds():
    one = {"values": [[10.0, 20.0], [20.0, 40.0]]}
    assert study.value(one) == 22.5 and study.spread(one) == pytest.approx(np.std([15, 30], ddof=1))
