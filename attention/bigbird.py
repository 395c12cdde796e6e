"""BigBird: blocks of tokens that see their neighbours, the first and last blocks, and a few random ones."""

from __future__ import annotations

import contextlib
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from . import schedule
from .biases import Bias, as_biases
from .blockwise import blockwise_attention
from .checks import (
    check_broadcast,
    check_dropout,
    check_int,
    check_rng,
    check_segments,
    check_self_attention,
    check_vector,
    quiet_padding,
)
from .dot_product import blank_hidden, dot_product_attention, is_small, reference_attention
from .masks import Causal, Dense, Full, Global, Keys, Mask, RandomBlocks, Segments
from .tile import plain_promotion

IMPLEMENTATIONS = ("reference", "blockwise", "xla")


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
    num_global_tokens: int = 0,
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

        query block b sees key blocks {b - 1, b, b + 1} + {first, last}, each once, + random_blocks[n, b - 1];
        first and last query blocks see everything

    Zaheer et al. 2020, "Big Bird", arXiv:2007.14062, section 2. Defaults: block 64 and 3 random blocks as in the
    paper's base models (appendix E.1). Global blocks at both ends are the paper's ITC form. For its ETC form prepend g
    tokens to the sequence and give num_global_tokens=g: they see and are seen by all, and blocks are counted on the
    rest.

    A block listed in random_blocks counts as often as it is listed, once more if it is window or global, as in the
    authors' code, which gathers it so often: each time adds its exp(score) to the softmax. Our draw never lists such
    blocks. Inputs of at most 2 g + 2 blocks, for g = num_global_blocks, and without listed blocks are full attention:
    every block is window or global. So are inputs of at most 2 g + 2 + R blocks whose R random blocks a row are drawn,
    for g > 0. They are computed as such.

    `causal` hides later keys in addition; the paper has no causal form, and then the last block, as a key, is seen by
    itself only. Any length works: the last block may be short, and where fewer blocks are left to draw from, fewer are
    drawn.

    Time O(T (block_size (3 + 2 g + R) + num_global_tokens)), memory O(T), forward and backward. Each block is a step of
    a loop, so small blocks (below 32) cost more than they hold.

    Args:
      query: `[..., T, N, H]`. This is self-attention: S = T.
      key: `[..., T, K, H]`.
      value: `[..., T, K, Hv]`.
      block_size: tokens a block.
      num_random_blocks: R, ignored if random_blocks is given (its last axis is R).
      rng: a `jax.random.key` the pattern is drawn from, per head, see `bigbird_random_blocks`; wanted unless
        random_blocks is given or num_random_blocks is 0. It may be traced, as random_blocks may: the schedule is then
        sorted at run time, and a new pattern does not recompile.
      random_blocks: int `[..., N, blocks - 2, R]` with blocks = ceil((T - num_global_tokens) / block_size); row r
        belongs to query block r + 1, -1 = none. With traced ones, a block past the end is none too.
      num_global_blocks: global blocks at each end.
      num_global_tokens: how many of the first tokens are global besides.
      causal: hide keys after the query.
      key_mask: bool `[..., T]`, True = real token. Rows of masked tokens are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding.
      key_segment_ids: int `[..., T]`.
      bias: float array `[..., N, T, T]`, `Bias`, function or list, as in `dot_product_attention`.
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights.
      dropout_rng: a `jax.random.key`, wanted with dropout.
      implementation: "blockwise" visits the listed blocks alone; "reference" or "xla" is one dense softmax, O(T^2);
        None chooses as `dot_product_attention` does.

    Returns:
      `[..., T, N, Hv]` in query's dtype.

    Raises:
      ValueError: arguments that do not fit, named.
      NotImplementedError: an implementation that has no blocks.

    >>> x = jnp.ones((1, 32, 2, 4))
    >>> bigbird_attention(x, x, x, block_size=4, num_random_blocks=1, rng=jax.random.key(0)).shape
    (1, 32, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, dropout_rng, "dropout_rng")
    *lead, T, N, _ = query.shape
    counts = dict(num_random_blocks=num_random_blocks, num_global_blocks=num_global_blocks)
    _check_counts(block_size, **counts, num_global_tokens=num_global_tokens)
    prefix = min(num_global_tokens, T)
    n = schedule.num_blocks(T - prefix, block_size)
    short = n <= 2 * num_global_blocks + 2
    if random_blocks is not None:
        if rng is not None:
            raise ValueError("rng, random_blocks: wanted at most one of the two, got both")
        random_blocks = _check_blocks(random_blocks, lead, N, n)
        short = short and random_blocks is None
    elif num_random_blocks:
        if rng is None:
            raise ValueError(
                "rng: wanted a jax.random.key to draw random blocks (or random_blocks, or num_random_blocks=0)"
            )
        short = short or (num_global_blocks > 0 and n <= 2 * num_global_blocks + 2 + num_random_blocks)
        random_blocks = bigbird_random_blocks(rng, N, T - prefix, block_size, **counts, causal=causal)
        random_blocks = _check_blocks(random_blocks, lead, N, n)
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    query = quiet_padding(query, key_mask)
    segments = check_segments(query_segment_ids, key_segment_ids, lead, T, T)
    if short:
        return dot_product_attention(
            query, key, value, bias, segments, is_causal=causal, key_mask=key_mask, scale=scale,
            dropout_rate=dropout_rate, rng=dropout_rng, implementation=implementation,
        )  # fmt: skip
    if implementation not in (None, *IMPLEMENTATIONS):
        raise NotImplementedError(f"implementation: wanted None or one of {IMPLEMENTATIONS}, got {implementation!r}")
    if implementation is None:
        dense = is_small(math.prod(lead) * N, T * T)
    else:
        dense = implementation != "blockwise"
    settings = dict(
        scale=query.shape[-1] ** -0.5 if scale is None else scale, softcap=None, dropout_rate=float(dropout_rate),
        rng=dropout_rng if dropout_rate else None,
    )  # fmt: skip
    # Whole blocks everywhere: a gap behind the global tokens, from where blocks are counted, and one at the end.
    gaps = -prefix % block_size, -(T - prefix) % block_size
    widen = functools.partial(_widen, prefix=prefix, gaps=gaps)
    pairs = _pairs(random_blocks, schedule.num_blocks(prefix, block_size), n, num_global_blocks, causal=causal)
    if any(gaps) and key_mask is None:
        key_mask = jnp.ones((1,) * len(lead) + (T,), bool)
    hidden = [] if key_mask is None else [Keys(widen(key_mask, axis=-1, fill=False))]
    if segments is not None:
        hidden.append(Segments(*(widen(x, axis=-1, fill=-1) for x in (segments.query_ids, segments.key_ids))))
    arrays = blank_hidden(*(widen(x, axis=-3) for x in (query, key, value)), hidden)
    mask = functools.reduce(operator.and_, hidden, Causal() if causal else Full())
    if hidden:
        pairs = pairs._replace(full=pairs.full & False)  # more than the pattern hides keys: no block may skip the mask
    changes = _changes(bias, (*lead, N, T, T), widen, shifted=gaps[0] > 0)
    attend = _dense if dense or 0 in lead else _blockwise
    out = attend(*arrays, mask, *changes, pairs=pairs, block_size=block_size, **settings)
    start = prefix + gaps[0]
    out = out[..., : T + gaps[0], :, :]
    return jnp.concatenate([out[..., :prefix, :, :], out[..., start:, :, :]], axis=-3) if gaps[0] else out


