"""DGAM against the equations, written out in NumPy without the products that the code saves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy.ndimage import gaussian_filter1d

from configs import dgam as config_file
from wsal_jax import localize, method, methods, train
from wsal_jax.fuse import fuse
from wsal_jax.method import Step, options_of
from wsal_jax.methods import dgam
from wsal_jax.types import Meta, Model, Scores, Video

SIZES = {"hidden": 7, "latent": 3, "cvae_hidden": 6, "warmup": 4}


def make(text="", model="", **options):
    config = config_file.get_config(text)
    config.method.update({**SIZES, **options})
    return methods.get(config.method, model)


def example(n=6, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    labels = jnp.array([1.0, 0.0, 1.0], dtype)
    return Video(jnp.asarray(rng.random((n, 5)), dtype), jnp.ones(n, dtype), labels, labels, jnp.int32(n))


def params_of(made):
    """Random ones, which take less time to make than `init`, and biases that are not 0."""
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), method.Spec((5,), 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, jnp.float32), shapes)


def random(*shape, seed=1):
    return np.random.default_rng(seed).random(shape)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def layer(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def attention_of(params, x):
    return (
        1
        / (1 + np.exp(-layer(params["attention"]["out"], np.maximum(layer(params["attention"]["hidden"], x), 0))))[:, 0]
    )


def reconstruction_of(decoder, z, attention):
    hidden = np.maximum(layer(decoder["hidden0"], np.concatenate([z, attention[:, None]], 1)), 0)
    return layer(decoder["out"], np.maximum(layer(decoder["hidden1"], hidden), 0))


def posterior_of(encoder, x, attention):
    hidden = np.maximum(layer(encoder["hidden0"], np.concatenate([x, attention[:, None]], 1)), 0)
    return np.split(layer(encoder["out"], np.maximum(layer(encoder["hidden1"], hidden), 0)), 2, axis=1)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("labels", [[0, 1, 0], [1, 0, 1], [0, 0, 0]])
def test_discriminative_losses_are_equations_4_to_6(epsilon, labels):
    x, kernel, bias, attention = random(6, 5), random(5, 4, seed=2), random(4, seed=3), random(6, seed=4)
    mask = np.array([1, 1, 0, 1, 1, 1.0])
    y = np.array([*labels, 0]) / max(sum(labels), 1)
    foreground = (mask * attention) @ x / ((mask * attention).sum() + epsilon)
    background = (mask * (1 - attention)) @ x / (mask * (1 - attention)).sum()
    expected = -(y * np.log(softmax(foreground @ kernel + bias))).sum(), -np.log(softmax(background @ kernel + bias))[3]
    arrays = map(jnp.asarray, (x @ kernel, bias, attention, mask, np.array(labels, float)))
    np.testing.assert_allclose(
        jax.jit(partial(dgam.discriminative_losses, epsilon=epsilon))(*arrays), expected, rtol=1e-5
    )


def test_guide_is_equations_13_to_15_and_teaches_the_attention_alone():
    logits, attention, labels = 3 * random(12, 4), random(12, seed=2), np.array([1.0, 0, 1])
    mask = (~np.isin(np.arange(12), (4, 11))).astype(float)
    smoothed = gaussian_filter1d(softmax(logits)[:, :3] * mask[:, None], 1.5, axis=0)
    guides = np.maximum(smoothed[:, 0], smoothed[:, 2]), smoothed.sum(1)
    assert (smoothed[:, 0] > smoothed[:, 2]).any() and (smoothed[:, 0] < smoothed[:, 2]).any()
    expected = sum((np.abs(attention - g) * mask).sum() / 10 for g in guides)
    args = jnp.asarray(mask), jnp.asarray(labels), 1.5
    loss = jax.jit(lambda logits, attention: dgam.guide_loss(logits, attention, *args))
    np.testing.assert_allclose(loss(jnp.asarray(logits), jnp.asarray(attention)), expected, rtol=1e-5)
    of_logits, of_attention = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(logits), jnp.asarray(attention))
    assert not of_logits.any()
    signs = sum(np.sign(attention - g) for g in guides) * mask / 10
    np.testing.assert_allclose(of_attention, signs, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 30])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_smoothing_is_that_of_scipy(n, sigma):
    x = random(n, 2)
    np.testing.assert_allclose(
        jax.jit(dgam.smooth, static_argnums=1)(jnp.asarray(x), sigma), gaussian_filter1d(x, sigma, axis=0), rtol=1e-5
    )


def test_squared_error_is_that_of_the_reconstruction():
    out, hidden, x = {"kernel": random(6, 50), "bias": random(50, seed=2)}, random(9, 6, seed=3), random(9, 50, seed=4)
    direct = jax.jit(lambda out, hidden, x: jnp.mean((x - dgam.dense(out, hidden)) ** 2, axis=1))
    saving = jax.jit(dgam.squared_error)
    args = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (out, hidden, x))
    np.testing.assert_allclose(saving(*args), direct(*args), rtol=1e-4)
    with jax.enable_x64(True):
        args = jax.tree.map(jnp.asarray, (out, hidden, x))
        np.testing.assert_allclose(saving(*args), direct(*args), rtol=1e-10)
        of = lambda f: jax.jit(jax.grad(lambda *a: (f(*a) * jnp.arange(9)).sum(), (0, 1)))(*args)  # noqa: E731
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), of(saving), of(direct))


def test_products_are_those_of_each_kernel():
    with jax.enable_x64(True):
        x, *kernels, weights = (jnp.asarray(random(*shape)) for shape in ((9, 5), (5, 4), (5, 1), (5, 3), (9, 8)))
        separate = lambda x, *kernels: [x @ kernel for kernel in kernels]  # noqa: E731
        results = []
        for function in (dgam.products, separate):
            loss = lambda *args: jnp.sum(jnp.concatenate(function(*args), axis=1) ** 2 * weights)  # noqa: B023, E731
            results.append((function(x, *kernels), jax.jit(jax.grad(loss, range(4)))(x, *kernels)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *results)


def plain_losses(params, video, noises, r=1.0):
    """Equations 10 and 16, with `jnp` and every product made as it is written."""
    x, dense = video.features, lambda layer, x: x @ layer["kernel"] + layer["bias"]
    attention = jax.nn.sigmoid(dense(params["attention"]["out"], jax.nn.relu(dense(params["attention"]["hidden"], x))))

    def hidden(layers, x, given):
        first = jax.nn.relu(dense(layers["hidden0"], jnp.concatenate([x, given], 1)))
        return dense(layers["out"], jax.nn.relu(dense(layers["hidden1"], first)))

    given = jax.lax.stop_gradient(attention)
    mean, log_variance = jnp.split(hidden(params["encoder"], x, given), 2, axis=1)
    error = (x - hidden(params["decoder"], mean + noises[0] * jnp.exp(log_variance / 2), given)) ** 2
    divergence = (jnp.exp(log_variance) + (mean - r * given) ** 2 - 1 - log_variance) / 2
    cvae = error.mean() + 0.1 * divergence.mean()

    pooled = [(w * x).sum(0) / w.sum() for w in (attention, 1 - attention)]
    foreground, background = (jax.nn.log_softmax(dense(params["classifier"], p)) for p in pooled)
    target = video.labels / video.labels.sum()
    tcam = dgam.smooth(jax.nn.softmax(jax.lax.stop_gradient(x @ params["classifier"]["kernel"]))[:, :3], 1.0)
    guide = jnp.abs(attention - jnp.stack([jnp.maximum(tcam[:, 0], tcam[:, 2]), tcam.sum(1)], 1)).sum(1).mean()
    error = (x - hidden(params["decoder"], r * attention + noises[1], attention)) ** 2
    return cvae, -(target * foreground[:-1]).sum() - 0.03 * background[-1] + 0.1 * guide + 0.5 * error.mean()


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_are_those_of_the_plain_losses(index):
    """Also with respect to what the phase does not train."""
    with jax.enable_x64(True):
        made, video, key = make(), example(dtype=np.float64), jax.random.key(3)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of(made))
        noises = [jax.random.normal(k, (6, 3), jnp.float64) for k in (key, jax.random.split(key)[0])]
        loss = jax.jit(jax.value_and_grad(lambda p: made.phases[index].loss(p, video, Step(key, jnp.int32(9)))[0]))
        plain = jax.jit(jax.value_and_grad(lambda p: plain_losses(p, video, noises)[index]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), loss(params), plain(params))


def test_divergence_is_the_mean_of_the_log_ratio():
    """By 200,000 samples of q: E log q(z) - log p(z), in each of the three dimensions."""
    mean, log_variance, prior = random(4, 3), random(4, 3, seed=2) - 1, random(4, seed=3)
    deviation = np.exp(log_variance / 2)
    z = mean + deviation * np.random.default_rng(0).normal(size=(200_000, 4, 3))
    log_q = -(((z - mean) / deviation) ** 2) / 2 - np.log(deviation)
    log_p = -((z - prior[:, None]) ** 2) / 2
    arrays = map(jnp.asarray, (mean, log_variance, prior))
    np.testing.assert_allclose(jax.jit(dgam.kl_divergence)(*arrays), (log_q - log_p).mean((0, 2)), atol=5e-3)


@pytest.mark.parametrize("r", [1.0, 0.25])
def test_cvae_loss_is_equation_10(r):
    params, x, attention, noise = params_of(make()), random(6, 5), random(6, seed=2), random(6, 3, seed=3)
    mask = np.array([1, 1, 1, 0, 1, 1.0])
    mean, log_variance = posterior_of(params["encoder"], x, attention)
    back = reconstruction_of(params["decoder"], mean + noise * np.exp(log_variance / 2), attention)
    divergence = (np.exp(log_variance) + (mean - r * attention[:, None]) ** 2 - 1 - log_variance).mean(1) / 2
    arrays = map(jnp.asarray, (x, attention, mask, noise))
    error, scaled = jax.jit(partial(dgam.cvae_loss, r=r, beta=0.3))(params["encoder"], params["decoder"], *arrays)
    np.testing.assert_allclose(error, (mask * ((x - back) ** 2).mean(1)).sum() / 5, rtol=1e-5)
    np.testing.assert_allclose(scaled, 0.3 * (mask * divergence).sum() / 5, rtol=1e-5)


def test_reconstruction_loss_is_equation_12():
    params, x, attention, noise = params_of(make()), random(6, 5), random(6, seed=2), random(6, 3, seed=3)
    back = reconstruction_of(params["decoder"], 0.7 * attention[:, None] + noise, attention)
    mask = np.array([1, 0, 1, 1, 1, 0.0])
    arrays = map(jnp.asarray, (x, attention, mask, noise))
    loss = jax.jit(partial(dgam.reconstruction_loss, r=0.7))(params["decoder"], *arrays)
    np.testing.assert_allclose(loss, ((x - back) ** 2)[mask > 0].mean(), rtol=1e-5)


def test_gradient_of_the_reconstruction_loss_with_respect_to_the_attention():
    """By differences; and it comes through z and through the decoder's input, each of which is not all."""
    with jax.enable_x64(True):
        decoder = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of(make())["decoder"])
        x, attention, noise = (jnp.asarray(random(*shape, seed=i)) for i, shape in enumerate([(6, 5), (6,), (6, 3)]))

        def loss(attention, noise, r):
            return dgam.reconstruction_loss(decoder, x, attention, jnp.ones(6), noise, r)

        check_grads(jax.jit(lambda a: loss(a, noise, 0.7)), (attention,), order=1)
        gradient = jax.jit(jax.grad(loss), static_argnums=2)
        through_input = gradient(attention, noise + 0.7 * attention[:, None], 0.0)
        assert np.abs(through_input).max() > 1e-3
        assert np.abs(gradient(attention, noise, 0.7) - through_input).max() > 1e-3


