"""Linear attention that forgets: at a fixed rate per head (RetNet), or as each token says (gated linear attention)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .recurrence import Tokens, halvable_chunks, prefix_sums, scan_chunks
from .tile import plain_promotion


@plain_promotion
def retention(
    query,
    key,
    value,
    *,
    decay=None,
    key_mask=None,
    scale=None,
    chunk_size=64,
    initial_state=None,
    return_state=False,
    query_segment_ids=None,
    key_segment_ids=None,
):
    """Causal linear attention in which the past fades at a fixed rate per head.

        out_i = scale q_i . S_i        S_i = gamma S_{i-1} + k_i v_i^T        so that out = (scale Q K^T * D) V
        D_ij = gamma^(i - j) for j <= i, else 0

    Sun et al. 2023, "Retentive Network", arXiv:2307.08621, eqs. 5-8; the paper's gamma is our `decay`. What surrounds
    it there belongs to the layer: the rotation of queries and keys (`apply_rotary`), the norm of each head's output,
    the gate. There is no denominator: rows grow with the number of tokens they remember, which that norm absorbs. Of
    the paper's three forms, parallel, recurrent and in chunks, which are equal, this is the last; one chunk is the
    first, chunks of one token are the second.

    Time O(T N (C (H + Hv) + H Hv)) with C = `chunk_size`, memory O(T N (H + Hv)), and for the gradient one state per
    chunk, O(T N H Hv / C). Fewer key heads than query heads are repeated, for each query head has its own decay.

    Args:
      query: [..., T, N, H].
      key: [..., T, K, H], N % K == 0: each key head serves N / K query heads.
      value: [..., T, K, Hv].
      decay: [N], gamma of each head, in (0, 1]; None = 1 - 2^(-5 - h) for h = 0 .. N - 1 (eq. 8).
      key_mask: bool [..., T], True = real token. Other tokens add nothing and may be NaN. Their positions still count:
        the past fades over them as over any other.
      scale: None = H ** -0.5.
      chunk_size: C, the most tokens per chunk; within a chunk all pairs are compared.
      initial_state: S [..., N, H, Hv] of the tokens before the first, as `return_state` gives it.
      return_state: also return the state after the last token.
      query_segment_ids: int [..., T], the document of each token, negative = padding. The state starts anew with each
        document, an unbroken run of equal ids; padding gives 0.
      key_segment_ids: int [..., T], equal to `query_segment_ids`.

    Returns:
      [..., T, N, Hv] in the dtype of `query`; with `return_state` a pair (output, S), the state in float32 (float64 for
      float64 inputs).

    Raises:
      ValueError: a shape, dtype or value does not fit.
      NotImplementedError: segment ids together with a state.

    Example:
      >>> query, key, value = jax.random.normal(jax.random.key(0), [3, 2, 6, 1, 4])
      >>> whole = retention(query, key, value)
      >>> first, state = retention(query[:, :5], key[:, :5], value[:, :5], return_state=True)
      >>> last = retention(query[:, 5:], key[:, 5:], value[:, 5:], initial_state=state)
      >>> bool(jnp.allclose(last, whole[:, 5:], atol=1e-6))
      True
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    packing = query_segment_ids, key_segment_ids
    tokens = Tokens.of(query, key, value, scale, chunk_size, key_mask, *packing, initial_state, return_state)
    T, N = query.shape[-3:-1]
    log_decay = jnp.log(jnp.asarray(_decay(decay, N), tokens.key.dtype))
    log_decay = jnp.broadcast_to(log_decay[:, None], (N, T))
    tokens = tokens.one_query_head_each()
    arrays = tokens.query, tokens.key, tokens.value, tokens.state, tokens.documents
    return tokens.result(*prefix_sums(*arrays, chunk_size, log_decay=log_decay), query.dtype, return_state)


