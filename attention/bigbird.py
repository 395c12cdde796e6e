"""BigBird: blocks of tokens that see their neighbours, the first and last blocks, and a few random ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .biases import Bias
from .checks import check_dropout, check_self_attention, check_vector, quiet_padding
from .dot_product import dot_product_attention
from .masks import Causal, Global, Mask, RandomBlocks
from .tile import plain_promotion


@plain_promotion
def bigbird_attention(
    query,
    key,
    value,
    *,
    block_size: int = 64,
    num_random_blocks: int = 3,
    rng=None,
    random_blocks=None,
    num_global_blocks: int = 1,
    causal: bool = False,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    bias: Bias | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng=None,
    implementation: str | None = None,
):
    """Block-sparse attention: window of three blocks, global blocks at both ends, random blocks.

        query block b sees key blocks {b - 1, b, b + 1} + {first, last} + random_blocks[n, b - 1];
        first and last query blocks see everything

    Zaheer et al. 2020, "Big Bird", arXiv:2007.14062, section 2 (ITC form). Defaults: block 64 and 3 random blocks as in
    the paper's base models (appendix E.1). `causal` hides later keys in addition; the paper has no causal form, and
    then the last block, as a key, is seen by itself only. Any length works: blocks are cut at T, and where fewer blocks
    are left to draw from, fewer are drawn.

    Time O(T block_size (5 + R)) for R random blocks, memory O(T).

    Args:
      query: `[..., T, N, H]`. This is self-attention: S = T.
      key: `[..., T, K, H]`.
      value: `[..., T, K, Hv]`.
      block_size: tokens a block.
      num_random_blocks: R, ignored if random_blocks is given (its last axis is R).
      rng: a concrete `jax.random.key` the pattern is drawn from, per head; wanted unless random_blocks is given or
        num_random_blocks is 0.
      random_blocks: int `[N, ceil(T / block_size) - 2, R]`, concrete; row r belongs to query block r + 1, -1 = none.
      num_global_blocks: global blocks at each end.
      causal: hide keys after the query.
      key_mask: bool `[..., T]`, True = real token. Rows of masked tokens are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding.
      key_segment_ids: int `[..., T]`.
      bias: float array `[..., N, T, T]`, `Bias`, function or list, as in `dot_product_attention`.
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights.
      dropout_rng: a `jax.random.key`, wanted with dropout.
      implementation: of the exact attention underneath.

    Returns:
      `[..., T, N, Hv]` in query's dtype.

    Raises:
      ValueError: arguments that do not fit, named.
      NotImplementedError: a traced pattern, or blocks listed more than once (the authors' code counts such keys twice).

    >>> x = jnp.ones((1, 32, 2, 4))
    >>> bigbird_attention(x, x, x, block_size=4, num_random_blocks=1, rng=jax.random.key(0)).shape
    (1, 32, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, dropout_rng)
    *lead, T, N, _ = query.shape
    if random_blocks is None and num_random_blocks:
        if rng is None:
            raise ValueError(
                "rng: wanted a jax.random.key to draw random blocks (or random_blocks, or num_random_blocks=0)"
            )
        random_blocks = bigbird_random_blocks(
            rng, N, T, block_size, num_random_blocks, num_global_blocks, causal=causal
        )
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    query = quiet_padding(query, key_mask)
    return dot_product_attention(
        query, key, value, bias,
        mask=bigbird_pattern(random_blocks, N, T, block_size, num_global_blocks, causal=causal),
        key_mask=key_mask, query_segment_ids=query_segment_ids, key_segment_ids=key_segment_ids, scale=scale,
        dropout_rate=dropout_rate, rng=dropout_rng, implementation=implementation,
    )  # fmt: skip


def bigbird_pattern(
    random_blocks, num_heads: int, length: int, block_size: int, num_global_blocks: int = 1, *, causal: bool = False
) -> Mask:
    """BigBird's pattern as a mask; `random_blocks` as in `bigbird_attention`, or None."""
    _check_counts(block_size, num_global_blocks=num_global_blocks)
    n = -(-length // block_size)
    block = np.arange(n)
    window = np.stack([block - 1, block, block + 1], axis=-1)
    window[window == n] = -1
    listed = np.broadcast_to(window, (1, n, 3))
    if random_blocks is not None:
        random_blocks = _check_blocks(random_blocks, num_heads, n, num_global_blocks)
        ends = [(0, 0), (1, 1), (0, 0)] if n >= 2 else [(0, 0), (0, n - random_blocks.shape[1]), (0, 0)]
        drawn = np.pad(random_blocks, ends, constant_values=-1)
        listed = np.concatenate([np.broadcast_to(window, (num_heads, n, 3)), drawn], axis=-1)
    pattern = RandomBlocks(listed, block_size)
    if num_global_blocks:
        size = min(num_global_blocks * block_size, length)
        pattern = pattern | Global(
            np.concatenate([np.arange(size), np.arange(max(n - num_global_blocks, 0) * block_size, length)])
        )
    return pattern & Causal() if causal else pattern


def bigbird_random_blocks(
    rng,
    num_heads: int,
    length: int,
    block_size: int,
    num_random_blocks: int,
    num_global_blocks: int = 1,
    *,
    causal: bool = False,
) -> np.ndarray:
    """Draws the random blocks of each head and query block, uniformly and without repetition.

    Window and global blocks are never drawn; with `causal` neither are later ones. Where fewer blocks are left than
    wanted, the rest is -1. (The authors' released plans draw only from the first blocks of a long input; ours do not.)

    Args:
      rng: a concrete `jax.random.key`.
      num_heads: N.
      length: T.
      block_size: tokens a block.
      num_random_blocks: R.
      num_global_blocks: global blocks at each end.
      causal: draw from earlier blocks only.

    Returns:
      int32 `[N, max(ceil(T / block_size) - 2, 0), R]`.

    Raises:
      ValueError: a size or number that does not fit.
      NotImplementedError: rng is traced; the pattern shapes the compiled program.

    >>> bigbird_random_blocks(jax.random.key(0), 2, 64, 4, 3).shape
    (2, 14, 3)
    """
    _check_counts(block_size, num_random_blocks=num_random_blocks, num_global_blocks=num_global_blocks)
    if isinstance(rng, jax.core.Tracer):
        raise NotImplementedError(
            "rng: the pattern shapes the compiled program, so a traced key cannot draw it; call bigbird_random_blocks "
            "outside jit and pass random_blocks"
        )
    with jax.ensure_compile_time_eval():
        words = np.asarray(jax.random.bits(rng, (4,), jnp.uint32))
    n = -(-length // block_size)
    blocks = np.full((num_heads, max(n - 2, 0), num_random_blocks), -1, np.int32)
    for row in range(blocks.shape[1]):
        b = row + 1
        last = b - 1 if causal else n - num_global_blocks
        allowed = np.setdiff1d(np.arange(num_global_blocks, max(last, num_global_blocks)), [b - 1, b, b + 1])
        count = min(num_random_blocks, len(allowed))
        for head in range(num_heads):
            # A draw of its own for each row and head: neither changes with the number of heads, nor, causal, with T.
            generator = np.random.default_rng([*words, head, row])
            blocks[head, row, :count] = generator.choice(allowed, count, replace=False)
    return blocks


def _check_counts(block_size, **counts):
    for name, x, least in (("block_size", block_size, 1), *((name, x, 0) for name, x in counts.items())):
        if not isinstance(x, (int, np.integer)) or x < least:
            raise ValueError(f"{name}: wanted an int >= {least}, got {x!r}")


def _check_blocks(random_blocks, num_heads, n, num_global_blocks):
    if isinstance(random_blocks, jax.core.Tracer):
        raise NotImplementedError(
            "random_blocks: the pattern shapes the compiled program; wanted a concrete array, got a tracer"
        )
    blocks = np.asarray(random_blocks)
    wanted = (num_heads, max(n - 2, 0))
    if blocks.ndim != 3 or blocks.shape[:2] != wanted or not np.issubdtype(blocks.dtype, np.integer):
        raise ValueError(
            f"random_blocks: wanted ints [N, blocks - 2, R] = {(*wanted, 'R')}, got {blocks.dtype} {blocks.shape}"
        )
    if blocks.size and blocks.max() >= n:
        raise ValueError(f"random_blocks: wanted blocks below {n}, got {blocks.max()}")
    own = np.arange(1, blocks.shape[1] + 1)[None, :, None]
    seen = (abs(blocks - own) <= 1) | (blocks < num_global_blocks) | (blocks >= n - num_global_blocks)
    ordered = np.sort(blocks, axis=-1)
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    if (seen & (blocks >= 0)).any() or repeated.any():
        raise NotImplementedError(
            "random_blocks: a block listed twice, or one that is window or global already, would have to count twice, "
            "as in the authors' code; that is not there yet, list each block once"
        )
    return blocks
