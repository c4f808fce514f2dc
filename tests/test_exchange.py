"""Table 1 of DGAM: all pairs of attention and classifier of two runs."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import maan
from wsal_jax import checkpoint, evaluate, exchange, main
from wsal_jax.types import InputError

PAIRS = ["old, old", "old, new", "new, old", "new, new"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tfds_dir):
    """Without and with the L1 on the attention, two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, sparsity in (("old", 0.0), ("new", 0.5)):
        config = maan.get_config("dataset=synthetic_untrimmed/tiny,aggregator=norm")
        config.data.dir, config.seeds = tfds_dir, 2
        config.batch_size, config.num_snippets, config.plots, config.evaluation.bootstrap = 8, 10, 0, 0
        config.steps, config.log_every, config.checkpoint_every = 30, 10, 10
        config.method.sparsity = sparsity
        main.run(config, str(folder / name))
    return folder


def run(params):
    return exchange.Run(ConfigDict(), "data/1", {"rgb": params}, {})


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_parts_of_a_pair_are_those_of_their_runs():
    old = {"attention": {"kernel": np.ones(2)}, "classifier": {"kernel": np.zeros(2)}}
    new = {"attention": {"kernel": np.full(2, 3.0)}, "classifier": {"kernel": np.ones(3)}, "decoder": np.ones(1)}
    assert exchange.compare(*(run(x) for x in (old, {**new, "classifier": old["classifier"]}))) == "nothing"
    equal(exchange.exchange(old, new), {**new, "attention": old["attention"]})
    equal(exchange.exchange(new, old), {**old, "attention": new["attention"]})
    equal(exchange.exchange(new, new), new)


def test_the_table_has_all_pairs(runs, tmp_path, monkeypatch, capsys):
    """A pair from one run has that run's results; the scored parameters are bit-equal to the saved ones."""
    scored = []
    original = evaluate.score

    def score(made, params, data, streams):
        scored.append((streams[0], params))
        return original(made, params, data, streams)

    monkeypatch.setattr(evaluate, "score", score)
    exchange.main(["--old", str(runs / "old"), "--new", str(runs / "new"), "--workdir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "method.sparsity: 0.0 in old, 0.5 in new" in out and "dataset" not in out
    assert [line.split("  ")[0] for line in out.splitlines()[2:]] == PAIRS

    saved = {
        (run, stream): checkpoint.restore(runs / run / "checkpoints" / stream)["params"]
        for run in ("old", "new")
        for stream in ("rgb", "flow")
    }
    wanted = [(pair.split(", "), stream) for pair in PAIRS for stream in ("rgb", "flow")]
    for ((attention, classifier), stream), (of, params) in zip(wanted, scored, strict=True):
        assert of == stream
        equal(params["attention"], saved[attention, stream]["attention"])
        equal(params["classifier"], saved[classifier, stream]["classifier"])

    rows = json.loads((tmp_path / "exchange.json").read_text())["rows"]
    assert list(rows) == PAIRS
    for run in ("old", "new"):
        assert rows[f"{run}, {run}"] == json.loads((runs / run / "results.json").read_text())["rows"]["fused"]
    folders = [f"attention_{pair.replace(', ', '_classifier_')}" for pair in PAIRS]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(folders)
    assert len({(tmp_path / folder / "detections.json").read_text() for folder in folders}) == 4


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    with pytest.raises(SystemExit, match="nowhere holds no run"):
        exchange.main(["--old", str(runs / "nowhere"), "--new", str(runs / "new"), "--workdir", str(tmp_path)])
    other = exchange.load(runs / "new")
    with pytest.raises(InputError, match="dataset: data/2 in old"):
        exchange.compare(other._replace(options={**other.options, "dataset": "data/2"}), other)
    params = {model: {**x, "attention": {"hidden": np.zeros(3)}} for model, x in other.params.items()}
    with pytest.raises(InputError, match="attention of rgb has shapes"):
        exchange.compare(other._replace(params=params), other)


def test_a_run_that_is_not_finished_is_refused(runs, tmp_path):
    record = json.loads((runs / "old" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "checkpoints").symlink_to(runs / "old" / "checkpoints")
    exchange.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**record, "steps": 40}))
    with pytest.raises(InputError, match="rgb is at step 30 of 40"):
        exchange.load(tmp_path)
