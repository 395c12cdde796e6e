"""Exact attention that visits only the blocks a mask keeps: O(T) memory, its own backward pass, any platform.

Forward: for each query block, the online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022,
arXiv:2205.14135) over its live key blocks. Backward: for each key block, its live query blocks; probabilities are
computed again from the saved log-sum-exp. Blocks known to be wholly allowed skip the mask.

Shapes inside: C chunks (batch entry x group of heads), h key heads a chunk, g query heads a key head.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import dropout, schedule
from .biases import change_scores
from .checks import accumulation_dtype
from .masks import Mask
from .tile import Tile, plain_promotion

# Scores held at once: what a CPU core keeps in cache (measured: benchmarks/README.md, "Blocks"); elsewhere, enough to
# fill the device.
SCORES_AT_ONCE = {"cpu": 1 << 18}
SCORES_AT_ONCE_ELSEWHERE = 1 << 24


class Extras(NamedTuple):
    """What changes scores. Arrays carry one leading axis: the batch, or 1 where all entries share them."""

    mask: Mask
    bias: Any  # [B or 1, N or 1, T or 1, S or 1] or None
    biases: tuple
    query_positions: Any  # [B or 1, T] or None
    key_positions: Any
    words: Any  # seeds of the dropout, or None
    by_query: Any  # a traced schedule, or None
    by_key: Any


class Program(NamedTuple):
    """All that is static in one call."""

    T: int
    S: int
    block_q: int
    block_k: int
    heads: int  # key heads a chunk
    group: int  # query heads a key head
    chunks: int  # chunks a batch entry
    num_heads: int
    softcap: float | None
    dropout_rate: float
    plans: int
    by_query: schedule.Lists | None  # a static schedule, or None
    by_key: schedule.Lists | None


def blockwise_attention(
    query, key, value, mask, bias, biases, positions, *, scale, softcap, dropout_rate, rng, sizes, pairs=None
):
    """Exact attention, block by block. Arguments as `dot_product_attention` prepares them.

    Time O(live blocks * block area), memory O(T + S) beside what the caller's own arrays take. With `pairs` (a
    `schedule.Pairs` for blocks of `sizes`, one plan a head or one a head and batch entry) the blocks to visit are those
    that it lists, each as often as it is listed, and `mask` is what else hides keys; they may be traced.

    Returns:
      Output `[..., T, N, Hv]` in query's dtype and log-sum-exp `[..., T, N]`.
    """
    *lead, T, N, _ = query.shape
    S, K = key.shape[-3:-1]
    B = int(np.prod(lead))
    by_index = all(p is None for p in positions)
    block_q, block_k = (
        (min(sizes[0], T), min(sizes[1], S)) if sizes else (schedule.choose_block_sizes(mask, T, S, by_index=by_index))
    )
    if pairs is None:
        pairs = schedule.stack(schedule.plans(mask, T, S, block_q, block_k, by_index=by_index))
    if pairs.plans > 1:  # heads differ: one head at a time, each with its own key head
        key, value = (jnp.repeat(x, N // K, axis=-2) for x in (key, value))
        heads, K = 1, N
    else:
        heads = _heads_at_once(K, N // K * block_q * block_k)
    lists = (
        schedule.lists(pairs, schedule.num_blocks(T, block_q), by="query"),
        schedule.lists(pairs, schedule.num_blocks(S, block_k), by="key"),
    )
    static = isinstance(lists[0].other, np.ndarray)
    program = Program(
        T, S, block_q, block_k, heads, N // K, K // heads, N, softcap, dropout_rate, pairs.plans,
        *(lists if static else (None, None)),
    )  # fmt: skip
    accumulate = accumulation_dtype(query.dtype)
    flat = functools.partial(_flatten_batch, lead=tuple(lead))
    example = Tile(0, block_q, 0, block_k, 0, heads * N // K)
    score = jnp.zeros((example.heads, block_q, block_k), accumulate)
    extras = Extras(
        mask.closed(example.query, example.key).map_arrays(flat),
        None if bias is None else flat(bias, 3),
        tuple(b.closed(score, example.query, example.key, example.head_index) for b in biases),
        *(None if p is None else flat(p, 1) for p in positions),
        None if rng is None else dropout.seeds(rng),
        *((None, None) if static else lists),
    )
    pack = functools.partial(_pack, batch=B, heads=heads)
    attend = _make_attend(program)
    out, lse = attend(pack(query, N // K) * jnp.asarray(scale, accumulate), pack(key), pack(value), extras)
    out = _unpack(out, lead, program)
    lse = _unpack(lse[..., None], lead, program)[..., 0]
    return out.astype(query.dtype), lse


def _heads_at_once(K, scores_a_head):
    wanted = max(SCORES_AT_ONCE.get(jax.default_backend(), SCORES_AT_ONCE_ELSEWHERE) // scores_a_head, 1)
    return max(h for h in range(1, K + 1) if K % h == 0 and h <= wanted)


def _flatten_batch(x, rank, lead):
    """`[..., *trailing]` -> `[B or 1, *trailing]`."""
    own, trailing = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
    if all(n == 1 for n in own):
        return x.reshape(1, *trailing)
    return jnp.broadcast_to(x, (*lead, *trailing)).reshape(-1, *trailing)


def _take(x, b):
    return x[0] if x.shape[0] == 1 else lax.dynamic_index_in_dim(x, b, keepdims=False)


def _pack(x, group=None, *, batch, heads):
    """`[..., T, N, H]` -> `[C, h, g, T, H]` (queries, with `group`) or `[C, h, T, H]`, in the accumulation dtype."""
    T, N, H = x.shape[-3:]
    x = x.astype(accumulation_dtype(x.dtype)).reshape(batch, T, -1, heads, group or 1, H)
    x = x.transpose(0, 2, 3, 4, 1, 5).reshape(-1, heads, group or 1, T, H)
    return x if group else x[:, :, 0]


def _unpack(x, lead, program):
    """`[C, h, g, T, H]` -> `[..., T, N, H]`."""
    x = x.reshape(-1, program.num_heads, *x.shape[-2:])
    return jnp.swapaxes(x, 1, 2).reshape(*lead, program.T, program.num_heads, x.shape[-1])


def _make_attend(program):
    @jax.custom_vjp
    def attend(query, key, value, extras):
        return _forward(program, query, key, value, extras)

    def forward(query, key, value, extras):
        out, lse = _forward(program, query, key, value, extras)
        return (out, lse), (query, key, value, extras, out, lse)

    attend.defvjp(forward, functools.partial(_backward, program))
    return attend


def _forward(p, query, key, value, extras):
    by_query = p.by_query or extras.by_query

    def chunk(_, xs):
        query, key, value, c = xs
        local, head, plan = _locate(p, extras, c)

        def row(i, results):
            start_q = _start(i, p.block_q, p.T)
            q = _block(query, start_q, p.block_q)

            def visit(j, state, masked):
                top, total, acc = state
                start_k = _start(j, p.block_k, p.S)
                k, v = _block(key, start_k, p.block_k), _block(value, start_k, p.block_k)
                tile = _tile(p, local, start_q, start_k, head, c)
                score = _change(p, tile, _dots(q, k), _bias_part(local, tile), local.biases)
                if masked:
                    score = jnp.where(_allowed(p, local.mask, tile, j), score, -jnp.inf)
                new_top = jnp.maximum(top, score.max(-1, keepdims=True))
                base = jnp.where(new_top == -jnp.inf, 0, new_top)
                shrink, weight = jnp.exp(top - base), jnp.exp(score - base)
                total = shrink * total + weight.sum(-1, keepdims=True)
                acc = shrink * acc + jnp.einsum("hgqk,hkd->hgqd", _drop(p, weight, local, tile), v)
                return new_top, total, acc

            like = q[..., :1]
            empty = (
                jnp.full_like(like, -jnp.inf),
                jnp.zeros_like(like),
                jnp.zeros((*q.shape[:-1], value.shape[-1]), q.dtype),
            )
            top, total, acc = _over_live(by_query, plan, i, visit, empty)
            seen = jnp.where(total == 0, 1, total)
            lse = jnp.where(total == 0, -jnp.inf, top + jnp.log(seen))
            return tuple(_put(whole, x, start_q) for whole, x in zip(results, (acc / seen, lse), strict=True))

        results = jnp.zeros((*query.shape[:-1], value.shape[-1]), query.dtype), jnp.zeros_like(query[..., :1])
        return None, lax.fori_loop(0, schedule.num_blocks(p.T, p.block_q), row, results)

    _, (out, lse) = lax.scan(chunk, None, (query, key, value, jnp.arange(query.shape[0])))
    return out, lse[..., 0]


@plain_promotion
def _backward(p, saved, cotangents):
    query, key, value, extras, out, lse = saved
    d_out, d_lse = cotangents
    # d score = weight * (d weight - delta), where delta gathers what the normaliser and the log-sum-exp pass back.
    # A row without cotangent passes nothing back, whatever it holds (padding may be NaN); an empty row neither.
    silent = ((d_out == 0).all(-1) & (d_lse == 0)) | (lse == -jnp.inf)
    delta = jnp.where(silent, 0, (d_out * out).sum(-1) - d_lse)[..., None]
    lse = jnp.where(silent, jnp.inf, lse)[..., None]  # makes every weight of the row 0
    query = jnp.where(silent[..., None], 0, query)
    floats, rebuild = _split(extras.biases)
    by_key = p.by_key or extras.by_key

    def chunk(shared, xs):
        query, key, value, d_out, lse, delta, c = xs
        local, head, plan = _locate(p, extras, c)

        def column(j, state):
            start_k = _start(j, p.block_k, p.S)
            k, v = _block(key, start_k, p.block_k), _block(value, start_k, p.block_k)

            def visit(i, state, masked):
                dk, dv, d_query, d_bias, d_floats = state
                start_q = _start(i, p.block_q, p.T)
                q, do, top, d = (_block(x, start_q, p.block_q) for x in (query, d_out, lse, delta))
                tile = _tile(p, local, start_q, start_k, head, c)
                score, change_back = jax.vjp(
                    lambda score, part, floats: _change(p, tile, score, part, rebuild(floats)),
                    *(_dots(q, k), _bias_part(local, tile), floats),
                )
                allowed = _allowed(p, local.mask, tile, j, i) if masked else jnp.ones((1, 1, 1, 1), bool)
                weight = jnp.exp(jnp.where(allowed, score, -jnp.inf) - top)
                dv += jnp.einsum("hgqk,hgqd->hkd", _drop(p, weight, local, tile), do)
                d_weight = _drop(p, jnp.einsum("hgqd,hkd->hgqk", do, v), local, tile)
                d_score, d_part, d_more = change_back(weight * (d_weight - d))
                d_score = jnp.where(allowed, d_score, 0)
                dk += jnp.einsum("hgqk,hgqd->hkd", d_score, q)
                dq = jnp.einsum("hgqk,hkd->hgqd", d_score, k)
                d_query = _put(d_query, _block(d_query, start_q, p.block_q) + dq, start_q)
                if d_bias is not None:
                    d_bias = _add_part(d_bias, d_part, (c // p.chunks, head, start_q, start_k))
                d_floats = jax.tree.map(lambda d, more: d + more.astype(d.dtype), d_floats, d_more)
                return dk, dv, d_query, d_bias, d_floats

            d_key, d_value, *rest = state
            dk, dv, *rest = _over_live(by_key, plan, j, visit, (jnp.zeros_like(k), jnp.zeros_like(v), *rest))
            # Blocks that overlap hold their shared rows once: the mask leaves them to the earlier block.
            d_key, d_value = (
                _put(x, _block(x, start_k, p.block_k) + y, start_k) for x, y in ((d_key, dk), (d_value, dv))
            )
            return d_key, d_value, *rest

        zeros = (*jax.tree.map(jnp.zeros_like, (key, value, query)), *shared)
        d_key, d_value, d_query, *shared = lax.fori_loop(0, schedule.num_blocks(p.S, p.block_k), column, zeros)
        return tuple(shared), (d_query, d_key, d_value)

    shared = jax.tree.map(lambda x: jnp.zeros(x.shape, query.dtype), (extras.bias, floats))
    xs = (query, key, value, d_out, lse, delta, jnp.arange(query.shape[0]))
    (d_bias, d_floats), (d_query, d_key, d_value) = lax.scan(chunk, shared, xs)
    d_bias, d_floats = jax.tree.map(lambda d, x: d.astype(x.dtype), (d_bias, d_floats), (extras.bias, floats))
    return d_query, d_key, d_value, Extras(None, d_bias, rebuild(d_floats, other=None), *[None] * 5)


def _locate(p, extras, c):
    """The extras of chunk c's batch entry, its first query head, and which plan it follows."""
    b, head = c // p.chunks, c % p.chunks * p.heads * p.group
    local = extras._replace(
        mask=extras.mask.map_arrays(lambda x, rank: _take(x, b)),
        **{
            n: _take(x, b)
            for n in ("bias", "query_positions", "key_positions")
            if (x := getattr(extras, n)) is not None
        },
    )
    return local, head, c % p.plans