@plain_promotion
def gated_linear_attention(
    query,
    key,
    value,
    log_decay,
    *,
    key_mask=None,
    scale=None,
    chunk_size=64,
    initial_state=None,
    return_state=False,
    query_segment_ids=None,
    key_segment_ids=None,
):
    """Causal linear attention in which each token says how much of the past to keep, feature by feature.

        out_i = scale q_i . S_i        S_i = diag(exp(g_i)) S_{i-1} + k_i v_i^T

    Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv:2312.06635, eq. 3
    and section 4; the paper's alpha_i is exp(g_i), g our `log_decay`. With one number per head, [..., T, K], it is the
    recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060) and runs faster. The projection that makes g
    (the paper: logsigmoid / 16), the norm of the output and its gate belong to the layer.

    Pairs of tokens inside a chunk weigh exp(sum of g over j < t <= i). The paper divides by exp(sum of g) of the key,
    which overflows for strong decays, and splits chunks once more to avoid it. Here a chunk is halved again and again:
    queries of the right half fade from the middle to themselves, keys of the left half from themselves to the middle,
    and one product joins them. Every exponent is a sum of what lies between, hence at most 0: any decay is safe, -inf
    (forget all) included, and nothing cancels.

    Time O(T N (C (H + Hv) + H Hv + H log C)) with C = `chunk_size`, memory O(T N (H + Hv)) beside one chunk, and for
    the gradient one state per chunk, O(T N H Hv / C).

    Args:
      query: [..., T, N, H].
      key: [..., T, K, H], N % K == 0: each key head serves N / K query heads.
      value: [..., T, K, Hv].
      log_decay: [..., T, K, H] per feature or [..., T, K] per head, at most 0, float; sizes of 1 are broadcast.
      key_mask: bool [..., T], True = real token. Other tokens leave the state as it is: they add nothing, their decay
        has no influence, and all they hold may be NaN. Their own rows are 0.
      scale: None = H ** -0.5.
      chunk_size: C, the most tokens per chunk. Per feature, the largest power of two in it is taken.
      initial_state: S [..., N, H, Hv] of the tokens before the first, as `return_state` gives it.
      return_state: also return the state after the last token.
      query_segment_ids: int [..., T], the document of each token, negative = padding. The state starts anew with each
        document, an unbroken run of equal ids; padding gives 0.
      key_segment_ids: int [..., T], equal to `query_segment_ids`.

    Returns:
      [..., T, N, Hv] in the dtype of `query`; with `return_state` a pair (output, S), the state in float32 (float64 for
      float64 inputs).

    Raises:
      ValueError: a shape, dtype or value does not fit.
      NotImplementedError: segment ids together with a state.

    Example:
      >>> query, key, value = jax.random.normal(jax.random.key(0), [3, 6, 1, 4])
      >>> forget = jnp.zeros([6, 1, 4]).at[3].set(-jnp.inf)  # the fourth token wipes the slate
      >>> whole = gated_linear_attention(query, key, value, forget)
      >>> fresh = gated_linear_attention(query[3:], key[3:], value[3:], forget[3:])
      >>> bool(jnp.allclose(whole[3:], fresh, atol=1e-6))
      True
    """
    query, key, value, log_decay = (jnp.asarray(x) for x in (query, key, value, log_decay))
    packing = query_segment_ids, key_segment_ids
    tokens = Tokens.of(query, key, value, scale, chunk_size, key_mask, *packing, initial_state, return_state)
    arrays = tokens.query, tokens.key, tokens.value, tokens.state, tokens.documents
    if log_decay.ndim == query.ndim:
        log_decay = tokens.gate("log_decay", log_decay, key.shape[-1:])
        sums = _feature_decay_sums(*arrays, log_decay, chunk_size)
    else:
        sums = prefix_sums(*arrays, chunk_size, log_decay=tokens.gate("log_decay", log_decay))
    return tokens.result(*sums, query.dtype, return_state)


