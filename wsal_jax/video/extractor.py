"""What makes features of clips: which frames each stream wants, how the host prepares them, and a network.

A new extractor is a function here that returns an `Extractor`, and a line in `EXTRACTORS`. Worker processes get one
pickled, so its functions are those of modules, or partials of them. Nothing here loads OpenCV, JAX or weights before
it is used.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from wsal_jax.types import InputError

SIDE = 224
CROPS = ("center", "resize", "ten")
FLOWS = {"tvl1": "tvl1", "dis": "dis_medium"}
"""Kinds of flow, and what they are called where the features are."""


class Stream(NamedTuple):
    """One stream of an extractor."""

    offsets: tuple[int, ...]
    """The frames of a clip that it wants, ascending."""
    pair: bool
    """Whether `prepare` also wants the frame after each."""
    prepare: Callable[..., np.ndarray]
    """Makes of a frame, uint8 RGB [h w 3] (or of two), on the host, what the network is given."""
    load: Callable[[], Any]
    """Gives the parameters."""
    apply: Callable[[Any, Any], Any]
    """(parameters, prepared frames [b f ...]) -> float32 features [b d]; to be compiled."""


class Extractor(NamedTuple):
    """All streams of an extractor, and what it is."""

    streams: dict[str, Stream]
    size: Callable[[int, int], tuple[int, int]]
    """(width, height) of a video -> of the frames that `prepare` is given."""
    min_frames: int
    """A video of fewer is refused."""
    identity: dict[str, Any]
    """What two feature folders must have in common to be used together; plain JSON. `clip` is frames per clip."""


def make(
    name: str,
    weights: dict[str, str] | None = None,
    streams: Sequence[str] = ("rgb", "flow"),
    clip: int = 16,
    crop: str | None = None,
    flow: str | None = None,
) -> Extractor:
    """The extractor of a name, without its weights loaded.

    `weights` are files by stream, for extractors that want them; `crop` and `flow` by default what suits the extractor.

    Raises:
      InputError: there is none, or it cannot be made with these options.
    """
    if name not in EXTRACTORS:
        raise InputError(f"there is no extractor {name!r}: take one of {', '.join(EXTRACTORS)}")
    if not streams or set(streams) - {"rgb", "flow"}:
        raise InputError(f"streams are {','.join(streams)!r}: must be rgb, flow or rgb,flow")
    if crop not in (None, *CROPS):
        raise InputError(f"crop is {crop!r}: must be one of {', '.join(CROPS)}")
    if flow not in (None, *FLOWS):
        raise InputError(f"flow is {flow!r}: must be one of {', '.join(FLOWS)}")
    return EXTRACTORS[name](dict(weights or {}), streams, clip, crop, flow)


def remake(identity: dict[str, Any], streams: Sequence[str], weights: dict[str, str] | None = None) -> Extractor:
    """The extractor that an identity describes, or that part of it which makes some of its streams.

    Raises:
      InputError: there is none, or the one that there is would make other features; names both.
    """
    flow = {name: kind for kind, name in FLOWS.items()}.get(identity.get("flow"))
    try:
        made = make(identity["name"], weights, streams, identity["clip"], identity["crop"], flow)
    except (KeyError, TypeError) as error:
        raise InputError(f"{json.dumps(identity):.300} describes no extractor ({error!r})") from error
    check_same(made.identity, identity, streams)
    return made


def check_same(identity: dict[str, Any], wanted: dict[str, Any], streams: Sequence[str]) -> None:
    """Makes sure that features of some streams are like those that a model was trained on.

    Raises:
      InputError: another extractor makes them; names both.
    """
    mine, other = (of_streams(one, streams) for one in (identity, wanted))
    if mine != other:
        names = [name for name in sorted({*mine, *other}) if mine.get(name) != other.get(name)]
        differ = "; ".join(f"{name}: {json.dumps(mine.get(name))}, not {json.dumps(other.get(name))}" for name in names)
        named = f"{mine.get('name')} instead of {other.get('name')}"
        raise InputError(f"features of another extractor than the model was trained on, {named} ({differ})")


def of_streams(identity: dict[str, Any], streams: Sequence[str]) -> dict[str, Any]:
    """What of an identity concerns some of the streams."""
    part = {
        name: {stream: of for stream, of in value.items() if stream in streams} if isinstance(value, dict) else value
        for name, value in identity.items()
    }
    return part if "flow" in streams else {**part, "flow": None}


def _efficientnet_lite0(
    weights: dict[str, str], streams: Sequence[str], clip: int, crop: str | None, flow: str | None
) -> Extractor:
    """The default, which needs no download. Frames 2, 6, 10 and 14 of a clip of 16.

    rgb: the mean over the four of the pooled head of EfficientNet-Lite0 (ImageNet), 1280-d. flow, 144-d: the mean of
    their histograms of flow to the next frame (`flow.hof`) times 10, so that entries are of the order of the network's.
    """
    crop, flow = crop or "resize", flow or "dis"
    if weights:
        raise InputError("efficientnet_lite0 has its own weights, and takes no --weights")
    if crop == "ten":
        raise InputError("efficientnet_lite0 has crop=resize (all of the picture) or crop=center")
    if clip < 4:
        raise InputError(f"clip is {clip}: efficientnet_lite0 looks at 4 frames of each")
    offsets = tuple((2 * i + 1) * clip // 8 for i in range(4))
    rgb = Stream(offsets, False, partial(_crop, crop), _load_efficientnet, _apply_efficientnet)
    hof = Stream(offsets, True, partial(_hof, crop, flow), _load_nothing, _apply_hof)
    chosen = {name: stream for name, stream in (("rgb", rgb), ("flow", hof)) if name in streams}
    digests = {"rgb": _digest_efficientnet()} if "rgb" in chosen else {}
    identity = _identity("efficientnet_lite0", digests, chosen, clip, crop, flow, len(offsets))
    return Extractor(chosen, partial(_size, crop), 1, identity)


def _i3d(weights: dict[str, str], streams: Sequence[str], clip: int, crop: str | None, flow: str | None) -> Extractor:
    """Inflated Inception (I3D): the average-pooled Mixed_5c, 1024-d for each stream, from weights that the user brings.

    rgb: 2 x / 255 - 1. flow: between whole resized frames, cut at 20 pixels, 8 bits, then as rgb. The smaller side is
    256 (crop=resize: both are 224); the centre of 224 x 224 is taken, or the mean over ten crops, of the corners and
    the centre, also mirrored (the flow's x changes its sign).
    """
    crop, flow = crop or "center", flow or "tvl1"
    if clip < 9:
        raise InputError(f"clip is {clip}: i3d needs 9 frames or more")
    if extra := set(weights) - set(streams):
        raise InputError(f"--weights {extra.pop()}=... is of a stream that is not extracted: see --streams")
    offsets, chosen, headers = tuple(range(clip)), {}, {}
    for name in ("rgb", "flow"):
        if name not in streams:
            continue
        headers[name] = _i3d_header(name, weights.get(name))
        prepare = partial(_crop, crop) if name == "rgb" else partial(_flow_picture, crop, flow)
        load, apply = partial(_load_i3d, name, weights[name]), partial(_apply_i3d, crop, name)
        chosen[name] = Stream(offsets, name == "flow", prepare, load, apply)
    digests, eps = ({name: header[key] for name, header in headers.items()} for key in ("sha256", "eps"))
    identity = {**_identity("i3d", digests, chosen, clip, crop, flow, clip), "eps": eps}
    return Extractor(chosen, partial(_size, crop), 9, identity)


EXTRACTORS = {"efficientnet_lite0": _efficientnet_lite0, "i3d": _i3d}


def _identity(
    name: str,
    digests: dict[str, str],
    streams: dict[str, Stream],
    clip: int,
    crop: str,
    flow: str,
    frames: int,
) -> dict[str, Any]:
    return {
        "name": name,
        "version": 1,
        "weights_sha256": digests,
        "flow": FLOWS[flow] if "flow" in streams else None,
        "clip": clip,
        "crop": crop,
        "frames_per_clip": frames,
        "dtype": "float32",
    }


def _size(crop: str, width: int, height: int) -> tuple[int, int]:
    """The whole picture as a square, or its smaller side 256 with its aspect kept."""
    if crop == "resize":
        return SIDE, SIDE
    return tuple(round(256 * side / min(width, height)) for side in (width, height))


def _crop(crop: str, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The centre; the whole picture where there is nothing to cut, or the crops are made on the device."""
    if crop != "center":
        return image
    top, left = ((side - SIDE) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])


