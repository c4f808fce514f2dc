"""The loop: seeds, phases, rounds, devices, disk or device, and an interrupted run."""

import os
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from wsal_jax import checkpoint, method, methods, sharding, signals, train
from wsal_jax.data import bank, pipeline
from wsal_jax.method import Method, Phase, Step
from wsal_jax.types import InputError, Scores, Video


@pytest.fixture
def data(tiny):
    return pipeline.load(tiny, "train")


def one_device():
    return sharding.make_mesh(jax.devices()[:1])


def assert_equal(a, b, seed=slice(None)):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x)[seed], np.asarray(y)), a, b)


def toy(**changes):
    """Two linear groups, one phase each; the loss of either depends on both."""

    def init(key, spec):
        a, b = jax.random.split(key)
        shape = (sum(spec.dims), spec.num_classes)
        return {"first": jax.random.normal(a, shape), "second": jax.random.normal(b, shape)}

    def loss(sign, params, video, step):
        x = (video.mask[:, None] * video.features).mean(0)
        value = ((x @ (params["first"] + sign * params["second"]) - video.labels) ** 2).sum()
        return value, {"loss": value, "epoch": step.epoch.astype(jnp.float32), "mask": video.mask.mean()}

    def score(params, video):
        cas = video.features @ params["first"] * video.mask[:, None]
        return Scores(cas.max(0), cas, video.mask)

    phases = (Phase("a", partial(loss, 1), ("first",), 2), Phase("b", partial(loss, -1), ("second",), 1))
    return Method(init, phases, score)._replace(**changes)


def test_seeds_are_trained_alike_together_and_alone(config, data, tmp_path):
    maan = methods.get(config.method)
    config.seeds = 3
    together = train.fit(maan, data, ["rgb"], config, one_device(), tmp_path / "three")
    config.seeds, config.seed = 1, 2
    alone = train.fit(maan, data, ["rgb"], config, one_device(), tmp_path / "one")
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
        np.testing.assert_allclose(x[2], y[0], rtol=1e-4, atol=1e-6)
        assert not np.allclose(x[0], y[0], rtol=1e-4, atol=1e-6) or not np.asarray(y).any()


def test_reading_from_disk_trains_the_same_model(config, data, tmp_path, monkeypatch):
    """By dispatches of one step, stopped by a signal between two logs, and continued."""
    maan, streams, config.log_every = methods.get(config.method), ["rgb", "flow"], 3
    config.checkpoint_every = 6
    monkeypatch.setattr(bank, "DISPATCH_BYTES", 1)
    logs, original = {"device": {}, "stream": {}}, bank.feed
    config.data.placement = "device"
    run = lambda log: train.fit(maan, data, streams, config, one_device(), tmp_path / config.data.placement, log)  # noqa: E731
    device = run(logs["device"].__setitem__)

    def feed(*args):
        def batches():
            for steps, features in taken:
                if steps.start == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield steps, features

        videos, taken = original(*args)
        return videos, batches()

    config.data.placement = "stream"
    monkeypatch.setattr(bank, "feed", feed)
    with pytest.raises(signals.Stopped, match="after step 4 of 6"):
        run(logs["stream"].__setitem__)
    monkeypatch.setattr(bank, "feed", original)
    assert_equal(device, run(logs["stream"].__setitem__))
    assert list(logs["device"]) == [3, 6] and list(logs["stream"]) == [3, 4, 6]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), logs["device"][3], logs["stream"][3])
    jax.tree.map(
        lambda whole, *parts: np.testing.assert_allclose(whole, (parts[0] + 2 * parts[1]) / 3, rtol=1e-5),
        *(logs["device"][6], logs["stream"][4], logs["stream"][6]),
    )


