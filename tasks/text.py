"""Byte-level language modelling: real text, the loss per byte, and bits per byte on text never trained on."""

import dataclasses
import hashlib
import math
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tasks.source import source_of

METRIC = {"name": "validation bits per byte", "higher_is_better": False}
MODELS = ("transformer",)
VOCABULARY = 256  # the bytes
DATA = ("name", "path", "dir", "length", "validation_bytes")
SIZE, UNIT = "length", "tokens"
MAX_PIECES = 64  # the error bar is the spread over validation pieces, so no file may weigh more than 1/64 of the bytes
SEGMENTS = 16  # pieces that the validation part of one contiguous text is cut into
ALPHA = 0.1  # count added to every cell of the n-gram tables; bytes never seen in a context keep a probability

SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WIKITEXT = {
    "train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text split into a training stream and validation pieces that share no file, or no stretch, with it.

    Attributes:
      train: uint8 [bytes], every training file after the other.
      validation: name -> uint8 [bytes], the pieces the metric is computed on.
      sha256: fingerprint of both, so that a run never goes on with other data than it began with.
    """

    train: np.ndarray
    validation: dict[str, np.ndarray]
    sha256: str


def load(config) -> Corpus:
    """Reads the text that `config.data` names and splits it.

    Args:
      config: `name` (one of SOURCES), `path` (a file or folder of the user's own; non-empty replaces the default
        source), `dir` (folder that holds the published data sets), `length` T and `validation_bytes`.

    Returns:
      The corpus, the same for the same files, in any process.

    Raises:
      ValueError: unknown source, settings that the source does not take, altered or too little text.
      OSError: a file that is missing or cannot be read.
    """
    source = source_of(config, SOURCES, "python_stdlib")
    if config.path and source != "path":
        raise ValueError(f"config.data.path={config.path!r}: {source} does not read it, drop one of the two flags")
    if config.dir and source not in ("tinyshakespeare", "wikitext-2"):
        raise ValueError(f"config.data.dir={config.dir!r}: {source} does not read it, set config.data.name as well")
    train, validation = SOURCES[source](config)
    stream = np.frombuffer(b"\n".join(train), np.uint8)
    pieces = _limit(validation, config.validation_bytes)
    if stream.size <= config.length:
        raise ValueError(
            f"config.data: {stream.size} bytes of training text, want more than config.data.length={config.length}; "
            "give more text or a smaller length"
        )
    if not pieces:
        raise ValueError("config.data: no validation text of two bytes or more, give more text")
    digest = hashlib.sha256(stream)
    for name, piece in pieces.items():
        digest.update(name.encode() + piece.tobytes())
    return Corpus(stream, pieces, digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, its size, and the baselines on its validation part."""
    return {
        "sha256": corpus.sha256,
        "train_bytes": int(corpus.train.size),
        "validation_bytes": sum(piece.size for piece in corpus.validation.values()),
        "validation_pieces": len(corpus.validation),
        "baselines": baselines(corpus),
    }


def tokens(length):
    """An example has `length` tokens."""
    return length


def fields(corpus):
    """The data decide nothing about the model."""
    return {}


def batch(corpus, seed, step, batch_size, length):
    """Windows at random places of the training stream, a pure function of (seed, step).

    Philox is a counter-based generator: keyed by (seed, step) it needs no state, so training goes on after a stop
    without replaying anything, and every variant sees the same data in the same order.

    Returns:
      "tokens" uint8 [batch_size, length + 1]: the first T bytes are the input, the last T what to predict; "sizes"
      int32 [batch_size], how many of these count: all.

    >>> corpus = Corpus(np.arange(100, dtype=np.uint8), {}, "")
    >>> batch(corpus, seed=0, step=7, batch_size=3, length=5)["tokens"].shape
    (3, 6)
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = rng.integers(0, corpus.train.size - length, size=batch_size)
    tokens = corpus.train[starts[:, None] + np.arange(length + 1)]
    return {"tokens": tokens, "sizes": np.full(batch_size, length, np.int32)}


def validation(corpus, length):
    """Windows in which every byte after a piece's first is predicted exactly once.

    A byte is predicted from the at most T bytes before it in its window.

    Returns:
      ({"tokens" uint8 [windows, T + 1], padded with 0, "sizes" int32 [windows], the bytes to predict}, owners
      [windows], the index of the piece).

    >>> examples, owners = validation(Corpus(None, {"a": np.arange(6, dtype=np.uint8)}, ""), 3)
    >>> examples["tokens"].tolist(), examples["sizes"].tolist(), owners.tolist()
    ([[0, 1, 2, 3], [3, 4, 5, 0]], [3, 2], [0, 0])
    """
    tokens, sizes, owners = [], [], []
    for owner, piece in enumerate(corpus.validation.values()):
        for start in range(0, piece.size - 1, length):
            window = piece[start : start + length + 1]
            tokens.append(np.pad(window, (0, length + 1 - window.size)))
            sizes.append(window.size - 1)
            owners.append(owner)
    return {"tokens": np.stack(tokens), "sizes": np.asarray(sizes, np.int32)}, np.asarray(owners)


def score(model, examples, rng=None):
    """Nats, bytes, bits and bytes of each window, from a decoder `model(tokens, rng=rng)`."""
    tokens = examples["tokens"].astype(jnp.int32)
    nats = cross_entropy(model(tokens[:, :-1], rng=rng), tokens[:, 1:])
    counted = jnp.arange(nats.shape[1]) < examples["sizes"][:, None]
    nats = jnp.where(counted, nats, 0).sum(1)
    sizes = examples["sizes"].astype(jnp.float32)
    return nats, sizes, nats / math.log(2), sizes


def cross_entropy(logits, targets):
    """-log softmax(logits)[target] in nats: logits [..., V] float32, targets [...] int -> [...] float32."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def read_only(arrays):
    """Forbids to write to arrays that several calls share.

    >>> kept = np.zeros(3)
    >>> read_only([kept])
    >>> kept.flags.writeable
    False
    """
    for array in arrays:
        array.flags.writeable = False


def class_scores(logits, labels):
    """Nats, 1, whether the answer is right, and 1 for each row, float32: the `score` where a class is asked for."""
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    one = jnp.ones_like(right)
    return cross_entropy(logits, labels), one, right, one


def baselines(corpus):
    """Bits per byte of three models that know almost nothing, on exactly the bytes the variants are judged on.

    Returns:
      {"uniform": 8.0, "unigram": ..., "bigram": ...}.
    """
    unigram, bigram = ngram_bits(corpus.train)
    pieces = list(corpus.validation.values())
    total = sum(piece.size - 1 for piece in pieces)
    return {
        "uniform": 8.0,
        "unigram": float(sum(unigram[piece[1:]].sum() for piece in pieces) / total),
        "bigram": float(sum(bigram[piece[:-1], piece[1:]].sum() for piece in pieces) / total),
    }


def ngram_bits(stream):
    """Bits of each byte, [256], and of each byte b after each byte a, [256, 256], by counts in `stream`.

    `p(b | a) = (n_ab + alpha) / (n_a + 256 alpha)` with alpha = ALPHA.
    """
    unigrams = np.bincount(stream, minlength=256) + ALPHA
    pairs = stream[:-1].astype(np.int32) * 256 + stream[1:]
    bigrams = np.bincount(pairs, minlength=256 * 256).reshape(256, 256) + ALPHA
    return -np.log2(unigrams / unigrams.sum()), -np.log2(bigrams / bigrams.sum(1, keepdims=True))


def standard_library():
    """Folder of the running Python's own library, and its source files but for tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return root, [path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)]


def visible_files(root):
    """Every file under a folder that holds anything and is not hidden, nor in a hidden folder."""
    files = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _python_stdlib(config):
    """The running interpreter's own library: on every machine, no download, split by file."""
    root, files = standard_library()
    if not files:
        raise ValueError(
            f"config.data: no *.py under {root}; train on other text with --config.data.path=FILE_OR_FOLDER"
        )
    return _split_files(root, files)


def _own_text(config):
    """A file (the last tenth is held out) or the visible files of a folder (a tenth of them is held out)."""
    if not config.path:
        raise ValueError("config.data.path is empty, want a file or folder: --config.data.path=FILE_OR_FOLDER")
    root = Path(config.path).expanduser()
    if not root.exists():
        raise ValueError(f"config.data.path={config.path!r}: no such file or folder")
    if root.is_file():
        return _split_stretch(root.read_bytes())
    if not root.is_dir():
        raise ValueError(f"config.data.path={config.path!r}: neither a regular file nor a folder")
    files = visible_files(root)
    if not files:
        raise ValueError(f"config.data.path={config.path!r}: the folder holds no visible file with any text in it")
    return _split_files(root, files)


def _tinyshakespeare(config):
    where = "data/tinyshakespeare/input.txt of the GitHub repository karpathy/char-rnn"
    return _split_stretch(_verified(config, "tinyshakespeare/input.txt", SHAKESPEARE, where))


def _wikitext(config):
    """The published split; the validation file is cut into segments for the error bar."""
    where = "WikiText-2 v1 (word level), wiki.{train,valid,test}.tokens renamed to {train,valid,test}.txt"
    train, valid = (_verified(config, f"wikitext-2/{name}", sha256, where) for name, sha256 in WIKITEXT.items())
    return [train], _segments(valid)


SOURCES = {
    "python_stdlib": _python_stdlib,
    "path": _own_text,
    "tinyshakespeare": _tinyshakespeare,
    "wikitext-2": _wikitext,
}


def _verified(config, name, sha256, where):
    """Bytes of a published file, refused if they differ from what was published."""
    if not config.dir:
        raise ValueError(f"config.data.dir is empty, want the folder that holds {name}: --config.data.dir=DATA_DIR")
    path = Path(config.dir).expanduser() / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; it is {where}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} is not the published file: sha256 {found}, want {sha256}; it is {where}")
    return content


