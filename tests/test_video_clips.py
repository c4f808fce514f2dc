"""From pictures to clips, optical flow, and what the extractors make of clips."""

import hashlib
import itertools
import json
import math
import pickle
import sys
import types

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra [video]")
cv2 = pytest.importorskip("cv2", reason="needs the extra [video]")

from wsal_jax.types import InputError  # noqa: E402
from wsal_jax.video import clips, extractor, flow  # noqa: E402
from wsal_jax.video.extractor import Stream  # noqa: E402


def stream(offsets, pair, calls):
    def prepare(*images):
        calls.append(tuple(int(image) for image in images))
        return np.array([int(image) for image in images])

    return Stream(offsets, pair, prepare, lambda: None, lambda params, clips: clips)


def slow_clips(frames, streams, grid):
    """The definition: every clip by itself, of a video that stands still behind its end."""
    show = lambda i: min(i, frames - 1)  # noqa: E731
    starts = range(0, frames, grid.stride)
    whole = [s for s in starts if s + grid.clip <= frames]
    if grid.tail == "cmcs":
        whole = whole[:-1]
    if grid.tail == "repeat":  # as many as it takes to have every frame that a clip of this stride can have
        whole = [s for s in starts if s == 0 or s - grid.stride + grid.clip < frames]
    return [
        {name: [[show(s + i + j) for j in range(1 + one.pair)] for i in one.offsets] for name, one in streams.items()}
        for s in whole
    ]


@pytest.mark.parametrize("tail", clips.TAILS)
def test_clips_by_their_definition(tail):
    calls = []
    for frames, clip, stride in itertools.product((0, 1, 5, 16, 17, 40), (4, 16), (1, 7, 16, 20)):
        grid = clips.Grid(clip, stride, tail)
        streams = {"rgb": stream((0, clip - 1), False, calls), "flow": stream(tuple(range(clip)), True, calls)}
        pictures = [lambda i=i: np.array(i) for i in range(frames)]
        found = [{name: x.tolist() for name, x in one.items()} for one in clips.cut(pictures, streams, grid)]
        expected = slow_clips(frames, streams, grid)
        expected = [
            {name: [x if streams[name].pair else x[:1] for x in of] for name, of in one.items()} for one in expected
        ]
        assert found == expected, (frames, grid)
        assert len(found) == clips.count(frames, grid), (frames, grid)


def test_published_numbers_of_snippets():
    """floor(N / 16) of W-TALC; 5,094 frames give 1,269 in CMCS."""
    for n in range(1, 200):
        assert clips.count(n, clips.Grid(16, 16)) == n // 16
        assert clips.count(n, clips.Grid(16, 16, "repeat")) == math.ceil(n / 16)
    assert clips.count(5094, clips.Grid(16, 4, "cmcs")) == 1269


def test_frames_are_prepared_once_and_only_if_wanted():
    calls = []
    streams = {"rgb": stream((2, 6), False, calls)}
    pictures = [lambda i=i: np.array(i) for i in range(64)]
    assert len(list(clips.cut(pictures, streams, clips.Grid(8, 4)))) == 15
    assert len(calls) == len(set(calls))
    assert {i for (i,) in calls} == set(range(2, 64, 4))


