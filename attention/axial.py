"""Attention along one axis of a grid: axial, position-sensitive or not, and every other variant along an axis."""

from __future__ import annotations

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from . import dropout
from .checks import (
    accumulation_dtype,
    check_dropout,
    check_int,
    check_self_attention,
    check_vector,
    quiet_padding,
)
from .dot_product import dot_product_attention
from .masks import Mask
from .tile import Tile, plain_promotion

# Arguments of this library's functions that say something of every token, and so lie on the grid.
OF_TOKENS = frozenset({
    "query", "key", "value", "query_key", "key_mask", "query_segment_ids", "key_segment_ids", "query_positions",
    "key_positions", "log_decay", "beta", "global_query", "global_key", "global_value",
})  # fmt: skip


@plain_promotion
def axial_attention(
    query,
    key,
    value,
    *,
    axis: int,
    query_table=None,
    key_table=None,
    value_table=None,
    span: int | None = None,
    causal: bool = False,
    key_mask=None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
):
    """Softmax attention along one axis of a grid, with learned vectors for the distance between query and key.

        y_o = sum_p softmax_p(scale * (q_o . k_p + q_o . r^q_{p-o} + k_p . r^k_{p-o})) (v_p + r^v_{p-o})

    over the positions p of the line through o along `axis`. Wang et al. 2020, "Axial-DeepLab: Stand-Alone
    Axial-Attention for Panoptic Segmentation", arXiv:2003.07853, eq. 4; the paper's r^q, r^k, r^v, m are our
    query_table, key_table, value_table, span. Without tables it is the axial attention of Ho et al. 2019,
    arXiv:1912.12180. Two layers, one along each axis of an image, let every pixel reach every other.

    Axial-DeepLab has scale=1.0 and puts batch norms on the terms before they are added; for these, see
    `position_sensitive_scores` and `position_sensitive_values`, of which this function is the sum.

    Time O(pixels length), of the axis: O(rows columns (rows + columns)) for a call along each axis of an image, and
    O(pixels m) with a span. Memory without tables O(pixels), as this is `dot_product_attention` with a window for the
    span; with tables the scores of all lines are held, and memory is as time.

    Args:
      query: `[B, *spatial, N, H]`, any number of spatial axes. This is self-attention: query, key, value share them.
      key: `[B, *spatial, K, H]`, K divides N.
      value: `[B, *spatial, K, Hv]`.
      axis: the array axis to attend along, a spatial one; negative counts from the end.
      query_table: `[2L - 1, H]`, shared by all heads; row key - query + L - 1 belongs to that distance along the axis.
        L is at least the axis' length or, with a span m, (m + 1) / 2.
      key_table: `[2L - 1, H]`, likewise, L may be another.
      value_table: `[2L - 1, Hv]`, likewise.
      span: an odd number m; a query sees the m keys at most (m - 1) / 2 away. None = the whole axis.
      causal: hide keys behind the query, along the axis.
      key_mask: bool `[B, *spatial]`, True = real. Rows of masked positions are unspecified.
      scale: factor on the sum of the three terms; None = H ** -0.5.
      dropout_rate: dropout on the weights.
      rng: a `jax.random.key`, wanted with dropout.

    Returns:
      `[B, *spatial, N, Hv]` in query's dtype. Scores and softmax are in float32 (float64 for float64).

    Raises:
      ValueError: arguments that do not fit, named; a table too short for what is seen.

    >>> x = jnp.ones((1, 4, 6, 2, 8))
    >>> axial_attention(x, x, x, axis=1, query_table=jnp.zeros((7, 8))).shape
    (1, 4, 6, 2, 8)
    """
    query = jnp.asarray(query)
    _spatial_axis(axis, query)
    if key_mask is not None:
        *lead, length = query.shape[:-2]
        key_mask = jnp.broadcast_to(check_vector("key_mask", key_mask, lead, length, dtype=bool), (*lead, length))
    return along_axis(_attend, axis)(
        query, key, value, key_mask=key_mask, query_table=query_table, key_table=key_table, value_table=value_table,
        span=span, causal=causal, scale=scale, dropout_rate=dropout_rate, rng=rng,
    )  # fmt: skip


