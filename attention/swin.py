"""Attention inside shifted windows of an image, and how an image is cut into them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from . import dropout
from .checks import (
    accumulation_dtype,
    check_broadcast,
    check_dropout,
    check_int,
    check_self_attention,
    check_vector,
    quiet_padding,
)
from .tile import Tile, plain_promotion


@plain_promotion
def shifted_window_attention(
    query,
    key,
    value,
    *,
    window: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    bias=None,
    key_mask=None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
):
    """Attention among the pixels of one window, on a grid of windows that may be shifted.

        out_i = sum_j p_ij v_j,   p_i = softmax_j(scale * q_i . k_j + bias[i, j])   over the j in i's window
        same window:   floor((row_i - shift) / M) = floor((row_j - shift) / M), and columns likewise

    Swin Transformer, Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    arXiv:2103.14030, section 3.2 and eq. 4 (their M = window, d = H, B = bias). Layers alternate shift 0 and M // 2, so
    that what one layer keeps apart the next brings together.

    A shifted grid has narrow windows at the edges. As in the paper, the image is rolled so that two narrow ones share a
    full window, and they are then hidden from each other (`window_regions`): exactly, where the authors' code adds
    -100. Sides that the window does not divide are padded at the end before the roll; the padding is never attended
    (transformers lets zero padding take part: to have that, pad before projecting).

    The window is taken as asked, also where it is larger than the grid. Published models then shrink it and do not
    shift: `fit_window` says how.

    Time O(rows columns M^2 N (H + Hv)), memory O(rows columns M^2 N): the weights are held for the backward pass, as in
    published code; `jax.checkpoint` around the call trades them for a second forward pass.

    Args:
      query: `[..., rows, columns, N, H]`.
      key: `[..., rows, columns, K, H]`, K divides N; query head n reads key head n // (N / K).
      value: `[..., rows, columns, K, Hv]`.
      window: M, pixels a side, or a pair (rows, columns); M * M stands for their product.
      shift: pixels by which the windows are moved right and down, 0 <= shift < window; int or pair.
      bias: float array that broadcasts to `[N, M*M, M*M]`, added to the scaled scores of every window: query pixel
        first, pixels row by row. `relative_position_bias` makes it from a table.
      key_mask: bool `[..., rows, columns]`, True = real pixel. Rows of masked pixels are unspecified.
      scale: factor on the scores; None = H ** -0.5.
      dropout_rate: each weight is zeroed with this probability, the others grow by 1 / (1 - rate).
      rng: a `jax.random.key`, wanted with dropout.

    Returns:
      `[..., rows, columns, N, Hv]` in query's dtype; scores and softmax are float32 (float64 for float64).

    Raises:
      ValueError: arguments that do not fit, named.

    >>> image = jnp.ones((1, 9, 14, 3, 8))
    >>> shifted_window_attention(image, image, image, window=7, shift=3).shape
    (1, 9, 14, 3, 8)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    grid, lead = _check_grid(query, key, value), query.shape[:-4]
    window, shift = check_window(window, shift)
    cut = functools.partial(window_partition, window=window, shift=shift)
    if key_mask is not None:
        key_mask = check_vector("key_mask", key_mask, (*lead, grid[0]), grid[1], dtype=bool)
        key_mask = cut(jnp.broadcast_to(key_mask, (*lead, *grid))[..., None, None])[..., 0, 0]
    attended = window_attention(
        cut(query),
        cut(key),
        cut(value),
        bias=bias,
        regions=window_regions(grid, window, shift),
        key_mask=key_mask,
        scale=scale,
        dropout_rate=dropout_rate,
        rng=rng,
    )
    return window_merge(attended, grid, window, shift)


