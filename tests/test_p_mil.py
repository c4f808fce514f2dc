"""P-MIL against loops in NumPy and plain definitions."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import dgam
from configs import p_mil as config_file
from wsal_jax import localize, method, methods, metrics, train
from wsal_jax.method import Step
from wsal_jax.methods import p_mil
from wsal_jax.types import InputError, Meta, Model, Scores, Video

N, C = 40, 2
LEVELS = tuple(round(0.1 + 0.8 * i / 19, 4) for i in range(20))
SIZES = dict(width=16, hidden=8, train_candidates=24, test_candidates=48, top=4)


def make(text="", **options):
    config = config_file.get_config(text)
    config.steps = 600
    config.method.update({**SIZES, "thresholds": LEVELS, **options})
    return config, methods.get(config.method)


def planted(seed, videos=8):
    """Two actions of 6 to 12 snippets in each video. The attention peaks in the middle; the class shows at the ends.

    Two streams of 4 dimensions: what an attention that is given sees, then the classes.
    """
    rng = np.random.default_rng(seed)
    features = 0.3 * rng.normal(size=(videos, N, 8)) - np.float32([1.5, 0, 0, 0] * 2)
    labels, segments = np.eye(C)[rng.integers(C, size=videos)], []
    for x, y in zip(features, labels):
        found = [(first, first + rng.integers(6, 13)) for first in (4 + rng.integers(4), 22 + rng.integers(4))]
        for first, end in found:
            peak = 3 * np.exp(-8 * (np.arange(end - first) / (end - first) - 0.5) ** 2)
            for stream in (0, 4):
                x[first:end, stream] += peak
                x[[first, first + 1, end - 2, end - 1], stream + 1 + y.argmax()] += 1.5
        segments.append(np.array(found, float))
    arrays = (jnp.asarray(x, jnp.float32) for x in (features, np.ones((videos, N)), labels, labels))
    return Video(*arrays, jnp.full(videos, N)), segments


def given_attention(params):
    """The attention is the sigmoid of the first dimensions of both streams (MAAN's, with a leaky ReLU)."""
    layers = jax.tree.map(jnp.zeros_like, params["attention"])
    layers["hidden"]["kernel"] = layers["hidden"]["kernel"].at[[0, 4], [0, 1]].set(1.0)
    layers["out"]["kernel"] = layers["out"]["kernel"].at[:2].set(1.0)
    return {**params, "attention": layers}


@pytest.fixture(scope="module")
def trained():
    """A head that has learnt the planted videos in 300 steps behind a base that is given."""
    config, made = make()
    videos, optimizer, phase = planted(0)[0], optax.adam(3e-3), made.phases[1]
    before = given_attention(made.init(jax.random.key(0), method.Spec((4, 4), C)))

    @jax.jit
    def fit(params):
        def one(state, i):
            key = jax.random.fold_in(jax.random.key(1), i)
            params, state, metrics, _ = train.update(phase, optimizer, *state, videos, key, jnp.int32(0))
            return (params, state), metrics

        state = params, optimizer.init({"head": params["head"]})
        (params, _), metrics = jax.lax.scan(one, state, jnp.arange(300))
        return params, metrics

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def look(params, video):
        scores = made.score(params, video)
        candidates = p_mil.candidates_of(config.method, scores.attention, video, 48)
        return scores, candidates, p_mil.apply_heads(config.method, params, video, candidates)

    after, metrics = fit(before)
    test = jax.tree.map(np.asarray, look(after, planted(1)[0]))
    return SimpleNamespace(config=config.method, before=before, after=after, metrics=metrics, test=test)


@pytest.mark.parametrize("unique", [False, True])
def test_candidates_are_the_runs_above_each_threshold(unique):
    rng = np.random.default_rng(0)
    attention = np.convolve(rng.random(N), np.ones(3) / 3, "same").astype(np.float32)
    mask = np.float32((np.arange(N) < 33) & (np.arange(N) != 7))
    find = jax.jit(p_mil.find_candidates, static_argnums=(3, 4, 5))
    runs = [tuple(r) for t in LEVELS for r in localize.components((attention > np.float32(t)) & (mask > 0)).tolist()]
    runs = sorted(set(runs) if unique else runs)
    found = find(attention, mask, 33, LEVELS, 400, unique)
    there = np.asarray(found.valid) > 0
    assert sorted(map(tuple, np.asarray(found.segments)[there].astype(int).tolist())) == runs
    assert not np.diff(np.asarray(found.segments)[~there]).any() and len(runs) < 400
    few = find(attention, mask, 33, LEVELS, 5, unique)
    lengths = sorted((b - a for a, b in runs), reverse=True)
    np.testing.assert_array_equal(np.diff(few.segments)[:, 0], lengths[:5])
    none = find(0 * attention, mask, 33, LEVELS, 5, unique)
    assert none.segments[0].tolist() == [0, 33] and none.valid.tolist() == [1, 0, 0, 0, 0]


def interpolant(features, mask, t):
    """Through the snippets at t + 1/2, constant in the outer half of a snippet without a neighbour, 0 elsewhere."""
    i = int(np.floor(t))
    if not (0 <= i < len(mask)) or not mask[i]:
        return np.zeros(features.shape[1])
    offset = t - i - 0.5
    j = i + 1 if offset > 0 else i - 1
    neighbour = features[j] if 0 <= j < len(mask) and mask[j] else features[i]
    return features[i] * (1 - abs(offset)) + neighbour * abs(offset)


def test_pooling_is_that_of_many_points():
    rng = np.random.default_rng(1)
    features, mask = rng.normal(size=(16, 2)).astype(np.float32), np.float32(np.arange(16) < 13)
    mask[5] = 0
    segments = np.float32([[0, 4], [6, 13], [8, 9], [2.25, 11.5], [3, 3]])
    found = jax.jit(p_mil.pool)(features, mask, segments)
    for k, (start, end) in enumerate(segments):
        width = max(1.5 * (end - start), 1) / 12
        left = start - (end - start) / 4
        points = left + (np.arange(12)[:, None] + (np.arange(1000) + 0.5) / 1000) * width
        means = np.array([[interpolant(features, mask, t) for t in row] for row in points]).mean(1)
        slow = means[:2].max(0), means[2:10].max(0), means[10:].max(0)
        np.testing.assert_allclose([x[k] for x in found], slow, atol=2e-3)


def test_pooling_at_the_edges_and_after_a_shift():
    rng = np.random.default_rng(2)
    segments = np.float32([[0, 8], [1, 5], [4, 8]])
    u, v, w = jax.jit(p_mil.pool)(np.ones((16, 2), np.float32), np.float32(np.arange(16) < 8), segments)
    np.testing.assert_allclose(v, 1, rtol=1e-6)
    np.testing.assert_allclose(v - u, np.float32([[1] * 2, [0] * 2, [0] * 2]), atol=1e-6)
    np.testing.assert_allclose(v - w, np.float32([[1] * 2, [0] * 2, [1] * 2]), atol=1e-6)
    features = rng.normal(size=(16, 2)).astype(np.float32)
    mask = np.float32(np.arange(16) < 10)
    one = jax.jit(p_mil.pool)(features, mask, segments)
    moved = jax.jit(p_mil.pool)(np.roll(features, 5, 0), np.roll(mask, 5), segments + 5)
    np.testing.assert_allclose(one, moved, atol=1e-5)


def some_candidates(m=14, empty=3, seed=0):
    """Segments, some of which are equal, valid, IoUs and the teacher's attention."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 40, (m, 1))
    segments = np.float32(np.concatenate([start, start + rng.integers(1, 12, (m, 1))], axis=1))
    segments[1] = segments[0]
    segments[m - empty :] = 3
    valid = np.float32(np.arange(m) < m - empty)
    return (
        jnp.asarray(segments),
        jnp.asarray(valid),
        jax.jit(p_mil.overlaps)(segments),
        jnp.asarray(rng.random(m), jnp.float32),
    )


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_pseudo_instances_are_nms_at_0(share):
    given = some_candidates()
    segments, valid, overlap, attention = map(np.asarray, given)
    np.testing.assert_allclose(overlap[:11, :11], metrics.temporal_iou(segments, segments)[:11, :11], rtol=1e-6)
    assert not overlap[11:].any()
    high = np.flatnonzero((valid > 0) & (attention > share * attention[:11].max()))
    kept = high[localize.nms(segments[high], attention[high], 0.0)]
    order = given[3], given[2], given[1], share
    np.testing.assert_array_equal(np.flatnonzero(p_mil.pseudo_instances(*order)), sorted(kept))
    target = np.asarray(p_mil.completeness_target(*order))
    np.testing.assert_allclose(target[kept], 1)
    np.testing.assert_allclose(target[:11], overlap[:11, kept].max(1))
    if share:
        assert (target[:11] == 0).any()  # of those that overlap no pseudo instance


def test_ranks_are_compared_among_those_that_overlap():
    """Value and gradient against the sums; a constant on all of a cluster changes nothing, nor does an empty place."""
    segments, valid, overlap, attention = some_candidates(seed=3)
    rng = np.random.default_rng(0)
    own, teacher = 2 * rng.normal(size=(2, 14, 4)).astype(np.float32)
    labels = np.float32([1, 0, 1])
    there, scores = range(11), np.asarray(attention)
    ious = metrics.temporal_iou(np.asarray(segments), np.asarray(segments))

    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    slow_value, slow_gradient = 0.0, np.zeros_like(own)
    rows = [i for i in there if scores[i] > scores[:11].mean()]
    for c in (0, 2):
        for i in rows:
            near = [j for j in there if ious[i, j] > 0]
            p, q = softmax(teacher[near, c]), softmax(own[near, c])
            slow_value += (p * np.log(p / q)).sum() / len(rows) / 2
            slow_gradient[near, c] += (q - p) / len(rows) / 2
    consistency = lambda own: p_mil.rank_consistency(own, teacher, attention, overlap, valid, labels)  # noqa: E731
    fast = jax.jit(jax.value_and_grad(consistency))
    value, gradient = fast(own)
    assert value > 0.1
    np.testing.assert_allclose(value, slow_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, slow_gradient, atol=1e-6)
    assert abs(fast(teacher)[0]) < 1e-6
    cluster = np.asarray(overlap)[0] > 0
    while (grown := (np.asarray(overlap)[cluster] > 0).any(0)).sum() > cluster.sum():
        cluster = grown
    assert 0 < cluster.sum() < 11
    np.testing.assert_allclose(fast(own + 5 * cluster[:, None].astype(np.float32))[0], value, rtol=1e-5)
    far = own - np.float32([[0]] * 13 + [[-1e4]]) - 200 * cluster[:, None].astype(np.float32)
    assert np.isfinite(fast(far)[0]) and np.isfinite(fast(far)[1]).all()
    alone = jnp.zeros(14).at[0].set(1)  # a single candidate is not above the mean
    assert p_mil.rank_consistency(*map(jnp.asarray, (own, teacher, attention, overlap, alone, labels))) == 0


def test_losses_by_hand_and_empty_places():
    config = ConfigDict(dict(pseudo=0.8, top=4))
    segments, valid, overlap, attention = some_candidates()
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=(2, 14, 4)).astype(np.float32)
    own = p_mil.Heads(logits, *rng.random((2, 14)).astype(np.float32))
    teacher = p_mil.Heads(other, attention, attention)
    labels = np.float32([0, 1, 1])
    losses = jax.jit(partial(p_mil.losses, config))
    found = losses(own, teacher, p_mil.Candidates(segments, valid), labels)
    for name, x, target in (("orig", logits, [0, 1, 1, 1]), ("supp", own.attention[:, None] * logits, [0, 1, 1, 0])):
        pooled = np.sort(x[:11], axis=0)[-2:].mean(0)  # 11 // 4
        target = np.array(target) / (sum(target) + 1e-4)
        np.testing.assert_allclose(found[name], -target @ np.asarray(jax.nn.log_softmax(pooled)), rtol=1e-5)
    q = p_mil.completeness_target(attention, overlap, valid, 0.8)
    np.testing.assert_allclose(found["comp"], ((own.completeness - q)[:11] ** 2).mean(), rtol=1e-5)
    hostile = jax.tree.map(lambda x: np.concatenate([x[:11], 1e3 * (1 + x[11:])]), (own, teacher))
    again = losses(*hostile, p_mil.Candidates(segments, valid), labels)
    for name, value in found.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-6)


def test_ramp():
    np.testing.assert_allclose([p_mil.ramp(x, 30.0) for x in (0.0, 15.0, 30.0, 99.0)], np.exp([-5, -1.25, 0, 0]))


def test_only_the_head_learns_in_its_phase(trained):
    """The base and its optimizer are not touched, bit by bit; the head's steps are counted, and the ramp follows."""
    for group in trained.before:
        pairs = zip(*(jax.tree.leaves(x[group]) for x in (trained.before, trained.after)))
        assert all((np.asarray(a) == np.asarray(b)).all() == (group in ("attention", "classifier")) for a, b in pairs)
    assert trained.after["progress"]["steps"] == 300
    whole = 0.15 * 200  # of the 600 steps a third is the head's
    rho = np.exp(-5 * (1 - np.minimum(np.arange(1, 301) / whole, 1)) ** 2)
    np.testing.assert_allclose(trained.metrics["rho"], rho, rtol=1e-5)
    weighted = {"orig": 2.0, "supp": 1.0, "irc": 2 * trained.metrics["rho"], "comp": 20 * trained.metrics["rho"]}
    total = sum(weight * trained.metrics[name] for name, weight in weighted.items())
    np.testing.assert_allclose(trained.metrics["loss"], total, rtol=1e-4)
    assert trained.metrics["supp"][-1] < trained.metrics["supp"][0] / 2


def test_completeness_follows_the_true_overlap(trained):
    """On new planted videos, more than the mean attention of the base and its outer-inner contrast do."""
    columns = []
    for scores, (segments, valid), heads, truth in zip(*map(split, trained.test), planted(1)[1]):
        runs = segments[valid > 0].astype(int)
        ious = metrics.temporal_iou(runs.astype(float), truth).max(1)
        k, attention = heads.completeness.mean(0)[valid > 0], scores.attention
        columns.append(np.stack([ious, k, localize.run_means(attention, runs), localize.contrast(attention, runs)]))
    of_iou = np.corrcoef(np.concatenate(columns, axis=1))[0]
    assert of_iou[1] > 0.3 + max(of_iou[2:])


def split(batch):
    """The parts of each video of a batch."""
    return [jax.tree.map(lambda x: x[i], batch) for i in range(8)]  # noqa: B023


def test_scores_are_the_base_s_and_those_of_the_candidates(trained):
    scores, candidates, heads = trained.test
    base = methods.get(trained.config.base)
    alone = jax.jit(jax.vmap(base.score, (None, 0)))(trained.after, planted(1)[0])
    np.testing.assert_allclose(scores.cas, alone.cas, rtol=1e-6)
    np.testing.assert_allclose(scores.attention, alone.attention, rtol=1e-6)
    for i in range(8):
        one = jax.tree.map(lambda x: x[i], heads)  # noqa: B023
        p = np.exp(one.logits) / np.exp(one.logits).sum(-1, keepdims=True)
        p, a, k = p.mean(0)[:, :C], one.attention.mean(0) * candidates.valid[i], one.completeness.mean(0)
        np.testing.assert_allclose(scores.video_score[i], (p * a[:, None]).sum(0) / a.sum(), rtol=1e-4)
        np.testing.assert_allclose(scores.extras.scores[i], p * (a * k)[:, None], rtol=1e-4, atol=1e-7)
        assert not scores.extras.scores[i][candidates.valid[i] == 0].any()
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), (heads, candidates.valid))
    np.testing.assert_array_less(scores.extras.scores[0][:1], p_mil.rate(*one, False)[1][:1])


