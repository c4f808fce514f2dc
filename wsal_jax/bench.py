"""Timings: `python -m wsal_jax.bench <subcommand>`. One function per subcommand, which prints a table."""

import argparse
import hashlib
import itertools
import json
import math
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from ml_collections import FrozenConfigDict

from wsal_jax import bench_scale, method, methods, metrics, sharding
from wsal_jax import train as loop
from wsal_jax.aggregate import marginalized_average, marginalized_average_scan
from wsal_jax.backbones import efficientnet_lite0, i3d
from wsal_jax.chain import chain_average
from wsal_jax.data.bank import Bank
from wsal_jax.types import Annotation, Detections
from wsal_jax.video import bench as video


def seconds(function, *args) -> float:
    """Median time of a compiled function after a warm-up call: 20 calls, or at least 3 if they take more than 2 s."""
    jax.block_until_ready(function(*args))
    times = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 2):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_operations(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Multiplications and additions in the matrix products and convolutions of a jaxpr.

    A condition counts its most expensive branch, a convolution its padding too.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * per_output
        inner = [x for x in jax.tree.leaves(list(equation.params.values())) if isinstance(x, ClosedJaxpr | Jaxpr)]
        counts = [product_operations(x) for x in inner]
        if equation.primitive.name == "cond":
            total += max(counts)
        else:
            total += equation.params.get("length", 1) * sum(counts)
    return total


def product_rate() -> float:
    """Operations per second in a product of two float32 matrices of 4,096 x 4,096."""
    n = 4096
    x = jax.random.normal(jax.random.key(0), (n, n))
    return 2 * n**3 / seconds(jax.jit(jnp.matmul), x, x)


def aggregate(args: argparse.Namespace) -> None:
    """Marginalized average: the linear-time form against the paper's recurrence (scan), forward + backward.

    The gradient is with respect to probabilities and features. `growth` is the time relative to the row above.
    """
    batch, d, most_bytes = 8, 1024, 8e9
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {batch}, d {d}, float32, forward + backward")
    print(f"{'T':>6} {'linear ms':>10} {'growth':>7} {'scan ms':>10} {'growth':>7} {'scan / linear':>14}")
    previous = {}
    for n in (20, 100, 400, 2000, 20_000):
        inputs = jax.random.uniform(jax.random.key(0), (batch, n)), jax.random.normal(jax.random.key(1), (batch, n, d))
        residual_bytes = 4 * batch * n * (n + 1) * (d + 1)  # kept by reverse mode of the scan
        cells, times = [], {}
        for name, average in (("linear", marginalized_average), ("scan", marginalized_average_scan)):
            if name == "scan" and residual_bytes > most_bytes:
                cells.append(f"none: its reverse mode keeps {residual_bytes / 1e9:,.0f} GB")
                continue

            def loss(p, x, average=average):
                return jnp.sum(jax.vmap(average)(p, x) ** 2)

            times[name] = seconds(jax.jit(jax.value_and_grad(loss, (0, 1))), *inputs)
            growth = f"{times[name] / previous[name]:.1f}x" if name in previous else ""
            cells.append(f"{1e3 * times[name]:>10,.2f} {growth:>7}")
        ratio = f"{times['scan'] / times['linear']:>13,.0f}x" if "scan" in times else ""
        print(f"{n:>6} {cells[0]} {cells[1]} {ratio}", flush=True)
        previous = times


def chain(args: argparse.Namespace) -> None:
    """Marginalized average over a Markov chain, forward + backward: time by the number of snippets.

    The gradient is with respect to probabilities, features and `stay`. `growth` is the time relative to the row above;
    `to MAAN` to the marginalized average without a chain.
    """
    batch, d = args.batch, 1024
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {batch}, d {d}, float32, forward + backward")
    print(f"{'T':>6} {'ms':>10} {'growth':>7} {'to MAAN':>10}")
    previous = None
    for n in (20, 200, 2000, 20_000):
        p, x = jax.random.uniform(jax.random.key(0), (batch, n)), jax.random.normal(jax.random.key(1), (batch, n, d))

        def loss(p, x, stay):
            return jnp.sum(jax.vmap(chain_average, (0, 0, None))(p, x, stay) ** 2)

        def without(p, x):
            return jnp.sum(jax.vmap(marginalized_average)(p, x) ** 2)

        took = seconds(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), p, x, 1.0)
        of_maan = took / seconds(jax.jit(jax.value_and_grad(without, (0, 1))), p, x)
        growth = f"{took / previous:.1f}x" if previous else ""
        print(f"{n:>6} {1e3 * took:>10,.2f} {growth:>7} {of_maan:>9.1f}x", flush=True)
        previous = took