def _over_live(lists, plan, i, visit, state):
    """Visits the live partners of block i: wholly allowed ones without the mask, then the others with it.

    Trips differ from block to block, which hides them from whoever counts a program's work: the scope of each loop
    names their mean over the blocks, `trips=2.5`. Of a traced schedule only the sum of both is known, and it may hold
    pairs that are none.
    """
    starts, splits, other = (jnp.asarray(x) for x in lists)
    first, split, last = starts[plan, i], splits[plan, i], starts[plan, i + 1]
    if isinstance(lists.other, np.ndarray):
        means = (lists.splits - lists.starts[:, :-1]).mean(), (lists.starts[:, 1:] - lists.splits).mean()
        loops = [loop for loop, mean in zip((0, 1), means, strict=True) if mean]
    else:
        means, loops = (0, other.size / splits.size), (0, 1)
    for masked in loops:
        with jax.named_scope(f"trips={means[masked]:.9g}"):
            body = functools.partial(_visit_listed, visit, other, bool(masked))
            state = lax.fori_loop(*((split, last) if masked else (first, split)), body, state)
    return state


def _visit_listed(visit, other, masked, n, state):
    return visit(other[n], state, masked)


def _dots(q, k):
    return jnp.einsum("hgqd,hkd->hgqk", q, k)


