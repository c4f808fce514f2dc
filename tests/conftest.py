"""Eight fake CPU devices, so that sharding is tested everywhere; code that names no mesh runs on the first."""

import os
import tempfile

import jax
import jaxlib
import jaxtyping
import pytest

# Most of the suite's time is compilation, in this process and in those that it starts, so the compiler optimizes less
# than for users. Its newer way to emit loops costs as much again; versions after 0.10 have no flag for it. The flags
# that the environment has come last, so they win.
FLAGS = ["--xla_backend_optimization_level=1"]
if jaxlib.version.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])

# What one test compiled, in this process, another worker or a process that it started, the next one reads. The workers
# and those processes have the options from the environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    options = {"jax_compilation_cache_dir": COMPILED.name, "jax_persistent_cache_min_compile_time_secs": 0.1}
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

FIRST = ("launch", "train", "method", "tune", "main", "exchange", "peers", "browser")
"""The tests that take longest begin first, so that no worker is left with one of them in the end."""

PLAIN = "aggregate chain delu dgam finetune i3d iwo maan maan2d method p_mil sal star".split()
"""Tests of equations, most of whose time is compilation: XLA leaves out its costly optimizations there."""


def pytest_collection_modifyitems(items):
    """Files of `FIRST` first; the order within a file stays."""
    rank = {f"test_{name}.py": i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(request):
    jax.config.update("jax_disable_most_optimizations", request.module.__name__.removeprefix("test_") in PLAIN)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unchecked():
    """Without the checks of types and shapes at each call, for tests that call small functions a million times."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """Where the tests' data sets are built."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def config(tfds_dir):
    """MAAN on the tiny built-in data, a few steps."""
    from configs import maan

    config = maan.get_config("dataset=synthetic_untrimmed/tiny")
    config.data.dir = tfds_dir
    config.batch_size, config.num_snippets = 8, 10
    config.steps, config.log_every, config.checkpoint_every = 6, 2, 4
    config.plots, config.report = 1, False
    return config


@pytest.fixture
def tiny(config):
    """The builder of the tiny data."""
    from wsal_jax.data import pipeline

    return pipeline.build(config.data)
