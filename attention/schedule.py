"""The static plan of a blockwise pass: which (query block, key block) pairs a mask keeps alive.

Built by descending a quadtree over the score matrix. A square that the mask calls empty is dropped whole, one that it
calls full is never asked again, so the time follows the live blocks and nothing of size T x S exists.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .masks import Mask
from .tile import EMPTY, FULL, PARTIAL, Ranges

# Block sizes (queries, keys) worth trying, largest first: large blocks keep several cores busy, small ones stay in
# cache and waste less at the edge of a pattern. The time of a score element, relative to the best, goes by the area
# that a block has after all (a short input makes it smaller); a visit costs as much as VISIT_COST elements. Measured
# forward and backward on two CPU cores: benchmarks/README.md, "Blocks".
BLOCK_SIZES = (512, 256), (128, 128), (64, 64)
AREAS, ELEMENT_COST = (64 * 64, 128 * 128, 512 * 256), (1.6, 1.5, 1.0)
VISIT_COST = 256
# Small blocks are not worth a plan that is itself large: 2^20 pairs are 8 MB of constants.
MAX_PAIRS = 1 << 20


class Plan(NamedTuple):
    """Live pairs as arrays: query block, key block, whether the whole block is allowed. Sorted by (query, key)."""

    query_block: np.ndarray
    key_block: np.ndarray
    full: np.ndarray


class Pairs(NamedTuple):
    """The live pairs of several plans (one a head, or one for all), flat, in any order.

    NumPy arrays make a static schedule. Traced ones make one that is grouped at run time; either way a pair counts as
    often as it is listed, and block -1 stands for no pair.
    """

    plans: int
    plan: Any
    query_block: Any
    key_block: Any
    full: Any


class Lists(NamedTuple):
    """Live pairs grouped by one axis: those of block i are `other[starts[i] : starts[i + 1]]`, full ones first.

    Stacked over plans: `starts [plans, blocks + 1]`, `splits [plans, blocks]`.
    """

    starts: Any
    splits: Any
    other: Any


def block_start(index, size, length):
    """Start of a block. The last one is moved back to end at `length`, so that blocks need no padding."""
    return np.minimum(index * size, length - size)


def num_blocks(length, size):
    return -(-length // size)


def fit(size, length):
    """The largest useful block size: `size` split evenly over the blocks of `length`, in steps of 16."""
    if length <= size:
        return max(length, 1)
    even = -(-length // num_blocks(length, size))
    return min(-(-even // 16) * 16, length)


def plan(mask: Mask, T: int, S: int, block_q: int, block_k: int, *, by_index: bool = True) -> Plan:
    """Lists the blocks of a `[T, S]` score matrix in which `mask` may be True, in time ~ their number.

    Args:
      mask: the pattern of one head (`Mask.for_head`).
      T: number of queries.
      S: number of keys.
      block_q: queries a block.
      block_k: keys a block.
      by_index: whether positions are the plain indices; if not, what depends on positions is unknown.
    """
    nq, nk = num_blocks(T, block_q), num_blocks(S, block_k)
    scale = 1 << (max(nq, nk, 1) - 1).bit_length()
    q, k, state = np.zeros(1, np.int64), np.zeros(1, np.int64), np.full(1, PARTIAL, np.int8)
    while True:
        inside = (q * scale < nq) & (k * scale < nk)
        q, k, state = q[inside], k[inside], state[inside]
        state = state.copy()
        unsure = state != FULL
        state[unsure] = mask.classify(_corners(q[unsure], k[unsure], scale, T, S, block_q, block_k, by_index))
        live = state != EMPTY
        q, k, state = q[live], k[live], state[live]
        if scale == 1:
            break
        scale //= 2
        q = (q[:, None] * 2 + np.array([0, 0, 1, 1])).ravel()
        k = (k[:, None] * 2 + np.array([0, 1, 0, 1])).ravel()
        state = np.repeat(state, 4)
    order = np.lexsort((k, q))
    q, k, state = q[order], k[order], state[order]
    # Blocks that were moved back overlap their neighbour: elementwise masking keeps the overlap from counting twice.
    moved = (q * block_q > T - block_q) | (k * block_k > S - block_k)
    return Plan(q.astype(np.int32), k.astype(np.int32), (state == FULL) & ~moved)


def _corners(q, k, scale, T, S, block_q, block_k, by_index):
    q_lo, k_lo = block_start(q * scale, block_q, T), block_start(k * scale, block_k, S)
    q_hi = np.minimum((q + 1) * scale * block_q, T) - 1
    k_hi = np.minimum((k + 1) * scale * block_k, S) - 1
    return Ranges(q_lo, q_hi, k_lo, k_hi, by_index)


def plans(mask: Mask, T: int, S: int, block_q: int, block_k: int, *, by_index: bool = True) -> list[Plan]:
    """One plan a head, or a single one if all heads share the pattern."""
    make = functools.partial(plan, T=T, S=S, block_q=block_q, block_k=block_k, by_index=by_index)
    return [make(mask.for_head(n)) for n in range(mask.num_heads or 1)]


def stack(head_plans: list[Plan]) -> Pairs:
    """The pairs of all plans."""
    plan = np.repeat(np.arange(len(head_plans)), [len(p.full) for p in head_plans])
    return Pairs(len(head_plans), plan, *(np.concatenate(x) for x in zip(*head_plans, strict=True)))


def lists(pairs: Pairs, blocks: int, *, by: str) -> Lists:
    """Groups the pairs by query block (`by="query"`) or by key block (`by="key"`), full ones first in each group."""
    xp = np if isinstance(pairs.query_block, np.ndarray) else jnp
    major, minor = (pairs.query_block, pairs.key_block) if by == "query" else (pairs.key_block, pairs.query_block)
    # Each plan has one group a block, and a last one for pairs that are none: nobody visits it.
    group = pairs.plan * (blocks + 1) + xp.where((major < 0) | (minor < 0), blocks, major)
    order = xp.lexsort((minor, ~pairs.full, group))
    rank = 2 * group[order] + ~pairs.full[order]
    first = 2 * np.arange(pairs.plans * (blocks + 1)).reshape(pairs.plans, blocks + 1)
    starts, splits = xp.searchsorted(rank, first), xp.searchsorted(rank, first[:, :-1] + 1)
    return Lists(*(x.astype(np.int32) for x in (starts, splits, minor[order])))


def choose_block_sizes(mask: Mask, T: int, S: int, *, by_index: bool = True) -> tuple[int, int]:
    """The block sizes of least estimated time for this pattern."""
    best, least = None, float("inf")
    for block_q, block_k in BLOCK_SIZES:
        sizes = fit(block_q, T), fit(block_k, S)
        area = sizes[0] * sizes[1]
        element_cost = np.interp(np.log2(area), np.log2(AREAS), ELEMENT_COST)
        head_plans = plans(mask, T, S, *sizes, by_index=by_index)
        pairs = sum(len(p.full) for p in head_plans)
        time = pairs * (area * element_cost + VISIT_COST)
        if time < least:
            best, least = sizes, time
        if 8 * pairs > MAX_PAIRS:
            break
    return best