def _attend(
    query, key, value, *, key_mask, query_table, key_table, value_table, span, causal, scale, dropout_rate, rng
):
    """`axial_attention` of lines, `[..., T, N, H]`."""
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, rng)
    query = quiet_padding(query, key_mask)
    *lead, length, N, H = query.shape
    reach = _reach(span, length)
    if query_table is key_table is value_table is None:
        window = None if span is None else (reach, reach)
        return dot_product_attention(
            query, key, value, is_causal=causal, local_window_size=window, key_mask=key_mask, scale=scale,
            dropout_rate=dropout_rate, rng=rng,
        )  # fmt: skip

    if key_mask is not None:
        key, value = (jnp.where(key_mask[..., None, None], x, jnp.zeros_like(x)) for x in (key, value))
    first = 0
    if 4 * reach + 1 < length:  # else a block and its surroundings are no shorter than the line
        query, key, value, key_mask = _blocks(query, key, value, key_mask, reach)
        first = -reach
    distance = np.arange(key.shape[-3]) + first - np.arange(query.shape[-3])[:, None]
    query_table, key_table, value_table = (
        _fit_table(name, table, x.shape[-1], reach, abs(distance).max())
        for name, table, x in (
            ("query_table", query_table, query),
            ("key_table", key_table, key),
            ("value_table", value_table, value),
        )
    )
    allowed = (abs(distance) <= reach) & ((distance <= 0) | (not causal))
    if key_mask is not None:
        allowed = allowed & key_mask[..., None, None, :]
    score = _total(position_sensitive_scores(query, key, query_table, key_table, first=first))
    weight = _softmax(score * (H**-0.5 if scale is None else scale), allowed)
    if dropout_rate:
        weight = _drop(weight, dropout_rate, rng)
    out = _total(position_sensitive_values(weight, value, value_table, first=first)).astype(query.dtype)
    rows = math.prod(out.shape[len(lead) : -2])  # those of all blocks, the last of which may stick out
    return out.reshape(*lead, rows, N, out.shape[-1])[..., :length, :, :]


