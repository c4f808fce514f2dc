"""SAL against direct NumPy versions of its equations, and what the errata of the released code lead to."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict
from scipy.special import expit, log_softmax, softmax

from configs import sal as configs
from wsal_jax import localize, methods, sharding, train
from wsal_jax.method import BATCH, Spec, Step
from wsal_jax.methods import sal
from wsal_jax.types import InputError, Meta, Model, Scores, Video

DIMS, CLASSES, HIDDEN, T = (4, 3), 3, 5, 16
LENGTHS = np.array([16, 16, 12])
RELEASED = dict(thumos14="dataset=thumos14", activitynet="dataset=activitynet/1.3,terms=mil+act+mix+sem+bg+con")


@lru_cache
def options(text="", **changes):
    """The method's options, of a small network without dropout."""
    config = configs.get_config(text)
    config.num_snippets = T
    config.method.update(dict(hidden=HIDDEN, dropout=0.0) | changes)
    return FrozenConfigDict(config.method)


@lru_cache
def init(config):
    """Random parameters of the right shapes, large enough that classes and snippets differ."""
    rng, made = np.random.default_rng(3), methods.get(config)
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), Spec(DIMS, CLASSES)))
    net = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-1, 1, x.shape), jnp.float32), shapes["net"])
    state = dict(mean=jnp.float32(1 / CLASSES), var=jnp.float32(1))
    return dict(net=net, state=state) if "state" in shapes else dict(net=net)


def batch(size=3):
    """Videos of `LENGTHS` with padding."""
    rng = np.random.default_rng(0)
    labels = np.float32([[1, 0, 0], [0, 1, 1], [0, 0, 1]])[np.arange(size) % 3]
    lengths = LENGTHS[np.arange(size) % 3]
    mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
    features = rng.random((size, T, sum(DIMS))).astype(np.float32)
    return Video(*map(jnp.asarray, (features, mask, labels, labels, lengths)))


def losses_of(config):
    """`losses(params, videos, key)`: of each video, and the auxiliary output."""
    phase = methods.get(config).phases[0]
    batched = jax.vmap(phase.loss, (None, 0, Step(0, None)), (0, (0, None) if phase.tracks else 0), axis_name=BATCH)
    return lambda params, videos, key: batched(
        params, videos, Step(jax.random.split(key, len(videos.mask)), jnp.int32(0))
    )


def full(kernel):
    """The layer on all entries of q that does what a layer on the upper triangle does."""
    square = np.zeros((HIDDEN, HIDDEN, kernel.shape[1]))
    for value, i, j in zip(kernel, *np.triu_indices(HIDDEN)):
        square[i, j] = square[j, i] = value / (1 if i == j else 2**0.5)
    return square


def plain_pool(h, power=2, floor=1e-5):
    """All entries of q / |q|."""
    gram = sum(np.outer(x, x) for x in h) / len(h) ** power
    q = np.sign(gram) * np.sqrt(np.abs(gram) + floor)
    return q / np.sqrt((q**2).sum())


def plain_conv(layer, x):
    half = len(layer["kernel"]) // 2
    taps = lambda t: [(j, t + j - half) for j in range(2 * half + 1) if 0 <= t + j - half < len(x)]  # noqa: E731
    return np.array([sum(x[u] @ layer["kernel"][j] for j, u in taps(t)) + layer["bias"] for t in range(len(x))])