def _hof(crop: str, kind: str, *images: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
    from wsal_jax.video.flow import flow, hof

    first, second = (_crop(crop, image) for image in images)
    return hof(flow(first, second, kind))


def _flow_picture(crop: str, kind: str, *images: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 2"]:
    from wsal_jax.video.flow import flow, quantise

    first, second = images
    return _crop(crop, quantise(flow(first, second, kind)))


def _load_nothing() -> tuple[()]:
    return ()


def _apply_hof(params: tuple[()], clips: Float[Any, "b f d"]) -> Float[Any, "b d"]:
    return 10 * clips.mean(axis=1)


def _ten_crops(clips: Float[Any, "b t h w c"], name: str) -> list[Any]:
    """The corners and the centre of 224 x 224, each also mirrored; `clips` are in [-1, 1]."""
    import jax.numpy as jnp

    height, width = clips.shape[2:4]
    bottom, right = height - SIDE, width - SIDE
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [clips[:, :, top : top + SIDE, left : left + SIDE] for top, left in corners]
    sign = jnp.array([-1, 1] if name == "flow" else [1, 1, 1], clips.dtype)  # what moves right, moves left in a mirror
    return [*crops, *(crop[:, :, :, ::-1] * sign for crop in crops)]


# The seam to the networks: nothing else here knows how they are called.


def _load_efficientnet() -> Any:
    return import_module("wsal_jax.backbones.efficientnet_lite0").load()


def _digest_efficientnet() -> str:
    path = import_module("wsal_jax.backbones.efficientnet_lite0").weights_file()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _apply_efficientnet(params: Any, clips: UInt8[Any, "b f h w 3"]) -> Float[Any, "b d"]:
    import jax.numpy as jnp

    network = import_module("wsal_jax.backbones.efficientnet_lite0")
    images = network.normalize(clips.reshape(-1, *clips.shape[2:]).astype(jnp.float32))
    return network.apply(params, images).reshape(*clips.shape[:2], -1).mean(axis=1)


def _load_i3d(stream: str, path: str) -> Any:
    return import_module("wsal_jax.backbones.i3d").load(path, stream)


def _i3d_header(stream: str, path: str | None) -> dict[str, Any]:
    """What the weights are: sha256 of the published file and eps of the batch normalization. Reads and checks them."""
    weights = import_module("wsal_jax.backbones.i3d_weights")
    if path is None:
        raise InputError(f"there are no weights for {stream}. {weights.ADVICE}")
    return weights.read(path, stream).header


def _apply_i3d(crop: str, stream: str, params: Any, clips: UInt8[Any, "b t h w c"]) -> Float[Any, "b d"]:
    import jax.numpy as jnp

    network = import_module("wsal_jax.backbones.i3d")
    scaled = clips.astype(jnp.float32) * (2 / 255) - 1
    crops = _ten_crops(scaled, stream) if crop == "ten" else [scaled]
    return sum(network.apply(params, one) for one in crops) / len(crops)