@pytest.mark.parametrize("terms", config_file.TERMS)
def test_terms_and_warm_up_make_equation_16(terms):
    made, video = make(f"terms={terms}"), example()
    params, key = params_of(made), jax.random.key(3)
    weights = {"foreground": 1, "background": 0.03, "guide": 0.1, "reconstruction": 0.5}
    weights = dict(list(weights.items())[: 1 + config_file.TERMS.index(terms)])
    phase = made.phases[-1]
    loss = jax.jit(phase.loss)
    for epoch, warm in ((0, 0), (1, 0.25), (4, 1), (9, 1)):
        total, metrics = loss(params, video, Step(key, jnp.int32(epoch)))
        expected = sum(w * metrics[name] * (warm if name == "reconstruction" else 1) for name, w in weights.items())
        np.testing.assert_allclose(total, expected, rtol=1e-6)
    x = np.asarray(video.features, np.float64)
    np.testing.assert_allclose(metrics["attention"], attention_of(params, x).mean(), rtol=1e-5)
    assert [phase.name for phase in made.phases] == (["cvae", "attention"] if terms == "all" else ["attention"])
    if terms == "all":
        noise = jax.random.normal(jax.random.split(key)[0], (6, 3))
        back = reconstruction_of(params["decoder"], attention_of(params, x)[:, None] + noise, attention_of(params, x))
        np.testing.assert_allclose(metrics["reconstruction"], ((x - back) ** 2).mean(), rtol=1e-4)
        loss = jax.jit(made.phases[0].loss)
        losses = [loss(params, video, Step(key, jnp.int32(e)))[0] for e in (0, 1, 4, 9)]
        assert losses[0] == 0 and np.allclose(np.array(losses[1:]) / losses[2], [0.25, 1, 1], rtol=1e-5)


