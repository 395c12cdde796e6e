"""Biases of relative positions for attention in windows, Swin v1 and v2, and the cosine scores of v2."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from .checks import accumulation_dtype
from .swin import check_window
from .tile import plain_promotion


def relative_position_index(window, table_window=None):
    """For each pair of pixels of a window, the row of the bias table that belongs to the step from key to query.

        index[i, j] = (row_i - row_j + M - 1) (2 M - 1) + column_i - column_j + M - 1

    Liu et al. 2021, arXiv:2103.14030, below eq. 4.

    Args:
      window: M, or a pair.
      table_window: the window that the table was made for, at least `window`; None = `window`.

    Returns:
      A NumPy int array `[M*M, M*M]`.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> relative_position_index((1, 3))
    array([[2, 1, 0],
           [3, 2, 1],
           [4, 3, 2]])
    """
    window, _ = check_window(window, 0)
    table_window = window if table_window is None else check_window(table_window, 0, "table_window")[0]
    if any(m > largest for m, largest in zip(window, table_window, strict=True)):
        raise ValueError(f"table_window: wanted at least the window {window}, got {table_window}")
    rows, columns = np.indices(window).reshape(2, -1)
    row_steps, column_steps = (x[:, None] - x + m - 1 for x, m in zip((rows, columns), table_window, strict=True))
    return row_steps * (2 * table_window[1] - 1) + column_steps


def relative_position_bias(table, window, table_window=None):
    """The bias of every pair of pixels of a window, read from a table of relative positions.

    Args:
      table: `[(2M-1)^2, N]`, a learned number for each step and head; row steps outside, both from -(M-1) to M-1.
      window: M, or a pair.
      table_window: the window that the table was made for, if that is larger; its middle is read.

    Returns:
      `[N, M*M, M*M]`, query first, in the table's dtype.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> relative_position_bias(jnp.ones((49, 3)), window=4).shape
    (3, 16, 16)
    """
    index, table = relative_position_index(window, table_window), jnp.asarray(table)
    sides = check_window(window if table_window is None else table_window, 0)[0]
    steps = math.prod(2 * m - 1 for m in sides)
    if table.ndim != 2 or len(table) != steps:
        raise ValueError(f"table: wanted [{steps}, N] for a window of {sides}, got shape {table.shape}")
    return jnp.moveaxis(table[index], -1, 0)


def log_spaced_coordinates(window, pretrained_window=None):
    """Swin v2's coordinates of relative positions, from which a small network computes the bias table.

        c = sign(x) log2(1 + |x|) / log2(8),   x = 8 step / (M - 1)

    Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv:2111.09883, eq. 4, with the units
    of the authors' code. There, table = 16 sigmoid(MLP(coordinates)), and `relative_position_bias` spreads it.

    Args:
      window: M, or a pair.
      pretrained_window: the window of an earlier training, whose M - 1 is the unit; None = `window`.

    Returns:
      A float32 NumPy array `[(2M-1)^2, 2]`: row and column of each step, in the table's order. An axis of one pixel has
      coordinate 0.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> log_spaced_coordinates((1, 3))[:, 1].round(3)
    array([-1.057, -0.774,  0.   ,  0.774,  1.057], dtype=float32)
    """
    window, _ = check_window(window, 0)
    unit = window if pretrained_window is None else check_window(pretrained_window, 0, "pretrained_window")[0]
    axes = [8 * np.arange(1 - m, m) / max(u - 1, 1) for m, u in zip(window, unit, strict=True)]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return (np.sign(x) * np.log2(1 + np.abs(x)) / np.log2(8)).astype(np.float32)


@plain_promotion
def cosine_queries_and_keys(query, key, logit_scale):
    """Queries and keys whose dot products are Swin v2's scores; attend with scale=1.0.

        q'_i . k'_j = cos(q_i, k_j) min(exp(logit_scale), 100)

    Liu et al. 2022, arXiv:2111.09883, eq. 2 (their tau = exp(-logit_scale), kept above 0.01).

    Args:
      query: `[..., N, H]`.
      key: `[..., K, H]`.
      logit_scale: `[N]`, one a head; the authors start from log 10.

    Returns:
      The pair of arrays in the shapes and dtypes given. A vector of zeros stays one.

    >>> q = jnp.array([[3.0, 4.0]])
    >>> [x.tolist() for x in cosine_queries_and_keys(q, q, jnp.zeros(1))]
    [[[0.6..., 0.8...]], [[0.6..., 0.8...]]]
    """
    query, key, logit_scale = (jnp.asarray(x) for x in (query, key, logit_scale))
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key: wanted the width of query, {query.shape[-1]}, got shape {key.shape}")
    if logit_scale.shape != query.shape[-2:-1]:
        raise ValueError(f"logit_scale: wanted one number a head, {query.shape[-2:-1]}, got shape {logit_scale.shape}")
    factor = jnp.exp(jnp.minimum(logit_scale.astype(accumulation_dtype(query.dtype)), math.log(100)))
    return (_unit(query) * factor[:, None]).astype(query.dtype), _unit(key).astype(key.dtype)


def _unit(x):
    """`x` at length 1, in the accumulation dtype; shorter than 1e-12, as in published code, it grows by 1e12 only."""
    x = x.astype(accumulation_dtype(x.dtype))
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
