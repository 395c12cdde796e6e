"""Byte-level classification: which class a stretch of text belongs to, and the share of right answers.

The "Text" task of Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.2: raw bytes, cut or padded to a
fixed length, so that a model must put together characters, words and phrases by itself.
"""

import dataclasses
import hashlib
import lzma
import tarfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tasks.source import check_read, source_of
from tasks.text import DATA, SIZE, UNIT, class_scores, ngram_bits, standard_library, tokens, visible_files

__all__ = ["DATA", "SIZE", "UNIT", "tokens"]  # as they are in `tasks.text`

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
VOCABULARY = 256  # the bytes
PACKAGES = 6  # classes of the default source: so many are learnt in half a minute on two cores
MIN_FILES = 4  # a package with fewer has too little to hold out
GENERATED = ("encodings",)  # tables written by one program: near copies, which one side would learn from the other
HELD_OUT = 0.2  # of the bytes of each class, for the judgement
REVIEWS = 12_500  # in each folder of the published IMDB
IMDB = (
    "the Large Movie Review Dataset v1.0 (Maas et al. 2011), aclImdb_v1.tar.gz of ai.stanford.edu/~amaas/data/sentiment"
)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Labelled texts, one after the other.

    Attributes:
      text: uint8 [bytes].
      edges: int [documents + 1], where each begins and the last one ends.
      labels: int [documents], index of the class.
    """

    text: np.ndarray
    edges: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, contents, labels):
        """From a list of bytes and the label of each."""
        edges = np.cumsum([0, *map(len, contents)])
        return cls(np.frombuffer(b"".join(contents), np.uint8), edges, np.asarray(labels, np.int32))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Labelled documents, split so that no document is both trained on and judged on.

    Attributes:
      classes: their names.
      train: documents to learn from.
      validation: documents the metric is computed on.
      whole: a document is one example, its first T bytes; else it is cut into windows of T bytes, each an example.
      validation_bytes: examples of as many bytes are judged, evenly spread over the documents.
      sha256: fingerprint of all this.
    """

    classes: tuple[str, ...]
    train: Documents
    validation: Documents
    whole: bool
    validation_bytes: int
    sha256: str


