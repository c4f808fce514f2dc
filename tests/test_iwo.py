"""IWO-Net against the equations and algorithms, written out in plain Python and NumPy."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from ml_collections import FrozenConfigDict

from configs import iwo as config_file
from wsal_jax import localize, method, methods, sharding, train
from wsal_jax.data import pipeline
from wsal_jax.fuse import fuse
from wsal_jax.method import Step
from wsal_jax.methods import iwo
from wsal_jax.types import InputError, Meta, Model, Scores, Video

DIMS, CLASSES, K, HEADS = (5, 3), 4, 12, 3
D = sum(DIMS)
STEP = Step(jax.random.key(0), jnp.int32(0))


def make(text="", **options):
    config = config_file.get_config(text)
    config.num_snippets = K
    config.method.update({"heads": HEADS, "dropout": 0.0, "share": 0.2, "penalty": 0.1, "gamma": 10.0, **options})
    return methods.get(config.method)


@lru_cache
def score_of(made):
    return jax.jit(made.score)


@lru_cache
def loss_of(made):
    return jax.jit(made.phases[0].loss)


@lru_cache
def gradient_of(made):
    return jax.jit(jax.value_and_grad(made.phases[0].loss, has_aux=True))


def params_of(made, dims=DIMS, seed=0, dtype=np.float32):
    """Random parameters, so that nothing is 0."""
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), method.Spec(dims, CLASSES)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), shapes)


def example(n=K, padding=0, seed=0, labels=(0, 1, 0, 1), dtype=np.float32):
    rng = np.random.default_rng(seed)
    features = np.concatenate([rng.normal(size=(n, D)), 1e3 * rng.normal(size=(padding, D))])
    mask, labels = np.r_[np.ones(n), np.zeros(padding)], np.array(labels)
    return Video(*(jnp.asarray(x, dtype) for x in (features, mask, labels, labels)), jnp.int32(n))


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def split(x):
    return np.split(np.asarray(x, np.float64), np.cumsum(DIMS)[:-1], axis=-1)


def attention_of(heads, h, left):
    """Eq. 3 of the segments `left`, one at a time; the others have attention 0."""
    attention = np.zeros((HEADS, len(h)))
    for m in range(HEADS):
        logits = [heads["kernel"][m] @ h[k] + heads["bias"][m, k] for k in left]
        attention[m, left] = softmax(np.array(logits))
    return attention


def network_of(params, features, left):
    """Eqs. 3 to 8 of segments on the grid: the logits of the classes, and the fused CSC of each segment."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits, fused = params["classifier"]["bias"].copy(), np.zeros((len(features), CLASSES))
    for i, h in enumerate(split(features)):
        heads, z = params["attention"][i], params["classifier"]["kernel"][i]
        attention = attention_of(heads, h, left)
        csc = np.zeros((len(h), CLASSES))
        for m in range(HEADS):
            alpha = heads["scale"][m]
            v = alpha * attention[m] @ h / (np.sqrt(HEADS) * np.linalg.norm(alpha * attention[m] @ h))
            logits += v @ z[m]
            for k in left:
                factor = alpha * attention[m, k] / (np.sqrt(HEADS) * np.linalg.norm(alpha * attention[m] @ h))
                csc[k] += factor * h[k] @ z[m]
        fused += (10 if i else 1) * np.maximum(csc, 0)
    return logits, fused


