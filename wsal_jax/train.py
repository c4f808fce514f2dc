"""The training loop: rounds x phases x steps, for one model or several seeds of it at once.

All randomness is a function of seed and step, so a run that resumes from a checkpoint gives the same bits.
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
from ml_collections import ConfigDict, FrozenConfigDict
from tqdm import tqdm

from wsal_jax import checkpoint, sharding, signals
from wsal_jax.data import bank, pipeline
from wsal_jax.keys import named
from wsal_jax.method import BATCH, Method, Params, Phase, Spec, Step
from wsal_jax.types import InputError, Video

Log = Callable[[int, dict[str, Float[np.ndarray, " s"]]], None]
"""Receives the step and the mean of each metric since the last call, one value per seed."""


class Diverged(InputError):
    """A loss, a gradient or a parameter is not finite."""


class State(NamedTuple):
    """The training state; every leaf has a leading axis of seeds."""

    params: Params
    optimizers: tuple[Any, ...]
    """State of each phase's optimizer."""
    keep: Bool[Array, "s total"]
    """The snippets that previous rounds kept, with all videos concatenated."""


def from_optax(options: dict[str, Any]) -> Any:
    """`optax.<name>(**others)`."""
    return getattr(optax, options["name"])(**{name: x for name, x in options.items() if name != "name"})


