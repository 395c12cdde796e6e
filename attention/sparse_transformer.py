"""Sparse Transformer: two factors, each of about sqrt(T) keys a query, in one softmax."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from .biases import Bias
from .checks import (
    accumulation_dtype,
    check_dropout,
    check_segments,
    check_self_attention,
    check_vector,
    quiet_padding,
    refuse_bias_array,
    split_rng,
)
from .dot_product import dot_product_attention
from .masks import Causal, Fixed, Full, Mask, Strided, Window
from .merge import merge
from .tile import plain_promotion


@plain_promotion
def sparse_transformer_attention(
    query,
    key,
    value,
    *,
    pattern: str = "strided",
    stride: int,
    summary: int | None = None,
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
    """Attention over a strided or fixed sparse pattern, both of its factors in one softmax (the paper's "merged" form).

        strided:  j allowed iff |i - j| < stride or (i - j) % stride == 0
        fixed:    j allowed iff i // stride == j // stride or j % stride >= stride - summary

    Child et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509, section 4.3. The paper's
    l, c are our stride, summary. The strided window holds stride keys, as in the authors' code (the paper prints
    stride + 1). All heads share the pattern.

    The factors are disjoint parts, computed densely where they are dense and merged by log-sum-exp: a window and
    columns of every stride-th key, or blocks and their summaries. Time O(T (stride + T / stride)) for strided,
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
      causal: hide keys after the query.
      key_mask: bool `[..., T]`, True = real token. Rows of masked tokens are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding.
      key_segment_ids: int `[..., T]`.
      bias: `Bias`, function or list of them, as in `dot_product_attention`; an array only with "reference".
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights.
      rng: a `jax.random.key`, wanted with dropout.
      implementation: of the exact attention underneath; "reference" = one dense softmax under the pattern's
        mask. Dropout draws differ between the two.

    Returns:
      `[..., T, N, Hv]` in query's dtype.

    Raises:
      ValueError: arguments that do not fit, named.
      NotImplementedError: a bias array outside "reference".

    >>> x = jnp.ones((1, 16, 2, 4))
    >>> sparse_transformer_attention(x, x, x, pattern="fixed", stride=4).shape
    (1, 16, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, rng)
    mask = sparse_pattern(pattern, stride, summary, causal)
    *lead, T, _, _ = query.shape
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    segments = check_segments(query_segment_ids, key_segment_ids, lead, T, T)
    query_segment_ids, key_segment_ids = (None, None) if segments is None else (segments.query_ids, segments.key_ids)
    query = quiet_padding(query, key_mask)
    vectors = dict(key_mask=key_mask, query_segment_ids=query_segment_ids, key_segment_ids=key_segment_ids)
    settings = dict(bias=bias, scale=scale, dropout_rate=dropout_rate, implementation=implementation)
    if implementation in ("reference", "xla"):
        return dot_product_attention(query, key, value, mask=mask, rng=rng, **vectors, **settings)
    refuse_bias_array(bias, "the sparse form")
    # The parts stay in the wide dtype, so that a narrow one is rounded to once, at the end.
    dtype, wide = query.dtype, accumulation_dtype(query.dtype)
    query, key, value = (x.astype(wide) for x in (query, key, value))
    near, far = split_rng(rng, 2)
    if pattern == "strided":
        window = Window(stride - 1, 0 if causal else stride - 1)
        first = dot_product_attention(
            query, key, value, mask=window, rng=near, return_residual=True, **vectors, **settings
        )
        # The key itself is in the window already, every other key of the column lies outside it.
        column = Window(None, -1) if causal else ~Window(0, 0)
        second = _apart(query, key, value, column, stride, vectors, far, settings, columns=True)
    else:
        inside = Causal() if causal else Full()
        first = _apart(query, key, value, inside, stride, vectors, near, settings, columns=False)
        second = _summaries(query, key, value, stride, _summary(summary, stride), causal, vectors, far, settings)
    out, _ = merge(*zip(first, second, strict=True))
    return out.astype(dtype)


def sparse_pattern(pattern: str, stride: int, summary: int | None, causal: bool) -> Mask:
    """The pattern as one mask."""
    if not isinstance(stride, (int, np.integer)) or stride < 1:
        raise ValueError(f"stride: wanted an int >= 1, got {stride!r}")
    if pattern == "strided":
        if summary is not None:
            raise ValueError(f"summary: only the fixed pattern has summary columns, got summary={summary} with strided")
        mask = Window(stride - 1, stride - 1) | Strided(stride)
    elif pattern == "fixed":
        mask = Fixed(stride, _summary(summary, stride))
    else:
        raise ValueError(f"pattern: wanted 'strided' or 'fixed', got {pattern!r}")
    return mask & Causal() if causal else mask


def _summary(summary, stride):
    summary = max(1, stride // 8) if summary is None else summary
    if not isinstance(summary, (int, np.integer)) or not 1 <= summary <= stride:
        raise ValueError(f"summary: wanted an int in [1, stride = {stride}], got {summary!r}")
    return summary


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
    real = jnp.ones(T, bool) if real is None else real
    position = cut(jnp.arange(T + -T % stride))
    cut_vectors = {"key_mask": cut(real, False)}
    for name in ("query_segment_ids", "key_segment_ids"):
        cut_vectors[name] = None if vectors[name] is None else cut(vectors[name], -1)
    return [cut(x) for x in arrays], cut_vectors, position


def _join(x, T, *, columns, width):
    """Undoes `_split` on an array with `width` axes behind the length."""
    axis = x.ndim - width - 1
    if columns:
        x = jnp.swapaxes(x, axis - 1, axis)
    x = x.reshape(*x.shape[: axis - 1], -1, *x.shape[axis + 1 :])
    return jnp.take(x, jnp.arange(T), axis=axis - 1) if x.shape[axis - 1] != T else x


def _apart(query, key, value, mask, stride, vectors, rng, settings, *, columns):
    """Attention inside each block of `stride` tokens, or inside each column of every stride-th token."""
    T = query.shape[-3]
    (query, key, value), vectors, position = _split((query, key, value), vectors, stride, columns=columns)
    # Order inside a part is the plain index; only a bias asks for true positions.
    positions = dict(query_positions=position, key_positions=position) if settings["bias"] is not None else {}
    out, residual = dot_product_attention(
        query, key, value, mask=mask, rng=rng, return_residual=True, **vectors, **positions, **settings
    )
    return _join(out, T, columns=columns, width=2), _join(residual, T, columns=columns, width=1)


def _summaries(query, key, value, stride, summary, causal, vectors, rng, settings):
    """Every query over the summary columns of all other blocks."""
    (key, value), cut, position = _split((key, value), vectors, stride, columns=False)

    def last(x, axis):
        x = jnp.moveaxis(x, axis, 0)[-summary:]
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[: axis % x.ndim - 1], -1, *x.shape[axis % x.ndim + 1 :])

    ids = cut["key_segment_ids"]
    other_block = ~Fixed(stride, 0)
    return dot_product_attention(
        query, last(key, -3), last(value, -3),
        mask=other_block & Causal() if causal else other_block,
        query_positions=jnp.arange(query.shape[-3]), key_positions=last(position, -1),
        key_mask=last(cut["key_mask"], -1), query_segment_ids=vectors["query_segment_ids"],
        key_segment_ids=None if ids is None else last(ids, -1), rng=rng, return_residual=True, **settings,
    )  # fmt: skip