@plain_promotion
def window_attention(
    query,
    key,
    value,
    *,
    bias=None,
    regions=None,
    key_mask=None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
):
    """Attention inside windows that are already cut: `shifted_window_attention` between `window_partition` and merge.

        out_i = sum_j e_ij v_j / sum_j e_ij,   e_ij = exp(scale * q_i . k_j + bias[i, j])   over the j in i's region

    For layers: cut and merge the features around the projections, once, not query, key and value apart. Padding then
    projects to the projections' biases, which is harmless: its region is -1, and nobody attends it.

    Liu et al. 2021, arXiv:2103.14030, section 3.2. Rows are divided by their sums after the product with the values,
    which are narrower than the weights (Dao et al. 2022, "FlashAttention", arXiv:2205.14135).

    Time and memory as `shifted_window_attention`.

    Args:
      query: `[..., windows, M*M, N, H]`.
      key: `[..., windows, M*M, K, H]`, K divides N; query head n reads key head n // (N / K).
      value: `[..., windows, M*M, K, Hv]`.
      bias: float array that broadcasts to `[N, M*M, M*M]`, added to the scaled scores of every window.
      regions: NumPy int array `[windows, M*M]`: pixels of a window meet where the numbers are equal, and negative ones
        are padding, whose rows are unspecified. `window_regions` makes them; None = all meet.
      key_mask: bool `[..., windows, M*M]`, True = real pixel. Rows of masked pixels are unspecified.
      scale: factor on the scores; None = H ** -0.5.
      dropout_rate: each weight is zeroed with this probability, the others grow by 1 / (1 - rate).
      rng: a `jax.random.key`, wanted with dropout.

    Returns:
      `[..., windows, M*M, N, Hv]` in query's dtype; scores and softmax are float32 (float64 for float64).

    Raises:
      ValueError: arguments that do not fit, named.

    >>> features, projection = jnp.ones((1, 9, 14, 1, 24)), jnp.ones((24, 3, 8))
    >>> heads = jnp.einsum("...c,cnh->...nh", window_partition(features, 7, shift=3)[..., 0, :], projection)
    >>> window_attention(heads, heads, heads, regions=window_regions((9, 14), 7, shift=3)).shape
    (1, 4, 49, 3, 8)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    _check_windows(query, key, value)
    check_dropout(dropout_rate, rng)
    *lead, size, N, H = query.shape
    dtype = accumulation_dtype(query.dtype)
    if bias is not None:
        bias = _check_bias(bias, N, size).astype(dtype)
    if regions is not None:
        regions = _check_regions(regions, lead[-1], size)
    real = _real(regions, key_mask, tuple(lead), size)
    if real is not None:
        query = quiet_padding(query, real)
        key, value = (jnp.where(real[..., None, None], x, jnp.zeros((), x.dtype)) for x in (key, value))

    def heads_first(x):
        return jnp.swapaxes(x, -2, -3).astype(dtype)

    scaled = heads_first(query) * jnp.asarray(H**-0.5 if scale is None else scale, dtype)
    weight = _weights(scaled, heads_first(key), bias, _allowed(regions, real))
    # At least 1, or 0 for a row that sees nothing. Divided last: the output is narrower than the weights.
    total = jnp.maximum(weight.sum(-1, keepdims=True), 0.5)
    if dropout_rate:
        weight = _drop(weight, rng, float(dropout_rate))
    out = _per_key_head(weight, heads_first(value), "...ts,...sh->...th") / total
    return jnp.swapaxes(out.astype(query.dtype), -2, -3)


def window_partition(x, window, shift=0):
    """Cuts a grid into windows, the cut shifted by a cyclic roll.

    What it returns has the layout of sequences, so any attention function of this package can be applied in windows.
    Sides that the window does not divide are padded with zeros at the end, before the roll.

    Args:
      x: `[..., rows, columns, N, H]`.
      window: M, pixels a side, or a pair.
      shift: the first window starts at this row and column, int or pair, less than the window.

    Returns:
      `[..., windows, M*M, N, H]`: windows row by row, and pixels row by row in each.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> window_partition(jnp.arange(16).reshape(4, 4, 1, 1), 2, shift=1)[0].ravel()
    Array([ 5,  6,  9, 10], dtype=int32)
    """
    window, shift = check_window(window, shift)
    if x.ndim < 4:
        raise ValueError(f"x: wanted [..., rows, columns, N, H], got shape {x.shape}")
    *lead, rows, columns, N, H = x.shape
    counts = _counts((rows, columns), window)
    ends = [(0, count * m - side) for count, m, side in zip(counts, window, (rows, columns), strict=True)]
    if any(end for _, end in ends):
        x = jnp.pad(x, [(0, 0)] * len(lead) + ends + [(0, 0)] * 2)
    if any(shift):
        x = jnp.roll(x, [-s for s in shift], (-4, -3))
    x = x.reshape(*lead, counts[0], window[0], counts[1], window[1], N, H)
    return jnp.swapaxes(x, -5, -4).reshape(*lead, math.prod(counts), math.prod(window), N, H)


def window_merge(windows, grid, window, shift=0):
    """Puts windows back where `window_partition` took them from, without the padding.

    Args:
      windows: `[..., windows, M*M, N, H]`.
      grid: (rows, columns) of the result.
      window: as in `window_partition`.
      shift: as in `window_partition`.

    Returns:
      `[..., rows, columns, N, H]`.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> x = jnp.arange(15).reshape(3, 5, 1, 1)
    >>> bool((window_merge(window_partition(x, 2, 1), (3, 5), 2, 1) == x).all())
    True
    """
    window, shift = check_window(window, shift)
    grid = _check_sides(grid)
    if windows.ndim < 4:
        raise ValueError(f"windows: wanted [..., windows, M*M, N, H], got shape {windows.shape}")
    *lead, number, size, N, H = windows.shape
    counts = _counts(grid, window)
    if (number, size) != (math.prod(counts), math.prod(window)):
        wanted = math.prod(counts), math.prod(window)
        raise ValueError(
            f"windows: wanted [..., windows, M*M, N, H] with (windows, M*M) = {wanted}, got {windows.shape}"
        )
    x = jnp.swapaxes(windows.reshape(*lead, *counts, *window, N, H), -5, -4)
    x = x.reshape(*lead, counts[0] * window[0], counts[1] * window[1], N, H)
    if any(shift):
        x = jnp.roll(x, shift, (-4, -3))
    return x[..., : grid[0], : grid[1], :, :]


def window_regions(grid, window, shift=0):
    """Which pixels of a window hang together in the image: the wrapped pieces of a shifted grid are numbered apart.

    They are the `regions` of `window_attention`, and serve as segment ids: `dot_product_attention` on the arrays of
    `window_partition`, with these as query_segment_ids and key_segment_ids, is `shifted_window_attention`.

    Args:
      grid: (rows, columns).
      window: as in `window_partition`.
      shift: as in `window_partition`.

    Returns:
      A NumPy int array `[windows, M*M]`: 0 = not wrapped, 1 = its column wrapped, 2 = its row, 3 = both, -1 = padding.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> window_regions((4, 4), 2, shift=1)[-1]  # the last window: the four corners of the image
    array([0, 1, 2, 3])
    """
    window, shift = check_window(window, shift)
    grid, pieces = _check_sides(grid), []
    for side, count, m, s in zip(grid, _counts(grid, window), window, shift, strict=True):
        place = (np.arange(count * m) + s) % (count * m)
        pieces.append(np.where(place < side, place < s, -1).reshape(count, m))
    rows, columns = pieces[0][:, None, :, None], pieces[1][None, :, None, :]
    regions = np.where((rows < 0) | (columns < 0), -1, 2 * rows + columns)
    return regions.reshape(-1, math.prod(window))


def fit_window(grid, window, shift=0):
    """Window and shift for a grid: one that its shorter side does not exceed shrinks to that side and stays in place.

    Published Swins do so (Liu et al. 2021, arXiv:2103.14030, the authors' code): windows are square, whatever the grid.

    Args:
      grid: (rows, columns).
      window: M, an int.
      shift: an int less than M.

    Returns:
      (M, shift).

    Raises:
      ValueError: arguments that do not fit, named.

    >>> fit_window((14, 28), window=7, shift=3), fit_window((5, 28), window=7, shift=3)
    ((7, 3), (5, 0))
    """
    check_int("window", window, 1)
    check_int("shift", shift, 0)
    check_window(window, shift)
    side = min(_check_sides(grid))
    return (side, 0) if side <= window else (window, shift)


def _check_sides(grid):
    """The grid; raises ValueError unless it is a pair of positive ints."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise ValueError(f"grid: wanted a pair (rows, columns), got {grid!r}")
    for side in grid:
        check_int("grid", side, 1)
    return grid


def check_window(window, shift, name="window"):
    """Both as pairs; raises ValueError, of the window by its name, unless 0 <= shift < window."""
    pairs = []
    for argument, x, least in ((name, window, 1), ("shift", shift, 0)):
        pair = tuple(x) if isinstance(x, (tuple, list)) else (x, x)
        if len(pair) != 2:
            raise ValueError(f"{argument}: wanted an int or a pair (rows, columns), got {x!r}")
        for side in pair:
            check_int(argument, side, least)
        pairs.append(pair)
    if any(s >= m for m, s in zip(*pairs, strict=True)):
        raise ValueError(f"shift: wanted less than the window {window}, got {shift}")
    return pairs


def _weights(query, key, bias, allowed):
    """exp(score), `[..., windows, N, M*M, M*M]`, the largest of a row 1; a row in which all is hidden is 0."""
    score = _per_key_head(query, key, "...th,...sh->...ts")
    if bias is not None:
        score = score + bias
    if allowed is not None:
        score = jnp.where(allowed, score, -jnp.inf)  # whatever stands there, also NaN
    # Finite even where all scores are -inf.
    top = jax.lax.stop_gradient(score).max(-1, keepdims=True, initial=jnp.finfo(score.dtype).min)
    return jnp.exp(score - top)


def _per_key_head(x, of_keys, spec):
    """The product `spec` of `x [..., N, M*M, :]` with the key head `of_keys [..., K, M*M, :]` that each head reads."""
    *lead, N, size, width = x.shape
    K = of_keys.shape[-3]
    out = jnp.einsum(spec, x.reshape(*lead, K, N // K * size, width), of_keys)
    return out.reshape(*lead, N, size, out.shape[-1])


def _real(regions, key_mask, lead, size):
    """Which pixels are no padding, bool `[..., windows, M*M]`; None if all are real."""
    real = None if regions is None or (regions >= 0).all() else jnp.asarray(regions >= 0)
    if key_mask is None:
        return real
    key_mask = check_vector("key_mask", key_mask, lead, size, dtype=bool)
    return key_mask if real is None else real & key_mask


def _allowed(regions, real):
    """Which pairs may meet, bool that broadcasts to scores `[..., windows, N, M*M, M*M]`; None if all may."""
    allowed = None if real is None else real[..., None, None, :]
    if regions is not None and (regions != regions[:, :1]).any():
        together = (regions[:, :, None] == regions[:, None])[:, None]
        allowed = together if allowed is None else together & allowed
    return None if allowed is None else jnp.asarray(allowed)


def _drop(weight, rng, rate):
    *lead, N, size, _ = weight.shape
    windows = jnp.arange(math.prod(lead)).reshape(*lead, 1, 1, 1)
    return dropout.drop(weight, dropout.seeds(rng), rate, Tile(0, size, 0, size, 0, N, windows), N)


def _counts(grid, window):
    """Windows along each side."""
    return [-(-side // m) for side, m in zip(grid, window, strict=True)]


def _check_grid(query, key, value):
    """(rows, columns); raises ValueError unless the three are grids that fit each other."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 4:
            raise ValueError(f"{name}: wanted [..., rows, columns, heads, width], got shape {x.shape}")
    check_self_attention(query, key, value)
    if query.shape[-4] == 0:
        raise ValueError("query: wanted at least one row, got none")
    return query.shape[-4:-2]


def _check_windows(query, key, value):
    """Raises ValueError unless the three are windows that fit each other."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 4:
            raise ValueError(f"{name}: wanted [..., windows, M*M, heads, width], got shape {x.shape}")
    check_self_attention(query, key, value)


def _check_regions(regions, windows, size):
    if isinstance(regions, jax.core.Tracer):
        raise ValueError("regions: wanted an array known when the function is traced, got a tracer")
    regions = np.asarray(regions)
    if regions.shape != (windows, size) or not np.issubdtype(regions.dtype, np.integer):
        raise ValueError(f"regions: wanted ints [{windows}, {size}], got {regions.dtype} {list(regions.shape)}")
    return regions


def _check_bias(bias, N, size):
    if not hasattr(bias, "shape") or not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(f"bias: wanted a float array [N, M*M, M*M], got {getattr(bias, 'dtype', type(bias).__name__)}")
    check_broadcast("bias", bias.shape, (N, size, size))
    return jnp.asarray(bias)
