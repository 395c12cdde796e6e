"""Recall: a decoder reads a row of tokens and must tell what stood in it; the share of tokens it gets right.

Every kind of row is generated, at any length, so a model may be asked for more than it was trained on. Nothing can be
learnt by heart: half of all possible rows, by a hash of their tokens, are for the judgement alone.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tasks import associative, copying, needles
from tasks.recall_rows import MOST, Rows, held_out, one_side, too_few
from tasks.text import SIZE, UNIT, cross_entropy, read_only, tokens

__all__ = ["SIZE", "UNIT", "tokens"]  # as they are in `tasks.text`

METRIC = {"name": "validation recall accuracy", "higher_is_better": True}
MODELS = ("transformer",)
VOCABULARY = 2  # `config.data.vocabulary` says how many, and each kind how many it needs
DATA = ("name", "length", "vocabulary", "num_pairs", "num_symbols", "power", "filler", "validation_examples")
OWN = {"num_pairs": 0, "num_symbols": 0, "power": 1.0, "filler": ""}  # fields of some kinds, and what the others want
KINDS = associative.KINDS | copying.KINDS | needles.KINDS
DEPTHS = tuple(f"{low}-{low + 10} %" for low in range(0, 100, 10))
VALIDATION_SEED = 0  # the same rows are judged on every time
SOME = 64  # rows of each kind for the fingerprint
PROBE = 256  # rows of each kind that show whether both sides have enough of them:
DIFFERENT = 16  # among those, on each side
PART = 1 << 14  # tokens that `details` looks at in one go


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is drawn, and how much of it is judged.

    Attributes:
      data: `config.data`, frozen.
      validation_examples: rows that are judged.
      sha256: fingerprint of some of the rows, so that a run never goes on with another generator's.
    """

    data: Mapping
    validation_examples: int
    sha256: str

    @property
    def kinds(self):
        """Names of the kinds, which take turns."""
        return _names(self.data)


