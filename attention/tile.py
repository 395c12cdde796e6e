"""Where in the score matrix a computation stands: the tile at hand, and ranges of blocks for planning."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def plain_promotion(fn):
    """Runs `fn` under JAX's ordinary promotion: a caller's strict flags are about the caller's code, not about ours."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return fn(*args, **kwargs)

    return run


EMPTY, PARTIAL, FULL = 0, 1, 2  # what a block can hold; & is min, | is max, ~ is 2 - x


class Tile(NamedTuple):
    """One rectangle of the score matrix: where it starts (may be traced) and how large it is (static)."""

    row: Any
    rows: int
    column: Any
    columns: int
    head: Any
    heads: int
    batch: Any = 0
    query_positions: Any = None
    key_positions: Any = None

    @property
    def query_index(self):
        return _count_from(self.row, self.rows)

    @property
    def key_index(self):
        return _count_from(self.column, self.columns)

    @property
    def query(self):
        """Positions of the rows, `[..., 1, rows, 1]`."""
        index = self.query_index if self.query_positions is None else self.of_rows(self.query_positions)
        return index.astype(jnp.int32)[..., None, :, None]  # distances of unsigned positions would wrap

    @property
    def key(self):
        """Positions of the columns, `[..., 1, 1, columns]`."""
        index = self.key_index if self.key_positions is None else self.of_columns(self.key_positions)
        return index.astype(jnp.int32)[..., None, None, :]

    @property
    def head_index(self):
        return _count_from(self.head, self.heads)[:, None, None]

    def of_rows(self, x, axis=-1):
        return _window(x, self.row, self.rows, axis)

    def of_columns(self, x, axis=-1):
        return _window(x, self.column, self.columns, axis)

    def of_heads(self, x, axis):
        return _window(x, self.head, self.heads, axis)

    def of(self, x):
        """The part of `x [..., N or 1, T or 1, S or 1]` that lies in this tile."""
        return self.of_heads(self.of_rows(self.of_columns(x), axis=-2), axis=-3)


def _count_from(start, size):
    return (start + jnp.arange(size)).astype(jnp.int32)


def _window(x, start, size, axis):
    """`x[start : start + size]` along `axis`, where an axis of length 1 stands for every index."""
    if x.shape[axis] == 1 or x.shape[axis] == size:
        return x
    return lax.dynamic_slice_in_dim(x, start, size, axis % x.ndim)


class Ranges(NamedTuple):
    """Inclusive corners of many blocks at once; `by_index` says that positions are the plain indices."""

    q_lo: np.ndarray
    q_hi: np.ndarray
    k_lo: np.ndarray
    k_hi: np.ndarray
    by_index: bool = True


class StaticArray:
    """A NumPy array that can be hashed, so that it may be part of a compiled program's identity."""

    def __init__(self, array):
        self.array = np.array(array)
        self.array.flags.writeable = False
        self._key = (self.array.shape, str(self.array.dtype), self.array.tobytes())

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return isinstance(other, StaticArray) and self._key == other._key

    def __repr__(self):
        return f"StaticArray{self.array.shape}"


def static_or_traced(x):
    """JAX arrays stay data; numbers, lists and NumPy arrays become static."""
    return x if isinstance(x, (jax.Array, StaticArray)) else StaticArray(x)


def close_over(fn, *example):
    """The tracers that `fn` captures, and `fn` as a function of them too: a custom VJP must see all it depends on.

    `jax.closure_convert` does this for floats; integers, such as document ids, have to be seen for remat and scan.
    """
    closed = jax.make_jaxpr(fn)(*example)
    traced = [isinstance(x, jax.core.Tracer) for x in closed.consts]
    captured = tuple(x for x, t in zip(closed.consts, traced, strict=True) if t)

    def converted(*args):
        args, given = args[: len(example)], iter(args[len(example) :])
        consts = [next(given) if t else x for x, t in zip(closed.consts, traced, strict=True)]
        return jax.core.eval_jaxpr(closed.jaxpr, consts, *args)[0]

    return captured, converted


def unwrap(x):
    return x.array if isinstance(x, StaticArray) else x
