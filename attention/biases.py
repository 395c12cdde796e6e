"""How scores change before the softmax: ALiBi, T5 buckets, relative tables, soft cap, any function.

A `Bias` is a small pytree with one method, `apply(score, tile) -> score`, called on one tile of the score matrix at a
time, so no bias is ever a T x S array. Gradients reach the arrays a bias holds.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .tile import Tile, close_over, plain_promotion


class Bias:
    """Base of all biases. Several are given as a list and are applied in its order."""

    def apply(self, score, tile: Tile):
        """Maps scores `[..., heads, rows, columns]` of one tile to scores of the same shape."""
        raise NotImplementedError

    def check(self, num_heads: int):
        """Raises ValueError if the bias does not fit `num_heads`."""

    def closed(self, *example) -> Bias:
        """The same bias with every differentiable array it uses among its leaves; `example` as in `ScoreFunction`."""
        return self


def _bias(data=(), meta=()):
    def register(cls):
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        return jax.tree_util.register_dataclass(cls, data_fields=list(data), meta_fields=list(meta))

    return register


@_bias(data=["slopes"])
class ALiBi(Bias):
    """`score - slope_n * |i - j|` (Press et al. 2021, "Train Short, Test Long", arXiv:2108.12409).

    Args:
      slopes: `[N]`, usually `alibi_slopes(N)`. Distances are between positions.
    """

    slopes: Any

    def check(self, num_heads):
        _check_heads("ALiBi.slopes", self.slopes, num_heads, rank=1)

    def apply(self, score, tile):
        slopes = tile.of_heads(jnp.asarray(self.slopes, score.dtype), axis=0)
        return score - slopes[:, None, None] * jnp.abs(tile.query - tile.key).astype(score.dtype)


@_bias(data=["table"], meta=["bidirectional", "max_distance"])
class T5(Bias):
    """`score + table[bucket(j - i), n]` (Raffel et al. 2020, arXiv:1910.10683). T5 itself uses `scale=1`.

    Args:
      table: `[num_buckets, N]`, trainable.
      bidirectional: half of the buckets for keys after the query; False puts all those in bucket 0.
      max_distance: distances from here on share the last bucket.
    """

    table: Any
    bidirectional: bool = False
    max_distance: int = 128

    def check(self, num_heads):
        _check_heads("T5.table", self.table, num_heads, rank=2)

    def apply(self, score, tile):
        table = self.table.astype(score.dtype)  # here, so that a narrow table's gradient is summed in full

        def lookup(distance):
            bucket = t5_bucket(
                distance,
                bidirectional=self.bidirectional,
                num_buckets=table.shape[0],
                max_distance=self.max_distance,
            )
            return _rows_of(table, bucket, tile)

        return score + by_distance(lookup, tile)


@_bias(data=["table"])
class Relative(Bias):
    """`score + table[clip(j - i, -(L - 1), L - 1) + L - 1, n]` (Shaw et al. 2018, arXiv:1803.02155, scalar form).

    Args:
      table: `[2L - 1, N]`, trainable; distances beyond L - 1 share the outermost rows.
    """

    table: Any

    def check(self, num_heads):
        _check_heads("Relative.table", self.table, num_heads, rank=2)
        if self.table.shape[0] % 2 == 0:
            raise ValueError(f"Relative.table: wanted an odd number of rows 2L - 1, got {self.table.shape[0]}")

    def apply(self, score, tile):
        table, reach = self.table.astype(score.dtype), self.table.shape[0] // 2

        def lookup(distance):
            return _rows_of(table, jnp.clip(distance, -reach, reach) + reach, tile)

        return score + by_distance(lookup, tile)


@_bias(meta=["cap"])
class SoftCap(Bias):
    """`cap * tanh(score / cap)` (Gemma 2, arXiv:2408.00118)."""

    cap: float

    def check(self, num_heads):
        if self.cap <= 0:
            raise ValueError(f"SoftCap.cap: wanted a positive number, got {self.cap}")

    def apply(self, score, tile):
        return self.cap * jnp.tanh(score / self.cap)


@_bias(data=["arrays"], meta=["fn"])
class ScoreFunction(Bias):
    """`fn(score, query_position, key_position, head, *arrays)`, elementwise; gradients reach `arrays`.

    Positions and head come shaped to broadcast against `score [..., heads, rows, columns]`.
    """

    fn: Callable
    arrays: tuple = ()

    def closed(self, *example):
        captured, fn = close_over(self.fn, *example, *self.arrays)
        return ScoreFunction(fn, (*self.arrays, *captured)) if captured else self

    def apply(self, score, tile):
        changed = jnp.asarray(self.fn(score, tile.query, tile.key, tile.head_index, *self.arrays))
        if jnp.broadcast_shapes(changed.shape, score.shape) != score.shape:
            raise ValueError(f"bias: wanted a function that keeps the score's shape {score.shape}, got {changed.shape}")
        return jnp.broadcast_to(changed, score.shape).astype(score.dtype)


@_bias(data=["table", "distance"])
class GraphDistance(Bias):
    """`score + table[distance[b, i, j], n]`: a learned number for how far apart two tokens are in a graph.

    The scalar form of Graphormer's spatial encoding (Ying et al. 2021, arXiv:2106.05234, eq. 6); any other index of
    pairs will do. Unlike other biases this one holds T x S integers for each batch entry: they are what it knows.

    Args:
      table: `[rows, N]`, trainable.
      distance: `[T, S]` for all batch entries or `[B, T, S]` for each, int, 0 .. rows - 1. Rows and columns are
        positions; one beyond them reads the last.
    """

    table: Any
    distance: Any

    def check(self, num_heads):
        _check_heads("GraphDistance.table", self.table, num_heads, rank=2)
        if self.distance.ndim not in (2, 3) or not jnp.issubdtype(self.distance.dtype, jnp.integer):
            wanted, got = "integers [T, S] or [B, T, S]", f"{self.distance.dtype}{list(self.distance.shape)}"
            raise ValueError(f"GraphDistance.distance: wanted {wanted}, got {got}")

    def apply(self, score, tile):
        distance = jnp.asarray(self.distance).reshape(-1, *self.distance.shape[-2:])
        entry = 0 if len(distance) == 1 else tile.batch
        pairs = distance[entry, tile.query, tile.key][..., 0, :, :]  # [..., rows, columns]
        values = _rows_of(self.table.astype(score.dtype), pairs, tile)
        return score + jnp.moveaxis(values, -1, -3)


@_bias(data=["bias"], meta=["parts"])
class EachCut(Bias):
    """`bias`, which is for batch entries that have each been cut into `parts` entries."""

    bias: Bias
    parts: int

    def check(self, num_heads):
        self.bias.check(num_heads)

    def closed(self, *example):
        return EachCut(self.bias.closed(*example), self.parts)

    def apply(self, score, tile):
        return self.bias.apply(score, tile._replace(batch=tile.batch // self.parts))


@_bias(data=["bias"], meta=["first", "num_heads"])
class HeadSlice(Bias):
    """`bias`, which is for `num_heads` heads, on those from `first` on."""

    bias: Bias
    first: int
    num_heads: int

    def check(self, num_heads):
        self.bias.check(self.num_heads)

    def closed(self, *example):
        return HeadSlice(self.bias.closed(*example), self.first, self.num_heads)

    def apply(self, score, tile):
        return self.bias.apply(score, tile._replace(head=tile.head + self.first))


def by_distance(lookup: Callable, tile: Tile):
    """`lookup(j - i)` for each pair of the tile, `[..., heads, rows, columns]`; lookup gives `[..., heads]` last.

    With plain indices a tile holds only rows + columns - 1 distances: they are looked up once and spread along the
    diagonals by reshapes, whose gradient is a sum and not a scatter.
    """
    if tile.query_positions is not None or tile.key_positions is not None:
        distance = tile.key - tile.query  # [..., 1, rows, columns]
        return jnp.moveaxis(lookup(distance[..., 0, :, :]), -1, -3)
    R, C = tile.rows, tile.columns
    distance = tile.column - tile.row + jnp.arange(-(R - 1), C)
    values = jnp.moveaxis(lookup(distance), -1, 0)  # heads, R + C - 1
    # Row r wants values[R - 1 - r : R - 1 - r + C]. Repeating a sequence of length R + C and reading it back in rows
    # of R + C - 1 shifts each row by one.
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    tiled = jnp.broadcast_to(padded[:, None, :], (values.shape[0], R, R + C)).reshape(values.shape[0], -1)
    rows = tiled[:, : R * (R + C - 1)].reshape(values.shape[0], R, R + C - 1)
    return rows[:, :, R - 1 :]


def _rows_of(table, index, tile):
    return jnp.take(tile.of_heads(table, axis=1), index, axis=0)


def _check_heads(name, array, num_heads, rank):
    if not hasattr(array, "shape"):
        raise ValueError(f"{name}: wanted an array, got {type(array).__name__}")
    if array.ndim != rank or array.shape[-1] != num_heads:
        shape = "[N]" if rank == 1 else "[rows, N]"
        raise ValueError(f"{name}: wanted {shape} with N = {num_heads} query heads, got shape {array.shape}")


def alibi_slopes(num_heads: int):
    """ALiBi's slope of each head, `[N]` float32.

    For N = 2^a: 2^(-8/N), 2^(-16/N), ... Otherwise the slopes of the next lower power of two, then every second slope
    of its double (Press et al. 2021, arXiv:2108.12409, and the authors' code).

    Args:
      num_heads: N >= 1.

    Raises:
      ValueError: num_heads is not positive.

    >>> [float(s) for s in alibi_slopes(4)]
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    num_heads = operator.index(num_heads)
    if num_heads < 1:
        raise ValueError(f"num_heads: wanted at least 1, got {num_heads}")

    def powers(n):
        return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

    lower = 1 << (num_heads.bit_length() - 1)
    slopes = np.concatenate([powers(lower), powers(2 * lower)[::2][: num_heads - lower]])
    return jnp.asarray(slopes, jnp.float32)


@plain_promotion
def t5_bucket(distance, *, bidirectional: bool = True, num_buckets: int = 32, max_distance: int = 128):
    """T5's bucket of each distance: exact near zero, logarithmic to `max_distance`, then one (arXiv:1910.10683).

    Args:
      distance: int array, key position - query position.
      bidirectional: split the buckets between keys before and keys after the query.
      num_buckets: how many buckets in all.
      max_distance: distances from here on share the last bucket.

    Returns:
      int32 array of distance's shape, in [0, num_buckets).

    Raises:
      ValueError: too few buckets, or max_distance not beyond the exact range.

    >>> t5_bucket(jnp.array([-3, 0, 3]), bidirectional=True).tolist()
    [3, 0, 19]
    """
    side = num_buckets // 2 if bidirectional else num_buckets
    exact = side // 2
    if exact < 1 or (bidirectional and num_buckets % 2):
        raise ValueError(f"num_buckets: wanted {'an even number >= 4' if bidirectional else '>= 2'}, got {num_buckets}")
    if max_distance <= exact:
        raise ValueError(f"max_distance: wanted more than the {exact} exact buckets, got {max_distance}")
    distance = jnp.asarray(distance)
    offset = jnp.where(distance > 0, side, 0) if bidirectional else 0
    n = jnp.abs(distance) if bidirectional else jnp.maximum(-distance, 0)
    n32 = jnp.maximum(n, 1).astype(jnp.float32)  # log 0 is not wanted, and n < exact takes the other branch
    far = exact + (jnp.log(n32 / exact) / math.log(max_distance / exact) * (side - exact)).astype(jnp.int32)
    bucket = jnp.where(n < exact, n, jnp.minimum(far, side - 1))
    return (offset + bucket).astype(jnp.int32)


def change_scores(score, tile: Tile, softcap, bias, biases):
    """Soft cap, then the bias array (its part in this tile), then each `Bias` in turn."""
    if softcap is not None:
        score = SoftCap(softcap).apply(score, tile)
    if bias is not None:
        score = score + bias.astype(score.dtype)
    for change in biases:
        score = change.apply(score, tile)
    return score


def as_biases(bias, num_heads: int) -> tuple[Any, tuple[Bias, ...]]:
    """Splits what a caller gave as `bias` into one array (or None) and a tuple of `Bias` objects, checked."""
    parts = list(bias) if isinstance(bias, (list, tuple)) else [] if bias is None else [bias]
    array, rest = None, []
    for n, part in enumerate(parts):
        if isinstance(part, Bias):
            part.check(num_heads)
            rest.append(part)
        elif callable(part):
            rest.append(ScoreFunction(part))
        elif not hasattr(part, "dtype"):
            raise ValueError(f"bias: wanted a float array, a Bias or a function, got {type(part).__name__}")
        elif n == 0:
            array = jnp.asarray(part)
        else:
            raise ValueError("bias: an array is added first, so in a list it must stand first; sum several into one")
    if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"bias: wanted a float array, got dtype {array.dtype} (a bool array is a mask)")
    return array, tuple(rest)
