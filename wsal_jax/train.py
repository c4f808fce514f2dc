"""The training loop: rounds x phases x steps, for one model or several seeds of it at once.

All randomness is a function of seed and step, so a run continued from a checkpoint is the same run, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
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

from wsal_jax import checkpoint, sharding
from wsal_jax.data import pipeline
from wsal_jax.method import BATCH, Method, Params, Phase, Spec, Step
from wsal_jax.types import InputError, Video

Log = Callable[[int, dict[str, Float[np.ndarray, " s"]]], None]
"""Takes the step and each metric's mean since the last call, one value per seed."""


class State(NamedTuple):
    """What changes in training; every leaf has a leading axis of seeds."""

    params: Params
    optimizers: tuple[Any, ...]
    """State of each phase's optimizer."""
    keep: Bool[Array, "s total"]
    """Snippets that rounds have left, of all videos one after the other."""


class Bank(NamedTuple):
    """The training videos on the device."""

    starts: Int[Array, " v"]
    """First snippet of each video among all snippets."""
    lengths: Int[Array, " v"]
    labels: Float[Array, "v c"]
    counts: Float[Array, "v c"]
    features: Float[Array, "total d"] | None
    """None where they are streamed."""


def make_optimizer(config: ConfigDict | FrozenConfigDict) -> optax.GradientTransformation:
    """`optax.<name>(**others)` of `config.optimizer`; a learning rate that has a name itself is a schedule of optax."""

    def make(options):
        return getattr(optax, options["name"])(**{name: x for name, x in options.items() if name != "name"})

    options = config.to_dict()
    if isinstance(options.get("learning_rate"), dict):
        options["learning_rate"] = make(options["learning_rate"])
    return make(options)


def make_keys(config: ConfigDict) -> Key[Array, " s"]:
    """One key for each seed; a seed's run does not depend on which others are trained beside it."""
    return jax.vmap(jax.random.key)(jnp.arange(config.seed, config.seed + config.seeds))


def init(method: Method, spec: Spec, config: ConfigDict, num_snippets: int) -> State:
    """The state before step 0; `num_snippets` are those of all training videos."""

    def one(key):
        params = method.init(jax.random.fold_in(key, 3), spec)
        return State(params, init_optimizers(method, params, config), jnp.ones(num_snippets, bool))

    return jax.jit(jax.vmap(one))(make_keys(config))


def init_optimizers(method: Method, params: Params, config: ConfigDict) -> tuple[Any, ...]:
    """The optimizer state of each phase at the start of a round, for one seed."""
    optimizer = make_optimizer(config.optimizer)
    return tuple(optimizer.init({group: params[group] for group in phase.trains}) for phase in method.phases)


def update(
    phase: Phase,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    videos: Video,
    key: PRNGKeyArray,
    epoch: Int[Array, ""],
) -> tuple[Params, Any, dict[str, Float[Array, ""]]]:
    """One step of one phase and one seed on a batch of videos; groups it neither trains nor tracks are as given."""

    def batch_loss(trained):
        keys = jax.random.split(key, videos.labels.shape[0])
        out_axes = (0, (0, None) if phase.tracks else 0)
        loss = jax.vmap(phase.loss, (None, 0, Step(0, None)), out_axes, axis_name=BATCH)
        losses, aux = loss({**params, **trained}, videos, Step(keys, epoch))
        metrics, tracked = aux if phase.tracks else (aux, {})
        return losses.mean(), (jax.tree.map(jnp.mean, metrics), {group: tracked[group] for group in phase.tracks})

    trained = {group: params[group] for group in phase.trains}
    gradients, (metrics, tracked) = jax.grad(batch_loss, has_aux=True)(trained)
    updates, opt_state = optimizer.update(gradients, opt_state, trained)
    return {**params, **optax.apply_updates(trained, updates), **tracked}, opt_state, metrics