def test_devices_share_the_revision(data, monkeypatch):
    """Eight devices with two videos each, and one with two at a time: the same arithmetic."""
    monkeypatch.setattr(pipeline, "PADDED", 2)
    run = toy(revise=lambda keep, scores, labels: keep * (scores.cas @ labels < 0.5))
    params = jax.tree.map(lambda x: x[None], run.init(jax.random.key(0), method.Spec((16,), 3)))
    keep = np.random.default_rng(0).random((1, data.lengths.sum())) < 0.8
    one, eight = (train.revise(run, params, keep, data, ["rgb"], mesh) for mesh in (one_device(), sharding.make_mesh()))
    np.testing.assert_array_equal(one, eight)
    assert 0 < one.sum() < keep.sum() and not (one & ~keep).any()


@pytest.mark.parametrize("placement", ["device", "stream"])
def test_eight_devices_have_the_gradients_of_one(config, data, tmp_path, placement):
    maan = methods.get(config.method)
    config.optimizer = dict(name="sgd", learning_rate=1.0)  # parameters move by the gradient
    config.steps, config.seeds, config.data.placement = 1, 2, placement
    before = jax.device_get(train.init(maan, method.Spec((data.dims["rgb"],), 3), config, 1, "rgb").params)
    after = [
        jax.device_get(train.fit(maan, data, ["rgb"], config, mesh, tmp_path / str(mesh.size)))
        for mesh in (one_device(), sharding.make_mesh())
    ]
    for start, one, eight in zip(*map(jax.tree.leaves, (before, *after))):
        assert np.abs(one - start).max() > 1e-4
        np.testing.assert_allclose(one - start, eight - start, atol=1e-6)


def test_a_batch_is_split_over_the_devices(config, data):
    mesh = sharding.make_mesh()
    videos = Video(*(np.zeros((2, 8, 3)) for _ in range(4)), np.zeros((2, 8), int))
    split = jax.jit(lambda x: jax.lax.with_sharding_constraint(x, sharding.split(mesh, 1)))(videos)
    assert split.features.addressable_shards[0].data.shape == (2, 1, 3)


@pytest.mark.parametrize("interrupt_at", [1, 2, 5])
def test_a_continued_run_is_the_same_run(config, data, tmp_path, interrupt_at):
    """Killed after a dispatch, with a checkpoint at step 4 or none yet."""
    run = toy()
    whole = train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "whole")
    calls = []

    def interrupt(step, metrics):
        calls.append(step)
        if len(calls) == interrupt_at:
            raise KeyboardInterrupt

    config.log_every = 1
    with pytest.raises(KeyboardInterrupt):
        train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "parts", interrupt)
    assert checkpoint.latest(tmp_path / "parts") == (4 if interrupt_at > 4 else None)
    config.log_every = 2
    continued = train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "parts")
    assert_equal(whole, continued)


def test_a_signal_ends_training_after_the_dispatch_with_all_saved(config, data, tmp_path):
    """A run stopped by SIGTERM, then by Ctrl-C, then finished, equals an uninterrupted run."""
    run, config.log_every = toy(), 1
    whole = train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "whole")
    handlers = [signal.getsignal(number) for number in signals.SIGNALS]
    for number, at in ((signal.SIGTERM, 2), (signal.SIGINT, 3)):
        log = lambda step, _: os.kill(os.getpid(), number) if step == at else None  # noqa: B023, E731
        with pytest.raises(signals.Stopped, match=f"{number.name} after step {at} of 6 of rgb") as stopped:
            train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "parts", log)
        assert stopped.value.status == 128 + number and checkpoint.latest(tmp_path / "parts") == at
    assert [signal.getsignal(number) for number in signals.SIGNALS] == handlers
    assert_equal(whole, train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "parts"))


