"""Questions about the grammar of sentences from a Universal Dependencies treebank, and the share answered right.

A model reads the words of a sentence and, if it reads graphs, their dependency tree: each word has an edge to itself,
one from its head (relation "down") and one to its head ("up").

`tasks.syntax_corpus` says which questions there are and which trees.
"""

import jax
import jax.numpy as jnp
import numpy as np

from models.edges import Edges
from tasks.syntax_corpus import DATA, load
from tasks.syntax_rows import examples_of
from tasks.text import SIZE, UNIT, cross_entropy, tokens
from tasks.words import VOCABULARY

__all__ = ["DATA", "SIZE", "UNIT", "VOCABULARY", "load", "tokens"]  # as they are in the files they come from

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
CEILINGS = ("subject",)  # those of the rules without a network that know what a model must find out
PICTURES, PICTURED = 6, 24  # sentences in the report, and the most words they have
# What rows are grouped by -> {group: the least number in it}.
GROUPS = {
    "distance from subject to verb": {"1": 1, "2": 2, "3-4": 3, "5-7": 5, "8 and more": 8},
    "number of attractors": {"0": 0, "1": 1, "2 and more": 2},
    "words in the sentence": {"1-8": 1, "9-16": 9, "17-32": 17, "33 and more": 33},
}


def describe(corpus, length):
    """What `data.json` keeps of a corpus: fingerprint, classes and sizes, baselines, ceilings, the parser's accuracy.

    "parser_uas" is the share of the words of sentences judged on, of any length, whose predicted head is the
    annotators', punctuation included.

    Raises:
      ValueError: no sentence to judge on has so few words.
    """
    kept = corpus.validation.at_most(length)
    return {
        "sha256": corpus.sha256,
        "question": corpus.question,
        "tree": corpus.tree,
        "classes": list(corpus.classes),
        "pieces": "sentences",
        **corpus.sizes,
        "validation_examples": len(kept),
        "validation_left_out": len(corpus.validation.sizes) - len(kept),
        "baselines": baselines(corpus, length),
        "ceilings": ceilings(corpus, length),
    }


def fields(corpus):
    """The model answers with a score for each class at each word; edges have a kind for each relation and direction."""
    return {
        "model.num_classes": len(corpus.classes),
        "model.pool": "tokens",
        "model.num_relations": 1 + 2 * len(corpus.relations),
    }


