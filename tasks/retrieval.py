"""Byte-level retrieval: whether two texts are related, each pressed into a vector before they meet.

The "Retrieval" task of Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.3: two papers of the ACL
Anthology Network (Radev et al. 2013), related where one cites the other, 4,000 bytes of each. A model reads either text
by itself and compares two vectors (`models.two_towers`), so that what tells papers apart must be in the vector.

Without those files the texts are stretches of the source code of Python's own library, related where they come from one
file, or from files of one package. It is split by file, so that no file of the judgement was ever seen.
"""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np

from tasks import classification
from tasks.pair_files import TEXT_BYTES, Pairs, examples_of, read_folder, read_published
from tasks.source import check_read, source_of
from tasks.text import class_scores, standard_library

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("two_towers",)
VOCABULARY = 256  # the bytes
DATA = ("name", "path", "dir", "length", "validation_bytes")
SIZE, UNIT = "length", "tokens"
PAIRS = 65_536  # training pairs of Python's own library
HELD_OUT, DEVELOPMENT = 51, 13  # of 256 values of a hash: files of the judgement, and those looked at on the way
PACKAGE_DEVELOPMENT = 5  # one in so many of a package's training files is looked at on the way
FITTED = 2048  # training pairs that the baselines learn from
GRAM = 3  # bytes that the baseline counts together


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Pairs of texts in three parts.

    Attributes:
      classes: the names of label 0 and label 1.
      train: `Pairs` to learn from.
      development: `Pairs` looked at on the way.
      validation: `Pairs` the metric is computed on.
      validation_bytes: as many bytes of the last two are looked at, both texts counted, evenly spread over the pairs.
      sha256: fingerprint of all this.
    """

    classes: tuple[str, str]
    train: Pairs
    development: Pairs
    validation: Pairs
    validation_bytes: int
    sha256: str


def load(config) -> Corpus:
    """Reads the texts that `config.data` names and pairs them.

    Args:
      config: `name` (one of SOURCES), `path` (a folder of the user's own with train.tsv, eval.tsv and test.tsv, see
        `tasks.pair_files.read_tsv`; non-empty replaces the default source), `dir` (folder that holds the published
        files), `length` T of either text, and `validation_bytes`.

    Returns:
      The corpus, the same for the same files, in any process.

    Raises:
      ValueError: unknown source, settings that the source does not take, a file that is incomplete or does not read.
      OSError: a file that cannot be read.
    """
    source = source_of(config, SOURCES, "python_files")
    check_read(config, source, ("path", "dir"), {"path": ("path",), "aan": ("dir",)}.get(source, ()))
    if source in ("path", "aan") and config.length > TEXT_BYTES:
        raise ValueError(f"config.data.length={config.length}: want at most {TEXT_BYTES}, what is read of each text")
    classes, *parts = SOURCES[source](config)
    digest = hashlib.sha256("\n".join(classes).encode())
    for part in parts:
        for field in dataclasses.fields(part):
            digest.update(getattr(part, field.name).tobytes())
    return Corpus(classes, *parts, config.validation_bytes, digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and baselines on pairs of `length`."""
    return {
        "sha256": corpus.sha256,
        "classes": list(corpus.classes),
        "pieces": "texts",
        "train_pairs": len(corpus.train.labels),
        "train_texts": len(corpus.train.edges) - 1,
        "development_pairs": len(corpus.development.labels),
        "validation_pairs": len(corpus.validation.labels),
        "validation_texts": len(corpus.validation.edges) - 1,
        "validation_examples": len(validation(corpus, length)[1]),
        "baselines": baselines(corpus, length),
    }


def tokens(length):
    """An example has two texts of `length` tokens."""
    return 2 * length


def fields(corpus):
    """Two texts are related or not."""
    return {"model.num_classes": 2}