def test_a_damaged_checkpoint_costs_the_steps_after_the_one_before(config, data, tmp_path, capfd):
    config.checkpoint_every = 2
    whole = train.fit(toy(), data, ["rgb"], config, one_device(), tmp_path)
    path = tmp_path / "6" / "state" / "params" / "first" / "0.0.0"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert_equal(whole, train.fit(toy(), data, ["rgb"], config, one_device(), tmp_path))
    told = capfd.readouterr().err
    assert "warning" in told and "state/params/first" in told and "Continuing from step 4" in told
    assert checkpoint.steps(tmp_path) == [4, 6] and (tmp_path / "6.damaged").exists()


def test_a_second_ctrl_c_does_not_wait():
    with signals.noted() as stop:
        assert stop() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() == signal.SIGINT
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 5)


@pytest.mark.parametrize(
    ("bad", "kind", "where"),
    [
        ("a", "gradient", "in step 1 of rgb, phase a, seed 0, .*features may be damaged.*no checkpoint yet"),
        ("b", "loss", "in step 7 of rgb, phase b, seed 0, .*learning_rate=0.01 may .*checkpoint of step 6 is kept"),
    ],
)
def test_training_stops_at_a_loss_or_gradient_that_is_not_finite(config, data, tmp_path, bad, kind, where):
    """Phase a has steps 1 to 6, b 7 to 9. The gradient of a square root at 0 is not finite, its value is."""
    config.batch_size, config.steps, config.log_every, config.checkpoint_every = 4, 12, 12, 6
    config.optimizer = dict(name="sgd", learning_rate=0.01)
    config.patience = 3

    def broken(original, group, params, *args):
        value, metrics = original(params, *args)
        zero = 0 * params[group].sum()
        return value + (jnp.sqrt(zero) if kind == "gradient" else zero / 0), metrics

    run = toy()
    phases = [
        phase._replace(loss=partial(broken, phase.loss, phase.trains[0])) if phase.name == bad else phase
        for phase in run.phases
    ]
    seen = []
    with pytest.raises(InputError, match=f"^training diverged: {where}"):
        log = lambda step, _: seen.append(step)  # noqa: E731
        train.fit(run._replace(phases=tuple(phases)), data, ["rgb"], config, one_device(), tmp_path, log)
    assert seen == [6] * (bad == "b") and checkpoint.latest(tmp_path) == (6 if bad == "b" else None)


def test_the_first_bad_step_and_its_seed_are_named(config, tmp_path, capfd):
    losses, before, config.seed = np.ones((5, 3), np.float32), np.array([0, 2, 0]), 7
    check = lambda: train.refuse_divergence(losses, before, range(10, 15), "aabbb", config, "flow", tmp_path)  # noqa: E731
    assert check().tolist() == [0, 0, 0] and not capfd.readouterr().err
    losses[3, 0], losses[2, 1], losses[4] = np.inf, np.nan, np.nan
    config.patience = 3
    assert check().tolist() == [2, 1, 1]
    told = capfd.readouterr().err
    assert "5 of the last 15 updates of flow were skipped, the first in step 13, phase b, seed 8" in told
    config.patience = 1
    with pytest.raises(InputError, match="step 13 of flow, phase b, seed 8"):
        check()
    config.patience, losses[:2, 1] = 4, np.nan  # with two of the dispatch before
    with pytest.raises(InputError, match=r"step 9 of flow, phase a, seed 8, the loss or .* and so in 3 after it"):
        check()


