"""Imports published weights as a finished run, which evaluates and predicts like one that was trained here.

    python -m wsal_jax.import_checkpoint dgam --rgb rgb.pth --flow flow.pth --workdir DIR
    python -m wsal_jax.import_checkpoint stpn --rgb rgb/rgb_23100 --flow flow/flow_23100 --workdir DIR
    python -m wsal_jax.main --config=DIR/config.py --config.data.root=FEATURES --workdir=DIR

`dgam` reads the state dicts of DGAM's authors (github.com/bfshi/DGAM-Weakly-Supervised-Action-Localization), `stpn` the
TensorFlow checkpoints of a reproduction of STPN (github.com/bellos1203/STPN), both for THUMOS14, without PyTorch or
TensorFlow. `DIR` gets a checkpoint that counts as the last one of a run, so nothing is trained, and its config, which
takes the switches of the method's config: `--config=DIR/config.py:dataset=...`. A single stream is enough. The first
evaluation binds `DIR` to its data and options; import again for others.
"""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax.traverse_util import unflatten_dict

from wsal_jax import checkpoint
from wsal_jax.data.thumos14 import CLASSES
from wsal_jax.formats import arrays, tensorflow_checkpoint
from wsal_jax.formats.checks import FolderError, Problems
from wsal_jax.method import Params
from wsal_jax.types import InputError


class Format(NamedTuple):
    """The published weights of a method."""

    read: Callable[[str], Any]
    names: dict[str, str]
    """From our parameter, such as attention/hidden/kernel, to its name in the file."""
    transposed: bool
    """Whether the file has kernels [out, in]; ours are [in, out]."""
    unused: tuple[str, ...]
    """Prefixes and suffixes of names that are ignored."""
    background: int
    """Number of background classes, which come last."""
    steps: int
    config: str
    """Source of the config, a template of `str.format`."""


PARAMETERS = (
    "attention/hidden/kernel",
    "attention/hidden/bias",
    "attention/out/kernel",
    "attention/out/bias",
    "classifier/kernel",
    "classifier/bias",
)

DGAM = '''"""DGAM with the weights that its authors published, from {files}.

  python -m wsal_jax.main --config=DIR/config.py --workdir=DIR --config.data.root=FEATURES

with this folder as DIR evaluates and trains nothing. The CVAE's weights are not published, and only training needs
them, so this is a model without (gamma1 = 0). The proposals are those of the authors' code. The classes, in this order,
must be those of the data:
{classes}.
"""

from wsal_jax.configs import dgam


def get_config(text=None):
    config = dgam.get_config("terms=fg+bg+guide,as_released,dataset=thumos14," + (text or ""))
    config.streams = {streams}
    config.method.hidden = {hidden}
    config.steps = {steps}  # the weights count as those after the last step
    config.seeds = 1
    if config.data.name == "thumos14":
        config.data.reader.videos = "bas_net"  # the 210 test videos of the published scores
    return config
'''

STPN = '''"""STPN with the weights of the reproduction at github.com/bellos1203/STPN, from {files}.

  python -m wsal_jax.main --config=DIR/config.py --workdir=DIR --config.data.root=FEATURES

with this folder as DIR evaluates and trains nothing. The weights were trained on T = 400 snippets of 16 frames of
videos resampled to 10 frames per second; mean pooling; segments where attention * sigmoid(T-CAM), interpolated to 24
values for each of 400 snippets, is at least 0.05; raw logits in their scores. All that is in configs/maan.py:released.
The classes, in this order, must be those of the data:
{classes}.
"""

from wsal_jax.configs import maan


def get_config(text=None):
    config = maan.get_config("as_released,dataset=thumos14," + (text or ""))
    config.streams = {streams}
    config.method.hidden = {hidden}
    config.steps = {steps}  # the weights count as those after the last step
    config.seeds = 1
    return config
'''

FORMATS = {
    "dgam": Format(
        read=arrays.read_pt,
        names=dict(
            zip(
                PARAMETERS,
                (
                    "att_head.fc1.weight",
                    "att_head.fc1.bias",
                    "att_head.fc2.weight",
                    "att_head.fc2.bias",
                    "clf_head.fc1.weight",
                    "clf_head.fc1.bias",
                ),
            )
        ),
        transposed=True,
        unused=("cluster_head.",),  # an idea that is not in the paper; at initial values
        background=1,
        steps=36_000,  # 6,000 epochs of 6
        config=DGAM,
    ),
    "stpn": Format(
        read=tensorflow_checkpoint.read,
        names=dict(
            zip(
                PARAMETERS,
                (
                    "Attention/dense/kernel",
                    "Attention/dense/bias",
                    "Attention/dense_1/kernel",
                    "Attention/dense_1/bias",
                    "Classification/class_weight/kernel",
                    "Classification/class_weight/bias",
                ),
            )
        ),
        transposed=False,
        unused=("/Adam", "/Adam_1", "beta1_power", "beta2_power"),
        background=0,
        steps=23_100,
        config=STPN,
    ),
}


