"""Questions about the grammar of sentences from a Universal Dependencies treebank, and the share answered right.

A model reads the words of a sentence and, if it reads graphs, their dependency tree: each word has an edge to itself,
one from its head (relation "down") and one to its head ("up").

`config.data.question` is one of

* "agreement": is a verb singular or plural? Its form is hidden behind a mask token, and one verb is asked about in a
  row (`tasks.agreement` says which verbs, and why). In training the model also says the number of each noun, name and
  pronoun, which are not hidden. The other words of the sentence stay, also others that agree with
  the subject: a participle, in languages where it has a number, or a second verb. The number is what the treebank says,
  also of verbs whose form shows none: in English those in the past tense but "was" and "were", 18 % of the questions
  that English-EWT is judged by. They ask for the subject's number alone.
* "pos": the universal part of speech of every word.
* "features": its part of speech and its morphological features, all in one label ("NOUN|Number=Plur").
* "relations": its relation to its head, without subtype ("nsubj").

`config.data.tree` says which tree the model gets, which matters because a tree can give the answer away:

* "labelled": the annotators', each relation and direction a kind of edge of its own. For "agreement" the edge nsubj
  points at the word that decides; for "pos" and "features" many relations leave one choice (det, case, aux, punct).
  An upper bound. For "relations" it would be the answer itself, and is refused.
* "unlabelled": the annotators', with three kinds of edges: self, down, up. They saw the hidden word, and sometimes its
  number decides the tree: in "the number of people who are" the verb's form says what "who" refers to.
  For "relations" it says what no reader of plain text knows, the head.
* "predicted": unlabelled, by a small parser (`tasks.parser`) that is trained on the same training sentences and sees
  exactly what the model sees, the mask token in place of the verb. It has seen none of the sentences it parses. The
  honest one: whatever the tree says comes from the words and from other sentences' trees.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from models.edges import Edges
from tasks import agreement, parser, treebank
from tasks.syntax_rows import PER_WORD, Rows, Tables, agreement_rows, examples_of, guessed_rows, word_rows
from tasks.text import SIZE, UNIT, cross_entropy, tokens
from tasks.words import VOCABULARY, Words

__all__ = ["SIZE", "UNIT", "VOCABULARY", "tokens"]  # as they are in `tasks.text` and `tasks.words`

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
DATA = ("name", "path", "dir", "length", "question", "tree")
# Question -> the label of a word, where every word is asked about.
LABELS = {
    "pos": lambda word: word.upos,
    "features": lambda word: "|".join([word.upos, *(f"{name}={value}" for name, value in word.feats.items())]),
    "relations": lambda word: word.relation,
}
QUESTIONS = ("agreement", *LABELS)
TREES = ("labelled", "unlabelled", "predicted")
CEILINGS = ("subject",)  # those of the rules without a network that know what a model must find out
UNSEEN = "(unseen)"  # a label that training has not, so that no model is right about it
PICTURES, PICTURED = 6, 24  # sentences in the report, and the most words they have
# What rows are grouped by -> {group: the least number in it}.
GROUPS = {
    "distance from subject to verb": {"1": 1, "2": 2, "3-4": 3, "5-7": 5, "8 and more": 8},
    "number of attractors": {"0": 0, "1": 1, "2 and more": 2},
    "words in the sentence": {"1-8": 1, "9-16": 9, "17-32": 17, "33 and more": 33},
}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Questions to learn from and to be judged by.

    Attributes:
      question: one of QUESTIONS.
      tree: one of TREES.
      classes: the possible answers.
      relations: the relations that edges have, in either direction; one for all if the tree has no labels.
      train: `Rows` of the training file with at most `length` words.
      validation: `Rows` of the development and test files, of any length.
      words: the words of each sentence of those.
      sizes: what `describe` says that does not depend on the length.
      sha256: fingerprint of all this but the predicted trees, whose last arcs may depend on the machine.
    """

    question: str
    tree: str
    classes: tuple[str, ...]
    relations: tuple[str, ...]
    train: Rows
    validation: Rows
    words: tuple[tuple[str, ...], ...]
    sizes: dict
    sha256: str


