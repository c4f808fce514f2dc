"""`restore` returns what was saved, bit for bit, or says why not."""

import json
import re
import socket
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from wsal_jax import checkpoint, sharding
from wsal_jax.types import InputError


class State(NamedTuple):
    params: dict
    optimizers: tuple
    others: list


def make_state() -> State:
    params = {
        # Large enough to get its own file, in which Orbax does not detect a flipped bit.
        "attention": {"kernel": jax.random.normal(jax.random.key(0), (32, 32)), "bias": jnp.zeros(())},
        "classifier": jnp.arange(7, dtype=jnp.bfloat16) / 3,
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    adam = jax.tree.map(lambda x: x + 1, optimizer.init(params))
    others = [
        jax.random.key_data(jax.random.key(3)),
        jnp.array([True, False]),
        jnp.zeros((0, 3), jnp.bfloat16),
        jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        jnp.array([-128, 127], jnp.int8),
        np.array([1 / 3, 2**60], np.float64),
        np.array(2**60),
    ]
    return State(params, (adam, ()), others)


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, x in jax.tree.leaves_with_path(a):
        y = dict(jax.tree.leaves_with_path(b))[path]
        assert (x.shape, x.dtype, np.asarray(x).tobytes()) == (y.shape, y.dtype, np.asarray(y).tobytes()), path


def test_round_trip(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 5, state)
    restored = checkpoint.restore(tmp_path, jax.tree.map(np.zeros_like, state))
    assert_same(restored, state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored))
    of_jax = checkpoint.restore(tmp_path, state)  # a leaf of NumPy in, one out; the same for JAX
    assert [type(x) for x in jax.tree.leaves(of_jax)] == [type(x) for x in jax.tree.leaves(state)]
    assert_same(of_jax, state)


def test_restore_without_a_structure(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 5, state)
    restored = checkpoint.restore(tmp_path)
    assert_same(restored["params"], state.params)
    assert_same(restored["others"]["2"], state.others[2])
    assert_same(restored["optimizers"]["0"]["1"]["0"]["mu"], state.optimizers[0][1][0].mu)


def test_latest_and_keep(tmp_path):
    folder = tmp_path / "a" / "b"
    assert checkpoint.latest(folder) is None
    for step in (1, 2, 10):
        checkpoint.save(folder, step, {"step": np.array(step)})
        assert checkpoint.latest(folder) == step
    assert sorted(x.name for x in folder.iterdir()) == ["10", "2"]
    assert checkpoint.restore(folder) == {"step": 10}
    assert checkpoint.restore(folder, step=2) == {"step": 2}
    with pytest.raises(InputError, match=re.escape(f"{folder}: no checkpoint of step 1, only of [2, 10]")):
        checkpoint.restore(folder, step=1)
    for step in (9, 10):
        with pytest.raises(ValueError, match=rf"step {step} does not come after its newest checkpoint, 10"):
            checkpoint.save(folder, step, {"step": np.array(step)})
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.restore(tmp_path / "c")


