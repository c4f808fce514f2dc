"""STAR against the equations, written out step by step in NumPy."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from configs import star as config_file
from wsal_jax import localize, method, methods
from wsal_jax.data import pipeline
from wsal_jax.fuse import fuse
from wsal_jax.method import Step
from wsal_jax.methods import star
from wsal_jax.types import InputError, Meta, Model, Scores, Video

N, D, C, M = 6, 5, 5, 4
STEP = Step(jax.random.key(0), jnp.int32(0))
LABELS = [[0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]]


@pytest.fixture
def eager():
    """Runs without jit, which is faster than compiling each model."""
    with jax.disable_jit():
        yield


def make(text="", n=N, **options):
    config = config_file.get_config(text)
    config.num_snippets = n
    config.method.update({"hidden": M, "dropout": 0.0, "max_classes": 5, **options})
    return methods.get(config.method)


def example(labels=LABELS[2], n=N, seed=0, dtype=np.float32, padding=0):
    rng = np.random.default_rng(seed)
    features = np.concatenate([rng.random((n, D)), 1e3 * rng.normal(size=(padding, D))])
    mask = np.r_[np.ones(n), np.zeros(padding)]
    labels = np.array(labels)
    counts = labels * rng.integers(1, 9, C)
    return Video(*(jnp.asarray(x, dtype) for x in (features, mask, labels, counts)), jnp.int32(n))


def params_of(made, seed=0, size=1.0):
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), method.Spec((D,), C)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), jnp.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def reference(params, features, mask, choose, num_steps, assembly):
    """The decoder as a loop over steps and segments; `choose(t, logits) -> y_t`. A list of its steps."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    attention, decoder = params["attention"], params["decoder"]
    h, memory, token, before, steps = np.zeros(M), np.zeros(M), C, None, []
    n = len(features)
    for t in range(num_steps):
        shared, alpha = h @ attention["hidden"], np.zeros(n)
        for i in range(n):
            gate = np.ones(M)
            if "position" in attention and t > 0:
                place = sum(before[k] * (k + 0.5) / n for k in range(n)) / before.sum() if before.any() else 0
                gate = sigmoid(attention["position"][i] * ((i + 0.5) / n - place) + shared)
            alpha[i] = sigmoid(attention["energy"] @ (gate * np.tanh(shared + features[i] @ attention["features"])))
        alpha *= mask
        x = sum(alpha[i] * features[i] for i in range(n))
        x = x / {"sum": 1, "mean": max(mask.sum(), 1)}[assembly]
        given = [x, decoder["embedding"][token]]
        ram = 0.0
        if "ram" in params:
            ram = params["ram"]["weight"] * alpha.sum()
            given.append([ram])
        cell = decoder["cell"]
        gates = np.concatenate(given) @ cell["input"] + h @ cell["recurrent"] + cell["bias"]
        write, forget, new, read = gates.reshape(4, M)
        memory = sigmoid(forget + 1) * memory + sigmoid(write) * np.tanh(new)
        h = sigmoid(read) * np.tanh(memory)
        logits = h @ decoder["out"]["kernel"] + decoder["out"]["bias"]
        token = choose(t, logits)
        steps.append({"attention": alpha, "logits": logits, "ram": ram, "token": token, "x": x})
        before = alpha
    return steps


def greedy(steps):
    """A choice among the remaining classes, never the end first; `steps` records the possible choices."""
    used, over = set(), False

    def choose(t, logits):
        nonlocal over
        possible = [c for c in range(C + 1) if c not in used and not (t == 0 and c == C)]
        probability = np.zeros(C + 1)
        probability[possible] = softmax(logits[possible])
        token = C if over else int(probability.argmax())
        over = over or token == C
        steps.append(probability)
        used.update({token} - {C})
        return token

    return choose


ROWS = ["stem", "stem+spa", "stem+cov", "stem+ram", "stem+spa+cov", "stem+spa+ram", "stem+cov+ram", "all"]