class Plain:
    """The network on one video without padding, in NumPy."""

    def __init__(self, config, net, x):
        streams = dict(joined=x, rgb=x[:, : DIMS[0]], flow=x[:, DIMS[0] :])
        h = {name: np.maximum(plain_conv(net[name], part), 0) for name, part in streams.items()}
        w, b = net["actionness"]["kernel"], net["actionness"]["bias"]
        self.r, self.f = expit(h["rgb"] @ w[:, 0] + b[0]), expit(h["flow"] @ w[:, 1] + b[1])
        self.a = (1 - config.rgb_share) * self.f + config.rgb_share * self.r
        dense = lambda name, q: np.einsum("ij,ijo->o", q, full(net[name]["kernel"])) + net[name]["bias"]  # noqa: E731
        self.z = [dense("semantic", plain_pool(h[name])) for name in h]
        added = dense("propagation", plain_pool(h["joined"])) if "prop" in config.terms else np.zeros(HIDDEN)
        self.h = h["joined"] + self.a[:, None] * added
        self.s = self.h @ net["classifier"]["kernel"] + net["classifier"]["bias"]


def highest(x, k):
    return np.isin(np.arange(len(x)), np.argsort(-x, kind="stable")[:k]).astype(float)


def top_mean(s, by, k):
    return np.array([s[highest(by[:, c], k) > 0, c].mean() for c in range(s.shape[1])])


def plain_gce(a, y, w, q):
    yes = sum(w * y * (1 - (a + 1e-7) ** q) / q) / (sum(w * y) + 1e-7)
    return yes + sum(w * (1 - y) * (1 - (1 - a + 1e-7) ** q) / q) / (sum(w * (1 - y)) + 1e-7)


def padded(x):
    return np.pad(x, [(0, T - len(x))] + [(0, 0)] * (x.ndim - 1))