def train(args: argparse.Namespace) -> None:
    """Training steps of each --config, phase by phase, on random features at the size of the paper, on all devices.

    A model of joined streams has d dimensions of each. Each row times dispatches of up to `config.log_every` steps
    (fewer if steps are slow), without checkpoints and logs.
    "GFLOP" counts the matrix products of a step. "rate" compares their speed with that of a plain large product, timed
    just before. "MB" is the compiler's count of the memory of a step beside features, parameters and optimizers.
    """
    videos, snippets, d = 200, 300, 1024
    rng = np.random.default_rng(0)
    starts, lengths = np.arange(videos) * snippets, np.full(videos, snippets)
    mesh, banks = sharding.make_mesh(), {}
    print(
        f"{mesh.size} x {mesh.devices[0].device_kind}, JAX {jax.__version__}, d {d}; ActivityNet: 200 classes, else 20"
    )
    head = f"{'config':<56} {'phase':<10} {'batch':>5} {'T':>5} {'seeds':>5} {'ms / step':>10} {'of first row':>13}"
    print(f"{head} {'GFLOP':>7} {'rate':>5} {'MB':>6}")
    first = None
    for text, seeds in itertools.product(args.config, args.seeds):
        path, _, switches = text.partition(":")
        config = runpy.run_path(path)["get_config"](switches)
        config.seeds = seeds
        whole = methods.get(config.method)
        dims = (d,) * len(config.streams[0].split("+"))
        classes = 200 if "activitynet" in config.data.name else 20
        if (dims, classes) not in banks:
            features = rng.random((videos * snippets, sum(dims)), np.float32)
            labels = (rng.random((videos, classes)) < 2 / classes).astype(np.float32)
            bank = Bank(starts, starts, lengths, labels, labels, features)
            banks = {(dims, classes): sharding.replicate(mesh, bank)}
        bank = banks[dims, classes]
        for phase in whole.phases:
            one = whole._replace(phases=(phase,))
            state = sharding.replicate(mesh, loop.init(one, method.Spec(dims, classes), config, videos * snippets))
            run = loop.make_run(one, FrozenConfigDict(config), videos // config.batch_size, mesh)
            keys = loop.make_keys(config)
            operations = product_operations(jax.make_jaxpr(run)(state, keys, bank, np.arange(1), None))
            rate = product_rate()
            steps = np.arange(max(1, min(config.log_every, round(rate / operations))))
            compiled = run.lower(state, keys, bank, steps, None).compile()
            time = seconds(compiled, state, keys, bank, steps, None) / len(steps)
            time_ms, share = 1e3 * time, operations / time / rate
            first = first or time_ms
            size = f"{config.batch_size:>5} {config.num_snippets:>5} {seeds:>5}"
            memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
            measured = (
                f"{time_ms:>10.2f} {time_ms / first:>12.2f}x {operations / 1e9:>7.1f} {share:>5.0%} {memory:>6.0f}"
            )
            print(f"{text:<56} {phase.name:<10} {size} {measured}", flush=True)


def score(args: argparse.Namespace) -> None:
    """Detection mAP of random segments: time by their number and by protocol.

    As on THUMOS14: 212 videos, each with 16 true segments of one of 20 classes; 9 thresholds. Detections have the class
    of their video, so each is compared with all true segments of the video.
    """
    videos, classes, instances = 212, 20, 16
    rng = np.random.default_rng(0)

    def random_segments(k):
        start = 200 * rng.random(k)
        return np.stack([start, start + 0.3 + rng.exponential(4, k)], axis=1)

    truth = {
        str(v): Annotation(random_segments(instances), np.full(instances, v % classes), random_segments(1))
        for v in range(videos)
    }
    print(
        f"{videos} videos, {classes} classes, {videos * instances} true segments, {len(metrics.IOUS)} thresholds, NumPy"
    )
    print(f"{'detections':>10} {'protocol':<12} {'seconds':>8} {'growth':>7} {'mAP@.5':>7}")
    previous = None
    for count in (1000, 10_000, 30_000, 100_000, 1_000_000):
        found = {
            str(v): Detections(random_segments(k), np.full(k, v % classes), rng.random(k))
            for v, k in enumerate(np.bincount(np.arange(count) % videos))
        }
        for protocol in metrics.PROTOCOLS if count == 30_000 else ("activitynet",):
            start = time.perf_counter()
            result = metrics.detection_map(found, truth, classes, np.array(metrics.IOUS), protocol)
            took = time.perf_counter() - start
            growth = ""
            if protocol == "activitynet":
                growth, previous = f"{took / previous:.1f}x" if previous else "", took
            print(f"{count:>10,} {protocol:<12} {took:>8.3f} {growth:>7} {100 * result.mean[4]:>7.1f}", flush=True)


def make_folder(root: Path, videos: int, snippets: int, dim: int, classes: int) -> None:
    """Writes a feature folder of joint float16 features. Only 8 videos take disk space; the others link to them.

    Args:
      root: the new folder.
      videos: number of videos.
      snippets: number of snippets of each video.
      dim: dimension of the joint features.
      classes: number of classes.
    """
    rng = np.random.default_rng(0)
    kept = [root / "kept" / f"{i}.npy" for i in range(min(8, videos))]
    for folder in (root / "kept", root / "features" / "train", root / "features" / "test"):
        folder.mkdir(parents=True)
    for path in kept:
        np.save(path, rng.standard_normal((snippets, dim), np.float32).astype(np.float16))
    database = {}
    for i in range(videos):
        split, id = "test" if i % 3 == 2 else "train", f"video_{i:07d}"
        (root / "features" / split / f"{id}.npy").symlink_to(kept[i % len(kept)])
        segments = [[float(j), float(j + 1)] for j in rng.integers(0, snippets // 2, 3)]
        database[id] = {"annotations": [{"segment": x, "label": f"class {i % classes:03d}"} for x in segments]}
    names = [f"class {c:03d}" for c in range(classes)]
    content = {"fps": 25, "feature_stride_frames": 16, "classes": names, "database": database}
    (root / "gt.json").write_text(json.dumps(content))


def in_process(code: str, *args: object) -> list[float]:
    """Runs code in a new Python process; returns the numbers on its last line and its peak memory in GB."""
    code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)"
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for line in done.stdout.splitlines()[-2:] for word in line.split()]


BUILD = """
import logging, sys, time
logging.disable()
import tensorflow_datasets as tfds
from wsal_jax.data import feature_folder
start = time.perf_counter()
builder = tfds.builder("feature_folder", root=sys.argv[1], data_dir=sys.argv[2], file_format="array_record")
checked = time.perf_counter() - start
builder.download_and_prepare()
assert "tensorflow" not in sys.modules
print(checked, time.perf_counter() - start - checked)
"""


def build(args: argparse.Namespace) -> None:
    """Checking and building a feature folder of joint float16 features, 1,000 x 2,048 a video, in a new process.

    It is built --builds times; the digests show whether the results are identical.
    """
    snippets, dim = 1000, 2048
    videos = round(args.gigabytes * 1e9 / (2 * snippets * dim))
    print(f"{videos} videos, {videos * snippets * dim * 2 / 1e9:.1f} GB of features")
    print(
        f"{'build':>5} {'check s':>8} {'build s':>8} {'MB / s':>7} {'resident GB':>12} {'built GB':>9}  SHA-256 of all"
    )
    with tempfile.TemporaryDirectory(dir=args.dir) as temporary:
        root = Path(temporary) / "data"
        make_folder(root, videos, snippets, dim, 20)
        for i in range(args.builds):
            out = Path(temporary) / f"built{i}"
            checked, built, resident = in_process(BUILD, root, out)
            files = sorted(path for path in out.rglob("*") if path.is_file())
            size, digest = sum(path.stat().st_size for path in files), hashlib.sha256()
            for path in files:
                digest.update(f"{path.relative_to(out)} {path.stat().st_size} ".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            shutil.rmtree(out)
            times = f"{checked:>8.1f} {built:>8.1f} {size / 1e6 / built:>7.0f}"
            print(f"{i:>5} {times} {resident:>12.2f} {size / 1e9:>9.2f}  {digest.hexdigest()[:16]}", flush=True)


LOAD = """
import logging, resource, sys, time
logging.disable()
import tensorflow_datasets as tfds
from wsal_jax.data import feature_folder, pipeline
size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
before, start = size(), time.perf_counter()
builder = tfds.builder("feature_folder", root=sys.argv[1], data_dir=sys.argv[2], file_format="array_record")
found, start, work = time.perf_counter() - start, time.perf_counter(), time.process_time()
data = [pipeline.load(builder, split) for split in ("train", "test")]
print(before, found, time.perf_counter() - start, time.process_time() - work)
"""


def load(args: argparse.Namespace) -> None:
    """Starting on a feature folder that is already built: checking that files have not changed, loading both splits.

    A video has 120 snippets, 3 segments and one of 200 classes. "growth" is that of the CPU time. "GB" is the peak
    resident size including all imports; "more" is the part added after the imports.
    """
    print(f"{'videos':>8} {'find s':>7} {'load s':>7} {'CPU s':>6} {'growth':>7} {'GB':>6} {'more':>6}")
    previous = None
    for videos in (200, 2000, 20_000):
        with tempfile.TemporaryDirectory() as temporary:
            root, out = Path(temporary) / "data", Path(temporary) / "built"
            make_folder(root, videos, 120, 2, 200)
            in_process(BUILD, root, out)
            before, found, took, work, size = in_process(LOAD, root, out)
        growth = f"{work / previous:.1f}x" if previous else ""
        print(
            f"{videos:>8,} {found:>7.2f} {took:>7.2f} {work:>6.2f} {growth:>7} {size:>6.2f} {size - before:>6.2f}",
            flush=True,
        )
        previous = work


def backbone(args: argparse.Namespace) -> None:
    """Networks that make features, with random weights: CPU seconds of a clip of 16 frames, or of an image.

    "GFLOP" is what plain convolutions take, padding included; "share" what that is, in the time taken, of the rate of a
    product of two float32 matrices of 2,048 x 2,048, timed just before. CPU time counts all cores (`taskset -c 0` for
    one) and is no measure of accelerators.
    """

    def cpu_seconds(function, *inputs) -> float:
        jax.block_until_ready(function(*inputs))
        times = []
        for _ in range(args.repeats):
            start = time.process_time()
            jax.block_until_ready(function(*inputs))
            times.append(time.process_time() - start)
        return min(times)

    key, batch = jax.random.key(0), args.batch
    x = jax.random.normal(key, (2048, 2048))
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {batch}, float32, least of {args.repeats}")
    print(f"{'network':<20} {'input':>18} {'GFLOP':>7} {'CPU ms':>8} {'share':>6}")
    rows = [("i3d " + stream, (16, 224, 224, c), i3d.shapes(stream).items(), i3d) for stream, c in i3d.CHANNELS.items()]
    sizes = {name: kernel for name, (kernel, _) in efficientnet_lite0.shapes().items()}
    rows.append(("efficientnet_lite0", (224, 224, 3), sizes.items(), efficientnet_lite0))
    for name, shape, kernels, network in rows:
        params = {
            unit: {"kernel": jax.random.normal(key, s) * math.prod(s[:-1]) ** -0.5, "bias": jnp.zeros(s[-1])}
            for unit, s in kernels
        }
        inputs = jax.random.uniform(key, (batch, *shape), minval=-1)
        operations = product_operations(jax.make_jaxpr(network.apply)(params, inputs)) / batch
        prepared = i3d.for_cpu(params) if network is i3d and jax.default_backend() == "cpu" else params
        rate = 2 * 2048**3 / cpu_seconds(jax.jit(jnp.matmul), x, x)
        took = cpu_seconds(jax.jit(network.apply), prepared, inputs) / batch
        size = " x ".join(map(str, shape))
        share = operations / took / rate
        print(f"{name:<20} {size:>18} {operations / 1e9:>7.2f} {1e3 * took:>8.1f} {share:>6.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wsal_jax.bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    scaling = (bench_scale.stream, bench_scale.scale)
    for run in (aggregate, chain, train, score, build, load, backbone, video.extract, *scaling):
        command = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0])
        command.set_defaults(run=run)
        if run is video.extract:
            video.arguments(command)
        if run in scaling:
            bench_scale.arguments(command, run)
        if run is chain:
            command.add_argument("--batch", type=int, default=8, help="videos at once")
        if run is train:
            command.add_argument("--config", action="append", required=True, help="as for wsal_jax.main; repeatable")
            command.add_argument("--seeds", type=int, nargs="+", default=[1], help="number of seeds trained at once")
        if run is build:
            command.add_argument("--gigabytes", type=float, default=1.23, help="size of the features, 4.1 MB a video")
            command.add_argument("--builds", type=int, default=2, help="number of builds")
            command.add_argument("--dir", help="folder for temporary files, which need as much space as the features")
        if run is backbone:
            command.add_argument("--batch", type=int, default=1, help="clips or images at once")
            command.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