def test_the_reconstruction_may_go_without_a_warm_up():
    made, video = make(warm_reconstruction=False), example()
    loss = jax.jit(made.phases[1].loss)
    first, metrics = loss(params_of(made), video, Step(jax.random.key(3), jnp.int32(0)))
    weights = {"foreground": 1, "background": 0.03, "guide": 0.1, "reconstruction": 0.5}
    np.testing.assert_allclose(first, sum(w * metrics[name] for name, w in weights.items()), rtol=1e-6)
    assert jax.jit(made.phases[0].loss)(params_of(made), video, Step(jax.random.key(3), jnp.int32(0)))[0] == 0


def test_settings_of_the_data_sets():
    """Epochs of 6 and 150 steps in either phase; the authors' ActivityNet code does not warm up L_re."""
    for dataset, steps in (("thumos14", 6 * 6000), ("activitynet", 150 * 6000)):
        for text in ("", "as_released,"):
            config = config_file.get_config(f"{text}dataset={dataset}")
            assert (config.steps, config.method.warmup) == (2 * steps, 300)
            assert config.method.warm_reconstruction == (not text or dataset == "thumos14")


def test_a_model_of_flow_has_its_own_weight():
    video, epoch = example(), jnp.int32(4)
    losses = {}
    for model in ("rgb", "flow"):
        made = make(model=model)
        losses[model], metrics = jax.jit(made.phases[1].loss)(params_of(made), video, Step(jax.random.key(3), epoch))
    np.testing.assert_allclose(losses["rgb"] - losses["flow"], 0.2 * metrics["reconstruction"], rtol=1e-4)
    assert make(model="rgb") is make() is not make(model="flow")


