"""The head for every pixel against its formula, and what it makes of maps of several sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from models.dense_head import DenseHead, resize

WIDTHS, CLASSES, EPSILON = (3, 7), 5, 1e-2  # large enough to be seen


def config(dtype="float32"):
    return ConfigDict({"num_classes": CLASSES, "head_width": 11, "norm_epsilon": EPSILON, "dtype": dtype})


@pytest.fixture
def head():
    return DenseHead(WIDTHS, config(), rngs=nnx.Rngs(0))


def maps(*sizes):
    return [jax.random.normal(jax.random.key(h), (2, h, w, C)) for (h, w), C in zip(sizes, WIDTHS, strict=True)]


def test_equals_its_formula(head):
    """Where all maps and the image have one size, nothing is resized."""
    features = maps((4, 3), (4, 3))
    y = sum(
        np.asarray(x, np.float64) @ np.asarray(p.kernel, np.float64) + np.asarray(p.bias)
        for x, p in zip(features, head.projections, strict=True)
    )
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + EPSILON)
    tail = np.vectorize(lambda y: 0.5 * (1 + math.erf(y / math.sqrt(2))))(y)
    wanted = y * tail @ np.asarray(head.classes.classes, np.float64)
    np.testing.assert_allclose(
        jax.jit(lambda maps: head(maps, (4, 3)))(features), wanted, rtol=0, atol=1e-5 * abs(wanted).max()
    )


def test_resize_is_linear_between_centres():
    """A ramp stays a ramp, but for the half cell beyond the outermost centres."""
    ramp = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (1, 4, 3, 2))
    got = resize(ramp, (8, 5))
    assert got.shape == (1, 8, 5, 2)
    np.testing.assert_allclose(got[0, 1:-1, 2, 1], (np.arange(1, 7) + 0.5) / 2 - 0.5, rtol=1e-6)
    assert resize(ramp, (4, 3)) is ramp


@pytest.mark.parametrize("sizes", [[(5, 4), (3, 2)], [(1, 1), (2, 5)]], ids=str)
def test_every_pixel_hears_every_map(head, sizes):
    features = maps(*sizes)
    apply = jax.jit(lambda features: head(features, (9, 7)))
    assert apply(features).shape == (2, 9, 7, CLASSES)
    for i in range(2):
        changed = [x + (0.5 * x[:, :1, :1] if i == j else 0) for j, x in enumerate(features)]
        assert (apply(changed) != apply(features)).any(-1).all()


def test_the_finest_map_places_the_edges(head):
    """An image of the finest map's size keeps its pixels apart: a change at one cell moves that pixel alone."""
    features = maps((5, 4), (2, 2))
    before = head(features, (5, 4))
    after = head([features[0].at[:, 2, 1].add(1.0), features[1]], (5, 4))
    assert np.argwhere((before != after).any((0, 3))).tolist() == [[2, 1]]


def test_bfloat16_gives_float32_logits():
    head = DenseHead(WIDTHS, config("bfloat16"), rngs=nnx.Rngs(0))
    assert head([x.astype(jnp.bfloat16) for x in maps((3, 3), (2, 2))], (6, 6)).dtype == jnp.float32


def test_refuses_another_number_of_maps(head):
    with pytest.raises(ValueError, match="features: wanted 2 maps, one for each width, got 1"):
        head(maps((3, 3), (2, 2))[:1], (6, 6))
