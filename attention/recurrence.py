"""The chunked causal engine of the linear family: sums over the past, carried as a state from chunk to chunk."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .checks import (
    accumulation_dtype,
    check_arrays,
    check_broadcast,
    check_int,
    check_same_segments,
    check_segments,
    check_vector,
)


class Tokens(NamedTuple):
    """The checked arguments of an unnormalised causal recurrence: hidden tokens zeroed, heads in front of time."""

    query: Any  # [..., K, G, T, H], scaled, with N = K G; a query that is not finite is 0 here, see `blank_broken`
    key: Any  # [..., K, T, H]
    value: Any  # [..., K, T, Hv]
    state: Any  # [..., K, G, H, Hv]
    documents: Any  # int [..., T] or None
    keep: Any  # bool [..., T] or None
    broken: Any  # bool [..., T, N, 1]

    @classmethod
    def of(cls, query, key, value, scale, chunk_size, key_mask, query_ids, key_ids, initial_state, return_state):
        query, key, value = (jnp.asarray(x) for x in (query, key, value))
        check_arrays(query, key, value)
        check_causal(query, key)
        check_int("chunk_size", chunk_size, 1)
        lead, (T, N, H) = query.shape[:-3], query.shape[-3:]
        with_state = initial_state is not None or return_state
        documents, _, keep = visible(key_mask, query_ids, key_ids, lead, T, T, with_state)
        dtype = accumulation_dtype(query.dtype)
        query, broken = blank_broken(zero_hidden(query, keep))
        query = query.astype(dtype) * (H**-0.5 if scale is None else scale)
        key, value = (zero_hidden(x, keep).astype(dtype) for x in (key, value))
        query, key, value = heads_first(query, key, value)
        shape = (*lead, N, H, value.shape[-1])
        state = jnp.zeros(shape, dtype) if initial_state is None else jnp.asarray(initial_state)
        if state.shape != shape:
            raise ValueError(f"initial_state: wanted [..., N, H, Hv] = {list(shape)}, got {list(state.shape)}")
        state = state.astype(dtype).reshape(*query.shape[:-2], H, shape[-1])
        return cls(query, key, value, state, documents, keep, broken)

    def gate(self, name, x, width=()):
        """A number per token and key head, `[..., T, K, *width]`, as `[..., K, T, *width]`; 0 at hidden tokens."""
        x = jnp.asarray(x)
        wanted = (*self.key.shape[:-3], self.key.shape[-2], self.key.shape[-3], *width)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: wanted a float dtype, got {x.dtype}")
        if x.ndim != len(wanted):
            raise ValueError(f"{name}: wanted shape {wanted}, got {x.shape}")
        check_broadcast(name, x.shape, wanted)
        x = jnp.broadcast_to(x, wanted).astype(self.key.dtype)
        if self.keep is not None:
            x = jnp.where(self.keep[(..., None, *(None for _ in width))], x, 0)
        return jnp.moveaxis(x, len(wanted) - 2 - len(width), len(wanted) - 1 - len(width))

    def one_query_head_each(self):
        """Key heads repeated until each has one query head, so that query heads may decay each at its own rate."""
        *lead, K, G, T, H = self.query.shape
        key, value = (jnp.repeat(x, G, axis=-3) for x in (self.key, self.value))
        query, state = (x.reshape(*lead, K * G, 1, *x.shape[-2:]) for x in (self.query, self.state))
        return self._replace(query=query, key=key, value=value, state=state)

    def result(self, total, state, dtype, return_state):
        """The output `[..., T, N, Hv]` from `total [..., K, G, T, Hv]`, with the state if it is asked for."""
        out = jnp.where(self.broken, jnp.nan, heads_inside(total)).astype(dtype)
        return (out, state.reshape(*out.shape[:-3], -1, *state.shape[-2:])) if return_state else out


@functools.partial(jax.jit, static_argnames=("chunk_size", "strict"))  # or eager calls would compile the scan each time
def prefix_sums(query, key, value, state, documents, chunk_size, *, strict=False, log_decay=None):
    """Sums over the past of weighted values, and the state after the last token.

        sums_i = query_i . S_i        S_i = exp(log_decay_i) S_{i-1} + key_i value_i^T

    `S` starts as `state` and starts anew, from zero, with each document. Inside a chunk all pairs of tokens are
    compared, the pair (i, j) weighing exp(sum of log_decay over j < t <= i); everything before the chunk enters through
    the state. The gradient computes the scores anew and keeps one state per chunk.

    Args:
      query: [..., K, G, T, F] features.
      key: [..., K, T, F] features, zero where hidden.
      value: [..., K, T, V].
      state: [..., K, G, F, V], belongs to the first document.
      documents: int [..., T], constant on each document; None = one document.
      chunk_size: tokens per chunk, at most.
      strict: S_{i-1} exp(log_decay_i) in place of S_i: the token itself is left out.
      log_decay: [..., K, T], at most 0, may be -inf; None = 0.

    Returns:
      sums [..., K, G, T, V] and the state [..., K, G, F, V].
    """
    earlier = functools.partial(jnp.tri, k=-1 if strict else 0, dtype=bool)
    if documents is None:
        documents = jnp.zeros(query.shape[-2], jnp.int32)

    def step(carry, chunk):
        state, live = carry
        query, key, value, document, log_decay = chunk
        last = document[..., -1:]
        same = earlier(document.shape[-1]) & (document[..., :, None] == document[..., None, :])
        scores = jnp.einsum("...gif,...jf->...gij", query, key)
        carried = jnp.einsum("...gif,...gfv->...giv", query, state)
        if log_decay is not None:
            pairs, begin = decays(log_decay)
            scores, carried = scores * pairs[..., None, :, :], carried * begin[..., None, :, None]
            key, state = key * pairs[..., -1, :, None], state * begin[..., None, -1:, None]
        scores = jnp.where(same[..., None, None, :, :], scores, 0)
        recent = jnp.einsum("...gij,...jv->...giv", scores, value)
        total = recent + jnp.where((document == live)[..., None, None, :, None], carried, 0)
        key = jnp.where((document == last)[..., None, :, None], key, 0)
        added = jnp.einsum("...jf,...jv->...fv", key, value)[..., None, :, :]
        state = jnp.where((last == live)[..., None, None, None], state, 0) + added
        return (state, last), total

    chunks = ((query, -2), (key, -2), (value, -2), (documents, -1), (log_decay, -1))
    size = even_chunks(query.shape[-2], chunk_size)
    (state, _), total = scan_chunks(step, (state, documents[..., :1]), chunks, size)
    return total, state


def two_sided_sums(query, key, value, state, documents, chunk_size):
    """As `prefix_sums`, over all keys of the document: those up to i from the left, those after i from the right."""
    left, _ = prefix_sums(query, key, value, state, documents, chunk_size)
    query, key, value = (jnp.flip(x, -2) for x in (query, key, value))
    right, _ = prefix_sums(query, key, value, state, jnp.flip(documents, -1), chunk_size, strict=True)
    return left + jnp.flip(right, -2)


def even_chunks(length, most):
    """The tokens per chunk that leave less than one token of padding in each of as few chunks as `most` allows."""
    return -(-length // -(-length // most))


def halvable_chunks(length, most):
    """The largest power of two that is at most `most` and covers no more than `length` asks for."""
    return 2 ** min(int(most).bit_length() - 1, (length - 1).bit_length())


def scan_chunks(step, carry, tokens, size):
    """Scans `step(carry, chunk) -> (carry, [..., size, V])` over chunks of `size` tokens.

    `tokens` are pairs of an array, or None, and its axis of time. The last chunk is filled up with zeros, integers with
    their last entry. Returns the carry and the outputs [..., T, V].
    """
    length = next(x.shape[axis] for x, axis in tokens if x is not None)
    count = -(-length // size)

    def split(x, axis):
        """Cuts `axis` into chunks and brings their number to the front, as `lax.scan` wants it."""
        if x is None:
            return None
        axis %= x.ndim
        padding = [(0, count * size - length if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, padding, mode="edge" if jnp.issubdtype(x.dtype, jnp.integer) else "constant")
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    # Without the checkpoint the gradient would keep the scores of every chunk; with it only the states between them.
    step = jax.checkpoint(step, prevent_cse=False)
    carry, total = lax.scan(step, carry, tuple(split(x, axis) for x, axis in tokens))
    total = jnp.moveaxis(total, 0, -3)
    return carry, total.reshape(*total.shape[:-3], -1, total.shape[-1])[..., :length, :]


def decays(log_decay):
    """What is left at token i of token j, [..., i, j], and of the state before the first token, [..., i].

    The exponents are sums of what lies between, never differences of longer sums: those would round, let -inf become
    NaN, and let one document change the last bits of the next.
    """
    later = jnp.tri(log_decay.shape[-1], k=-1, dtype=bool)
    pairs = jnp.cumsum(jnp.where(later, log_decay[..., :, None], 0), axis=-2)
    return jnp.exp(pairs), jnp.exp(jnp.cumsum(log_decay, axis=-1))


def quotient(numerator, denominator):
    """Zero, with zero gradients, where the denominator is zero."""
    empty = denominator == 0
    return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))


def heads_first(query, key, value):
    """Heads in front of time: `[..., K, G, T, F]`, `[..., K, S, F]`, `[..., K, S, V]`, with N = K G."""
    *lead, T, N, F = query.shape
    query = jnp.moveaxis(query.reshape(*lead, T, key.shape[-2], -1, F), -4, -2)
    return query, key.swapaxes(-2, -3), value.swapaxes(-2, -3)


def heads_inside(total):
    """`[..., K, G, T, V]` as `[..., T, N, V]`."""
    total = jnp.moveaxis(total, -2, -4)
    return total.reshape(*total.shape[:-3], -1, total.shape[-1])


def zero_hidden(x, keep):
    """`x [..., T, heads, width]`, zero at the tokens that are not kept; None keeps all."""
    return x if keep is None else jnp.where(keep[..., None, None], x, jnp.zeros_like(x))


def blank_broken(query):
    """`query` with the rows that are not finite zeroed, and which they were, bool [..., T, N, 1].

    Such a query spoils its own row alone; its zero cotangent must not reach the keys as 0 * NaN.
    """
    broken = ~jnp.isfinite(query).all(-1, keepdims=True)
    return jnp.where(broken, jnp.zeros_like(query), query), broken


def visible(key_mask, query_ids, key_ids, lead, T, S, with_state):
    """The documents, int [..., T]; the tokens that are no padding between them; those that `key_mask` keeps besides.

    The last two are bool [..., S]. All are None where nothing is packed or hidden.
    """
    documents, real = packing(query_ids, key_ids, lead, T, S, with_state)
    keep = check_vector("key_mask", key_mask, lead, S, dtype=bool)
    if real is None or keep is None:
        return documents, real, real if keep is None else keep
    return documents, real, real & keep


def check_causal(query, key):
    """Raises ValueError unless there is one key per query."""
    T, S = query.shape[-3], key.shape[-3]
    if T != S:
        raise ValueError(
            f"causal: wanted one key per query, got T = {T} and S = {S}; earlier tokens enter as initial_state"
        )


def packing(query_ids, key_ids, lead, T, S, with_state):
    """The document that each token is in or behind, counted from 0, and which are real: int and bool [..., T]."""
    segments = check_segments(query_ids, key_ids, lead, T, S)
    if segments is None:
        return None, None
    if with_state:
        raise NotImplementedError(
            "initial_state, return_state: a state does not say which document it belongs to; drop the segment ids"
        )
    if T != S:
        raise NotImplementedError(
            f"query_segment_ids: packing needs as many queries as keys, got T = {T} and S = {S}; attend each document "
            "on its own, or use dot_product_attention"
        )
    check_same_segments(query_ids, key_ids)
    query_ids, key_ids = jnp.broadcast_arrays(segments.query_ids, segments.key_ids)
    real = (query_ids == key_ids) & (key_ids >= 0)
    latest = lax.cummax(jnp.where(real, jnp.arange(T), 0), axis=real.ndim - 1)  # the last real token up to here
    ids = jnp.take_along_axis(key_ids, latest, axis=-1)
    changes = jnp.diff(ids, prepend=ids[..., :1], axis=-1) != 0
    return jnp.cumsum(changes, axis=-1), real