def make_optimizer(config: ConfigDict | FrozenConfigDict) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`; a learning rate with a name of its own is an optax schedule.

    `coupled_l2` (0 if absent) times the parameters is added to the gradient before the optimizer sees it: the weight
    decay of PyTorch's Adam, which Adam then scales, unlike that of AdamW.
    """
    options = config.to_dict()
    if isinstance(options.get("learning_rate"), dict):
        options["learning_rate"] = from_optax(options["learning_rate"])
    coupled_l2 = options.pop("coupled_l2", 0.0)
    optimizer = from_optax(options)
    return optax.chain(optax.add_decayed_weights(coupled_l2), optimizer) if coupled_l2 else optimizer


def make_keys(config: ConfigDict, model: str = "") -> Key[Array, " s"]:
    """One key for each seed of a model. A seed's run does not depend on the seeds trained beside it."""
    seeds = jnp.arange(config.seed, config.seed + config.seeds)
    return jax.vmap(lambda seed: named(jax.random.key(seed), model))(seeds)


@lru_cache
def make_init(method: Method, spec: Spec, config: FrozenConfigDict):
    """`init(keys) -> (params, optimizers)` of each seed; compiled once for all models of the same shape."""

    def one(key):
        params = method.init(named(key, "init"), spec)
        return params, init_optimizers(method, params, config)

    return jax.jit(jax.vmap(one))


def init(method: Method, spec: Spec, config: ConfigDict, num_snippets: int, model: str = "") -> State:
    """The state before step 0.

    Args:
      method: the method to train.
      spec: the sizes of the model.
      config: the whole config.
      num_snippets: the total over all training videos.
      model: the name of the model, for its keys.
    """
    keys = make_keys(config, model)
    params, optimizers = make_init(method, spec, FrozenConfigDict(config))(keys)
    return State(params, optimizers, jnp.ones((len(keys), num_snippets), bool))


def init_optimizers(method: Method, params: Params, config: ConfigDict | FrozenConfigDict) -> tuple[Any, ...]:
    """The optimizer state of each phase at the start of a round, for one seed."""
    optimizer = make_optimizer(config.optimizer)
    return tuple(optimizer.init({group: params[group] for group in phase.trains}) for phase in method.phases)


def turn(method: Method, config: ConfigDict | FrozenConfigDict, steps_per_epoch: int, step: Any) -> tuple[Any, Any]:
    """The index of the phase that a step trains, and the `epoch` of its `Step`."""
    turns = jnp.asarray(np.repeat(np.arange(len(method.phases)), [phase.length for phase in method.phases]))
    within = step % config.steps
    epoch = within // steps_per_epoch
    if method.in_steps:
        return turns[within % len(turns)], epoch
    return turns[epoch % len(turns)], epoch // len(turns)


def update(
    phase: Phase,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    videos: Video,
    key: PRNGKeyArray,
    epoch: Int[Array, ""],
) -> tuple[Params, Any, dict[str, Float[Array, ""]], Float[Array, ""]]:
    """One step of one phase and one seed on a batch of videos; groups that the phase neither trains nor tracks stay.

    Args:
      phase: the phase.
      optimizer: the optimizer of the phase.
      params: all parameter groups.
      opt_state: the optimizer state of the phase.
      videos: the batch, with a leading axis of videos.
      key: the key of the step.
      epoch: see `Step`.

    Returns:
      The new parameters and optimizer state, the metrics averaged over the batch, and the loss before the step, which
      is NaN if the loss or a gradient is not finite.
    """

    def batch_loss(trained):
        keys = jax.random.split(key, videos.labels.shape[0])
        out_axes = (0, (0, None) if phase.tracks else 0)
        loss = jax.vmap(phase.loss, (None, 0, Step(0, None)), out_axes, axis_name=BATCH)
        losses, aux = loss({**params, **trained}, videos, Step(keys, epoch))
        metrics, tracked = aux if phase.tracks else (aux, {})
        return losses.mean(), (jax.tree.map(jnp.mean, metrics), {group: tracked[group] for group in phase.tracks})

    trained = {group: params[group] for group in phase.trains}
    (loss, (metrics, tracked)), gradients = jax.value_and_grad(batch_loss, has_aux=True)(trained)
    # the largest magnitude is NaN where any is; on a CPU, several times faster than to ask each whether it is finite
    finite = jnp.isfinite(jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves((loss, gradients))])).all()
    updates, opt_state = optimizer.update(gradients, opt_state, trained)
    for group, rate in phase.rates:
        updates = {**updates, group: optax.tree.scale(rate, updates[group])}
    params = {**params, **optax.apply_updates(trained, updates), **tracked}
    return params, opt_state, metrics, jnp.where(finite, loss, jnp.nan)


@lru_cache
def make_run(method: Method, config: FrozenConfigDict, steps_per_epoch: int, mesh: Mesh):
    """`run(state, keys, videos, steps, features, guarded=False) -> (state, sums, counts, losses)`: many steps at once.

    It is compiled once for all models of the same shape, whatever their stream, seed or round.

    `videos` and `features` [k s b t d] are those of `bank.feed`, `steps` [k] consecutive step numbers of one round. The
    metrics of phase p are called "p/name". `sums` [s] add up a metric over the steps of its phase; `counts` [s] are the
    numbers of those steps. `losses` [k s] has the loss of each step, NaN if it or a gradient is not finite. Such a step
    does not count, and if `guarded` changes nothing, or else spoils the new state. On a CPU, the guard costs up to
    an eighth of a step; it may change how steps are rounded.
    """
    optimizer = make_optimizer(config.optimizer)

    def step_phase(index, state, videos, keys, epoch):
        phase = method.phases[index]
        one = partial(update, phase, optimizer)
        params, opt_state, metrics, loss = jax.vmap(one, (0, 0, 0, 0, None))(
            state.params, state.optimizers[index], videos, keys, epoch
        )
        optimizers = (*state.optimizers[:index], opt_state, *state.optimizers[index + 1 :])
        return State(params, optimizers, state.keep), {f"{phase.name}/{name}": x for name, x in metrics.items()}, loss

    def one_step(videos_of, keys, guarded, state, x):
        step, features = x
        videos = bank.batch(videos_of, state.keep, keys, step, features, steps_per_epoch, config, mesh)
        index, cycle = turn(method, config, steps_per_epoch, step)
        step_keys = jax.vmap(lambda key: named(key, "loss", step))(keys)
        branches = [partial(step_phase, i) for i in range(len(method.phases))]
        operands = (state, videos, step_keys, cycle)
        shapes = [jax.eval_shape(branch, *operands)[1] for branch in branches]
        empty = {name: jnp.zeros(s.shape, s.dtype) for shape in shapes for name, s in shape.items()}

        def full(branch, *operands):
            """A branch with the metrics of all phases, 0 for the other phases: lax.switch needs equal outputs."""
            state, metrics, loss = branch(*operands)
            good = jnp.isfinite(loss)
            sums = {name: jnp.where(good, x, 0) for name, x in metrics.items()}
            return state, {**empty, **sums}, {name: good * jnp.float32(name in metrics) for name in empty}, loss

        new, sums, counts, loss = jax.lax.switch(index, [partial(full, branch) for branch in branches], *operands)

        def keep_finite(new, old):  # outside of the switch, where it cannot change how the steps are rounded
            return jnp.where(jnp.isfinite(loss).reshape(-1, *[1] * (new.ndim - 1)), new, old)

        changed = new.params, new.optimizers
        if guarded:
            changed = jax.tree.map(keep_finite, changed, (state.params, state.optimizers))
        params, optimizers = changed
        return State(params, optimizers, state.keep), (sums, counts, loss)

    @partial(jax.jit, static_argnames="guarded", out_shardings=sharding.replicated(mesh))
    def run(state, keys, videos, steps, features, guarded=False):
        one = partial(one_step, videos, keys, guarded)
        state, (metrics, counts, losses) = jax.lax.scan(one, state, (steps, features))
        return state, *jax.tree.map(lambda x: x.sum(0), (metrics, counts)), losses

    return run


@lru_cache
def make_revise(method: Method, mesh: Mesh):
    """`revise(params, features[b n d], mask[b n], keep[s b n], labels[b c]) -> keep`, compiled once for all rounds.

    The videos are split over the devices of the mesh.
    """

    @partial(sharding.over_videos, mesh, (None, 0, 0, 1, 0))
    @partial(jax.vmap, in_axes=(0, None, None, 0, None))  # seeds
    @partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))  # videos
    def revise(params, features, mask, keep, labels):
        unknown = jnp.zeros_like(labels)
        video = Video(features, mask * keep, unknown, unknown, mask.sum().astype(int))
        scores = method.score(params, video)
        revised = method.revise(keep, scores, labels) * mask  # type: ignore[misc]
        return jnp.where((revised > 0).any(), revised, keep * mask) > 0

    return revise


def revise(
    method: Method,
    params: Params,
    keep: Bool[np.ndarray, "s total"],
    data: pipeline.Dataset,
    streams: Sequence[str],
    mesh: Mesh,
) -> Bool[np.ndarray, "s total"]:
    """The snippets of each training video that the next round keeps; a video that would be emptied stays unchanged.

    Args:
      method: has `revise`.
      params: the parameters of each seed.
      keep: the snippets that the finished round used.
      data: the training videos.
      streams: the streams of the model.
      mesh: the devices, which share the videos.
    """
    mesh = sharding.own(mesh, max(map(len, pipeline.batches(data, pipeline.PADDED))))
    params, revise_all, rows = sharding.replicate(mesh, params), make_revise(method, mesh), pipeline.PADDED * mesh.size
    revised = keep.copy()
    spans = [slice(start, start + length) for start, length in zip(data.starts, data.lengths)]

    def revise_batch(videos: Int[np.ndarray, " k"]) -> Bool[Array, "s b n"]:
        features, mask = pipeline.pad(data, streams, videos, rows)
        padded = np.zeros((len(keep), *mask.shape), np.float32)
        labels = np.zeros((rows, data.labels.shape[1]), np.float32)
        labels[: len(videos)] = data.labels[videos]
        for row, video in enumerate(videos):
            padded[:, row, : data.lengths[video]] = keep[:, spans[video]]
        parts = (0, features), (0, mask), (1, padded), (0, labels)
        return revise_all(params, *(sharding.place(mesh, *part) for part in parts))

    for of_size in pipeline.batches(data, rows):
        for videos, kept in sharding.share(of_size, revise_batch):
            for row, video in enumerate(videos):
                revised[:, spans[video]] = kept[:, row, : data.lengths[video]]
    return revised


def begin(
    method: Method, spec: Spec, config: ConfigDict, num_snippets: int, model: str, mesh: Mesh, directory: Path
) -> tuple[int, State]:
    """The step to resume from and its state: those of the newest checkpoint that is whole, or of step 0.

    Args:
      method: the method to train.
      spec: the sizes of the model.
      config: the whole config.
      num_snippets: the total over all training videos.
      model: the name of the model, for its keys.
      mesh: the devices.
      directory: the folder of checkpoints.
    """
    start = checkpoint.newest_whole(directory) or 0
    if not start:
        return 0, sharding.replicate(mesh, init(method, spec, config, num_snippets, model))
    shapes = jax.eval_shape(partial(init, method, spec, config, num_snippets, model))
    like = jax.tree.map(lambda x: x.update(sharding=sharding.replicated(mesh)), shapes)
    if start == method.rounds * config.steps:  # imported weights consist of parameters only
        return start, checkpoint.restore(directory, State(like.params, (), ()), start, part=True)
    return start, checkpoint.restore(directory, like, start)


def next_round(
    method: Method, state: State, config: ConfigDict, data: pipeline.Dataset, streams: Sequence[str], mesh: Mesh
) -> State:
    """The state at the start of a round: fresh optimizers, and the snippets that `method.revise` keeps.

    Args:
      method: the method to train.
      state: the state at the end of the previous round.
      config: the whole config.
      data: the training videos.
      streams: the streams of the model.
      mesh: the devices.
    """
    params, keep = jax.tree.map(np.asarray, (state.params, state.keep))
    optimizers = jax.vmap(lambda params: init_optimizers(method, params, config))(params)
    keep = revise(method, params, keep, data, streams, mesh)
    return state._replace(**sharding.replicate(mesh, dict(optimizers=optimizers, keep=keep)))


def refuse_divergence(
    losses: Float[np.ndarray, "k s"],
    before: Int[np.ndarray, " s"],
    steps: range,
    phases: Sequence[str],
    config: ConfigDict,
    model: str,
    kept: Path,
) -> Int[np.ndarray, " s"]:
    """Raises Diverged if `config.patience` losses in a row are not finite; a warning tells of fewer.

    Args:
      losses: the loss of each step and seed, from `make_run`.
      before: how many losses right before them were not finite.
      steps: the step numbers, from 0.
      phases: the phase of each step.
      config: the message quotes its learning rate and seed.
      model: the model's name.
      kept: the folder of its checkpoints.

    Returns:
      How many of the last losses are not finite.
    """
    bad = ~np.isfinite(losses)
    if not bad.any():
        return np.zeros_like(before)
    row = before
    for i, step in enumerate(steps):
        row = np.where(bad[i], row + 1, 0)
        if row.max() < config.patience:
            continue
        seed, count = row.argmax(), row.max()
        rate = config.optimizer.get("learning_rate")
        likely = f"config.optimizer.learning_rate={rate} may be too high, or some features far too large"
        if step + 1 == count:  # no update has been applied yet
            likely = "the features may be damaged or far too large, or a weight in config.method"
        last = checkpoint.latest(kept)
        more = f", and so in {count - 1} after it" if count > 1 else ""
        raise Diverged(
            f"training diverged: in step {step - count + 2} of {model}, phase {phases[i]}, seed {config.seed + seed}, "
            f"the loss or a gradient is not finite{more}; {likely}. "
            + (f"The checkpoint of step {last} is kept in {kept}" if last else "There is no checkpoint yet")
        )
    if jax.process_index() == 0:
        at, seed = np.argwhere(bad)[0]
        print(
            f"warning: {bad.sum()} of the last {bad.size} updates of {model} were skipped, the first in step "
            f"{steps[at] + 1}, phase {phases[at]}, seed {config.seed + seed}: the loss or a gradient is not finite",
            file=sys.stderr,
        )
    return row


def refuse_damage(params: Params, where: str) -> None:
    """Raises Diverged for parameters that are not finite, so that they are never saved or scored."""
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, x in jax.tree.leaves_with_path(params)
        if not np.isfinite(np.asarray(x)).all()
    ]
    if bad:
        raise Diverged(
            f"the parameters {bad[0]} of {where} are not finite: training diverged; "
            "give a lower config.optimizer.learning_rate and another --workdir"
        )


def means(dispatches: Sequence[tuple[dict[str, Array], dict[str, Array]]]) -> dict[str, Float[np.ndarray, " s"]]:
    """The metrics of several dispatches, of each its sums and counts as `make_run` has them."""
    sums, counts = (jax.tree.map(lambda *x: sum(x[1:], x[0]), *part) for part in zip(*jax.device_get(dispatches)))
    with np.errstate(invalid="ignore"):  # NaN for a seed whose steps were all skipped
        return {name: sums[name] / counts[name] for name in sums if counts[name].any()}


def fit(
    method: Method,
    data: pipeline.Dataset,
    streams: Sequence[str],
    config: ConfigDict,
    mesh: Mesh,
    directory: Path,
    log: Log = lambda step, metrics: None,
) -> Params:
    """Trains `config.seeds` models on the given streams and returns their parameters.

    Each round starts from the parameters of the previous one with a fresh optimizer, so a learning rate schedule
    restarts. If `directory` holds checkpoints, training resumes from the newest. `options.check` finds invalid options
    beforehand.

    Args:
      method: the method to train.
      data: the training videos.
      streams: the streams of the model; several are joined.
      config: the whole config.
      mesh: the devices.
      directory: where checkpoints are written.
      log: receives metrics.

    Returns:
      The parameters of the last step, with a leading axis of seeds.

    Raises:
      InputError: a checkpoint is damaged, or training diverged. Earlier checkpoints are kept.
      signals.Stopped: after SIGTERM or SIGINT to any of the processes; all have saved the same step.
    """
    model = "+".join(streams)
    spec = Spec(tuple(data.dims[name] for name in streams), len(data.class_names))
    total = method.rounds * config.steps
    steps_per_epoch = len(data.lengths) // config.batch_size
    start, state = begin(method, spec, config, int(data.lengths.sum()), model, mesh, directory)
    refuse_damage(state.params, f"step {start} in {directory}")
    if start == total:
        return state.params

    ends = [(r + 1) * config.steps for r in range(method.rounds)]
    saves = range(config.checkpoint_every, total + config.checkpoint_every, config.checkpoint_every)
    windows = list(bank.chunks(0, total, config.log_every, sorted({*ends, *saves})))
    logs = {steps.stop for steps in windows}
    keys = make_keys(config, model)
    videos, dispatches = bank.feed(data, streams, keys, windows, config, mesh, start)
    keys = jax.random.wrap_key_data(sharding.replicate(mesh, jax.random.key_data(keys)))
    run = make_run(method, FrozenConfigDict(config), steps_per_epoch, mesh)
    phase_of = np.asarray(turn(method, config, steps_per_epoch, np.arange(total))[0])
    names = [method.phases[index].name for index in phase_of]
    first = {names[step]: int(step) for step in np.unique(phase_of, return_index=True)[1]}

    quiet, bad = jax.process_index() > 0, np.zeros(config.seeds, int)
    with (
        signals.noted() as stop,
        tqdm(total=total, initial=start, desc=f"train {model}", unit="step", disable=quiet) as bar,
    ):
        untold, begun = [], {}
        for steps, features in dispatches:
            given = state, keys, videos, np.arange(steps.start, steps.stop), features
            state, sums, counts, losses = run(*given)
            if not np.isfinite(losses).all():  # rarely: once more from the same state
                state, sums, counts, losses = run(*given, guarded=True)
            losses = np.asarray(losses)
            bad = refuse_divergence(losses, bad, steps, names[steps.start : steps.stop], config, model, directory)
            untold.append((sums, counts))
            begun |= {f"{name}/first_loss": losses[step - steps.start] for name, step in first.items() if step in steps}
            bar.update(len(steps))
            if steps.stop in logs:
                metrics = means(untold)
                log(steps.stop, metrics | begun)
                bar.set_postfix({name: f"{x.mean():.3f}" for name, x in metrics.items() if name.endswith("/loss")})
                untold, begun = [], {}
            if steps.stop in ends[:-1] and method.revise:
                state = next_round(method, state, config, data, streams, mesh)
            signal = stop()
            if signal and untold:
                log(steps.stop, means(untold) | begun)
            if signal or steps.stop in saves or steps.stop == total:
                refuse_damage(state.params, f"step {steps.stop} of {model}")
                checkpoint.save(directory, steps.stop, state)
            if signal:
                where = f" after step {steps.stop} of {total} of {model}, which is saved"
                raise signals.Stopped(signal, where, together=True)
    return state.params
