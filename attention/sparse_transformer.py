"""Sparse Transformer: two factors, each of about sqrt(T) keys a query, in one softmax or in heads of their own."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .biases import Bias, EachCut, HeadSlice, as_biases
from .checks import (
    accumulation_dtype,
    check_dropout,
    check_int,
    check_segments,
    check_self_attention,
    check_vector,
    quiet_padding,
    refuse_bias_array,
    split_rng,
)
from .dot_product import dot_product_attention
from .masks import Causal, Fixed, Full, Mask, PerHead, Strided, Window
from .merge import merge
from .tile import EMPTY, FULL, PARTIAL, plain_promotion


@plain_promotion
def sparse_transformer_attention(
    query,
    key,
    value,
    *,
    pattern: str = "strided",
    stride: int,
    summary: int | None = None,
    summary_per_head: bool = False,
    heads: str = "merged",
    causal: bool = True,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    bias: Bias | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    implementation: str | None = None,
):
    """Attention over a strided or fixed sparse pattern, each of two factors.

        strided:  |i - j| < stride                  and  (i - j) % stride == 0
        fixed:    i // stride == j // stride        and  j % stride >= stride - summary

    Child et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509, section 4.3. The paper's
    l, c are our stride, summary. The strided window holds stride keys, as in the authors' code (the paper prints
    stride + 1). heads="merged" is one softmax over the union of both factors; heads="split" gives the first half of the
    heads the first factor and the others the second, the paper's other way (section 4.2). With "fixed" and "split" a
    row before the first summary column has nothing to attend in the second factor, and is 0.

    The paper found it better for heads to use different summary columns: with summary_per_head, of the
    stride // summary runs of `summary` columns that end a block, head n takes the (n % (stride // summary))-th from the
    end, counted from 0.

    The factors are computed apart, densely where they are dense, and merged by log-sum-exp: a window and columns of
    every stride-th key, or blocks and their summaries. Time O(T (stride + T / stride)) for strided,
    O(T (stride + T summary / stride)) for fixed: O(T sqrt T) at stride ~ sqrt T. Memory is at most the same. With
    implementation="reference" it is one dense masked softmax, O(T^2).

    Args:
      query: `[..., T, N, H]`. This is self-attention: S = T.
      key: `[..., T, K, H]`.
      value: `[..., T, K, Hv]`.
      pattern: "strided" (suits images and sound) or "fixed" (suits text).
      stride: period of the pattern, about sqrt(T).
      summary: columns at the end of each block that all later blocks see, for "fixed"; None = max(1, stride // 8)
        (the paper takes 8 to 32 for a stride of 128 or 256).
      summary_per_head: heads take different summary columns, for "fixed".
      heads: "merged" or "split".
      causal: hide keys after the query.
      key_mask: bool `[..., T]`, True = real token. Rows of masked tokens are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding.
      key_segment_ids: int `[..., T]`.
      bias: `Bias`, function or list of them, as in `dot_product_attention`; an array, or any bias with
        summary_per_head, only with "reference".
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights.
      rng: a `jax.random.key`, wanted with dropout.
      implementation: of the exact attention underneath; "reference" = one dense softmax under the pattern's
        mask. Dropout draws differ between the two.

    Returns:
      `[..., T, N, Hv]` in query's dtype.

    Raises:
      ValueError: arguments that do not fit, named.
      NotImplementedError: a bias that the sparse form cannot follow, see there.

    >>> x = jnp.ones((1, 16, 2, 4))
    >>> sparse_transformer_attention(x, x, x, pattern="fixed", stride=4).shape
    (1, 16, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, rng)
    *lead, T, N, _ = query.shape
    mask = sparse_pattern(
        pattern, stride, summary=summary, summary_per_head=summary_per_head, heads=heads, causal=causal, num_heads=N
    )
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    segments = check_segments(query_segment_ids, key_segment_ids, lead, T, T)
    query_segment_ids, key_segment_ids = (None, None) if segments is None else (segments.query_ids, segments.key_ids)
    query = quiet_padding(query, key_mask)
    vectors = dict(key_mask=key_mask, query_segment_ids=query_segment_ids, key_segment_ids=key_segment_ids)
    settings = dict(bias=bias, scale=scale, dropout_rate=dropout_rate, implementation=implementation)
    if implementation in ("reference", "xla"):
        return dot_product_attention(query, key, value, mask=mask, rng=rng, **vectors, **settings)
    refuse_bias_array(bias, "the sparse form")
    if bias is not None and summary_per_head:
        raise NotImplementedError(
            "bias: with summary_per_head heads have keys of their own; use implementation='reference'"
        )
    # The parts stay in the wide dtype, so that a narrow one is rounded to once, at the end.
    dtype, wide = query.dtype, accumulation_dtype(query.dtype)
    arrays = tuple(x.astype(wide) for x in (query, key, value))
    columns = None if pattern == "strided" else _summary_columns(stride, summary, N if summary_per_head else 1)
    call = _Call(stride, columns, causal, vectors, settings)
    first, second = split_rng(rng, 2)
    if heads == "merged":
        out, _ = merge(*zip(_first(call, arrays, first), _second(call, arrays, second, alone=False), strict=True))
        return out.astype(dtype)
    half = (N + 1) // 2
    near, _ = _first(*_some_heads(call, arrays, slice(0, half)), first)
    far, _ = _second(*_some_heads(call, arrays, slice(half, N)), second, alone=True)
    return jnp.concatenate([near, far], axis=-2).astype(dtype)


def sparse_pattern(
    pattern: str,
    stride: int,
    *,
    summary: int | None = None,
    summary_per_head: bool = False,
    heads: str = "merged",
    causal: bool = True,
    num_heads: int = 1,
) -> Mask:
    """The pattern of `sparse_transformer_attention` as one mask of positions, for a cache or the exact attention.

    Args:
      pattern: "strided" or "fixed".
      stride: period of the pattern.
      summary: columns at the end of each block, for "fixed"; None = max(1, stride // 8).
      summary_per_head: heads take different summary columns, for "fixed".
      heads: "merged" or "split".
      causal: hide keys after the query.
      num_heads: N; it matters where heads differ, with "split" or summary_per_head.

    Raises:
      ValueError: arguments that do not fit, named.

    >>> sparse_pattern("fixed", 3).dense(5).astype(int).tolist()[4]
    [0, 0, 1, 1, 1]
    """
    check_int("stride", stride, 1)
    if heads not in ("merged", "split"):
        raise ValueError(f"heads: wanted 'merged' or 'split', got {heads!r}")
    if heads == "split" and num_heads < 2:
        raise ValueError(f"heads: wanted 'merged' for a single head, got {heads!r}, which wants one for each factor")
    if pattern == "strided":
        if summary is not None or summary_per_head:
            name, x = ("summary", summary) if summary is not None else ("summary_per_head", summary_per_head)
            raise ValueError(f"{name}: only the fixed pattern has summary columns, got {name}={x} with strided")
        first, second = Window(stride - 1, stride - 1), [Strided(stride)]
    elif pattern == "fixed":
        first = Fixed(stride, 0)
        second = [_Columns(stride, int(c[0]), len(c)) for c in _summary_columns(stride, summary, num_heads)]
        second = second if summary_per_head else second[:1]
    else:
        raise ValueError(f"pattern: wanted 'strided' or 'fixed', got {pattern!r}")
    if heads == "split":
        half = (num_heads + 1) // 2
        second = second * (num_heads // len(second))
        mask = PerHead([first] * half + second[half:])
    else:
        mask = PerHead([first | m for m in second]) if len(second) > 1 else first | second[0]
    return mask & Causal() if causal else mask


def _summary_columns(stride, summary, num_heads):
    """The summary columns of each head, `[num_heads, summary]`."""
    summary = max(1, stride // 8) if summary is None else summary
    check_int("summary", summary, 1)
    if summary > stride:
        raise ValueError(f"summary: wanted at most stride = {stride}, got {summary}")
    run = np.arange(num_heads) % (stride // summary) + 1
    return stride - run[:, None] * summary + np.arange(summary)


@dataclasses.dataclass(frozen=True, eq=False)
class _Columns(Mask):
    """`first <= j % stride < first + count`."""

    stride: int
    first: int
    count: int

    def allows(self, tile):
        column = tile.key % self.stride
        return (column >= self.first) & (column < self.first + self.count)


@dataclasses.dataclass(frozen=True, eq=False)
class _OtherBlocks(Mask):
    """Query i of block i // stride, key slot s of block s // summary: another block, or an earlier one if causal."""

    stride: int
    summary: int
    causal: bool
    by_position: ClassVar[bool] = False

    def allows(self, tile):
        query, key = tile.query_index[:, None] // self.stride, tile.key_index // self.summary
        return (key < query if self.causal else key != query)[None]

    def _blocks(self, r):
        q_lo, q_hi = r.q_lo // self.stride, r.q_hi // self.stride
        k_lo, k_hi = r.k_lo // self.summary, r.k_hi // self.summary
        empty = k_lo >= q_hi if self.causal else (q_lo == q_hi) & (k_lo == q_lo) & (k_hi == q_lo)
        full = (k_hi < q_lo) | (k_lo > q_hi)
        return np.where(empty, EMPTY, np.where(full, FULL, PARTIAL))


class _Call(NamedTuple):
    """What both factors need beside query, key and value."""

    stride: int
    columns: np.ndarray | None  # summary columns [1 or heads, summary]
    causal: bool
    vectors: dict
    settings: dict


def _some_heads(call, arrays, which):
    """The same call for some of the query heads, each with a key head of its own."""
    query, key, value = arrays
    N, K = query.shape[-2], key.shape[-2]
    key, value = (jnp.repeat(x, N // K, axis=-2) for x in (key, value))
    bias = call.settings["bias"]
    if bias is not None:
        bias = [HeadSlice(b, which.start, N) for b in as_biases(bias, N)[1]]
    columns = call.columns if call.columns is None or len(call.columns) == 1 else call.columns[which]
    call = call._replace(columns=columns, settings=call.settings | {"bias": bias})
    return call, tuple(x[..., which, :] for x in (query, key, value))


def _first(call, arrays, rng):
    """The window, or the own block: output and log-sum-exp."""
    if call.columns is not None:
        return _apart(call, arrays, Causal() if call.causal else Full(), rng, columns=False)
    window = Window(call.stride - 1, 0 if call.causal else call.stride - 1)
    return dot_product_attention(*arrays, mask=window, rng=rng, return_residual=True, **call.vectors, **call.settings)


def _second(call, arrays, rng, *, alone):
    """The column, or the summaries: output and log-sum-exp. Not `alone`, without the keys that the first factor has."""
    if call.columns is None:
        if alone:
            column = Causal() if call.causal else Full()
        else:  # of the column the window holds the key itself, and no other
            column = Window(None, -1) if call.causal else ~Window(0, 0)
        return _apart(call, arrays, column, rng, columns=True)
    if not alone:
        return _summaries(call, arrays, rng)
    others, own = split_rng(rng, 2)
    summary = [_Columns(call.stride, int(c[0]), len(c)) for c in call.columns]
    inside = PerHead(summary) if len(summary) > 1 else summary[0]
    inside = inside & Causal() if call.causal else inside
    parts = _summaries(call, arrays, others), _apart(call, arrays, inside, own, columns=False)
    return merge(*zip(*parts, strict=True))


def _rows(x, stride, fill=0):
    """`[..., T, *rest]` of an array whose length axis is given by its rank: pads T to rows of `stride`."""
    axis = x.ndim - 3 if jnp.issubdtype(x.dtype, jnp.floating) else x.ndim - 1
    T = x.shape[axis]
    padded = jnp.pad(x, [(0, -T % stride) if a == axis else (0, 0) for a in range(x.ndim)], constant_values=fill)
    return padded.reshape(*x.shape[:axis], -1, stride, *x.shape[axis + 1 :]), axis


def _split(arrays, vectors, stride, *, columns):
    """Cuts the length into rows of `stride`, and takes rows (or columns) as batch entries. Adds their positions."""

    def cut(x, fill=0):
        rows, axis = _rows(x, stride, fill)
        return jnp.swapaxes(rows, axis, axis + 1) if columns else rows

    T = arrays[0].shape[-3]
    real = vectors["key_mask"]
    if real is None and T % stride:
        real = jnp.ones(T, bool)
    position = cut(jnp.arange(T + -T % stride))
    cut_vectors = {"key_mask": None if real is None else cut(real, False)}
    for name in ("query_segment_ids", "key_segment_ids"):
        cut_vectors[name] = None if vectors[name] is None else cut(vectors[name], -1)
    return [cut(x) for x in arrays], cut_vectors, position


def _join(x, T, *, columns, width):
    """Undoes `_split` on an array with `width` axes behind the length."""
    axis = x.ndim - width - 1
    if columns:
        x = jnp.swapaxes(x, axis - 1, axis)
    x = x.reshape(*x.shape[: axis - 1], -1, *x.shape[axis + 1 :])
    return lax.slice_in_dim(x, 0, T, axis=axis - 1)


def _apart(call, arrays, mask, rng, *, columns):
    """Attention inside each block of `stride` tokens, or inside each column of every stride-th token."""
    T = arrays[0].shape[-3]
    (query, key, value), vectors, position = _split(arrays, call.vectors, call.stride, columns=columns)
    # Order inside a part is the plain index; only a bias asks for true positions, and for the true batch entry.
    positions, settings = {}, call.settings
    if settings["bias"] is not None:
        biases = as_biases(settings["bias"], query.shape[-2])[1]
        settings = settings | {"bias": [EachCut(bias, query.shape[-4]) for bias in biases]}
        positions = dict(query_positions=position, key_positions=position)
    out, residual = dot_product_attention(
        query, key, value, mask=mask, rng=rng, return_residual=True, **vectors, **positions, **settings
    )
    return _join(out, T, columns=columns, width=2), _join(residual, T, columns=columns, width=1)


def _summaries(call, arrays, rng):
    """Every query over the summary columns of all other blocks."""
    query, *rest = arrays
    stride, summary, per_head = call.stride, call.columns.shape[1], len(call.columns) > 1
    N = query.shape[-2]
    if per_head:
        rest = [jnp.repeat(x, N // x.shape[-2], axis=-2) for x in rest]
    (key, value), vectors, position = _split(rest, call.vectors, stride, columns=False)
    mask = _OtherBlocks(stride, summary, call.causal)
    query_ids = call.vectors["query_segment_ids"]
    if not per_head:
        only = slice(call.columns[0, 0], call.columns[0, -1] + 1)
        key, value = (x[..., only, :, :].reshape(*x.shape[:-4], -1, *x.shape[-2:]) for x in (key, value))
        key_mask, key_ids, position = (
            None if x is None else x[..., only].reshape(*x.shape[:-2], -1)
            for x in (vectors["key_mask"], vectors["key_segment_ids"], position)
        )
        positions = {}
        if call.settings["bias"] is not None:
            positions = dict(query_positions=jnp.arange(query.shape[-3]), key_positions=position)
        return dot_product_attention(
            query, key, value, mask=mask, key_mask=key_mask, query_segment_ids=query_ids, key_segment_ids=key_ids,
            rng=rng, return_residual=True, **positions, **call.settings,
        )  # fmt: skip
    # Heads see different keys: each is a batch entry.
    head = np.arange(N)[:, None]
    key, value = (jnp.moveaxis(x[..., call.columns, head, :], -3, -4) for x in (key, value))  # [..., N, blocks, c, H]
    key, value = (x.reshape(*x.shape[:-3], -1, 1, x.shape[-1]) for x in (key, value))
    key_mask, key_ids = (
        None if x is None else jnp.moveaxis(x[..., call.columns], -2, -3).reshape(*x.shape[:-2], N, -1)
        for x in (vectors["key_mask"], vectors["key_segment_ids"])
    )
    out, residual = dot_product_attention(
        jnp.moveaxis(query, -2, -3)[..., None, :], key, value, mask=mask, key_mask=key_mask,
        query_segment_ids=None if query_ids is None else query_ids[..., None, :], key_segment_ids=key_ids,
        rng=rng, return_residual=True, **call.settings,
    )  # fmt: skip
    return jnp.moveaxis(out[..., 0, :], -3, -2), jnp.swapaxes(residual[..., 0], -1, -2)