def batch(corpus, seed, step, batch_size, length):
    """Questions drawn at random, a pure function of (seed, step).

    Returns:
      As `examples_of`, with batch_size rows, a share of whose words are shown as if they were rare.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    kept = corpus.train.at_most(length)
    chosen = kept[rng.integers(0, len(kept), batch_size)]
    return examples_of(corpus.train, chosen, length, len(corpus.relations), rng)


def validation(corpus, length):
    """The questions about all sentences of at most `length` words of the development and the test file.

    No weights are chosen by them. The settings of `configs/compare_syntax.py` were tried on a split by documents of the
    training file, the constants of the parser in part on the development file of English-EWT.

    Returns:
      (as `examples_of`, owners [rows]: sentences).

    Raises:
      ValueError: none has so few words.
    """
    kept = corpus.validation.at_most(length)
    examples = examples_of(corpus.validation, kept, length, len(corpus.relations))
    return examples, np.unique(corpus.validation.sentences[kept], return_inverse=True)[1]


def groups(corpus, length):
    """How the rows of `validation` fall into groups: {name: (labels, index [rows])}."""
    kept = corpus.validation.at_most(length)
    found = {}
    for name, numbers in corpus.validation.groups.items():
        labels, least = zip(*GROUPS[name].items(), strict=True)
        found[name] = list(labels), np.searchsorted(least, numbers[kept], side="right") - 1
    return found


def score(model, examples, rng=None):
    """Nats, words they are about, right answers and questions of each row, from an encoder that scores every word.

    In training the loss is also about the words that are practised.
    """
    asked, labels = examples["asked"], examples["labels"]
    learnt = asked if rng is None else asked | examples["practised"]
    logits = model(examples["tokens"], **_inputs(model, examples), rng=rng)
    nats = jnp.where(learnt, cross_entropy(logits, labels), 0).sum(1)
    right = asked & (logits.argmax(-1) == labels)
    learnt, right, asked = (each.sum(1, dtype=jnp.float32) for each in (learnt, right, asked))
    return nats, learnt, right, asked


def pictures(model, corpus, length):
    """What a model answers about a few short sentences, and where it looks.

    For agreement those with the most attractors; else it is the word farthest from its head that is shown.

    Returns:
      {"words" str [n, T], "heads" int [n, T] of the tree it got, -1 root, -2 padding, "asked" int [n], the place of the
      word in question, "attention" float32 [n, T], what that takes of each word, the mean over heads and layers,
      "labels" int [n], "answers" int [n], "confidence" float32 [n], the answer's probability}.
    """
    rows = corpus.validation
    hard = rows.groups.get("number of attractors", rows.sizes)
    chosen = rows.at_most(min(length, max(PICTURED, rows.sizes.min())))
    chosen = chosen[np.lexsort((rows.sizes[chosen], -hard[chosen]))][:PICTURES]
    cut, each = max(rows.sizes[chosen]), np.arange(len(chosen))
    examples = examples_of(rows, chosen, cut, len(corpus.relations))
    inputs, tokens = _inputs(model, examples), jnp.asarray(examples["tokens"])
    real = np.arange(cut) < examples["sizes"][:, None]
    heads = examples["senders"][:, cut : 2 * cut]  # those of the edges down; a root has itself
    asked = np.where(examples["asked"], abs(np.arange(cut) - heads), -1).argmax(1)
    maps = model.attention_maps(tokens, **inputs)
    odds = jax.nn.softmax(model(tokens, **inputs)[each, asked])
    texts = [corpus.words[sentence] for sentence in rows.sentences[chosen]]
    return {
        "words": np.array([[*words, *[""] * (cut - len(words))] for words in texts]),
        "heads": np.where(examples["edge_mask"][:, cut : 2 * cut], heads, np.where(real, -1, -2)),
        "asked": asked,
        "attention": np.mean([layer.mean(1)[each, asked] for layer in maps], 0),
        "labels": examples["labels"][each, asked],
        "answers": np.asarray(odds.argmax(-1)),
        "confidence": np.asarray(odds.max(-1)),
    }


def baselines(corpus, length):
    """Accuracy of rules that need no network, on exactly the rows the variants are judged on.

    "majority" gives the answer most frequent in training. For agreement, "nearest noun" gives the number that the
    annotators wrote at the last noun, name or pronoun before the verb, the majority where there is none. For the other
    questions "word" gives the most frequent answer for the same token.
    """
    return {name: value for name, value in _accuracies(corpus, length).items() if name not in CEILINGS}


def ceilings(corpus, length):
    """Accuracy of rules that know what a model must find out, on the same rows; none but for agreement.

    "subject" gives the number that the annotators wrote at the subject, the majority where there is none, and finds it
    by their tree. It goes by one word, and so is wrong about "A and B are".
    """
    return {name: value for name, value in _accuracies(corpus, length).items() if name in CEILINGS}


def _accuracies(corpus, length):
    """The share of right answers of each rule."""
    rows = corpus.validation
    kept = np.isin(np.arange(len(rows.sizes)), rows.at_most(length))
    asked = rows.asked & np.repeat(kept, rows.sizes)
    return {name: float(np.mean(guess[asked] == rows.labels[asked])) for name, guess in rows.guesses.items()}


def _inputs(model, examples):
    """What the model is given beside the tokens."""
    tokens = examples["tokens"]
    inputs = {"key_mask": jnp.arange(tokens.shape[1]) < examples["sizes"][:, None]}
    if model.reads_graph:
        names = "senders", "receivers", "relations", "edge_mask"
        inputs["graph"] = Edges(*(jnp.asarray(examples[name]) for name in names))
    return inputs