def _changes(bias, shape, widen, *, shifted):
    """What changes scores: bias array, `Bias` objects, and positions where these are not the plain indices."""
    *lead, N, T, _ = shape
    bias, biases = as_biases(bias, N)
    if bias is not None:
        check_broadcast("bias", bias.shape, shape)
        bias = bias.reshape((1,) * (3 - bias.ndim) + bias.shape)
        bias = widen(widen(bias, axis=-1), axis=-2)
    if not (biases and shifted):
        return bias, biases, (None, None)
    position = widen(jnp.arange(T), axis=-1).reshape((1,) * len(lead) + (-1,))
    return bias, biases, (position, position)


def _blockwise(*arguments, pairs, block_size, **settings):
    """Visits the listed blocks."""
    return blockwise_attention(*arguments, sizes=(block_size, block_size), pairs=pairs, **settings)[0]


def _dense(query, key, value, mask, bias, biases, positions, *, pairs, block_size, **settings):
    """One dense softmax, in which a key that counts m times has log m added to its score."""
    *lead, T, N, _ = query.shape
    n = schedule.num_blocks(T, block_size)
    times = jnp.zeros((pairs.plans, n, n), jnp.int32)
    key_block = jnp.where(pairs.key_block < 0, n, pairs.key_block)  # beyond the end: dropped
    times = times.at[pairs.plan, pairs.query_block, key_block].add(1, mode="drop")
    times = jnp.repeat(jnp.repeat(times, block_size, axis=-1), block_size, axis=-2)[:, :T, :T]
    times = times.reshape(*(lead if pairs.plans > N else ()), -1, T, T)
    biases = *biases, _Multiplicity(times)
    return reference_attention(query, key, value, mask & Dense(times > 0), bias, biases, positions, **settings)[0]


