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