def test_batches():
    made = [{"rgb": np.array([i])} for i in range(7)]
    assert [one["rgb"].ravel().tolist() for one in clips.batched(made, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(clips.batched([], 3)) == []


def test_flow_points_to_where_things_go():
    """A texture moved by (3, -2) pixels; x comes first."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).random((100, 120)).astype(np.float32), (0, 0), 2)
    texture = np.uint8(255 * (texture - texture.min()) / np.ptp(texture))
    first, second = (np.repeat(one[10:74, 10:90, None], 3, 2) for one in (texture, np.roll(texture, (-2, 3), (0, 1))))
    for kind in flow.FLOWS:
        field = flow.flow(first, second, kind)
        assert field.shape == (64, 80, 2) and field.dtype == np.float32
        np.testing.assert_allclose(np.median(field[10:-10, 10:-10], axis=(0, 1)), [3, -2], atol=0.1, err_msg=kind)


def test_quantised_flow():
    field = np.array([[[-25, -20], [0, 20], [25, 0.1]]], np.float32)
    expected = [[[0, 0], [128, 255], [255, round(255 * 20.1 / 40)]]]
    np.testing.assert_array_equal(flow.quantise(field), expected)
    assert flow.quantise(field).dtype == np.uint8


def test_hof_by_loops():
    rng = np.random.default_rng(0)
    field = rng.normal(0, 1, (24, 32, 2)).astype(np.float32)
    field[:, :3] = [[[-1, 0]]]  # pi, which is the first direction as -pi is
    slow = np.zeros((4, 4, 9))
    for y, x in itertools.product(range(24), range(32)):
        dx, dy = map(float, field[y, x])
        length = math.hypot(dx, dy)
        part = slow[y // 6, x // 8]
        part[int((math.atan2(dy, dx) + math.pi) / (2 * math.pi) * 8) % 8] += length / 48
        part[8] += (length > 0.5) / 48
    np.testing.assert_allclose(flow.hof(field), slow.ravel(), rtol=1e-5, atol=1e-6)
    assert flow.hof(np.zeros((224, 224, 2), np.float32)).shape == (144,)


def network(**functions):
    return types.SimpleNamespace(**functions)


def test_efficientnet_takes_the_mean_of_four_frames(monkeypatch, tmp_path):
    (tmp_path / "weights").write_bytes(b"numbers")
    fake = network(
        weights_file=lambda: tmp_path / "weights",
        normalize=lambda images: images - 1,
        load=lambda: 3,
        apply=lambda params, images: params * images.reshape(len(images), -1)[:, :2],
    )
    monkeypatch.setitem(sys.modules, "wsal_jax.backbones.efficientnet_lite0", fake)
    made = extractor.make("efficientnet_lite0")
    assert made.streams["rgb"].offsets == made.streams["flow"].offsets == (2, 6, 10, 14)
    assert made.size(320, 240) == (224, 224)
    images = np.random.default_rng(0).integers(0, 50, (2, 4, 5, 5, 3), np.uint8)
    found = made.streams["rgb"].apply(made.streams["rgb"].load(), images)
    np.testing.assert_allclose(found, 3 * (images.reshape(2, 4, -1)[:, :, :2].mean(1) - 1), rtol=1e-5)
    hof = np.random.default_rng(0).random((2, 4, 144)).astype(np.float32)
    np.testing.assert_allclose(made.streams["flow"].apply((), hof), 10 * hof.mean(1), rtol=1e-6)
    assert made.streams["flow"].prepare(*np.zeros((2, 224, 224, 3), np.uint8)).shape == (144,)
    assert made.identity["weights_sha256"] == {"rgb": hashlib.sha256(b"numbers").hexdigest()}
    assert made.identity["flow"] == "dis_medium" and made.identity["crop"] == "resize"
    assert extractor.make("efficientnet_lite0", streams=["rgb"]).identity["flow"] is None
    pickle.loads(pickle.dumps(made))  # workers get it so


@pytest.fixture
def weights(monkeypatch):
    """A reader of weights that takes any file for I3D's."""
    read = lambda path, stream: network(header={"sha256": f"{path} for {stream}", "eps": 1e-3})  # noqa: E731
    monkeypatch.setitem(sys.modules, "wsal_jax.backbones.i3d_weights", network(read=read, ADVICE="Bring some."))
    return {name: f"{name}.pt" for name in ("rgb", "flow")}


def test_i3d_is_fed_what_its_weights_saw(monkeypatch, weights):
    fake = network(load=lambda path, stream: path, apply=lambda params, clips: clips[:, 0, 0, 0])
    monkeypatch.setitem(sys.modules, "wsal_jax.backbones.i3d", fake)
    made = extractor.make("i3d", weights)
    assert made.size(320, 240) == (341, 256) and made.size(240, 320) == (256, 341)
    image = np.random.default_rng(0).integers(0, 256, (256, 341, 3), np.uint8)
    np.testing.assert_array_equal(made.streams["rgb"].prepare(image), image[16:240, 58:282])
    monkeypatch.setattr(flow, "flow", lambda a, b, kind: (b[..., :2].astype(np.float32) - a[..., :2]) / 10)
    other = np.roll(image, 1, 0)
    expected = flow.quantise((other[..., :2].astype(np.float32) - image[..., :2]) / 10)[16:240, 58:282]
    np.testing.assert_array_equal(made.streams["flow"].prepare(image, other), expected)
    clip = np.full((1, 16, 224, 224, 3), [0, 51, 255], np.uint8)
    np.testing.assert_allclose(made.streams["rgb"].apply("", clip), [[-1, -0.6, 1]], atol=1e-6)
    assert made.identity["flow"] == "tvl1" and made.identity["eps"] == {"rgb": 1e-3, "flow": 1e-3}
    assert made.identity["weights_sha256"] == {"rgb": "rgb.pt for rgb", "flow": "flow.pt for flow"}
    assert made.streams["flow"].load() == weights["flow"]


def test_ten_crops_mirror_what_moves(monkeypatch, weights):
    """The network is given each corner and the centre, as is and mirrored; a mirror turns the flow's x round."""
    given = []

    def apply(params, clips):
        given.append(np.asarray(clips))
        return clips.mean(axis=(1, 2, 3))

    monkeypatch.setitem(sys.modules, "wsal_jax.backbones.i3d", network(apply=apply))
    made = extractor.make("i3d", {"flow": weights["flow"]}, ["flow"], crop="ten")
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 256, 340, 2), np.uint8)
    found = made.streams["flow"].apply(None, clip)
    scaled = clip / 127.5 - 1
    tops, lefts = (0, 0, 32, 32, 16), (0, 116, 0, 116, 58)
    crops = [scaled[:, :, top : top + 224, left : left + 224] for top, left in zip(tops, lefts)]
    expected = [*crops, *(crop[:, :, :, ::-1] * [-1, 1] for crop in crops)]
    assert len(given) == 10
    for one, other in zip(given, expected):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(found, np.mean([x.mean(axis=(1, 2, 3)) for x in expected], axis=0), atol=1e-6)


