"""The trees that the small parser predicts, kept in the user's cache folder: training it takes a minute.

A file of `~/.cache/attention-atlas/trees` (or under `XDG_CACHE_HOME`) is called after all that the trees depend on: the
sentences, the parser's code, JAX and its backend. It may be removed at any time.
"""

import contextlib
import hashlib
import os
import sys
from pathlib import Path

import jax
import numpy as np

from tasks import parser

DIGEST = 32  # bytes of SHA-256, which stand before the heads and tell a damaged file


def jackknife(train, owners, judged, vocabulary):
    """As `tasks.parser.jackknife`, but what was parsed before is read and not parsed again."""
    path = _folder() / _name(train, owners, judged, vocabulary)
    sizes = [len(tokens) for tokens, _ in (*train, *judged)]
    heads = _read(path, sum(sizes))
    if heads is None:
        trees, others = parser.jackknife(train, owners, judged, vocabulary)
        heads = np.concatenate([*trees, *others])
        _write(path, heads)
    found = np.split(heads.astype(np.int32), np.cumsum(sizes)[:-1])
    return found[: len(train)], found[len(train) :]


def _folder():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-atlas" / "trees"


def _name(train, owners, judged, vocabulary):
    """What the trees depend on, as the name of a file; the heads of sentences to judge are not among it."""
    digest = hashlib.sha256(Path(parser.__file__).read_bytes())
    facts = jax.__version__, jax.default_backend(), vocabulary, len(train), [len(tokens) for tokens, _ in judged]
    digest.update(repr(facts).encode())
    for (tokens, heads), owner in zip(train, owners, strict=True):
        digest.update(np.array([owner, len(tokens), *tokens, *heads], "<i8"))
    for tokens, _ in judged:
        digest.update(np.array(tokens, "<i8"))
    return digest.hexdigest()


def _read(path, count):
    """int32 [count] from a file; None without one, or where it is damaged, which is told."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        print(f"{path} is not readable ({error}): parsing again", file=sys.stderr)
        return None
    digest, heads = data[:DIGEST], data[DIGEST:]
    if digest != hashlib.sha256(heads).digest() or len(heads) != 4 * count:
        print(f"{path} is damaged: parsing again", file=sys.stderr)
        return None
    return np.frombuffer(heads, "<i4")


def _write(path, heads):
    """Writes all of a file or nothing, whoever else writes it; a folder that takes none costs a line, not the run."""
    content = heads.astype("<i4").tobytes()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        print(f"{path.parent}: the predicted trees cannot be kept there ({error})", file=sys.stderr)