def test_two_leaves_of_one_path(tmp_path):
    with pytest.raises(ValueError, match="two leaves have the same path"):
        checkpoint.save(tmp_path, 1, {"a": {"b": np.ones(2)}, "a/b": np.ones(2)})


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": np.ones((2, 3), np.float16), "b": np.ones(4)}, r"a \(float32\[2, 3\] saved, float16\[2, 3\] expected\)"),
        ({"a": np.ones((3, 2), np.float32), "b": np.ones(4)}, r"a \(float32\[2, 3\] saved, float32\[3, 2\] expected\)"),
        ({"a": np.ones((2, 3), np.float32)}, r"b \(float64\[4\] saved, nothing expected\)"),
        (
            {"a": np.ones((2, 3), np.float32), "b": np.ones(4), "c": {"d": np.ones(1, bool)}},
            r"c/d \(nothing saved, bool\[1\] expected\)",
        ),
    ],
)
def test_mismatch(tmp_path, like, message):
    checkpoint.save(tmp_path, 3, {"a": np.ones((2, 3), np.float32), "b": np.ones(4)})
    with pytest.raises(
        InputError, match=rf"{re.escape(str(tmp_path / '3'))}: not a state of this run: {message}; give"
    ):
        checkpoint.restore(tmp_path, like)


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?[!b]", "[", "ä b"])
def test_the_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name / "b"
    for step in (1, 2, 3):
        checkpoint.save(folder, step, {"a": np.full(3, step)})
    assert checkpoint.steps(folder) == [2, 3] and checkpoint.newest_whole(folder) == 3
    assert_same(checkpoint.restore(folder), {"a": np.full(3, 3)})


def damages(content, rng):
    """A flipped bit, half of the file, nothing, and no file."""
    flipped = bytearray(content)
    flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(flipped), content[: len(content) // 2], b"", None


@pytest.mark.filterwarnings("ignore:coroutine", "ignore:Exception ignored in")  # of Orbax, as it fails
def test_damage_to_any_file(tmp_path, capfd):
    """The file is named, and the checkpoint before is found; or the file does not matter."""
    state = {
        "params": {"kernel": np.random.default_rng(0).random((9, 9)), "empty": np.zeros((0, 2))},
        "step": np.int32(3),
    }
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state)
    rng, found = np.random.default_rng(0), set()
    for path in sorted(x for x in (tmp_path / "2").rglob("*") if x.is_file()):
        original, name = path.read_bytes(), str(path.relative_to(tmp_path / "2"))
        for damaged in damages(original, rng):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            try:
                assert_same(checkpoint.restore(tmp_path, state), state)
            except checkpoint.Damaged as error:
                assert str(error).startswith(f"{tmp_path / '2'}: damaged")
                assert f"({name}" in str(error) or name.rpartition("/")[0] in str(error).partition("damaged")[2]
                assert checkpoint.newest_whole(tmp_path) == 1 and checkpoint.steps(tmp_path) == [1]
                assert str(error) in (told := capfd.readouterr().err) and "Continuing from step 1" in told
                (tmp_path / "2.damaged").rename(tmp_path / "2")
                found.add(name)
            path.write_bytes(original)
    assert found == {"check/metadata", "state/_METADATA"} | {
        f"state/{leaf}" for leaf in ("params/kernel/.zarray", "params/kernel/0.0", "step/.zarray", "step/0")
    }
    assert_same(checkpoint.restore(tmp_path, state), state)


def test_where_all_are_damaged_nothing_changes(tmp_path):
    assert checkpoint.newest_whole(tmp_path) is None
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"a": np.ones(3)})
        (tmp_path / str(step) / "check" / "metadata").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        InputError, match=rf"all checkpoints are damaged: {tmp_path}/2: .*; {tmp_path}/1: .*Nothing was"
    ):
        checkpoint.newest_whole(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_to_empty_leaf(tmp_path):
    """An empty leaf has only its entry."""
    checkpoint.save(tmp_path, 1, {"a": np.ones(3), "b": np.zeros((0, 3))})
    path = tmp_path / "1" / "check" / "metadata"
    check = json.loads(path.read_text())
    check["b"]["shape"] = [0, 2]
    path.write_text(json.dumps(check))
    with pytest.raises(InputError, match="damaged, the checksum of state/b does not match"):
        checkpoint.restore(tmp_path)


def test_half_written(tmp_path):
    """A process that dies during a save leaves no valid checkpoint; the next save removes the rest."""
    checkpoint.save(tmp_path, 1, {"a": np.ones(3)})
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    args = ocp.args.Composite(state=ocp.args.StandardSave({"a": np.zeros(0)}), check=ocp.args.JsonSave({}))
    with ocp.CheckpointManager(tmp_path, options=options) as manager, pytest.raises(ValueError, match="zero size"):
        manager.save(2, args=args)
    half = [x for x in tmp_path.iterdir() if x.name != "1"]
    assert len(half) == 1 and any(x.is_file() for x in half[0].rglob("*"))
    assert checkpoint.latest(tmp_path) == 1
    assert_same(checkpoint.restore(tmp_path), {"a": np.ones(3)})
    checkpoint.save(tmp_path, 3, {"a": np.full(3, 2.0)})
    assert sorted(x.name for x in tmp_path.iterdir()) == ["1", "3"]
    assert_same(checkpoint.restore(tmp_path), {"a": np.full(3, 2.0)})


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("devices", [(1, 8), (8, 1), (4, 8)])
def test_restore_onto_another_mesh(tmp_path, devices):
    saved, restored = (sharding.make_mesh(jax.devices()[:n]) for n in devices)
    state = sharding.replicate(saved, make_state().params)
    checkpoint.save(tmp_path, 1, state)
    shardings = {
        "attention": {"kernel": sharding.split(restored, 0), "bias": sharding.replicated(restored)},
        "classifier": sharding.replicated(restored),
    }
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    result = checkpoint.restore(tmp_path, like)
    assert_same(result, state)
    assert jax.tree.map(lambda x: x.sharding, result) == shardings


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from wsal_jax import checkpoint, sharding
mesh = sharding.make_mesh()
state = sharding.replicate(mesh, {"a": np.arange(2000, dtype=np.float32), "b": np.zeros((0, 2), np.int32)})
for step in (1, 2, 3):
    checkpoint.save(sys.argv[3], step, jax.tree.map(lambda x: x + step, state))
restored = checkpoint.restore(sys.argv[3], state)
assert restored["a"].sharding == state["a"].sharding and len(restored["a"].global_shards) == 4
assert np.array_equal(restored["a"], np.arange(2000) + 3)
"""


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROCESS, address]
    processes = [
        subprocess.Popen([*command, str(i), str(tmp_path)], stderr=subprocess.PIPE, text=True) for i in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    assert_same(checkpoint.restore(tmp_path)["a"], np.arange(2000, dtype=np.float32) + 3)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["2", "3"]