def _widen(x, *, prefix, gaps, axis, fill=0):
    """Inserts two gaps of `fill`, one behind `prefix` and one at the end, unless the axis is one that broadcasts."""
    if not any(gaps) or x.shape[axis] == 1:
        return x
    pads = [[(0, 0)] * x.ndim for _ in gaps]
    for pad, gap in zip(pads, gaps, strict=True):
        pad[axis] = (0, gap)
    parts = jnp.split(x, [prefix], axis=axis)
    return jnp.concatenate([jnp.pad(a, pad, constant_values=fill) for a, pad in zip(parts, pads, strict=True)], axis)


def _pairs(random_blocks, prefix, n, num_global_blocks, *, causal) -> schedule.Pairs:
    """Each (query block, key block) as often as it counts, for `prefix` global blocks and the n blocks behind them."""
    total = prefix + n
    every, rest = np.arange(total), np.arange(prefix, total)
    ends = np.concatenate([every[:prefix], rest[:num_global_blocks], rest[max(n - num_global_blocks, 0) :]])
    rows, columns = (x.ravel() for x in np.meshgrid(ends, every))
    query = np.concatenate([rest, rest[1:], rest[:-1], rows, columns])
    key = np.concatenate([rest, rest[:-1], rest[1:], columns, rows])
    query, key = np.divmod(np.unique(query * total + key), total)  # window and ends overlap: once each
    if causal:
        query, key = query[key <= query], key[key <= query]
    query, key = query[None], key[None]
    if random_blocks is not None:
        xp = np if isinstance(random_blocks, np.ndarray) else jnp
        listed = random_blocks.reshape(-1, *random_blocks.shape[-2:])
        row = np.broadcast_to(np.arange(1, n - 1)[:, None], listed.shape)
        listed = xp.where((listed >= 0) & (listed < n) & ((listed <= row) | (not causal)), listed + prefix, -1)
        query, key = (
            xp.concatenate([xp.broadcast_to(a, (len(listed), a.shape[1])), b.reshape(len(listed), -1)], axis=1)
            for a, b in ((query, row + prefix), (key, listed))
        )
    plan = np.repeat(np.arange(len(query)), query.shape[1])
    query, key = query.ravel(), key.ravel()
    return schedule.Pairs(int(plan[-1]) + 1, plan, query, key, (key < query) | (not causal))


class _Multiplicity(Bias):
    """Counts a key several times in the softmax: log(times) on its score."""

    def __init__(self, times):
        self.times = times

    def apply(self, score, tile):
        return score + jnp.log(jnp.maximum(self.times, 1).astype(score.dtype))


