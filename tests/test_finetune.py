"""Training the network of images with the rest: a tiny network, on images in the format of CUB-200-2011."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from configs import maan2d as config_of
from tests.test_cub200 import CLASSES, unpacked
from wsal_jax import checkpoint, main, methods, predict, train
from wsal_jax.backbones import images as networks
from wsal_jax.data import pipeline
from wsal_jax.data.images import open_image
from wsal_jax.keys import named
from wsal_jax.localizer import Localizer
from wsal_jax.method import Spec, Step
from wsal_jax.methods import maan2d
from wsal_jax.types import InputError, Video

SIDE, GRID, DIM = 16, (4, 4), 6


def load(path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 5, 3, DIM)).astype(np.float32)
    return {"first": {"kernel": kernel, "bias": np.full(DIM, 0.1, np.float32)}, "_fc": {"kernel": np.ones(1)}}


def apply(params, images):
    unit = params["first"]
    y = lax.conv_general_dilated(images, unit["kernel"], (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y + unit["bias"])


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """A network `tiny` of one layer, for pictures of 16 x 16."""
    with pytest.MonkeyPatch.context() as patch:
        network = networks.Network(load, apply, lambda x: x / 255 - 0.5, GRID, DIM)
        patch.setattr(networks, "SIDE", SIDE)
        patch.setitem(networks.NETWORKS, "tiny", network)
        patch.setitem(config_of.GRIDS, "tiny", GRID)
        patch.setitem(config_of.CONVOLUTIONS, "tiny", 5)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with 8 training and 8 test images, the file of the network, and the config of it."""
    root = tmp_path_factory.mktemp("finetune")
    unpacked(root / "cub", 16)
    (root / "tiny.npz").write_bytes(b"weights")
    config = config_of.get_config("dataset=cub200,backbone=tiny,aggregator=norm,pool=2,finetune")
    config.data.update(root=str(root / "cub"), dir=str(root / "built"))
    config.data.reader.weights = str(root / "tiny.npz")
    config.update(num_snippets=SIDE, batch_size=8, steps=1, log_every=1, checkpoint_every=1, plots=1)
    config.optimizer = dict(name="sgd", learning_rate=0.1)
    config.evaluation.update(levels=1, bootstrap=0)
    return root, config


@pytest.fixture(scope="module")
def run(made):
    """Its folder and table."""
    folder = made[0] / "run"
    return folder, main.run(made[1], str(folder))


@pytest.fixture(scope="module")
def data(made):
    return pipeline.load(pipeline.build(made[1].data), "train")


@pytest.fixture(scope="module")
def params(made):
    """Those that the run starts from."""
    state = train.init(methods.get(made[1].method), Spec((3 * SIDE,), 3), made[1], 1, "rgb")
    return jax.tree.map(lambda x: x[0], state.params)


def pictures(data, count):
    """A batch."""
    rows = jnp.stack([pipeline.read(data, i, ["rgb"]) for i in range(count)])
    labels = jnp.asarray(data.labels[:count])
    return Video(rows, jnp.ones((count, SIDE)), labels, labels, jnp.full(count, SIDE))


def test_what_is_kept_are_the_pictures(made, data):
    assert data.dims == {"rgb": 3 * SIDE} and data.metas[0].grid == GRID and data.lengths.tolist() == [SIDE] * 8
    meta = data.metas[3]
    expected = open_image(made[0] / "cub" / meta.id, 10_000).resize((SIDE, SIDE), 3)  # bicubic
    found = maan2d.picture(jax.tree.map(lambda x: x[3], pictures(data, 4)))
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert data.extraction["network"] == "tiny" and data.extraction["pixels"]


def test_all_groups_learn_and_the_network_at_a_tenth_of_the_rate(made, data, run, params):
    """One step of SGD on eight devices is the gradient that JAX gives of the mean loss on one."""
    config = made[1]
    (phase,) = methods.get(config.method).phases
    assert phase.trains == ("attention", "classifier", "backbone", "convolution")
    assert params["convolution"]["kernel"].shape == (3, 3, DIM, 5) and params["classifier"]["kernel"].shape == (5, 3)
    np.testing.assert_array_equal(params["backbone"]["first"]["kernel"], load("")["first"]["kernel"])
    (key,) = train.make_keys(config, "rgb")
    chosen, rows = jax.jit(lambda key: pipeline.plan(key, 0, data.lengths, 8, SIDE))(key)
    assert (np.asarray(rows) == np.arange(SIDE)).all()
    videos = jax.tree.map(lambda x: x[chosen], pictures(data, 8))
    keys = jax.random.split(named(key, "loss", 0), 8)

    def mean_loss(params):
        losses = jax.vmap(lambda video, key: phase.loss(params, video, Step(key, jnp.int32(0)))[0])
        return losses(videos, keys).mean()

    gradients = jax.jit(jax.grad(mean_loss))(params)
    trained = checkpoint.restore(run[0] / "checkpoints" / "rgb")["params"]
    for group in phase.trains:
        rate = 0.01 if group == "backbone" else 0.1
        for before, after, gradient in zip(*(jax.tree.leaves(x[group]) for x in (params, trained, gradients))):
            assert rate * np.abs(gradient).max() > 2e-5, group
            np.testing.assert_allclose(after[0] - before, -rate * gradient, atol=2e-6, err_msg=group)