def _decay(decay, N):
    """The decays [N], checked as far as they are known."""
    decay = 1 - 2.0 ** -(5 + np.arange(N)) if decay is None else decay
    known = not isinstance(decay, jax.core.Tracer)
    decay = np.asarray(decay) if known else decay
    if decay.shape != (N,) or not jnp.issubdtype(decay.dtype, jnp.floating):
        raise ValueError(f"decay: wanted one float per query head, [{N}], got {decay.dtype} {list(decay.shape)}")
    if known and not ((decay > 0) & (decay <= 1)).all():
        raise ValueError(f"decay: wanted gamma in (0, 1], got {decay}; logarithms go to gated_linear_attention")
    return decay


@functools.partial(jax.jit, static_argnames="chunk_size")  # or eager calls would compile the scan each time
def _feature_decay_sums(query, key, value, state, documents, log_decay, chunk_size):
    """`recurrence.prefix_sums` with a decay per feature, `log_decay [..., K, T, F]`."""
    if documents is not None:  # a new document forgets everything
        first = jnp.diff(documents, prepend=documents[..., :1], axis=-1) != 0
        log_decay = jnp.where(first[..., None, :, None], -jnp.inf, log_decay)

    def step(state, chunk):
        query, key, value, log_decay = chunk
        scores, since_start, until_end = _decayed_scores(query, key, log_decay)
        carried = jnp.einsum("...gif,...gfv->...giv", query * jnp.exp(since_start)[..., None, :, :], state)
        total = carried + jnp.einsum("...gij,...jv->...giv", scores, value)
        added = jnp.einsum("...jf,...jv->...fv", key * jnp.exp(until_end), value)
        return state * jnp.exp(since_start[..., None, -1, :, None]) + added[..., None, :, :], total

    size = halvable_chunks(query.shape[-2], chunk_size)
    state, total = scan_chunks(step, state, [(x, -2) for x in (query, key, value, log_decay)], size)
    return total, state


def _decayed_scores(query, key, log_decay):
    """sum_f q_if k_jf exp(sum of log_decay_tf over j < t <= i), 0 for j > i, by joining blocks to twice their length.

    Returns the scores [..., K, G, C, C], the sums of log_decay from the first token to i, and from after j to the last,
    both [..., K, C, F].
    """
    blocks = (*log_decay.shape[:-1], 1, log_decay.shape[-1])  # [..., K, blocks, tokens, F]
    since_start, until_end = log_decay.reshape(blocks), jnp.zeros(blocks, log_decay.dtype)
    scores = jnp.einsum("...gif,...if->...gi", query, key)[..., None, None]  # [..., K, G, blocks, tokens, tokens]
    while since_start.shape[-3] > 1:
        size = since_start.shape[-2]
        from_middle, to_middle = since_start[..., 1::2, :, :], until_end[..., ::2, :, :]
        right = query.reshape(*query.shape[:-2], -1, 2, size, query.shape[-1])[..., 1, :, :]
        left = key.reshape(*key.shape[:-2], -1, 2, size, key.shape[-1])[..., 0, :, :]
        right, left = right * jnp.exp(from_middle)[..., None, :, :, :], left * jnp.exp(to_middle)
        joint = jnp.einsum("...gbif,...bjf->...gbij", right, left)
        first, second = scores[..., ::2, :, :], scores[..., 1::2, :, :]
        scores = _rows(_columns(first, jnp.zeros_like(joint)), _columns(joint, second))
        whole_left, whole_right = since_start[..., ::2, -1:, :], since_start[..., 1::2, -1:, :]
        since_start = _rows(since_start[..., ::2, :, :], from_middle + whole_left)
        until_end = _rows(to_middle + whole_right, until_end[..., 1::2, :, :])
    return scores[..., 0, :, :], since_start[..., 0, :, :], until_end[..., 0, :, :]


def _rows(*parts):
    return jnp.concatenate(parts, axis=-2)


def _columns(*parts):
    return jnp.concatenate(parts, axis=-1)