def _split_files(root, files):
    """Holds out a tenth of the files, chosen by a hash of the name, so that adding a file moves no other."""
    names = {path.relative_to(root).as_posix(): path for path in files}
    ranked = sorted((hashlib.sha256(name.encode()).digest(), name) for name in names)
    contents = {name: names[name].read_bytes() for _, name in ranked}
    first = {}  # content -> first name that holds it: a copy of a training file must not be validated on
    unique = [(rank, name) for rank, name in ranked if first.setdefault(contents[name], name) == name]
    if len(unique) == 1:
        return _split_stretch(contents[unique[0][1]])
    held = [name for rank, name in unique if rank[0] < 26] or [unique[0][1]]  # 26 / 256 is a tenth
    train = sorted(name for _, name in unique if name not in held)
    return [contents[name] for name in train], {name: contents[name] for name in held}


def _split_stretch(content):
    """Holds out the last tenth of one text."""
    cut = len(content) * 9 // 10
    return [content[:cut]], _segments(content[cut:])


def _segments(content):
    edges = np.linspace(0, len(content), SEGMENTS + 1).astype(int)
    return {f"segment {i}": content[a:b] for i, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True))}


def _limit(pieces, limit):
    """The middles of the first pieces that fit into `limit` bytes, none larger than its share."""
    share, kept = max(2, limit // min(MAX_PIECES, max(1, len(pieces)))), {}
    for name, content in pieces.items():
        size = min(share, len(content), limit - sum(piece.size for piece in kept.values()))
        start = (len(content) - size) // 2
        if size >= 2:
            kept[name] = np.frombuffer(content[start : start + size], np.uint8)
    return kept