def test_training_pictures_depend_on_the_key_alone_and_test_pictures_on_none(made, data, params):
    config = made[1]
    method = methods.get(config.method)
    video = jax.tree.map(lambda x: x[2], pictures(data, 3))
    located = jax.jit(lambda key: maan2d.located(config.method, params, video, key).features)
    first, again, other = (np.asarray(located(jax.random.key(x))) for x in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (16, 5) and not np.allclose(first, other)
    padded = video._replace(features=jnp.pad(video.features, ((0, 16), (0, 0)), constant_values=9.0))
    score = jax.jit(method.score)
    for one, two in zip(jax.tree.leaves(score(params, video)), jax.tree.leaves(score(params, padded))):
        np.testing.assert_allclose(one, two, atol=1e-6)
    nothing = score(params, video._replace(mask=jnp.zeros(SIDE)))
    assert not np.asarray(nothing.attention).any() and not np.asarray(nothing.cas).any()


def test_before_training_it_is_the_frozen_network(made, data, params):
    config = config_of.get_config("backbone=tiny,aggregator=norm,pool=2")
    frozen = methods.get(config.method)
    own = made[1].method.copy_and_resolve_references()
    own.convolution = 0
    tuned = methods.get(own)
    heads = jax.jit(lambda key: frozen.init(key, Spec((DIM,), 3)))(jax.random.key(3))
    video = jax.tree.map(lambda x: x[0], pictures(data, 1))
    pixels = np.asarray(maan2d.picture(video)).astype(np.uint8)
    features = networks.extractor("tiny", made[1].data.reader.weights)(pixels)
    n = len(features)
    of_features = Video(jnp.float32(features), jnp.ones(n), video.labels, video.labels, jnp.int32(n))
    one = jax.jit(frozen.score)(heads, of_features)
    two = jax.jit(tuned.score)({**heads, "backbone": params["backbone"]}, video)
    np.testing.assert_allclose(one.cas, two.cas, rtol=2e-3, atol=1e-4)  # float16 of features
    np.testing.assert_allclose(one.video_score, two.video_score, rtol=2e-3)


def test_a_run_on_a_folder_in_the_format_of_cub(made, run, capsys):
    """To its table, page and detections; and it predicts, when the weights that it started from are gone."""
    root, (folder, text) = made[0], run
    assert "dataset cub200" in text and "images 8" in text and "boxes 8" in text
    content = json.loads((folder / "detections.json").read_text())
    assert len(content["images"]) == 8 and [one["name"] for one in content["categories"]] == list(CLASSES)
    assert (folder / "report" / "index.html").exists()
    with np.load(folder / "scores.npz") as kept:
        assert kept["rgb/cas"].shape == (8 * 16, 3)
    (root / "tiny.npz").rename(root / "moved.npz")
    try:
        image = root / "cub" / content["images"][2]["file_name"]
        found = Localizer.load(folder)(image)
        expected = [one for one in content["annotations"] if one["image_id"] == 3]
        scores = sorted(one.score for one in found), sorted(one["score"] for one in expected)
        np.testing.assert_allclose(*scores, atol=2e-5)
        with pytest.raises(SystemExit) as exit:
            predict.main([str(image), "--run", str(folder)])
        assert exit.value.code == 0 and "xmin" in capsys.readouterr().out
    finally:
        (root / "moved.npz").rename(root / "tiny.npz")


def test_what_does_not_go_together_is_refused(made, data):
    config = made[1].copy_and_resolve_references()
    config.method.num_snippets = 5
    with pytest.raises(InputError, match="give all 16 rows of the picture"):
        methods.get(config.method).check(data)
    frozen = config_of.get_config("backbone=tiny").method
    with pytest.raises(InputError, match="the switch finetune and config"):
        methods.get(frozen).check(data)
    for option, value in (("crop", 0.0), ("crop", 1.5), ("ratio", 0.0), ("backbone", "resnet")):
        wrong = made[1].method.copy_and_resolve_references()
        wrong[option] = value
        with pytest.raises(InputError, match="give a network, a share in"):
            methods.get(wrong)
