"""Timings of data that outgrow a device or a machine, for `python -m wsal_jax.bench`: `stream` and `scale`."""

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict, FrozenConfigDict

from wsal_jax import evaluate, localize, method, methods, options, sharding, train
from wsal_jax.data import bank, pipeline, store
from wsal_jax.types import Annotation, Meta, Model, Scores

CALL = "import sys; from wsal_jax import bench_scale; bench_scale.{}(sys.argv[1])"
REDUCED = (1024, 2**20)
SCORED = 512
Values = dict[str, float | int]
VIDEO = 2500
"""Bytes of a video in the memory of a process, beside labels and features (`bench load`)."""


def made_up(folder: Path, videos: int, snippets: int, dim: int, classes: int, dtype: str) -> pipeline.Dataset:
    """A split of random features of one stream, rgb, in an empty folder; or of those that are there already."""
    rng = np.random.default_rng(0)
    streams = {"rgb": store.Stream(dim, dtype)}
    values = rng.standard_normal((snippets, dim), np.float32).astype(dtype)
    row = store.row_type(streams["rgb"]).itemsize
    of_shard = max(1, store.SHARD_BYTES // (snippets * row))
    places = np.array([(i // of_shard, i % of_shard * snippets) for i in range(videos)])
    if not any(folder.iterdir()):
        write = store.writer(folder, "train", streams)
        assert [write({"rgb": values}) for _ in range(videos)] == [tuple(place) for place in places.tolist()]
    labels = (np.arange(videos)[:, None] % classes == np.arange(classes)).astype(np.float32)
    kept = store.Store(folder, "train", streams, places[:, 0], places[:, 1], np.full(videos, snippets))
    metas = [Meta(f"video_{i:07d}", snippets, 25.0, 16.0, 8.0, snippets * 16 / 25) for i in range(videos)]
    annotations = [Annotation(np.zeros((0, 2)), np.zeros(0, int))] * videos
    names = [f"class {i}" for i in range(classes)]
    return pipeline.Dataset(kept, metas, annotations, labels, labels, names, {"rgb": dim}, [""] * videos)


def read_config(text: str) -> ConfigDict:
    """As the flag `--config` of the command that trains."""
    path, switches = options.find(text)
    return options.runpy.run_path(str(path))["get_config"](switches)


def resident() -> float:
    """GB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def forget(folder: Path) -> None:
    """Drops files from the page cache, so that they are read from the disk again."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stream_one(text: str) -> None:
    """Trains on the data of `stream` with one placement; prints steps per second and the resident size over time."""
    args = argparse.Namespace(**json.loads(text))
    data = made_up(Path(args.folder), args.videos, args.snippets, args.dim, args.classes, args.dtype)
    config = read_config(args.config)
    config.streams, config.data.device_gb = ("rgb",), args.device_gb
    config.steps = config.checkpoint_every = args.steps
    config.log_every = args.log_every
    mesh, ended, sizes, logs = sharding.make_mesh(), threading.Event(), [], []

    def sample():
        while not ended.wait(0.2):
            sizes.append(resident())

    before = resident()
    threading.Thread(target=sample, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        chosen = methods.get(config.method, "rgb")
        where = bank.placement(data, ["rgb"], config, mesh.size)
        log = lambda step, _: logs.append((step, time.perf_counter(), len(sizes)))  # noqa: E731
        train.fit(chosen, data, ["rgb"], config, mesh, Path(folder), log)
    ended.set()
    (first, start, at), (last, end, _) = logs[0], logs[-1]  # the first dispatch compiles
    training = sizes[at:] or [resident()]
    over_time = [round(training[i], 2) for i in np.linspace(0, len(training) - 1, 8).astype(int)]
    print(json.dumps(dict(where=where, rate=(last - first) / (end - start), before=before, over_time=over_time)))


def in_process(function: str, argument: dict[str, Any]) -> dict[str, Any]:
    """What a function of this module prints last, as JSON, in a new process."""
    command = [sys.executable, "-c", CALL.format(function), json.dumps(argument)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def stream(args: argparse.Namespace) -> None:
    """Training from disk against training from the device, on made-up data eight times as large as `device_gb`.

    Each row is a process of its own. The first has a `device_gb` that holds the data; the others stream, the last from
    files that are not in the page cache. "GB" is the resident size before the data, then eight times during training.
    """
    row = args.dim * np.dtype(args.dtype).itemsize
    videos = round(args.gigabytes * 2**30 / (args.snippets * row))
    print(
        f"{videos} videos x {args.snippets} snippets x {args.dim}, {args.dtype}, {args.gigabytes:.2f} GB, {args.config}"
    )
    print(f"{'':<8} {'device_gb':>9} {'log_every':>9} {'steps/s':>8} {'of first':>8}  GB")
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        made_up(Path(folder), videos, args.snippets, args.dim, 20, args.dtype)
        common = dict(folder=folder, videos=videos, classes=20, steps=args.steps, config=args.config)
        common |= {name: getattr(args, name) for name in ("snippets", "dim", "dtype")}
        first, small = None, args.gigabytes / 8
        rows = [("", 2 * args.gigabytes, args.log_every), ("", small, args.log_every)]
        rows += [("", small, args.log_every // 10), (" cold", small, args.log_every)]
        for note, device_gb, log_every in rows:
            if note:
                forget(Path(folder))
            done = in_process("stream_one", dict(common, device_gb=device_gb, log_every=log_every))
            first = first or done["rate"]
            sizes = " ".join(f"{x:.2f}" for x in done["over_time"])
            measured = f"{done['rate']:>8.1f} {done['rate'] / first:>8.2f}  {done['before']:.2f}, {sizes}"
            print(f"{done['where'] + note:<11} {device_gb:>9.2f} {log_every:>9} {measured}", flush=True)


def seconds(function, *args, calls: int = 10) -> float:
    """Median time of some calls, after one that compiles; equally many in all processes."""
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def tree_bytes(tree: Any) -> int:
    """Of all arrays of a pytree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def measure(args: argparse.Namespace, folder: Path, mesh: Mesh) -> Values:
    """Seconds and bytes of the parts of a run whose devices each have `args.share` videos of a batch.

    "step", its temporary arrays, and the gradient: its bytes, and its "arrays" of more than one number, each of which
    is summed over the devices; "reduce_<n>", such a sum of n float32; "score" of a batch of `pipeline.PADDED` videos
    on one device, and how many arrays of scores there are.
    """
    config = read_config(args.config)
    config.streams, config.batch_size = ("rgb",), args.share * mesh.size
    data = made_up(folder, 2 * config.batch_size, args.snippets, args.dim, args.classes, args.dtype)
    chosen, spec = methods.get(config.method, "rgb"), method.Spec((args.dim,), args.classes)
    state = sharding.replicate(mesh, train.init(chosen, spec, config, int(data.lengths.sum()), "rgb"))
    keys = sharding.replicate(mesh, jax.random.key_data(train.make_keys(config)))
    keys, videos = jax.random.wrap_key_data(keys), bank.split(data, ["rgb"], mesh)
    run, steps = train.make_run(chosen, FrozenConfigDict(config), 2, mesh), np.arange(10)
    compiled = run.lower(state, keys, videos, steps, None).compile()
    gradient = max(([state.params[name] for name in phase.trains] for phase in chosen.phases), key=tree_bytes)
    found = dict(
        step=seconds(run, state, keys, videos, steps, None) / len(steps),
        step_bytes=compiled.memory_analysis().temp_size_in_bytes,
        state=tree_bytes((state.params, state.optimizers)),
        gradient=tree_bytes(gradient),
        arrays=sum(x.size > 1 for x in jax.tree.leaves(gradient)),
    )
    total = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    for size in REDUCED:
        found[f"reduce_{size}"] = seconds(jax.jit(total), sharding.replicate(mesh, np.ones(size, np.float32)))
    length = int(pipeline.padded_lengths(np.array([args.snippets]))[0])
    alone = sharding.make_mesh(mesh.local_devices[:1])
    mask = sharding.place(alone, 0, np.ones((pipeline.PADDED, length), np.float32))
    features = sharding.place(alone, 0, np.ones((pipeline.PADDED, length, args.dim), np.float32))
    made, params = evaluate.make_score(chosen, args.classes, alone), jax.device_get(state.params)
    scores = made(params, features, mask)
    found["score"] = seconds(made, params, features, mask)
    found |= dict(score_bytes=tree_bytes(scores) / scores.cas.shape[1], score_arrays=len(jax.tree.leaves(scores)))
    return found | measure_host(args, config, chosen, data)


def measure_host(args: argparse.Namespace, config: ConfigDict, chosen: method.Method, data: pipeline.Dataset) -> Values:
    """CPU seconds that a host takes for a video: to read its sampled snippets, or all; to detect, where the class
    activation of its two predicted classes is noise, so that there are many proposals.
    """

    def cpu(function) -> float:
        function()
        start = time.process_time()
        for _ in range(20):
            function()
        return (time.process_time() - start) / 20

    rng, n = np.random.default_rng(0), args.snippets
    cas = rng.random((n, args.classes), np.float32)
    scores = Scores((np.arange(args.classes) < 2).astype(np.float32), cas, cas.mean(1))
    one = Model(scores, method.options_of(config.localize, "rgb", "config.localize"))
    snippets = np.arange(config.num_snippets) * n // config.num_snippets
    return dict(
        sampled=cpu(lambda: pipeline.read(data, 0, ["rgb"], snippets)),
        whole=cpu(lambda: pipeline.read(data, 0, ["rgb"])),
        detect=cpu(lambda: localize.propose((), one, data.metas[0])),
    )


class Link(NamedTuple):
    """What connects the devices."""

    latency: float
    """Seconds of a sum of few numbers over all devices."""
    rate: float
    """Bytes per second that a device sends in a sum of many, while it receives as many."""


def exchange(size: float | int, devices: int, link: Link, count: float | int) -> float:
    """Seconds of `count` sums over the devices, of `size` bytes together, by a ring: each sends them nearly twice."""
    return (count * link.latency + 2 * (devices - 1) / devices * size / link.rate) if devices > 1 else 0.0


def of_step(found: Values, devices: int, link: Link) -> Values:
    """Seconds of the parts of a step on several devices, of what was measured on one."""
    return dict(compute=found["step"], exchange=exchange(found["gradient"], devices, link, found["arrays"]))


def of_scoring(found: Values, devices: int, link: Link) -> Values:
    """Seconds of the parts of one batch of scoring, `pipeline.PADDED` videos on each of several devices.

    Each device is a process of its own here, and several batches are exchanged at once (`sharding.share`).
    """
    size = pipeline.PADDED * found["score_bytes"]
    at_once = max(1, sharding.EXCHANGED // (devices * size))
    gathered = found["score_arrays"] * link.latency / at_once + size * (devices - 1) / link.rate
    return dict(compute=found["score"], gather=gathered if devices > 1 else 0.0)


def pinned(text: str) -> None:
    """One of several processes, each with one core of this machine: prints what `measure` finds, and "scoring", the
    seconds of `evaluate.score` of SCORED videos."""
    args = argparse.Namespace(**json.loads(text))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[args.process % len(cores)]})
    jax.config.update("jax_platforms", "cpu")
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{args.port}", args.processes, args.process)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder), sharding.make_mesh())
    with tempfile.TemporaryDirectory() as folder:
        data = made_up(Path(folder), SCORED, args.snippets, args.dim, args.classes, args.dtype)
        chosen, config = methods.get(read_config(args.config).method, "rgb"), read_config(args.config)
        params = train.init(chosen, method.Spec((args.dim,), args.classes), config, 1, "rgb").params
        with redirect_stderr(io.StringIO()):  # without its bar
            found["scoring"] = seconds(evaluate.score, chosen, jax.device_get(params), data, ["rgb"], calls=3)
    print(json.dumps(found))


def check(args: argparse.Namespace) -> None:
    """The model against what 1, 2, ... processes on this machine measure, each with one core; processes that share a
    core compute by turns."""
    cores, alone = len(os.sched_getaffinity(0)), None
    print(f"\n{'':>9}  {'a step, ms':<16} {SCORED} videos scored, s")
    print(f"{'processes':>9}  {'measured':>8} {'model':>7} {'measured':>8} {'model':>7} {'speed':>6}")
    for processes in args.check:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        given = dict(vars(args), run=None, processes=processes, port=port)
        command = [sys.executable, "-c", CALL.format("pinned")]
        running = [
            subprocess.Popen([*command, json.dumps(dict(given, process=i))], stdout=subprocess.PIPE, text=True)
            for i in range(processes)
        ]
        out = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise SystemExit("a process failed")
        found = json.loads(out[0].splitlines()[-1])
        alone = alone or found
        small, large = (found[f"reduce_{size}"] for size in REDUCED)
        link = Link(small, 2 * (processes - 1) / processes * 4 * REDUCED[1] / max(large - small, 1e-9) or 1.0)
        turns = max(1.0, processes / cores)
        step = sum(of_step({**alone, "step": turns * alone["step"]}, processes, link).values())
        gathered = SCORED / (processes * pipeline.PADDED) * of_scoring(alone, processes, link)["gather"]
        scoring = turns * alone["scoring"] / processes + gathered
        cells = f"{1e3 * found['step']:>8.1f} {1e3 * step:>7.1f} {found['scoring']:>8.2f} {scoring:>7.2f}"
        speed = f"{alone['scoring'] / found['scoring']:>5.2f}x"
        reduced = f"  sums: {1e6 * small:,.0f} us, {link.rate / 1e9:.2f} GB/s" if processes > 1 else ""
        print(f"{processes:>9}  {cells} {speed}{reduced}", flush=True)


def times(args: argparse.Namespace, found: Values, where: str, num_snippets: int) -> dict[str, Values]:
    """Seconds of the parts of a step, of the reading at a start, and of scoring all videos."""
    link, devices, local = Link(args.latency * 1e-6, args.link * 1e9), args.devices, min(args.per_host, args.devices)
    video = args.snippets * args.dim * np.dtype(args.dtype).itemsize / (args.disk * 1e9)  # to read it from the disk
    step = of_step(found, devices, link)
    if where == "stream":  # beside the computation
        read = max(found["sampled"] / args.cores, video * num_snippets / args.snippets)
        step["reading"] = args.share * local * read
    at_start = args.videos * {"device": 1, "split": local / devices, "stream": 0}[where]
    batch = of_scoring(found, devices, link)
    batch["reading"] = pipeline.PADDED * local * max(found["whole"], video)  # by one thread
    batch["detecting"] = pipeline.PADDED * devices * found["detect"]  # by process 0 alone
    rounds = args.videos / (pipeline.PADDED * devices)
    return dict(
        step=step,
        start=dict(reading=at_start * max(found["whole"], video)),
        scoring={name: x * rounds for name, x in batch.items()},
    )


def memory(args: argparse.Namespace, found: Values, where: str, num_snippets: int) -> dict[str, Values]:
    """Bytes on each device during training, and on each host, in the end with the scores of all videos."""
    width, local = args.dim * np.dtype(args.dtype).itemsize, min(args.per_host, args.devices)
    size, labels = args.videos * args.snippets * width, 2 * 4 * args.classes * args.videos
    part = 1 / args.devices if where == "split" else 1
    dispatch = max(bank.DISPATCH_BYTES, args.share * local * num_snippets * width)
    device = dict(
        features=2 * dispatch / local if where == "stream" else size * part,
        labels=labels * part,
        # kept and state before and after a dispatch
        kept=2 * args.videos * args.snippets,  # one byte a snippet
        state=2 * found["state"] + found["gradient"],
        temporary=found["step_bytes"],
    )
    padded = int(pipeline.padded_lengths(np.array([args.snippets]))[0])
    host = dict(
        videos=args.videos * VIDEO + labels,
        features={"device": size, "split": size * part * local, "stream": (pipeline.AHEAD + 2) * dispatch}[where],
        scores=found["score_bytes"] * args.videos * args.snippets / padded,
    )
    return dict(device=device, host=host)


def scale(args: argparse.Namespace) -> None:
    """What training and scoring would cost on many devices, by what one device here measures; see docs/cluster.md.

    Every device has `--share` videos of a batch. The latency and rate of the link, and the disk's rate, are assumed.
    """
    config, one = read_config(args.config), jax.devices()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder), sharding.make_mesh([one]))
    size, batch = args.videos * args.snippets * args.dim * np.dtype(args.dtype).itemsize, args.share * args.devices
    config.data.device_gb = args.device_gb / 2  # the other half is for all else
    where = bank.by_bytes(size, config, args.devices)
    print(f"{args.config}, {args.share} videos of a batch a device; measured: {one.device_kind}, JAX {jax.__version__}")
    hosts, total = -(-args.devices // args.per_host), f"{size / 1e9:,.1f} GB {args.dtype}"
    print(f"{args.devices} devices, {hosts} hosts; {args.videos:,} videos, {total}; placement {where}")
    took = times(args, found, where, config.num_snippets)
    step = max(took["step"]["compute"] + took["step"]["exchange"], took["step"].get("reading", 0.0))
    print_parts("a step", took["step"], 1e3, "ms", step)
    print(f"an epoch: {args.videos // batch} steps of {batch} videos, {args.videos // batch * step:,.3g} s")
    print_parts("a start", took["start"], 1, "s")
    print_parts(f"scoring {args.videos:,} videos", took["scoring"], 1, "s")
    for place, parts in memory(args, found, where, config.num_snippets).items():
        print_parts(f"a {place}", parts, 1e-9, "GB")
    if args.check:
        check(args)


def print_parts(title: str, parts: Values, unit: float, name: str, total: float | None = None) -> None:
    """A line with the parts, their sum, and the largest."""
    show = lambda x: f"{x * unit:,.0f}" if x * unit >= 100 else f"{x * unit:.3g}"  # noqa: E731
    listed = ", ".join(f"{part} {show(x)}" for part, x in parts.items())
    total = sum(parts.values()) if total is None else total
    print(f"{title}: {show(total)} {name} ({listed}); most is {max(parts, key=lambda part: parts[part])}")


def arguments(command: argparse.ArgumentParser, run: Any) -> None:
    """The options of `stream` and `scale`."""
    command.add_argument("--config", default="configs/maan.py:dataset=feature_folder", help="as for wsal_jax.main")
    command.add_argument("--dim", type=int, default=1024, help="dimension of the features")
    if run is stream:
        command.add_argument("--gigabytes", type=float, default=2.0, help="size of the features")
        command.add_argument("--snippets", type=int, default=300, help="of a video")
        command.add_argument("--dtype", default="float32", help="of the features on disk")
        command.add_argument("--steps", type=int, default=400)
        command.add_argument("--log-every", type=int, default=100)
        command.add_argument("--dir", help="folder for temporary files, which need as much space as the features")
        return
    command.add_argument("--devices", type=int, default=256)
    command.add_argument("--videos", type=int, default=1_000_000, help="to train on, and as many to score")
    command.add_argument("--snippets", type=int, default=120, help="of a video")
    command.add_argument("--classes", type=int, default=200)
    command.add_argument("--dtype", default="float16", help="of the features")
    command.add_argument("--share", type=int, default=32, help="videos of a batch on each device")
    command.add_argument("--per-host", type=int, default=8, help="devices of a host")
    command.add_argument("--cores", type=int, default=8, help="of a host, that read features")
    command.add_argument("--device-gb", type=float, default=16.0, help="memory of a device; features may take half")
    command.add_argument("--latency", type=float, default=100.0, help="us of a small sum over all devices")
    command.add_argument("--link", type=float, default=10.0, help="GB/s that a device sends in a large sum")
    command.add_argument("--disk", type=float, default=0.5, help="GB/s that a host reads")
    command.add_argument("--check", type=int, nargs="*", default=[], help="numbers of local processes to compare with")
