"""Byte-level masked language modelling: bits per masked byte, on the corpora of `tasks.text`.

Devlin et al. 2019, "BERT", arXiv:1810.04805, section 3.1, task 1: of 15% of the tokens, chosen at random, 80% become a
mask token, 10% a random one and 10% stay; the model says what each of them was.
"""

import math

import jax.numpy as jnp
import numpy as np

from tasks import text
from tasks.text import DATA, SIZE, UNIT, fields, load, tokens

__all__ = ["DATA", "SIZE", "UNIT", "fields", "load", "tokens"]  # as they are in `tasks.text`

METRIC = {"name": "validation bits per masked byte", "higher_is_better": False}
MODELS = ("encoder",)
MASK = 256  # the token that hides a byte
VOCABULARY = 257
CHOSEN = 0.15  # of the bytes of a window are asked for,
HIDDEN, RANDOM = 0.8, 0.1  # of which so many are hidden, and so many replaced by a random byte
VALIDATION_SEED = 0  # the same bytes are asked for in every judgement


def describe(corpus, length):
    """What `data.json` keeps of a corpus; the baselines answer the questions put to windows of `length` bytes."""
    return text.describe(corpus, length) | {"baselines": baselines(corpus, length)}


def batch(corpus, seed, step, batch_size, length):
    """Windows at random places of the training stream with bytes to guess, a pure function of (seed, step).

    Returns:
      As `corrupt`, with batch_size rows.
    """
    windows = text.batch(corpus, seed, step, batch_size, length - 1)["tokens"]
    rng = np.random.Generator(np.random.Philox(key=[seed, step]).jumped())  # far from the draws of the places
    return corrupt(windows, np.full(batch_size, length), rng)


def validation(corpus, length):
    """Every byte of the validation pieces in one window, some of them to guess: the same ones each time.

    Returns:
      (as `corrupt`, owners [windows], the index of the piece).
    """
    windows, sizes, owners = [], [], []
    for owner, piece in enumerate(corpus.validation.values()):
        for start in range(0, piece.size, length):
            window = piece[start : start + length]
            windows.append(np.pad(window, (0, length - window.size)))
            sizes.append(window.size)
            owners.append(owner)
    rng = np.random.Generator(np.random.Philox(key=[VALIDATION_SEED, 0]))
    return corrupt(np.stack(windows), np.asarray(sizes), rng), np.asarray(owners)


def corrupt(windows, sizes, rng):
    """Hides bytes and remembers them.

    Args:
      windows: uint8 [rows, T].
      sizes: int [rows], bytes that are no padding.
      rng: `np.random.Generator`.

    Returns:
      "tokens" int16 [rows, T], what the model sees, "targets" uint8 [rows, T], "chosen" bool [rows, T], the bytes to
      guess: 15% of each row, at least one, and "sizes" int32 [rows].

    >>> row = corrupt(np.zeros((1, 20), np.uint8), np.array([20]), np.random.default_rng(0))
    >>> int(row["chosen"].sum()), set(row["tokens"][~row["chosen"]].tolist())
    (3, {0})
    """
    order = rng.random(windows.shape)
    order[np.arange(windows.shape[1]) >= sizes[:, None]] = 2.0  # padding comes last
    ranks = order.argsort(1).argsort(1)
    chosen = ranks < np.maximum(1, np.round(CHOSEN * sizes))[:, None]
    fate = rng.random(windows.shape)
    other = rng.integers(0, MASK, windows.shape)
    changed = np.where(fate < HIDDEN, MASK, np.where(fate < HIDDEN + RANDOM, other, windows))
    tokens = np.where(chosen, changed, windows).astype(np.int16)
    return {"tokens": tokens, "targets": windows, "chosen": chosen, "sizes": sizes.astype(np.int32)}


def score(model, examples, rng=None):
    """Nats, masked bytes, bits and masked bytes of each window, from an encoder that scores every token."""
    tokens, chosen = examples["tokens"].astype(jnp.int32), examples["chosen"]
    real = jnp.arange(tokens.shape[1]) < examples["sizes"][:, None]
    logits = model(tokens, key_mask=real, rng=rng)
    nats = jnp.where(chosen, text.cross_entropy(logits, examples["targets"].astype(jnp.int32)), 0).sum(1)
    asked = chosen.sum(1).astype(jnp.float32)
    return nats, asked, nats / math.log(2), asked


def baselines(corpus, length):
    """Bits per masked byte of three models that know almost nothing, on windows of `length` bytes.

    Unigram and bigram counts of the training stream, as in `tasks.text.baselines`; the bigram looks at the byte before
    as the model sees it, and falls back to the unigram where that one is hidden or the window begins.

    Returns:
      {"uniform": 8.0, "unigram": ..., "bigram": ...}.
    """
    unigram, bigram = text.ngram_bits(corpus.train)
    examples, _ = validation(corpus, length)
    chosen, targets = examples["chosen"], examples["targets"]
    before = np.pad(examples["tokens"], ((0, 0), (1, 0)), constant_values=MASK)[:, :-1]
    table = np.concatenate([bigram, unigram[None]])  # row MASK knows nothing of the byte before
    bits = {"unigram": unigram[targets], "bigram": table[before, targets]}
    return {"uniform": 8.0} | {name: float(each[chosen].mean()) for name, each in bits.items()}
