"""Attention rollout: which patches of an image a model's attention reaches, over all its layers at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np

SHARES = 1e-3  # how far below 0, or their sum from 1, weights may lie that count as shares: rounding is far less


def look(model, inputs, *, mapped=True, **structure):
    """What a model answers, and where it looks.

    Args:
      model: [1, ...] -> scores of classes [1, classes]; also has `attention_maps`, [1, ...] -> as `rollout` takes them.
      inputs: [n, ...]; they are looked at one after the other, for the maps of a large image have (tokens)^2 numbers.
      mapped: whether maps are wanted.
      **structure: as `rollout` takes it.

    Returns:
      {"answers" int32 [n], "confidence" float32 [n], the answer's probability, "maps" float32 [n, rows, columns], from
      `rollout`}. Without "maps" where a layer's weights are no shares: some variants (Linformer) pay less than 0, or
      sums other than 1.
    """

    def one(each):
        logits = model(each[None])[0].astype(jnp.float32)
        found = {"answers": logits.argmax().astype(jnp.int32), "confidence": jax.nn.softmax(logits).max()}
        if not mapped:
            return found
        maps = model.attention_maps(each[None])
        off = jnp.stack([jnp.maximum(-weights.min(), abs(weights.sum(-1) - 1).max()) for weights in maps]).max()
        return found | {"maps": rollout(maps, **structure)[0], "off": off}

    found = dict(jax.lax.map(one, inputs))
    if mapped and not np.max(found.pop("off")) <= SHARES:
        del found["maps"]
    return found


def rollout(maps, *, grids=None, special=0, class_token=False, maps_per_residual=1):
    """How much each patch of the first grid counts in what a model reads out, by attention alone.

        R_l = (A_l + I) / 2 R_(l-1),   R_0 = I,   out = mean over rows of R_L

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928, eq. 1: A_l are the weights
    of layer l, averaged over heads, and the identity stands for the residual connection. Where one residual connection
    spans several layers, as in Axial-ResNet, A_l is the product of their weights: (A_width A_height + I) / 2. Where the
    grid shrinks between two layers (Swin's patch merging, a strided convolution or pooling), a matrix P that averages
    the cells that become one goes in between; that a shortcut may pick one of those cells instead, and what is pooled
    after the last layer, is left out, like values, MLPs and norms. So this is a picture of where a model looks and no
    attribution. The product is taken from its last factor, a row: time O(layers T^2).

    Args:
      maps: list over layers of [B, N, T, T], weights of queries (first T) on keys, not negative and of sum 1 for each
        query; T = special tokens, which come first, + rows x columns of the layer's grid.
      grids: list over layers of (rows, columns); None = all are square.
      special: number of special tokens, the same in all layers.
      class_token: the model reads out its first token alone; else the mean of all that stand on the grid.
      maps_per_residual: so many layers in a row that one residual connection spans.

    Returns:
      float32 [B, rows, columns] of the first grid; each image sums to 1.

    Raises:
      ValueError: grids that do not fit the maps, that grow or that change inside a residual connection, layers left
        over, or a class token where there are no special tokens.

    >>> sharp = jnp.array([[0.0, 1, 0, 0]] * 4).reshape(1, 1, 4, 4)  # every patch looks at patch 1
    >>> rollout([sharp])[0].tolist()
    [[0.125, 0.625], [0.125, 0.125]]
    """
    grids = grids or [(math.isqrt(max(weights.shape[-1] - special, 0)),) * 2 for weights in maps]
    _check(maps, grids, special, class_token, maps_per_residual)
    tokens = np.arange(maps[-1].shape[-1])
    read = tokens < 1 if class_token else tokens >= special
    row = jnp.broadcast_to(jnp.asarray(read / read.sum(), jnp.float32), (len(maps[-1]), len(tokens)))
    for first in reversed(range(0, len(maps), maps_per_residual)):
        branch = row
        for weights in reversed(maps[first : first + maps_per_residual]):
            branch = jnp.einsum("bt,bts->bs", branch, weights.mean(1, dtype=jnp.float32))
        row = (branch + row) / 2
        if first and grids[first] != grids[first - 1]:
            pooling = jnp.asarray(pooling_matrix(grids[first - 1], grids[first]))
            row = jnp.concatenate([row[:, :special], row[:, special:] @ pooling], axis=1)
    row = row[:, special:]
    return (row / row.sum(-1, keepdims=True)).reshape(-1, *grids[0])


def _check(maps, grids, special, class_token, maps_per_residual):
    if class_token and not special:
        raise ValueError("special: wanted 1 or more, got 0; write class_token=False where there is none")
    if len(maps) % maps_per_residual:
        raise ValueError(f"maps: wanted a multiple of maps_per_residual={maps_per_residual}, got {len(maps)}")
    for layer, (weights, grid) in enumerate(zip(maps, grids, strict=True)):
        first = layer - layer % maps_per_residual
        if grid != grids[first]:
            raise ValueError(f"grids[{layer}]: wanted {grids[first]}, as where its residual starts, got {grid}")
        if weights.shape[-1] != special + math.prod(grid):
            raise ValueError(
                f"maps[{layer}]: wanted {special} special tokens and a grid of {grid}, "
                f"got {weights.shape[-1]} tokens; write special and grids"
            )


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
