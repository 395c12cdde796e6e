"""DictionaryLookup: each key asks which of k records has its value, so what to attend to depends on who asks.

Brody, Alon and Yahav 2022, "How Attentive are Graph Attention Networks?", arXiv:2105.14491, section 4.1 and figure 2.
GAT ranks the records alike for every query (its attention is static), GATv2 does not.
"""

import dataclasses
import hashlib
import itertools
import math

import numpy as np

from tasks.graphs import UNIT, score

__all__ = ["UNIT", "score"]  # as they are in `tasks.graphs`

METRIC = {"name": "accuracy", "higher_is_better": True}  # on permutations trained on, or not: `config.data.judge`
MODELS = ("graph_network",)
VOCABULARY = 0  # nodes are no tokens
DATA = ("name", "num_keys", "judge")
SIZE = "num_keys"
JUDGE = ("train", "unseen")
MAX_PERMUTATIONS = 32_000  # with more than so many, as from 8 keys on, so many are drawn, some twice
TRAIN_SHARE = 0.8  # of the permutations, if pairs of key and value were independent
MAX_PIECES = 256  # that the error bar is the spread over


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The dictionaries, one permutation each: key i has value permutation[i].

    Attributes:
      train: int32 [rows, k], permutations all of whose pairs (key, value) may be trained on.
      unseen: int32 [rows, k], the others: each has a pair, or more, that training never shows.
      judge: which of the two the metric is computed on.
      sha256: fingerprint of both.
    """

    train: np.ndarray
    unseen: np.ndarray
    judge: str
    sha256: str

    @property
    def num_keys(self):
        """The k of the paper."""
        return self.train.shape[1]


def load(config) -> Corpus:
    """The corpus of `config.data`: `name` "dictionary_lookup", `num_keys` k, `judge` ("train" or "unseen").

    All permutations of k values, or MAX_PERMUTATIONS drawn ones; floor(TRAIN_SHARE^(1/k) k^2) of the k^2 pairs of a key
    and its value may be trained on, the same for every seed, and permutations with another pair are unseen.

    Raises:
      ValueError: another name, fewer than two keys, or another half.
    """
    if config.name != "dictionary_lookup":
        raise ValueError(f"config.data.name={config.name!r}: unknown, want dictionary_lookup")
    if config.judge not in JUDGE:
        raise ValueError(f"config.data.judge={config.judge!r}: unknown, want one of {', '.join(JUDGE)}")
    count = config.num_keys
    if count < 2:
        raise ValueError(f"config.data.num_keys={count}: one key has one answer, want 2 or more")
    rng = np.random.Generator(np.random.Philox(key=[0, count]))
    if math.factorial(count) > MAX_PERMUTATIONS:
        permutations = rng.permuted(np.tile(np.arange(count, dtype=np.int32), (MAX_PERMUTATIONS, 1)), axis=1)
    else:
        permutations = np.array(list(itertools.permutations(range(count))), np.int32)
    allowed = np.zeros(count**2, bool)
    allowed[rng.permutation(count**2)[: int(TRAIN_SHARE ** (1 / count) * count**2)]] = True
    seen = allowed.reshape(count, count)[np.arange(count), permutations].all(1)
    digest = hashlib.sha256(permutations.tobytes() + seen.tobytes())
    return Corpus(permutations[seen], permutations[~seen], config.judge, digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, sizes, which half is judged, and what guessing gives."""
    return {
        "sha256": corpus.sha256,
        "num_keys": corpus.num_keys,
        "train_permutations": len(corpus.train),
        "unseen_permutations": len(corpus.unseen),
        "judge": corpus.judge,
        "validation_examples": len(_judged(corpus)),
        "baselines": baselines(corpus),
    }


def tokens(length):
    """An example has `length` nodes that ask and as many that answer."""
    return 2 * length


def fields(corpus):
    """The model takes a key and a value, or that there is none, and answers with one score for each value."""
    return {"model.num_features": 2 * corpus.num_keys + 1, "model.num_classes": corpus.num_keys}


def batch(corpus, seed, step, batch_size, length):
    """Training permutations drawn at random, a pure function of (seed, step); as `examples_of`."""
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    return examples_of(corpus.train[rng.integers(len(corpus.train), size=batch_size)])


def validation(corpus, length):
    """Every permutation of the half that is judged, as (`examples_of`, owners); a piece is every MAX_PIECES-th.

    Raises:
      ValueError: `length` is not the number of keys, whose embeddings the model has.
    """
    if length != corpus.num_keys:
        raise ValueError(f"length: got {length} keys, and the model has embeddings of {corpus.num_keys}")
    return examples_of(_judged(corpus)), np.arange(len(_judged(corpus))) % MAX_PIECES


def examples_of(permutations):
    """The graphs of some dictionaries.

    Nodes 0 to k - 1 ask: node i has key i and the value k, "none". Nodes k to 2 k - 1 answer: node k + i has key i and
    its value. An edge runs from each that answers to each that asks; there are no others. A node's features are two
    ones, at its key, and at k + its value: a projection of them is the sum of two embeddings.

    Args:
      permutations: int [rows, k].

    Returns:
      As `tasks.graphs.batch`, with 2 k nodes, 2 k + 1 features and k^2 edges; those that ask are asked about.

    >>> found = examples_of(np.array([[1, 0]]))
    >>> found["feature_places"][0].tolist()
    [[0, 0], [0, 4], [1, 1], [1, 4], [2, 0], [2, 3], [3, 1], [3, 2]]
    >>> found["senders"][0].tolist(), found["receivers"][0].tolist(), found["labels"][0].tolist()
    ([2, 3, 2, 3], [0, 0, 1, 1], [1, 0, 0, 0])
    """
    rows, count = permutations.shape
    number = np.arange(count, dtype=np.int32)
    same = lambda array: np.broadcast_to(array, (rows, *np.shape(array)))  # noqa: E731
    keys, values = same(np.tile(number, 2)), np.append(np.full_like(permutations, count), permutations, axis=1)
    features = np.stack([keys, count + values], axis=-1).reshape(rows, -1)
    nodes = same(np.repeat(np.arange(2 * count), 2))
    return {
        "feature_values": same(np.ones(4 * count, np.float32)),
        "feature_places": np.stack([nodes, features], axis=-1).astype(np.int32),
        "senders": same(np.tile(count + number, count)),
        "receivers": same(np.repeat(number, count)),
        "edge_mask": same(np.ones(count**2, bool)),
        "labels": np.append(permutations, np.zeros_like(permutations), axis=1).astype(np.int32),
        "asked": same(np.arange(2 * count) < count),
    }


def baselines(corpus):
    """Accuracy of guessing, on the permutations the variants are judged on.

    "one record" answers every key of a dictionary with one of its values, which is what a model can do that looks at
    the same record whoever asks; "key alone" gives the value that a key has most often in training.
    """
    judged, count = _judged(corpus), corpus.num_keys
    often = [np.bincount(values, minlength=count).argmax() for values in corpus.train.T]
    return {"one record": 1 / count, "key alone": float((judged == often).mean())}


def _judged(corpus):
    return corpus.train if corpus.judge == "train" else corpus.unseen