@pytest.mark.parametrize("index", [0, 1])
def test_a_phase_changes_its_groups_alone(index):
    """Also under weight decay, and all that its groups hold."""
    made = make()
    params, phase = params_of(made), made.phases[index]
    videos = jax.tree.map(lambda x: jnp.stack([x, x]), example())
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state = optimizer.init({group: params[group] for group in phase.trains})
    step = jax.jit(partial(train.update, phase, optimizer))
    new, (adam, *_), *_ = step(params, state, videos, jax.random.key(0), jnp.int32(2))
    assert set(adam.mu) == set(phase.trains)
    for group in params:
        if group in phase.trains:
            assert all(np.asarray(mean).any() for mean in jax.tree.leaves(adam.mu[group])), group  # of the gradient
            assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (new[group], params[group]))))
        else:
            jax.tree.map(np.testing.assert_array_equal, new[group], params[group])


@pytest.mark.parametrize("n", [1, 6])
def test_attention_of_exactly_0_or_1_has_finite_gradients(n):
    made, video = make(), example(n)
    params = params_of(made)
    losses = [jax.jit(jax.value_and_grad(phase.loss, has_aux=True)) for phase in made.phases]
    for bias in (-1e4, 1e4):
        params["attention"]["out"]["bias"] = jnp.array([bias])
        scores = made.score(params, video)
        assert (scores.attention == (bias > 0)).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(scores))
        for loss in losses:
            (value, _), gradients = loss(params, video, Step(jax.random.key(0), jnp.int32(9)))
            assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_dropped_dimensions_are_seen_by_the_cvae():
    """With all but nothing left to see, attention and classifier do not depend on the features, the error does."""
    made, key = make(dropout=0.999999), jax.random.key(0)
    params = params_of(made)
    loss = jax.jit(made.phases[1].loss)
    metrics = [loss(params, example(seed=s), Step(key, jnp.int32(9)))[1] for s in (0, 1)]
    assert metrics[0]["foreground"] == metrics[1]["foreground"] and metrics[0]["attention"] == metrics[1]["attention"]
    assert metrics[0]["reconstruction"] != metrics[1]["reconstruction"]


