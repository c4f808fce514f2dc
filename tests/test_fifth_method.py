"""A fifth method in the contract. Its loss uses the whole batch and tracks statistics without a gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsal_jax import evaluate, sharding, train
from wsal_jax.data import pipeline
from wsal_jax.method import BATCH, Method, Phase, Spec, Step
from wsal_jax.types import Scores, Video

DECAY = 0.5


# The method: centred features, top-quarter pooling, and a pull between neighbours in the batch that share a class.
def centred(params, video):
    return (video.features - params["statistics"]["mean"]) * video.mask[:, None]


def activate(params, video):
    return centred(params, video) @ params["classifier"]["kernel"]


def pool(cas):
    return jax.lax.top_k(cas.T, max(1, len(cas) // 4))[0].mean(1)


def init(key, spec):
    d, c = sum(spec.dims), spec.num_classes
    return {
        "classifier": {"kernel": jax.random.normal(key, (d, c)) / d**0.5},
        "statistics": {"mean": jnp.zeros(d)},
        "teacher": {"kernel": jnp.zeros((d, c))},
    }


def loss(params, video, step):
    logits = pool(activate(params, video))
    size = jax.lax.axis_size(BATCH)
    other = jax.lax.ppermute((logits, video.labels), BATCH, [(i, (i + 1) % size) for i in range(size)])
    together = (video.labels * other[1]).max()
    pull = together * ((jax.nn.sigmoid(logits) - jax.nn.sigmoid(other[0])) ** 2).sum()
    total = optax.sigmoid_binary_cross_entropy(logits, video.labels).sum() + 0.1 * pull
    of_video = video.mask @ video.features / jnp.maximum(video.mask.sum(), 1)
    mean = DECAY * params["statistics"]["mean"] + (1 - DECAY) * jax.lax.pmean(of_video, BATCH)
    kernel = DECAY * params["teacher"]["kernel"] + (1 - DECAY) * params["classifier"]["kernel"]
    return total, ({"loss": total, "pull": pull}, {"statistics": {"mean": mean}, "teacher": {"kernel": kernel}})


def score(params, video):
    cas = jax.nn.sigmoid(activate(params, video)) * video.mask[:, None]
    return Scores(jax.nn.sigmoid(pool(activate(params, video))), cas, cas.max(1), evidence=cas)


FIFTH = Method(init, (Phase("train", loss, ("classifier",), tracks=("statistics", "teacher")),), score)
# End of the method.


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


def batch(size=4, n=9, d=5, c=3):
    rng = np.random.default_rng(0)
    labels = np.float32([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]])[:size, :c]
    features = rng.random((size, n, d)).astype(np.float32)
    mask = (np.arange(n) < np.array([9, 5, 7, 9])[:size, None]).astype(np.float32)
    return Video(*map(jnp.asarray, (features, mask, labels, labels, mask.sum(1).astype(int))))


def step_of(phase, params, videos, rate=0.1):
    optimizer = optax.sgd(rate)
    state = optimizer.init({group: params[group] for group in phase.trains})
    return jax.jit(partial(train.update, phase, optimizer))(params, state, videos, jax.random.key(0), jnp.int32(0))


def test_a_step_is_that_of_the_whole_batch():
    """The gradient is that of all videos together, including through neighbours; tracked groups have none."""
    videos, params = batch(), FIFTH.init(jax.random.key(1), Spec((5,), 3))
    params["statistics"]["mean"] = jnp.full(5, 0.3)
    new, _, metrics, _ = step_of(FIFTH.phases[0], params, videos)

    def plain(kernel):
        of = lambda i: jax.tree.map(lambda x: x[i], videos)  # noqa: E731
        logits = [pool((of(i).features - 0.3) * of(i).mask[:, None] @ kernel) for i in range(4)]
        total = 0.0
        for i in range(4):
            y, near, x = of(i).labels, of(i - 1).labels, jax.nn.sigmoid(logits[i])
            total -= (y * jnp.log(x) + (1 - y) * jnp.log(1 - x)).sum()
            total += 0.1 * (y * near).max() * ((x - jax.nn.sigmoid(logits[i - 1])) ** 2).sum()
        return total / 4

    kernel = params["classifier"]["kernel"]
    value, gradient = jax.value_and_grad(plain)(kernel)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(new["classifier"]["kernel"], kernel - 0.1 * gradient, rtol=1e-5, atol=1e-6)
    means = [x[: int(n)].mean(0) for x, n in zip(np.asarray(videos.features), videos.length)]
    np.testing.assert_allclose(new["statistics"]["mean"], 0.15 + 0.5 * np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(new["teacher"]["kernel"], 0.5 * kernel, rtol=1e-6)


def test_a_tracked_value_of_one_video_is_refused():
    def own(params, video, step):
        return 0.0 * params["w"].sum(), ({}, {"mean": video.features.mean(0)})

    with pytest.raises(ValueError, match="out_axes"):
        step_of(Phase("train", own, ("w",), tracks=("mean",)), {"w": jnp.ones(5), "mean": jnp.zeros(5)}, batch())


def test_a_tracked_group_that_a_loss_forgets_is_named():
    def forgetful(params, video, step):
        return 0.0 * params["w"].sum(), ({}, {})

    with pytest.raises(KeyError, match="mean"):
        step_of(Phase("train", forgetful, ("w",), tracks=("mean",)), {"w": jnp.ones(5), "mean": jnp.zeros(5)}, batch())


def test_it_trains_on_all_devices_goes_on_and_is_scored(config, data, tiny, tmp_path):
    """On one device, and on eight in two parts; every step moves the statistics towards the mean of the features."""
    config.batch_size, config.num_snippets, config.steps, config.log_every, config.checkpoint_every = 8, 10, 16, 8, 8
    config.optimizer = dict(name="sgd", learning_rate=0.1)
    seen = []
    log = lambda step, metrics: seen.append(metrics["train/loss"][0])  # noqa: E731
    one = train.fit(FIFTH, data, ["rgb"], config, sharding.make_mesh(jax.devices()[:1]), tmp_path / "one", log)
    assert seen[1] < seen[0]

    def stop(step, metrics):
        if step == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(FIFTH, data, ["rgb"], config, sharding.make_mesh(), tmp_path / "eight", stop)
    eight = train.fit(FIFTH, data, ["rgb"], config, sharding.make_mesh(), tmp_path / "eight")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, eight)
    mean = np.mean([pipeline.read(data, i, ["rgb"]).mean(0) for i in range(len(data.metas))], axis=0)
    assert np.abs(np.asarray(one["statistics"]["mean"][0]) - mean).max() < 0.2 * np.abs(mean).max()
    test = pipeline.load(tiny, "test")
    scores = {"rgb": evaluate.score(FIFTH, one, test, ["rgb"])[0]}
    _, rows = evaluate.detect(FIFTH, scores, test, config, 0)
    assert all(len(found.segments) for found in rows["rgb"])


def test_a_loss_is_told_its_step():
    """The keys of a batch differ; the epoch is the same for all."""

    def told(params, video, step: Step):
        return params["w"] * 0, {"key": jax.random.uniform(step.key), "epoch": step.epoch}

    phase = Phase("train", told, ("w",))
    videos = batch()
    keys = jax.vmap(lambda *x: told(*x)[1]["key"], (None, 0, Step(0, None)))(
        {"w": 0.0}, videos, Step(jax.random.split(jax.random.key(0), 4), 0)
    )
    assert len(np.unique(keys)) == 4
    _, _, metrics, _ = step_of(phase, {"w": jnp.zeros(())}, videos)
    np.testing.assert_allclose(metrics["key"], np.mean(keys), rtol=1e-6)
