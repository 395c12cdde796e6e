"""Reformer: tokens meet in chunks, after sorting by a hash that similar vectors share."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .checks import (
    accumulation_dtype,
    check_dropout,
    check_int,
    check_rng,
    check_same_segments,
    check_segments,
    check_vector,
    quiet_padding,
)
from .merge import merge
from .tile import plain_promotion

MOST_BUCKETS = 128  # more are hashed in two factors, as trax's Reformer does


@plain_promotion
def lsh_attention(
    query_key,
    value,
    *,
    num_hashes: int,
    bucket_size: int,
    num_buckets: int | tuple[int, ...] | None = None,
    rng=None,
    rotations=None,
    causal: bool = False,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    chunks_before: int = 1,
    chunks_after: int = 0,
    same_bucket: bool = False,
    correct_duplicates: bool = False,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng=None,
):
    """Attention among tokens whose vectors hash alike, so that only few of all pairs are compared.

        bucket_r(x) = argmax [x R_r, -x R_r]                      in rounds r = 1 .. num_hashes, R_r random
        out_i = softmax_j(scale * x_i . x_j / sqrt(mean(x_j^2) + 1e-6)) value_j     over the j != i that i meets

    One vector x is both query and key. In each round the tokens are sorted by (bucket, position). The sorted rounds,
    one behind the other, are cut into chunks of `bucket_size`; the tokens of a chunk meet each other and those of the
    neighbouring chunks, circularly, and so also across the border of two rounds. A pair that meets several times counts
    as often, unless `correct_duplicates`. A token attends itself only as a last resort: if it meets no other that it
    may see, in any round, its output is its own value.

    Kitaev et al. 2020, "Reformer", arXiv:2001.04451, section 2. Their n_rounds, m, P_i are our num_hashes, bucket_size
    and the tokens that i meets. `same_bucket` restricts those to i's own bucket as in their eq. 4, `correct_duplicates`
    is their N_ij; the authors' later code (trax) does neither, hence the defaults. If bucket_size >= T, without
    `same_bucket`, this is full attention with shared queries and keys, and num_hashes makes no difference.

    `causal` hides later tokens by their positions in the input: nothing later is ever summed. But who meets whom
    follows from the hashes of all tokens, so that a later token may change which earlier ones a query meets.

    With M = bucket_size * (1 + chunks_before + chunks_after) keys a query and F half the sum of bucket factors, time
    O(num_hashes T N H (M + F)) and memory O(num_hashes T N (M + H + F)), forward and backward. F is T / bucket_size,
    or about sqrt(2 T / bucket_size) with the two factors of many buckets. `correct_duplicates` compares num_hashes^2
    integers more for each of the num_hashes T N M pairs.

    Args:
      query_key: `[..., T, N, H]`, not normalised.
      value: `[..., T, K, Hv]`, K divides N.
      num_hashes: rounds. The error falls with them, the cost grows with them.
      bucket_size: tokens a chunk. A length that it does not divide is padded inside.
      num_buckets: an even int, or even factors that are hashed apart: bucket = first + first factor * second, and so
        on. None = 2 * ceil(T / bucket_size), half a chunk each on average, in two factors if that is above 128.
      rng: a `jax.random.key` to draw the rotations from; this or `rotations`.
      rotations: `[N, H, num_hashes, R]`, R half the sum of the factors; see `lsh_rotations`.
      causal: hide tokens after the query.
      key_mask: bool `[..., T]`, True = real token. Other tokens are sorted into a last bucket of their own and never
        seen; their rows are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding. Tokens are sorted by document first, and
        a chunk may hold pieces of several.
      key_segment_ids: int `[..., T]`, equal to query_segment_ids; hide single tokens by key_mask. Where traced ids
        disagree the token is padding.
      chunks_before: chunks in front of its own that a token looks at.
      chunks_after: chunks behind its own; usually 1 if not causal.
      same_bucket: see only tokens of the own bucket, of the same round.
      correct_duplicates: count each pair once, however often it meets.
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights, drawn anew for each meeting.
      dropout_rng: a `jax.random.key`, wanted with dropout.

    Returns:
      `[..., T, N, Hv]` in query_key's dtype.

    Raises:
      ValueError: arguments that do not fit, named. Segment ids that disagree are found where they are concrete.

    >>> x = jnp.ones((1, 32, 2, 4))
    >>> lsh_attention(x, x, num_hashes=2, bucket_size=8, rng=jax.random.key(0), causal=True).shape
    (1, 32, 2, 4)
    """
    query_key, value = jnp.asarray(query_key), jnp.asarray(value)
    _check_arrays(query_key, value)
    check_int("num_hashes", num_hashes, 1)
    check_int("bucket_size", bucket_size, 1)
    check_int("chunks_before", chunks_before, 0)
    check_int("chunks_after", chunks_after, 0)
    check_dropout(dropout_rate, dropout_rng, "dropout_rng")
    *lead, T, N, H = query_key.shape
    factors = _default_factors(T, bucket_size) if num_buckets is None else _factors(num_buckets)
    rotations = _rotations(rng, rotations, N, H, num_hashes, factors)
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    documents = _documents(query_segment_ids, key_segment_ids, lead, T)

    bucket_size = min(bucket_size, T)
    x, own, hidden, documents = _prepare(query_key, value, key_mask, documents, -T % bucket_size)
    if T == bucket_size and not same_bucket:  # one chunk holds every pair: more rounds and neighbours only repeat them
        buckets, chunks_before, chunks_after = jnp.zeros((*x.shape[:2], 1, T), jnp.int32), 0, 0
    else:
        buckets = _hash(x, rotations, factors)
    if hidden is not None:
        buckets = jnp.where(hidden, math.prod(factors), buckets)
    labels = buckets + (math.prod(factors) + 1) * jnp.arange(buckets.shape[2])[:, None] if same_bucket else None
    order = _Order(*_sort(buckets, documents), bucket_size, chunks_before, chunks_after)

    queries = order.arrange(x[:, :, None])
    keys = queries if hidden is None else jnp.where(order.arrange(hidden)[..., None], 0, queries)
    keys = keys * lax.rsqrt(jnp.square(keys).mean(-1, keepdims=True) + 1e-6)
    queries = queries * (H**-0.5 if scale is None else scale)
    score = jnp.einsum("bncqh,bnckh->bncqk", queries, order.look(keys))
    if correct_duplicates:
        score = score - jnp.log(_meetings(order, labels).astype(score.dtype))
    score = jnp.where(_visible(order, hidden, documents, labels, causal), score, -jnp.inf)
    values = order.look(order.arrange(own[:, :, None]))
    parts = _softmax(score, values, dropout_rate, dropout_rng)
    out, lse = merge(*(order.restore(part) for part in parts))
    out = jnp.where(lse[..., None] == -jnp.inf, own, out)
    return jnp.swapaxes(out[:, :, :T], 1, 2).reshape(*lead, T, N, -1).astype(query_key.dtype)


def lsh_rotations(rng, num_heads: int, head_dim: int, num_hashes: int, num_buckets: int | tuple[int, ...]):
    """Random rotations for `lsh_attention`, standard normal.

    Andoni et al. 2015, "Practical and Optimal LSH for Angular Distance", arXiv:1509.02897: the largest coordinate of a
    random projection, with its sign, is a hash that close directions share.

    Args:
      rng: a `jax.random.key`.
      num_heads: N.
      head_dim: H.
      num_hashes: rounds.
      num_buckets: an even int, or even factors.

    Returns:
      float32 `[N, H, num_hashes, R]`, R half the sum of the factors, those of one factor side by side.

    Raises:
      ValueError: num_buckets is not even.

    >>> lsh_rotations(jax.random.key(0), 2, 4, 3, num_buckets=(4, 6)).shape
    (2, 4, 3, 5)
    """
    for name, x in (("num_heads", num_heads), ("head_dim", head_dim), ("num_hashes", num_hashes)):
        check_int(name, x, 1)
    check_rng(rng)
    return jax.random.normal(rng, (num_heads, head_dim, num_hashes, sum(_factors(num_buckets)) // 2), jnp.float32)


@plain_promotion
def lsh_buckets(query_key, rotations, num_buckets: int | tuple[int, ...]):
    """The bucket of each token in each round: argmax [x R, -x R], which depends on the direction of x alone.

    Time O(num_hashes T N H R). Computed in float32, whatever the dtype.

    Args:
      query_key: `[..., T, N, H]`.
      rotations: `[N, H, num_hashes, R]`.
      num_buckets: an even int, or even factors: bucket = first + first factor * second, and so on.

    Returns:
      int32 `[..., N, num_hashes, T]` from 0 to the product of the factors - 1.

    Raises:
      ValueError: rotations that do not fit query_key and num_buckets.

    >>> x = jnp.array([[[1.0, 0.1]], [[1.0, -0.2]], [[-1.0, 0.0]]])  # T = 3, N = 1
    >>> lsh_buckets(x, jnp.eye(2)[None, :, None], 4).tolist()
    [[[0, 0, 2]]]
    """
    query_key, rotations, factors = jnp.asarray(query_key), jnp.asarray(rotations), _factors(num_buckets)
    _check_rotations(rotations, *query_key.shape[-2:], rotations.shape[2], factors)
    return _hash(jnp.swapaxes(query_key, -2, -3), rotations, factors)


def _hash(x, rotations, factors):
    """`lsh_buckets` of `x [..., N, T, H]`."""
    x, rotations = (lax.stop_gradient(a).astype(jnp.float32) for a in (x, rotations))
    rotated = jnp.einsum("...nth,nhrf->...nrtf", x, rotations, precision=lax.Precision.HIGHEST)
    bucket, step, start = 0, 1, 0
    for factor in factors:
        half = factor // 2
        part = rotated[..., start : start + half]
        size = jnp.abs(part)
        index = jnp.arange(half) + jnp.where(part >= 0, 0, half)  # of the larger of x and -x
        largest = size == size.max(-1, keepdims=True)
        bucket += step * jnp.where(largest, index, factor - 1).min(-1)  # several times faster than argmax on a CPU
        step, start = step * factor, start + half
    return bucket.astype(jnp.int32)


class _Order(NamedTuple):
    """Who stands where: the tokens of each round sorted, the rounds one behind the other, cut into C chunks."""

    tokens: Any  # [B, N, rounds, T], the token in each place
    places: Any  # [B, N, rounds, T], the place of each token
    size: int  # tokens a chunk
    before: int
    after: int

    def arrange(self, x):
        """`[B, N or 1, rounds or 1, T, ...]` by token -> `[B, N, C, size, ...]` by place."""
        x = _take(x, self.tokens)
        return x.reshape(*x.shape[:2], -1, self.size, *x.shape[4:])

    def restore(self, x):
        """`[B, N, C, size, ...]` by place -> `[rounds, B, N, T, ...]` by token."""
        x = x.reshape(*self.places.shape, *x.shape[4:])
        return jnp.moveaxis(_take(x, self.places), 2, 0)

    def look(self, x):
        """Each chunk and its neighbours, circularly: `[B, N, C, size, ...]` -> `[B, N, C, keys, ...]`."""
        return jnp.concatenate([jnp.roll(x, n, 2) for n in range(self.before, -self.after - 1, -1)], axis=3)

    def pair(self, x):
        """What each query has and what each key around it has, of `x [B, N or 1, rounds or 1, T]` by token."""
        x = self.arrange(x)
        return x[..., :, None], self.look(x)[..., None, :]


def _sort(buckets, documents):
    """The tokens of each round by (document, bucket, position), and the place of each token, `[B, N, rounds, T]`."""
    keys = [buckets] if documents is None else [jnp.broadcast_to(documents, buckets.shape), buckets]
    positions = lax.broadcasted_iota(jnp.int32, buckets.shape, 3)
    *_, tokens = lax.sort((*keys, positions), dimension=3, num_keys=len(keys), is_stable=True)
    return tokens, jnp.put_along_axis(jnp.zeros_like(tokens), tokens, positions, axis=3, inplace=False)


def _take(x, index):
    """`x [B, N or 1, rounds or 1, T, ...]` at `index [B, N, rounds, T]`."""
    index = index.reshape(*index.shape, *[1] * (x.ndim - 4))
    return jnp.take_along_axis(x, index, axis=3, mode="promise_in_bounds")


def _visible(order, hidden, documents, labels, causal):
    """Which slots may see which of those around them, bool `[B, N, C, size, keys]`; None = makes no difference."""
    token, other = order.pair(jnp.arange(order.tokens.shape[3])[None, None, None])
    visible = other < token if causal else other != token
    if hidden is not None:
        visible &= ~order.pair(hidden)[1]
    for alike in (documents, labels):
        if alike is not None:
            visible &= jnp.equal(*order.pair(alike))
    return visible


def _meetings(order, labels):
    """How often each pair meets in all rounds, int `[B, N, C, size, keys]`, at least 1.

    A token stands in one chunk a round, and meets the tokens of every chunk `before` to `after` chunks from there. With
    `labels`, only those of its label, which differs from round to round.
    """
    rounds, T = order.places.shape[2:]
    chunks, reach = rounds * T // order.size, order.before + 1 + order.after
    home = order.places // order.size + jnp.arange(rounds)[:, None] * (T // order.size)
    homes = [order.pair(home[:, :, r : r + 1]) for r in range(rounds)]
    alike = None if labels is None else [jnp.equal(*order.pair(labels[:, :, r : r + 1])) for r in range(rounds)]
    met = 0
    for r, s in itertools.product(range(rounds), repeat=2):
        if labels is not None and r != s:
            continue
        distance = homes[r][0] - homes[s][1] + order.after % chunks  # they meet where it is 0 .. reach - 1, on the ring
        distance = jnp.where(distance < 0, distance + chunks, distance)
        distance = jnp.where(distance >= chunks, distance - chunks, distance)
        # A reach of more than the whole ring comes to some chunks again.
        times = sum((distance < reach - turn).astype(jnp.int32) for turn in range(0, reach, chunks))
        met += times if labels is None else times * alike[r]
    return jnp.maximum(met, 1)


def _softmax(score, value, dropout_rate, rng):
    """Softmax over the last axis, times value, and its log-sum-exp; 0 and -inf where all scores are -inf."""
    top = lax.stop_gradient(score.max(-1, keepdims=True))
    top = jnp.where(top == -jnp.inf, 0, top)
    weight = jnp.exp(score - top)
    total = weight.sum(-1, keepdims=True)
    if dropout_rate:
        keep = jax.random.bernoulli(rng, 1 - dropout_rate, weight.shape)
        weight = jnp.where(keep, weight / (1 - dropout_rate), 0)
    seen = jnp.where(total == 0, 1, total)
    out = jnp.einsum("bncqk,bnckv->bncqv", weight, value) / seen
    return out, jnp.where(total == 0, -jnp.inf, top + jnp.log(seen))[..., 0]


def _prepare(query_key, value, key_mask, documents, padding):
    """Wide, heads in front, padded: x `[B, N, T, H]`, values `[B, N, T, Hv]`, hidden and documents `[B, 1, 1, T]`."""
    *lead, T, N, _ = query_key.shape
    hidden = None if key_mask is None else ~key_mask
    query_key = quiet_padding(query_key, key_mask)
    if documents is not None:
        outside = documents < 0
        hidden = outside if hidden is None else outside | hidden
        query_key = jnp.where(outside[..., None, None], 0, query_key)
    if hidden is None and padding:
        hidden = jnp.zeros(T, bool)
    if hidden is not None:
        value = jnp.where(hidden[..., None, None], 0, value)

    def heads(x):
        x = jnp.repeat(x, N // x.shape[-2], axis=-2).astype(accumulation_dtype(x.dtype))
        x = jnp.swapaxes(x.reshape(-1, T, *x.shape[-2:]), 1, 2)
        return jnp.pad(x, [(0, 0), (0, 0), (0, padding), (0, 0)])

    def tokens(x, fill):
        x = jnp.broadcast_to(x, (*lead, T)).reshape(-1, 1, 1, T)
        return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, padding)], constant_values=fill)

    # Unsigned, padding sorts last.
    documents = None if documents is None else tokens(documents.astype(jnp.uint32), np.uint32(2**32 - 1))
    return heads(query_key), heads(value), None if hidden is None else tokens(hidden, True), documents


def _rotations(rng, rotations, num_heads, head_dim, num_hashes, factors):
    """The rotations given or drawn, of the shape they must have."""
    if (rng is None) == (rotations is None):
        raise ValueError(f"rng, rotations: wanted exactly one of the two, got {'none' if rng is None else 'both'}")
    if rotations is None:
        return lsh_rotations(rng, num_heads, head_dim, num_hashes, factors)
    return _check_rotations(rotations, num_heads, head_dim, num_hashes, factors)


def _check_rotations(rotations, num_heads, head_dim, num_hashes, factors):
    rotations, wanted = jnp.asarray(rotations), (num_heads, head_dim, num_hashes, sum(factors) // 2)
    if rotations.shape != wanted or not jnp.issubdtype(rotations.dtype, jnp.floating):
        raise ValueError(
            f"rotations: wanted floats [N, H, num_hashes, half the buckets] = {wanted}, got {rotations.dtype} "
            f"{rotations.shape}"
        )
    return rotations


def _factors(num_buckets):
    """The number of buckets as a tuple of even factors."""
    factors = (num_buckets,) if isinstance(num_buckets, (int, np.integer)) else tuple(num_buckets)
    if not factors or any(not isinstance(f, (int, np.integer)) or f < 2 or f % 2 for f in factors):
        raise ValueError(f"num_buckets: wanted an even int or even factors, each >= 2, got {num_buckets!r}")
    return factors


def _default_factors(T, bucket_size):
    """2 * ceil(T / bucket_size) buckets, the rule of trax; many as two factors of about equal size."""
    total = 2 * -(-T // bucket_size)
    if total <= MOST_BUCKETS:
        return (total,)
    first = 2 * math.ceil(math.sqrt(total) / 2)
    return first, 2 * math.ceil(total / first / 2)


def _documents(query_ids, key_ids, lead, T):
    """The document of each token `[..., T]`, negative = padding, or None."""
    segments = check_segments(query_ids, key_ids, lead, T, T)
    if segments is None:
        return None
    check_same_segments(query_ids, key_ids)
    return jnp.where(segments.query_ids == segments.key_ids, segments.query_ids, -1)


def _check_arrays(query_key, value):
    for name, x in (("query_key", query_key), ("value", value)):
        if x.ndim < 3:
            raise ValueError(f"{name}: wanted [..., length, heads, width], got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: wanted a float dtype, got {x.dtype}")
    if value.dtype != query_key.dtype:
        raise ValueError(f"value: wanted query_key's dtype {query_key.dtype}, got {value.dtype}")
    if value.shape[:-2] != query_key.shape[:-2]:
        raise ValueError(f"value: wanted query_key's [..., T] = {query_key.shape[:-2]}, got {value.shape[:-2]}")
    if query_key.shape[-3] == 0:
        raise ValueError("query_key: wanted lengths of at least 1, got T = 0")
    if value.shape[-2] == 0 or query_key.shape[-2] % value.shape[-2]:
        raise ValueError(
            f"value: wanted a number of heads that divides query_key's {query_key.shape[-2]}, got {value.shape[-2]}"
        )