def test_the_rows_of_table_1():
    assert config_file.ROWS == (*ROWS[:-1], "stem+spa+cov+ram")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("terms, assembly", zip(ROWS, 4 * star.ASSEMBLIES))
def test_training_steps_and_loss_are_the_equations(terms, assembly):
    """Three videos of one, five and two classes, with a masked segment; with these weights each term matters."""
    weights = dict(sparsity=0.3, coverage=0.2, ram=0.1)
    made = make(f"terms={terms}", assembly=assembly, **weights)
    params = params_of(made)
    run = jax.jit(made.phases[0].loss)
    for seed, labels in enumerate(LABELS):
        video = example(labels, seed=seed)
        video = video._replace(mask=video.mask.at[2].set(0))
        classes = [c for c in range(C) if labels[c]]
        told = [*classes, *[C] * (6 - len(classes))]
        steps = reference(
            params,
            np.asarray(video.features, np.float64),
            np.asarray(video.mask, np.float64),
            lambda t, logits, told=told: told[t],
            len(classes) + 1,
            assembly,
        )
        expected = {"classification": -sum(np.log(softmax(s["logits"])[y]) for s, y in zip(steps, [*classes, C]))}
        real = steps[:-1]
        if "spa" in terms or terms == "all":
            expected["sparsity"] = 0.3 * sum(s["attention"].sum() for s in real)
        if "cov" in terms or terms == "all":
            expected["coverage"] = 0.2 * sum(
                max(0, sum(b["attention"][: i + 1].sum() - a["attention"][: i + 1].sum() for i in range(N)))
                for a, b in pairwise(real)
            )
        if "ram" in terms or terms == "all":
            errors = [(float(video.counts[c]) - s["ram"]) ** 2 for s, c in zip(real, classes)]
            expected["ram"] = 0.1 * sum(errors) / (2 * len(real))
        total, metrics = run(params, video, STEP)
        assert set(metrics) == {"loss", "attention", *expected}
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(total, sum(expected.values()), rtol=2e-4)
        mean = np.mean([s["attention"].sum() for s in real]) / 5
        np.testing.assert_allclose(metrics["attention"], mean, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_decoding_and_scores_are_the_equations(seed):
    made = make("terms=all", assembly="mean")
    params, video = params_of(made, seed, 2.0), example(seed=seed)
    probabilities = []
    features = np.asarray(video.features, np.float64)
    steps = reference(params, features, np.ones(N), greedy(probabilities), 5, "mean")
    decoded = jax.jit(partial(star.decode, num_steps=5, assembly="mean"))(params, video.features, video.mask)
    tokens = [s["token"] for s in steps]
    length = tokens.index(C) if C in tokens else 5
    reached = min(length + 1, 5)  # the end's step too
    assert decoded.token.tolist() == tokens
    for t in range(reached):
        np.testing.assert_allclose(decoded.attention[t], steps[t]["attention"], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(decoded.probability[t], probabilities[t], rtol=1e-3, atol=1e-6)
    of_class = [
        tokens.index(c) if c in tokens else int(np.argmax([p[c] for p in probabilities[:reached]])) for c in range(C)
    ]
    assert star.step_of_class(decoded).tolist() == of_class
    scores = jax.jit(made.score)(params, video)
    np.testing.assert_allclose(
        scores.video_score, [probabilities[t][c] for c, t in enumerate(of_class)], rtol=1e-3, atol=1e-6
    )
    attention = np.stack([steps[t]["attention"] for t in of_class], axis=1)
    np.testing.assert_allclose(scores.class_attention, attention, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        scores.attention, np.max([s["attention"] for s in steps[:length]], axis=0), rtol=1e-3, atol=1e-6
    )
    xi = np.stack([features @ np.asarray(decoded.weights[t, c], np.float64) for c, t in enumerate(of_class)], axis=1)
    np.testing.assert_allclose(scores.evidence, sigmoid(xi), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores.cas, attention * sigmoid(xi), rtol=1e-3, atol=1e-5)


def test_decoding_ends_and_says_no_class_twice():
    """Over many random decoders; both an early end and the limit must occur."""
    made = make(max_classes=3)
    run = jax.jit(partial(star.decode, num_steps=3, assembly="sum"))
    lengths = set()
    for seed in range(30):
        video = example(seed=seed)
        decoded = run(params_of(made, seed, 2.0), video.features, video.mask)
        tokens = decoded.token.tolist()
        length = tokens.index(C) if C in tokens else 3
        assert len(set(tokens[:length])) == length > 0 and tokens[length:] == [C] * (3 - length)
        np.testing.assert_allclose(decoded.probability.sum(axis=1), 1, rtol=1e-5)
        for t in range(length):
            assert not np.asarray(decoded.probability[t, tokens[:t]]).any()
        lengths.add(length)
    assert {1, 3} <= lengths


def test_gradcam_weights_are_differences_of_the_logit():
    """At the second step, whose state is not 0."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of(make()))
        video, rng = example(dtype=np.float64), np.random.default_rng(1)
        decoded = jax.jit(partial(star.decode, num_steps=2, assembly="mean"))(params, video.features, video.mask)
        tokens = iter(decoded.token.tolist())
        features = np.asarray(video.features)

        @jax.jit
        def logits_of(x):
            """The logits of `step` at the second step, with another x_t."""
            projected = video.features @ params["attention"]["features"]
            state, before, token = star.start(params), jnp.zeros(N), jnp.int32(C)
            for t in range(2):
                first = jnp.array(t == 0)
                args = state, before, token, first, "mean"
                state, said, of_x, _ = star.step(params, video.features, projected, video.mask, *args)
                before, token = said.attention, decoded.token[t]
            return of_x(x)

        x = jnp.asarray(reference(params, features, np.ones(N), lambda *_: next(tokens), 2, "mean")[1]["x"])
        for _ in range(3):
            direction = jnp.asarray(rng.normal(size=D))
            slope = (logits_of(x + 1e-5 * direction) - logits_of(x - 1e-5 * direction)) / 2e-5
            np.testing.assert_allclose(decoded.weights[1] @ direction, slope[:C], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("assembly, scale", [("sum", 1), ("mean", 1 / N)])
def test_a_linear_cell_has_the_gradcam_of_a_class_activation_map(assembly, scale, monkeypatch):
    """With d = x K W_o + b, w_t^c is a column of K W_o, and the contributions of the segments add up to the logit (eq.
    12)."""
    made = make("terms=stem")
    params, video = params_of(made), example()

    def linear(cell, state, given):
        h = given @ cell["input"][:, :M]
        return (h, state[1]), h

    monkeypatch.setattr(star, "lstm", linear)
    run = jax.jit(partial(star.decode, num_steps=3, assembly=assembly))
    decoded = run(params, video.features, video.mask)
    told = jnp.append(decoded.token[:-1], 0)
    said = jax.jit(partial(star.teach, assembly=assembly))(params, video.features, video.mask, told)
    decoder = params["decoder"]
    kernel = decoder["cell"]["input"][:, :M] @ decoder["out"]["kernel"]
    for t, token in enumerate([C, *decoded.token[:-1].tolist()]):
        np.testing.assert_allclose(decoded.weights[t], kernel[:D, :C].T, rtol=1e-5)
        xi = video.features @ decoded.weights[t].T
        rest = decoder["embedding"][token] @ kernel[D:] + decoder["out"]["bias"]
        np.testing.assert_allclose(said.logits[t, :C], scale * said.attention[t] @ xi + rest[:C], rtol=1e-4, atol=1e-5)


def test_coverage_loss_is_equation_17():
    attention, valid = np.random.default_rng(0).random((5, 4)), np.array([1, 1, 1, 1, 0.0])
    expected = 0
    for t in range(1, 4):
        expected += max(
            0, sum(sum(attention[t, k] for k in range(i + 1)) - attention[t - 1, : i + 1].sum() for i in range(4))
        )
    assert expected > 0
    np.testing.assert_allclose(star.coverage_loss(jnp.asarray(attention), jnp.asarray(valid)), expected, rtol=1e-5)
    falling = jnp.array([[0.5, 0.5], [0.1, 0.1]])
    assert star.coverage_loss(falling, jnp.ones(2)) == 0 < star.coverage_loss(falling[::-1], jnp.ones(2))


def test_order_of_the_classes():
    tokens, valid = star.targets(jnp.array([0.0, 1, 0, 1]), 4)
    assert tokens.tolist() == [1, 3, 4, 4] and valid.tolist() == [1, 1, 0, 0]
    tokens, valid = star.targets(jnp.ones(2), 6)
    assert tokens.tolist() == [0, 1, 2, 2, 2, 2] and valid.sum() == 2


def test_videos_of_one_and_five_classes_in_a_batch_and_in_any_order():
    made = make()
    params, loss = params_of(made), made.phases[0].loss
    videos = [example(labels, seed=i) for i, labels in enumerate(LABELS)]
    one_loss, one_score = jax.jit(loss), jax.jit(made.score)
    batch_loss, batch_score = (
        jax.jit(jax.vmap(loss, (None, 0, Step(0, None)))),
        jax.jit(jax.vmap(made.score, (None, 0))),
    )
    alone = [one_loss(params, video, STEP)[0] for video in videos]
    steps = Step(jax.random.split(STEP.key, 3), STEP.epoch)
    for order in ([0, 1, 2], [2, 0, 1]):
        batch = jax.tree.map(lambda *x: jnp.stack(x), *(videos[i] for i in order))
        together = batch_loss(params, batch, steps)[0]
        np.testing.assert_allclose(together, [alone[i] for i in order], rtol=1e-5)
        scores = batch_score(params, batch)
        for row, i in enumerate(order):
            np.testing.assert_allclose(scores.cas[row], one_score(params, videos[i]).cas, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 4, 23])
def test_padding_changes_nothing_whatever_the_length(n):
    """Shorter and longer than the grid; losses too."""
    made = make()
    params = params_of(made)
    short, long = example(n=n), example(n=n, padding=9)
    score, loss = jax.jit(made.score), jax.jit(made.phases[0].loss)
    a, b = score(params, short), score(params, long)
    for x, y in zip(a[1:], b[1:]):
        if x is None:
            continue
        np.testing.assert_allclose(y[:n], x, rtol=1e-5)
        assert not np.asarray(y[n:]).any()
    np.testing.assert_allclose(a.video_score, b.video_score, rtol=1e-5)
    losses = [loss(params, video, STEP)[0] for video in (short, long)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.usefixtures("eager")
def test_attention_of_the_grid_is_that_of_the_snippets_around():
    """A video of twice as many snippets, each twice, is the same video."""
    made = make()
    params, video = params_of(made), example()
    twice = video._replace(
        features=jnp.repeat(video.features, 2, axis=0), mask=jnp.ones(2 * N), length=jnp.int32(2 * N)
    )
    score = jax.jit(made.score)
    a, b = score(params, video), score(params, twice)
    np.testing.assert_allclose(b.video_score, a.video_score, rtol=1e-5)
    np.testing.assert_allclose(b.cas, jnp.repeat(a.cas, 2, axis=0), rtol=1e-5)


@pytest.mark.usefixtures("eager")
def test_masked_segments_have_no_attention_and_no_say():
    made = make()
    params, video = params_of(made), example()
    video = video._replace(mask=jnp.array([1.0, 0, 1, 1, 0, 1]))
    other = video._replace(features=video.features.at[jnp.array([1, 4])].set(100.0))
    score, loss = jax.jit(made.score), jax.jit(made.phases[0].loss)
    a, b = (score(params, each) for each in (video, other))
    assert not np.asarray(a.class_attention[jnp.array([1, 4])]).any()
    jax.tree.map(np.testing.assert_array_equal, a, b)
    losses = [loss(params, each, STEP)[0] for each in (video, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("n, assembly", [(1, "sum"), (N, "mean")])
def test_gradients_are_finite_at_the_edges(n, assembly):
    made = make(n=n, assembly=assembly)
    grad = jax.jit(jax.value_and_grad(made.phases[0].loss, has_aux=True))
    score = jax.jit(made.score)
    params, video = params_of(made), example(n=n)
    huge = {**params, "attention": {**params["attention"], "energy": jnp.full(M, -1e4)}}
    nobody = video._replace(mask=jnp.zeros(n))
    for weights, each in ((params, video), (params, nobody), (huge, video), (params, example([0] * 5, n=n))):
        (value, metrics), gradients = grad(weights, each, STEP)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, metrics, gradients)))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(score(weights, each)))


def test_gradient_of_the_loss():
    with jax.enable_x64(True):
        made = make(assembly="mean", sparsity=0.1, coverage=0.1, ram=0.1)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of(made))
        video = example(LABELS[1], dtype=np.float64)
        loss = jax.jit(lambda params: made.phases[0].loss(params, video, STEP)[0])
        assert loss(params).dtype == np.float64
        check_grads(loss, (params,), order=1, modes=["rev"])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("terms", ROWS)
def test_counts_matter_with_ram_alone(terms):
    made, video = make(f"terms={terms}", ram=1.0), example()
    params = params_of(made)
    with_ram = "ram" in terms or terms == "all"
    loss = jax.jit(made.phases[0].loss)
    losses = {
        float(loss(params, video._replace(counts=counts), STEP)[0])
        for counts in (video.counts, jnp.full(C, -1.0), jnp.full(C, 9.0))
    }
    assert len(losses) == (3 if with_ram else 1)
    assert ("ram" in params) == with_ram == ("counts" in made.supervision)


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


@pytest.mark.parametrize("terms", ["all", "stem+ram", "stem+cov"])
def test_data_without_counts_are_refused_with_ram(data, terms):
    made = make(f"terms={terms}")
    made.check(data)
    counts = data.counts.copy()
    counts[[3, 5]] = -1
    if terms == "stem+cov":
        made.check(data._replace(counts=counts))
        return
    without = "terms=stem" if terms == "stem+ram" else r"terms=stem\+spa\+cov"
    with pytest.raises(InputError, match=rf"2 of 12 \(the first is {data.metas[3].id}\).*:{without}$"):
        made.check(data._replace(counts=counts))


def test_a_video_of_too_many_classes_is_named(data):
    most = data.labels.sum(axis=1)
    make(max_classes=int(most.max())).check(data)
    named = rf"config\.method\.max_classes={int(most.max()) - 1}: .* {data.metas[most.argmax()].id} has"
    with pytest.raises(InputError, match=named):
        make(max_classes=int(most.max()) - 1).check(data)


@pytest.mark.usefixtures("eager")
def test_ram_is_an_input_of_the_cell():
    made = make("terms=stem+ram", ram=0.0)
    params, video = params_of(made), example()
    twice = {**params, "ram": {"weight": 2 * params["ram"]["weight"]}}
    loss = jax.jit(made.phases[0].loss)
    losses = [loss(p, video, STEP)[0] for p in (params, twice)]
    assert losses[0] != losses[1]


@pytest.mark.usefixtures("eager")
def test_dropped_dimensions():
    """If almost all dimensions are dropped, the loss does not depend on the features."""
    losses = []
    for dropout in (0.999999, 0.0):
        made = make(dropout=dropout)
        args = [(params_of(made), example(seed=s), STEP) for s in (0, 1)]
        loss = jax.jit(made.phases[0].loss)
        losses.append([loss(*each)[1]["classification"] for each in args])
    assert losses[0][0] == losses[0][1] and losses[1][0] != losses[1][1]


META = Meta("v", 12, 10.0, 10.0, 5.0, 12.0)
"""Snippet i is the second [i, i + 1)."""


def host_scores(attention, xi, video_score, localization="attended"):
    attention, xi = (np.asarray(x, np.float32) for x in (attention, xi))
    cas = {"attended": attention * sigmoid(xi), "attention": attention, "gradcam": sigmoid(xi)}[localization]
    return Scores(np.array(video_score), cas, attention.max(1), None, sigmoid(xi), attention)


def propose(scores, options, weights=(1.0,)):
    return star.propose([Model(one, options) for one in scores], Model(fuse(scores, weights), options), META)


def localize_config(**options):
    config = config_file.get_config("dataset=thumos14").localize
    with config.unlocked():
        config.update(options)
    return config


@pytest.mark.parametrize("localization", star.LOCALIZATIONS)
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 3.0)])
def test_proposals_are_scored_by_equation_14(localization, weights):
    rng = np.random.default_rng(0)
    models = [
        host_scores(rng.random((12, 3)), rng.normal(size=(12, 3)), video_score, localization)
        for video_score in ([0.4, 0.0, 0.3], [0.0, 0.0, 0.5])
    ][: len(weights)]
    fused = np.average([model.class_attention for model in models], axis=0, weights=weights)
    found = propose(models, localize_config(thresholds=(0.3, 0.6), nms=1.0, localization=localization), weights)
    expected = []
    for model in models:
        for c in (0, 2):
            for threshold in (0.3, 0.6):
                for start, end in localize.components(model.cas[:, c] > threshold * model.cas[:, c].max()):
                    values = []
                    for i in range(start, end):
                        a, s = float(fused[i, c]), float(model.evidence[i, c])
                        values.append({"attended": a * s, "attention": a, "gradcam": s}[localization])
                    expected.append((c, float(start), float(end), np.mean(values)))
    expected = {(c, s, e): score for c, s, e, score in expected}
    result = {(c, s, e): score for c, (s, e), score in zip(found.labels, found.segments.tolist(), found.scores)}
    assert set(result) == set(expected) and len(expected) > 4
    for key, value in expected.items():
        np.testing.assert_allclose(result[key], value, rtol=1e-5)


def test_the_attention_of_both_streams_is_fused_by_their_weights():
    """The flow attends to what RGB finds; its weight is 3 of 4."""
    rgb = host_scores(np.eye(12)[:, [3]] * 0.8, np.zeros((12, 1)), [0.9])
    flow = host_scores(np.eye(12)[:, [7]] * 0.4, np.full((12, 1), 20.0), [0.9])
    found = propose([rgb, flow], localize_config(thresholds=(0.5,)), (1.0, 3.0))
    result = sorted(zip(found.segments.tolist(), found.scores.tolist()))
    assert [segment for segment, _ in result] == [[3, 4], [7, 8]]
    np.testing.assert_allclose([score for _, score in result], [0.25 * 0.8 * 0.5, 0.75 * 0.4 * 1], rtol=1e-6)


def test_confidence_is_a_factor():
    scores = host_scores(np.eye(12)[:, [3, 7]], np.zeros((12, 2)), [0.9, 0.4])
    found = [propose([scores], localize_config(confidence=confidence)) for confidence in (False, True)]
    assert found[0].labels.tolist() == found[1].labels.tolist() == [0, 1]
    np.testing.assert_allclose(found[0].scores, [0.5, 0.5])
    np.testing.assert_allclose(found[1].scores, [0.45, 0.2])


def test_a_video_without_attention_has_no_detection():
    found = propose([host_scores(np.zeros((12, 2)), np.zeros((12, 2)), [0.6, 0.6])], localize_config())
    assert found.segments.shape == (0, 2) and len(found.labels) == len(found.scores) == 0


@pytest.mark.parametrize("option", ["assembly", "localization", "terms"])
def test_bad_options_are_named(option):
    with pytest.raises(InputError, match=rf"config\.method\.{option}='spam'"):
        make(**{option: "spam"})


def test_bad_switches_are_named():
    with pytest.raises(ValueError, match=r"terms=ram: there are stem, stem\+spa"):
        config_file.get_config("terms=ram")