def load(config) -> Corpus:
    """Reads a treebank and makes questions of it.

    Args:
      config: `name` "ud", `dir` or `path` (see `tasks.treebank.read`), `length`, the most words of a training sentence,
        `question` and `tree`.

    Returns:
      The corpus, the same for the same files.

    Raises:
      ValueError: another name, question or tree; a tree that is the answer; no treebank; no questions, or none in
        sentences so short.
      OSError: a file that cannot be read.
    """
    for field, choices in {"name": ("ud",), "question": QUESTIONS, "tree": TREES}.items():
        if config[field] not in choices:
            raise ValueError(f"config.data.{field}={config[field]!r}: unknown, want {' or '.join(choices)}")
    if (config.question, config.tree) == ("relations", "labelled"):
        raise ValueError("config.data.tree='labelled': its labels are the relations asked for; write predicted")
    name, train, held = treebank.read(config)
    words = Words.of(word.form for sentence in train for word in sentence.words)
    classes, relations = _classes(train, held, config.question), _relations(train + held, config.tree)
    tables = Tables(words, _indices(classes), _indices(relations))
    short = [sentence for sentence in train if len(sentence.words) <= config.length]
    rows = _rows(config.question, train, (short, held), tables)
    asked = [[row for row in part if row.asked.any()] for part in rows]
    if not asked[0] and len(short) < len(train):
        raise ValueError(
            f"config.data.length={config.length}: {name} has no training sentence with so few words to ask "
            f"{config.question!r} about, and {len(train) - len(short):,} have more; write a greater length"
        )
    if not all(asked):
        raise ValueError(
            f"config.data.question={config.question!r}: {name} has no sentence to ask it about; write another question"
        )
    sha256 = _fingerprint((config.question, config.tree, classes, relations), asked)
    sizes = {
        "treebank": name,
        "train_sentences": len(train),
        "train_left_out": len(train) - len(short),  # they have more words than `length`
        "train_examples": len(asked[0]),
        "validation_sentences": len({row.sentence for row in asked[1]}),
    }
    if config.tree == "predicted":
        asked, sizes["parser_uas"] = _parsed(rows)
    if config.question in LABELS:
        asked = guessed_rows(*asked, len(classes))
    texts = tuple(tuple(word.form for word in sentence.words) for sentence in held)
    return Corpus(config.question, config.tree, classes, relations, *map(Rows.of, asked), texts, sizes, sha256)


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


def _classes(train, held, question):
    """The answers that training has, and UNSEEN if others occur."""
    if question == "agreement":
        return agreement.NUMBERS
    seen, judged = ({LABELS[question](word) for s in part for word in s.words} for part in (train, held))
    return (*sorted(seen), *[UNSEEN] * bool(judged - seen))


def _relations(sentences, tree):
    """What the edges of a tree are told apart by; no edge has the relation root."""
    if tree != "labelled":
        return ("head",)
    return tuple(sorted({word.relation for sentence in sentences for word in sentence.words} - {"root"}))


def _indices(names):
    return {name: index for index, name in enumerate(names)}


def _rows(question, train, parts, tables):
    """For each part a list of `Row`."""
    if question in LABELS:
        return [word_rows(part, LABELS[question], tables) for part in parts]
    numbers = [each.number for sentence in train for each in agreement.questions(sentence.words)]
    majority = int(np.bincount(numbers, minlength=1).argmax())
    return [agreement_rows(part, tables, majority) for part in parts]


def _fingerprint(names, parts):
    digest = hashlib.sha256(repr(names).encode())
    for part in parts:
        for row in part:
            for array in row[: len(PER_WORD)]:
                digest.update(array.tobytes())
    return digest.hexdigest()


def _parsed(parts):
    """The rows that ask something with a predicted tree each, and the share of right heads among those to judge.

    The parser learns also from the training rows that ask nothing.
    """
    train, held = parts[0], [row for row in parts[1] if row.asked.any()]
    pairs = [[(row.tokens, row.heads) for row in part] for part in (train, held)]
    trees = parser.jackknife(pairs[0], [row.sentence for row in train], pairs[1], VOCABULARY)
    right = np.concatenate([tree == row.heads for tree, row in zip(trees[1], held, strict=True)])
    asked = [
        [row._replace(heads=heads) for row, heads in zip(part, found, strict=True) if row.asked.any()]
        for part, found in zip((train, held), trees, strict=True)
    ]
    return asked, float(right.mean())
