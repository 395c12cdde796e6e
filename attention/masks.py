"""Which pairs may attend: small immutable masks, combined by `&`, `|` and `~`.

Every mask answers two questions.

* `allows(tile)`: may query i attend key j, elementwise, for one rectangle of the score matrix. Traceable.
* `classify(ranges)`: can a block hold a True at all, and is it True throughout. Plain NumPy on block corners, so a
  schedule of live blocks costs time in proportion to the live blocks and never builds anything of size T x S.

Masks are pytrees. Python numbers and NumPy arrays inside a mask are static: they shape the schedule. JAX arrays are
data: they may be traced, a new value never recompiles, and the schedule treats what depends on them as unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .tile import EMPTY, FULL, PARTIAL, Ranges, StaticArray, Tile, close_over, plain_promotion, static_or_traced, unwrap


class Mask:
    """Base of all masks. `a & b`, `a | b`, `~a` combine; `dense(T, S)` materialises."""

    # Trailing rank of each array field; what stands in front of it is batch.
    ranks: ClassVar[dict[str, int]] = {}
    by_position: ClassVar[bool] = True  # False: depends on indices, not on positions

    def __init_subclass__(cls):
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, functools.partial(_unflatten, cls), _flatten)

    def allows(self, tile: Tile):
        """Bool array that broadcasts to `[..., heads, rows, columns]`."""
        raise NotImplementedError

    def _blocks(self, r: Ranges):
        """EMPTY, PARTIAL or FULL for each block, from static structure."""
        return np.full(r.q_lo.shape, PARTIAL, np.int8)

    def classify(self, r: Ranges):
        if self.by_position and not r.by_index:
            return np.full(r.q_lo.shape, PARTIAL, np.int8)
        return self._blocks(r).astype(np.int8)

    @property
    def num_heads(self) -> int | None:
        """Number of heads if heads differ, else None."""
        return None

    def for_head(self, head: int) -> Mask:
        """The pattern of one head, for planning."""
        return self

    def map_parts(self, fn: Callable) -> Mask:
        """A copy with `fn(mask)` in place of every mask that is not a combination of others."""
        return fn(self)

    def parts(self) -> list[Mask]:
        """All masks in it that are not combinations of others."""
        found = []
        self.map_parts(lambda part: found.append(part) or part)
        return found

    def map_arrays(self, fn: Callable) -> Mask:
        """A copy with `fn(array, rank)` applied to every data array, and to static ones whose batch entries differ."""
        return self.map_parts(lambda part: part._map_own(fn))

    def closed(self, *example) -> Mask:
        """The same mask with every traced array its functions capture among its leaves; `example` positions."""
        return self.map_parts(lambda part: part.closed(*example) if isinstance(part, Predicate) else part)

    def _map_own(self, fn):
        changes = {}
        for name, rank in self.ranks.items():
            x = unwrap(getattr(self, name))
            if isinstance(x, jax.Array) or np.ndim(x) > rank:
                changes[name] = fn(jnp.asarray(x), rank)
        return _replace(self, **changes) if changes else self

    @plain_promotion
    def dense(self, T: int, S: int | None = None):
        """The mask as a bool array `[T, S]`, `[N, T, S]` if heads differ, `[..., N or 1, T, S]` with batch arrays."""
        S = T if S is None else S
        heads = [m.array.shape[-3] for m in self.parts() if isinstance(m, Dense)]
        allowed = self.allows(Tile(0, T, 0, S, 0, max(heads + [self.num_heads or 1])))
        allowed = jnp.broadcast_to(allowed, (*allowed.shape[:-2], T, S))
        return allowed[0] if allowed.ndim == 3 and allowed.shape[0] == 1 else allowed

    def draw(self, T: int, S: int | None = None, ax=None):
        """Draws the pattern (first head, first batch entry) with matplotlib; returns the axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(3, 3))[1] if ax is None else ax
        allowed = np.asarray(self.dense(T, S))
        ax.imshow(allowed.reshape(-1, *allowed.shape[-2:])[0], cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
        ax.set(xlabel="key", ylabel="query")
        return ax

    def __and__(self, other):
        return And((self, _check_mask(other)))

    def __or__(self, other):
        return Or((self, _check_mask(other)))

    def __invert__(self):
        return Not(self)


def _check_mask(x):
    if not isinstance(x, Mask):
        raise TypeError(
            f"masks combine with masks: wanted a Mask, got {type(x).__name__} (wrap a bool array: Dense(a))"
        )
    return x


def _flatten(mask):
    fields = [(f.name, getattr(mask, f.name)) for f in dataclasses.fields(mask)]
    data = tuple((name, x) for name, x in fields if _is_data(mask, name, x))
    static = tuple((name, x) for name, x in fields if not _is_data(mask, name, x))
    return tuple(x for _, x in data), (tuple(name for name, _ in data), static)


def _is_data(mask, name, x):
    return name in ("mask", "masks", "arrays") or (
        name in mask.ranks and not isinstance(x, (StaticArray, int, type(None)))
    )


def _flatten_with_keys(mask):
    children, aux = _flatten(mask)
    return tuple((jax.tree_util.GetAttrKey(n), x) for n, x in zip(aux[0], children, strict=True)), aux


def _unflatten(cls, aux, children):
    mask = object.__new__(cls)
    for name, x in (*zip(aux[0], children, strict=True), *aux[1]):
        object.__setattr__(mask, name, x)
    return mask


def _replace(mask, **changes):
    children = {f.name: changes.get(f.name, getattr(mask, f.name)) for f in dataclasses.fields(mask)}
    return _unflatten(type(mask), ((), tuple(children.items())), ())


def _states(empty, full):
    return np.where(empty, EMPTY, np.where(full, FULL, PARTIAL))


_mask = dataclasses.dataclass(frozen=True, eq=False)


@_mask
class Full(Mask):
    """Every query sees every key."""

    by_position: ClassVar[bool] = False

    def allows(self, tile):
        return jnp.ones((1, 1, 1), bool)

    def _blocks(self, r):
        return np.full(r.q_lo.shape, FULL)


@_mask
class Causal(Mask):
    """Query i sees key j iff `key_position[j] <= query_position[i]`."""

    def allows(self, tile):
        return tile.key <= tile.query

    def _blocks(self, r):
        return _states(r.k_lo > r.q_hi, r.k_hi <= r.q_lo)


@_mask
class Window(Mask):
    """`-left <= j - i <= right`, both ends included; None leaves a side open."""

    left: int | None
    right: int | None

    def __post_init__(self):
        for side in ("left", "right"):
            if getattr(self, side) is not None:
                _check_count(f"Window.{side}", getattr(self, side))

    def allows(self, tile):
        distance = tile.key - tile.query
        sides = [] if self.left is None else [distance >= -self.left]
        sides += [] if self.right is None else [distance <= self.right]
        return functools.reduce(operator.and_, sides, jnp.ones((1, 1, 1), bool))

    def _blocks(self, r):
        left = np.inf if self.left is None else self.left
        right = np.inf if self.right is None else self.right
        lo, hi = r.k_lo - r.q_hi, r.k_hi - r.q_lo  # range of j - i
        return _states((hi < -left) | (lo > right), (lo >= -left) & (hi <= right))


@_mask
class Dilated(Mask):
    """`-left * d <= j - i <= right * d` and `(j - i) % d == 0` for dilation d."""

    left: int
    right: int
    dilation: int = 1

    def __post_init__(self):
        for side in ("left", "right"):
            _check_count(f"Dilated.{side}", getattr(self, side))
        _check_count("Dilated.dilation", self.dilation, least=1)

    @property
    def _both(self):
        return Window(self.left * self.dilation, self.right * self.dilation) & Strided(self.dilation)

    def allows(self, tile):
        return self._both.allows(tile)

    def _blocks(self, r):
        return self._both.classify(r)


@_mask
class Strided(Mask):
    """`(i - j) % stride == 0`, the column pattern of Sparse Transformers (Child et al. 2019, arXiv:1904.10509)."""

    stride: int

    def __post_init__(self):
        _check_count("Strided.stride", self.stride, least=1)

    def allows(self, tile):
        return (tile.query - tile.key) % self.stride == 0

    def _blocks(self, r):
        lo, hi = r.q_lo - r.k_hi, r.q_hi - r.k_lo  # range of i - j
        holds_multiple = hi // self.stride * self.stride >= lo
        return _states(~holds_multiple, holds_multiple & ((lo == hi) | (self.stride == 1)))


@_mask
class Fixed(Mask):
    """Same block of `stride`, or a summary column `j % stride >= stride - summary` (Child et al. 2019)."""

    stride: int
    summary: int

    def __post_init__(self):
        _check_count("Fixed.stride", self.stride, least=1)
        _check_count("Fixed.summary", self.summary, least=0)
        if self.summary > self.stride:
            raise ValueError(f"Fixed.summary: wanted at most stride = {self.stride}, got {self.summary}")

    def allows(self, tile):
        s = self.stride
        return (tile.query // s == tile.key // s) | (tile.key % s >= s - self.summary)

    def _blocks(self, r):
        s, first = self.stride, self.stride - self.summary
        q0, q1, k0, k1 = r.q_lo // s, r.q_hi // s, r.k_lo // s, r.k_hi // s
        same_block = (q0 == q1) & (k0 == k1) & (q0 == k0)
        meets_summary = (self.summary > 0) & ((k1 > k0) | (r.k_hi % s >= first))
        all_summary = (k0 == k1) & (r.k_lo % s >= first) | (self.summary == s)
        return _states((k1 < q0) & ~meets_summary | (k0 > q1) & ~meets_summary, same_block | all_summary)


@_mask
class Blocks(Mask):
    """For blocks of `size` tokens: `first <= key block - query block <= last`."""

    size: int
    first: int
    last: int

    def __post_init__(self):
        _check_count("Blocks.size", self.size, least=1)
        _check_count("Blocks.first", self.first)
        _check_count("Blocks.last", self.last)

    def allows(self, tile):
        step = tile.key // self.size - tile.query // self.size
        return (step >= self.first) & (step <= self.last)

    def _blocks(self, r):
        least = r.k_lo // self.size - r.q_hi // self.size
        most = r.k_hi // self.size - r.q_lo // self.size
        return _states((most < self.first) | (least > self.last), (least >= self.first) & (most <= self.last))


@_mask
class Global(Mask):
    """Query or key is one of `positions [..., G]`: such tokens see all and are seen by all. -1 marks an unused slot."""

    positions: Any
    ranks: ClassVar = {"positions": 1}

    def __post_init__(self):
        object.__setattr__(self, "positions", static_or_traced(self.positions))
        _check_integers("Global.positions", unwrap(self.positions))
        if unwrap(self.positions).ndim == 0:
            raise ValueError("Global.positions: wanted a list [..., G], got a single number")

    def allows(self, tile):
        slots = jnp.asarray(unwrap(self.positions))
        slots = jnp.where(slots < 0, jnp.iinfo(slots.dtype).min, slots)[..., None, None, None, :]
        return (tile.query[..., None] == slots).any(-1) | (tile.key[..., None] == slots).any(-1)

    def _blocks(self, r):
        if not isinstance(self.positions, StaticArray):
            return super()._blocks(r)
        slots = np.unique(self.positions.array[self.positions.array >= 0])
        rows = np.searchsorted(slots, r.q_hi, "right") - np.searchsorted(slots, r.q_lo, "left")
        columns = np.searchsorted(slots, r.k_hi, "right") - np.searchsorted(slots, r.k_lo, "left")
        full = (rows == r.q_hi - r.q_lo + 1) | (columns == r.k_hi - r.k_lo + 1)
        if self.positions.array.ndim > 1:  # batch entries differ: the union may be seen, no block is sure
            full = np.zeros_like(full)
        return _states((rows == 0) & (columns == 0), full)


@_mask
class Prefix(Mask):
    """`j < n`: the first n keys are seen by all. `n` may be an array `[...]`, one value a batch entry."""

    n: Any
    ranks: ClassVar = {"n": 0}

    def __post_init__(self):
        if not isinstance(self.n, int):
            object.__setattr__(self, "n", int(self.n) if isinstance(self.n, np.integer) else jnp.asarray(self.n))
            _check_integers("Prefix.n", jnp.asarray(self.n))

    def allows(self, tile):
        return tile.key < (self.n[..., None, None, None] if isinstance(self.n, jax.Array) else self.n)

    def _blocks(self, r):
        if isinstance(self.n, jax.Array):
            return super()._blocks(r)
        return _states(r.k_lo >= self.n, r.k_hi < self.n)


@_mask
class RandomBlocks(Mask):
    """Query block r sees key blocks `blocks[n, r]`; `blocks [N or 1, query blocks, R]`, -1 marks an unused slot."""

    blocks: Any
    block_size: int
    ranks: ClassVar = {"blocks": 3}

    def __post_init__(self):
        object.__setattr__(self, "blocks", static_or_traced(self.blocks))
        if unwrap(self.blocks).ndim < 3:
            raise ValueError(f"RandomBlocks.blocks: wanted [N, query blocks, R], got shape {unwrap(self.blocks).shape}")
        _check_integers("RandomBlocks.blocks", unwrap(self.blocks))
        _check_count("RandomBlocks.block_size", self.block_size, least=1)

    @property
    def num_heads(self):
        heads = unwrap(self.blocks).shape[-3]
        return heads if heads > 1 else None

    def for_head(self, head):
        if isinstance(self.blocks, StaticArray) and self.num_heads:
            return RandomBlocks(self.blocks.array[..., head : head + 1, :, :], self.block_size)
        return self

    def allows(self, tile):
        blocks = tile.of_heads(jnp.asarray(unwrap(self.blocks)), axis=-3)
        query_block, key_block = tile.query // self.block_size, tile.key // self.block_size
        rows, index = blocks.shape[-2], jnp.clip(query_block, 0, blocks.shape[-2] - 1)
        rank = max(blocks.ndim, index.ndim)
        padded = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (blocks, index))
        row = jnp.take_along_axis(*padded, axis=-2)[..., None, :]
        known = ((query_block >= 0) & (query_block < rows))[..., None] & (row >= 0)  # positions may be negative
        return ((row == key_block[..., None]) & known).any(-1)

    def _blocks(self, r):
        if not isinstance(self.blocks, StaticArray) or self.blocks.array.ndim > 3:
            return super()._blocks(r)
        blocks, size = self.blocks.array, self.block_size
        heads, rows, slots = blocks.shape
        # Pairs (query block, key block) as one sorted list of numbers; a block is live if a pair falls inside it.
        row = np.broadcast_to(np.arange(rows)[:, None], blocks.shape)[blocks >= 0]
        pairs = np.unique(row.astype(np.int64) << 32 | blocks[blocks >= 0])
        q0, q1, k0, k1 = r.q_lo // size, r.q_hi // size, r.k_lo // size, r.k_hi // size
        live = np.zeros(r.q_lo.shape, bool)
        for step in range(int((q1 - q0).max(initial=0)) + 1):
            q = np.minimum(q0 + step, q1).astype(np.int64) << 32
            live |= np.searchsorted(pairs, q | k1, "right") > np.searchsorted(pairs, q | k0, "left")
        return _states(~live, live & (q0 == q1) & (k0 == k1) & (heads == 1))


@_mask
class Segments(Mask):
    """Packed documents: ids equal. A negative id is padding and sees and is seen by nothing."""

    query_ids: Any
    key_ids: Any
    ranks: ClassVar = {"query_ids": 1, "key_ids": 1}
    by_position: ClassVar = False

    def __post_init__(self):
        for name in ("query_ids", "key_ids"):
            object.__setattr__(self, name, jnp.asarray(getattr(self, name)))
            _check_integers(f"Segments.{name}", getattr(self, name))

    def allows(self, tile):
        query = tile.of_rows(self.query_ids)[..., None, :, None]
        key = tile.of_columns(self.key_ids)[..., None, None, :]
        return (query == key) & (query >= 0)


@_mask
class Lengths(Mask):
    """Rows before `query_lengths` and columns before `key_lengths` (`[...]`, one a batch entry; None = all)."""

    query_lengths: Any = None
    key_lengths: Any = None
    ranks: ClassVar = {"query_lengths": 0, "key_lengths": 0}
    by_position: ClassVar = False

    def __post_init__(self):
        for name in ("query_lengths", "key_lengths"):
            if (x := getattr(self, name)) is not None:
                object.__setattr__(self, name, jnp.asarray(x))
                _check_integers(f"Lengths.{name}", getattr(self, name))

    def allows(self, tile):
        allowed = jnp.ones((1, 1, 1), bool)
        if self.query_lengths is not None:
            allowed = allowed & (tile.query_index[:, None] < self.query_lengths[..., None, None, None])
        if self.key_lengths is not None:
            allowed = allowed & (tile.key_index < self.key_lengths[..., None, None, None])
        return allowed


@_mask
class Keys(Mask):
    """Padding: `key_mask [..., S]`, True = real token."""

    key_mask: Any
    ranks: ClassVar = {"key_mask": 1}
    by_position: ClassVar = False

    def __post_init__(self):
        object.__setattr__(self, "key_mask", jnp.asarray(self.key_mask))
        if self.key_mask.dtype != bool:
            raise ValueError(f"Keys.key_mask: wanted bools, got dtype {self.key_mask.dtype}")

    def allows(self, tile):
        return tile.of_columns(self.key_mask)[..., None, None, :]


@_mask
class Dense(Mask):
    """A bool array `[..., N or 1, T or 1, S or 1]`."""

    array: Any
    ranks: ClassVar = {"array": 3}
    by_position: ClassVar = False

    def __post_init__(self):
        array = jnp.asarray(self.array)
        if array.dtype != bool:
            raise ValueError(f"mask: wanted a bool array (True = may attend), got dtype {array.dtype}")
        object.__setattr__(self, "array", array.reshape((1,) * (3 - array.ndim) + array.shape))

    def allows(self, tile):
        return tile.of(self.array)


@_mask
class Predicate(Mask):
    """Any function of positions, `fn(query_position, key_position, *arrays) -> bool`, elementwise and traceable.

    Nothing is known about where it is True, so every block is visited: intersect it with a structural mask
    (`Predicate(fn) & Causal() & Window(256, 0)`) to skip blocks.
    """

    fn: Callable
    arrays: tuple = ()

    def closed(self, *example):
        captured, fn = close_over(self.fn, *example, *self.arrays)
        return Predicate(fn, (*self.arrays, *captured)) if captured else self

    def allows(self, tile):
        allowed = jnp.asarray(self.fn(tile.query, tile.key, *self.arrays))
        if allowed.dtype != bool:
            raise ValueError(f"Predicate.fn: wanted a bool result, got dtype {allowed.dtype}")
        return allowed.reshape((1,) * (3 - allowed.ndim) + allowed.shape)


class _Combined(Mask):
    def map_parts(self, fn):
        return _replace(self, masks=tuple(m.map_parts(fn) for m in self.masks))

    def for_head(self, head):
        return _replace(self, masks=tuple(m.for_head(head) for m in self.masks))

    @property
    def num_heads(self):
        return _one_head_count(self.masks)


@_mask
class And(_Combined):
    """Allowed by every one of `masks`."""

    masks: tuple[Mask, ...]

    def allows(self, tile):
        return functools.reduce(operator.and_, (m.allows(tile) for m in self.masks))

    def classify(self, r):
        return functools.reduce(np.minimum, (m.classify(r) for m in self.masks))


@_mask
class Or(_Combined):
    """Allowed by at least one of `masks`."""

    masks: tuple[Mask, ...]

    def allows(self, tile):
        return functools.reduce(operator.or_, (m.allows(tile) for m in self.masks))

    def classify(self, r):
        return functools.reduce(np.maximum, (m.classify(r) for m in self.masks))


@_mask
class Not(Mask):
    """Allowed where `mask` is not."""

    mask: Mask

    def allows(self, tile):
        return ~self.mask.allows(tile)

    def classify(self, r):
        return 2 - self.mask.classify(r)

    def map_parts(self, fn):
        return Not(self.mask.map_parts(fn))

    def for_head(self, head):
        return Not(self.mask.for_head(head))

    @property
    def num_heads(self):
        return self.mask.num_heads


@_mask
class PerHead(Mask):
    """Head n follows `masks[n]`."""

    masks: Sequence[Mask]

    def __post_init__(self):
        object.__setattr__(self, "masks", tuple(_check_mask(m) for m in self.masks))
        if not self.masks:
            raise ValueError("PerHead.masks: wanted one mask a head, got none")

    @property
    def num_heads(self):
        return len(self.masks)

    def for_head(self, head):
        return self.masks[head].for_head(head)

    def map_parts(self, fn):
        return _replace(self, masks=tuple(m.map_parts(fn) for m in self.masks))

    def allows(self, tile):
        if tile.heads == 1 and len(self.masks) > 1:  # one head at a time, perhaps a traced one
            branches = [lambda m=m: _one_head(m, tile) for m in self.masks]
            return lax.switch(tile.head, branches)
        parts = [_one_head(m, tile._replace(head=n, heads=1)) for n, m in enumerate(self.masks)]
        return tile.of_heads(jnp.concatenate(jnp.broadcast_arrays(*parts), axis=-3), axis=-3)


def _one_head(mask, tile):
    allowed = mask.allows(tile)
    return jnp.broadcast_to(allowed, (*allowed.shape[:-3], 1, tile.rows, tile.columns))


def _one_head_count(masks):
    counts = {m.num_heads for m in masks if m.num_heads}
    if len(counts) > 1:
        raise ValueError(f"mask: combined parts differ in their number of heads: {sorted(counts)}")
    return counts.pop() if counts else None


def _check_count(name, value, *, least=None):
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or (least is not None and value < least):
        wanted = "an int" if least is None else f"an int >= {least}"
        raise ValueError(f"{name}: wanted {wanted}, got {value!r}")


def _check_integers(name, array):
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name}: wanted integers, got dtype {array.dtype}")