def read(kind: str, path: str) -> Params:
    """The attention and the classifier in a published file, float32, as `method.Params`.

    Args:
      kind: a key of `FORMATS`.
      path: the file; for a TensorFlow checkpoint its prefix.

    Raises:
      InputError: the file cannot be read, or the shapes of its parameters do not fit together.
      FolderError: parameters are missing or unknown; all of them are listed.
    """
    form, problems = FORMATS[kind], Problems()
    found = form.read(path)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} holds a {type(found).__name__}, no arrays by name: give the file that was published")
    found = {name.removeprefix("module."): x for name, x in found.items()}  # torch.nn.DataParallel adds it
    for name in form.names.values():
        if name not in found:
            problems.add(name, "is missing")
        elif not isinstance(found[name], np.ndarray) or found[name].dtype != np.float32:
            problems.add(name, f"is {getattr(found[name], 'dtype', type(found[name]).__name__)}: must be float32")
        elif not np.isfinite(found[name]).all():
            problems.add(name, "is NaN or infinite in places")
    for name in sorted(set(found) - set(form.names.values())):
        if not name.startswith(form.unused) and not name.endswith(form.unused):
            problems.add(name, f"is no parameter of {kind}: give the file that was published")
    if problems:
        raise FolderError(path, problems.lines())
    flat = {ours: found[name] for ours, name in form.names.items()}
    flat = {ours: x.T if form.transposed and x.ndim == 2 else x for ours, x in flat.items()}
    d, h = (*flat["attention/hidden/kernel"].shape, 0, 0)[:2]
    k = flat["classifier/bias"].size
    expected = dict(zip(PARAMETERS, ((d, h), (h,), (h, 1), (1,), (d, k), (k,))))
    if k <= form.background or any(x.shape != expected[ours] for ours, x in flat.items()):
        shapes = ", ".join(f"{name} {list(found[name].shape)}" for name in form.names.values())
        raise InputError(f"{path} has parameters that do not fit together: {shapes}; give the file that was published")
    return unflatten_dict({ours: np.ascontiguousarray(x) for ours, x in flat.items()}, sep="/")


def write(kind: str, files: dict[str, str], workdir: Path) -> str:
    """Reads the file of each stream and writes `workdir`; returns a message.

    Raises:
      InputError: see `read`; or `workdir` is not empty, or the shapes of the streams differ.
    """
    form = FORMATS[kind]
    if workdir.exists() and any(workdir.iterdir()):
        raise InputError(f"{workdir} is not empty: give another --workdir")
    params = {stream: read(kind, path) for stream, path in files.items()}
    d, hidden = next(iter(params.values()))["attention"]["hidden"]["kernel"].shape
    outputs = {stream: x["classifier"]["bias"].size for stream, x in params.items()}
    if {x["attention"]["hidden"]["bias"].size for x in params.values()} != {hidden} or len(set(outputs.values())) > 1:
        raise InputError(f"{', '.join(files.values())}: differ in their classes or in the units of the attention")
    num_classes = outputs[next(iter(files))] - form.background
    names = CLASSES if num_classes == len(CLASSES) else [f"class {i}" for i in range(num_classes)]
    for stream, tree in params.items():  # with the leading axis of seeds that `train.State` has
        checkpoint.save(workdir / "checkpoints" / stream, form.steps, {"params": jax.tree.map(lambda x: x[None], tree)})
    config = form.config.format(
        files=" and ".join(Path(path).name for path in files.values()),
        classes=textwrap.fill(", ".join(names), 119),
        streams=tuple(files),
        hidden=hidden,
        steps=form.steps,
    )
    (workdir / "config.py").write_text(config, encoding="utf-8")
    options = f"--config={workdir}/config.py --workdir={workdir} --config.data.root=FEATURES"
    return (
        f"imported {', '.join(files)}: features of {d} dimensions, attention of {hidden} units, {num_classes} classes\n"
        f"evaluate with: python -m wsal_jax.main {options}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=FORMATS)
    parser.add_argument("--rgb", help="file (stpn: its name without .index) of the RGB model")
    parser.add_argument("--flow", help="the same for the flow model")
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
    args = parser.parse_args(argv)
    files = {stream: getattr(args, stream) for stream in ("rgb", "flow") if getattr(args, stream)}
    if not files:
        parser.error("give --rgb, --flow or both")
    logging.set_verbosity(logging.ERROR)  # Orbax logs every step it takes
    try:
        print(write(args.kind, files, args.workdir))
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
