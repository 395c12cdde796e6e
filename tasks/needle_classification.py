"""Needle classification: one token somewhere in a row of noise says the class; the share of rows an encoder gets right.

What it takes is to reach: a classifier that reads the vector before the row ("cls") sees the needle through L layers of
a window of w tokens only if it is one of the first L w tokens, and through one token that sees all, wherever it is.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from tasks.classification import score
from tasks.recall_rows import one_side
from tasks.text import SIZE, UNIT, read_only, tokens

__all__ = ["SIZE", "UNIT", "score", "tokens"]  # as they are in `tasks.text`, and `tasks.classification`

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
VOCABULARY = 2  # `config.data.vocabulary` says how many
DATA = ("name", "length", "vocabulary", "validation_examples")
CLASSES = 10
NEEDLE = 0  # stands before the token of the class, which is one of 1 to CLASSES; the others are noise
FIRST_NOISE = 1 + CLASSES
DISTANCES = 10  # groups of places
LEAST = 3  # tokens: needle, class, and one of noise
VALIDATION_SEED = 0  # the same rows are judged on every time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is drawn, and how much of it is judged.

    Attributes:
      vocabulary: V.
      validation_examples: rows that are judged.
      sha256: fingerprint of some of the rows, so that a run never goes on with another generator's.
    """

    vocabulary: int
    validation_examples: int
    sha256: str


def load(config) -> Corpus:
    """The corpus of `config.data`: `name` "needle", `length` T, `vocabulary` V and `validation_examples`.

    Raises:
      ValueError: another name, a length without room for a needle, a vocabulary without two tokens of noise, or so few
        possible rows that no half of them can be held out.
    """
    if config.name != "needle":
        raise ValueError(f"config.data.name={config.name!r}: unknown, want needle")
    if config.vocabulary < FIRST_NOISE + 2:
        raise ValueError(f"config.data.vocabulary={config.vocabulary}: want at least {FIRST_NOISE + 2}")
    _check_length(config.length)
    possible = (config.vocabulary - FIRST_NOISE) ** min(64, config.length - 2) * (config.length - 1)  # of a class
    if possible < 32:
        raise ValueError(
            f"config.data.length={config.length}: {possible} different rows of a class with vocabulary="
            f"{config.vocabulary}, want at least 32; write a larger length or vocabulary"
        )
    corpus = Corpus(config.vocabulary, config.validation_examples, "")
    few = dataclasses.replace(corpus, validation_examples=64)
    drawn = validation(few, config.length)[0], batch(few, seed=0, step=0, batch_size=64, length=config.length)
    digest = hashlib.sha256(b"".join(part["tokens"].tobytes() for part in drawn))
    return dataclasses.replace(corpus, sha256=digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint and sizes, and what guessing gets right."""
    labels = validation(corpus, length)[0]["labels"]
    counts = np.bincount(labels, minlength=CLASSES)
    return {
        "sha256": corpus.sha256,
        "pieces": "rows",
        "classes": CLASSES,
        "validation_examples": len(labels),
        "held_out_share": 0.5,
        "baselines": {"any class": 1 / CLASSES, "majority": float(counts.max() / counts.sum())},
    }


def fields(corpus):
    """The model answers with one score for each class."""
    return {"model.num_classes": CLASSES}


def batch(corpus, seed, step, batch_size, length):
    """Random rows that are not held out, a pure function of (seed, step).

    Returns:
      {"tokens" int32 [batch_size, T], "sizes" int32 [batch_size], all T, "labels" int32 [batch_size]}.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    return _examples(rng, corpus, batch_size, length, held=False)


def validation(corpus, length):
    """Random rows that are held out, the same ones each time, of any length.

    Returns:
      (as `batch`, with `validation_examples` rows; owners [rows]: each is a piece of its own).
    """
    return dict(_judged(corpus, length)), np.arange(corpus.validation_examples)


def groups(corpus, length):
    """The rows of `validation` by "distance" of the class from the beginning: ten equal parts, fewer of short rows."""
    edges = np.unique(np.linspace(2, length + 1, DISTANCES + 1).astype(int))
    index = np.searchsorted(edges, distances(validation(corpus, length)[0]["tokens"]), side="right") - 1
    return {"distance": ([f"{a}-{b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True)], index)}


def distances(tokens):
    """int [rows]: how many tokens the class stands behind the vector before the row, from 2 to T.

    >>> distances(np.array([[12, 0, 5, 11], [0, 7, 13, 12]])).tolist()
    [3, 2]
    """
    return (tokens == NEEDLE).argmax(1) + 2


def reach(length, window, depth):
    """Share of needles whose class is within reach of the vector before the row, through layers of a window.

    Of the others nothing is known, so that a model with that window gets reach + (1 - reach) / CLASSES right at best.

    Args:
      length: T.
      window: tokens on either side that a layer sees.
      depth: layers.

    >>> reach(512, window=32, depth=2)
    0.1232876712328767
    """
    return min(max(window * depth - 1, 0), length - 1) / (length - 1)


@functools.lru_cache(maxsize=2)
def _judged(corpus, length):
    """The examples of the judgement; kept, because several functions ask for them, and not to be written to."""
    rng = np.random.Generator(np.random.Philox(key=[VALIDATION_SEED, 0]))
    examples = _examples(rng, corpus, corpus.validation_examples, length, held=True)
    read_only(examples.values())
    return examples


def _check_length(length):
    if length < LEAST:
        raise ValueError(f"config.data.length={length}: want at least {LEAST}")


def _examples(rng, corpus, rows, length, held):
    """Examples of one side."""
    _check_length(length)
    (kept,) = one_side(lambda count: (_draw(rng, count, length, corpus.vocabulary),), rows, length, held, "needle")
    places = distances(kept) - 1
    labels = kept[np.arange(rows), places] - 1
    return {"tokens": kept, "sizes": np.full(rows, length, np.int32), "labels": labels}


def _draw(rng, rows, length, vocabulary):
    """int32 [rows, T]: noise, and at a place that is drawn from all there are the needle and its class."""
    tokens = rng.integers(FIRST_NOISE, vocabulary, (rows, length), dtype=np.int32)
    places = rng.integers(0, length - 1, rows)
    tokens[np.arange(rows), places] = NEEDLE
    tokens[np.arange(rows), places + 1] = rng.integers(1, FIRST_NOISE, rows)
    return tokens