def batch(corpus, seed, step, batch_size, length):
    """Training pairs drawn at random, a pure function of (seed, step).

    Returns:
      As `tasks.pair_files.examples_of`, with batch_size rows.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    return examples_of(corpus.train, rng.integers(0, len(corpus.train.labels), size=batch_size), length)


def development(corpus, length):
    """Pairs that are neither trained on nor judged: as `validation`."""
    return _some(corpus.development, corpus.validation_bytes, length)


def validation(corpus, length):
    """Pairs of the judgement, all of them or as many as `validation_bytes` allows, evenly spread.

    Returns:
      (as `tasks.pair_files.examples_of`, owners [rows], the first text of the pair: pairs that share it go together).
    """
    return _some(corpus.validation, corpus.validation_bytes, length)


def score(model, examples, rng=None):
    """Nats, 1 for each pair, 1 for a right answer, and 1 for each pair, from two towers that score classes."""
    texts = {name: examples[name].astype(jnp.int32) for name in ("first", "second")}
    places = jnp.arange(examples["first"].shape[1])
    real = {f"{name}_mask": places < examples[f"{name}_sizes"][:, None] for name in texts}
    return class_scores(model(**texts, **real, rng=rng), examples["labels"])


def baselines(corpus, length):
    """Accuracy of models that count, on exactly the pairs the variants are judged on.

    "majority" gives the answer most frequent in training; "trigrams" says related where the cosine of the two texts'
    counts of three bytes in a row, each as a logarithm, is above the threshold that was best on FITTED training pairs.
    """
    examples, _ = validation(corpus, length)
    labels = examples["labels"]
    seen = examples_of(corpus.train, classification.spread(len(corpus.train.labels), FITTED), length)
    threshold = best_threshold(cosines(seen), seen["labels"])
    answers = {
        "majority": np.bincount(corpus.train.labels).argmax(),
        "trigrams": cosines(examples) > threshold,
    }
    return {name: float(np.mean(answer == labels)) for name, answer in answers.items()}


def cosines(examples):
    """Cosine of the two vectors log(1 + count) over stretches of GRAM bytes; 0 where a text has none.

    Args:
      examples: as `tasks.pair_files.examples_of`.

    Returns:
      float64 [rows].
    """
    found = []
    for i in range(len(examples["labels"])):
        (ones, x), (others, y) = (
            _log_counts(examples[name][i, : examples[f"{name}_sizes"][i]]) for name in ("first", "second")
        )
        _, left, right = np.intersect1d(ones, others, assume_unique=True, return_indices=True)
        norm = np.sqrt((x @ x) * (y @ y))
        found.append(x[left] @ y[right] / norm if norm else 0.0)
    return np.array(found)


def best_threshold(values, labels):
    """The number above which label 1 is right most often, halfway between two of the values.

    >>> best_threshold(np.array([0.1, 0.4, 0.2, 0.8]), np.array([0, 1, 0, 1]))
    0.30000000000000004
    """
    order = np.argsort(values, kind="stable")
    values, labels = values[order], labels[order]
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    right = np.append(0, np.cumsum(labels == 0)) + labels.sum() - np.append(0, np.cumsum(labels == 1))
    possible = np.append(np.append(True, values[1:] > values[:-1]), True)  # equal values are on one side
    return float(cuts[np.where(possible, right, -1).argmax()])


def _log_counts(text):
    """(the stretches of GRAM bytes in a text, as numbers; log(1 + how often each occurs))."""
    wide = text.astype(np.int64)
    count = max(0, len(wide) - GRAM + 1)
    grams, counts = np.unique(sum(wide[i : i + count] << 8 * i for i in range(GRAM)), return_counts=True)
    return grams, np.log1p(counts)


def _some(pairs, limit, length):
    rows = classification.spread(len(pairs.labels), max(1, limit // tokens(length)))
    return examples_of(pairs, rows, length), np.unique(pairs.owners[rows, 0], return_inverse=True)[1]


def _python_files(config):
    """Stretches of T bytes of Python's own library, in half of the pairs of one file; each file counts as much.

    The two stretches do not overlap, so that files too short for them are left out; copies count once. Texts cut at
    random from one document as related ones: Izacard et al. 2022, arXiv:2112.09118, section 3.1. About a fifth of the
    files are for the judgement, by a hash of their names, and a twentieth for development.
    """
    root, paths = standard_library()
    contents, seen = ([], [], []), set()  # train, development, validation
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
        content = path.read_bytes()
        if len(content) >= 2 * config.length and content not in seen and not name.startswith(classification.GENERATED):
            seen.add(content)
            rank = hashlib.sha256(name.encode()).digest()[0]
            contents[2 if rank < HELD_OUT else 1 if rank < HELD_OUT + DEVELOPMENT else 0].append(content)
    documents = [classification.Documents.of(each, np.arange(len(each))) for each in contents]
    weights = [np.ones(len(each.labels)) for each in documents]
    return ("different files", "same file"), *_paired(documents, weights, config)


def _python_packages(config):
    """Stretches of T bytes from two files, in half of the pairs of one package; the packages of `tasks.classification`.

    The first text is from a file drawn by its size; the second is, too, among the files that the label leaves. Packages
    have about as many bytes each, so that one of the texts alone tells nothing of the label.
    """
    _, train, validation = classification.SOURCES["python_packages"](config)
    rank = np.zeros(len(train.labels), int)  # of a file in its package
    for label in np.unique(train.labels):
        members = train.labels == label
        rank[members] = np.arange(members.sum())
    held = rank % PACKAGE_DEVELOPMENT == PACKAGE_DEVELOPMENT - 1
    documents = [_kept(train, ~held), _kept(train, held), validation]
    weights = [np.diff(each.edges) for each in documents]
    return ("different packages", "same package"), *_paired(documents, weights, config)


def _kept(documents, chosen):
    edges = documents.edges
    contents = [documents.text[edges[i] : edges[i + 1]].tobytes() for i in np.flatnonzero(chosen)]
    return classification.Documents.of(contents, documents.labels[chosen])


def _paired(documents, weights, config):
    """The `Pairs` of each part, the same in every process; half of them within a label, in random order.

    Args:
      documents: the `Documents` to train on, of development, of the judgement.
      weights: for each part how often a document is drawn, [documents].
      config: `config.data`.
    """
    judged = max(2, config.validation_bytes // tokens(config.length))
    counts, found = (PAIRS, judged, judged), []
    for part, (each, weight, count) in enumerate(zip(documents, weights, counts, strict=True)):
        if len(np.unique(each.labels)) < 2:
            raise ValueError(
                f"config.data.length={config.length}: too few files of Python's own library are twice as long; write a "
                "smaller one, or pair other texts with --config.data.path=FOLDER"
            )
        rng = np.random.Generator(np.random.Philox(key=[part, count]))
        labels = rng.permutation(np.arange(count, dtype=np.int32) % 2)
        owners = _owners(rng, each.labels, weight, labels)
        starts = _starts(rng, np.diff(each.edges)[owners], owners[:, 0] == owners[:, 1], config.length)
        found.append(Pairs(each.text, each.edges, owners, starts, labels))
    return found


def _owners(rng, groups, weights, labels):
    """Two documents for each pair, int [pairs, 2]: of one group, if possible not the same, or of two groups."""
    first = rng.choice(len(groups), len(labels), p=weights / weights.sum())
    second = np.zeros_like(first)
    for owner, label in sorted({*zip(first.tolist(), labels.tolist(), strict=True)}):
        rows = np.flatnonzero((first == owner) & (labels == label))
        fit = (groups == groups[owner]) == label
        others = fit & (np.arange(len(groups)) != owner)
        chances = np.where(others if others.any() else fit, weights, 0)
        second[rows] = rng.choice(len(groups), len(rows), p=chances / chances.sum())
    return np.stack([first, second], axis=1)


def _starts(rng, sizes, same, length):
    """Where the two stretches begin, int [pairs, 2]; in the same document they do not overlap, if it is long enough."""
    apart = rng.integers(0, np.maximum(sizes - length, 0) + 1)
    places = np.sort(rng.integers(0, np.maximum(sizes - 2 * length, 0) + 1), axis=1)
    behind = np.minimum(places + [0, length], np.maximum(sizes - length, 0))
    together = rng.permuted(behind, axis=1)
    return np.where(same[:, None], together, apart)


SOURCES = {
    "python_files": _python_files,
    "python_packages": _python_packages,
    "path": lambda config: (("unrelated", "related"), *read_folder(config.path)),
    "aan": lambda config: (("unrelated", "related"), *read_published(config.dir)),
}
