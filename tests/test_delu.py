"""DELU and CO2-Net against slow computations in NumPy, and what the released code gets wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import delu as configs
from configs.search import delu as search
from wsal_jax import methods
from wsal_jax.method import BATCH, Spec, Step, options_of
from wsal_jax.methods import delu
from wsal_jax.types import InputError, Meta, Model, Scores, Video

C = 3
SPEC = Spec((4, 4), C)


def options(**changes):
    config = configs.get_config().method
    config.update(hidden=8, pairs=2, steps=10, **changes)
    return config


@pytest.fixture(scope="module")
def params():
    """Of the right shapes; NumPy's, since `init` takes long to compile."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: methods.get(options()).init(jax.random.key(0), SPEC))
    drawn = jax.tree.map(lambda x: jnp.float32(rng.uniform(-0.6, 0.6, x.shape)), shapes)
    return {**drawn, "clock": {"steps": jnp.zeros(())}}


def batch(size=5, n=9, seed=0):
    """The first two share class 0, the next two classes 1 and 2; padding holds garbage."""
    rng = np.random.default_rng(seed)
    labels = np.float32([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1], [1, 0, 0]])[:size]
    lengths = np.array([9, 6, 7, 9, 8])[:size]
    mask = np.float32(np.arange(n) < lengths[:, None])
    features = rng.normal(size=(size, n, 8)) * np.where(mask[..., None] > 0, 1, 1e3)
    return Video(*map(jnp.asarray, (np.float32(features), mask, labels, labels, lengths)))


def video(n=9, seed=0):
    return jax.tree.map(lambda x: x[0], batch(1, n, seed))


@jax.jit
def evaluate(params, one):
    return delu.forward(options(), params, one)


def still(**changes):
    """Options without dropout, and with more weight of L_co."""
    return options(co=10.0, dropout=0.0, logit_dropout=0.0, fusion_dropout=0.0, **changes)


@jax.jit
def losses(params, videos):
    """The total and each metric of each video, the next clock, and the gradients of the mean of the totals."""
    keys = jax.random.split(jax.random.key(1), len(videos.mask))
    of_batch = jax.vmap(partial(delu.loss, still()), (None, 0, Step(0, None)), (0, (0, None)), axis_name=BATCH)

    def total(params):
        each, aux = of_batch(params, videos, Step(keys, jnp.int32(0)))
        return each.mean(), (each, aux)

    (_, (each, (metrics, clock))), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return each, metrics, clock, gradients


@pytest.fixture(scope="module")
def found(params):
    """The totals, the metrics and the next clock for `batch()`."""
    return jax.tree.map(np.asarray, losses(params, batch())[:3])


@pytest.fixture(scope="module")
def outputs(params):
    """Of each video of `batch()`, cut to its length: suppressed CAS, logits, attentions of both streams, hidden."""
    videos = batch()
    rows = []
    for i, n in enumerate(videos.length.tolist()):
        one = evaluate(params, jax.tree.map(lambda x, i=i: x[i], videos))
        rows.append([np.asarray(x, np.float64) for x in (one.logits[:n], one.of_stream[:, :n], one.hidden[:n])])
    return [(suppressed(s, a.mean(0)), s, a, h) for s, a, h in rows]


def suppressed(s, a):
    m = s.min(1, keepdims=True)
    return a[:, None] * (s - m) + m


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv(layer, x):
    """With zeros beyond the ends, tap by tap."""
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    n, half = len(x), len(kernel) // 2
    rows = [[(t + j - half, j) for j in range(len(kernel)) if 0 <= t + j - half < n] for t in range(n)]
    return np.stack([sum(x[s] @ kernel[j] for s, j in row) + bias for row in rows])


def test_the_network_layer_by_layer(params, outputs):
    lrelu = lambda x: np.where(x > 0, x, 0.2 * x)  # noqa: E731
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    videos = batch()
    for i in (0, 1):
        x = np.asarray(videos.features[i][: int(videos.length[i])], np.float64)
        filtered, attentions = [], []
        for name, own, other in (("first", x[:, :4], x[:, 4:]), ("second", x[:, 4:], x[:, :4])):
            layers = params["attention"][name]
            gate = lrelu(own.mean(0) @ np.asarray(layers["global"]["kernel"][0]) + layers["global"]["bias"])
            filtered.append(sigmoid(lrelu(conv(layers["local"], other)) * gate) * own)
            hidden = lrelu(conv(layers["hidden_2"], lrelu(conv(layers["hidden"], filtered[-1]))))
            attentions.append(sigmoid(conv(layers["out"], hidden))[:, 0])
        layers = params["classifier"]
        hidden = lrelu(conv(layers["fuse"], np.concatenate(filtered, 1)))
        logits = conv(layers["out"], lrelu(conv(layers["hidden"], hidden)))
        for slow, fast in zip((logits, np.stack(attentions), hidden), outputs[i][1:]):
            np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