def load(config) -> Corpus:
    """The corpus of `config.data`.

    Args:
      config: `name` (one of KINDS, or several joined by commas, whose rows take turns), `length` T, `vocabulary`,
        `validation_examples`, and the fields of OWN: those that no named kind reads hold their neutral value, num_pairs
        0, num_symbols 0, power 1.0, filler "".

    Raises:
      ValueError: an unknown kind, a field that none of them reads or one that is missing, a length or a vocabulary too
        small for a kind, or so few possible rows that half of them are next to none.
    """
    for name in _names(config):
        if name not in KINDS:
            raise ValueError(f"config.data.name={config.name!r}: {name!r} is unknown, want some of {', '.join(KINDS)}")
    if len(set(_names(config))) < len(_names(config)):
        raise ValueError(f"config.data.name={config.name!r}: want each kind once")
    _check_own(config)
    data = FrozenConfigDict({field: config[field] for field in DATA})
    for name in _names(config):
        _check_sides(name, data)
    corpus = Corpus(data, config.validation_examples, "")
    count = SOME * len(corpus.kinds)
    few = dataclasses.replace(corpus, validation_examples=count)
    drawn = validation(few, config.length)[0], batch(few, seed=0, step=0, batch_size=count, length=config.length)
    digest = hashlib.sha256(b"".join(array.tobytes() for part in drawn for array in part.values()))
    return dataclasses.replace(corpus, sha256=digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint and sizes, and what guessing gets right of each kind.

    Of several kinds the "baselines", which the accuracy over all rows is compared with, are one: the best guess of each
    kind, by how many tokens it asks for; "baselines_by_kind" has them all.
    """
    rows, kinds = _judged(corpus, length)
    asked = (rows.targets >= 0).sum(1)
    by_kind = {name: KINDS[name].baselines(corpus.data, length) for name in corpus.kinds}
    found = {"baselines": by_kind[corpus.kinds[0]]}
    if len(by_kind) > 1:
        best = [max(each.values()) for each in by_kind.values()]
        mean = np.bincount(kinds, asked, minlength=len(best)) @ best / asked.sum()
        found = {"baselines": {"best guess of each kind": float(mean)}, "baselines_by_kind": by_kind}
    sizes = {"validation_examples": len(asked), "asked_tokens": int(asked.sum()), "held_out_share": 0.5}
    return {"sha256": corpus.sha256, "pieces": "rows", "kinds": list(corpus.kinds)} | sizes | found


def fields(corpus):
    """The data decide nothing about the model."""
    return {}


def batch(corpus, seed, step, batch_size, length):
    """Random rows that are not held out, a pure function of (seed, step).

    Returns:
      {"tokens" int32 [batch_size, T], "targets" int32 [batch_size, T], -1 where nothing is asked}.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    rows, _ = _in_turns(rng, corpus, batch_size, length, held=False, first=step * batch_size)
    return {"tokens": rows.tokens, "targets": rows.targets}


def validation(corpus, length):
    """Random rows that are held out, the same ones each time, of any length.

    Returns:
      (as `batch`, with `validation_examples` rows; owners [rows]: each is a piece of its own).
    """
    rows, _ = _judged(corpus, length)
    return {"tokens": rows.tokens, "targets": rows.targets}, np.arange(len(rows.tokens))


def groups(corpus, length):
    """The rows of `validation` by "depth", ten bins of the place of what is asked for, and by "kind", if several."""
    rows, kinds = _judged(corpus, length)
    found, placed = {}, ~np.isnan(rows.depth)
    if placed.any():
        bins = np.clip((np.where(placed, rows.depth, 0) * len(DEPTHS)).astype(int), 0, len(DEPTHS) - 1)
        found["depth"] = list(DEPTHS), np.where(placed, bins, -1)
    if len(corpus.kinds) > 1:
        found["kind"] = list(corpus.kinds), kinds
    return found


def score(model, examples, rng=None):
    """Nats, asked tokens, right tokens and asked tokens of each row, from `model(tokens, rng=rng)`."""
    logits = model(examples["tokens"], rng=rng)
    targets, asked = examples["targets"], examples["targets"] >= 0
    nats = jnp.where(asked, cross_entropy(logits, jnp.maximum(targets, 0)), 0.0)
    right = (logits.argmax(-1) == targets).astype(jnp.float32)  # no token is -1
    count = asked.astype(jnp.float32).sum(1)
    return nats.sum(1), count, right.sum(1), count


def exact(model, examples):
    """float32 [rows]: 1 where every asked token of the row is right, else 0."""
    _, count, right, _ = score(model, examples)
    return (right == count).astype(jnp.float32)


def details(model, corpus, length):
    """{"whole answers right": share of rows}, where rows ask for more than one token."""
    examples, owners = validation(corpus, length)
    if (examples["targets"] >= 0).sum() == len(owners):
        return {}
    size = min(len(owners), max(1, PART // length))
    right, judge = np.zeros(len(owners)), jax.jit(exact)
    for start in range(0, len(owners), size):
        some = np.arange(start, start + size) % len(owners)  # the last part is filled up, and compiles nothing anew
        right[some] = judge(model, {name: array[some] for name, array in examples.items()})
    return {"whole answers right": float(right.mean())}


def _names(data):
    return tuple(name.strip() for name in data.name.split(","))


def _check_own(config):
    """Raises ValueError where a field of OWN is given that no kind reads, or one is missing that a kind does."""
    for field, neutral in OWN.items():
        readers = [name for name in _names(config) if field in KINDS[name].reads]
        if not readers and config[field] != neutral:
            raise ValueError(
                f"config.data.{field}={config[field]!r}: {config.name} does not read it; write {neutral!r}"
            )
        if readers and neutral in (0, "") and config[field] == neutral:
            wanted = "at least 1" if neutral == 0 else "a word"
            raise ValueError(f"config.data.{field}={config[field]!r}: {readers[0]} wants {wanted}")


def _check_size(name, data, length):
    """Raises ValueError where a kind does not fit into `length` tokens, or into the vocabulary."""
    kind = KINDS[name]
    least, smallest = kind.least(data), kind.tokens(data)
    sizes = "".join(f" with config.data.{field}={data[field]}" for field in kind.reads if OWN[field] == 0)
    if length < least:
        raise ValueError(f"config.data.length={length}: {name} wants at least {least}{sizes}")
    if data.vocabulary < smallest:
        raise ValueError(f"config.data.vocabulary={data.vocabulary}: {name} wants at least {smallest} tokens")


def _check_sides(name, data):
    """Raises ValueError unless a kind has enough different rows on each side."""
    _check_size(name, data, data.length)
    rng = np.random.Generator(np.random.Philox(key=[VALIDATION_SEED, 0]))
    count = min(PROBE, max(4 * DIFFERENT, MOST // data.length))
    rows = np.unique(KINDS[name].draw(rng, count, data.length, data).tokens, axis=0)
    held = held_out(rows).sum()
    if min(held, len(rows) - held) < DIFFERENT:
        raise ValueError(too_few(name, data.length))


@functools.lru_cache(maxsize=2)
def _judged(corpus, length):
    """`_in_turns` of the judgement; kept, because several functions ask for it, and not to be written to."""
    rng = np.random.Generator(np.random.Philox(key=[VALIDATION_SEED, 0]))
    rows, kinds = _in_turns(rng, corpus, corpus.validation_examples, length, held=True)
    read_only((*rows, kinds))
    return rows, kinds


def _in_turns(rng, corpus, rows, length, held, first=0):
    """`Rows` of one side, and the index of each one's kind: kinds take turns, also over the steps of training."""
    kinds = (first + np.arange(rows)) % len(corpus.kinds)
    tokens, targets = np.empty((2, rows, length), np.int32)
    depth = np.empty(rows, np.float32)
    for index, name in enumerate(corpus.kinds):
        _check_size(name, corpus.data, length)
        mine = kinds == index
        draw = functools.partial(_draw, rng, name, length, corpus.data)
        tokens[mine], targets[mine], depth[mine] = one_side(draw, int(mine.sum()), length, held, name)
    return Rows(tokens, targets, depth), kinds


def _draw(rng, name, length, data, count):
    return KINDS[name].draw(rng, count, length, data)