def test_a_step_that_is_not_finite_changes_nothing(config, data, tmp_path):
    """Parameters, optimizers and tracked groups, of the seeds that it hits. An epoch is a step; step 1 is bad.

    `fit` guards against it only in a dispatch that has one.
    """

    def loss(params, video, step):
        value, metrics = toy().phases[0].loss(params, video, step)
        bad = (step.epoch == 1) & (params["second"][2, 0] > 0)
        return value * jnp.where(bad, jnp.nan, 1.0), (metrics, {"tracked": params["tracked"] + 1})

    init = lambda key, spec: toy().init(key, spec) | {"tracked": jnp.zeros(2)}  # noqa: E731
    run, mesh = toy(init=init, phases=(Phase("a", loss, ("first",), tracks=("tracked",)),)), one_device()
    config.batch_size, config.seeds = 12, 3
    keys = train.make_keys(config, "rgb")
    videos, _ = bank.feed(data, ["rgb"], keys, [range(2)], config, mesh)
    state = train.init(run, method.Spec((data.dims["rgb"],), 3), config, int(data.lengths.sum()), "rgb")
    hit = np.asarray(state.params["second"])[:, 2, 0] > 0
    assert hit.tolist() == [True, False, True]
    made = train.make_run(run, FrozenConfigDict(config), 1, mesh)
    states = [jax.device_get(state)]
    for step in range(2):
        state, sums, counts, losses = made(state, keys, videos, np.arange(step, step + 1), None, guarded=True)
        states.append(jax.device_get(state))
    assert np.isfinite(losses[0]).tolist() == (~hit).tolist() == counts["a/epoch"].astype(bool).tolist()
    assert sums["a/epoch"].tolist() == [0, 1, 0]
    for first, second, third in zip(*(jax.tree.leaves((x.params, x.optimizers)) for x in states)):
        assert_equal(second[hit], third[hit])
        changed = (first[1] != second[1]).any()  # all but the group that is not trained
        assert changed == (second[1] != third[1]).any()
    config.steps, config.log_every = 2, 2
    after = train.fit(run, data, ["rgb"], config, mesh, tmp_path)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), after, states[-1].params)


def test_parameters_that_are_not_finite_are_neither_saved_nor_returned(config, data, tmp_path):
    """A gradient of 1e36 and SGD of rate 1e6: the loss was finite in the only step."""

    def loss(params, video, step):
        return params["a"] * 1e36, {"loss": jnp.zeros(())}

    run = Method(lambda key, spec: {"a": jnp.zeros(())}, (Phase("a", loss, ("a",)),), toy().score)
    config.optimizer, config.steps = dict(name="sgd", learning_rate=1e6), 1
    with pytest.raises(InputError, match="parameters a of step 1 of rgb are not finite"):
        train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run") is None
    checkpoint.save(tmp_path / "old", 1, {"params": {"a": np.float32([np.nan])}})
    with pytest.raises(InputError, match=r"parameters a of step 1 in .*old are not finite"):
        train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "old")


def test_no_two_draws_share_their_noise(config, data, tmp_path):
    """All steps, seeds, videos and models draw different noise."""

    def loss(params, video, step):
        noise = jax.random.uniform(step.key)
        return params["a"], {"loss": params["a"], "noise": noise, "square": noise**2}

    run = Method(lambda key, spec: {"a": jax.random.uniform(key)}, (Phase("a", loss, ("a",)),), toy().score)
    config.steps, config.log_every, config.seeds = 3, 1, 2
    config.optimizer = dict(name="sgd", learning_rate=0.0)
    seen = []
    for model in ("rgb", "flow"):
        log = lambda step, metrics: seen.append(metrics)  # noqa: E731
        train.fit(run, data, [model], config, one_device(), tmp_path / model, log)
    noise, square = (np.array([x[f"a/{name}"] for x in seen]) for name in ("noise", "square"))
    assert len(np.unique(noise.round(5))) == 2 * 3 * 2
    assert (square - noise**2 > 0.01).all()  # the variance over a batch of 8; 1/12 is expected
    initial = np.array([seen[i]["a/loss"] for i in (0, 3)])
    assert len(np.unique(initial.round(5))) == 4


def test_a_finished_run_is_not_trained_again(config, data, tmp_path):
    run = toy()
    steps = []
    first = train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "run")
    again = train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "run", lambda step, _: steps.append(step))
    assert_equal(first, again)
    assert steps == []


