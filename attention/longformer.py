"""Longformer: a sliding window for every token, and a few global tokens that see and are seen by all."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from .biases import Bias
from .checks import (
    accumulation_dtype,
    check_arrays,
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
from .masks import Dilated, Mask, PerHead, Window
from .merge import merge
from .tile import plain_promotion


@plain_promotion
def longformer_attention(
    query,
    key,
    value,
    *,
    window: int,
    dilation: int | tuple[int, ...] = 1,
    causal: bool = False,
    global_positions=None,
    global_query=None,
    global_key=None,
    global_value=None,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    bias: Bias | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    implementation: str | None = None,
):
    """Sliding-window attention with global tokens.

        ordinary i:  softmax over {j : |i - j| <= window * dilation, (i - j) % dilation == 0} + {global j}, each once
        global i:    softmax over all j, with the global_* projections

    Beltagy et al. 2020, "Longformer", arXiv:2004.05150, section 3 and the authors' code: an ordinary row is one softmax
    over window and global keys with the ordinary projections; a global row is computed apart. The paper's w is
    2 * window, its Q_g, K_g, V_g are global_query, global_key, global_value. `causal` hides later keys from both.

    Time O(T (window * dilation + G)), memory O(T), for G global slots. With dilation the blocks of the whole reach are
    visited.

    Args:
      query: `[..., T, N, H]`. This is self-attention: S = T.
      key: `[..., T, K, H]`.
      value: `[..., T, K, Hv]`.
      window: tokens on each side.
      dilation: gap between window keys, one int or one a head.
      causal: hide keys after the query.
      global_positions: int `[..., G]`, may be traced; -1 = unused slot, and so is a position at or beyond T. Order and
        repetition do not matter.
      global_query: `[..., T, N, H]`, used in rows of global tokens; None = query.
      global_key: `[..., T, N or K, H]`, seen by global tokens; None = key.
      global_value: `[..., T, N or K, Hv]`, as many heads as global_key; None = value.
      key_mask: bool `[..., T]`, True = real token. Rows of masked tokens are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding.
      key_segment_ids: int `[..., T]`.
      bias: `Bias`, function or list of them, as in `dot_product_attention`; an array only without global tokens.
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights.
      rng: a `jax.random.key`, wanted with dropout.
      implementation: of the exact attention underneath.

    Returns:
      `[..., T, N, Hv]` in query's dtype.

    Raises:
      ValueError: arguments that do not fit, named.
      NotImplementedError: a bias array together with global tokens.

    >>> x = jnp.ones((1, 16, 2, 4))
    >>> longformer_attention(x, x, x, window=2, global_positions=jnp.array([0])).shape
    (1, 16, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, rng)
    *lead, T, N, _ = query.shape
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    segments = check_segments(query_segment_ids, key_segment_ids, lead, T, T)
    query_segment_ids, key_segment_ids = (None, None) if segments is None else (segments.query_ids, segments.key_ids)
    query = quiet_padding(query, key_mask)
    rngs = split_rng(rng, 3)
    shared = dict(bias=bias, scale=scale, dropout_rate=dropout_rate, implementation=implementation)
    segments = dict(query_segment_ids=query_segment_ids, key_segment_ids=key_segment_ids)
    pattern = window_pattern(window, dilation, N, causal)
    slots, used = (None, None) if global_positions is None else _slots(global_positions, lead, T)
    if slots is not None and not slots.shape[-1]:
        slots = global_query = global_key = global_value = None  # no global token: nothing would use them
    if slots is None:
        given = {"global_query": global_query, "global_key": global_key, "global_value": global_value}
        for name, x in given.items():
            if x is not None:
                raise ValueError(f"{name}: wanted together with global_positions, got global_positions=None")
        return dot_product_attention(
            query, key, value, mask=pattern, key_mask=key_mask, rng=rngs[0], **segments, **shared
        )
    refuse_bias_array(bias, "global tokens")
    is_global = _put(jnp.zeros((*lead, T), bool), slots, used, True)
    real = jnp.ones((*lead, T), bool) if key_mask is None else jnp.broadcast_to(key_mask, (*lead, T))
    arrays = query, key, value, *_global_arrays((global_query, global_key, global_value), (query, key, value), key_mask)
    # The parts stay in the wide dtype, so that a narrow one is rounded to once, at the end.
    dtype, wide = query.dtype, accumulation_dtype(query.dtype)
    query, key, value, global_query, global_key, global_value = (x.astype(wide) for x in arrays)

    local = dot_product_attention(
        query, key, value, mask=pattern, key_mask=real & ~is_global, return_residual=True, rng=rngs[0],
        **segments, **shared,
    )  # fmt: skip
    slot_ids = _gather_ids(segments, slots)
    to_global = dot_product_attention(
        query, _gather(key, slots), _gather(value, slots),
        is_causal=causal, key_positions=slots, key_mask=used & jnp.take_along_axis(real, slots, -1),
        query_segment_ids=query_segment_ids, key_segment_ids=slot_ids["key_segment_ids"],
        return_residual=True, rng=rngs[1], **shared,
    )  # fmt: skip
    out, _ = merge(*zip(local, to_global, strict=True))

    from_global = dot_product_attention(
        _gather(global_query, slots), global_key, global_value,
        is_causal=causal, query_positions=slots, key_mask=real,
        query_segment_ids=slot_ids["query_segment_ids"], key_segment_ids=key_segment_ids, rng=rngs[2], **shared,
    )  # fmt: skip
    return _put(out, slots, used, from_global).astype(dtype)


