"""Attention rollout: which patches of an image a model's attention reaches, over all its layers at once."""

import math

import jax.numpy as jnp
import numpy as np


def rollout(maps, *, grids=None, class_token=False):
    """How much each patch of the first grid counts in what a model reads out, by attention alone.

        R_l = (A_l + I) / 2 R_(l-1),   R_0 = I,   out = mean over rows of R_L

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928, eq. 1: A_l are the weights
    of layer l, averaged over heads, and the identity stands for the residual connection. Where the grid shrinks between
    two layers (Swin's patch merging, a strided convolution or pooling), a matrix P that averages the cells that become
    one goes in between. Values, MLPs and norms are left out, so this is a picture of where a model looks and no
    attribution. The product is taken from its last factor, a row: time O(layers T^2).

    Args:
      maps: list over layers of [B, N, T, T], weights of queries (first T) on keys; T = special tokens + rows x columns
        of the layer's grid. The number of special tokens, which come first, is the same in all layers.
      grids: list over layers of (rows, columns); None = the largest square that T holds.
      class_token: the model reads out its first token alone; else the mean of all that stand on the grid.

    Returns:
      float32 [B, rows, columns] of the first grid; each image sums to 1.

    Raises:
      ValueError: grids that do not fit the maps, that grow, or a class token where there are no special tokens.

    >>> sharp = jnp.array([[0.0, 1, 0, 0]] * 4).reshape(1, 1, 4, 4)  # every patch looks at patch 1
    >>> rollout([sharp])[0].tolist()
    [[0.125, 0.625], [0.125, 0.125]]
    """
    grids = grids or [(math.isqrt(weights.shape[-1]),) * 2 for weights in maps]
    special = maps[0].shape[-1] - math.prod(grids[0])
    for layer, (weights, grid) in enumerate(zip(maps, grids, strict=True)):
        if weights.shape[-1] != special + math.prod(grid) or special < class_token:
            raise ValueError(
                f"maps[{layer}]: wanted {special} special tokens and a grid of {grid}, "
                f"got {weights.shape[-1]} tokens; write the grids, or class_token=False where there is none"
            )
    last = special + math.prod(grids[-1])
    row = np.arange(last) < 1 if class_token else np.arange(last) >= special
    row = jnp.asarray(row / row.sum(), jnp.float32)[None]  # B T
    for layer in reversed(range(len(maps))):
        weights = maps[layer].mean(1, dtype=jnp.float32)
        row = (jnp.einsum("bt,bts->bs", jnp.broadcast_to(row, weights.shape[:2]), weights) + row) / 2
        if layer and grids[layer] != grids[layer - 1]:
            pooling = jnp.asarray(pooling_matrix(grids[layer - 1], grids[layer]))
            row = jnp.concatenate([row[:, :special], row[:, special:] @ pooling], axis=1)
    row = row[:, special:]
    return (row / row.sum(-1, keepdims=True)).reshape(-1, *grids[0])


def pooling_matrix(fine, coarse):
    """The matrix that averages a grid over the cells that become one: float32 [coarse cells, fine cells].

    Cells are counted row by row; a last row or column that the coarse cell only partly covers counts in full.

    Args:
      fine: (rows, columns) before.
      coarse: (rows, columns) after: ceil(fine / stride) for some whole stride in each direction.

    Raises:
      ValueError: no stride does it.

    >>> pooling_matrix((1, 3), (1, 2)).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    rows, columns = (_pooling_along(before, after) for before, after in zip(fine, coarse, strict=True))
    return np.kron(rows, columns).astype(np.float32)


def _pooling_along(before, after):
    stride = -(-before // after)
    cells = np.arange(before) // stride
    if cells[-1] != after - 1:
        raise ValueError(f"grids: wanted {before} cells joined into ceil({before} / stride), got {after}")
    member = cells == np.arange(after)[:, None]
    return member / member.sum(1, keepdims=True)