@lru_cache
def make_run(method: Method, config: FrozenConfigDict, steps_per_epoch: int, mesh: Mesh):
    """`run(state, keys, bank, steps, features) -> (state, sums, counts)`: many steps in one dispatch.

    Compiled once for all models of the same shape, whatever their stream, seed or round.

    `steps` [k] are consecutive step numbers of one round; `features` [k s b t d] are theirs where `bank` has none. The
    metrics of phase p are called "p/name"; sums are over the steps of that phase, counts say how many there were.
    """
    optimizer = make_optimizer(config.optimizer)
    turns = np.repeat(np.arange(len(method.phases)), [phase.length for phase in method.phases])
    draw = partial(pipeline.plan, batch_size=config.batch_size, num_snippets=config.num_snippets)

    def fetch(bank, keep, key, step, features):
        """The batch of one seed; `features` [b t d] as read from disk, or None."""
        chosen, snippets = draw(key, step, bank.lengths)
        at = bank.starts[chosen][:, None] + snippets
        features = bank.features[at] if features is None else features
        mask = keep[at].astype(jnp.float32)
        lengths = jnp.full(config.batch_size, config.num_snippets)
        return Video(features, mask, bank.labels[chosen], bank.counts[chosen], lengths)

    def step_phase(index, state, videos, keys, epoch):
        phase = method.phases[index]
        one = partial(update, phase, optimizer)
        params, opt_state, metrics = jax.vmap(one, (0, 0, 0, 0, None))(
            state.params, state.optimizers[index], videos, keys, epoch
        )
        optimizers = (*state.optimizers[:index], opt_state, *state.optimizers[index + 1 :])
        return State(params, optimizers, state.keep), {f"{phase.name}/{name}": x for name, x in metrics.items()}

    def one_step(bank, keys, state, x):
        step, features = x
        videos = jax.vmap(fetch, (None, 0, 0, None, 0))(bank, state.keep, keys, step, features)
        videos = jax.lax.with_sharding_constraint(videos, sharding.split(mesh, axis=1))
        epoch = (step % config.steps) // steps_per_epoch
        turn = jnp.asarray(turns)[epoch % len(turns)]
        step_keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 2), step))(keys)
        branches = [partial(step_phase, i) for i in range(len(method.phases))]
        operands = (state, videos, step_keys, epoch // len(turns))
        shapes = [jax.eval_shape(branch, *operands)[1] for branch in branches]
        empty = {name: jnp.zeros(s.shape, s.dtype) for shape in shapes for name, s in shape.items()}

        def full(branch, *operands):
            """A branch that has every phase's metrics, those of the others 0, as lax.switch wants it."""
            state, metrics = branch(*operands)
            return state, {**empty, **metrics}, {name: jnp.float32(name in metrics) for name in empty}

        state, metrics, counts = jax.lax.switch(turn, [partial(full, branch) for branch in branches], *operands)
        return state, (metrics, counts)

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    def run(state, keys, bank, steps, features):
        state, metrics = jax.lax.scan(partial(one_step, bank, keys), state, (steps, features))
        return state, *jax.tree.map(lambda x: x.sum(0), metrics)

    return run


@lru_cache
def make_revise(method: Method):
    """`revise(params, features[b n d], mask[b n], keep[s b n], labels[b c]) -> keep`, compiled once for all rounds."""

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, 0, None))  # seeds
    @partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))  # videos
    def revise(params, features, mask, keep, labels):
        unknown = jnp.zeros_like(labels)
        video = Video(features, mask * keep, unknown, unknown, mask.sum().astype(int))
        scores = method.score(params, video)
        revised = method.revise(keep, scores, labels) * mask
        return jnp.where((revised > 0).any(), revised, keep * mask) > 0

    return revise


def revise(
    method: Method, params: Params, keep: Bool[np.ndarray, "s total"], data: pipeline.Dataset, streams: Sequence[str]
) -> Bool[np.ndarray, "s total"]:
    """What the next round keeps of each training video; a video that would be emptied stays as it was."""
    revise_all = make_revise(method)
    revised = keep.copy()
    for batch in pipeline.padded(data, streams):
        padded = np.zeros((len(keep), *batch.mask.shape), np.float32)
        labels = np.zeros((len(batch.mask), data.labels.shape[1]), np.float32)
        labels[: len(batch.videos)] = data.labels[batch.videos]
        spans = [slice(data.starts[v], data.starts[v] + data.lengths[v]) for v in batch.videos]
        for row, span in enumerate(spans):
            padded[:, row, : span.stop - span.start] = keep[:, span]
        kept = np.asarray(revise_all(params, batch.features, batch.mask, padded, labels))
        for row, span in enumerate(spans):
            revised[:, span] = kept[:, row, : span.stop - span.start]
    return revised


def chunks(first: int, last: int, size: int, borders: Sequence[int]) -> Iterator[range]:
    """Cuts the steps from first to last into dispatches of `size` that end at every border."""
    while first < last:
        stop = min([last, first + size, *(b for b in borders if b > first)])
        yield range(first, stop)
        first = stop


