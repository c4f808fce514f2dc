"""Random crops and mirror images against their coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsal_jax import augment

SIDE = 32


def coordinates():
    """A picture whose channels are the row, the column and 1."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return jnp.asarray(np.stack([rows, columns, np.ones_like(rows)], -1), jnp.float32)


@pytest.mark.parametrize("least", [0.3, 1.0])
def test_crops_are_parts_of_the_picture(least):
    keys = jax.random.split(jax.random.key(0), 300)
    found = np.asarray(jax.jit(jax.vmap(lambda key: augment.crop(key, coordinates(), least)))(keys))
    np.testing.assert_allclose(found[..., 2], 1, atol=1e-5)  # nothing from outside
    inner = found[:, 4:-4, 4:-4]  # where interpolation does not end at the border
    height, width = np.diff(inner[..., 0], axis=1), np.diff(inner[..., 1], axis=2)
    for step in (height, width):  # evenly spaced
        assert np.abs(step - step[:, :1, :1]).max() < 2e-4
    height, width = height[:, 0, 0], width[:, 0, 0]
    area, aspect = height * width, width / height
    assert (aspect < 4 / 3 + 1e-3).all() and (aspect > 3 / 4 - 1e-3).all() and (area < 1 + 1e-3).all()
    assert np.corrcoef(height, width)[0, 1] < 0.99
    if least == 0.3:
        assert (area > 0.3 - 1e-3).all() and area.min() < 0.34 and area.max() > 0.9
        np.testing.assert_allclose(np.median(area[area < 0.7]), 0.5, atol=0.03)  # where every shape fits: uniform
    start = inner[:, 0, 0, :2] - 4 * np.stack([height, width], 1) - (np.stack([height, width], 1) - 1) / 2
    free = SIDE * (1 - np.stack([height, width], 1))
    assert (start > -0.01).all() and (start < free + 0.01).all()
    share = (start / np.maximum(free, 1e-6))[free > 1]
    assert share.min() < 0.1 and share.max() > 0.9


def test_a_mirror_image_is_as_likely():
    keys = jax.random.split(jax.random.key(1), 400)
    found = np.asarray(jax.jit(jax.vmap(lambda key: augment.flip(key, coordinates())))(keys))
    mirrored = found[:, 0, 0, 1] == SIDE - 1
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_array_equal(found[mirrored][:, :, ::-1], found[~mirrored][0][None].repeat(mirrored.sum(), 0))
