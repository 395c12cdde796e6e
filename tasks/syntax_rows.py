"""Sentences of a treebank as rows of numbers: what a model sees, what it is asked, and the tree as edges."""

import dataclasses
from typing import NamedTuple

import numpy as np

from tasks import agreement
from tasks.words import MASK, VOCABULARY

# So many words of a training row are shown as if they were rare, so that models learn what endings say and do not know
# sentences by heart (word dropout; Kiperwasser & Goldberg 2016, arXiv:1603.04351, section 5).
RARE = 0.25
PER_WORD = ("tokens", "looks", "labels", "asked", "practised", "heads", "relations")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Sentences with something to answer, one after the other; per word where nothing else is said.

    Attributes:
      edges: int [rows + 1], where each begins and the last one ends.
      tokens: int32, the word as the model sees it.
      looks: int32, the token it would be if it were rare.
      labels: int32, the right answer, 0 where there is none.
      asked: bool.
      practised: bool, words whose label is learnt beside, and not judged.
      heads: int32, place of the head in the sentence, -1 for the root: of the tree that the model gets.
      relations: int32, index of the relation to it.
      sentences: int [rows], index of the sentence.
      guesses: {name: int32}, the answers of rules that need no network.
      groups: {name: int [rows]}, the numbers that rows are grouped by.
    """

    edges: np.ndarray
    tokens: np.ndarray
    looks: np.ndarray
    labels: np.ndarray
    asked: np.ndarray
    practised: np.ndarray
    heads: np.ndarray
    relations: np.ndarray
    sentences: np.ndarray
    guesses: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows):
        """From a list of `Row`, one or more."""
        joined = {name: np.concatenate([getattr(row, name) for row in rows]) for name in PER_WORD}
        return cls(
            np.cumsum([0, *(len(row.tokens) for row in rows)]),
            **joined,
            sentences=np.array([row.sentence for row in rows]),
            guesses={name: np.concatenate([row.guesses[name] for row in rows]) for name in rows[0].guesses},
            groups={name: np.array([row.groups[name] for row in rows]) for name in rows[0].groups},
        )

    @property
    def sizes(self):
        """int [rows], how many words each has."""
        return np.diff(self.edges)

    def at_most(self, length):
        """The numbers of the rows with at most `length` words; ValueError without any."""
        if length < (shortest := self.sizes.min()):
            raise ValueError(
                f"length: got {length}, and the shortest sentence has {shortest} words; write that or more"
            )
        return np.flatnonzero(self.sizes <= length)


class Row(NamedTuple):
    """One of `Rows`, before they stand one after the other."""

    tokens: np.ndarray
    looks: np.ndarray
    labels: np.ndarray
    asked: np.ndarray
    practised: np.ndarray
    heads: np.ndarray
    relations: np.ndarray
    guesses: dict
    groups: dict
    sentence: int


def examples_of(rows, numbers, length, relations, rng=None):
    """Rows by their number.

    Args:
      rows: `Rows`.
      numbers: int [rows], which.
      length: T, at least as many words as they have.
      relations: number R of relations.
      rng: NumPy generator that draws words to be shown as what they look like, a share of RARE; None for none.

    Returns:
      {"tokens" int32 [rows, T], padded with the mask token, "labels" int32 [rows, T], "asked" bool [rows, T], "sizes"
      int32 [rows], "senders", "receivers", "relations" int32 [rows, 3 T], "edge_mask" bool [rows, 3 T]}: of each word
      its edge to itself (relation 0), from its head (1 to R) and to its head (R + 1 to 2 R).
    """
    places = np.arange(length, dtype=np.int32)
    sizes = rows.sizes[numbers]
    real = places < sizes[:, None]
    index = np.where(real, rows.edges[numbers][:, None] + places, 0)
    words = {name: getattr(rows, name)[index] for name in ("tokens", "labels", "asked", "practised", "relations")}
    if rng is not None:
        words["tokens"] = np.where(rng.random(index.shape) < RARE, rows.looks[index], words["tokens"])
    words = {name: np.where(real, array, array.dtype.type(0)) for name, array in words.items()}
    heads = np.where(real, rows.heads[index], -1)
    itself, below = np.broadcast_to(places, heads.shape), heads >= 0
    above = np.where(below, heads, places)
    kinds = words.pop("relations")
    return words | {
        "sizes": sizes.astype(np.int32),
        "senders": np.concatenate([itself, above, itself], 1),
        "receivers": np.concatenate([itself, itself, above], 1),
        "relations": np.concatenate([np.zeros_like(kinds), 1 + kinds, 1 + relations + kinds], 1),
        "edge_mask": np.concatenate([real, below, below], 1),
    }


class Tables(NamedTuple):
    """How words become numbers.

    Attributes:
      words: `tasks.words.Words`.
      classes: {answer: class}; an answer that is not there is the last class.
      relations: {relation: index}; of the others, which are all in a tree without labels, the index is 0.
    """

    words: object
    classes: dict
    relations: dict


def word_rows(sentences, label, tables):
    """Rows that ask about every word.

    Args:
      sentences: list of `tasks.conllu.Sentence`.
      label: `tasks.conllu.Word` -> its answer.
      tables: `Tables`.

    Returns:
      A list of `Row`, one a sentence.
    """
    rows, last = [], len(tables.classes) - 1
    for number, sentence in enumerate(sentences):
        words = sentence.words
        labels = np.array([tables.classes.get(label(word), last) for word in words], np.int32)
        everywhere, groups = np.ones(len(words), bool), {"words in the sentence": len(words)}
        given = _given(words, tables) | {"practised": ~everywhere}
        rows.append(Row(**given, labels=labels, asked=everywhere, guesses={}, groups=groups, sentence=number))
    return rows


def guessed_rows(train, held, num_classes):
    """Rows that ask about every word, lists to learn from and to judge; these get the guesses "majority" and "word"."""
    counts = np.zeros((VOCABULARY, num_classes), np.int64)
    for row in train:
        np.add.at(counts, (row.tokens, row.labels), 1)
    majority = counts.sum(0).argmax()
    best = np.where(counts.any(1), counts.argmax(1), majority).astype(np.int32)
    guesses = lambda row: {"majority": np.full_like(row.labels, majority), "word": best[row.tokens]}  # noqa: E731
    return train, [row._replace(guesses=guesses(row)) for row in held]


def agreement_rows(sentences, tables, majority):
    """Rows with one verb each, hidden and asked about; a sentence without such a verb is a row that asks nothing.

    The numbers of the nouns, names and pronouns, which stand there to be seen, are practised: without them some
    thousand verbs would be all that says which words are plural.

    Args:
      sentences: list of `tasks.conllu.Sentence`.
      tables: `Tables`.
      majority: the number that rules fall back to.

    Returns:
      A list of `Row`.
    """
    rows = []
    for number, sentence in enumerate(sentences):
        words = sentence.words
        questions, given = agreement.questions(words), _given(words, tables)
        numbers = [agreement.number_of_noun(word) for word in words]
        labels = np.array([index or 0 for index in numbers], np.int32)
        nouns, nothing = np.array([index is not None for index in numbers]), np.zeros(len(words), bool)
        if not questions:
            rows.append(
                Row(**given, labels=labels, asked=nothing, practised=nouns, guesses={}, groups={}, sentence=number)
            )
        for question in questions:
            asked = np.arange(len(words)) == question.verb
            guesses = {
                "majority": majority,
                "nearest noun": agreement.nearest_noun(words, question, majority),
                "subject": agreement.of_subject(words, question, majority),
            }
            rows.append(
                Row(
                    **given
                    | {name: np.where(asked, MASK, given[name]).astype(np.int32) for name in ("tokens", "looks")},
                    labels=np.where(asked, question.number, labels).astype(np.int32),
                    asked=asked,
                    practised=nouns & ~asked,
                    guesses={name: np.full(len(words), guess, np.int32) for name, guess in guesses.items()},
                    groups={
                        "distance from subject to verb": question.distance,
                        "number of attractors": question.attractors,
                    },
                    sentence=number,
                )
            )
    return rows


def _given(words, tables):
    numbers = {
        "tokens": [tables.words[word.form] for word in words],
        "looks": [tables.words.looks(word.form) for word in words],
        "heads": [word.head for word in words],
        "relations": [tables.relations.get(word.relation, 0) for word in words],
    }
    return {name: np.array(values, np.int32) for name, values in numbers.items()}