def fit(
    method: Method,
    data: pipeline.Dataset,
    streams: Sequence[str],
    config: ConfigDict,
    mesh: Mesh,
    directory: Path,
    log: Log = lambda step, metrics: None,
) -> Params:
    """Trains `config.seeds` models on the given streams, joined if several, and returns their parameters.

    A round goes on with the parameters of the one before and with a fresh optimizer, so that a schedule of the learning
    rate starts again.

    Checkpoints go to `directory`; where it holds some, training continues after the newest. The returned parameters are
    those of the last step, with a leading axis of seeds.

    Raises:
      InputError: options that do not fit the data or the devices, or a damaged checkpoint.
    """
    check(method, config, data, mesh)
    spec = Spec(tuple(data.dims[name] for name in streams), len(data.class_names))
    total = method.rounds * config.steps
    steps_per_epoch = len(data.lengths) // config.batch_size
    num_snippets = int(data.lengths.sum())

    start = checkpoint.latest(directory) or 0
    shapes = jax.eval_shape(partial(init, method, spec, config, num_snippets))
    like = jax.tree.map(lambda x: x.update(sharding=sharding.replicated(mesh)), shapes)
    if start == total:  # imported weights have no more than the parameters
        return checkpoint.restore(directory, State(like.params, (), ()), part=True).params
    if start:
        state = checkpoint.restore(directory, like)
    else:
        state = sharding.replicate(mesh, init(method, spec, config, num_snippets))

    on_device = config.data.placement == "device" or (
        config.data.placement == "auto" and data.num_bytes <= config.data.device_gb * 2**30
    )
    bank = sharding.replicate(
        mesh,
        Bank(
            data.starts,
            data.lengths,
            data.labels,
            data.counts,
            pipeline.flat(data, streams) if on_device else None,
        ),
    )
    keys = make_keys(config)
    run = make_run(method, FrozenConfigDict(config), steps_per_epoch, mesh)
    if not on_device:
        share = config.batch_size // jax.process_count()
        slots = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        batches = pipeline.stream(
            data, streams, keys, range(start, total), config.batch_size, config.num_snippets, slots
        )
        place = partial(jax.make_array_from_process_local_data, sharding.split(mesh, axis=2))
    keys = jax.random.wrap_key_data(sharding.replicate(mesh, jax.random.key_data(keys)))

    ends = [(r + 1) * config.steps for r in range(method.rounds)]
    saves = range(config.checkpoint_every, total + config.checkpoint_every, config.checkpoint_every)
    quiet = jax.process_index() > 0
    with tqdm(total=total, initial=start, desc=f"train {'+'.join(streams)}", unit="step", disable=quiet) as bar:
        for steps in chunks(start, total, config.log_every, sorted({*ends, *saves})):
            features = None if on_device else place(np.stack(list(islice(batches, len(steps)))))
            state, sums, counts = run(state, keys, bank, np.arange(steps.start, steps.stop), features)
            metrics = {name: np.asarray(sums[name] / counts[name]) for name in sums if counts[name]}
            log(steps.stop, metrics)
            bar.update(len(steps))
            bar.set_postfix({name: f"{x.mean():.3f}" for name, x in metrics.items() if name.endswith("/loss")})
            if steps.stop in ends[:-1] and method.revise:
                params, keep = jax.tree.map(np.asarray, (state.params, state.keep))
                optimizers = jax.vmap(lambda params: init_optimizers(method, params, config))(params)
                keep = revise(method, params, keep, data, streams)
                state = state._replace(**sharding.replicate(mesh, dict(optimizers=optimizers, keep=keep)))
            if steps.stop in saves or steps.stop == total:
                checkpoint.save(directory, steps.stop, state)
    return state.params


def check(method: Method, config: ConfigDict, data: pipeline.Dataset, mesh: Mesh) -> None:
    """Raises InputError for options that cannot work, before anything is trained."""
    for name in ("seeds", "steps", "batch_size", "num_snippets", "log_every", "checkpoint_every"):
        if config[name] < 1:
            raise InputError(f"config.{name}={config[name]}: give at least 1")
    for stream in "+".join(config.streams).split("+"):
        if stream not in data.dims:
            there = ", ".join(data.dims)
            raise InputError(f"config.streams={config.streams}: no {stream!r} in the data; there are {there}")
    models = len(config.streams)
    if models > 1 and (len(config.fusion) != models or min(config.fusion) < 0 or not sum(config.fusion)):
        raise InputError(f"config.fusion={config.fusion}: give a weight for each of config.streams={config.streams}")
    if not config.localize.thresholds or not all(0 <= t < 1 for t in config.localize.thresholds):
        raise InputError(f"config.localize.thresholds={config.localize.thresholds}: give some in [0, 1)")
    if config.batch_size > len(data.lengths):
        raise InputError(f"config.batch_size={config.batch_size}: there are only {len(data.lengths)} training videos")
    if config.batch_size % mesh.size:
        raise InputError(f"config.batch_size={config.batch_size}: give a multiple of the {mesh.size} devices")
    if config.data.placement not in ("auto", "device", "stream"):
        raise InputError(f"config.data.placement={config.data.placement!r}: give auto, device or stream")
    try:
        make_optimizer(config.optimizer)
    except (AttributeError, TypeError) as error:
        raise InputError(f"config.optimizer={config.optimizer.to_dict()}: {error}") from error
    method.check(data)
