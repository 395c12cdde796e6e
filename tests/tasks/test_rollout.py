"""Attention rollout against plain products of matrices, and grids that shrink on the way."""

import jax.numpy as jnp
import numpy as np
import pytest

from tasks.rollout import pooling_matrix, rollout


def weights(rng, tokens, batch=2, heads=3):
    """Random rows that sum to 1: [B, N, T, T]."""
    scores = rng.exponential(size=(batch, heads, tokens, tokens)) ** 3
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def product(maps, poolings, special, class_token):
    """The definition, matrix after matrix in float64."""
    out = []
    for image in range(len(maps[0])):
        total = np.eye(maps[0].shape[-1])
        for layer, pooling in zip(maps, poolings, strict=True):
            if pooling is not None:
                total = np.block([[total[:special]], [pooling @ total[special:]]])
            mean = layer[image].astype(np.float64).mean(0)
            total = (mean + np.eye(len(mean))) / 2 @ total
        row = total[0] if class_token else total[special:].mean(0)
        out.append(row[special:] / row[special:].sum())
    return np.array(out)


@pytest.mark.parametrize("special, class_token", [(0, False), (1, True), (3, True), (2, False)])
def test_one_grid_is_the_product_of_the_layers(special, class_token):
    rng = np.random.default_rng(0)
    maps = [weights(rng, special + 25) for _ in range(3)]
    found = rollout([jnp.asarray(m) for m in maps], special=special, class_token=class_token)
    assert found.shape == (2, 5, 5) and found.dtype == jnp.float32
    want = product(maps, [None] * 3, special, class_token).reshape(2, 5, 5)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-6)


def test_grids_that_shrink_are_joined_by_averages():
    rng = np.random.default_rng(1)
    grids = [(5, 7), (5, 7), (3, 4), (2, 2)]
    maps = [weights(rng, rows * columns) for rows, columns in grids]
    poolings = [None, None]
    for (rows, columns), coarse in (((5, 7), (3, 4)), ((3, 4), (2, 2))):
        pooling = np.zeros((np.prod(coarse), rows * columns))
        for i in range(rows):
            for j in range(columns):
                pooling[(i // 2) * coarse[1] + j // 2, i * columns + j] = 1
        poolings.append(pooling / pooling.sum(1, keepdims=True))
    found = rollout([jnp.asarray(m) for m in maps], grids=grids)
    np.testing.assert_allclose(found, product(maps, poolings, 0, False).reshape(2, 5, 7), rtol=1e-5)


def test_square_grids_are_read_off_the_maps():
    rng = np.random.default_rng(2)
    maps = [jnp.asarray(weights(rng, side**2)) for side in (7, 7, 4, 1)]
    np.testing.assert_array_equal(rollout(maps), rollout(maps, grids=[(7, 7), (7, 7), (4, 4), (1, 1)]))


@pytest.mark.parametrize("special, class_token", [(5, True), (5, False)])
def test_special_tokens_may_outnumber_the_patches(special, class_token):
    """9 tokens are 5 and a grid of 2 x 2, not a grid of 3 x 3."""
    maps = [weights(np.random.default_rng(3), special + 4) for _ in range(2)]
    found = rollout([jnp.asarray(m) for m in maps], special=special, class_token=class_token)
    np.testing.assert_allclose(found, product(maps, [None] * 2, special, class_token).reshape(2, 2, 2), rtol=1e-5)


def test_one_residual_around_both_axes_leaves_no_cross():
    """Even weights down a column, then along a row: half stays in place, half is spread over the whole grid."""
    even, alone = np.full((4, 4), 1 / 4), np.eye(4)
    down, along = (jnp.asarray(np.kron(*axes)[None, None]) for axes in ((even, alone), (alone, even)))
    fifth = jnp.zeros((1, 1, 16, 16)).at[..., 5].set(1)  # what the last two layers read: half of it cell 5
    found = rollout([down, along, fifth, fifth], maps_per_residual=2)
    spread = (1 / 16 + np.eye(16)[5].reshape(4, 4)) / 2  # of cell 5, by the first two
    np.testing.assert_allclose(found[0], (spread + 1 / 16) / 2, rtol=1e-6)


def test_residuals_around_two_layers_are_products_of_blocks():
    rng = np.random.default_rng(4)
    maps = [weights(rng, tokens) for tokens in (35, 35, 35, 35, 12, 12)]
    grids = [(5, 7)] * 4 + [(3, 4)] * 2
    found = rollout([jnp.asarray(m) for m in maps], grids=grids, maps_per_residual=2)
    blocks = [(maps[i + 1].mean(1, np.float64) @ maps[i].mean(1, np.float64))[:, None] for i in (0, 2, 4)]
    poolings = [None, None, pooling_matrix((5, 7), (3, 4)).astype(np.float64)]
    np.testing.assert_allclose(found, product(blocks, poolings, 0, False).reshape(2, 5, 7), rtol=1e-5)


def test_layers_that_look_at_themselves_spread_evenly():
    identity = jnp.broadcast_to(jnp.eye(9), (1, 2, 9, 9))
    np.testing.assert_allclose(rollout([identity] * 4), np.full((1, 3, 3), 1 / 9), rtol=1e-6)


@pytest.mark.parametrize("before, after, stride", [(8, 4, 2), (7, 4, 2), (9, 3, 3), (5, 1, 5), (2, 2, 1), (14, 4, 4)])
def test_pooling_averages_the_cells_of_a_stride(before, after, stride):
    found = pooling_matrix((before, 1), (after, 1)) @ np.arange(before)
    want = [np.mean(range(start, min(start + stride, before))) for start in range(0, before, stride)]
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize(
    "tokens, options, message",
    [
        ((9, 10), {}, "maps\\[1\\]: wanted 0 special tokens and a grid of \\(3, 3\\), got 10 tokens"),
        ((9,), {"class_token": True}, "class_token=False where there is none"),
        ((6,), {"grids": [(2, 4)]}, "maps\\[0\\]: wanted 0 special tokens and a grid of \\(2, 4\\), got 6 tokens"),
        ((9,), {"special": 10}, "maps\\[0\\]: wanted 10 special tokens and a grid of \\(0, 0\\), got 9 tokens"),
        ((9, 9, 9), {"maps_per_residual": 2}, "maps: wanted a multiple of maps_per_residual=2, got 3"),
        (
            (9, 4),
            {"maps_per_residual": 2},
            "grids\\[1\\]: wanted \\(3, 3\\), as where its residual starts, got \\(2, 2\\)",
        ),
        ((9, 16), {}, "grids: wanted 3 cells joined into ceil\\(3 / stride\\), got 4"),
        ((25, 16), {}, "grids: wanted 5 cells joined into ceil\\(5 / stride\\), got 4"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        rollout([jnp.ones((1, 1, t, t)) / t for t in tokens], **options)