def bigbird_pattern(
    random_blocks, num_heads: int, length: int, block_size: int, num_global_blocks: int = 1, *, causal: bool = False
) -> Mask:
    """BigBird's pattern as a mask; `random_blocks` concrete, as in `bigbird_attention`, or None.

    A mask cannot say that a key counts twice, so blocks listed more than once, or listed and global or window besides,
    raise NotImplementedError.
    """
    _check_counts(block_size, num_global_blocks=num_global_blocks)
    n = schedule.num_blocks(length, block_size)
    if random_blocks is not None:
        random_blocks = _check_blocks(random_blocks, (), num_heads, n)
        if isinstance(random_blocks, jax.core.Tracer):
            raise NotImplementedError("random_blocks: wanted a concrete array, got a tracer; a static mask holds it")
    pairs = _pairs(random_blocks, 0, n, num_global_blocks, causal=False)
    listed = pairs.key_block >= 0
    same = np.unique(np.stack([pairs.plan, pairs.query_block, pairs.key_block])[:, listed], axis=1)
    if same.shape[1] < listed.sum():
        raise NotImplementedError(
            "random_blocks: a block listed twice, or one that is window or global already, counts twice in "
            "bigbird_attention, which a mask cannot say; list each block once"
        )
    block = np.arange(n)
    window = np.stack([block - 1, block, np.where(block + 1 < n, block + 1, -1)], axis=-1)[None]
    if random_blocks is not None:
        drawn = np.pad(random_blocks, [(0, 0), (1, 1), (0, 0)], constant_values=-1)
        window = np.concatenate([np.broadcast_to(window, (num_heads, n, 3)), drawn], axis=-1)
    pattern = RandomBlocks(window, block_size)
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
):
    """Draws the random blocks of each head and query block, uniformly and without repetition.

    Window and global blocks are never drawn; with `causal` neither are later ones; global blocks draw none. Where
    fewer blocks are left than wanted, the rest is -1. (The authors' released plans draw only from the first blocks of
    a long input; ours do not.)
    A row's draw changes neither with the number of heads nor, with `causal`, with T.

    Args:
      rng: a `jax.random.key`. A concrete one gives a NumPy array, inside `jax.jit` too; a traced one gives the same
        numbers, traced.
      num_heads: N.
      length: T, without the global tokens of the ETC form.
      block_size: tokens a block.
      num_random_blocks: R.
      num_global_blocks: global blocks at each end.
      causal: draw from earlier blocks only.

    Returns:
      int32 `[N, max(ceil(T / block_size) - 2, 0), R]`.

    Raises:
      ValueError: a size or number that does not fit.

    >>> bigbird_random_blocks(jax.random.key(0), 2, 64, 4, 3).shape
    (2, 14, 3)
    """
    _check_counts(block_size, num_random_blocks=num_random_blocks, num_global_blocks=num_global_blocks)
    check_rng(rng)
    n, R, g = schedule.num_blocks(length, block_size), num_random_blocks, num_global_blocks
    row = np.arange(1, max(n - 1, 1))
    # Query block b draws from [g, stop), but for its window [low, low + width).
    stop = np.maximum(row - 1 if causal else n - g, g)
    low = np.maximum(row - 1, g)
    width = np.maximum(np.minimum(row + 2, stop) - low, 0)
    free = np.where((row < g) | (row >= n - g), 0, stop - g - width)  # global blocks see everything already
    traced = isinstance(rng, jax.core.Tracer)
    with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
        block = g + _distinct(rng, num_heads, row, free, R)
        block = block + jnp.where(block >= low[:, None], width[:, None], 0)
        block = jnp.where(np.arange(R) < free[:, None], block, -1).astype(jnp.int32)
        return block if traced else np.asarray(block)


def _distinct(rng, num_heads, row, free, R):
    """R different numbers below `free [rows]`, for each head and row `[N, rows, R]`; past the first `free`, any."""
    heads = jax.vmap(jax.random.fold_in, (None, 0))(rng, np.arange(num_heads))
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(heads, row)
    left = np.maximum(free[:, None] - np.arange(R), 1)  # how many numbers the r-th draw may choose from
    draw = jax.vmap(jax.vmap(lambda key, left: jax.random.randint(key, (R,), 0, left, jnp.int32)), (0, None))
    draw = draw(keys, left)  # int32 by name: the numbers must not change with jax_enable_x64
    taken = jnp.zeros((*draw.shape[:-1], 0), draw.dtype)  # in order
    drawn = []
    for r in range(R):
        x = draw[..., r]
        for t in range(r):  # the x-th number that is not taken
            x = x + (x >= taken[..., t])
        drawn.append(x)
        taken = jnp.sort(jnp.stack(drawn, axis=-1), axis=-1)
    return jnp.stack(drawn, axis=-1) if R else taken


def _check_counts(block_size, **counts):
    check_int("block_size", block_size, 1)
    for name, x in counts.items():
        check_int(name, x, 0)


def _check_blocks(blocks, lead, num_heads, n):
    """`[N, blocks - 2, R]`, or with all batch dimensions if those differ; NumPy's unless traced, None if empty."""
    traced = isinstance(blocks, jax.core.Tracer)
    blocks = blocks if traced else np.asarray(blocks)
    wanted = (num_heads, max(n - 2, 0))
    if blocks.ndim < 3 or blocks.shape[-3:-1] != wanted or not jnp.issubdtype(blocks.dtype, jnp.integer):
        raise ValueError(
            f"random_blocks: wanted ints [..., N, blocks - 2, R] = {(*wanted, 'R')}, got {blocks.dtype} {blocks.shape}"
        )
    check_broadcast("random_blocks", blocks.shape[:-3], tuple(lead))
    if not traced and blocks.size and not -1 <= blocks.min() <= blocks.max() < n:
        raise ValueError(f"random_blocks: wanted -1 (none) or blocks below {n}, got {blocks.min()} to {blocks.max()}")
    if not blocks.size:
        return None
    own, shape = blocks.shape[:-3], blocks.shape[-3:]
    if all(size == 1 for size in own):
        return blocks.reshape(shape)
    return (jnp if traced else np).broadcast_to(blocks, (*lead, *shape))