def test_scores_are_those_of_the_equations():
    made, video = make(), example(9)
    params = params_of(made)
    x = np.asarray(video.features, np.float64)
    attention, logits = attention_of(params, x), layer(params["classifier"], x)
    scores = jax.jit(made.score)(params, video)
    pooled = softmax(layer(params["classifier"], attention @ x / attention.sum()))
    np.testing.assert_allclose(scores.video_score, pooled[:3], rtol=1e-4)
    np.testing.assert_allclose(scores.attention, attention, rtol=1e-5)
    np.testing.assert_allclose(scores.extras.logits, logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.evidence, softmax(logits)[:, :3], rtol=1e-4)
    tcam = softmax(x @ np.asarray(params["classifier"]["kernel"], np.float64))[:, :3]
    np.testing.assert_allclose(scores.cas, attention[:, None] * tcam, rtol=1e-4)


META = Meta("v", 12, 10.0, 10.0, 5.0, 12.0)
"""Snippet i is the second [i, i + 1)."""


def host_scores(attention, logits, video_score, padding=0):
    logits = np.pad(np.asarray(logits, np.float32), ((0, padding), (0, 1)), constant_values=9.0)
    cas = np.zeros((len(attention), len(video_score)), np.float32)
    return Scores(np.array(video_score), cas, np.asarray(attention, np.float32), dgam.Extras(logits, None))


def localize_config(text="", **options):
    config = config_file.get_config(text).localize
    config.update(options)
    return config


def propose(scores, options):
    """By attention, of one model or of several."""
    models = [Model(one, options) for one in scores]
    fused = Model(fuse(scores, [1.0] * len(scores)), options)
    return dgam.propose(dgam.by_attention, models, fused, META)


def test_segments_and_scores_are_those_of_equation_17():
    """Attention above 0.4 in [2, 6) and [11, 12); the flanks of the first are [1, 2) and [6, 7)."""
    attention = np.array([0, 0.2, 0.5, 1, 1, 0.5, 0.1, 0.3, 0, 0, 0.4, 0.8])
    logits = np.stack([np.arange(12.0), -(np.arange(12.0) ** 2)], axis=1)
    found = propose([host_scores(attention, logits, [0.9, 0.05], 4)], localize_config(thresholds=(0.41,)))
    assert found.segments.tolist() == [[11, 12], [2, 6]] and found.labels.tolist() == [0, 0]
    np.testing.assert_allclose(found.scores, [11 - 0.3 * 10, 3.5 - 0.3 * (1 + 6)], rtol=1e-6)


def test_segments_of_each_threshold_and_class_are_thinned_out():
    rng = np.random.default_rng(0)
    attention, logits = rng.random(12), rng.normal(size=(12, 3))
    config = localize_config(thresholds=(0.2, 0.5, 0.8), nms=0.3)
    found = propose([host_scores(attention, logits, [0.4, 0.0, 0.4])], config)
    assert set(found.labels.tolist()) == {0, 2}
    for label in (0, 2):
        segments, scores = [], []
        for threshold in config.thresholds:
            for start, end in localize.components(attention > threshold).tolist():
                fine = np.arange(24_000) / 2000  # the integrals as sums
                weight = attention[fine.astype(int)]

                def mean(a, b, fine=fine, weight=weight, label=label):
                    part = (a <= fine) & (fine < b)
                    return np.average(logits[fine[part].astype(int), label], weights=weight[part]) if part.any() else 0

                flank = (end - start) / 4
                segments.append([float(start), float(end)])
                scores.append(mean(start, end) - 0.3 * (mean(start - flank, start) + mean(end, end + flank)))
        kept = localize.nms(np.array(segments), np.array(scores), 0.3)
        assert found.segments[found.labels == label].tolist() == [segments[i] for i in kept]
        np.testing.assert_allclose(found.scores[found.labels == label], np.array(scores)[kept], rtol=1e-3, atol=1e-3)


def test_both_streams_are_merged():
    """Class 1 is found by one model alone; of the segments both find, the one of the higher score stays."""
    logits = np.ones((12, 2))
    rgb = host_scores([0] * 4 + [1] * 4 + [0] * 4, 2 * logits, [0.6, 0.0])
    flow = host_scores([0] * 4 + [1] * 5 + [0] * 3, 5 * logits, [0.6, 0.4])
    found = propose([rgb, flow], localize_config())
    assert sorted(zip(found.labels.tolist(), found.segments.tolist(), found.scores.tolist())) == [
        (0, [4, 9], 5.0),
        (1, [4, 9], 5.0),
    ]
    found = propose([rgb, flow], localize_config(nms=0.9))
    assert sorted(found.segments[found.labels == 0].tolist()) == [[4, 8], [4, 9]]


