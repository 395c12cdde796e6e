"""Linear attention: a feature map in place of the softmax, so that the past folds into one matrix."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from .checks import accumulation_dtype, check_arrays, check_segments, check_vector, quiet_padding
from .tile import plain_promotion


def elu_plus_one(x):
    """The feature map elu(x) + 1: x + 1 above zero, exp(x) below.

    Katharopoulos et al. 2020, arXiv:2006.16236, eq. 7. Written without the detour over expm1, which rounds everything
    below x = -17 to 0 and would leave rows without a normaliser. Smooth at 0 to first order, positive above x = -87.

    Args:
      x: an array of any shape.

    Returns:
      An array like `x`.

    Example:
      >>> [round(float(y), 3) for y in elu_plus_one(jnp.array([-1.0, 0.0, 2.0]))]
      [0.368, 1.0, 3.0]
    """
    # Not minimum(x, 0), whose gradient at a tie is one half.
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


@plain_promotion
def linear_attention(
    query,
    key,
    value,
    *,
    feature_map=elu_plus_one,
    causal=False,
    key_mask=None,
    chunk_size=64,
    normalize=True,
    initial_state=None,
    return_state=False,
    query_segment_ids=None,
    key_segment_ids=None,
):
    """Attention whose weights are inner products of features, in time linear in the length.

        out_i = phi(q_i) . S_i / (phi(q_i) . z_i)        S_i = sum_j phi(k_j) v_j^T        z_i = sum_j phi(k_j)

    with j over all keys, or over j <= i when `causal`. Katharopoulos et al. 2020, "Transformers are RNNs",
    arXiv:2006.16236, eqs. 4-12; the paper's D, M, phi are our H, Hv, feature_map. There is no scale: put one into
    `feature_map`, a constant cancels anyway. The paper's code adds 1e-6 to the denominator, other libraries 1e-10; here
    nothing is added: a row with nothing to attend, or whose weights all underflow, gives exactly 0.

    The causal form walks over chunks of C = `chunk_size` tokens: inside a chunk all pairs are compared, everything
    before it enters through the state (S, z), as a recurrent network would carry it (Yang et al. 2024,
    arXiv:2312.06635, section 2.2). For features as wide as H its time is O(T N (C (H + Hv) + H Hv)), with the gradient
    under four times that. Memory is O(T N (H + Hv)), the arguments in float32, beside the N C^2 scores of one chunk.
    The gradient computes the scores anew and keeps one state per chunk, O(T N H Hv / C), not one per token.
    Not causal: time O((T + S) N H Hv), no scores at all.

    Packing: documents lie one after the other, each an unbroken run of equal ids with padding (negative ids) wherever
    it likes. An id that comes back after another document is a new document. The state starts anew with each, so
    documents are isolated bit for bit. Not causal, packing takes one causal pass from either end.

    Args:
      query: [..., T, N, H].
      key: [..., S, K, H], N % K == 0: each key head serves N / K query heads.
      value: [..., S, K, Hv].
      feature_map: function of a float32 array [..., length, heads, H] to [..., length, heads, features]; values should
        not be negative, so that the normaliser cannot vanish. Any width of features; the state takes it in place of H.
      causal: query i sees the keys j <= i; needs T == S.
      key_mask: bool [..., S], True = real token. Keys and values of other tokens have no influence and may be NaN.
      chunk_size: C, the most tokens per chunk of the causal form. The work on scores grows with it, the states kept for
        the gradient shrink with it; they balance near H. A length that it does not divide is spread evenly over its
        chunks, which leaves less than one token of padding in each.
      normalize: divide by phi(q_i) . z_i.
      initial_state: (S [..., N, H, Hv], z [..., N, H]) of the tokens before the first, as `return_state` gives it;
        needs `causal`.
      return_state: also return the state after the last token.
      query_segment_ids: int [..., T], the document of each token, negative = padding. Needs T == S.
      key_segment_ids: int [..., S], equal to `query_segment_ids`; hide single keys by `key_mask`. Where traced ids
        disagree the row is 0.

    Returns:
      [..., T, N, Hv] in the dtype of `query`; with `return_state` a pair (output, (S, z)), the state in float32
      (float64 for float64 inputs).

    Raises:
      ValueError: a shape, dtype or value does not fit, or an argument lacks the one it needs. Segment ids that
        disagree are found where they are concrete.
      NotImplementedError: segment ids together with a state, or with T != S.

    Example:
      >>> rng = jax.random.key(0)
      >>> query, key, value = jax.random.normal(rng, [3, 2, 6, 1, 4])
      >>> whole = linear_attention(query, key, value, causal=True)
      >>> first, state = linear_attention(query[:, :5], key[:, :5], value[:, :5], causal=True, return_state=True)
      >>> last = linear_attention(query[:, 5:], key[:, 5:], value[:, 5:], causal=True, initial_state=state)
      >>> bool(jnp.allclose(last, whole[:, 5:], atol=1e-6))
      True
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    _check(query, key, value, causal, chunk_size, initial_state)
    lead, (T, N), (S, K) = query.shape[:-3], query.shape[-3:-1], key.shape[-3:-1]
    with_state = initial_state is not None or return_state
    documents, real = _packing(query_segment_ids, key_segment_ids, lead, T, S, with_state)
    keep = check_vector("key_mask", key_mask, lead, S, dtype=bool)
    if real is not None:
        keep = real if keep is None else keep & real
    dtype = accumulation_dtype(query.dtype)
    query = quiet_padding(query, keep) if causal else query
    # A query that is not finite spoils its own row alone; its zero cotangent must not reach the keys as 0 * NaN.
    broken = ~jnp.isfinite(query).all(-1, keepdims=True)
    query = jnp.where(broken, jnp.zeros_like(query), query)
    queries = _features("query", feature_map, query.astype(dtype), real)
    keys = _features("key", feature_map, key.astype(dtype), keep)
    # The normaliser is one more column of the values, equal to 1: sum phi(k) 1.
    values = _keep(jnp.pad(value.astype(dtype), [(0, 0)] * (value.ndim - 1) + [(0, 1)], constant_values=1), keep)

    queries = jnp.moveaxis(queries.reshape(*lead, T, K, N // K, -1), -4, -2)
    keys, values = keys.swapaxes(-2, -3), values.swapaxes(-2, -3)
    state = _join_state(initial_state, queries, values)  # [..., K, N/K, features, Hv + 1]
    if causal:
        total, state = _prefix_sums(queries, keys, values, state, documents, chunk_size)
    elif documents is None:
        state = jnp.broadcast_to(jnp.einsum("...jf,...jv->...fv", keys, values)[..., None, :, :], state.shape)
        total = jnp.einsum("...gif,...gfv->...giv", queries, state)
    else:
        total = _two_sided_sums(queries, keys, values, state, documents, chunk_size)

    out = jnp.moveaxis(total, -2, -4).reshape(*lead, T, N, -1)  # [..., T, N, Hv + 1]
    seen = out[..., -1:] != 0
    out = _quotient(out[..., :-1], out[..., -1:]) if normalize else out[..., :-1]
    out = jnp.where(broken & seen, jnp.nan, out).astype(query.dtype)
    if not return_state:
        return out
    state = state.reshape(*lead, N, *state.shape[-2:])
    return out, (state[..., :-1], state[..., -1])


@functools.partial(jax.jit, static_argnames=("chunk_size", "strict"))  # or eager calls would compile the scan each time
def _prefix_sums(query, key, value, state, documents, chunk_size, *, strict=False):
    """phi(q_i) . (state + sum of phi(k_j) value_j^T over j <= i in the document of i), and the state at the end.

    Args:
      query: [..., K, G, T, F] features.
      key: [..., K, T, F] features, zero where hidden.
      value: [..., K, T, V].
      state: [..., K, G, F, V], belongs to the first document.
      documents: int [..., T], constant on each document; None = one document.
      chunk_size: tokens per chunk, at most.
      strict: j < i instead of j <= i.
    """
    length = query.shape[-2]
    count = -(-length // chunk_size)
    size = -(-length // count)
    earlier = jnp.tri(size, k=-1 if strict else 0, dtype=bool)
    if documents is None:
        documents = jnp.zeros(length, jnp.int32)

    def split(x, axis, **pad):
        """Cuts `axis` into chunks and brings their number to the front, as `lax.scan` wants it."""
        axis %= x.ndim
        padding = [(0, count * size - length if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, padding, **pad)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    # Without the checkpoint the gradient would keep the scores of every chunk; with it only the states between them.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry, chunk):
        state, live = carry
        query, key, value, document = chunk
        last = document[..., -1:]
        same = earlier & (document[..., :, None] == document[..., None, :])
        scores = jnp.einsum("...gif,...jf->...gij", query, key)
        scores = jnp.where(same[..., None, None, :, :], scores, 0)
        recent = jnp.einsum("...gij,...jv->...giv", scores, value)
        carried = jnp.einsum("...gif,...gfv->...giv", query, state)
        total = recent + jnp.where((document == live)[..., None, None, :, None], carried, 0)
        key = jnp.where((document == last)[..., None, :, None], key, 0)
        added = jnp.einsum("...jf,...jv->...fv", key, value)[..., None, :, :]
        state = jnp.where((last == live)[..., None, None, None], state, 0) + added
        return (state, last), total

    chunks = (split(query, -2), split(key, -2), split(value, -2), split(documents, -1, mode="edge"))
    (state, _), total = lax.scan(step, (state, documents[..., :1]), chunks)
    total = jnp.moveaxis(total, 0, -3)
    return total.reshape(*total.shape[:-3], -1, total.shape[-1])[..., :length, :], state


def _two_sided_sums(query, key, value, state, documents, chunk_size):
    """As `_prefix_sums`, over all keys of the document: those up to i from the left, those after i from the right."""
    left, _ = _prefix_sums(query, key, value, state, documents, chunk_size)
    query, key, value = (jnp.flip(x, -2) for x in (query, key, value))
    right, _ = _prefix_sums(query, key, value, state, jnp.flip(documents, -1), chunk_size, strict=True)
    return left + jnp.flip(right, -2)


def _quotient(numerator, denominator):
    """Zero, with zero gradients, where the denominator is zero."""
    empty = denominator == 0
    return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))


def _features(name, feature_map, x, keep):
    """Features of the kept rows. Others are zeroed before the map, so that NaN stays out of its gradient, and after."""
    features = feature_map(_keep(x, keep))
    if features.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"feature_map: wanted features {[*x.shape[:-1], '...']} of the {name} {list(x.shape)}, "
            f"got {list(features.shape)}; map the last axis only"
        )
    return _keep(features.astype(x.dtype), keep)


def _keep(x, keep):
    return x if keep is None else jnp.where(keep[..., None, None], x, 0)


def _join_state(initial_state, query, value):
    """The state as one array [..., K, G, F, Hv + 1], its last column the sum of the features."""
    shape = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    if initial_state is None:
        return jnp.zeros(shape, query.dtype)
    sums, normalizer = (jnp.asarray(x) for x in initial_state)
    heads = (*shape[:-4], shape[-4] * shape[-3], shape[-2])
    if sums.shape != (*heads, shape[-1] - 1) or normalizer.shape != heads:
        raise ValueError(
            f"initial_state: wanted [..., N, features, Hv] = {[*heads, shape[-1] - 1]} and [..., N, features] = "
            f"{list(heads)}, got {list(sums.shape)} and {list(normalizer.shape)}"
        )
    return jnp.concatenate([sums, normalizer[..., None]], axis=-1).astype(query.dtype).reshape(shape)


def _packing(query_ids, key_ids, lead, T, S, with_state):
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
    traced = any(isinstance(ids, jax.core.Tracer) for ids in (query_ids, key_ids))
    if not traced and query_ids is not key_ids and (segments.query_ids != segments.key_ids).any():
        raise ValueError("key_segment_ids: wanted the same ids as query_segment_ids; hide single keys by key_mask")
    query_ids, key_ids = jnp.broadcast_arrays(segments.query_ids, segments.key_ids)
    real = (query_ids == key_ids) & (key_ids >= 0)
    latest = lax.cummax(jnp.where(real, jnp.arange(T), 0), axis=real.ndim - 1)  # the last real token up to here
    ids = jnp.take_along_axis(key_ids, latest, axis=-1)
    changes = jnp.diff(ids, prepend=ids[..., :1], axis=-1) != 0
    return jnp.cumsum(changes, axis=-1), real


def _check(query, key, value, causal, chunk_size, initial_state):
    check_arrays(query, key, value)
    T, S = query.shape[-3], key.shape[-3]
    if causal and T != S:
        raise ValueError(
            f"causal: wanted one key per query, got T = {T} and S = {S}; earlier tokens enter as initial_state"
        )
    if not causal and initial_state is not None:
        raise ValueError("initial_state: needs causal=True; without it every key is given at once")
    if type(chunk_size) is not int or chunk_size < 1:
        raise ValueError(f"chunk_size: wanted an int >= 1, got {chunk_size!r}")