def test_an_extractor_is_made_again_from_what_it_says_of_itself(weights):
    for arguments in (
        dict(name="i3d", weights=weights, clip=32, crop="resize", flow="dis"),
        dict(name="efficientnet_lite0", crop="center"),
    ):
        made = extractor.make(**arguments)
        identity = json.loads(json.dumps(made.identity))
        again = extractor.remake(identity, ["rgb", "flow"], arguments.get("weights"))
        assert again.identity == made.identity and list(again.streams) == ["rgb", "flow"]
        rgb = {"rgb": weights["rgb"]} if arguments["name"] == "i3d" else None
        again = extractor.remake(identity, ["rgb"], rgb)
        assert list(again.streams) == ["rgb"] and again.identity["flow"] is None
    with pytest.raises(InputError, match=r"another extractor .*, i3d instead of i3d \(weights_sha256: .*other"):
        extractor.remake(extractor.make("i3d", weights).identity, ["rgb", "flow"], {**weights, "flow": "other"})
    with pytest.raises(InputError, match="describes no extractor"):
        extractor.remake({"name": "i3d", "clip": "16"}, ["rgb"], {"rgb": "rgb.pt"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="c3d"), "there is no extractor 'c3d': take one of efficientnet_lite0, i3d"),
        (dict(name="i3d", weights={"flow": "a"}), "there are no weights for rgb. Bring some."),
        (dict(name="i3d", weights={"flow": "a"}, streams=["rgb"]), "--weights flow=... is of a stream that is not"),
        (dict(name="i3d", clip=8), "clip is 8: i3d needs 9 frames or more"),
        (dict(name="efficientnet_lite0", weights={"rgb": "a"}), "takes no --weights"),
        (dict(name="efficientnet_lite0", crop="ten"), "has crop=resize"),
        (dict(name="efficientnet_lite0", clip=3), "looks at 4 frames"),
        (dict(name="efficientnet_lite0", streams=["depth"]), "streams are 'depth'"),
        (dict(name="efficientnet_lite0", crop="left"), "crop is 'left'"),
        (dict(name="efficientnet_lite0", flow="raft"), "flow is 'raft'"),
    ],
)
def test_extractors_that_cannot_be_made(arguments, message, weights):
    with pytest.raises(InputError, match=message):
        extractor.make(**arguments)