@pytest.mark.parametrize("text", ["", "as_released"])
def test_a_video_of_class_0_alone_has_detections(text):
    made, video = make(text), example(12)
    params = params_of(made)
    params["classifier"]["bias"] = jnp.array([20.0, 0, 0, 0])
    scores = jax.tree.map(np.asarray, jax.jit(made.score)(params, video))
    one = Model(scores, localize_config(text, thresholds=(0.1,)))
    for models in ([one], [one, one]):
        found = made.propose(models, one, META)
        assert len(found.labels) and not found.labels.any()


def test_a_video_without_attention_has_no_detection():
    found = propose([host_scores([0] * 12, np.ones((12, 2)), [0.6, 0.6])], localize_config())
    assert found.segments.shape == (0, 2) and len(found.labels) == len(found.scores) == 0


def released_of(attention, own, other, classes, share, threshold, meta, n, smooth):
    """The steps of the released code, value by value."""
    index = [i * meta.length // n for i in range(n)]
    found = []
    for c in classes:

        def sequence(f):
            at = [f(index[k]) for k in range(n)]
            at.append(2 * at[-1] - at[-2])
            return np.array([at[j // 20] + (at[j // 20 + 1] - at[j // 20]) * (j % 20) / 20 for j in range(20 * n)])

        level = sequence(lambda t: 0.8 * attention[t] * own[t, c] + 0.2 * attention[t] ** 2)  # noqa: B023
        if smooth:
            level = gaussian_filter1d(level, smooth)
        value = sequence(lambda t: attention[t] ** 2 * (share * own[t, c] + (1 - share) * other[t, c]))  # noqa: B023
        start = None
        for j in range(20 * n + 1):
            above = j < 20 * n and level[j] > threshold
            if above and start is None:
                start = j
            if not above and start is not None:
                flank = (j - start) // 4 + 1
                left, right = value[max(start - flank, 0) : start], value[j : j + flank]
                score = value[start:j].mean() - 0.3 * sum(x.mean() if len(x) else 0 for x in (left, right))
                seconds = [k / (20 * n) * meta.length * 16 / 25 for k in (start, j)]
                found.append((c, *seconds, score))
                start = None
    return found


@pytest.mark.parametrize("dataset, n, smooth", [("thumos14", 60, 0), ("activitynet", 200, 25.0), ("thumos14", 430, 0)])
def test_released_rules_against_their_steps(dataset, n, smooth):
    text = f"as_released,dataset={dataset}"
    config = config_file.get_config(text)
    rng = np.random.default_rng(n)
    meta = Meta("v", n, 25.0, 16.0, 7.5, 16 * n / 25)
    size = min(n, 200 if dataset == "activitynet" else 400)
    meta = meta._replace(offset=8.0)
    rough = gaussian_filter1d(rng.normal(size=(2, n)), 3, axis=1)
    attention = 1 / (1 + np.exp(-12 * rough - 1))
    streams = []
    config.localize.nms = 1.0  # all are kept
    for i, model in enumerate(("rgb", "flow")):
        extras = dgam.Extras(None, rng.random((n, 3)))
        scores = Scores(np.array([0.7, 0.0, 0.25]), np.zeros((n, 3)), attention[i], extras)
        streams.append(Model(scores, options_of(config.localize, model, "config.localize")))
    expected = []
    for own, other in (streams, streams[::-1]):
        share, threshold = own.options.own_share, own.options.mask_threshold
        tcams = own.scores.extras.tcam, other.scores.extras.tcam
        expected += released_of(own.scores.attention, *tcams, (0, 2), share, threshold, meta, size, smooth)
    found = methods.get(config.method).propose(streams, streams[0], meta)
    result = sorted(zip(found.labels.tolist(), *found.segments.T.tolist(), found.scores.tolist()))
    assert len(expected) > 4
    np.testing.assert_allclose(result, sorted(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dataset, shares", [("thumos14", [0.35, 0.65]), ("activitynet", [0.5, 0.5])])
def test_released_options_of_each_stream(dataset, shares):
    config = config_file.get_config(f"as_released,dataset={dataset}").localize
    of = [options_of(config, model, "config.localize") for model in ("rgb", "flow")]
    assert [x.own_share for x in of] == shares
    assert [x.mask_threshold for x in of] == ([0.03, 0.08] if dataset == "thumos14" else [0.01, 0.01])


def test_bad_switches_are_named():
    with pytest.raises(ValueError, match=r"terms=bg: there are fg, fg\+bg"):
        config_file.get_config("terms=bg")
