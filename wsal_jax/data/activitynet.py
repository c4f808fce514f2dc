"""TFDS builder of ActivityNet 1.2 and 1.3 with published features (`wsal_jax.data.layouts`).

Testing uses the validation videos. Videos of the server's test subset have no annotations and are left out. As
published, 1.2 has 4,819 training and 2,383 validation videos with 7,151 and 3,582 instances of 100 classes (in W-TALC's
distribution); 1.3 has 9,032 and 4,427 videos with 13,913 and 6,836 instances of 200 classes. Some instances are empty
or end after the video: see `bad_segments`.
"""

from typing import Any

import tensorflow_datasets as tfds

from wsal_jax.data.benchmark import BenchmarkBuilder
from wsal_jax.data.layouts import Benchmark
from wsal_jax.formats.annotations import is_train
from wsal_jax.types import InputError

NUM_CLASSES = {"1.2": 100, "1.3": 200}


def split_of(id: str, subset: str, subsets: set[str]) -> str | None:
    """The split by subset."""
    return {True: "train", False: "test", None: None}[is_train(subset, subsets)]


class Activitynet(BenchmarkBuilder):
    """ActivityNet 1.2 or 1.3, for instance `activitynet/1.3`.

    The options are those of `wsal_jax.data.benchmark`.
    """

    VERSION = tfds.core.Version("2.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in NUM_CLASSES]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Features and annotations, in one of the layouts of wsal_jax.data.layouts."

    def __init__(self, *, config: str | None = None, **kwargs: Any):
        if config not in NUM_CLASSES:
            raise InputError(f"activitynet/{config}: there are activitynet/1.2 and activitynet/1.3")
        benchmark = Benchmark("activitynet", None, NUM_CLASSES[config], split_of)
        super().__init__(benchmark=benchmark, config=config, **kwargs)
        self._original_state = {"config": config, **kwargs}
