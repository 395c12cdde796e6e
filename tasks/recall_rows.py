"""Rows of tokens with places that ask for an answer: what every kind of recall is made of."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Sequences, what is asked in them, and where the answer stands.

    Attributes:
      tokens: int32 [rows, T].
      targets: int32 [rows, T], the token that a model must give after it has read the one at the same place; -1 where
        nothing is asked.
      depth: float32 [rows], the place of what is asked for, from 0, the beginning of what there is to search, to 1, its
        end; NaN where it has no one place.
    """

    tokens: np.ndarray
    targets: np.ndarray
    depth: np.ndarray


class Kind(NamedTuple):
    """One kind of recall.

    Attributes:
      draw: (rng, rows, length, data) -> `Rows`; `rng` a `np.random.Generator`, `data` the `config.data`. The same for
        the same arguments, and without a loop over rows.
      least: (data) -> the shortest length that it fits into.
      baselines: (data, length) -> {name: share of right answers without any skill}.
      reads: the fields of `config.data` that are this kind's own, among those of `tasks.recall.OWN`.
      tokens: (data) -> the smallest vocabulary it can do with.
    """

    draw: Callable
    least: Callable
    baselines: Callable
    reads: tuple[str, ...] = ()
    tokens: Callable = lambda data: 2


def held_out(tokens):
    """Which rows are for the judgement alone: about half of all there can be, by a hash of the whole row.

    Nothing of a row can be read off its side, and the same row is always on the same one. The hash is a polynomial of
    the tokens modulo 2^64 whose bits are mixed afterwards (the finaliser of SplitMix64: Steele, Lea and Flood 2014,
    "Fast Splittable Pseudorandom Number Generators"); the side is its highest bit.

    Args:
      tokens: int [rows, T].

    Returns:
      bool [rows].

    >>> held_out(np.array([[1, 2, 3], [1, 2, 4], [1, 2, 3]])).tolist()
    [True, False, True]
    """
    powers = np.multiply.accumulate(np.full(tokens.shape[1], 0x9E3779B97F4A7C15, np.uint64))
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) @ powers
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(63) == 1


def different(rng, rows, total, count):
    """Draws without replacement: in each row `count` different numbers below `total`, in random order.

    Args:
      rng: `np.random.Generator`.
      rows: how many times.
      total: how many numbers there are.
      count: how many of them are drawn, at most all.

    Returns:
      int [rows, count].

    >>> sorted(different(np.random.default_rng(0), 1, 3, 3)[0].tolist())
    [0, 1, 2]
    """
    ranks = rng.random((rows, total), dtype=np.float32)
    first = np.argpartition(ranks, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(ranks, first, axis=1).argsort(axis=1)
    return np.take_along_axis(first, order, axis=1)
