"""Images and weights of networks, made up, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from wsal_jax.backbones import torchvision


def random_units(shapes, norms=False, seed=0):
    """Arrays under torchvision's names, of a size that keeps numbers in the order of 1."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (height, width, before, after) in shapes.items():
        kernel = rng.normal(size=(after, before, height, width)) * np.sqrt(2 / (height * width * before))
        if norms:
            found[f"{name}.conv.weight"] = kernel
            found[f"{name}.bn.weight"], found[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, (2, after))
            found[f"{name}.bn.bias"], found[f"{name}.bn.running_mean"] = 0.3 * rng.normal(size=(2, after))
        else:
            found[f"{name}.weight"], found[f"{name}.bias"] = kernel, 0.1 * rng.normal(size=after)
    return {name: x.astype(np.float32) for name, x in found.items()}


def caffe_squeezenet(path: Path):
    """Writes a SqueezeNet of random numbers in Caffe's form; returns its arrays."""
    units = random_units(torchvision.squeezenet_shapes())
    names = {"features.0": "conv1"}
    parts = {"squeeze": "conv1x1_1", "expand1x1": "conv1x1_2", "expand3x3": "conv3x3_2"}
    for fire, at in enumerate(torchvision.FIRES, 2):
        names |= {f"features.{at}.{part}": f"fire{fire}.{theirs}" for part, theirs in parts.items()}
    found = {}
    for ours, theirs in names.items():
        found[f"{theirs}.w"], found[f"{theirs}.b"] = units[f"{ours}.weight"], units[f"{ours}.bias"]
    np.savez(path, **found)
    return found


def picture(width=40, height=30, seed=0):
    """Blobs of color."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def write(path: Path, image=None, **options):
    """Writes an image, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path
