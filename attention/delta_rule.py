"""The delta rule: linear attention whose state is corrected by each token instead of only added to."""

import functools

import jax
import jax.numpy as jnp

from .recurrence import Tokens, decays, halvable_chunks, scan_chunks
from .tile import plain_promotion


@plain_promotion
def delta_rule_attention(
    query,
    key,
    value,
    beta,
    *,
    log_decay=None,
    key_mask=None,
    scale=None,
    chunk_size=64,
    initial_state=None,
    return_state=False,
    query_segment_ids=None,
    key_segment_ids=None,
):
    """Causal linear attention over an associative memory: a token replaces what its key recalls by its value.

        out_i = scale q_i . S_i        S_i = A_i + beta_i k_i (v_i - A_i^T k_i)^T        A_i = exp(g_i) S_{i-1}

    Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv:2102.11174,
    section 4.2 (g = 0);
    Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length" (DeltaNet),
    arXiv:2406.06484; with g = `log_decay` Gated DeltaNet, Yang et al. 2024, arXiv:2412.06464, eq. 10. The papers' W or
    S^T is our S, the decay alpha_i our exp(g_i).

    Inside a chunk of C = `chunk_size` tokens all corrections u_i = beta_i (v_i - A_i^T k_i), which depend on each other
    in order, solve one triangular system (the WY form, arXiv:2406.06484, section 3):

        u_i + beta_i sum_{j<i} D_ij (k_i . k_j) u_j = beta_i (v_i - D_i0 S_0^T k_i)    D_ij = exp(sum g, j < t <= i)

    The function takes keys as they are. Along k_i the old state is multiplied by exp(g_i) (1 - beta_i |k_i|^2): beyond
    beta |k|^2 = 2 the recurrence grows without bound, between 1 and 2 it overshoots. The layer normalises queries and
    keys to |k| = 1 (after a SiLU, in the papers) and takes beta from a sigmoid; twice a sigmoid allows negative
    eigenvalues.

    Time O(T N (C (H + Hv) + H Hv)), memory O(T N (H + Hv)) beside the C x C systems of one chunk; for the gradient one
    state per chunk, O(T N H Hv / C).

    Args:
      query: [..., T, N, H].
      key: [..., T, K, H], N % K == 0: each key head serves N / K query heads.
      value: [..., T, K, Hv].
      beta: [..., T, K], the strength of each correction: 0 = none, 1 = with |k| = 1 the key recalls exactly the value;
        float; sizes of 1 are broadcast.
      log_decay: [..., T, K], at most 0, -inf = forget all; None = keep all.
      key_mask: bool [..., T], True = real token. Other tokens leave the state as it is, and all they hold may be NaN.
        Their own rows are 0.
      scale: None = H ** -0.5.
      chunk_size: C, the most tokens per chunk; the largest power of two in it is taken.
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
      The second token has the key of the first: its value takes the place of the other.

      >>> key = jnp.ones([2, 1, 1])
      >>> value = jnp.array([3.0, 5.0]).reshape(2, 1, 1)
      >>> delta_rule_attention(key, key, value, jnp.ones([2, 1])).ravel()
      Array([3., 5.], dtype=float32)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    packing = query_segment_ids, key_segment_ids
    tokens = Tokens.of(query, key, value, scale, chunk_size, key_mask, *packing, initial_state, return_state)
    beta = tokens.gate("beta", beta)
    log_decay = None if log_decay is None else tokens.gate("log_decay", log_decay)
    arrays = tokens.query, tokens.key, tokens.value, tokens.state, tokens.documents
    return tokens.result(*_delta_sums(*arrays, beta, log_decay, chunk_size), query.dtype, return_state)


@functools.partial(jax.jit, static_argnames="chunk_size")  # or eager calls would compile the scan each time
def _delta_sums(query, key, value, state, documents, beta, log_decay, chunk_size):
    """query_i . S_i and the last S, in the shapes of `recurrence.prefix_sums`; beta, log_decay [..., K, T]."""
    if documents is None:
        documents = jnp.zeros(query.shape[-2], jnp.int32)

    def step(carry, chunk):
        state, live = carry
        query, key, value, document, beta, log_decay = chunk
        pairs, begin = _weights(document, live, log_decay)
        corrected, recalled = _solve(key, value, beta, pairs, begin)
        update = corrected[..., None, :, :] - jnp.einsum("...if,...gfv->...giv", recalled, state)
        scores = jnp.einsum("...gif,...jf->...gij", query, key) * pairs[..., None, :, :]
        carried = jnp.einsum("...gif,...gfv->...giv", query, state) * begin[..., None, :, None]
        total = carried + jnp.einsum("...gij,...gjv->...giv", scores, update)
        added = jnp.einsum("...jf,...gjv->...gfv", key * pairs[..., -1, :, None], update)
        return (state * begin[..., None, -1:, None] + added, document[..., -1:]), total

    chunks = ((query, -2), (key, -2), (value, -2), (documents, -1), (beta, -1), (log_decay, -1))
    size = halvable_chunks(query.shape[-2], chunk_size)
    (state, _), total = scan_chunks(step, (state, documents[..., :1]), chunks, size)
    return total, state


def _weights(document, live, log_decay):
    """D_ij [..., K, i, j], 0 unless j <= i in one document, and D_i0 [..., K, i], 0 outside the state's document."""
    same = document[..., :, None] == document[..., None, :]
    same = (same & jnp.tri(document.shape[-1], dtype=bool))[..., None, :, :]
    live = (document == live)[..., None, :]
    pairs, begin = (1.0, 1.0) if log_decay is None else decays(log_decay)
    return jnp.where(same, pairs, 0), jnp.where(live, begin, 0)


def _solve(key, value, beta, pairs, begin):
    """The corrections u of a chunk as u = corrected - recalled . S_0, [..., K, C, Hv] and [..., K, C, H]."""
    beta = beta[..., None]
    system = jnp.einsum("...if,...jf->...ij", beta * key, key) * pairs
    right = jnp.concatenate([beta * value, beta * key * begin[..., None]], axis=-1)
    solved = jnp.einsum("...ij,...jv->...iv", _unit_lower_inverse(system), right)
    return solved[..., : value.shape[-1]], solved[..., value.shape[-1] :]


@jax.custom_jvp
def _unit_lower_inverse(matrix):
    """The inverse of I + (what is below the diagonal of `matrix [..., C, C]`), C a power of two.

    By joining blocks on the diagonal to twice their size: the inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']].
    All of it products of matrices; `lax.linalg.triangular_solve` goes row by row, far slower on a CPU.
    """
    lead, C = matrix.shape[:-2], matrix.shape[-1]
    inverse = jnp.ones((*lead, C, 1, 1), matrix.dtype)
    while C > inverse.shape[-1]:
        size = 2 * inverse.shape[-1]
        blocks = jnp.diagonal(matrix.reshape(*lead, C // size, size, C // size, size), axis1=-4, axis2=-2)
        below = jnp.moveaxis(blocks, -1, -3)[..., size // 2 :, : size // 2]
        first, second = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        joint = -jnp.einsum("...ij,...jk,...kl->...il", second, below, first)
        upper = jnp.concatenate([first, jnp.zeros_like(joint)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([joint, second], axis=-1)], axis=-2)
    return inverse[..., 0, :, :]


@_unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
    inverse, change = _unit_lower_inverse(*primals), jnp.tril(tangents[0], -1)
    return inverse, -jnp.einsum("...ij,...jk,...kl->...il", inverse, change, inverse)
