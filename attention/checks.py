"""Argument checks that every attention function shares: each error names the argument, what was wanted and got."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .masks import Dense, Keys, Mask, Segments
from .tile import unwrap


def accumulation_dtype(dtype):
    """Scores, normalisers and states are float32, float64 for float64. (jnp.promote_types would obey strict mode.)"""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def check_arrays(query, key, value):
    """Raises ValueError unless query, key and value fit each other as `[..., T, N, H]`, `[..., S, K, H(v)]`."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 3:
            raise ValueError(f"{name}: wanted [..., length, heads, width], got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: wanted a float dtype, got {x.dtype}")
        if x.dtype != query.dtype:
            raise ValueError(f"{name}: wanted query's dtype {query.dtype}, got {x.dtype}")
        if x.shape[:-3] != query.shape[:-3]:
            raise ValueError(f"{name}: wanted query's batch dimensions {query.shape[:-3]}, got {x.shape[:-3]}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key: wanted query's head width {query.shape[-1]}, got {key.shape[-1]}")
    if value.shape[-3:-1] != key.shape[-3:-1]:
        raise ValueError(f"value: wanted key's [S, K] = {key.shape[-3:-1]}, got {value.shape[-3:-1]}")
    if query.shape[-3] == 0 or key.shape[-3] == 0:
        raise ValueError(f"query, key: wanted lengths of at least 1, got T = {query.shape[-3]}, S = {key.shape[-3]}")
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(f"key: wanted a number of heads that divides query's {query.shape[-2]}, got {key.shape[-2]}")


def check_self_attention(query, key, value):
    """`check_arrays`, and as many keys as queries."""
    check_arrays(query, key, value)
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(f"key: wanted query's length {query.shape[-3]} (self-attention), got {key.shape[-3]}")


def check_int(name, value, least):
    """Raises ValueError unless `value` is a Python or NumPy int of at least `least`; a bool counts nothing."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: wanted an int >= {least}, got {value!r}")


def check_vector(name, x, lead, length, dtype=int):
    """`x` as an int32 or bool array `[..., length]` (`[...]` for length None), of full rank."""
    if x is None:
        return None
    x = jnp.asarray(x)
    if x.dtype != bool if dtype is bool else not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name}: wanted {'bools' if dtype is bool else 'integers'}, got dtype {x.dtype}")
    wanted = lead if length is None else (*lead, length)
    if length is not None and (x.ndim == 0 or x.shape[-1] != length):
        raise ValueError(f"{name}: wanted shape {wanted}, got {x.shape}")
    check_broadcast(name, x.shape, wanted)
    x = x.reshape((1,) * (len(wanted) - x.ndim) + x.shape)
    return x if x.dtype == bool else x.astype(jnp.int32)


def check_segments(query_segment_ids, key_segment_ids, lead, T, S) -> Segments | None:
    """Both kinds of ids as a mask, or None if neither is given."""
    if query_segment_ids is None and key_segment_ids is None:
        return None
    if query_segment_ids is None or key_segment_ids is None:
        missing = "query_segment_ids" if query_segment_ids is None else "key_segment_ids"
        raise ValueError(
            f"{missing}: wanted together with its partner, got None (pass the same array for self-attention)"
        )
    return Segments(
        check_vector("query_segment_ids", query_segment_ids, lead, T),
        check_vector("key_segment_ids", key_segment_ids, lead, S),
    )


def check_same_segments(query_segment_ids, key_segment_ids):
    """Raises ValueError where both are known and differ: for functions in which a token has one document."""
    traced = any(isinstance(ids, jax.core.Tracer) for ids in (query_segment_ids, key_segment_ids))
    same = query_segment_ids is key_segment_ids
    if not traced and not same and np.any(np.asarray(query_segment_ids) != np.asarray(key_segment_ids)):
        raise ValueError("key_segment_ids: wanted the same ids as query_segment_ids; hide single keys by key_mask")


def check_mask(mask, lead, N, T, S) -> Mask:
    """`mask` as a `Mask` whose arrays all fit the batch, the heads and the lengths."""
    if not isinstance(mask, Mask) and not hasattr(mask, "dtype"):
        raise ValueError(f"mask: wanted a bool array or a Mask, got {type(mask).__name__}")
    mask = mask if isinstance(mask, Mask) else Dense(mask)

    for part in mask.parts():
        if isinstance(part, Dense):
            check_broadcast("mask", part.array.shape, (*lead, N, T, S))
        elif isinstance(part, Keys):
            check_vector("Keys.key_mask", part.key_mask, lead, S, dtype=bool)
        elif isinstance(part, Segments):
            check_vector("Segments.query_ids", part.query_ids, lead, T)
            check_vector("Segments.key_ids", part.key_ids, lead, S)
        for field, rank in part.ranks.items():
            shape = np.shape(unwrap(getattr(part, field)))
            check_broadcast(f"{type(part).__name__}.{field}", shape, (*lead, *shape[len(shape) - rank :]))
    if mask.num_heads not in (None, N):
        raise ValueError(f"mask: wanted a pattern for N = {N} query heads, got one for {mask.num_heads}")
    return mask


def check_broadcast(name, shape, wanted):
    """Raises ValueError unless `shape` broadcasts to exactly `wanted`."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    if len(shape) > len(wanted) or any(a not in (1, b) for a, b in pairs):
        raise ValueError(f"{name}: wanted a shape that broadcasts to {tuple(wanted)}, got {tuple(shape)}")


def check_dropout(dropout_rate, rng, name="rng"):
    """Raises ValueError unless the rate is in [0, 1) and comes with a typed key, called `name`, if it is not 0."""
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate: wanted a number in [0, 1), got {dropout_rate}")
    if dropout_rate and rng is None:
        raise ValueError(f"{name}: wanted a jax.random.key with dropout_rate > 0, got None")
    if rng is not None:
        check_rng(rng, name)


def check_rng(rng, name="rng"):
    """Raises ValueError unless `rng`, the argument `name`, is one typed random key."""
    if not jnp.issubdtype(getattr(rng, "dtype", None), jax.dtypes.prng_key):
        raise ValueError(
            f"{name}: wanted a typed key from jax.random.key, got {getattr(rng, 'dtype', type(rng).__name__)}"
        )
    if rng.shape:
        raise ValueError(f"{name}: wanted one key, got an array of them, shape {rng.shape} (vmap over it, or split it)")


def refuse_bias_array(bias, what):
    """Raises NotImplementedError for a bias array, which cannot follow keys into the parts of a sparse form."""
    parts = bias if isinstance(bias, (list, tuple)) else [bias]
    if any(hasattr(part, "shape") for part in parts):
        raise NotImplementedError(f"bias: {what} takes Bias objects or functions of positions, got an array")


def split_rng(rng, parts):
    """One key for each part, or None for each if there is none."""
    return [None] * parts if rng is None else list(jax.random.split(rng, parts))


def quiet_padding(query, key_mask):
    """Zeroes queries of masked tokens where they are not finite.

    In self-attention the row of a masked token is unspecified and its cotangent zero, but a NaN in it would still reach
    the gradient of every key, as 0 * NaN.
    """
    if key_mask is None:
        return query
    blank = ~key_mask[..., None, None] & ~jnp.isfinite(query)
    return jnp.where(blank, jnp.zeros_like(query), query)
