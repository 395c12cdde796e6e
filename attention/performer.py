"""Performer: softmax attention estimated by random features (FAVOR+), in time linear in the length."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .checks import accumulation_dtype, check_arrays, check_int, check_rng, quiet_padding
from .recurrence import (
    blank_broken,
    heads_first,
    heads_inside,
    prefix_sums,
    quotient,
    two_sided_sums,
    visible,
    zero_hidden,
)
from .tile import plain_promotion

EPSILON = {"softmax": 1e-4, "relu": 1e-3}  # the authors' code: fast_attention.py, numerical_stabilizer


class PerformerState(NamedTuple):
    """What the tokens so far amount to, for each key head, in float32 (float64 for float64 inputs).

    With M features f(k) before epsilon, relative to the largest exponent so far: `sums [..., K, M, Hv]`, sum of f(k) v;
    `normalizer [..., K, M]`, sum of f(k); what epsilon multiplies, `values [..., K, Hv]`, sum of v, and
    `count [..., K]`, the number of keys; and `maximum [..., K]`, the largest w . k so far (-inf before the first key; 0
    for the relu kernel).
    """

    sums: Any
    normalizer: Any
    values: Any
    count: Any
    maximum: Any


@plain_promotion
def performer_attention(
    query,
    key,
    value,
    projection,
    *,
    kernel: str = "softmax",
    causal: bool = False,
    key_mask=None,
    epsilon: float | None = None,
    scale: float | None = None,
    chunk_size: int = 64,
    query_segment_ids=None,
    key_segment_ids=None,
    initial_state: PerformerState | None = None,
    return_state: bool = False,
):
    """Attention whose weights are inner products of random features: FAVOR+.

        out_i = sum_j p_ij v_j / sum_j p_ij,    p_ij = phi_q(q_i) . phi_k(k_j),    x' = sqrt(scale) x
        softmax:  phi(x) = exp(w . x' - |x'|^2 / 2 - c) + epsilon      its mean over Gaussian w is exp(scale q . k)
        relu:     phi(x) = relu(w . x') + epsilon

    Choromanski et al. 2021, "Rethinking Attention with Performers", arXiv:2009.14794, eqs. 5-7 and the authors' code;
    the paper's L, m, omega are our T, M and the rows w of `projection`. Its factor M ** -0.5 cancels in the quotient.

    c keeps exp in range, is a constant to gradients, and would cancel but for epsilon: for a query its largest w . q',
    for keys the largest w . k' of all keys that are not masked, one for each batch entry, key head and document. When
    `causal` it is the largest up to the query; the authors' code takes it over all keys there too, so that a later key
    shifts the weight of epsilon in earlier rows. Here nothing leaks, bit for bit.

    The error of a weight falls like M ** -0.5, and grows with |q + k|: its variance is exp(|q' + k'|^2) / M times
    exp(2 q' . k') (1 - exp(-|q' + k'|^2)) for independent w (Lemma 2), less for orthogonal ones (Theorem 2).

    Time O((T N + S K) M (H + Hv)), memory O((T N + S K) M). Causal, in chunks of C = `chunk_size`: time
    O(T N (C (M + Hv) + M (H + Hv))), and one state a chunk for the gradient, O(T N M Hv / C). For softmax the state
    decays by exp(c_{i-1} - c_i) as the maximum grows. Packing, not causal, takes one causal pass from either end.

    Args:
      query: `[..., T, N, H]`.
      key: `[..., S, K, H]`, K divides N.
      value: `[..., S, K, Hv]`.
      projection: `[M, H]`, rows w, as `performer_projection` draws them; see there about redrawing.
      kernel: "softmax" or "relu".
      causal: query i sees the keys j <= i; needs T == S.
      key_mask: bool `[..., S]`, True = real token. Keys and values of other tokens have no influence and may be NaN.
      epsilon: added to every feature, so that no weight vanishes; None = 1e-4 for softmax, 1e-3 for relu. With 0, a row
        whose weights all underflow is 0.
      scale: None = H ** -0.5.
      chunk_size: C, the most tokens a chunk of the causal form.
      query_segment_ids: int `[..., T]`, the document of each token, as in `linear_attention`; negative = padding. Needs
        T == S.
      key_segment_ids: int `[..., S]`, equal to `query_segment_ids`; hide single keys by `key_mask`.
      initial_state: `PerformerState` of the tokens before the first, as `return_state` gives it; needs `causal`.
      return_state: also return the state after the last token.

    Returns:
      `[..., T, N, Hv]` in query's dtype; with `return_state` a pair (output, `PerformerState`). Rows with nothing to
      attend are exactly 0.

    Raises:
      ValueError: a shape, dtype or value does not fit, or an argument lacks the one it needs.
      NotImplementedError: segment ids together with a state, or with T != S.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 6, 1, 4))
    >>> settings = dict(projection=performer_projection(jax.random.key(1), 16, 4), causal=True)
    >>> whole = performer_attention(query, key, value, **settings)
    >>> first, state = performer_attention(query[:3], key[:3], value[:3], return_state=True, **settings)
    >>> last = performer_attention(query[3:], key[3:], value[3:], initial_state=state, **settings)
    >>> bool(jnp.allclose(jnp.concatenate([first, last]), whole, atol=1e-5))
    True
    """
    query, key, value, projection = (jnp.asarray(x) for x in (query, key, value, projection))
    _check(query, key, value, projection, kernel, causal, epsilon, scale, chunk_size, initial_state)
    lead, T, H, (S, K) = query.shape[:-3], query.shape[-3], query.shape[-1], key.shape[-3:-1]
    with_state = initial_state is not None or return_state
    documents, real, keep = visible(key_mask, query_segment_ids, key_segment_ids, lead, T, S, with_state)
    query, broken = blank_broken(quiet_padding(query, keep) if causal else query)

    dtype = accumulation_dtype(query.dtype)
    root = jnp.sqrt(jnp.asarray(H**-0.5 if scale is None else scale, dtype))
    epsilon = jnp.asarray(EPSILON[kernel] if epsilon is None else epsilon, dtype)
    projection = projection.astype(dtype)
    # Heads come first while the arrays are narrow: features are M / H times as wide.
    # The normaliser is one more column of the values, equal to 1. Where that is 0 the features do not matter.
    values = jnp.pad(value.astype(dtype), [(0, 0)] * (value.ndim - 1) + [(0, 1)], constant_values=1)
    keys, values = zero_hidden(key.astype(dtype), keep), zero_hidden(values, keep)
    queries, keys, values = heads_first(query.astype(dtype), keys, values)
    queries = _query_features(queries * root, projection, kernel) + epsilon  # [..., K, G, T, M]
    keys = keys * root
    state, plain, maximum = _split_state(initial_state, (*lead, K), projection.shape[0], values)
    keys, level = _key_features(keys, projection, kernel, keep, documents, maximum, causal)
    if causal:
        log_decay = _log_decay(level, maximum, documents) if kernel == "softmax" else None
        total, state, plain = _causal_sums(
            queries, keys, values, epsilon, state, plain, documents, chunk_size, log_decay
        )
    elif documents is None:  # epsilon on every key feature is epsilon times the sum of values in every row of the state
        state, plain = jnp.einsum("...jf,...jv->...fv", keys, values), values.sum(-2)
        total = jnp.einsum("...gif,...fv->...giv", queries, state + epsilon * plain[..., None, :])
    else:
        start = jnp.zeros((*queries.shape[:-2], *state.shape[-2:]), dtype)
        total = two_sided_sums(queries, keys + epsilon, values, start, documents, chunk_size)

    out = heads_inside(total)  # [..., T, N, Hv + 1]
    out = jnp.where(broken & (out[..., -1:] != 0), jnp.nan, quotient(out[..., :-1], out[..., -1:]))
    out = zero_hidden(out, real).astype(query.dtype)
    if not return_state:
        return out
    return out, PerformerState(state[..., :-1], state[..., -1], plain[..., :-1], plain[..., -1], level[..., -1])


def performer_projection(rng, num_features: int, head_dim: int, *, orthogonal: bool = True, regularized: bool = False):
    """Draws the random vectors w of FAVOR+.

    Rows are Gaussian: a direction, uniform on the sphere, times the norm of a Gaussian vector. Orthogonal rows come in
    blocks of H (Choromanski et al. 2021, arXiv:2009.14794, section 2.4): within a block the directions are a random
    rotation, QR with the signs that make it uniform; the last block is cut. Every row by itself is distributed as
    without, so the estimate stays unbiased, and its error is smaller.

    A model trained on one draw adapts to the errors of that draw. The paper draws anew every so many steps: this
    function, under jit, with `jax.random.fold_in(rng, step // every)`.

    Args:
      rng: a `jax.random.key`.
      num_features: M; of the order of H log H for a small error (Theorem 4).
      head_dim: H.
      orthogonal: False = all rows independent.
      regularized: every norm is sqrt(H), the kernel that bounds softmax from below (Theorem 1).

    Returns:
      `[M, H]` in JAX's default float dtype.

    Raises:
      ValueError: rng is no typed key, or a size is no positive int.

    >>> w = performer_projection(jax.random.key(0), 6, 4)
    >>> bool(jnp.abs(w[:4] @ w[:4].T - jnp.diag((w[:4] ** 2).sum(-1))).max() < 1e-5)
    True
    """
    check_rng(rng)
    check_int("num_features", num_features, 1)
    check_int("head_dim", head_dim, 1)
    for_direction, for_norm = jax.random.split(rng)
    if orthogonal:
        gaussian = jax.random.normal(for_direction, (-(-num_features // head_dim), head_dim, head_dim))
        rotation, triangle = jnp.linalg.qr(gaussian)
        signs = jnp.sign(jnp.diagonal(triangle, axis1=-2, axis2=-1))
        directions = (rotation * signs[..., None, :]).reshape(-1, head_dim)[:num_features]
    else:
        gaussian = jax.random.normal(for_direction, (num_features, head_dim))
        directions = gaussian / jnp.linalg.norm(gaussian, axis=-1, keepdims=True)
    if regularized:
        return directions * head_dim**0.5
    return directions * jnp.linalg.norm(jax.random.normal(for_norm, directions.shape), axis=-1, keepdims=True)


def _exponents(x, projection):
    """w . x `[..., M]` and |x|^2 / 2 `[...]`."""
    return jnp.einsum("...h,mh->...m", x, projection), (x * x).sum(-1) / 2


def _query_features(query, projection, kernel):
    """Features `[..., M]` before epsilon."""
    projected, half = _exponents(query, projection)
    if kernel == "relu":
        return jax.nn.relu(projected)
    return jnp.exp(projected - (half + lax.stop_gradient(projected.max(-1)))[..., None])


def _key_features(key, projection, kernel, keep, documents, maximum, causal):
    """Features `[..., K, S, M]` before epsilon and c, the exponent they are relative to, `[..., K, 1 or S]`.

    Those of hidden keys are finite, no more: their values are zero.
    """
    projected, half = _exponents(key, projection)
    if kernel == "relu":
        return jax.nn.relu(projected), jnp.zeros_like(half)
    level = lax.stop_gradient(projected.max(-1))
    keep = None if keep is None else keep[..., None, :]
    level = level if keep is None else jnp.where(keep, level, -jnp.inf)
    if causal:
        level = jnp.maximum(_running_max(level, documents), maximum[..., None])
    elif documents is None:
        level = level.max(-1, keepdims=True)
    else:
        after = _running_max(jnp.flip(level, -1), jnp.flip(documents, -1))
        level = jnp.maximum(_running_max(level, documents), jnp.flip(after, -1))
    shift = half + level
    shift = shift if keep is None else jnp.where(keep, shift, 0)  # hidden keys are zero vectors: exp(0 - 0)
    return jnp.exp(projected - shift[..., None]), level


def _running_max(x, documents):
    """The largest of `x [..., K, T]` up to each token, within its document."""
    if documents is None:
        return lax.cummax(x, axis=x.ndim - 1)

    def join(earlier, later):
        same = earlier[0] == later[0]
        return later[0], jnp.where(same, jnp.maximum(earlier[1], later[1]), later[1])

    documents = jnp.broadcast_to(documents[..., None, :], x.shape)
    return lax.associative_scan(join, (documents, x), axis=x.ndim - 1)[1]


def _log_decay(level, maximum, documents):
    """c_{i-1} - c_i `[..., K, T]`; 0 where there is nothing before to decay."""
    before = jnp.concatenate([maximum[..., None], level[..., :-1]], axis=-1)
    nothing = before == -jnp.inf
    if documents is not None:
        nothing = nothing | (jnp.diff(documents, prepend=documents[..., :1], axis=-1) != 0)[..., None, :]
    return jnp.where(nothing, 0, before - level)


def _causal_sums(query, key, value, epsilon, state, plain, documents, chunk_size, log_decay):
    """phi_q(q_i) . (S_i + epsilon P_i), where P_i, the sum of values alone, is the same in every row; S and P at last.

    S decays as the maximum grows, P does not: epsilon is added after the maximum is taken off.
    """
    state = jnp.broadcast_to(state[..., None, :, :], (*query.shape[:-2], *state.shape[-2:]))
    total, state = prefix_sums(query, key, value, state, documents, chunk_size, log_decay=log_decay)
    one = jnp.ones_like(value[..., :1])
    sums, plain = prefix_sums(one[..., None, :, :], one, value, plain[..., None, None, :], documents, chunk_size)
    total = total + epsilon * query.sum(-1, keepdims=True) * sums
    return total, state[..., 0, :, :], plain[..., 0, 0, :]


def _split_state(initial_state, lead, M, value):
    """S `[..., K, M, Hv + 1]`, P `[..., K, Hv + 1]`, whose last columns are the normaliser and the count, and c."""
    width, dtype = value.shape[-1], value.dtype
    if initial_state is None:
        return jnp.zeros((*lead, M, width), dtype), jnp.zeros((*lead, width), dtype), jnp.full(lead, -jnp.inf, dtype)
    wanted = {"sums": (*lead, M, width - 1), "normalizer": (*lead, M), "values": (*lead, width - 1)}
    wanted |= {"count": lead, "maximum": lead}
    given = [jnp.asarray(x, dtype) for x in initial_state]
    shapes = [x.shape for x in given]
    if shapes != list(wanted.values()):
        raise ValueError(
            f"initial_state: wanted {', '.join(f'{name} {list(shape)}' for name, shape in wanted.items())}, got "
            f"{', '.join(str(list(shape)) for shape in shapes)}"
        )
    sums, normalizer, values, count, maximum = given
    state = jnp.concatenate([sums, normalizer[..., None]], axis=-1)
    return state, jnp.concatenate([values, count[..., None]], axis=-1), lax.stop_gradient(maximum)


def _check(query, key, value, projection, kernel, causal, epsilon, scale, chunk_size, initial_state):
    check_arrays(query, key, value)
    T, S, H = query.shape[-3], key.shape[-3], query.shape[-1]
    if projection.ndim != 2 or projection.shape[-1] != H or not projection.shape[0]:
        raise ValueError(f"projection: wanted [M, H] with H = {H} and M >= 1, got {projection.shape}")
    if not jnp.issubdtype(projection.dtype, jnp.floating):
        raise ValueError(f"projection: wanted a float dtype, got {projection.dtype}")
    if kernel not in EPSILON:
        raise ValueError(f"kernel: wanted one of {', '.join(EPSILON)}, got {kernel!r}")
    for name, x in (("epsilon", epsilon), ("scale", scale)):
        if x is not None and not isinstance(x, jax.core.Tracer) and not x >= 0:
            raise ValueError(f"{name}: wanted a number >= 0, got {x!r}")
    if causal and T != S:
        raise ValueError(
            f"causal: wanted one key per query, got T = {T} and S = {S}; earlier tokens enter as initial_state"
        )
    if not causal and initial_state is not None:
        raise ValueError("initial_state: needs causal=True; without it every key is given at once")
    check_int("chunk_size", chunk_size, 1)