def plain_losses(config, params, videos):
    """The terms of the loss for each video, and the new mean and variance of the confidence."""
    net, size = params["net"], len(videos.mask)
    x = [np.asarray(videos.features[b, : int(videos.length[b])], np.float64) for b in range(size)]
    seen, terms = [Plain(config, net, one) for one in x], [{} for _ in range(size)]
    y, w = [], []
    p = [softmax(one.s, 1).max(1) for one in seen]
    every = np.concatenate(p)
    mean = config.decay / CLASSES + (1 - config.decay) * every.mean()
    var = config.decay + (1 - config.decay) * every.var(ddof=1)
    for one, confidence in zip(seen, p):
        n = len(one.a)
        positive = highest(one.a, round(config.positives * n))
        if config.agree:
            positive *= highest(np.maximum(one.s, 0).sum(1), n // 2)
        y.append(padded(positive))
        weight = np.exp(-(np.minimum(confidence - mean, 0) ** 2) / (config.spread * var))
        w.append(padded(weight if "mask" in config.terms else np.ones(n)))
    for b, one in enumerate(seen):
        n, labels = len(one.a), np.asarray(videos.labels[b], np.float64)
        ce = lambda z: -(labels / labels.sum() * log_softmax(z)).sum()  # noqa: B023, E731
        e = (softmax(one.s, 1) + one.f[:, None] + one.r[:, None]) / 3
        by = e if config.by == "level" else one.s
        terms[b]["mil"] = ce(top_mean(one.s, by, n // config.top))
        s_bg = (1 - one.a)[:, None] * one.s
        uniform = np.full(CLASSES, 1 / CLASSES)
        logits = top_mean(s_bg, softmax(s_bg, 1), n // config.top)
        terms[b]["bg"] = (uniform * (np.log(uniform) - log_softmax(logits))).sum()
        terms[b]["sem"] = sum(ce(z) for z in one.z)
        terms[b]["con"] = ((one.r - one.f) ** 2).mean()
        terms[b]["act"] = sum(plain_gce(a, y[b][:n], w[b][:n], config.q) for a in (one.r, one.f))
        longer = max(n, len(seen[b - 1].a))
        both = Plain(config, net, (padded(x[b]) + padded(x[b - 1]))[:longer])
        union, weight = np.maximum(y[b], y[b - 1])[:longer], ((w[b] + w[b - 1]) / 2)[:longer]
        terms[b]["mix"] = sum(plain_gce(a, union, weight, config.q) for a in (both.r, both.f))
    return terms, mean, var


@pytest.mark.parametrize("benchmark", RELEASED)
def test_losses_are_those_of_the_equations(benchmark):
    """Videos of two lengths, mixed as sums of their features, by layers on all entries of the second-order matrix."""
    config = options(RELEASED[benchmark])
    params, videos = init(config), batch()
    losses, aux = jax.jit(losses_of(config))(params, videos, jax.random.key(0))
    metrics, tracked = aux if "mask" in config.terms else (aux, None)
    terms, mean, var = plain_losses(config, jax.tree.map(np.asarray, params), videos)
    weights = dict(mil=1, act=1, mix=1, bg=10, con=5, sem=3)
    if benchmark == "activitynet":
        weights |= dict(bg=1, con=20)
    for name in weights:
        np.testing.assert_allclose(metrics[name], [one[name] for one in terms], rtol=1e-4, atol=1e-6, err_msg=name)
    expected = [sum(weights[name] * one[name] for name in weights) for one in terms]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    if tracked:
        np.testing.assert_allclose([tracked["state"]["mean"], tracked["state"]["var"]], [mean, var], rtol=1e-5)


def test_pseudo_labels_and_weights_have_no_gradient():
    """L_act and L_mix teach the branches of the actionness alone, although s chooses and weighs their snippets."""
    config = options(RELEASED["thumos14"])
    losses, params = losses_of(config), init(config)

    def taught(net):
        metrics, _ = losses({**params, "net": net}, batch(), jax.random.key(0))[1]
        return (metrics["act"] + metrics["mix"]).sum()

    gradient = jax.jit(jax.grad(taught))(params["net"])
    reached = {name for name, layer in gradient.items() if any(np.asarray(x).any() for x in jax.tree.leaves(layer))}
    assert reached == {"rgb", "flow", "actionness"}


def test_eight_devices_train_like_one():
    """Mixed videos and running statistics reach across devices; by SGD, since Adam would blow up the last bits."""
    config = options("dataset=thumos14,terms=mil+mix+mask")
    phase, params, videos = methods.get(config).phases[0], init(config), batch(8)
    optimizer = optax.sgd(0.02)
    state = optimizer.init({"net": params["net"]})
    step = jax.jit(partial(train.update, phase, optimizer))
    at = sharding.split(sharding.make_mesh(), 0)
    eight = step(params, state, jax.device_put(videos, at), jax.random.key(1), jnp.int32(0))
    one = step(params, state, videos, jax.random.key(1), jnp.int32(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), eight, one)
    assert one[0]["state"]["mean"] != params["state"]["mean"]


def test_mean_and_variance_of_the_confidence_by_hand():
    """Two steps of two videos; snippets of more than the mean confidence have weight 1. Constant p stays finite."""
    config = options(RELEASED["thumos14"])
    p = np.array([[0.5, 0.9, 0.6], [0.8, 0.7, 0.4]])
    logits = np.log(np.stack([p, 1 - p - 0.05, np.full_like(p, 0.05)], -1)).astype(np.float32)
    p = softmax(logits, -1).max(-1)
    mask = np.float32([[1, 1, 1], [1, 1, 0]])
    step = jax.jit(jax.vmap(partial(sal.confidence, config), (None, 0, 0), (0, None), axis_name=BATCH))
    there = p[mask > 0].astype(np.float64)
    mean, var = there.mean(), ((there - there.mean()) ** 2).sum() / 4
    state = dict(mean=jnp.float32(1 / 3), var=jnp.float32(1))
    for expected in ((0.7 / 3 + 0.3 * mean, 0.7 + 0.3 * var), (0.49 / 3 + 0.51 * mean, 0.49 + 0.51 * var)):
        w, state = step(state, logits, mask)
        np.testing.assert_allclose([state["mean"], state["var"]], expected, rtol=1e-5)
        slow = np.where(p < expected[0], np.exp(-((p - expected[0]) ** 2) / (expected[1] / 2)), 1)
        np.testing.assert_allclose(w, slow, rtol=1e-5)
    assert (w < 1).any() and (w == 1).any()
    w, _ = step(dict(mean=jnp.float32(1 / 3), var=jnp.float32(0)), np.zeros_like(logits), mask)
    np.testing.assert_array_equal(w, 1)


def test_second_order_pooling():
    """Against all entries of the matrix; its length is 1, and the order of snippets does not matter."""
    h = np.maximum(np.random.default_rng(0).normal(size=(12, 6)), 0).astype(np.float32)
    h[:, 4] = 0
    pool = jax.jit(sal.second_order, static_argnums=(2, 3))
    found, square = np.asarray(pool(h, 12.0, 2, 1e-5)), plain_pool(h)
    row, column = np.triu_indices(6)
    np.testing.assert_allclose(found, square[row, column] * np.where(row == column, 1, 2**0.5), rtol=1e-5)
    np.testing.assert_allclose((found**2).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(pool(np.roll(h, 5, 0), 12.0, 2, 1e-5), found, rtol=1e-5)
    assert not found[(row == 4) | (column == 4)].any()  # the floor does not reach dead units
    assert not np.asarray(pool(0 * h, 12.0, 2, 1e-5)).any()
    # Twice the same snippets are the same video, but with T^2 and the floor only if the floor is 0 or the power 1.
    twice = np.concatenate([h, h])
    for power, floor, same in ((1, 1e-2, True), (2, 0, True), (2, 1e-2, False)):
        assert np.allclose(pool(twice, 24.0, power, floor), pool(h, 12.0, power, floor), atol=1e-4) == same


def test_generalized_cross_entropy():
    rng = np.random.default_rng(0)
    a, y, w = np.float32(rng.uniform(0.05, 0.95, 9)), np.float32(rng.integers(0, 2, 9)), np.float32(rng.random(9))
    gce, ones = jax.jit(sal.generalized_cross_entropy, static_argnums=3), np.ones(9, np.float32)
    yes, no = a[y > 0].astype(np.float64), a[y == 0].astype(np.float64)
    np.testing.assert_allclose(gce(a, y, ones, 1.0), (1 - yes).mean() + no.mean(), rtol=1e-5)  # |a - y|
    entropy = -np.log(yes).mean() - np.log(1 - no).mean()
    np.testing.assert_allclose(gce(a, y, ones, 1e-3), entropy, rtol=5e-3)
    np.testing.assert_allclose(gce(a, y, w, 0.5), plain_gce(*np.float64([a, y, w]), 0.5), rtol=1e-5)
    np.testing.assert_allclose(gce(a, 0 * y, ones, 1.0), a.mean(), rtol=1e-5)  # no snippet is positive


def test_background_is_nothing_for_equal_logits():
    assert sal.background(jnp.full(4, 2.5)) == pytest.approx(0, abs=1e-6)
    assert sal.background(jnp.array([1.0, 0, 0, 0])) > 0.05


def test_actionness_of_flow_alone_and_a_plain_classifier():
    """Without a share of rgb, a = f; with P = 0, s is the classifier of h."""
    config = options("dataset=thumos14", rgb_share=0.0)
    net = init(config)["net"]
    net = {**net, "propagation": jax.tree.map(jnp.zeros_like, net["propagation"])}
    x = np.asarray(batch().features[0])
    seen = jax.jit(partial(sal.forward, config))(net, x, jnp.ones(T))
    np.testing.assert_array_equal(seen.attention, seen.streams[1])
    h = np.maximum(plain_conv(jax.tree.map(np.asarray, net["joined"]), x), 0)
    logits = h @ net["classifier"]["kernel"] + net["classifier"]["bias"]
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repeat", [True, False])
def test_positions_of_a_test_video(repeat):
    """floor(i n / T); every snippet of a shorter video is kept, and each has the last position at or before it."""
    config = FrozenConfigDict(dict(num_snippets=750, repeat=repeat))
    both = jax.jit(lambda n: (*sal.positions(config, n), sal.back(n, sal.positions(config, n)[0], 2000)))
    for n in (1, 2, 3, 49, 374, 749, 750, 751, 1900):
        size, snippets, at = map(np.asarray, both(jnp.int32(n)))
        assert size == (750 if repeat else np.clip(n, 2, 750))
        expected = [min(i * n // size, n - 1) for i in range(size)]
        assert snippets[:size].tolist() == expected and snippets.max() < n
        if n <= 750:
            assert set(expected) == set(range(n))
        assert at[:n].tolist() == [max(i for i in range(size) if expected[i] <= t) for t in range(n)]
    assert both(jnp.int32(0))[1].max() == 0  # the empty rows of a last batch


def test_scores_are_those_of_the_equations():
    """A video of 23 snippets at 16 positions: CAS, attention and evidence by position, the video score from both."""
    config = options(RELEASED["thumos14"])
    params = init(config)
    x = np.random.default_rng(1).random((23, sum(DIMS))).astype(np.float32)
    video = Video(jnp.asarray(x), jnp.ones(23), jnp.zeros(CLASSES), jnp.zeros(CLASSES), jnp.int32(23))
    scores = jax.jit(methods.get(config).score)(params, video)
    one = Plain(config, jax.tree.map(np.asarray, params["net"]), x[np.arange(T) * 23 // T].astype(np.float64))
    e = (softmax(one.s, 1) + one.f[:, None] + one.r[:, None]) / 3
    at = [max(i for i in range(T) if i * 23 // T <= t) for t in range(23)]
    np.testing.assert_allclose(scores.extras.level, e, rtol=1e-4)
    for found, slow in ((scores.cas, e), (scores.attention, one.a), (scores.evidence, softmax(one.s, 1))):
        np.testing.assert_allclose(found, slow[at], rtol=1e-4)
    video_score = softmax(0.35 * top_mean(one.s, e, T // 8) + 0.65 * one.z[0])
    np.testing.assert_allclose(scores.video_score, video_score, rtol=1e-4)


def proposals(level, n, **changes):
    """Of one class at its values on the grid, for a video of n snippets of 1 s."""
    values = dict(reject=0.25, thresholds=(0.5,), prior=0.2, upsample=24, nms=0.4, decay=0.3) | changes
    level = np.asarray(level, np.float32)[:, None]
    padding = np.ones((3, 1), np.float32)  # beyond the positions of the video
    extras = sal.Extras(np.concatenate([level, padding]), np.int32(len(level)))
    own = Model(Scores(np.float32([0.5]), np.zeros((n, 1)), np.zeros(n), extras), FrozenConfigDict(values))
    return sal.propose((own,), own, Meta("v", n, 1.0, 1.0, 0.5, float(n)))


def test_runs_of_interpolated_values():
    """Edges are multiples of 1 / 24 of a position, of which this video has 4 for its 8 s; both ends can be in a run."""
    found = proposals([0.9, 0.1, 0.1, 0.9], 8)
    order = np.argsort(found.segments[:, 0])
    np.testing.assert_allclose(found.segments[order] * 12, [[0, 12], [61, 96]])  # (0.9 - 0.1) i / 24 falls to 0.4
    values = localize.upsample(np.array([[0.9], [0.1], [0.1], [0.9]]), 24)[:, 0]
    outer = values[12:15].mean()
    np.testing.assert_allclose(found.scores[order[0]], values[:12].mean() - outer + 0.2 * 0.5, rtol=1e-5)
    first = proposals([0.51, 0.1, 0.1], 3)  # the first value alone, which the released code loses
    np.testing.assert_allclose(first.segments, [[0, 1 / 24]])


def test_what_is_suppressed_returns_once_with_a_decayed_score():
    """Three runs at one peak: each overlaps the others; the lower ones decay by their overlap with the best alone."""
    thresholds = (0.2, 0.4, 0.6)
    level = [0.0, 0.3, 0.5, 0.7, 0.5, 0.3, 0.0]
    found = proposals(level, 7, thresholds=thresholds)
    alone = [proposals(level, 7, thresholds=(t,)) for t in thresholds]
    segments, scores = (np.concatenate(x) for x in zip(*((x.segments, x.scores) for x in alone)))
    np.testing.assert_allclose(found.segments, segments)
    best = int(scores.argmax())
    length = np.diff(segments, axis=1)[:, 0]
    iou = np.minimum(length, length[best]) / np.maximum(length, length[best])  # they lie in each other
    assert (iou > 0.1).all()
    np.testing.assert_allclose(
        proposals(level, 7, thresholds=thresholds, nms=0.1).scores,
        np.where(np.arange(3) == best, scores, scores * np.exp(-(iou**2) / 0.3)),
    )


@pytest.mark.parametrize(
    "terms, parts",
    [
        ("mil", {"mil"}),
        ("mil+act", {"mil", "act"}),
        ("mil+act+mix+mask", {"mil", "act", "mix"}),
        ("mil+sem+prop", {"mil", "sem"}),
        ("mil+bg+con", {"mil", "bg", "con"}),
    ],
)
def test_terms_choose_losses_and_groups(terms, parts):
    config = options(f"terms={terms}")
    params = jax.eval_shape(lambda: methods.get(config).init(jax.random.key(0), Spec(DIMS, CLASSES)))
    aux = jax.eval_shape(losses_of(config), params, batch(), jax.random.key(0))[1]
    metrics, tracked = aux if "mask" in terms else (aux, {})
    assert set(metrics) == {"loss", "attention", *parts}
    assert set(params) == {"net", *tracked} and ("state" in tracked) == ("mask" in terms)
    assert ("semantic" in params["net"]) == ("sem" in terms)
    assert ("propagation" in params["net"]) == ("prop" in terms)


def test_initial_weights_have_the_variance_of_the_full_layers(monkeypatch):
    layer = sal.init_layer(jax.random.key(0), (3, 30, 40), 90)
    assert layer["kernel"].shape == (3, 30, 40) and layer["bias"].shape == (40,)
    for x in layer.values():
        assert 0.8 * 90**-0.5 < np.abs(x).max() <= 90**-0.5 and abs(x.mean()) < 0.3 * 90**-0.5
    fans, made = {}, methods.get(options("", hidden=40))

    def record(key, shape, fan_in):
        fans[shape] = fan_in
        return {}

    monkeypatch.setattr(sal, "init_layer", record)
    net = made.init(jax.random.key(0), Spec((30, 20), 9))["net"]
    joined, rgb, flow = ((3, 50, 40), 150), ((3, 30, 40), 90), ((3, 20, 40), 60)
    assert fans == dict([joined, rgb, flow, ((40, 2), 40), ((40, 9), 40), ((820, 9), 1600)])
    np.testing.assert_allclose(np.std(net["propagation"]["kernel"]), (2 / 1600) ** 0.5, rtol=0.02)
    assert not np.asarray(net["propagation"]["bias"]).any()


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match="two streams, not 1"):
        methods.get(options()).init(jax.random.key(0), Spec((8,), 3))
    for name, value, message in (
        ("terms", "act", "give mil and any of"),
        ("terms", "mil+mil", "give mil and any of"),
        ("by", "e", "there are level, logits"),
        ("kernel", 4, "kernel must be odd"),
        ("q", 0.0, r"q in \(0, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            sal.method(options(**{name: value}))
    with pytest.raises(InputError, match="terms=mil\\+cat"):
        configs.get_config("terms=mil+cat")


def test_one_class_is_refused(config, tiny):
    from wsal_jax.data import pipeline

    data = pipeline.load(tiny, "train")
    methods.get(options()).check(data)
    with pytest.raises(InputError, match="one class only"):
        methods.get(options()).check(data._replace(class_names=["dive"]))
