"""Exact softmax attention: the front door, the dense reference, and the choice between implementations."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import dropout
from .biases import as_biases, change_scores
from .blockwise import blockwise_attention
from .checks import (
    accumulation_dtype,
    check_arrays,
    check_broadcast,
    check_dropout,
    check_mask,
    check_segments,
    check_vector,
)
from .masks import And, Causal, Dense, Full, Keys, Lengths, Mask, Segments, Window
from .tile import Tile, plain_promotion

IMPLEMENTATIONS = ("reference", "blockwise", "xla", "cudnn")

# Up to this many scores a head the dense form is one small tile and wins (benchmarks/README.md, "Small inputs"), on a
# CPU only while all heads and batch entries together still fit its cache.
DENSE_SCORES = 128 * 128
DENSE_SCORES_IN_ALL = {"cpu": 1 << 20}


@plain_promotion
def dot_product_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    query_positions=None,
    key_positions=None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    block_sizes: tuple[int, int] | None = None,
):
    """Exact softmax attention over the keys each query may see.

        out_i = sum_j p_ij v_j,   p_i = softmax_j(change(scale * q_i . k_j)) over the j that are allowed

    Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, eq. 1, with grouped heads (Ainslie et al. 2023,
    arXiv:2305.13245). A superset of `jax.nn.dot_product_attention`: the same call gives the same result, but for rows
    with nothing to attend, which are exactly 0 here (jax.nn gives the mean of the values).

    `change` is: soft cap, then the bias array, then `Bias` objects in their order. Everything that restricts (mask,
    is_causal, lengths, window, key_mask, segments) is combined by "and". Keys that no query may see by key_mask,
    lengths, padding segments or the mask array may hold anything, NaN included.

    Cost, dense ("reference", "xla"): time and memory O(T S). Blockwise: time O(live blocks), which is O(T S) for full
    and causal and O(T W) for a window W; memory O(T + S), forward and backward. Its backward pass is its own, so second
    derivatives and forward mode need implementation="reference".

    Args:
      query: `[..., T, N, H]`.
      key: `[..., S, K, H]`, K divides N; query head n reads key head n // (N / K).
      value: `[..., S, K, Hv]`.
      bias: float array that broadcasts to `[..., N, T, S]`, a `Bias`, a function (score, query position, key position,
        head) -> score, or a list of those with an array first. Added to, or applied on, scaled scores.
      mask: bool array that broadcasts to `[..., N, T, S]`, True = may attend, or a `Mask`.
      scale: factor on the scores; None = H ** -0.5.
      is_causal: query i sees key j iff key_position[j] <= query_position[i].
      query_seq_lengths: int `[...]`; rows from there on are 0.
      key_value_seq_lengths: int `[...]`; keys from there on are hidden.
      local_window_size: keys each query sees on (left, right), both inclusive; an int means both sides.
      implementation: "reference" or "xla" (dense), "blockwise", "cudnn" (jax.nn's kernel, plain arguments only), or
        None: dense where T * S is at most 128 * 128 and, on a CPU, B N T S at most 2^20, else blockwise.
      return_residual: also return the log-sum-exp of each row's scores.
      key_mask: bool `[..., S]`, True = real token.
      query_segment_ids: int `[..., T]`; a query sees keys of its own segment. Negative = padding, whose rows are 0.
      key_segment_ids: int `[..., S]`.
      query_positions: int `[..., T]`, default 0 .. T-1. Steer is_causal, local_window_size, `Mask` and `Bias` objects,
        not mask arrays or lengths. With positions given, blocks are no longer skipped by their place.
      key_positions: int `[..., S]`, default 0 .. S-1.
      softcap: scores become softcap * tanh(score / softcap).
      dropout_rate: each weight is zeroed with this probability, the others grow by 1 / (1 - rate). The same pairs in
        every implementation.
      rng: a `jax.random.key`, wanted with dropout.
      block_sizes: (queries, keys) a block of the blockwise form; None = chosen from the mask.

    Returns:
      `[..., T, N, Hv]` in query's dtype; with return_residual a pair with the log-sum-exp `[..., T, N]` in float32
      (float64 for float64), -inf for rows with nothing to attend. Scores and softmax are in that dtype too.

    Raises:
      ValueError: shapes, dtypes or values that do not fit, naming the argument.
      NotImplementedError: a combination that the chosen implementation lacks.

    >>> q = k = v = jnp.ones((1, 5, 2, 4))
    >>> dot_product_attention(q, k, v, is_causal=True).shape
    (1, 5, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_arrays(query, key, value)
    lead, (T, N, H), S = query.shape[:-3], query.shape[-3:], key.shape[-3]
    _check_choices(implementation, dropout_rate, rng, softcap, block_sizes)
    if implementation == "cudnn":
        ours = dict(key_mask=key_mask, query_segment_ids=query_segment_ids, key_segment_ids=key_segment_ids,
                    query_positions=query_positions, key_positions=key_positions, softcap=softcap,
                    dropout_rate=dropout_rate or None, block_sizes=block_sizes)  # fmt: skip
        return _cudnn(
            *(query, key, value, bias, mask, ours),
            scale=scale, is_causal=is_causal, query_seq_lengths=query_seq_lengths, return_residual=return_residual,
            key_value_seq_lengths=key_value_seq_lengths, local_window_size=local_window_size,
        )  # fmt: skip
    bias, biases = as_biases(bias, N)
    if bias is not None:
        check_broadcast("bias", bias.shape, (*lead, N, T, S))
        bias = _at_least_3d(bias)
    positions = (
        check_vector("query_positions", query_positions, lead, T),
        check_vector("key_positions", key_positions, lead, S),
    )
    parts = _restrictions(
        lead, N, T, S, mask, is_causal, query_seq_lengths, key_value_seq_lengths, local_window_size, key_mask,
        query_segment_ids, key_segment_ids,
    )  # fmt: skip
    query, key, value = blank_hidden(query, key, value, parts)
    mask = functools.reduce(operator.and_, parts) if parts else Full()
    if implementation is None:
        dense = block_sizes is None and is_small(math.prod(lead) * N, T * S)
    else:
        dense = implementation != "blockwise"
    if dense and block_sizes is not None:
        raise ValueError("block_sizes: only the blockwise implementation has blocks, got them with a dense one")
    dense = dense or 0 in lead  # no batch entry, nothing to walk over
    options: dict[str, Any] = {} if dense else {"sizes": block_sizes}
    out, residual = (reference_attention if dense else blockwise_attention)(
        query, key, value, mask, bias, biases, positions,
        scale=H**-0.5 if scale is None else scale, softcap=softcap, dropout_rate=float(dropout_rate),
        rng=rng if dropout_rate else None, **options,
    )  # fmt: skip
    return (out, residual) if return_residual else out


def is_small(planes: int, scores: int) -> bool:
    """Whether `planes` (batch entries x heads) of `scores` each are computed densely when nothing else is asked for."""
    in_all = DENSE_SCORES_IN_ALL.get(jax.default_backend(), math.inf)
    return scores <= DENSE_SCORES and planes * scores <= in_all


def reference_attention(query, key, value, mask, bias, biases, positions, *, scale, softcap, dropout_rate, rng):
    """The definition, densely: one tile that holds all scores. Same arguments and results as `blockwise_attention`."""
    *lead, T, N, H = query.shape
    S, K, Hv = value.shape[-3:]
    accumulate = accumulation_dtype(query.dtype)
    # A query that is not finite spoils its own row, and only that: in the gradient of the keys its zero cotangent would
    # turn into 0 * NaN.
    broken = ~jnp.isfinite(query).all(-1)
    query = jnp.where(broken[..., None], jnp.zeros_like(query), query)
    grouped = query.reshape(*lead, T, K, N // K, H).astype(accumulate) * jnp.asarray(scale, accumulate)
    score = jnp.einsum("...tkgh,...skh->...kgts", grouped, key.astype(accumulate)).reshape(*lead, N, T, S)
    batch = jnp.arange(int(np.prod(lead))).reshape(*lead, 1, 1, 1)
    tile = Tile(0, T, 0, S, 0, N, batch, *positions)
    score = change_scores(score, tile, softcap, bias, biases)
    score = jnp.where(mask.allows(tile), score, -jnp.inf)
    top = jax.lax.stop_gradient(score.max(-1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(top == -jnp.inf, 0, top)
    weight = jnp.exp(score - top)
    total = weight.sum(-1, keepdims=True)
    empty = total == 0
    seen = jnp.where(empty, 1, total)
    weight = weight / seen
    if rng is not None:
        weight = dropout.drop(weight, dropout.seeds(rng), dropout_rate, tile, N)
    weight = weight.reshape(*lead, K, N // K, T, S)
    out = jnp.einsum("...kgts,...skh->...tkgh", weight, value.astype(accumulate)).reshape(*lead, T, N, Hv)
    residual = jnp.swapaxes(jnp.where(empty, -jnp.inf, top + jnp.log(seen))[..., 0], -1, -2)
    broken = broken & (residual != -jnp.inf)
    return jnp.where(broken[..., None], jnp.nan, out).astype(query.dtype), jnp.where(broken, jnp.nan, residual)


def _restrictions(
    lead, N, T, S, mask, is_causal, query_lengths, key_lengths, window, key_mask, query_segment_ids, key_segment_ids
) -> list[Mask]:
    """Everything that limits who sees whom, as masks."""
    parts = []
    if mask is not None:
        parts += _conjuncts(check_mask(mask, lead, N, T, S))
    if is_causal:
        parts.append(Causal())
    if window is not None:
        sides = (window, window) if isinstance(window, (int, np.integer)) else tuple(window)
        if len(sides) != 2 or min(sides) < 0:
            raise ValueError(f"local_window_size: wanted a size >= 0 or two, (left, right), got {window}")
        parts.append(Window(*sides))
    if query_lengths is not None or key_lengths is not None:
        lengths = (query_lengths, "query_seq_lengths"), (key_lengths, "key_value_seq_lengths")
        parts.append(Lengths(*(check_vector(name, x, lead, None) for x, name in lengths)))
    if key_mask is not None:
        parts.append(Keys(check_vector("key_mask", key_mask, lead, S, dtype=bool)))
    if (segments := check_segments(query_segment_ids, key_segment_ids, lead, T, S)) is not None:
        parts.append(segments)
    return parts


def _conjuncts(mask: Mask) -> list[Mask]:
    """The parts of nested "and"s."""
    return [part for m in mask.masks for part in _conjuncts(m)] if isinstance(mask, And) else [mask]


def blank_hidden(query, key, value, parts):
    """Zeroes keys, values and queries that the caller called padding, so that nothing they hold can spread."""
    hidden_key, hidden_query = [], []
    for part in parts:
        if isinstance(part, Keys):
            hidden_key.append(~part.key_mask)
        elif isinstance(part, Segments):
            hidden_query.append(part.query_ids < 0)
            hidden_key.append(part.key_ids < 0)
        elif isinstance(part, Lengths):
            for length, hidden, x in ((part.query_lengths, hidden_query, query), (part.key_lengths, hidden_key, key)):
                if length is not None:
                    hidden.append(jnp.arange(x.shape[-3]) >= length[..., None])
        elif isinstance(part, Dense):
            hidden_key.append(~part.array.any((-3, -2)))

    def blank(x, hidden):
        if not hidden:
            return x
        hidden = functools.reduce(operator.or_, hidden)
        return jnp.where(hidden[..., None, None], jnp.zeros((), x.dtype), x)

    return blank(query, hidden_query), blank(key, hidden_key), blank(value, hidden_key)


def _check_choices(implementation, dropout_rate, rng, softcap, block_sizes):
    if implementation == "pallas":
        raise NotImplementedError("implementation: 'pallas' kernels do not exist yet; use 'blockwise' or None")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation: wanted None or one of {IMPLEMENTATIONS}, got {implementation!r}")
    check_dropout(dropout_rate, rng)
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap: wanted a positive number or None, got {softcap}")
    if block_sizes is not None and (len(block_sizes) != 2 or min(block_sizes) < 1):
        raise ValueError(f"block_sizes: wanted two positive sizes (queries, keys), got {block_sizes}")


def _at_least_3d(x):
    return x.reshape((1,) * (3 - x.ndim) + x.shape)


def _cudnn(query, key, value, bias, mask, ours, **theirs):
    """jax.nn's cuDNN kernel, for calls that jax.nn's own signature can express."""
    named = sorted(name for name, x in ours.items() if x is not None)
    if named:
        raise NotImplementedError(f"implementation: 'cudnn' does not take {', '.join(named)}; use 'blockwise'")
    if isinstance(mask, Mask) or (bias is not None and not hasattr(bias, "shape")):
        raise NotImplementedError("implementation: 'cudnn' takes mask and bias as arrays only; use 'blockwise'")
    if mask is not None or theirs["query_seq_lengths"] is not None or theirs["key_value_seq_lengths"] is not None:
        raise NotImplementedError(
            "implementation: 'cudnn' gives mean(value), not 0, for rows that a mask or lengths empty; use 'blockwise'"
        )
    return jax.nn.dot_product_attention(query, key, value, bias, implementation="cudnn", **theirs)
