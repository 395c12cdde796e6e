"""Dropout on attention weights by hashing coordinates, so that every implementation drops the same pairs."""

import jax
import jax.numpy as jnp

from .tile import Tile


def seeds(rng):
    """Two words that fix all the draws of one call."""
    return jax.random.bits(rng, (2,), jnp.uint32)


def drop(weight, words, rate: float, tile: Tile, num_heads: int):
    """Zeroes weights `[..., heads, rows, columns]` of a tile at `rate`; the others grow by 1 / (1 - rate)."""
    return jnp.where(keep(words, rate, tile, num_heads), weight / (1 - rate), 0)


def keep(words, rate: float, tile: Tile, num_heads: int):
    """True with probability 1 - rate, a function of (words, batch, head, query index, key index) alone.

    A pair's number does not depend on how the score matrix is cut into tiles. The mixing steps are the finaliser of
    MurmurHash3 (Appleby, public domain), applied once a coordinate.
    """
    with jax.numpy_dtype_promotion("standard"):
        plane = jnp.asarray(tile.batch * num_heads + tile.head_index).astype(jnp.uint32)
        row = _mix(_mix(plane ^ words[0]) + tile.query_index.astype(jnp.uint32)[:, None])
        pair = _mix(_mix(row ^ words[1]) + tile.key_index.astype(jnp.uint32))
    return pair >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
