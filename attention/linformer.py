"""Linformer: the keys are mixed into R learned combinations, and the softmax runs over those."""

from __future__ import annotations

import math

import jax.numpy as jnp

from .checks import accumulation_dtype, check_arrays, check_dropout, check_vector
from .dot_product import dot_product_attention
from .recurrence import blank_broken
from .tile import plain_promotion


@plain_promotion
def linformer_attention(
    query,
    key,
    value,
    key_projection,
    value_projection,
    *,
    key_mask=None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    implementation: str | None = None,
):
    """Softmax attention over R learned mixtures of the keys.

        out = softmax(scale * Q (E^T K)^T) (F^T V)

    Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", arXiv:2006.04768, eq. 7. The paper's n, k, d
    are our S, R, H; its E and F, written [k, n] there, are key_projection and value_projection. Its ways of sharing are
    the caller's: a matrix [S, R] for all heads (headwise), the same one twice (key-value), the same in every layer
    (layerwise), or one a head, [N, S, R].

    Every mixture holds keys from the whole length, so no mask on the R columns can hide the future or another document:
    there is no `causal` and there are no segment ids. For the same reason a hidden key must be zeroed before it is
    mixed, as `key_mask` does. E = F = identity is exact attention; mean pooling (E = F with columns 1 / (S / R) over
    blocks of S / R tokens) tends to it like R ** -2 if keys and values are smooth along the length.

    Time O((S + T) R N H), memory O((S + T) N H + R N H): the T R scores go through `dot_product_attention`.

    Args:
      query: `[..., T, N, H]`.
      key: `[..., S, K, H]`, K divides N.
      value: `[..., S, K, Hv]`.
      key_projection: `[S', R]` for all heads or `[N, S', R]`, one a query head, S' >= S. A shorter input uses the first
        S rows, as the authors do; a longer one has no rows to use.
      value_projection: likewise, with the same R.
      key_mask: bool `[..., S]`, True = real token. Others enter no mixture and may hold anything, NaN included.
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights of the mixtures.
      rng: a `jax.random.key`, wanted with dropout.
      implementation: of the exact attention underneath.

    Returns:
      `[..., T, N, Hv]` in query's dtype; 0 where every key is masked.

    Raises:
      ValueError: shapes, dtypes or values that do not fit, naming the argument.

    >>> x, mix = jnp.ones((1, 12, 2, 4)), jnp.ones((16, 3)) / 16  # trained for 16 tokens, given 12
    >>> linformer_attention(x, x, x, mix, mix).shape
    (1, 12, 2, 4)
    """
    query, key, value, key_projection, value_projection = (
        jnp.asarray(x) for x in (query, key, value, key_projection, value_projection)
    )
    check_arrays(query, key, value)
    check_dropout(dropout_rate, rng)
    lead, S, N = query.shape[:-3], key.shape[-3], query.shape[-2]
    _check_projections(key_projection, value_projection, N, S)
    key_mask = check_vector("key_mask", key_mask, lead, S, dtype=bool)
    query, broken = blank_broken(query)
    seen = True if key_mask is None else key_mask.any(-1)[..., None, None, None]
    keys, values = _mix(key, key_projection, key_mask), _mix(value, value_projection, key_mask)
    if key_projection.ndim != value_projection.ndim:  # mixtures of the K heads for the one, of the N for the other
        keys, values = (jnp.repeat(x, N // x.shape[-2], axis=-2) for x in (keys, values))
    out = dot_product_attention(
        query.astype(keys.dtype), keys, values, scale=scale, dropout_rate=dropout_rate, rng=rng,
        implementation=implementation,
    )  # fmt: skip
    return jnp.where(broken & seen, jnp.nan, out).astype(query.dtype)


def _mix(x, projection, key_mask):
    """The mixtures `[..., R, K or N, width]` of `x [..., S, K, width]`, in float32 at least."""
    *lead, S, K, width = x.shape
    x = x if key_mask is None else jnp.where(key_mask[..., None, None], x, 0)
    x, projection = (y.astype(accumulation_dtype(x.dtype)) for y in (x, projection[..., :S, :]))
    if projection.ndim == 2:
        rows = x.reshape(*lead, S, K * width)
        if math.prod(lead) == 1:  # one plain product, which XLA on CPU runs a third faster than a batch of one
            mixtures = projection.T @ rows.reshape(S, K * width)
        else:
            mixtures = jnp.einsum("sr,...sd->...rd", projection, rows)
        return mixtures.reshape(*lead, projection.shape[-1], K, width)
    N, _, R = projection.shape
    mixtures = jnp.einsum("...skh,kgsr->...rkgh", x, projection.reshape(K, N // K, S, R))
    return mixtures.reshape(*lead, R, N, width)


def _check_projections(key_projection, value_projection, N, S):
    for name, x in (("key_projection", key_projection), ("value_projection", value_projection)):
        if x.ndim not in (2, 3) or x.shape[:-2] not in ((), (N,)) or x.shape[-2] < S or not x.shape[-1]:
            raise ValueError(
                f"{name}: wanted [S', R] or [N, S', R] with N = {N}, S' >= S = {S} and R >= 1, got {x.shape}; it holds "
                "one row a token, so train it for the longest input"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: wanted a float dtype, got {x.dtype}")
    if value_projection.shape[-1] != key_projection.shape[-1]:
        raise ValueError(
            f"value_projection: wanted as many mixtures as key_projection, R = {key_projection.shape[-1]}, got "
            f"{value_projection.shape[-1]}"
        )