def window_pattern(window: int, dilation: int | tuple[int, ...], num_heads: int, causal: bool) -> Mask:
    """Longformer's window as a mask; heads may differ in dilation."""
    check_int("window", window, 0)
    by_head = np.ndim(dilation) > 0
    for d in dilation if by_head else [dilation]:
        check_int("dilation", d, 1)
    if by_head and len(dilation) != num_heads:
        raise ValueError(f"dilation: wanted one for each of {num_heads} heads, got {len(dilation)}")
    right = 0 if causal else int(window)

    def one(d):
        return Window(int(window), right) if d == 1 else Dilated(int(window), right, int(d))

    return PerHead([one(d) for d in dilation]) if by_head else one(dilation)


def _slots(positions, lead, T):
    """Sorted slots clipped into range `[*lead, G]`, and which of them count: used, and not a repetition."""
    positions = jnp.asarray(positions)
    if positions.ndim == 0 or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f"global_positions: wanted ints [..., G], got {positions.dtype} of shape {positions.shape}")
    positions = check_vector("global_positions", positions, lead, positions.shape[-1])
    if not isinstance(positions, jax.core.Tracer) and positions.size and positions.min() < -1:
        raise ValueError(f"global_positions: wanted -1 (unused) or positions from 0, got {positions.min()}")
    slots = jnp.sort(jnp.broadcast_to(positions, (*lead, positions.shape[-1])), axis=-1)
    first = jnp.concatenate([jnp.ones_like(slots[..., :1], bool), slots[..., 1:] != slots[..., :-1]], axis=-1)
    return jnp.clip(slots, 0, T - 1), (slots >= 0) & (slots < T) & first


def _gather(x, slots):
    """`x[..., slots, :, :]` for `x [..., T, N, H]` and slots `[..., G]`."""
    return jnp.take_along_axis(x, slots[..., None, None], axis=-3)


def _put(x, slots, used, rows):
    """`x [..., T, ...]` with `rows` at the slots that are used. Its gradient reads G rows, and adds up none."""
    rows = jnp.broadcast_to(rows, (*slots.shape, *x.shape[slots.ndim :]))
    batch = math.prod(slots.shape[:-1])
    beyond = x.shape[slots.ndim - 1]  # out of range: dropped
    flat, at, rows = (a.reshape(batch, *a.shape[slots.ndim - 1 :]) for a in (x, jnp.where(used, slots, beyond), rows))
    return flat.at[jnp.arange(batch)[:, None], at].set(rows, mode="drop").reshape(x.shape)


def _gather_ids(segments, slots):
    def gather(ids):
        return jnp.take_along_axis(jnp.broadcast_to(ids, (*slots.shape[:-1], ids.shape[-1])), slots, -1)

    return {name: None if ids is None else gather(ids) for name, ids in segments.items()}


def _global_arrays(given, default, key_mask):
    """The global projections, each falling back to the ordinary one."""
    query, key, value = (d if g is None else jnp.asarray(g) for g, d in zip(given, default, strict=True))
    heads = default[0].shape[-2]
    for name, x, d in zip(("query", "key", "value"), (query, key, value), default, strict=True):
        wanted = (*d.shape[:-2], x.shape[-2] if x.ndim == d.ndim else None, d.shape[-1])
        if x.shape != wanted or x.dtype != d.dtype or heads % x.shape[-2] or (name == "query" and x.shape[-2] != heads):
            raise ValueError(f"global_{name}: wanted {name}'s {d.shape} {d.dtype}, got {x.shape} {x.dtype}")
    check_arrays(query, key, value)
    query = quiet_padding(query, key_mask)
    return query, key, value
