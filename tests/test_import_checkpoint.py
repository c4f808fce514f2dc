"""Published weights: read, damaged or not, and evaluated; against direct NumPy. Tiny files are made by hand here."""

import importlib.util
import json
import struct
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from configs import maan
from wsal_jax import checkpoint, import_checkpoint, localize, main, methods, train
from wsal_jax.data import pipeline
from wsal_jax.formats import arrays, tensorflow_checkpoint
from wsal_jax.method import Step
from wsal_jax.methods.maan import Extras
from wsal_jax.types import InputError, Meta, Model, Scores, Video

PUBLISHED = Path(__file__).parents[1].parent / "shared" / "data" / "checkpoints"
NAMES = {
    "dgam": ("att_head.fc1.", "att_head.fc2.", "clf_head.fc1."),
    "stpn": ("Attention/dense/", "Attention/dense_1/", "Classification/class_weight/"),
}


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number, value):
    """A field of a protocol buffer; (4 bytes,) is a fixed32."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, tuple):
        return varint(number << 3 | 5) + value[0]
    return varint(number << 3 | 2) + varint(len(value)) + value


def snappy(data):
    """Snappy data with literals of 7 bytes, and copies of repetitions (all three kinds, also overlapping)."""
    out, at = varint(len(data)), 0
    while at < len(data):
        for back in (1, 2, 4, 16):
            run = 0
            while back <= at and run < 11 and at + run < len(data) and data[at + run] == data[at + run - back]:
                run += 1
            if run >= 4:
                break
        else:
            piece = data[at : at + 7]
            out += bytes([60 << 2, len(piece) - 1] if at % 2 else [len(piece) - 1 << 2]) + piece
            at += len(piece)
            continue
        wide = bytes([2 | run - 1 << 2]) + struct.pack("<H", back), bytes([3 | run - 1 << 2]) + struct.pack("<I", back)
        out += (bytes([1 | run - 4 << 2 | back >> 8 << 5, back & 255]), *wide)[at % 3]
        at += run
    return out


def table(pairs, packing, per_block):
    """A file in the table format; every second key is stored as the difference from the previous one."""
    content = b""

    def block(entries):
        nonlocal content
        data, last = b"", b""
        for i, (key, value) in enumerate(entries):
            shared = 0
            while i % 2 and shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
            data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            last = key
        data += struct.pack("<II", 0, 1)
        data = (snappy(data) if packing else data) + bytes([packing])
        handle = varint(len(content)) + varint(len(data) - 1)
        content += data + struct.pack("<I", tensorflow_checkpoint.masked_crc32c(data))
        return handle

    blocks = [pairs[i : i + per_block] for i in range(0, len(pairs), per_block)]
    index = [(part[-1][0], block(part)) for part in blocks]
    handles = block([]) + block(index)
    return content + handles.ljust(40, b"\0") + struct.pack("<Q", tensorflow_checkpoint.MAGIC)


def write_bundle(prefix, values, packing=0, per_block=100, shards=1, **extra):
    """A checkpoint of TensorFlow; `extra` is appended to entries of that name."""
    types = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10}
    pairs, data = [(b"", field(1, shards) + field(3, field(1, 1)))], [b""] * shards
    for i, name in enumerate(sorted(values)):
        x = np.asarray(values[name])
        shape = b"".join(field(2, field(1, n)) for n in x.shape)
        entry = field(1, types[str(x.dtype)]) + field(2, shape) + field(3, i % shards) + field(4, len(data[i % shards]))
        entry += field(5, x.nbytes) + field(6, (struct.pack("<I", tensorflow_checkpoint.masked_crc32c(x.tobytes())),))
        pairs.append((name.encode(), entry + extra.get(name, b"")))
        data[i % shards] += x.tobytes()
    Path(f"{prefix}.index").write_bytes(table(pairs, packing, per_block))
    for i, part in enumerate(data):
        Path(f"{prefix}.data-{i:05d}-of-{shards:05d}").write_bytes(part)
    return str(prefix)


def write_torch(path, values):
    """A dict of tensors as torch.save writes it."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def sizes(value):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in value) + b"t"

    payload = b"\x80\x02}("
    for i, (name, x) in enumerate(values.items()):
        kind = {"float32": "Float", "float64": "Double"}[str(x.dtype)]
        storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(str(i)) + text("cpu")
        storage += b"J" + struct.pack("<i", x.size) + b"tQ"
        strides = [n // x.itemsize for n in x.strides]
        payload += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J\0\0\0\0" + sizes(x.shape)
        payload += sizes(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload + b"u.")
        for i, x in enumerate(values.values()):
            archive.writestr(f"archive/data/{i}", x.tobytes())
    return str(path)


def weights(kind, d=6, h=5, c=3, seed=0):
    """Random ones under the published names."""
    rng = np.random.default_rng(seed)
    shapes = zip(NAMES[kind], ((d, h), (h, 1), (d, c + (kind == "dgam"))))
    values = {}
    for name, shape in shapes:
        kernel, bias = (rng.normal(size=s).astype(np.float32) for s in (shape, shape[1:]))
        values[name + ("weight" if kind == "dgam" else "kernel")] = kernel.T.copy() if kind == "dgam" else kernel
        values[name + "bias"] = bias
    return values


def write(kind, path, values):
    """With what published files have beside the weights."""
    if kind == "dgam":
        extra = {"module.cluster_head.u_fg.bias": np.zeros(1, np.float32)}
        return write_torch(f"{path}.pth", {f"module.{name}": x for name, x in values.items()} | extra)
    slots = {name + suffix: np.zeros_like(x) for name, x in values.items() for suffix in ("/Adam", "/Adam_1")}
    return write_bundle(path, values | slots | {"beta1_power": np.float32(0)})


def direct(kind, values, x):
    """Attention, class probabilities of the video, and logits without bias, from the arrays of a file in float64."""
    parts = [values[name + part] for name in NAMES[kind] for part in ("weight" if kind == "dgam" else "kernel", "bias")]
    w1, b1, w2, b2, w, b = (np.asarray(part, np.float64) for part in parts)
    if kind == "dgam":
        w1, w2, w = w1.T, w2.T, w.T
    x = np.asarray(x, np.float64)
    attention = expit(np.maximum(x @ w1 + b1, 0) @ w2 + b2)[:, 0]
    if kind == "dgam":
        probability = softmax(attention @ x / attention.sum() @ w + b)[:-1]
    else:
        probability = expit((attention[:, None] * x).mean(0) @ w + b)
    return attention, probability, x @ w


def config_of(folder, text):
    spec = importlib.util.spec_from_file_location("imported", folder / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(text)


# TensorFlow's format


def test_crc32c_of_the_standard():
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tensorflow_checkpoint.masked_crc32c(b"123456789") == masked


@pytest.mark.parametrize("packing", [0, 1])
@pytest.mark.parametrize(("per_block", "shards"), [(100, 1), (3, 2), (1, 1)])
def test_a_bundle_is_read_as_it_was_written(tmp_path, packing, per_block, shards):
    rng = np.random.default_rng(0)
    values = {f"layer/{i}/kernel": rng.normal(size=(i, 3)).astype(np.float32) for i in range(9)}
    values |= {"a": np.arange(5), "b": np.float64(2.5), "z/z": rng.normal(size=(2, 1, 3)), "flag": np.array([True])}
    prefix = write_bundle(tmp_path / "x", values, packing, per_block, shards)
    for given in (prefix, f"{prefix}.index"):
        read = tensorflow_checkpoint.read(given)
        assert sorted(read) == sorted(values)
        for name, x in values.items():
            assert read[name].dtype == x.dtype
            np.testing.assert_array_equal(read[name], x)


@pytest.mark.parametrize("packing", [0, 1])
def test_a_damaged_bundle_is_never_read_as_another(tmp_path, packing):
    """Flips every byte and truncates to every length; bytes without a checksum are not used."""
    values = {"a": np.float32([[1, 2]]), "b/c": np.float32(3)}
    prefix = write_bundle(tmp_path / "x", values, packing)
    for path in map(Path, (f"{prefix}.index", f"{prefix}.data-00000-of-00001")):
        whole = path.read_bytes()
        cut = [whole[:n] for n in range(len(whole))]
        flipped = [whole[:n] + bytes([whole[n] ^ 1 << n % 8]) + whole[n + 1 :] for n in range(len(whole))]
        refused = 0
        for content in cut + flipped:
            path.write_bytes(content)
            try:
                read = tensorflow_checkpoint.read(prefix)
            except InputError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                assert content in flipped and all((read[name] == x).all() for name, x in values.items())
        path.write_bytes(whole)
        assert refused == len(whole) * 2 if ".data" in path.name else refused > 1.6 * len(whole)


def test_what_no_array_is_or_is_not_there_is_refused(tmp_path):
    values = {"a": np.float32([1, 2])}
    for extra, message in ((field(1, 7), "dtype 7"), (field(7, b""), "slices"), (field(5, 12), "cannot be")):
        prefix = write_bundle(tmp_path / "x", values, a=extra)
        with pytest.raises(InputError, match=rf"x\.index .*\ba\b.*{message}"):
            tensorflow_checkpoint.read(prefix)
    Path(write_bundle(tmp_path / "x", values) + ".data-00000-of-00001").unlink()
    with pytest.raises(InputError, match="data-00000-of-00001 cannot be read"):
        tensorflow_checkpoint.read(tmp_path / "x")
    with pytest.raises(InputError, match=r"y\.index cannot be read"):
        tensorflow_checkpoint.read(tmp_path / "y")


# Published names


@pytest.mark.parametrize("kind", ["dgam", "stpn"])
def test_names_and_shapes_that_are_wrong_are_listed(tmp_path, kind):
    values = weights(kind)
    first, second, *_ = values
    wrong = {name: x for name, x in values.items() if name != first} | {"else/where": np.zeros(2, np.float32)}
    wrong[second] = np.float32([np.nan] * 5)
    with pytest.raises(InputError) as error:
        import_checkpoint.read(kind, write(kind, tmp_path / "x", wrong))
    told = str(error.value)
    assert f"{first}: is missing" in told and f"{second}: is NaN" in told
    assert f"else/where: is no parameter of {kind}" in told
    for bad, message in ((np.zeros(7, np.float32), "do not fit together"), (np.zeros(5), "float64: must be float32")):
        with pytest.raises(InputError, match=rf"x(\.pth)?\b(.|\n)*{message}"):
            import_checkpoint.read(kind, write(kind, tmp_path / "x", {**values, second: bad}))


def test_truncated_torch_files_are_refused(tmp_path):
    path = Path(write("dgam", tmp_path / "x", weights("dgam")))
    whole = path.read_bytes()
    for n in range(0, len(whole), 97):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match=r"x\.pth"):
            import_checkpoint.read("dgam", str(path))


def test_a_list_is_no_state_dict(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02].")
    with pytest.raises(InputError, match=r"x\.pth holds a list"):
        import_checkpoint.read("dgam", str(tmp_path / "x.pth"))


# Imported runs


def imported(kind, tmp_path, **sizes):
    files = {s: write(kind, tmp_path / s, weights(kind, seed=i, **sizes)) for i, s in enumerate(("rgb", "flow"))}
    folder = tmp_path / "run"
    import_checkpoint.main([kind, "--rgb", files["rgb"], "--flow", files["flow"], "--workdir", str(folder)])
    return folder


@pytest.mark.parametrize("kind", ["dgam", "stpn"])
def test_an_imported_run_is_evaluated_and_not_trained(config, tmp_path, kind, monkeypatch, capsys):
    """By its own config, on data of other dimensions than the published ones."""
    data = pipeline.load(pipeline.build(config.data), "test")
    folder = imported(kind, tmp_path, d=data.dims["rgb"], c=len(data.class_names))
    assert f"--config={folder}/config.py" in capsys.readouterr().out
    own = config_of(folder, "dataset=synthetic_untrimmed/tiny")
    assert own.method.hidden == 5 and own.streams == ("rgb", "flow")
    own.data.dir, own.batch_size, own.plots = config.data.dir, 8, 1
    monkeypatch.setattr(train, "make_run", lambda *_: pytest.fail("trained"))
    scored = {}
    original = main.evaluate.score

    def score(made, params, data, streams):
        scored[streams[0]] = original(made, params, data, streams)
        return scored[streams[0]]

    monkeypatch.setattr(main.evaluate, "score", score)
    first = main.run(own, str(folder))
    assert main.run(own, str(folder)) == first
    assert list(json.loads((folder / "results.json").read_text())["rows"])[:3] == ["rgb", "flow", "fused"]
    assert not (folder / "metrics.jsonl").exists()
    for i, stream in enumerate(("rgb", "flow")):
        x = pipeline.read(data, 3, [stream])
        attention, probability, _ = direct(kind, weights(kind, d=x.shape[1], c=len(data.class_names), seed=i), x)
        np.testing.assert_allclose(scored[stream][0][3].attention, attention, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scored[stream][0][3].video_score, probability, rtol=1e-4, atol=1e-6)
    own.localize.reject = 0.2
    with pytest.raises(InputError, match=r"localize\.reject: 0\.1 there, 0\.2 now"):
        main.run(own, str(folder))


def test_an_imported_run_refuses_data_of_other_classes(config, tmp_path):
    folder = imported("stpn", tmp_path, d=3, c=2)
    own = config_of(folder, "dataset=synthetic_untrimmed/tiny")
    own.data.dir, own.batch_size = config.data.dir, 8
    with pytest.raises(InputError, match=r"params/attention/hidden/kernel \(float32\[1, 3, 5\] saved"):
        main.run(own, str(folder))


def test_one_stream_alone_and_folders_in_use(tmp_path):
    path = write("dgam", tmp_path / "x", weights("dgam"))
    import_checkpoint.main(["dgam", "--flow", path, "--workdir", str(tmp_path / "run")])
    assert config_of(tmp_path / "run", None).streams == ("flow",)
    with pytest.raises(SystemExit, match="is not empty"):
        import_checkpoint.main(["dgam", "--flow", path, "--workdir", str(tmp_path / "run")])
    other = write("dgam", tmp_path / "y", weights("dgam", c=4))
    with pytest.raises(SystemExit, match="differ in their classes"):
        import_checkpoint.main(["dgam", "--rgb", other, "--flow", path, "--workdir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_the_config_of_stpn_says_how_it_was_trained(tmp_path):
    config = config_of(imported("stpn", tmp_path), None)
    options, reader = config.method, config.data.reader
    assert (options.aggregator, options.activation, options.proposals) == ("stpn_mean", "relu", "released")
    assert config.localize.thresholds == (0.05,) and config.localize.upsample == 24
    assert config.num_snippets == config.localize.snippets == 400
    assert (config.data.name, reader.fps, reader.stride, reader.offset) == ("thumos14", 10.0, 16.0, 8.0)


@pytest.mark.parametrize("kind", ["dgam", "stpn"])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_published_weights_score_as_numpy_does(tmp_path, kind, stream):
    path = PUBLISHED / (f"dgam_thumos14/{stream}.pth" if kind == "dgam" else f"stpn_thumos14/{stream}/{stream}_23100")
    if not PUBLISHED.exists():
        pytest.skip("the published weights are not here")
    import_checkpoint.main([kind, f"--{stream}", str(path), "--workdir", str(tmp_path / "run")])
    config = config_of(tmp_path / "run", None)
    params = checkpoint.restore(tmp_path / "run" / "checkpoints" / stream, step=config.steps)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params)
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0.1, 0.4, (50, 1024)), 0).astype(np.float32)
    padded = np.concatenate([x, rng.normal(size=(14, 1024)).astype(np.float32)])
    mask = (np.arange(64) < 50).astype(np.float32)
    made = methods.get(config.method, stream)
    scores = made.score(
        params, Video(jnp.asarray(padded), jnp.asarray(mask), jnp.zeros(20), jnp.zeros(20), jnp.int32(mask.sum()))
    )
    values = arrays.read_pt(path) if kind == "dgam" else tensorflow_checkpoint.read(path)
    values = {name.removeprefix("module."): value for name, value in values.items()}
    attention, probability, logits = direct(kind, values, x)
    assert attention.std() > 1e-3 and probability.std() > 1e-3
    np.testing.assert_allclose(scores.attention[:50], attention, rtol=1e-4)
    np.testing.assert_allclose(scores.video_score, probability, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scores.cas[:50], attention[:, None] * expit(logits[:, :20]), rtol=1e-3, atol=1e-6)
    assert not np.asarray(scores.attention[50:]).any()


