"""Rows of tokens with places that ask for an answer: what every kind of recall is made of, and on which side it is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST = 1 << 22  # tokens drawn at once


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


def one_side(draw, rows, length, held, name):
    """The first `rows` rows that are held out, or the first that are not: about two are drawn for each that is kept.

    Args:
      draw: count -> arrays [count, ...], the tokens first.
      rows: how many are wanted.
      length: T.
      held: which side.
      name: of what is drawn, for the message.

    Returns:
      The arrays of `draw`, [rows, ...] each.

    Raises:
      ValueError: next to no row is on this side.
    """
    parts, missing, tried, most = [], rows, 0, max(8, MOST // length)
    while missing or not parts:
        if tried > 64 * (rows + 8):
            raise ValueError(too_few(name, length))
        drawn = draw(min(2 * missing + 8, most))
        kept = np.flatnonzero(held_out(drawn[0]) == held)[:missing]
        parts.append([array[kept] for array in drawn])
        missing, tried = missing - len(kept), tried + len(drawn[0])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def too_few(name, length):
    """Why a kind cannot be: it has hardly a row on one side."""
    return (
        f"config.data.length={length}: too few different rows of {name} to hold half of them out; write a larger "
        "length or vocabulary"
    )


def asked_at_the_end(before, answers, depth=None):
    """`Rows` whose last places are asked for; a decoder is told the right answers so far (teacher forcing).

    Args:
      before: int [rows, T + 1 - answers], all that stands before the first answer is to be given.
      answers: int [rows, answers].
      depth: [rows]; None = no one place.

    >>> rows = asked_at_the_end(np.array([[5, 6]]), np.array([[7, 8]]))
    >>> rows.tokens.tolist(), rows.targets.tolist()
    ([[5, 6, 7]], [[-1, 7, 8]])
    """
    tokens = np.concatenate([before, answers[:, :-1]], axis=1).astype(np.int32)
    targets = np.full_like(tokens, -1)
    targets[:, tokens.shape[1] - answers.shape[1] :] = answers
    depth = np.full(len(tokens), np.nan) if depth is None else depth
    return Rows(tokens, targets, depth.astype(np.float32))


def in_random_order(count):
    """Share of right answers of who knows which `count` tokens are asked for, is told those before, and guesses.

    >>> in_random_order(2)
    0.75
    """
    return sum(1 / left for left in range(1, count + 1)) / count


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
    return smallest(rng.random((rows, total), dtype=np.float32), count)


def smallest(ranks, count):
    """Where in each row the `count` smallest numbers stand, the smallest first: [rows, n] -> int [rows, count].

    >>> smallest(np.array([[0.5, 0.1, 0.9, 0.3]]), 2).tolist()
    [[1, 3]]
    """
    first = np.argpartition(ranks, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(ranks, first, axis=1).argsort(axis=1)
    return np.take_along_axis(first, order, axis=1)
