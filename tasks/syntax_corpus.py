"""Questions about grammar made from a Universal Dependencies treebank, and the trees that stand beside them.

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

import numpy as np

from tasks import agreement, predicted_trees, treebank
from tasks.syntax_rows import PER_WORD, Rows, Tables, agreement_rows, guessed_rows, word_rows
from tasks.words import VOCABULARY, Words

DATA = ("name", "path", "dir", "length", "question", "tree")
# Question -> the label of a word, where every word is asked about.
LABELS = {
    "pos": lambda word: word.upos,
    "features": lambda word: "|".join([word.upos, *(f"{name}={value}" for name, value in word.feats.items())]),
    "relations": lambda word: word.relation,
}
QUESTIONS = ("agreement", *LABELS)
TREES = ("labelled", "unlabelled", "predicted")
UNSEEN = "(unseen)"  # a label that training has not, so that no model is right about it


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
    trees = predicted_trees.jackknife(pairs[0], [row.sentence for row in train], pairs[1], VOCABULARY)
    right = np.concatenate([tree == row.heads for tree, row in zip(trees[1], held, strict=True)])
    asked = [
        [row._replace(heads=heads) for row, heads in zip(part, found, strict=True) if row.asked.any()]
        for part, found in zip((train, held), trees, strict=True)
    ]
    return asked, float(right.mean())
