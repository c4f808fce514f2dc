"""Checks before a run starts: misspelt names and invalid options."""

import runpy
from pathlib import Path

import pytest

from tests.test_train import one_device, toy
from wsal_jax import options, sharding
from wsal_jax.data import pipeline
from wsal_jax.types import InputError

NAN = float("nan")


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


def check(method, config, data, mesh):
    options.check([method], config, {"train": data, "test": data}, mesh)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 13, "only 12 training videos"),
        ("batch_size", 4, "multiple of the 8 devices"),
        ("steps", 0, "config.steps=0"),
        ("pairs", 5, "config.pairs=5: give 0 to 4"),
        ("pairs", -1, "config.pairs=-1"),
        ("optimizer.coupled_l2", -1.0, "config.optimizer.coupled_l2=-1.0"),
        ("num_snippets", -1, "config.num_snippets=-1"),
        ("data.placement", "disk", "config.data.placement='disk'"),
        ("data.device_gb", NAN, "config.data.device_gb=nan: must be finite"),
        ("seed", -1, "config.seed=-1: give at least 0"),
        ("seed", 2**31, "config.seed=2147483648: must be less"),
        ("plots", -2, "config.plots=-2: give at least 0"),
        ("streams", (), r"config.streams=\(\): give one or several"),
        ("streams", ("rgb", "rgb"), "config.streams=.*each once"),
        ("streams", ("flow", "rgb+rgb"), "config.streams=.*'rgb\\+rgb' has a stream twice"),
        ("fusion", (NAN, 1.0), "config.fusion=.*finite"),
        ("fusion", (0.0, 0.0), "config.fusion=.*a weight for each"),
        ("method.dropout", 1.5, "config.method.dropout=1.5: give at least 0 and less than 1"),
        ("method.dropout", 1.0, "config.method.dropout=1.0: give at least 0 and less than 1"),
        (
            "method.per_stream",
            dict(rgb=dict(dropout=-0.1)),
            "config.method.per_stream.rgb.dropout=-0.1: give at least 0",
        ),
        ("method.hidden", 0, "config.method.hidden=0: give at least 1"),
        ("method.sparsity", -1.0, "config.method.sparsity=-1.0"),
        ("data.dtype", "int8", "config.data.dtype='int8': there are stored, float32"),
        ("optimizer.name", "adamm", "adamm"),
        ("optimizer.learning_rate", -1e-3, "config.optimizer.learning_rate=-0.001: give at least 0"),
        ("optimizer.learning_rate", NAN, "config.optimizer.learning_rate=nan"),
        ("optimizer", dict(name="sgd", learning_rate=0.1, momentum=float("inf")), "config.optimizer.momentum=inf"),
        (
            "optimizer",
            dict(name="sgd", learning_rate=dict(name="linear_schedule", init_value=-1.0, end_value=0.0)),
            "config.optimizer.learning_rate.init_value=-1.0",
        ),
        (
            "optimizer",
            dict(name="sgd", learning_rate=dict(name="linear_schedule", init_value=1.0)),
            "config.optimizer=.*end_value",
        ),
        (
            "optimizer",
            dict(
                name="sgd",
                learning_rate=dict(name="exponential_decay", init_value=1.0, transition_steps=1, decay_rate=1e30),
            ),
            "is inf in step 3; it must be finite",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(config, data, option, value, message):
    if option in ("optimizer", "method.per_stream"):
        config.method.per_stream = value if option != "optimizer" else {}
        config.optimizer = value if option == "optimizer" else config.optimizer
    elif option in ("pairs", "optimizer.coupled_l2"):  # which the config of MAAN does not have
        config.pairs = value if option == "pairs" else 0
        config.optimizer.coupled_l2 = value if option != "pairs" else 0.0
    else:
        config.update_from_flattened_dict({option: value})
    with pytest.raises(InputError, match=message):
        check(toy(), config, data, sharding.make_mesh())


def test_a_method_may_refuse_data(config, data):
    def refuse(data):
        raise InputError(f"not these {len(data.metas)}")

    with pytest.raises(InputError, match="not these 12"):
        check(toy(check=refuse), config, data, one_device())


@pytest.mark.parametrize(
    "option, value",
    [
        ("evaluation.protocol", "anet"),
        ("evaluation.ious", (0.0, 0.5)),
        ("evaluation.bootstrap", -1),
        ("localize.soft_nms", -0.1),
        ("localize.nms", NAN),
        ("localize.nms", 1.5),
        ("localize.reject", -0.5),
        ("localize.thresholds", (0.1, NAN)),
    ],
)
def test_what_cannot_be_evaluated_is_found_before(config, data, option, value):
    config.update_from_flattened_dict({option: value})
    with pytest.raises(InputError, match=option.split(".")[1]):
        options.check_evaluation(config, data)


@pytest.mark.parametrize(
    "dataset", ["synthetic_untrimmed/tiny", "feature_folder", "thumos14", "image_folder", "cub200"]
)
def test_the_configs_themselves_are_in_range(dataset):
    folder = Path(options.configs.__path__[0])
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("common", "__init__"):
            options.check_numbers(runpy.run_path(str(path))["get_config"](f"dataset={dataset}"))


def test_names_that_look_alike_are_told():
    known = ["optimizer", "optimizer.learning_rate", "seed", "seeds", "data.root", "log_every"]
    assert options.near("lr", known)[0] == options.near("lrr", known)[0] == "optimizer.learning_rate"
    assert options.near("sede", known)[0] in ("seed", "seeds") and options.near("rot", known) == ["data.root"]
    assert options.near("zzz", known) == []


def test_a_config_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("maan:quick,dataset=thumos14", "configs/maan.py:quick,dataset=thumos14"):
        path, switches = options.find(text)
        assert path.name == "maan.py" and path.is_absolute() and switches == "quick,dataset=thumos14"
    (tmp_path / "maan.py").write_text("")
    assert options.find("maan.py")[0].absolute() == tmp_path / "maan.py"
    for text in ("mann", "elsewhere/maan.py", "common", ""):
        with pytest.raises(InputError, match=r"no such file.*dgam, iwo, maan, maan2d, .*star"):
            options.find(text)
    with pytest.raises(InputError, match=r"did you mean maan or maan2d\?"):
        options.find("configs/mann.py:quick")


def test_pairs_need_a_class_of_two_videos(config, data):
    config.pairs = 1
    alone = data._replace(labels=data.labels * (data.labels.cumsum(0) == 1))  # each class in its first video alone
    with pytest.raises(InputError, match=r"config\.pairs=1: no class has two training videos"):
        check(toy(), config, alone, sharding.make_mesh())
    check(toy(), config, data, sharding.make_mesh())