def test_proposals():
    """The candidates of all models for the classes of each, decayed together; places without one are no detections."""
    options = ConfigDict(dict(reject=0.2, prior=0.5, soft_nms=0.3, nms=0.5))
    nothing = np.zeros((10, 2))

    def model(video_score, segments, scores):
        extras = p_mil.Extras(np.float32(segments), np.float32(scores))
        return Model(Scores(np.array(video_score), nothing, nothing[:, 0], extras), options)

    one = model([0.4, 0.1], [[0, 4], [2, 4], [3, 3]], [[0.5, 0.9], [0.2, 0.1], [9, 9]])
    two = model([0.1, 0.2], [[0, 4]], [[0.7, 0.3]])
    meta = Meta("v", 10, 25.0, 25.0, 12.5, 10.0)  # a snippet is a second
    found = p_mil.propose((one, two), Model(None, options), meta)
    rows = list(zip(found.labels.tolist(), found.segments.tolist(), found.scores.tolist()))
    decayed = 0.4 * np.exp(-0.25 / 0.3)
    expected = [(0, [0, 4], 0.7), (0, [2, 4], decayed), (1, [0, 4], 0.4)]
    for row, (label, segment, score) in zip(rows, expected, strict=True):
        assert row[:2] == (label, segment) and row[2] == pytest.approx(score)
    options.soft_nms = 0.0
    options.nms = 0.4
    assert p_mil.propose((one, two), Model(None, options), meta).segments.tolist() == [[0, 4], [0, 4]]