@pytest.mark.parametrize("removed", [(), (0, 3, 4, 11)])
def test_scores_are_those_of_the_equations(removed):
    made, video = make(), example()
    params = params_of(made)
    left = [k for k in range(K) if k not in removed]
    video = video._replace(mask=video.mask.at[jnp.array(removed, int)].set(0))
    scores = score_of(made)(params, video)
    logits, csc = network_of(params, video.features, left)
    np.testing.assert_allclose(scores.video_score, softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(scores.cas, csc, rtol=1e-3, atol=1e-4)
    attention = [attention_of(h, x, left) for h, x in zip(params["attention"], split(video.features))]
    mean = np.concatenate(attention).mean(0)
    np.testing.assert_allclose(scores.attention, mean / mean.max(), rtol=1e-4)
    assert not np.asarray(scores.attention)[list(removed)].any() and not np.asarray(scores.cas)[list(removed)].any()
    for k in left:
        alone, _ = network_of(params, video.features, [k])
        np.testing.assert_allclose(scores.evidence[k], softmax(alone), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("labels", [(0, 1, 0, 0), (1, 1, 0, 1), (0, 0, 0, 0)])
def test_loss_is_equation_6(labels):
    made, video = make(), example(labels=labels)
    params = params_of(made)
    total, metrics = loss_of(made)(params, video, STEP)
    logits, _ = network_of(params, video.features, list(range(K)))
    y = np.array(labels) / max(sum(labels), 1)
    penalty = 0.0
    for heads, h in zip(params["attention"], split(video.features)):
        attention = attention_of(heads, h, list(range(K)))
        for m in range(HEADS):
            for other in range(HEADS):
                penalty += (sum(attention[m, k] * attention[other, k] for k in range(K)) - (m == other)) ** 2
    np.testing.assert_allclose(metrics["penalty"], penalty, rtol=1e-4)
    np.testing.assert_allclose(metrics["classification"], -(y * np.log(softmax(logits))).sum(), rtol=1e-4)
    np.testing.assert_allclose(total, metrics["classification"] + 0.1 * penalty, rtol=1e-4)


def test_dropout_keeps_the_expected_logits():
    """Mean over 4,000 keys of a loss that is nearly linear in the logits, because they are small."""
    made, video = make(dropout=0.5, penalty=0.0), example()
    params = params_of(made)
    params["classifier"] = jax.tree.map(lambda x: 1e-3 * x, params["classifier"])
    loss = jax.jit(jax.vmap(made.phases[0].loss, (None, None, Step(0, None))))
    losses, _ = loss(params, video, Step(jax.random.split(STEP.key, 4000), STEP.epoch))
    expected, _ = loss_of(make(penalty=0.0))(params, video, STEP)
    assert losses.std() > 1e-4
    np.testing.assert_allclose(losses.mean(), expected, atol=4 * losses.std() / np.sqrt(4000))


def test_scores_before_the_relu_sum_to_the_logit_of_the_class():
    """Eq. 7, without the bias of the classifier."""
    made, video = make(), example()
    params = params_of(made)
    params["classifier"]["bias"] *= 0
    total = np.zeros(CLASSES)
    for heads, kernel, h in zip(params["attention"], params["classifier"]["kernel"], split(video.features)):
        logits = heads["kernel"] @ h.T + heads["bias"]
        response = jnp.einsum("kd,mdc->kmc", h, kernel)
        part = iwo.contributions(heads, logits, jnp.asarray(h, jnp.float32), response, jnp.ones(K))
        assert (np.asarray(part) < 0).any()
        total += np.asarray(part).sum(axis=0)
    np.testing.assert_allclose(softmax(total), score_of(made)(params, video).video_score, rtol=1e-4)


def test_winners_are_the_highest_positive_scores():
    rng = np.random.default_rng(0)
    for count in (1, 3, 20):
        for _ in range(20):
            scores = rng.integers(-2, 4, 9).astype(np.float32)
            expected = [k for k in sorted(range(9), key=lambda k: (-scores[k], k))[:count] if scores[k] > 0]
            assert np.flatnonzero(iwo.winners(jnp.asarray(scores), count)).tolist() == sorted(expected)


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("removed", [(), (2, 7)])
def test_winners_out_testing_is_algorithm_2(steps, removed):
    made, video = make(test_steps=steps), example(seed=3)
    params = params_of(made, seed=steps)
    segments = [k for k in range(K) if k not in removed]
    video = video._replace(mask=video.mask.at[jnp.array(removed, int)].set(0))
    scores = score_of(made)(params, video)
    logits, _ = network_of(params, video.features, segments)
    best = np.argsort(-logits)[:2]
    assert scores.extras.classes.tolist() == best.tolist()
    for c, selected in zip(best, np.asarray(scores.extras.winners)):
        left, expected = list(segments), np.zeros(K)
        for _ in range(steps):
            if left:
                csc = network_of(params, video.features, left)[1][:, c]
                for k in sorted(left, key=lambda k: -csc[k])[:2]:  # round(0.2 * 12)
                    if csc[k] > 0:
                        expected[k] = csc[k]
                        left.remove(k)
        assert ((selected > 0) == (expected > 0)).all()
        np.testing.assert_allclose(selected, expected, rtol=1e-3, atol=1e-4)
    if steps == 10 and not removed:
        assert (expected > 0).sum() > 6  # segments that had no positive score at first have one later


def test_only_the_sign_of_alpha_matters_unless_the_shift_is_on():
    video = example()
    for shift in (False, True):
        made = make(shift=shift)
        params = params_of(made)

        def scaled(factor, params=params):
            heads = tuple({**h, "scale": factor * h["scale"]} for h in params["attention"])
            return {**params, "attention": heads}

        one, other, turned = (score_of(made)(scaled(f), video).video_score for f in (1.0, 7.0, -1.0))
        assert np.allclose(one, other, rtol=1e-6) == (not shift)
        assert not np.allclose(one, turned, rtol=1e-2)
        _, gradient = gradient_of(made)(params, video, STEP)
        assert all(bool((h["scale"] != 0).all()) == shift for h in gradient["attention"])


def test_shift_is_added_before_the_length_is_taken():
    made, video = make(shift=True), example()
    params = params_of(made)
    logits, alone = (np.tile(np.asarray(params["classifier"]["bias"], np.float64), (n, 1)) for n in (1, K))
    for heads, z, h in zip(params["attention"], params["classifier"]["kernel"], split(video.features)):
        attention = attention_of(heads, h, list(range(K)))
        for m in range(HEADS):
            for pooled, total in ((attention[m : m + 1] @ h, logits), (h, alone)):
                v = np.asarray(heads["scale"][m] * pooled + heads["shift"][m])
                total += v / np.linalg.norm(v, axis=1, keepdims=True) / np.sqrt(HEADS) @ np.asarray(z[m])
    scores = score_of(made)(params, video)
    np.testing.assert_allclose(scores.video_score, softmax(logits)[0], rtol=1e-4)
    np.testing.assert_allclose(scores.evidence, softmax(alone), rtol=1e-3, atol=1e-6)
    _, metrics = loss_of(made)(params, video, STEP)
    np.testing.assert_allclose(metrics["classification"], -np.log(softmax(logits)[0, [1, 3]]).mean(), rtol=1e-4)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("how", ["features", "cancel", "masked", "tiny"])
def test_gradients_are_finite_where_a_head_has_no_output(shift, how):
    made, video = make(shift=shift), example()
    params = params_of(made)
    if shift:
        params["attention"] = tuple({**h, "shift": 0 * h["shift"]} for h in params["attention"])
    if how == "features":
        video = video._replace(features=0 * video.features)
    if how == "tiny":
        video = video._replace(features=1e-20 * video.features)
    if how == "masked":
        video = video._replace(mask=0 * video.mask)
    if how == "cancel":  # all attention equal, and as many snippets of x as of -x
        params["attention"] = jax.tree.map(jnp.zeros_like, params["attention"])
        params["attention"] = tuple({**h, "scale": h["scale"] + 1} for h in params["attention"])
        video = video._replace(features=jnp.tile(video.features[:1], (K, 1)) * (-1.0) ** jnp.arange(K)[:, None])
    (value, _), gradient = gradient_of(made)(params, video, STEP)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    scores = score_of(made)(params, video)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(scores))
    bias = np.asarray(params["classifier"]["bias"])
    np.testing.assert_allclose(scores.video_score, softmax(bias), rtol=1e-5)  # the outputs are 0


def test_gradient_of_the_loss():
    with jax.enable_x64(True):
        made, video = make(shift=True), example(dtype=np.float64)
        loss = jax.jit(lambda p: made.phases[0].loss(p, video, STEP)[0])
        check_grads(loss, (params_of(made, dtype=np.float64),), order=1, modes=["rev"])


@pytest.mark.parametrize("n", [1, 5, K, 18, 40])
def test_a_video_of_another_length_is_seen_on_the_grid(n):
    made, video = make(), example(n, padding=40 - n)
    params = params_of(made)
    scores = score_of(made)(params, video)
    middle = [int((k + 0.5) * n / K) for k in range(K)]
    sampled = example(padding=40 - K)
    sampled = sampled._replace(features=sampled.features.at[:K].set(video.features[jnp.array(middle)]))
    expected = score_of(made)(params, sampled)
    part = [int((t + 0.5) * K / n) for t in range(n)]
    np.testing.assert_allclose(scores.video_score, expected.video_score, rtol=1e-5)
    np.testing.assert_allclose(scores.extras.winners, expected.extras.winners, rtol=1e-4, atol=1e-5)
    for ours, theirs in (
        (scores.cas, expected.cas),
        (scores.attention, expected.attention),
        (scores.evidence, expected.evidence),
    ):
        np.testing.assert_allclose(ours[:n], np.asarray(theirs)[part], rtol=1e-4, atol=1e-5)
        assert not np.asarray(ours[n:]).any()


def test_what_is_on_the_grid_does_not_see_the_padding():
    made = make()
    params = params_of(made)
    short, long = (score_of(made)(params, example(12, padding)) for padding in (0, 28))
    for x, y in zip(short.extras, long.extras):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(long.evidence[:12], short.evidence, rtol=1e-5, atol=1e-6)
    assert short.extras.winners.any() and not np.asarray(long.evidence[12:]).any()


def test_one_stream_is_enough():
    made = make()
    params = params_of(made, dims=(8,))
    scores = score_of(made)(params, example())
    both = params_of(made)
    assert len(params["attention"]) == 1 and len(both["attention"]) == 2
    assert scores.cas.shape == (K, CLASSES) and (scores.extras.winners > 0).any()


def test_initial_alpha_has_the_given_deviation():
    init = make(heads=10_000, shift=True).init
    params = jax.jit(lambda: init(jax.random.key(0), method.Spec((1, 2), 1)))()
    for heads in params["attention"]:
        assert abs(heads["scale"].std() - 0.1) < 3e-3 and abs(heads["shift"].std() - 0.1) < 3e-3
    assert [x.shape for x in params["classifier"]["kernel"]] == [(10_000, 1, 1), (10_000, 2, 1)]


def test_cam_is_the_mean_of_all_segments():
    made, video = make("scores=cam"), example()
    params = params_of(made)
    assert all(set(heads) == {"scale"} for heads in params["attention"])
    logits, fused = np.asarray(params["classifier"]["bias"], np.float64), 0.0
    for i, (heads, z) in enumerate(zip(params["attention"], params["classifier"]["kernel"])):
        h, sign = split(video.features)[i], np.sign(np.asarray(heads["scale"]))
        weights = np.einsum("m,mdc->dc", sign, z) / np.sqrt(HEADS) / np.linalg.norm(h.mean(0))
        logits = logits + h.mean(0) @ weights
        fused = fused + (10 if i else 1) * np.maximum(h @ weights / K, 0)
    scores = score_of(made)(params, video)
    np.testing.assert_allclose(scores.video_score, softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(scores.cas, fused, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores.attention, np.ones(K), rtol=1e-6)


def test_attention_may_choose_the_winners():
    made, video = make("scores=attention", test_steps=2), example()
    params = params_of(made)
    left, fused = list(range(K)), []
    scores = score_of(made)(params, video)
    for _ in range(2):
        parts = [attention_of(h, x, left) for h, x in zip(params["attention"], split(video.features))]
        fused.append(parts[0].mean(0) + 10 * parts[1].mean(0))
        left = sorted(left, key=lambda k: -fused[-1][k])[2:]
    np.testing.assert_allclose(scores.cas, np.tile(fused[0][:, None], (1, CLASSES)), rtol=1e-4)
    expected = np.where(np.isin(np.arange(K), left), 0, np.where(fused[1] > 0, fused[1], fused[0]))
    np.testing.assert_allclose(scores.extras.winners, np.tile(expected, (2, 1)), rtol=1e-4)


def revised(made, keep, scores, labels):
    return np.asarray(made.revise(jnp.asarray(keep), scores, jnp.asarray(labels, jnp.float32)))


def test_a_round_removes_the_winners_of_every_label():
    """3 of 16 snippets (0.2 of 16) of each of two classes, fewer where no more is left with a score; 4 is padding."""
    made, rng = make(), np.random.default_rng(0)
    cas = rng.random((20, CLASSES)).astype(np.float32) * (np.arange(20) < 16)[:, None]
    cas[:, 3] *= np.isin(np.arange(20), (2, 9))
    keep = ((np.arange(20) % 5 > 0) & (np.arange(20) < 16)).astype(np.float32)
    scores = Scores(jnp.zeros(CLASSES), jnp.asarray(cas), jnp.zeros(20), iwo.Extras(None, None, jnp.int32(16)))
    for labels in ((0, 1, 0, 0), (1, 0, 0, 1), (0, 0, 0, 0)):
        expected = keep.copy()
        for c in np.flatnonzero(labels):
            there = [k for k in range(20) if keep[k] and cas[k, c] > 0]
            expected[sorted(there, key=lambda k: -cas[k, c])[:3]] = 0
        assert revised(made, keep, scores, labels).tolist() == expected.tolist()
    assert 0 < expected.sum()


def test_what_was_removed_has_no_attention_and_stays_away():
    """Two revisions as the loop makes them, of a video that is longer than the grid and one that is shorter."""
    made = make()
    params = jax.tree.map(lambda x: x[None], params_of(made))
    revise = train.make_revise(made, sharding.make_mesh(jax.devices()[:1]))
    for n in (30, 9):
        video = example(n, padding=40 - n)
        keep = np.ones((1, 1, 40), np.float32) * np.asarray(video.mask)
        kept = [n]
        for _ in range(2):
            new = np.asarray(revise(params, video.features[None], video.mask[None], keep, video.labels[None]))
            assert new.sum() < keep.sum() and not (new > keep).any()
            keep = new.astype(np.float32)
            kept.append(int(keep.sum()))
        assert kept[1] >= n - 2 * round(0.2 * n)  # there are two labels
        one = jax.tree.map(lambda x: x[0], params)
        scores = score_of(made)(one, video._replace(mask=jnp.asarray(keep[0, 0])))
        assert not np.asarray(scores.attention)[keep[0, 0] == 0].any()
        middle = np.array([int((k + 0.5) * n / K) for k in range(K)])
        gone = keep[0, 0][middle] == 0
        assert gone.any() and not np.asarray(scores.extras.winners)[:, gone].any()


def test_a_video_never_loses_its_last_snippets():
    """In a revision all snippets would win, because no attention is 0; the video then stays unchanged."""
    made = make("scores=attention", share=0.6)
    params = jax.tree.map(lambda x: x[None], params_of(made))
    revise = train.make_revise(made, sharding.make_mesh(jax.devices()[:1]))
    for n in (1, 2, 20):
        video = example(n, padding=40 - n, labels=(1, 1, 1, 1))
        keep = np.ones((1, 1, 40), np.float32) * np.asarray(video.mask)
        for _ in range(6):
            keep = np.asarray(revise(params, video.features[None], video.mask[None], keep, video.labels[None]))
            keep = keep.astype(np.float32)
            assert keep.sum() > 0


META = Meta("v", 10, 2.0, 4.0, 3.0, 20.5)  # snippet i is at 1.5 + 2 i seconds, its edges 1 s to either side


def propose(scores, models=1):
    options = config_file.get_config().localize
    own = [Model(scores, options)] * models
    fused = own[0] if models == 1 else Model(fuse([scores] * models, [1.0] * models), options)
    return iwo.propose(own, fused, META)


def test_proposals_are_the_runs_of_selected_segments():
    rng = np.random.default_rng(0)
    for size in (4, 10, 25):
        winners = (rng.random((2, size)) * (rng.random((2, size)) < 0.6)).astype(np.float32)
        extras = iwo.Extras(winners, np.array([2, 0]), 10)
        scores = Scores(np.ones(3) / 3, np.zeros((10, 3)), np.zeros(10), extras)
        expected = []
        for c, selected in zip((2, 0), winners):
            k = 0
            while k < size:
                last = k
                while last < size and selected[last] > 0:
                    last += 1
                if last > k:
                    times = [1.5 + 2 * (edge * 10 / size - 0.5) for edge in (k, last)]
                    expected.append((c, max(times[0], 0), min(times[1], 20.5), selected[k:last].mean()))
                k = last + 1
        found = propose(scores)
        assert len(expected) > 1
        result = sorted(zip(found.labels.tolist(), *found.segments.T.tolist(), found.scores.tolist()))
        np.testing.assert_allclose(result, sorted(expected), rtol=1e-5)


def test_no_winner_no_detection():
    extras = iwo.Extras(np.zeros((2, 5), np.float32), np.array([0, 1]), 10)
    found = propose(Scores(np.ones(3) / 3, np.zeros((10, 3)), np.zeros(10), extras))
    assert found.segments.shape == (0, 2) and len(found.labels) == len(found.scores) == 0


def test_several_models_are_fused_by_their_scores():
    made = make()
    scores = jax.tree.map(np.asarray, score_of(made)(params_of(made), example(10, 30)))
    scores = scores._replace(cas=scores.cas[:10], attention=scores.attention[:10], evidence=scores.evidence[:10])
    fused = Model(fuse([scores, scores], (0.5, 0.5)), config_file.get_config().localize)
    result, expected = propose(scores, models=2), localize.propose((), fused, META)
    assert len(result.segments) and all(np.array_equal(x, y) for x, y in zip(result, expected))


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


def test_three_rounds_compile_once(config, data, tmp_path):
    made = make(rounds=3)
    config.batch_size, config.num_snippets, config.steps, config.log_every = 12, K, 2, 2
    mesh = sharding.make_mesh(jax.devices()[:1])
    seen = []
    log = lambda step, metrics: seen.append(metrics)  # noqa: E731
    train.fit(made, data, ["rgb", "flow"], config, mesh, tmp_path / "run", log)
    assert len(seen) == 3
    run = train.make_run(made, FrozenConfigDict(config), len(data.lengths) // 12, mesh)
    assert run._cache_size() == 1
    shapes = len(pipeline.batches(data, pipeline.PADDED))
    assert train.make_revise(made, sharding.make_mesh(jax.devices()[:1]))._cache_size() == shapes


def test_rounds_leave_less_to_learn_from(config, data, tmp_path):
    """Each round takes round(0.2 n) snippets of each label at most, and trains on what is left."""
    made, streams = make(rounds=2), ["rgb", "flow"]
    spec = method.Spec(tuple(data.dims[name] for name in streams), len(data.class_names))
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), spec))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=(1, *x.shape)).astype(np.float32), shapes)
    keep = np.ones((1, data.lengths.sum()), bool)
    revised = train.revise(made, params, keep, data, streams, sharding.make_mesh(jax.devices()[:1]))
    gone = [n - revised[0, start : start + n].sum() for start, n in zip(data.starts, data.lengths)]
    assert all(x <= labels.sum() * round(0.2 * n) for x, labels, n in zip(gone, data.labels, data.lengths))
    assert np.mean(gone) > 0.1 * np.mean(data.lengths)


def test_ablations_are_switches():
    config = config_file.get_config("rounds=3,winners_out_test=0,scores=attention,heads=5,segments=70")
    assert config.method.to_dict() == {
        **config_file.get_config().method.to_dict(),
        **dict(rounds=3, test_steps=1, scores="attention", heads=5, segments=70),
    }
    assert config.num_snippets == 70
    for dataset in ("thumos14", "activitynet"):
        config = config_file.get_config(f"dataset={dataset}")
        assert config.method.segments == 400 and round(config.method.share * 400) == 30
    config.num_snippets = 9
    assert config.method.segments == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scores="cms"), "config.method.scores='cms': there are csc, cam, attention"),
        (dict(share=0.0), r"config.method.share=0.0: give a share"),
        (dict(rounds=0), "config.method.rounds=0"),
        (dict(test_steps=0), "config.method.test_steps=0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