def test_a_closed_gate_halves_the_stream(params):
    """With local and global features of 0, x~ = x / 2; the other stream acts through the gate alone."""
    layers = jax.tree.map(jnp.zeros_like, params["attention"]["first"])
    x = jnp.arange(12.0).reshape(3, 4)
    gated = delu.consensus(layers, x, jnp.ones((3, 4)), jnp.ones(3), jnp.ones((4, 4)))
    np.testing.assert_allclose(gated, x / 2)


def test_initial_kernels_have_the_released_range():
    """U(-sqrt(6 / fan_in), +); the global layer has three taps in its fan_in, though one acts."""
    layers = jax.jit(lambda: delu.init_consensus(jax.random.key(0), 4, 4, 4))()
    for name, fan_in in (("global", 3 * 4), ("local", 3 * 4), ("hidden", 3 * 4), ("hidden_2", 3 * 4), ("out", 4)):
        largest, bound = np.abs(layers[name]["kernel"]).max(), (6 / fan_in) ** 0.5
        assert 0.7 * bound < largest <= bound and not layers[name]["bias"].any()
    with pytest.raises(InputError, match="two streams"):
        delu.init(options(), jax.random.key(0), Spec((8,), C))


def test_losses_of_each_video(found, outputs):
    """Classification, mutual, norm, guide, evidence and uncertainty, snippet by snippet in NumPy."""
    total, metrics, clock = found
    assert clock["clock"]["steps"] == 1
    videos, config = batch(), options()
    for i, (low, s, a, _) in enumerate(outputs):
        n, y = len(s), np.asarray(videos.labels[i], np.float64)
        both = [a.mean(0), a[0], a[1]]
        background = softmax(s, 1)[:, -1]
        top = lambda x, k: np.sort(x, 0)[-k:].mean(0)  # noqa: E731
        k = max(1, n // 7)
        expected = {}
        for name, x, b in (("original", s, 1), ("suppressed", low, 0)):
            target = np.append(y, b) / (y.sum() + b + 1e-4)
            expected[name] = -(target * np.log(softmax(top(x, k), 0))).sum()
        expected["mutual"] = ((a[0] - a[1]) ** 2).mean()
        expected["norm"] = np.mean([x.mean() for x in both])
        expected["guide"] = np.mean([np.abs(1 - x - background).mean() for x in both])
        v = low[np.argsort(-both[0])[: max(1, n // 9)], :C].mean(0)
        alpha = np.exp(v) + 1
        g = (1 - C / alpha.sum()) * y.sum() * (y / alpha) / (y / alpha).sum()
        expected["evidence"] = (g * (np.log(alpha.sum()) - np.log(alpha))).sum()
        u = C / (np.exp(low) + 1).sum(1)
        place = np.array([(u < x).sum() for x in u])
        w = 1 + 0.7 * np.tanh(2 * (place + 0.5) / n - 1)
        expected["uncertain"] = np.mean([(w * np.abs(1 - x - background)).mean() for x in both])
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=2e-4, err_msg=name)
        weights = dict(
            co_activity=10, mutual=1, norm=0.8, guide=config.guide, evidence=config.edl, uncertain=config.uct
        )
        expected["co_activity"] = metrics["co_activity"][i]
        slow = sum(weights.get(name, 1) * x for name, x in expected.items())
        np.testing.assert_allclose(total[i], slow, rtol=2e-4)


def test_co_activity_by_a_loop_over_pairs(found, outputs):
    """The fifth video shares a class with the first two, but is in no pair."""
    videos = batch()
    total = count = 0

    def distance(x, y):
        return 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    for i, j in ((0, 1), (2, 3)):
        of = []
        for low, _, _, hidden in (outputs[i], outputs[j]):
            a = softmax(low, 0)
            of.append((hidden.T @ a, hidden.T @ (1 - a) / (len(low) - 1)))
        (high_i, low_i), (high_j, low_j) = of
        for c in range(C):
            w = float(videos.labels[i, c] * videos.labels[j, c])
            d = distance(high_i[:, c], high_j[:, c])
            first = max(0, d - distance(high_i[:, c], low_j[:, c]) + 0.5)
            total += w * (first + max(0, d - distance(low_i[:, c], high_j[:, c]) + 0.5)) / 2
            count += w
    assert count == 3
    np.testing.assert_allclose(found[1]["co_activity"], total / count, rtol=2e-4)


def test_without_pairs_co_activity_is_0(params):
    """The released code divides by 0."""
    videos = batch()
    for labels in (jnp.eye(5, 3), jnp.zeros((5, 3))):
        total, metrics, *_ = losses(params, videos._replace(labels=labels))
        assert not metrics["co_activity"].any() and np.isfinite(total).all()
    assert delu.partners(5, 0) == [0, 1, 2, 3, 4] and delu.partners(5, 2) == [1, 0, 3, 2, 4]
    assert delu.partners(1, 3) == [0] and delu.partners(3, 3) == [1, 0, 2]


def test_weights_of_0_make_co2_net(params):
    """`terms=all` without the weights of both evidential losses, bit for bit."""
    co2, full = configs.get_config("terms=co2").method, configs.get_config().method
    assert co2.edl == co2.uct == 0 and full.edl > 0 < full.uct
    full.update(edl=0.0, uct=0.0, guide=co2.guide)
    assert co2.to_dict() == full.to_dict() and methods.get(co2) is methods.get(full)
    for terms, edl, uct in (("co2+edl", 1.3, 0), ("co2+uct", 0, 0.4)):
        method = configs.get_config(f"terms={terms}").method
        assert (method.edl, method.uct) == (edl, uct)


@partial(jax.jit, static_argnums=3)
def rank_weights(x, mask, done, ranks):
    return delu.rank_weights(options(ranks=ranks), x, mask, done)


def weights(done, ranks=True, n=40, c=4, mask=None, seed=0):
    """The weights of random activations, and the uncertainties."""
    x = np.random.default_rng(seed).normal(size=(n, c + 1)).astype(np.float32)
    mask = np.ones(n, np.float32) if mask is None else mask
    u = c / (np.exp(np.float64(x)) + 1).sum(1)
    return np.asarray(rank_weights(x, mask, jnp.float32(done), ranks), np.float64), u


def test_weights_of_snippets_follow_the_rank_of_their_uncertainty_and_turn():
    """Uncertain snippets count most in the beginning, all alike in the middle, and certain ones most in the end."""
    first, u = weights(0.0)
    order = np.argsort(u)
    assert (np.diff(first[order]) > 0).all() and first.max() == pytest.approx(1 + 0.7 * np.tanh(39 / 40), rel=1e-5)
    for done, sign in ((0.0, 1), (0.25, 1), (1.0, -1)):
        w, _ = weights(done)
        assert (sign * np.diff(w[order]) > 0).all() and w.mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(weights(0.5)[0], 1, rtol=1e-6)
    np.testing.assert_allclose(weights(1.0)[0] - 1, 1 - first, rtol=1e-4)
    assert (u <= 4 / 5).all()  # S has the background, C does not
    mask = np.float32(np.arange(40) % 3 > 0)
    there, _ = weights(0.0, mask=mask)
    assert there[mask > 0].mean() == pytest.approx(1, rel=1e-5)
    assert (np.diff(there[order][mask[order] > 0]) > 0).all()


def test_released_weights_have_nothing_to_do_with_the_uncertainty():
    """They take the sorting indices for ranks: the same values in an order that is as good as random."""
    correlations = []
    for seed in range(60):
        released, u = weights(0.0, ranks=False, seed=seed)
        np.testing.assert_allclose(np.sort(released), np.sort(weights(0.0, seed=seed)[0]), rtol=1e-5)
        correlations.append([np.corrcoef(w, u)[0, 1] for w in (released, weights(0.0, seed=seed)[0])])
    released, ranked = np.mean(correlations, axis=0)
    assert abs(released) < 0.1 and ranked > 0.9


def test_evidence_of_two_classes_by_hand():
    """One label: y / alpha cancels, so g = 1 - u. The squared form has evidence relu(v)."""
    v, y = jnp.array([0.3, -1.2]), jnp.array([1.0, 0.0])
    alpha = np.exp(np.array([0.3, -1.2])) + 1
    by_hand = (1 - 2 / alpha.sum()) * np.log(alpha.sum() / alpha[0])
    assert delu.evidential(options(), v, y) == pytest.approx(by_hand, rel=1e-5)
    squared = options(edl_form="squared")
    assert delu.evidential(squared, v, y) == pytest.approx((1 - 1.3 / 2.3) ** 2 + (1 / 2.3) ** 2, rel=1e-5)
    assert np.isfinite(delu.evidential(options(), jnp.array([1e3, -1e3]), jnp.zeros(2)))


def test_gradient_of_evidence_flows_through_the_weights_but_not_the_uncertainty():
    v, y = jnp.array([0.3, -1.2, 0.5]), jnp.array([1.0, 1.0, 0.0])

    def other(x):  # with u as a constant
        alpha = jnp.exp(x) + 1
        share = 2 * (y / alpha) / (y / alpha).sum()
        return (1 - 3 / (jnp.exp(v) + 1 + 0 * x).sum()) * (share * jnp.log(alpha.sum() / alpha)).sum()

    found, expected = jax.jit(lambda: (jax.grad(partial(delu.evidential, options()))(v, y), jax.grad(other)(v)))()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equal_streams_with_equal_weights_agree(params):
    """Then the attentions are equal and L_mut is 0."""
    tied = {**params, "attention": dict.fromkeys(("first", "second"), params["attention"]["first"])}
    videos = batch()
    videos = videos._replace(features=jnp.concatenate([videos.features[..., :4]] * 2, axis=-1))
    one = evaluate(tied, jax.tree.map(lambda x: x[0], videos))
    np.testing.assert_allclose(one.of_stream[0], one.of_stream[1], rtol=1e-6)
    assert one.attention.std() > 1e-4
    metrics = losses(tied, videos)[1]
    np.testing.assert_allclose(metrics["mutual"], 0, atol=1e-12)


def test_mutual_learning_moves_each_stream_towards_the_other():
    """The gradient of L_mut is that of half the squared distance to a constant."""
    mask, a = jnp.array([1.0, 1, 0]), jnp.array([[0.2, 0.5, 0.9], [0.6, 0.1, 0.3]])
    np.testing.assert_allclose(jax.grad(delu.mutual)(a, mask)[0], [-0.2, 0.2, 0], rtol=1e-6)


def test_average_over_time_counts_what_is_beyond_the_ends():
    mask = jnp.float32(np.arange(30) < 25)
    smoothed = np.asarray(delu.smooth(jnp.ones((30, 2)), mask, 13))
    expected = [sum(0 <= s < 25 for s in range(t - 6, t + 7)) / 13 for t in range(25)] + [0] * 5
    np.testing.assert_allclose(smoothed[:, 0], expected, rtol=1e-6)
    assert expected[0] == expected[24] == 7 / 13
    config = options(smooth=12)
    with pytest.raises(InputError, match="smooth=12: give an odd number"):
        methods.get(config)


def propose(attention, activation, video_score, **changes):
    config = configs.get_config().localize
    config.update(changes)
    extras = delu.Extras(np.float32(activation))
    scores = Scores(np.float32(video_score), np.float32(activation), np.float32(attention), extras)
    one = Model(scores, options_of(config, "rgb+flow", "config.localize"))
    return delu.propose((one,), one, Meta("v", len(attention), 1.0, 1.0, 0.5, float(len(attention))))


def test_detections_of_two_classes_have_the_same_segments():
    """Runs of the class-agnostic attention at 20 thresholds, also that of snippet 0 alone; only scores differ."""
    attention = [0.95, 0, 0.3, 0.6, 0.6, 0.2, 0]
    activation = np.outer(attention, [3.0, 2.0, -1.0])
    found = propose(attention, activation, [0.6, 0.3, 0.1])
    segments = [sorted(found.segments[found.labels == c].tolist()) for c in (0, 1)]
    assert segments[0] == segments[1] and set(found.labels.tolist()) == {0, 1}
    thresholds = np.linspace(0.1, 0.9, 20)
    np.testing.assert_allclose(configs.get_config().localize.thresholds, thresholds, atol=1e-4)
    assert segments[0].count([0, 1]) == sum(thresholds < 0.95)
    runs = {(3, 5): (thresholds >= 0.3) & (thresholds < 0.6), (2, 5): (thresholds >= 0.2) & (thresholds < 0.3)}
    for run, count in runs.items():
        assert segments[0].count(list(run)) == sum(count)


def test_scores_of_segments_by_hand():
    """Inside minus both flanks plus 0.2 times the video score, at one threshold, so that nothing is suppressed."""
    attention = [0, 0, 0.9, 0.9, 0.9, 0.9, 0, 0.7]
    activation = np.array([[1, 4, 2, 2, 2, 6, 5, -8.0]]).T
    found = propose(attention, activation, [0.5], thresholds=(0.5,))
    np.testing.assert_allclose(found.segments, [[2, 6], [7, 8]])
    np.testing.assert_allclose(found.scores, [3 - 4.5 + 0.1 + 1.4, 0], atol=1e-6)  # -8 + 0.1 is negative: 0


def test_suppression_is_soft_or_hard():
    attention = [0.9, 0.9, 0.5, 0]
    activation = np.outer(attention, [2.0])
    soft = propose(attention, activation, [1.0], thresholds=(0.4, 0.6))
    assert len(soft.scores) == 2
    hard = propose(attention, activation, [1.0], thresholds=(0.4, 0.6), soft_nms=0.0, nms=0.5)
    assert hard.segments.tolist() == [[0, 2]]
    order = np.argsort(-soft.scores)
    best, other = soft.scores[order]
    assert best == pytest.approx(1.8 + 0.2) and soft.segments[order].tolist() == [[0, 2], [0, 3]]
    assert other == pytest.approx((4.6 / 3 - 0.0 + 0.2) * np.exp(-((2 / 3) ** 2) / 0.3))


def test_the_video_score_is_of_the_top_tenth(params):
    """Softmax of the mean of the n / 10 largest a s of each class, background dropped."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32)
    one = Video(features, jnp.ones(32), *[jnp.zeros(C)] * 2, jnp.int32(32))
    scores, output = jax.jit(lambda: (delu.score(options(), params, one), delu.forward(options(), params, one)))()
    p = np.asarray(output.logits) * np.asarray(output.attention)[:, None]
    np.testing.assert_allclose(scores.video_score, softmax(np.sort(p, 0)[-3:].mean(0), 0)[:C], rtol=1e-5)
    np.testing.assert_allclose(scores.extras.activation, p[:, :C], rtol=1e-5)
    np.testing.assert_allclose(
        scores.cas, softmax(np.asarray(output.logits), 1)[:, :C] * scores.attention[:, None], rtol=1e-5
    )


def test_co_activity_falls_where_pairs_share_a_class(params):
    """Trained on planted videos: the last 4 snippets of a video of class c are near a vector of that class."""
    rng = np.random.default_rng(0)
    videos, vectors = batch(), rng.normal(size=(C, 8))
    labels = np.float32([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    features = rng.normal(size=(5, 9, 8)) * 0.5
    features[:, -4:] += 3 * (labels @ vectors)[:, None]
    videos = videos._replace(features=jnp.float32(features), mask=jnp.ones((5, 9)), labels=jnp.asarray(labels))
    co = []
    for _ in range(60):
        _, metrics, clock, gradients = losses(params, videos)
        co.append(float(metrics["co_activity"][0]))
        params = jax.tree.map(lambda x, gradient: x - 0.1 * gradient, params, gradients) | clock
    assert co[-1] < 0.6 * co[0]
    assert params["clock"]["steps"] == 60


def test_settings_of_the_benchmarks():
    """Of the releases' command lines and defaults; what is searched leaves out hard suppression."""
    thumos, co2 = configs.get_config("dataset=thumos14"), configs.get_config("dataset=thumos14,terms=co2")
    assert (thumos.num_snippets, co2.num_snippets, thumos.method.hidden) == (320, 500, 2048)
    assert (thumos.batch_size, thumos.pairs, thumos.steps) == (10, 3, 5000) and len(co2.localize.thresholds) == 10
    assert thumos.optimizer.to_dict() == dict(name="adam", learning_rate=5e-5, coupled_l2=1e-3)
    assert (thumos.method.guide, co2.method.guide) == (0.4, 0.8)
    anet = configs.get_config("dataset=activitynet/1.2")
    assert (anet.num_snippets, anet.steps, anet.optimizer.learning_rate) == (60, 22_000, 3e-5)
    assert (anet.method.smooth, anet.method.edl, anet.method.uct, anet.method.edl_form) == (13, 1.2, 0.2, "squared")
    assert configs.get_config("dataset=activitynet/1.2,terms=co2").method.edl == 0
    thumos.steps = 7
    assert thumos.method.steps == 7
    assert "localize.nms" not in search.get_search(thumos)
    with pytest.raises(InputError, match="terms=edl: there are co2, co2\\+edl"):
        configs.get_config("terms=edl")


def test_dropout_of_each_layer():
    """Half of the gates, attentions and logits, 0.7 of the classifier's; of each stream and layer its own."""
    noise = jax.jit(lambda: delu.draw(options(), jax.random.key(0), 200, 16))()
    for part, rate in zip(noise, (0.5, 0.5, 0.5, 0.7)):
        kept = np.asarray(part) > 0
        assert abs(kept.mean() - 1 + rate) < 0.06
        np.testing.assert_allclose(part[kept], 1 / (1 - rate), rtol=1e-6)
    for one in (noise.attention, noise.logit, noise.classifier):
        assert (one[0] != one[1]).any()
    assert all((part == 1).all() for part in delu.draw(options(), None, 5, 16))
