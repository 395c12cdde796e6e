"""Decoding token by token: the keys and values that later tokens still see, and attention that appends to them.

Every causal variant has a state from which it goes on, equal to its parallel form:

    variant                               state                                        cost of a token, memory
    full, any pattern of positions        `KeyValueCache` of `capacity` slots          O(capacity)
    window of W                           `KeyValueCache(window=W)`, a ring            O(W)
    Longformer, first G tokens global     `KeyValueCache(window=W, pinned=G)`          O(W + G)
    linear_attention and its family       `initial_state`, `return_state`              O(H Hv)
    lsh_attention                         none

Every other pattern is a mask of positions over a cache that keeps what it shows:

    Sparse Transformer, BigBird     full         `sparse_pattern(...)`, `bigbird_pattern(...)`
    local attention, blocks of W    2 W - 1      `Blocks(W, -1, 0)`
    Longformer with dilation d      W d          `Dilated(W, 0, d)`
    Longformer, any global tokens   full         `(Window(W, 0) | Global(positions)) & Causal()`

LSH attention has no state that gives the same numbers: which keys meet is decided by sorting the whole sequence, later
tokens included, so an earlier row changes as the text grows.

Limits. A ring keeps the first G tokens as global ones, and no others. Longformer's global_* projections matter in rows
of global tokens alone: take a prompt that holds them all through `longformer_attention`, and give its ordinary keys and
values to `KeyValueCache.append`. `bigbird_pattern` has no global tokens of the ETC form, and cannot count a block
twice, as `bigbird_attention` does with one that is listed twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checks import check_int, check_mask, check_self_attention, check_vector, refuse_bias_array
from .dot_product import dot_product_attention
from .masks import Causal, Full, Mask, Predicate, Prefix, Window
from .tile import plain_promotion


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "value", "positions", "length"],
    meta_fields=["window", "pinned"],
)
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the tokens so far, as an immutable pytree; `KeyValueCache.create` makes an empty one.

    Without a window, slot p holds the token at position p and the text may be `capacity` tokens long. With one it is a
    ring: the first `pinned` tokens stay, each later one takes the slot of the oldest. Keys are kept as they were given,
    so rotate them before, by `next_positions`.

    Batch entries are independent, each with its own length. Reorder them (beam search) by indexing the batch axis of
    every leaf, `jax.tree.map(lambda x: x[parents], cache)`; start one anew by writing an empty cache's entry there.
    Without a window, a smaller `length` takes tokens back: what lies beyond is overwritten before any query sees it.

    Args:
      key: `[..., K, C, H]`, C slots. Heads stand first here, so that a step reads the cache where it lies.
      value: `[..., K, C, Hv]`.
      positions: int32 `[..., C]`, the position of the token in each slot; -1 = empty.
      length: int32 `[...]`, tokens so far.
      window: tokens before itself that a query sees; None = all.
      pinned: first tokens that every later query sees besides its window.
    """

    key: Any
    value: Any
    positions: Any
    length: Any
    window: int | None = None
    pinned: int = 0

    @classmethod
    def create(
        cls,
        batch_shape: tuple[int, ...],
        num_kv_heads: int,
        head_dim: int,
        *,
        capacity: int | None = None,
        window: int | None = None,
        pinned: int = 0,
        value_dim: int | None = None,
        dtype=jnp.float32,
    ) -> KeyValueCache:
        """An empty cache.

        Args:
          batch_shape: the leading dimensions of the queries to come, perhaps ().
          num_kv_heads: K.
          head_dim: H.
          capacity: C. Without a window the longest text; with one None, which is pinned + window + 1, or more: spare
            slots let a chunk of as many tokens be appended without copying the ring.
          window: W, tokens before itself that a query sees; None = all of them.
          pinned: G first tokens that stay, as Longformer's global tokens and attention sinks do (Xiao et al. 2023,
            arXiv:2309.17453, which renumbers positions inside the cache; here they stay the true ones).
          value_dim: Hv; None = H.
          dtype: of keys, values and the queries to come.

        Raises:
          ValueError: a size that is not a number of tokens, or a capacity below what the window needs.

        >>> KeyValueCache.create((2,), 4, 16, window=8).key.shape
        (2, 4, 9, 16)
        """
        check_int("num_kv_heads", num_kv_heads, 1)
        check_int("head_dim", head_dim, 1)
        check_int("pinned", pinned, 0)
        for name, size, least in (("value_dim", value_dim, 1), ("capacity", capacity, 1), ("window", window, 0)):
            if size is not None:
                check_int(name, size, least)
        if window is None and (capacity is None or pinned):
            wrong = "capacity: wanted the longest text" if capacity is None else f"window: wanted one for {pinned=}"
            raise ValueError(f"{wrong}, got None; without a window every token stays")
        needed = 1 if window is None else pinned + window + 1
        capacity = needed if capacity is None else capacity
        if capacity < needed:
            raise ValueError(f"capacity: wanted at least pinned + window + 1 = {needed}, got {capacity}")
        lead = tuple(batch_shape)
        return cls(
            jnp.zeros((*lead, num_kv_heads, capacity, head_dim), dtype),
            jnp.zeros((*lead, num_kv_heads, capacity, head_dim if value_dim is None else value_dim), dtype),
            jnp.full((*lead, capacity), -1, jnp.int32),
            jnp.zeros(lead, jnp.int32),
            window,
            pinned,
        )

    @property
    def capacity(self) -> int:
        """C, the number of slots."""
        return self.positions.shape[-1]

    def next_positions(self, count: int, key_mask=None):
        """Positions of the next `count` tokens, int32 `[..., count]`; masked ones have none, which is -1."""
        if key_mask is None:
            return self.length[..., None] + jnp.arange(count, dtype=jnp.int32)
        real = check_vector("key_mask", key_mask, self.length.shape, count, dtype=bool)
        return jnp.where(real, self.length[..., None] + jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1, -1)

    def append(self, key, value, positions) -> KeyValueCache:
        """The cache with tokens at `positions [..., t]` written, those that do not stay left out.

        Args:
          key: `[..., t, K, H]`.
          value: `[..., t, K, Hv]`.
          positions: as `next_positions` gives them.
        """
        # One token more, which has no slot. XLA on CPU makes a scatter of a single row an update, computes that anew
        # for each reader, and then has to copy the whole cache at every step.
        slots = jnp.pad(self._slots(positions), [(0, 0)] * self.length.ndim + [(0, 1)], constant_values=self.capacity)

        def write(old, new, slots):
            new = jnp.swapaxes(jnp.concatenate([new, new[-1:]]), -2, -3)
            return old.at[:, slots].set(new, mode="drop")

        def mark(old, new, slots):
            return old.at[slots].set(jnp.append(new, -1), mode="drop")

        for _ in self.length.shape:
            write, mark = jax.vmap(write), jax.vmap(mark)
        return dataclasses.replace(
            self,
            key=write(self.key, key, slots),
            value=write(self.value, value, slots),
            positions=mark(self.positions, positions, slots),
            length=jnp.maximum(self.length, positions.max(-1) + 1),
        )

    def beside(self, key, value, positions) -> KeyValueCache:
        """The cache with tokens behind its slots and none given up: for a chunk that needs what writing it evicts."""
        return dataclasses.replace(
            self,
            key=jnp.concatenate([self.key, jnp.swapaxes(key, -2, -3)], axis=-2),
            value=jnp.concatenate([self.value, jnp.swapaxes(value, -2, -3)], axis=-2),
            positions=jnp.concatenate([self.positions, positions], axis=-1),
        )

    @property
    def mask(self) -> Mask:
        """What a query may see by its own and the keys' positions."""
        seen = Causal() & Predicate(_filled)
        return seen if self.window is None else seen & (Window(self.window, 0) | Prefix(self.pinned))

    def _slots(self, positions):
        """The slot of each token; C, which is no slot, for one that does not stay."""
        slots, stays = positions, positions >= 0
        if self.window is not None:
            ring, pinned = self.capacity - self.pinned, positions < self.pinned
            slots = jnp.where(pinned, positions, self.pinned + (positions - self.pinned) % ring)
            stays &= pinned | (positions > positions.max(-1, keepdims=True) - ring)
        return jnp.where(stays, slots, self.capacity)


