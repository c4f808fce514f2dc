import numpy as np
import pytest

from wsal_jax.fuse import fuse
from wsal_jax.types import Scores


def random_scores(seed, n=5, c=3):
    rng = np.random.default_rng(seed)
    return Scores(*(rng.random(shape, np.float32) for shape in [c, (n, c), n]), rng.random(seed + 1))


def test_halves():
    rgb, flow = random_scores(0), random_scores(1)
    fused = fuse([rgb, flow], [0.5, 0.5])
    for field in ("video_score", "cas", "attention"):
        a, b = getattr(rgb, field), getattr(flow, field)
        np.testing.assert_allclose(getattr(fused, field), (a.astype(float) + b) / 2)
    assert fused[3:] == (None, None, None)


def test_weights_belong_to_their_model_and_are_normalised():
    models = [random_scores(seed) for seed in range(3)]
    fused = fuse(models, (2.0, 0.0, 6.0))
    np.testing.assert_allclose(fused.cas, 0.25 * models[0].cas.astype(float) + 0.75 * models[2].cas)
    for one, other in zip(fused[:3], fuse(models, (0.25, 0.0, 0.75))[:3]):
        np.testing.assert_allclose(one, other)
    for one, other in zip(fuse(models[:1], (7.0,))[:3], models[0][:3]):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize(
    "shape, message",
    [
        (dict(n=6), "model 1 scores 6 snippets and 3 classes, model 0 5 and 3"),
        (dict(n=1), "model 1 scores 1 snippets and 3 classes, model 0 5 and 3"),  # would broadcast
        (dict(c=2), "model 1 scores 5 snippets and 2 classes, model 0 5 and 3"),
    ],
)
def test_models_that_differ(shape, message):
    with pytest.raises(ValueError, match=message):
        fuse([random_scores(0), random_scores(1, **shape)], [0.5, 0.5])


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.3, 0.2), (0.0, 0.0), (1.5, -0.5)])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match=r"config\.fusion"):
        fuse([random_scores(0), random_scores(1)], weights)


@pytest.mark.parametrize("field", ["evidence", "class_attention"])
def test_a_field_is_fused_where_all_have_it(field):
    models = [random_scores(seed) for seed in range(2)]
    both = [one._replace(**{field: np.full((5, 3), x)}) for one, x in zip(models, (0.2, 0.6))]
    fused = fuse(both, (1.0, 3.0))._asdict()
    np.testing.assert_allclose(fused.pop(field), 0.5)
    assert [name for name, x in fused.items() if x is None] == [
        name for name in ("extras", "evidence", "class_attention") if name != field
    ]
    assert getattr(fuse([both[0], models[1]], (1.0, 3.0)), field) is None
