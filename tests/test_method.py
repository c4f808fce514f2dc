"""Tests for every method; they find a new method by its files in wsal_jax/methods and configs."""

import importlib
import pkgutil
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import configs
from configs import maan
from wsal_jax import method, methods
from wsal_jax.method import BATCH, Step
from wsal_jax.types import InputError, Meta, Model, Video

SPEC = method.Spec((5, 3), 4)


CONFIGS = sorted(x.name for x in pkgutil.iter_modules(configs.__path__) if x.name != "common" and not x.ispkg)


@pytest.fixture(params=CONFIGS)
def config(request):
    return importlib.import_module(f"configs.{request.param}").get_config()


@pytest.fixture
def made(config):
    return methods.get(config.method)


@lru_cache
def init_of(made):
    return jax.jit(lambda: made.init(jax.random.key(0), SPEC))()


@lru_cache
def score_of(made):
    return jax.jit(made.score)


@pytest.fixture
def params(made):
    return init_of(made)


def video(n=20, padding=0, seed=0):
    """A video whose padding holds garbage."""
    rng = np.random.default_rng(seed)
    features = np.concatenate([rng.random((n, 8)), 1e3 * rng.normal(size=(padding, 8))]).astype(np.float32)
    mask = np.r_[np.ones(n), np.zeros(padding)].astype(np.float32)
    return Video(*map(jnp.asarray, (features, mask, np.float32([0, 1, 0, 1]), np.float32([0, 2, 0, 1]), np.int32(n))))


def of_batch(phase, trained, params, one, step):
    """The loss and metrics of a batch of one; a batch is needed because losses may use its axis."""
    batched = jax.vmap(phase.loss, (None, 0, Step(0, None)), axis_name=BATCH)
    one, key = jax.tree.map(lambda x: x[None], (one, step.key))
    value, aux = batched({**params, **trained}, one, Step(key, step.epoch))
    return value[0], aux[0] if phase.tracks else aux


@lru_cache
def loss_of(phase):
    """`loss(params, video, step) -> (scalar, metrics), gradients`."""
    gradient = jax.jit(jax.value_and_grad(partial(of_batch, phase), has_aux=True))
    return lambda params, one, step: gradient({group: params[group] for group in phase.trains}, params, one, step)


def test_every_method_has_a_config_of_its_name():
    assert CONFIGS == methods.names()


def test_phases_train_groups_that_exist_and_all_of_them(made, params):
    assert {group for phase in made.phases for group in (*phase.trains, *phase.tracks)} == set(params)
    assert len({phase.name for phase in made.phases}) == len(made.phases)


def test_scores_have_their_shapes_and_ranges(made, params):
    scores = score_of(made)(params, video(20, 12))
    assert scores.video_score.shape == (4,) and scores.cas.shape == (32, 4) and scores.attention.shape == (32,)
    assert ((scores.video_score >= 0) & (scores.video_score <= 1)).all()
    assert not np.asarray(scores.cas[20:]).any() and not np.asarray(scores.attention[20:]).any()


def test_padding_changes_nothing(made, params):
    short, long = score_of(made)(params, video(20)), score_of(made)(params, video(20, 12))
    np.testing.assert_allclose(long.video_score, short.video_score, rtol=1e-5)
    np.testing.assert_allclose(long.cas[:20], short.cas, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(long.attention[:20], short.attention, rtol=1e-5)


def test_scores_do_not_see_the_labels(made, params):
    one = score_of(made)(params, video())
    other = score_of(made)(params, video()._replace(labels=jnp.ones(4), counts=jnp.full(4, 7.0)))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("index", range(2))
def test_losses_are_scalars_with_finite_gradients_for_any_video(made, params, index):
    if index >= len(made.phases):
        pytest.skip("the method has fewer phases")
    phase = made.phases[index]
    masked, black = video(32)._replace(mask=jnp.zeros(32)), video(32)._replace(features=jnp.zeros((32, 8)))
    videos = [video(32), video(20, 12), video(1), masked, black]
    for each in videos:
        (value, metrics), gradients = loss_of(phase)(params, each, Step(jax.random.key(1), jnp.int32(0)))
        assert value.shape == () and np.isfinite(value) and all(np.isfinite(x).all() for x in metrics.values())
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_jit_equals_eager_and_vmap_equals_a_loop(made, params):
    videos = [video(32, seed=seed) for seed in range(3)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *videos)
    together = jax.jit(jax.vmap(partial(made.score, params)))(batch)
    for i, each in enumerate(videos):
        np.testing.assert_allclose(together.cas[i], made.score(params, each).cas, rtol=1e-5, atol=1e-6)
        for phase in made.phases:
            args = (params, each, Step(jax.random.key(2), jnp.int32(3)))
            np.testing.assert_allclose(loss_of(phase)(*args)[0][0], of_batch(phase, {}, *args)[0], rtol=1e-5)


@pytest.mark.parametrize("where", ["end", "middle"])
def test_what_masked_snippets_hold_changes_no_loss_and_no_score(made, params, where):
    """Masked snippets are padding or removed by a round. Gradients are checked too, in losses after their warm-up."""
    masked = np.arange(32) >= 20 if where == "end" else np.isin(np.arange(32), (0, 9, 10, 31))
    one = video(32)._replace(mask=jnp.asarray(~masked, jnp.float32))
    one = one._replace(length=jnp.int32(20)) if where == "end" else one
    rng = np.random.default_rng(1)
    others = [jnp.asarray(scale * rng.normal(size=(masked.sum(), 8)), jnp.float32) for scale in (0, 1, 1e3)]
    each = [one._replace(features=one.features.at[masked].set(x)) for x in others]
    scores = [score_of(made)(params, x) for x in each]
    jax.tree.map(np.testing.assert_array_equal, scores[0], scores[1])
    jax.tree.map(np.testing.assert_array_equal, scores[0], scores[2])
    for phase in made.phases:
        losses = [loss_of(phase)(params, x, Step(jax.random.key(2), jnp.int32(9))) for x in each]
        for other in losses[1:]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), losses[0], other)


def test_proposals_lie_in_the_video(made, params, config):
    scores = jax.tree.map(np.asarray, score_of(made)(params, video()))
    meta = Meta("v", 20, 25.0, 16.0, 8.0, 12.0)
    one = Model(scores, method.options_of(config.localize, "rgb", "config.localize"))
    found = made.propose((one,), one, meta)
    assert len(found.segments) == len(found.labels) == len(found.scores) > 0
    assert (found.segments[:, 0] < found.segments[:, 1]).all()
    assert found.segments.min() >= 0 and found.segments.max() <= 12.0


def test_unknown_method_is_named():
    with pytest.raises(InputError, match="maan"):
        methods.get(ConfigDict(dict(name="mann")))


def test_options_of_one_model():
    config = ConfigDict(dict(maan.get_config().method.to_dict(), per_stream=dict(flow=dict(dropout=0.5))))
    assert methods.get(config) is methods.get(config, "rgb")
    assert methods.get(config, "flow") is not methods.get(config, "rgb")
    del config["per_stream"]
    assert methods.get(config) is methods.get(config, "flow") is methods.get(maan.get_config().method)
    config.per_stream = dict(flow=dict(drop=0.5))
    with pytest.raises(InputError, match=r"per_stream\.flow: config\.method has no option drop"):
        methods.get(config, "flow")