def _change(p, tile, score, bias, biases):
    return change_scores(score.reshape(-1, *score.shape[2:]), tile, p.softcap, bias, biases).reshape(score.shape)


def _bias_part(local, tile):
    return None if local.bias is None else tile.of(local.bias)


def _allowed(p, mask, tile, j, i=None):
    """The mask of one tile `[h or 1, g or 1, q or 1, k or 1]`, without what an overlapping neighbour counts."""
    allowed = mask.allows(tile)
    if p.S % p.block_k:
        allowed = allowed & (tile.key_index >= j * p.block_k)
    if i is not None and p.T % p.block_q:
        allowed = allowed & (tile.query_index >= i * p.block_q)[:, None]
    heads = (p.heads, p.group) if allowed.shape[0] > 1 else (1, 1)
    return allowed.reshape(*heads, *allowed.shape[1:])


def _drop(p, weight, local, tile):
    if not p.dropout_rate:
        return weight
    heads = weight.reshape(-1, *weight.shape[2:])
    return dropout.drop(heads, local.words, p.dropout_rate, tile, p.num_heads).reshape(weight.shape)


def _tile(p, local, start_q, start_k, head, c):
    return Tile(
        *(start_q, p.block_q, start_k, p.block_k, head, p.heads * p.group, c // p.chunks),
        *(local.query_positions, local.key_positions),
    )


def _start(index, size, length):
    return jnp.minimum(index * size, length - size)


def _block(x, start, size):
    return lax.dynamic_slice_in_dim(x, start, size, x.ndim - 2)


def _put(whole, x, start):
    return lax.dynamic_update_slice_in_dim(whole, x, start, whole.ndim - 2)


def _add_part(whole, part, starts):
    """Adds `part` into `whole [B or 1, N or 1, T or 1, S or 1]` at `starts`; axes of length 1 take it at 0."""
    starts = [jnp.int32(0 if n == 1 else s) for n, s in zip(whole.shape, starts, strict=True)]
    there = lax.dynamic_slice(whole, starts, (1, *part.shape))
    return lax.dynamic_update_slice(whole, there + part.astype(whole.dtype), starts)


def _split(tree):
    """The float leaves of `tree`, and a function that puts a list of as many back among the others (or `other`)."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def rebuild(floats, **other):
        rest = iter(floats)
        filled = [next(rest) if f else other.get("other", x) for f, x in zip(floating, leaves, strict=True)]
        return jax.tree.unflatten(structure, filled)

    return [x for f, x in zip(floating, leaves, strict=True) if f], rebuild
