"""Rewriting: an encoder-decoder reads random letters and writes them backwards; the share of letters it gets right.

Nothing but the source says what comes next, and each letter of the answer stands at one known place of it: what counts
is how sharply cross-attention can point. Everything is generated, so there is no file and nothing to learn by heart.
"""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np

from tasks.text import DATA, SIZE, UNIT, cross_entropy, tokens

__all__ = ["DATA", "SIZE", "UNIT", "tokens"]  # as they are in `tasks.text`

METRIC = {"name": "validation token accuracy", "higher_is_better": True}
MODELS = ("encoder_decoder",)
LETTERS = 32
START = LETTERS  # what the decoder reads before it has written anything
VOCABULARY = LETTERS + 1
HELD_OUT = 8  # one source in so many is for the judgement alone: those whose letters sum to a multiple of it
VALIDATION_SEED = 0  # the same sources are judged on every time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """How much is judged; the letters themselves are drawn when they are asked for.

    Attributes:
      validation_letters: sources of as many letters are judged.
      sha256: fingerprint of what is drawn, so that a run never goes on with another generator's letters.
    """

    validation_letters: int
    sha256: str


def load(config) -> Corpus:
    """The corpus of `config.data`: `name` "reversed", no `path`, no `dir`, `length` T and `validation_bytes`.

    Raises:
      ValueError: another name, or files that nothing would read.
    """
    if config.name != "reversed":
        raise ValueError(f"config.data.name={config.name!r}: unknown, want reversed")
    for field in ("path", "dir"):
        if config[field]:
            raise ValueError(f"config.data.{field}={config[field]!r}: the letters are generated; drop it")
    corpus = Corpus(config.validation_bytes, "")
    drawn = validation(corpus, config.length)[0], batch(corpus, seed=0, step=0, batch_size=1, length=config.length)
    digest = hashlib.sha256(b"".join(part["source"].tobytes() for part in drawn))
    return dataclasses.replace(corpus, sha256=digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, its size, and what guessing gets right."""
    return {
        "sha256": corpus.sha256,
        "letters": LETTERS,
        "validation_examples": len(validation(corpus, length)[1]),
        "baselines": {"chance": 1 / LETTERS},
    }


def fields(corpus):
    """The data decide nothing about the model."""
    return {}


def batch(corpus, seed, step, batch_size, length):
    """Random sources that are not held out, a pure function of (seed, step).

    Returns:
      As `examples_of`, with batch_size rows.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    return examples_of(_sources(rng, batch_size, length, held_out=False))


def validation(corpus, length):
    """Random sources that are held out, the same ones each time.

    Returns:
      (as `examples_of`, owners [rows]: each is a piece of its own).
    """
    rows = max(1, corpus.validation_letters // length)
    rng = np.random.Generator(np.random.Philox(key=[VALIDATION_SEED, 0]))
    return examples_of(_sources(rng, rows, length, held_out=True)), np.arange(rows)


def examples_of(source):
    """{"source" uint8 [rows, T], "target" uint8 [rows, T]}, the second the first read backwards.

    >>> examples_of(np.array([[3, 1, 2]], np.uint8))["target"].tolist()
    [[2, 1, 3]]
    """
    return {"source": source, "target": np.ascontiguousarray(source[:, ::-1])}


def score(model, examples, rng=None):
    """Nats, letters, right letters and letters of each row, from `model(source, target, rng=rng)`.

    The decoder is told the right letters (teacher forcing): at place i it reads the start token and those before i.
    """
    source, target = (examples[name].astype(jnp.int32) for name in ("source", "target"))
    logits = model(source, jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START), rng=rng)
    right = (logits.argmax(-1) == target).astype(jnp.float32)
    letters = jnp.ones_like(right).sum(1)
    return cross_entropy(logits, target).sum(1), letters, right.sum(1), letters


def _sources(rng, rows, length, held_out):
    """Random letters; the last one is moved where the sum would put the row on the other side."""
    letters = rng.integers(0, LETTERS, (rows, length))
    rest = letters.sum(1) % HELD_OUT
    move = -rest if held_out else np.where(rest == 0, rng.integers(1, HELD_OUT, rows), 0)
    letters[:, -1] = (letters[:, -1] + move) % LETTERS  # HELD_OUT divides LETTERS, so that going round is no matter
    return letters.astype(np.uint8)
