"""Facts of a knowledge graph as questions, and all that answers them."""

import dataclasses
import functools

import numpy as np


def asked_both_ways(facts, num_relations):
    """Facts and after them their inverses: int [n, 3] -> [2 n, 3]; as questions, the last column is the answer."""
    inverse = np.stack([facts[:, 2], facts[:, 1] + num_relations, facts[:, 0]], 1)
    return np.concatenate([facts, inverse])


@dataclasses.dataclass(frozen=True)
class Answers:
    """All entities that complete a question, for every question that has one.

    Attributes:
      keys: int64 [questions], subject and relation in one number, sorted.
      edges: int [questions + 1], where the entities of each begin, and the last ones end.
      entities: int32 [facts].
    """

    keys: np.ndarray
    edges: np.ndarray
    entities: np.ndarray

    @classmethod
    def of(cls, facts):
        """From int [facts, 3], in any order."""
        keys = _keys(facts)
        order = np.argsort(keys, kind="stable")
        keys, first = np.unique(keys[order], return_index=True)
        return cls(keys, np.append(first, len(facts)), facts[order, 2])

    @functools.cached_property
    def most(self):
        """The most answers that a question has."""
        return int(np.diff(self.edges).max())

    def counts(self, questions, num_entities):
        """How often each entity answers: int [n, 2 or more], subject and relation first -> float32 [n, entities].

        >>> Answers.of(np.array([[0, 0, 2], [0, 0, 1], [0, 0, 2]])).counts(np.array([[0, 0], [0, 7]]), 3).tolist()
        [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
        """
        keys = _keys(questions)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        sizes = np.where(self.keys[at] == keys, self.edges[at + 1] - self.edges[at], 0)
        rows = np.repeat(np.arange(len(keys)), sizes)
        places = np.repeat(self.edges[at], sizes) + np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        counts = np.zeros((len(keys), num_entities), np.float32)
        np.add.at(counts, (rows, self.entities[places]), 1)
        return counts

    def others(self, facts, columns=None):
        """The answers to each question but its own: int [n, 3] -> int32 [n, columns], -1 where there is none.

        >>> Answers.of(np.array([[0, 0, 5], [0, 0, 7], [1, 0, 5]])).others(np.array([[0, 0, 7], [1, 0, 5]])).tolist()
        [[5, -1], [-1, -1]]
        """
        at = np.searchsorted(self.keys, _keys(facts))
        begin, end = self.edges[at, None], self.edges[at + 1, None]
        places = begin + np.arange(columns or int((end - begin).max()))
        found = self.entities[np.minimum(places, len(self.entities) - 1)]
        return np.where((places < end) & (found != facts[:, 2:]), found, -1).astype(np.int32)


def _keys(questions):
    """Subject and relation, the first two columns, in one number."""
    return questions[:, 0].astype(np.int64) << 32 | questions[:, 1]