def test_phases_take_turns_by_epoch_and_train_only_their_groups(config, data, tmp_path):
    """12 videos in batches of 4: 3 steps an epoch; phase a for 2 epochs, b for 1, then a again."""
    config.batch_size, config.steps, config.log_every, config.checkpoint_every = 4, 12, 1, 1
    config.optimizer = dict(name="adamw", learning_rate=1e-2, weight_decay=0.1)
    run = toy()
    states, seen = [], []
    train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "run", lambda step, m: seen.append(m))
    assert ["a" if "a/loss" in m else "b" for m in seen] == ["a"] * 6 + ["b"] * 3 + ["a"] * 3
    assert [float((m.get("a/epoch", m.get("b/epoch")))[0]) for m in seen] == [0] * 9 + [1] * 3
    for config.steps in (6, 9):
        states.append(train.fit(run, data, ["rgb"], config, one_device(), tmp_path / str(config.steps)))
    assert_equal(states[0]["first"], states[1]["first"])
    assert (states[0]["second"] != states[1]["second"]).any()
    start = train.init(run, method.Spec((data.dims["rgb"],), 3), config, 1, "rgb").params
    assert_equal(start["second"], states[0]["second"])


def test_every_round_begins_with_the_first_phase_and_epoch(config):
    config.steps = 12
    index, cycle = train.turn(toy(), config, 3, np.arange(24))
    assert index.tolist() == 2 * ([0] * 6 + [1] * 3 + [0] * 3) and cycle.tolist() == 2 * ([0] * 9 + [1] * 3)


def test_the_compiled_step_splits_the_batch(config, data):
    """Gradients are summed over devices only if each device has computed those of its own videos."""
    run, mesh = toy(), sharding.make_mesh()
    keys = train.make_keys(config)
    videos, _ = bank.feed(data, ["rgb"], keys, [range(1)], config, mesh)
    state = sharding.replicate(mesh, train.init(run, method.Spec((data.dims["rgb"],), 3), config, 1))
    keys = jax.random.wrap_key_data(sharding.replicate(mesh, jax.random.key_data(keys)))
    made = train.make_run(run, FrozenConfigDict(config), 1, mesh)
    assert "all-reduce" in made.lower(state, keys, videos, np.arange(1), None).compile().as_text()


def test_update_is_the_mean_gradient_of_the_trained_group(data):
    """Against a plain loop over videos, with SGD."""
    run = toy()
    rng = np.random.default_rng(0)
    videos = Video(*(rng.normal(size=s).astype(np.float32) for s in ((5, 4, 6), (5, 4), (5, 3), (5, 3))), np.full(5, 4))
    params = run.init(jax.random.key(0), method.Spec((6,), 3))
    optimizer = optax.sgd(1.0)
    new, _, metrics, loss = train.update(
        run.phases[0], optimizer, params, optimizer.init({}), videos, jax.random.key(1), jnp.int32(0)
    )
    one = [
        jax.value_and_grad(lambda p, *v: run.phases[0].loss(p, Video(*v), Step(None, jnp.int32(0)))[0])(params, *video)
        for video in zip(*videos)
    ]
    mean = sum(gradient["first"] for _, gradient in one) / 5
    np.testing.assert_allclose(new["first"], params["first"] - mean, rtol=1e-4, atol=1e-5)
    assert loss == metrics["loss"]
    np.testing.assert_allclose(metrics["loss"], sum(value for value, _ in one) / 5, rtol=1e-5)


def test_rounds_remove_snippets_and_never_a_whole_video(config, data, tmp_path):
    """After round 1 the even snippets stay; after round 2 none would, so all videos stay as they are."""
    seen = []

    def revise(keep, scores, labels):
        even = jnp.arange(keep.size) % 2 == 0
        return jnp.where((keep * ~even).sum() > 0, keep * even, 0 * keep)

    run = toy(rounds=3, revise=revise)
    config.batch_size, config.steps, config.log_every, config.num_snippets = 12, 4, 4, 40
    log = lambda step, metrics: seen.append((step, float(metrics["a/mask"][0])))  # noqa: E731
    train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "run", log)
    shapes = len(pipeline.batches(data, pipeline.PADDED))
    assert train.make_revise(run, one_device())._cache_size() == shapes  # the second revision compiled nothing
    assert [step for step, _ in seen] == [4, 8, 12]
    assert seen[0][1] == 1 and 0.4 < seen[1][1] < 0.6 and 0.4 < seen[2][1] < 0.6


