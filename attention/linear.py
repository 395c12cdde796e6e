"""Linear attention: a feature map in place of the softmax, so that the past folds into one matrix."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from .checks import accumulation_dtype, check_arrays, check_int, quiet_padding
from .recurrence import (
    blank_broken,
    check_causal,
    heads_first,
    heads_inside,
    prefix_sums,
    quotient,
    two_sided_sums,
    visible,
    zero_hidden,
)
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


def softmax_features(x):
    """The feature map softmax(x) over the last axis: the queries of Shen et al. 2018, arXiv:1812.01243.

    Args:
      x: an array [..., H].

    Returns:
      An array like `x`.

    Example:
      >>> [round(float(y), 3) for y in softmax_features(jnp.array([-1.0, 0.0, 2.0]))]
      [0.042, 0.114, 0.844]
    """
    x = jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True)))
    return x / x.sum(-1, keepdims=True)


def taylor_features(x):
    """The feature map whose inner products are exp(s) to second order: 1 + s + s^2 / 2 with s = x . y / sqrt(H).

    Arora et al. 2024, "Based", arXiv:2402.18668. The products are at least 1/2, though features may be
    negative. 1 + H + H^2 features: meant for small heads, H = 16 in the paper.

    Args:
      x: an array [..., H].

    Returns:
      An array [..., 1 + H + H^2].

    Example:
      >>> x, y = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
      >>> s = float(x @ y) / 2**0.5
      >>> round(float(taylor_features(x) @ taylor_features(y)), 4) == round(1 + s + s**2 / 2, 4)
      True
    """
    x = x * x.shape[-1] ** -0.25
    squares = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, squares * 0.5**0.5], axis=-1)


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
      feature_map: function of a float32 array [..., length, heads, H] to [..., length, heads, features], or a pair of
        functions, (that of the queries, that of the keys). Inner products of features should be positive, so that the
        normaliser cannot vanish. Any width of features; the state takes it in place of H.
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
    query_map, key_map = _pair(feature_map)
    lead, T, S = query.shape[:-3], query.shape[-3], key.shape[-3]
    with_state = initial_state is not None or return_state
    documents, real, keep = visible(key_mask, query_segment_ids, key_segment_ids, lead, T, S, with_state)
    dtype = accumulation_dtype(query.dtype)
    query, broken = blank_broken(quiet_padding(query, keep) if causal else query)
    queries = _features("query", query_map, query.astype(dtype), real)
    keys = _features("key", key_map, key.astype(dtype), keep)
    out, normalizer, state = _weigh(queries, keys, value, keep, documents, chunk_size, causal, initial_state)
    seen = normalizer != 0
    out = quotient(out, normalizer) if normalize else out
    out = jnp.where(broken & seen, jnp.nan, out).astype(query.dtype)
    if not return_state:
        return out
    state = state.reshape(*lead, query.shape[-2], *state.shape[-2:])
    return out, (state[..., :-1], state[..., -1])


@plain_promotion
def efficient_attention(
    query,
    key,
    value,
    *,
    causal=False,
    key_mask=None,
    scale=None,
    chunk_size=64,
    query_segment_ids=None,
    key_segment_ids=None,
):
    """Attention through H averages over all values, one per feature, which each query mixes anew.

        out_i = scale sum_f softmax_f(q_i)_f c_f        c_f = sum_j softmax_j(k_jf) v_j

    Shen et al. 2018, "Efficient Attention: Attention with Linear Complexities", arXiv:1812.01243, section 3; the
    paper's rho_q and rho_k are the two softmaxes, over the features of a query and over the length of a feature. The
    weights of a row sum to `scale`. The paper has scale 1; the package linear-attention-transformer, which made this
    known, has H^-0.5, our default.

    Time O((T + S) N H Hv), no scores. Packing: as in `linear_attention`, one causal pass from either end.

    Args:
      query: [..., T, N, H].
      key: [..., S, K, H], N % K == 0: each key head serves N / K query heads.
      value: [..., S, K, Hv].
      causal: refused. What is called causal efficient attention normalises rows, not features, so that it is
        `linear_attention(feature_map=(softmax_features, jnp.exp), causal=True)`; keys above 88 overflow there.
      key_mask: bool [..., S], True = real token. Keys and values of other tokens have no influence and may be NaN.
      scale: None = H ** -0.5.
      chunk_size: the most tokens per chunk, with packing.
      query_segment_ids: int [..., T], the document of each token, negative = padding. Needs T == S.
      key_segment_ids: int [..., S], equal to `query_segment_ids`.

    Returns:
      [..., T, N, Hv] in the dtype of `query`.

    Raises:
      ValueError: a shape, dtype or value does not fit, or an argument lacks the one it needs.
      NotImplementedError: `causal`, or segment ids with T != S.

    Example:
      >>> query, key, value = jnp.zeros([3, 7, 2, 4])
      >>> efficient_attention(query, key, value).shape
      (7, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_arrays(query, key, value)
    check_int("chunk_size", chunk_size, 1)
    if causal:
        raise NotImplementedError(
            "causal: each feature is normalised over the whole length; write "
            "linear_attention(feature_map=(softmax_features, jnp.exp), causal=True), which normalises rows"
        )
    lead, T, S = query.shape[:-3], query.shape[-3], key.shape[-3]
    documents, real, keep = visible(key_mask, query_segment_ids, key_segment_ids, lead, T, S, False)
    dtype = accumulation_dtype(query.dtype)
    query, broken = blank_broken(query)
    queries = softmax_features(query.astype(dtype)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    keys = _length_softmax(zero_hidden(key, keep).astype(dtype), keep, documents)
    out, weight, _ = _weigh(zero_hidden(queries, real), keys, value, keep, documents, chunk_size)
    return jnp.where(broken & (weight != 0), jnp.nan, out).astype(query.dtype)


def _pair(feature_map):
    """The map of the queries and that of the keys."""
    maps = (feature_map, feature_map) if callable(feature_map) else feature_map
    if not isinstance(maps, (tuple, list)) or len(maps) != 2 or not all(callable(fn) for fn in maps):
        raise ValueError(f"feature_map: wanted a function or a pair (query map, key map), got {feature_map!r}")
    return maps


def _weigh(queries, keys, value, keep, documents, chunk_size, causal=False, initial_state=None):
    """Sums of weighted values [..., T, N, Hv] and of weights [..., T, N, 1], and the state they end in."""
    # The sum of the weights is one more column of the values, equal to 1.
    values = jnp.pad(value.astype(queries.dtype), [(0, 0)] * (value.ndim - 1) + [(0, 1)], constant_values=1)
    queries, keys, values = heads_first(queries, keys, zero_hidden(values, keep))
    state = _join_state(initial_state, queries, values)  # [..., K, G, features, Hv + 1]
    if causal:
        total, state = prefix_sums(queries, keys, values, state, documents, chunk_size)
    elif documents is None:
        state = jnp.broadcast_to(jnp.einsum("...jf,...jv->...fv", keys, values)[..., None, :, :], state.shape)
        total = jnp.einsum("...gif,...gfv->...giv", queries, state)
    else:
        total = two_sided_sums(queries, keys, values, state, documents, chunk_size)
    total = heads_inside(total)
    return total[..., :-1], total[..., -1:], state


def _features(name, feature_map, x, keep):
    """Features of the kept rows. Others are zeroed before the map, so that NaN stays out of its gradient, and after."""
    features = feature_map(zero_hidden(x, keep))
    if features.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"feature_map: wanted features {[*x.shape[:-1], '...']} of the {name} {list(x.shape)}, "
            f"got {list(features.shape)}; map the last axis only"
        )
    return zero_hidden(features.astype(x.dtype), keep)


def _length_softmax(key, keep, documents):
    """Softmax over the kept tokens of each document, for every head and feature by itself."""
    largest, total = (functools.partial(f, axis=-3, keepdims=True) for f in (jnp.max, jnp.sum))
    if documents is not None:
        by_document = (jax.ops.segment_max, jax.ops.segment_sum)
        largest, total = (functools.partial(_reduce_documents, f, documents) for f in by_document)
    keep = jnp.array(True) if keep is None else keep[..., None, None]
    top = lax.stop_gradient(largest(jnp.where(keep, key, -jnp.inf)))
    weights = jnp.exp(jnp.where(keep, key - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf))
    return quotient(weights, total(weights))


def _reduce_documents(reduce, documents, x):
    """`reduce` over the tokens of each document, `x [..., T, heads, width]`, given back to each of its tokens."""
    *lead, T, _, _ = x.shape
    ids = jnp.broadcast_to(documents, (*lead, T)).reshape(-1, T)
    ids = (ids + T * jnp.arange(ids.shape[0])[:, None]).ravel()
    return reduce(x.reshape(ids.size, -1), ids, num_segments=ids.size)[ids].reshape(x.shape)


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


def _check(query, key, value, causal, chunk_size, initial_state):
    check_arrays(query, key, value)
    check_int("chunk_size", chunk_size, 1)
    if causal:
        check_causal(query, key)
    elif initial_state is not None:
        raise ValueError("initial_state: needs causal=True; without it every key is given at once")