@plain_promotion
def cached_attention(
    query,
    key,
    value,
    cache: KeyValueCache,
    *,
    mask: Mask | None = None,
    bias=None,
    scale: float | None = None,
    softcap: float | None = None,
    key_mask=None,
    implementation: str | None = None,
):
    """Causal attention of t new tokens over those of the cache and one another; the cache takes them up.

        out_i = sum_j p_ij v_j over j <= i by position, within the cache's window or among its pinned tokens

    The same numbers as `dot_product_attention` over the whole text, in whatever chunks it comes: a prompt at once, then
    token by token (Shazeer 2019, "Fast Transformer Decoding", arXiv:1911.02150, section 2.4). One compiled program for
    each t.

    Time O(t C) for a cache of C slots, and O(t (C + t)) where t tokens do not fit beside the window: append a long
    prompt in chunks of the window's size. Memory beside the cache O(t + C). Jitted with the cache donated
    (`jax.jit(step, donate_argnums=...)`), or carried by `lax.scan`, the cache is written in place. Keep one cache a
    layer: slices of a stacked one, scanned over, are copied at every step.

    Args:
      query: `[..., t, N, H]`, t >= 1.
      key: `[..., t, K, H]`.
      value: `[..., t, K, Hv]`.
      cache: a `KeyValueCache` for these shapes and this dtype.
      mask: a `Mask` of positions that restricts further, such as `sparse_pattern(...)`; not arrays of [T, S].
      bias: `Bias`, function or list of them, judged on positions; not an array.
      scale: None = H ** -0.5.
      softcap: scores become softcap * tanh(score / softcap).
      key_mask: bool `[..., t]`, True = real token. Others take no position, are not kept, may hold NaN, and have rows
        of 0: prompts of different lengths are padded on either side, rows of a batch that have ended stand still.
      implementation: of the exact attention underneath; None = dense for one token, else as `dot_product_attention`.

    Returns:
      (output `[..., t, N, Hv]` in query's dtype, the new cache).

    Raises:
      ValueError: arguments that do not fit, named; more tokens than a cache without a window holds. Where the length
        is traced that cannot be raised: the rows beyond the capacity are NaN.
      NotImplementedError: a mask or bias by array index.

    >>> x = jnp.ones((1, 5, 2, 4))
    >>> prompt, cache = cached_attention(x, x, x, KeyValueCache.create((1,), 2, 4, capacity=16))
    >>> token, cache = cached_attention(x[:, :1], x[:, :1], x[:, :1], cache)
    >>> token.shape, cache.length.tolist()
    ((1, 1, 2, 4), [6])
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    _check_cache(cache, key, value)
    *lead, t, N, _ = query.shape
    allowed = cache.mask if mask is None else cache.mask & _by_position(check_mask(mask, lead, N, t, cache.capacity))
    refuse_bias_array(bias, "a cache")
    positions = cache.next_positions(t, key_mask)
    _refuse_overflow(cache, positions)
    if key_mask is not None:
        query, key, value = (jnp.where(positions[..., None, None] < 0, 0, x) for x in (query, key, value))
    if implementation is None and t == 1:
        implementation = "reference"
    settings = dict(bias=bias, scale=scale, softcap=softcap, implementation=implementation)
    longer = cache.append(key, value, positions)
    fits = cache.window is None or cache.capacity >= cache.pinned + cache.window + t
    # Written first and read after, or XLA would have to copy what it both reads and may overwrite.
    seen = longer if fits else cache.beside(key, value, positions)
    out = _attend(query, positions, seen, allowed, settings)
    if cache.window is None:
        out = jnp.where((positions >= cache.capacity)[..., None, None], jnp.nan, out)
    return out, longer


def _attend(query, positions, seen, mask, settings):
    """Attention over the slots of `seen`."""
    lead = positions.shape[:-1]
    if math.prod(lead) == 1:  # XLA on CPU reads the cache in place, but not where it sees a batch of 1
        query, positions, seen = jax.tree.map(lambda x: x.reshape(x.shape[len(lead) :]), (query, positions, seen))
        mask = mask.map_arrays(lambda x, rank: x.reshape(x.shape[x.ndim - rank :]))
    out = dot_product_attention(
        query, jnp.swapaxes(seen.key, -2, -3), jnp.swapaxes(seen.value, -2, -3),
        mask=mask, query_positions=positions, key_positions=seen.positions, **settings,
    )  # fmt: skip
    return out.reshape(*lead, *out.shape[-3:])


def _filled(query_position, key_position):
    return key_position >= 0


def _by_position(mask):
    for part in mask.parts():
        if not (part.by_position or isinstance(part, Full)):
            raise NotImplementedError(
                f"mask: {type(part).__name__} counts array entries, and a cache keeps keys in its own order; write "
                "a pattern of positions (Predicate takes any), and padding as key_mask"
            )
    return mask


def _refuse_overflow(cache, positions):
    if cache.window is not None or isinstance(positions, jax.core.Tracer):
        return
    if positions.size and (needed := int(np.max(positions)) + 1) > cache.capacity:
        raise ValueError(
            f"cache: wanted a capacity of at least {needed} tokens, got {cache.capacity}; create it larger"
        )


def _check_cache(cache, key, value):
    if not isinstance(cache, KeyValueCache):
        raise ValueError(f"cache: wanted a KeyValueCache, got {type(cache).__name__}; write KeyValueCache.create(...)")
    for name, new, old in (("key", key, cache.key), ("value", value, cache.value)):
        fitting = (*new.shape[:-3], new.shape[-2], cache.capacity, new.shape[-1])
        if old.shape != fitting or old.dtype != new.dtype:
            raise ValueError(
                f"cache: wanted {name}s [..., K, C, width] = {list(fitting)} {new.dtype}, "
                f"got {list(old.shape)} {old.dtype}"
            )