def test_rounds_phases_and_seeds_compile_the_loop_once(config, data, tmp_path, monkeypatch):
    compiled = []
    original = train.make_run

    def counted(*args):
        run = original(*args)
        compiled.append(run)
        return run

    monkeypatch.setattr(train, "make_run", counted)
    config.seeds, config.batch_size, config.log_every = 2, 4, 3
    run = toy(rounds=2, revise=lambda keep, scores, labels: keep)
    train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "run")
    config.checkpoint_every = 3
    assert [run._cache_size() for run in compiled] == [3]  # dispatches of 3, 1 and 2 steps
    train.fit(run, data, ["rgb"], config, one_device(), tmp_path / "aligned")
    assert compiled[1]._cache_size() == 1


def test_every_round_begins_the_schedule_of_the_learning_rate_anew(config, data, tmp_path):
    """With a gradient of 1, SGD moves by the rates: 1, 1, 0.5, 0.5 in each round."""

    def loss(params, video, step):
        return params["a"], {"loss": params["a"]}

    config.optimizer = dict(
        name="sgd",
        learning_rate=dict(
            name="exponential_decay", init_value=1.0, transition_steps=2, decay_rate=0.5, staircase=True
        ),
    )
    config.steps, config.log_every, config.checkpoint_every = 4, 1, 1
    falling = Method(
        lambda key, spec: {"a": jnp.zeros(())},
        (Phase("a", loss, ("a",)),),
        lambda params, video: Scores(0, 0, 0),
        rounds=2,
        revise=lambda keep, scores, labels: keep,
    )
    seen = []
    log = lambda step, metrics: seen.append(float(metrics["a/loss"][0]))  # noqa: E731
    train.fit(falling, data, ["rgb"], config, one_device(), tmp_path / "run", log)
    assert seen == [0, -1, -2, -2.5, -3, -4, -5, -5.5]


def test_chunks_end_at_every_border():
    assert [list(c) for c in bank.chunks(1, 10, 4, [3, 10])] == [[1, 2], [3, 4, 5, 6], [7, 8, 9]]


def test_coupled_l2_is_part_of_the_gradient():
    """As in PyTorch's Adam: its first step is the rate times the sign of gradient plus decay."""
    params, gradient = jnp.float32([1.0, -2.0, 3.0, 0.5]), jnp.float32([0.1, 0.05, -0.1, 0.0])

    def step(**options):
        optimizer = train.make_optimizer(FrozenConfigDict(dict(learning_rate=0.1, **options)))
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    np.testing.assert_allclose(step(name="sgd", coupled_l2=0.04), -0.1 * (gradient + 0.04 * params), rtol=1e-6)
    decayed = [-0.1, 0.1, -0.1, -0.1]  # signs of 0.14, -0.03, 0.02 and 0.02
    np.testing.assert_allclose(step(name="adam", coupled_l2=0.04), decayed, rtol=1e-4)
    np.testing.assert_array_equal(step(name="adam", coupled_l2=0.0), step(name="adam"))


def test_without_coupled_l2_the_optimizer_has_its_old_state():
    """Or older checkpoints could not be continued."""
    for decay in ({}, dict(coupled_l2=0.0)):
        optimizer = train.make_optimizer(FrozenConfigDict(dict(name="adam", learning_rate=0.1, **decay)))
        states = [jax.tree.structure(x.init(jnp.ones(3))) for x in (optimizer, optax.adam(0.1))]
        assert states[0] == states[1]