def load(config) -> Corpus:
    """Reads the documents that `config.data` names and splits them.

    Args:
      config: `name` (one of SOURCES), `path` (a folder of the user's own with one folder a class; non-empty replaces
        the default source), `dir` (folder that holds the published data sets), `length` T and `validation_bytes`.

    Returns:
      The corpus, the same for the same files, in any process.

    Raises:
      ValueError: unknown source, settings that the source does not take, too little text, an incomplete data set.
      OSError: a file that is missing or cannot be read.
    """
    source = source_of(config, SOURCES, "python_packages")
    check_read(config, source, ("path", "dir"), {"path": ("path",), "imdb": ("dir",)}.get(source, ()))
    classes, *parts = SOURCES[source](config)
    digest = hashlib.sha256("\n".join(classes).encode())
    for part in parts:
        for array in (part.text, part.edges, part.labels):
            digest.update(array.tobytes())
    return Corpus(tuple(classes), *parts, source == "imdb", config.validation_bytes, digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and baselines on windows of `length`."""
    return {
        "sha256": corpus.sha256,
        "classes": list(corpus.classes),
        "train_bytes": int(corpus.train.text.size),
        "train_documents": len(corpus.train.labels),
        "validation_bytes": int(corpus.validation.text.size),
        "validation_documents": len(corpus.validation.labels),
        "validation_examples": len(validation(corpus, length)[1]),
        "baselines": baselines(corpus, length),
    }


def fields(corpus):
    """The model answers with one score for each class."""
    return {"model.num_classes": len(corpus.classes)}


def batch(corpus, seed, step, batch_size, length):
    """Examples drawn at random from the training windows, a pure function of (seed, step).

    Returns:
      As `examples_of`, with batch_size rows.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    total = _counts(corpus.train, length, corpus.whole).sum()
    return examples_of(corpus.train, rng.integers(0, total, size=batch_size), length, corpus.whole)[0]


def validation(corpus, length):
    """Windows of the validation documents, all of them or as many as `validation_bytes` allows, evenly spread.

    Returns:
      As `examples_of`; owners are documents.
    """
    total = _counts(corpus.validation, length, corpus.whole).sum()
    rows = spread(total, max(1, corpus.validation_bytes // length))
    examples, owners = examples_of(corpus.validation, rows, length, corpus.whole)
    return examples, np.unique(owners, return_inverse=True)[1]


def spread(total, wanted):
    """At most `wanted` of `total` rows, evenly spread.

    >>> spread(10, 4).tolist()
    [0, 2, 5, 7]
    """
    kept = min(total, wanted)
    return np.arange(kept) * total // kept


def examples_of(documents, numbers, length, whole=False):
    """Windows by their number, counted through all documents.

    Args:
      documents: `Documents`.
      numbers: int [rows], which windows.
      length: T.
      whole: one window a document, its beginning.

    Returns:
      ({"tokens" uint8 [rows, T], padded with 0, "sizes" int32 [rows], "labels" int32 [rows]}, owners [rows], the index
      of the document).

    >>> rows, owners = examples_of(Documents.of([b"abcde", b"fg"], [1, 0]), np.array([0, 1, 2]), 3)
    >>> [bytes(row[:size]) for row, size in zip(rows["tokens"], rows["sizes"])], owners.tolist()
    ([b'abc', b'de', b'fg'], [0, 0, 1])
    """
    ends = np.cumsum(_counts(documents, length, whole))
    owners = np.searchsorted(ends, numbers, side="right")
    starts = documents.edges[owners] + (numbers - np.append(0, ends)[owners]) * length
    sizes = np.minimum(documents.edges[owners + 1] - starts, length)
    places = np.arange(length)
    real = places < sizes[:, None]
    tokens = np.where(real, documents.text[np.where(real, starts[:, None] + places, 0)], 0).astype(np.uint8)
    return {"tokens": tokens, "sizes": sizes.astype(np.int32), "labels": documents.labels[owners]}, owners


def score(model, examples, rng=None):
    """Nats, 1 for each question, 1 for a right answer, and 1 for each question, from an encoder that scores classes."""
    tokens, labels = examples["tokens"].astype(jnp.int32), examples["labels"]
    real = jnp.arange(tokens.shape[1]) < examples["sizes"][:, None]
    return class_scores(model(tokens, key_mask=real, rng=rng), labels)


def baselines(corpus, length):
    """Accuracy of models that count, on exactly the windows the variants are judged on.

    "majority" gives the answer most frequent in training, "naive Bayes" the class under which the bytes of the window,
    taken one by one, are the likeliest, times the class's share.
    """
    examples, _ = validation(corpus, length)
    tokens, labels = examples["tokens"], examples["labels"]
    real = np.arange(length) < examples["sizes"][:, None]
    shares = np.bincount(np.repeat(corpus.train.labels, _counts(corpus.train, length, corpus.whole)))
    bits = []
    for label, share in enumerate(shares):
        unigram, _ = ngram_bits(np.concatenate(_texts(corpus.train, label)))
        bits.append((unigram[tokens] * real).sum(1) - np.log2(share))
    answers = {"majority": shares.argmax(), "naive Bayes": np.argmin(bits, 0)}
    return {name: float(np.mean(answer == labels)) for name, answer in answers.items()}


def _counts(documents, length, whole):
    """How many examples each document gives: a last stretch shorter than half a window is left out."""
    sizes = np.diff(documents.edges)
    return np.ones_like(sizes) if whole else np.maximum(1, (sizes + length // 2) // length)


def _texts(documents, label):
    return [
        documents.text[documents.edges[i] : documents.edges[i + 1]] for i in np.flatnonzero(documents.labels == label)
    ]


def _python_packages(config):
    """Which package of Python's own library a stretch of source comes from: the six with the most text.

    Packages count equally: from each file the same share of its middle is kept, so that no package has more bytes than
    the smallest. The model never sees a path; the package's own name may stand in the text, in an import or a
    docstring, and is fair.
    """
    root, files = standard_library()
    packages = {}
    for path in files:
        name, *rest = path.relative_to(root).parts
        if rest and path.stat().st_size:
            packages.setdefault(name, []).append(path)
    packages = {name: paths for name, paths in packages.items() if len(paths) >= MIN_FILES and name not in GENERATED}
    largest = sorted(packages, key=lambda name: -sum(path.stat().st_size for path in packages[name]))[:PACKAGES]
    if len(largest) < 2:
        raise ValueError(f"config.data: no packages under {root}; classify other text with --config.data.path=FOLDER")
    classes = sorted(largest)
    train, validation = _split({name: packages[name] for name in classes}, root)
    return classes, _levelled(train, config.length), _levelled(validation, config.length)


def _own_folder(config):
    """Visible files in one folder a class; a fifth of each class is held out, file by file."""
    root = Path(config.path).expanduser()
    if not config.path or not root.is_dir():
        raise ValueError(f"config.data.path={config.path!r}: want a folder that holds one folder a class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(
            f"config.data.path={config.path!r}: {len(folders)} folders in it, want one a class, two or more"
        )
    return [path.name for path in folders], *_split({path.name: visible_files(path) for path in folders}, root)


def _imdb(config):
    """The published halves: no film is in both, so that the test half says more than a part of the other could."""
    if not config.dir:
        raise ValueError(f"config.data.dir is empty, want the folder that holds {IMDB}: --config.data.dir=DATA_DIR")
    read = _imdb_reader(Path(config.dir).expanduser())
    classes, parts = ["neg", "pos"], []
    for half in ("train", "test"):
        reviews = [read(f"aclImdb/{half}/{name}") for name in classes]
        for name, found in zip(classes, reviews, strict=True):
            if len(found) != REVIEWS:
                raise ValueError(
                    f"{config.dir}: aclImdb/{half}/{name} holds {len(found)} reviews, want {REVIEWS}; get {IMDB}"
                )
        parts.append(Documents.of([x for found in reviews for x in found], np.repeat([0, 1], REVIEWS)))
    return classes, *parts


SOURCES = {"python_packages": _python_packages, "path": _own_folder, "imdb": _imdb}


def _imdb_reader(root):
    """A function from a folder of the data set to its reviews, in an order by hash: unpacked or in its archive."""
    places = [place for place in (root, root / "imdb") if place.is_dir()]
    if any((place / "aclImdb").is_dir() for place in places):
        place = next(place for place in places if (place / "aclImdb").is_dir())
        return lambda folder: _by_hash({path.name: path.read_bytes() for path in (place / folder).glob("*.txt")})
    archives = [path for place in places for path in sorted(place.glob("aclImdb*.tar.*"))]
    if not archives:
        raise ValueError(f"{root / 'aclImdb'} is missing, and so is {root / 'aclImdb_v1.tar.gz'}; get {IMDB}")
    folders = {}
    try:
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if name.endswith(".txt") and folder.count("/") == 2:
                    folders.setdefault(folder, {})[name] = archive.extractfile(member).read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(f"{archives[0]} does not read: {error}; get {IMDB}") from error
    return lambda folder: _by_hash(folders.get(folder, {}))


def _by_hash(contents):
    """The values in the order of a hash of their names: neither alphabetical nor by rating."""
    return [contents[name] for name in sorted(contents, key=_rank)]


def _rank(name):
    return hashlib.sha256(name.encode()).digest()


def _split(classes, root):
    """Holds out about a fifth of each class's bytes, file by file in the order of a hash; copies count once."""
    seen, train, validation = set(), ([], []), ([], [])
    for label, (name, paths) in enumerate(classes.items()):
        contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
        ranked = [file for file in sorted(contents, key=_rank) if contents[file] not in seen]
        ranked = list({contents[file]: file for file in ranked}.values())
        seen.update(contents.values())
        if len(ranked) < 2:
            raise ValueError(f"config.data: class {name!r} has {len(ranked)} files that differ, want two or more")
        shares = np.cumsum([len(contents[file]) for file in ranked]) / sum(len(contents[file]) for file in ranked)
        held = 1 + int(np.abs(shares[:-1] - HELD_OUT).argmin())
        for files, (texts, labels) in ((ranked[:held], validation), (ranked[held:], train)):
            texts += [contents[file] for file in files]
            labels += [label] * len(files)
    return Documents.of(*train), Documents.of(*validation)


def _levelled(documents, length):
    """The same share of every document of a class, from its middle, so that all classes have about as many windows."""
    sizes = np.diff(documents.edges)
    totals = np.bincount(documents.labels, sizes)
    kept = (sizes * (totals.min() / totals)[documents.labels] / length).round().astype(int) * length
    kept = np.minimum(np.maximum(kept, length), sizes)
    starts = documents.edges[:-1] + (sizes - kept) // 2
    contents = [documents.text[a : a + n].tobytes() for a, n in zip(starts, kept, strict=True)]
    return Documents.of(contents, documents.labels)