@plain_promotion
def position_sensitive_scores(query, key, query_table=None, key_table=None, *, first: int = 0):
    """The three terms that Axial-DeepLab adds up to scores, apart, so that a model can normalise each of them.

        q_o . k_p,    q_o . r^q_{p-o},    k_p . r^k_{p-o}

    Wang et al. 2020, arXiv:2003.07853, eq. 4, along one line. In the authors' code the tables of q and v count o - p:
    they are ours upside down. Time and memory O(T S).

    Args:
      query: `[..., T, N, H]`, the axis to attend along before the heads.
      key: `[..., S, K, H]`, K divides N.
      query_table: `[2L - 1, H]`, row p - o + L - 1 is r^q_{p-o}; it has a row for every distance that occurs.
      key_table: `[2L - 1, H]`, likewise r^k, L may be another.
      first: position of the first key, where the first query is at 0.

    Returns:
      Three arrays `[..., N, T, S]`, float32 (float64 for float64), not scaled; None for a term without a table.

    Raises:
      ValueError: a table of the wrong width, or too short.

    >>> q = k = jnp.ones((1, 5, 2, 4))
    >>> [x.shape for x in position_sensitive_scores(q, k, jnp.ones((9, 4)), jnp.ones((9, 4)))]
    [(1, 2, 5, 5), (1, 2, 5, 5), (1, 2, 5, 5)]
    """
    (*lead, T, N, H), (S, K) = query.shape, key.shape[-3:-1]
    dtype = accumulation_dtype(query.dtype)
    query, key = query.astype(dtype), key.astype(dtype)
    content = jnp.einsum("...tkgh,...skh->...kgts", query.reshape(*lead, T, K, N // K, H), key)
    by_query = by_key = None
    if query_table is not None:
        by_query = jnp.einsum("...tnh,tsh->...nts", query, _by_distance("query_table", query_table, query, key, first))
    if key_table is not None:
        by_key = jnp.einsum("...skh,tsh->...kts", key, _by_distance("key_table", key_table, query, key, first))
        by_key = jnp.repeat(by_key, N // K, axis=-3)
    return content.reshape(*lead, N, T, S), by_query, by_key


@plain_promotion
def position_sensitive_values(weights, value, value_table=None, *, first: int = 0):
    """The two terms that Axial-DeepLab adds up to its output, apart: of what is attended to, and of where it is.

        sum_p w_op v_p,    sum_p w_op r^v_{p-o}

    Args:
      weights: `[..., N, T, S]`, such as the softmax over S of `position_sensitive_scores`.
      value: `[..., S, K, Hv]`, K divides N.
      value_table: `[2L - 1, Hv]`, row p - o + L - 1 is r^v_{p-o}.
      first: position of the first key, where the first query is at 0.

    Returns:
      Two arrays `[..., T, N, Hv]` in the dtype of the weights; None for the second without a table.

    Raises:
      ValueError: a table of the wrong width, or too short.

    >>> [x.shape for x in position_sensitive_values(jnp.ones((2, 5, 5)), jnp.ones((5, 2, 4)), jnp.ones((9, 4)))]
    [(5, 2, 4), (5, 2, 4)]
    """
    (*lead, N, T, S), (K, Hv) = weights.shape, value.shape[-2:]
    value = value.astype(weights.dtype)
    content = jnp.einsum("...kgts,...skh->...tkgh", weights.reshape(*lead, K, N // K, T, S), value)
    by_value = None
    if value_table is not None:
        queries = jnp.swapaxes(weights, -3, -2)
        by_value = jnp.einsum(
            "...nts,tsh->...tnh", weights, _by_distance("value_table", value_table, queries, value, first)
        )
    return content.reshape(*lead, T, N, Hv), by_value


@plain_promotion
def axial_positions(*tables):
    """Position embeddings of a grid, of which every axis holds its own: their sum at each position.

        e_{r,c} = rows_r + columns_c

    Ho et al. 2019, arXiv:1912.12180, and Reformer (Kitaev et al. 2020, arXiv:2001.04451): a grid of 64 x 64 takes 128
    learned vectors in place of 4,096. Time and memory O(positions E).

    Args:
      *tables: `[length, E]`, one for every axis of the grid in turn.

    Returns:
      `[*lengths, E]`.

    Raises:
      ValueError: no tables, or tables of other shapes.

    >>> axial_positions(jnp.ones((4, 8)), jnp.ones((6, 8))).shape
    (4, 6, 8)
    """
    tables = [jnp.asarray(table) for table in tables]
    if not tables or any(table.ndim != 2 or table.shape[1] != tables[0].shape[-1] for table in tables):
        raise ValueError(f"tables: wanted [length, E] for every axis, got shapes {[table.shape for table in tables]}")
    return functools.reduce(lambda embedded, table: embedded[..., None, :] + table, tables)


def along_axis(function, axis: int):
    """Any attention function over sequences as one along an axis of a grid, every line a sequence of its own.

    Arguments that say something of every token (query, key, value, key_mask, segment ids, positions, `log_decay`,
    `beta`, the `global_*` projections) lie on the grid, `[B, *spatial, ...]`; all others go to `function` as they are,
    in the layout `[B, *other axes, length, ...]` of its lines. Costs what `function` costs, and two transpositions.

    Args:
      function: one of this library's, or a `functools.partial` of it.
      axis: the array axis of query to attend along, a spatial one; negative counts from the end.

    Returns:
      A function of the same arguments, with `[B, *spatial, N, H]` for `[..., T, N, H]`.

    Raises:
      ValueError: when called: an axis that is not spatial, an array that is not on query's grid.
      NotImplementedError: when called: `return_state` and the like.

    >>> import attention
    >>> x = jnp.ones((1, 4, 6, 2, 8))
    >>> attention.along_axis(attention.linear_attention, axis=-3)(x, x, x, causal=True).shape
    (1, 4, 6, 2, 8)
    """
    if not callable(function):
        raise ValueError(f"function: wanted an attention function, got {function!r}")
    parameters = inspect.signature(function).parameters
    first, *_ = parameters
    if first not in ("query", "query_key") or any(p.kind == p.VAR_POSITIONAL for p in parameters.values()):
        raise ValueError(f"function: wanted query, key, value, ... by these names, got {', '.join(parameters)}")
    fixed = getattr(function, "keywords", {})

    @functools.wraps(function)
    def attend(*args, **kwargs):
        inspect.signature(function).bind(*args, **kwargs)
        given = fixed | kwargs | dict(zip(parameters, args, strict=False))
        query = jnp.asarray(given[first])
        place, axes = _spatial_axis(axis, query), query.ndim - 2
        for name, x in given.items():
            _check_setting(name, x)
            if name in OF_TOKENS and x is not None:
                x = jnp.asarray(x)
                if x.ndim < axes:
                    raise ValueError(f"{name}: wanted one entry a token, [B, *spatial, ...] as query, got {x.shape}")
                given[name] = jnp.moveaxis(x, place, axes - 1)
        args = [given.pop(name) for name, _ in zip(parameters, args, strict=False)]
        return jnp.moveaxis(function(*args, **given), -3, place)

    return attend


def _spatial_axis(axis, query):
    """`axis` counted from the front, if it is neither the batch nor the heads nor their width."""
    last = query.ndim - 3
    if last < 1:
        raise ValueError(f"query: wanted [B, *spatial, N, H] with at least one spatial axis, got shape {query.shape}")
    whole = isinstance(axis, (int, np.integer)) and not isinstance(axis, bool)
    place = axis + query.ndim if whole and axis < 0 else axis
    if not whole or not 1 <= place <= last:
        raise ValueError(f"axis: wanted a spatial one, 1 to {last} or {1 - query.ndim} to -3, got {axis!r}")
    return place


def _check_setting(name, setting):
    """Refuses what would not fit the grid: other results than the output, and scores' arrays for every line apart."""
    if name.startswith("return_") and setting:
        raise NotImplementedError(f"{name}: on a grid a function returns its output alone; leave it out")
    if name in ("mask", "bias"):
        parts = setting.parts() if isinstance(setting, Mask) else setting
        for part in parts if isinstance(parts, (list, tuple)) else [parts]:
            if getattr(getattr(part, "array", part), "ndim", 0) > 3:
                raise NotImplementedError(f"{name}: all lines share one, [N, T, S] at most; write key_mask for padding")


def _reach(span, length):
    """How far a query sees to either side."""
    if span is None:
        return length - 1
    check_int("span", span, 1)
    if span % 2 == 0:
        raise ValueError(f"span: wanted an odd number (as many keys on either side of the query), got {span}")
    return min(length - 1, span // 2)


def _fit_table(name, table, width, reach, farthest=0):
    """`table`, which must reach to `reach`, with rows of zeroes out to `farthest`, for distances that nobody sees."""
    if table is None:
        return None
    table = jnp.asarray(table)
    if table.ndim != 2 or table.shape[1] != width or table.shape[0] % 2 == 0:
        raise ValueError(f"{name}: wanted [2L - 1, {width}], got shape {table.shape}")
    if not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(f"{name}: wanted floats, got {table.dtype}")
    own = table.shape[0] // 2
    if own < reach:
        raise ValueError(
            f"{name}: wanted at least {2 * reach + 1} rows, for distances of up to {reach}, got {2 * own + 1}; make it "
            f"longer, or let axial_attention look no farther, with span={2 * own + 1}"
        )
    beyond = max(farthest - own, 0)
    return jnp.pad(table, ((beyond, beyond), (0, 0)))


def _by_distance(name, table, query, key, first):
    """`[T, S, H]`: the row of `table` for the distance of each key from each query."""
    T, S = query.shape[-3], key.shape[-3]
    nearest, farthest = first - (T - 1), first + S - 1
    table = _fit_table(name, table, key.shape[-1], max(-nearest, farthest))
    middle = table.shape[0] // 2
    rows = table[middle + nearest : middle + farthest + 1].astype(key.dtype)
    # Each query reads the rows from one further back than the query before it. T copies of T + S rows, read with a
    # stride of T + S - 1, give that, and their gradient is a sum where a gather's would be a scatter.
    stride = T + S - 1
    copies = jnp.tile(jnp.pad(rows, ((0, 1), (0, 0))), (T, 1))
    return copies[T - 1 : T - 1 + T * stride].reshape(T, stride, -1)[:, :S]


def _blocks(query, key, value, key_mask, reach):
    """Blocks of 2 reach + 1 queries, each with the keys that it can see: its own and `reach` more on either side."""
    *lead, T, _, _ = query.shape
    size = 2 * reach + 1
    count = -(-T // size)

    def cut(x, before, pieces):
        """`x` in pieces of `size`, with `before` zeroes in front of it."""
        pad = [(0, 0)] * len(lead) + [(before, pieces * size - T - before), (0, 0), (0, 0)]
        return jnp.pad(x, pad).reshape(*lead, pieces, size, *x.shape[-2:])

    def around(x):
        """For each block the piece that starts `reach` before it, and all but one of the next."""
        pieces = cut(x, reach, count + 1)
        return jnp.concatenate([pieces[..., :-1, :, :, :], pieces[..., 1:, :-1, :, :]], axis=-3)

    if key_mask is None:
        key_mask = jnp.ones((*lead, T), bool)
    real = around(key_mask[..., None, None])[..., 0, 0]
    return cut(query, 0, count), around(key), around(value), real


def _total(terms):
    return sum(term for term in terms if term is not None)


def _softmax(score, allowed):
    """Softmax over the last axis among the `allowed`; 0 where there is none.

    What is hidden gets a lowest number and not -inf: with a case of its own for empty rows XLA no longer fuses what
    surrounds it, and the whole takes more than twice as long on a CPU.
    """
    score = jnp.where(allowed, score, 0.7 * jnp.finfo(score.dtype).min)
    return jnp.where(allowed, jax.nn.softmax(score, axis=-1), 0)


def _drop(weight, rate, rng):
    *lead, N, T, S = weight.shape
    lines = jnp.arange(math.prod(lead)).reshape(*lead, 1, 1, 1)
    return dropout.drop(weight, dropout.seeds(rng), float(rate), Tile(0, T, 0, S, 0, N, lines), N)