def test_the_base_is_its_own_method():
    """Its phase is that of the base alone, from the same parameters, with the number of its own steps."""
    config, made = make()
    spec, key = method.Spec((4, 4), C), jax.random.key(0)
    base = methods.get(config.method.base)
    assert made.phases[0] == base.phases[0]._replace(name="base", length=400) and made.phases[1].length == 200
    both, alone = made.init(key, spec), base.init(key, spec)
    jax.tree.map(np.testing.assert_array_equal, {group: both[group] for group in alone}, alone)
    assert [int(train.turn(made, ConfigDict(dict(steps=600)), 7, step)[0]) for step in (0, 399, 400, 599, 600)] == [
        0, 0, 1, 1, 0,
    ]  # fmt: skip
    assert train.turn(made, ConfigDict(dict(steps=600)), 7, 599)[1] == 599 // 7
    of_delu = make("base=delu")[0]
    assert p_mil.base_of(of_delu.method, 400).phases[0].loss.args[0].steps == 400
    of_delu.pairs = 2
    assert of_delu.method.base.pairs == 2


def test_options():
    assert {x for x in ("irc", "comp", "surroundings") if make("terms=mil")[0].method[x]} == set()
    assert {x for x in ("irc", "comp", "surroundings") if make("terms=scfe+comp")[0].method[x]} == {
        "comp",
        "surroundings",
    }
    for text, message in (("terms=scf", "there are mil, all, and sums"), ("base=dgam", "there are co2, delu, maan")):
        with pytest.raises(InputError, match=message):
            config_file.get_config(text)
    for options, message in (
        (dict(base_share=1.0), "base and head need a step each"),
        (dict(thresholds=(0.5, 0.1)), r"thresholds=\(0.5, 0.1\): must ascend"),
        (dict(base=dgam.get_config().method), "'dgam': a base has one phase"),
    ):
        with pytest.raises(InputError, match=message):
            make(**options)


def test_published_settings_have_the_published_sizes():
    """9.5 M parameters of the head; the shapes of a step fit together. Nothing is computed."""
    config = config_file.get_config("dataset=thumos14")
    assert (config.batch_size, config.optimizer.learning_rate, config.optimizer.coupled_l2) == (10, 5e-5, 1e-3)
    assert config.steps == 9000
    made = methods.get(config.method)
    assert [phase.length for phase in made.phases] == [5000, 4000]
    params = jax.eval_shape(lambda: made.init(jax.random.key(0), method.Spec((1024, 1024), 20)))
    head = sum(x.size for x in jax.tree.leaves(params["head"]))
    assert round(head / 1e6, 1) == 9.5
    snippets = jnp.zeros((750, 2048)), jnp.ones(750), jnp.ones(20), jnp.ones(20), jnp.int32(750)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in snippets]
    loss, _ = jax.eval_shape(made.phases[1].loss, params, Video(*shapes), Step(jax.random.key(0), jnp.int32(0)))
    assert loss.shape == ()