# The reproduction of STPN


def released(**options):
    config = maan.get_config("as_released")
    config.localize.update(options)
    return config


def slow_proposals(models, meta, config):
    """Value by value, as the released code goes through them: {class: [(start, end, score)]} before NMS."""
    n, up = config.snippets, config.upsample
    at = [i * meta.length // n for i in range(n)]
    found = {}

    def value(signal, k):
        i = min(k // up, n - 2)
        return signal[i] + (k / up - i) * (signal[i + 1] - signal[i])

    for model in models:
        for c in range(len(model.video_score)):
            if model.video_score[c] < config.reject and c != np.argmax(model.video_score):
                continue
            if (model.video_score >= config.reject).any() and model.video_score[c] < config.reject:
                continue
            own = [model.attention[t] * expit(model.extras.logits[t, c]) for t in at]
            mixed = [model.attention[t] * np.mean([m.extras.logits[t, c] for m in models]) for t in at]
            run = []
            for k in range(n * up + 1):
                if k < n * up and value(own, k) >= config.thresholds[0]:
                    run.append(k)
                elif run:
                    factor = meta.stride * meta.length / (up * n * meta.fps)
                    score = np.mean([value(mixed, j) for j in run])
                    found.setdefault(c, []).append((run[0] * factor, (run[-1] + 1) * factor, score))
                    run = []
    return found


@pytest.mark.parametrize(("length", "streams"), [(4, 1), (9, 2), (30, 2)])
def test_proposals_of_the_reproduction(length, streams):
    config = released(snippets=12, upsample=5, thresholds=(0.3,), nms=0.5003)  # 0.5 is hit, up to rounding
    rng = np.random.default_rng(length)
    meta = Meta("v", length, 10.0, 16.0, 8.0, length * 1.6)
    negative = 0
    for _ in range(20):
        models = []
        for _ in range(streams):
            logits = 2 * rng.normal(size=(length + 3, 4))  # with padding
            video_score = rng.random(4) * rng.choice([0.05, 0.5])
            models.append(Scores(video_score, np.zeros((length, 4)), rng.random(length), Extras(logits)))
        made = methods.get(config.method)
        own = [Model(scores, config.localize) for scores in models]
        found = made.propose(own, own[0], meta)
        expected = slow_proposals(models, meta, config.localize)
        assert set(found.labels.tolist()) == set(expected)
        for c, proposals in expected.items():
            segments, ranks = np.array([p[:2] for p in proposals]), np.array([p[2] for p in proposals])
            kept = localize.nms(segments, ranks, config.localize.nms)
            mine = np.column_stack([found.segments, found.scores])[found.labels == c]
            theirs = np.column_stack([segments, ranks])[kept]
            np.testing.assert_allclose(mine[mine[:, 0].argsort()], theirs[theirs[:, 0].argsort()], atol=1e-9)
        negative += (found.scores < 0).sum()
    assert negative


def test_loss_of_the_reproduction():
    """Mean cross-entropy over 20 classes plus 1e-4 times the sum of the attention of 400 snippets; ours is 20 times."""
    config = released()
    made = methods.get(config.method)
    values = weights("stpn", d=6, h=256, c=20)
    rng = np.random.default_rng(1)
    x, labels = rng.random((400, 6)).astype(np.float32), (rng.random(20) < 0.2).astype(np.float32)
    parts = iter(values.values())
    hidden, out, classifier = (dict(kernel=next(parts), bias=next(parts)) for _ in range(3))
    params = {"attention": {"hidden": hidden, "out": out}, "classifier": classifier}
    attention, probability, _ = direct("stpn", values, x)
    entropy = -np.where(labels > 0, np.log(probability), np.log(1 - probability)).mean()
    video = Video(*map(jnp.asarray, (x, np.ones(400, np.float32), labels, labels, np.int32(400))))
    total, _ = made.phases[0].loss(params, video, Step(jax.random.key(0), jnp.int32(0)))
    np.testing.assert_allclose(total, 20 * (entropy + 1e-4 * attention.sum()), rtol=1e-5)
