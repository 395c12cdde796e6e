"""ListOps: the value of nested operations on digits, such as [MAX 2 9 [MIN 4 7 ] 0 ], and the share of right answers.

Nangia & Bowman 2018, "ListOps: A Diagnostic Dataset for Latent Tree Learning", arXiv:1804.06028, with the long trees of
Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.1: 500 to 2,000 tokens, ten levels, ten arguments.
Their generator, exactly: a node above the last level is an operation with probability 1/4 and else a digit; number of
arguments, operation and digits are uniform; only trees of the wanted length are kept. The root decides most of the
answer, so that a model may look able to nest and see one level: the baselines tell.

Trees are drawn when they are asked for, without end, in place of the published 96,000 to learn from and two times 2,000
to judge on. A hash of its tokens puts a tree on one side or the other, so that no tree is on both.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from tasks.classification import score
from tasks.text import read_only, tokens

__all__ = ["score", "tokens"]  # as they are in `tasks.classification` and `tasks.text`

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
DATA = ("name", "length", "min_length", "max_depth", "max_args", "validation_examples")
SIZE, UNIT = "length", "tokens"
PADDING, ZERO, CLOSE = 0, 1, 15  # tokens: padding, ten digits from ZERO on, the operations, the bracket that closes one
OPERATIONS = {"MIN": 11, "MAX": 12, "MED": 13, "SM": 14}  # smallest, largest, median rounded down, sum modulo 10
VOCABULARY = 16
OPERATION_SHARE = 0.25  # of the nodes above the last level
HELD_OUT = 4  # one tree in so many is for the judgement alone, by a hash
VALIDATION_SEED = 0  # the same trees are judged on every time
FITTED = 4096  # training trees that the baselines learn from
BLOCK = 8192  # trees drawn at once, at most: about a million nodes with the published settings
RAREST = 10_000  # draws for one tree of the wanted length, at most


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Which trees are drawn and how many are judged; the trees themselves are drawn when they are asked for.

    Attributes:
      length: T of the training, which trees are shorter than.
      min_length: training trees are longer.
      max_depth: levels of a tree, digits of the last one included.
      max_args: the most arguments of an operation; the fewest are 2.
      validation_examples: so many trees are judged.
      sha256: fingerprint of what is drawn, so that a run never goes on with another generator's trees.
    """

    length: int
    min_length: int
    max_depth: int
    max_args: int
    validation_examples: int
    sha256: str = dataclasses.field(default="", compare=False)


def load(config) -> Corpus:
    """The corpus of `config.data`: `name` "listops" and the fields of `Corpus`.

    Raises:
      ValueError: another name, or settings that no tree, or hardly one, fits.
    """
    if config.name != "listops":
        raise ValueError(f"config.data.name={config.name!r}: unknown, want listops")
    for field, least in (("max_depth", 2), ("min_length", 1)):  # a lone digit is no operation
        if config[field] < least:
            raise ValueError(f"config.data.{field}={config[field]}: want at least {least}, a root that has arguments")
    corpus = Corpus(*(config[field.name] for field in dataclasses.fields(Corpus)[:-1]))
    drawn = validation(corpus, config.length)[0], batch(corpus, seed=0, step=0, batch_size=1, length=config.length)
    digest = hashlib.sha256(b"".join(part["tokens"].tobytes() + part["labels"].tobytes() for part in drawn))
    return dataclasses.replace(corpus, sha256=digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, the trees of the judgement, and baselines on them."""
    examples, _ = validation(corpus, length)
    return {
        "sha256": corpus.sha256,
        "pieces": "trees",
        "validation_examples": len(examples["labels"]),
        "validation_mean_length": float(examples["sizes"].mean()),
        "baselines": baselines(corpus, length),
    }


def fields(corpus):
    """An answer is a digit."""
    return {"model.num_classes": 10}


def batch(corpus, seed, step, batch_size, length):
    """Random trees that are not held out, a pure function of (seed, step).

    Returns:
      As `trees`, with batch_size rows.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    return _one_side(rng, corpus, batch_size, length, held_out=False)


def validation(corpus, length):
    """Random trees that are held out, the same ones each time.

    At another length than that of the training they are of the same generator, with bounds in proportion: longer than
    min_length * length // T, shorter than `length`.

    Returns:
      (as `trees`, not to be written to, owners [rows]: each is a piece of its own).

    Raises:
      ValueError: trees of this length are too rare, or there are none.
    """
    return dict(_judged(corpus, length)), np.arange(corpus.validation_examples)


def groups(corpus, length):
    """The trees of the judgement: how deep operations nest in them, their length, in quarters, and their root."""
    examples, _ = validation(corpus, length)
    depths, depth = np.unique(_levels(examples["tokens"]).max(1), return_inverse=True)
    edges = np.unique(np.quantile(examples["sizes"], [0, 0.25, 0.5, 0.75, 1]).astype(int))
    edges[0] -= 1
    stretches = [f"{a + 1} to {b}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return {
        "depth of the tree": ([str(depth) for depth in depths], depth),
        "length": (stretches, np.searchsorted(edges[1:-1], examples["sizes"])),
        "root operator": (list(OPERATIONS), examples["tokens"][:, 0].astype(int) - OPERATIONS["MIN"]),
    }


def baselines(corpus, length):
    """Accuracy without nesting, on exactly the trees the variants are judged on.

    "majority" gives the answer most frequent in training, "root operator" the one most frequent under the same root,
    and "depth one" applies the root to the digits among its own arguments, leaving out those that are operations; where
    all are, it answers as "root operator".
    """
    examples, _ = validation(corpus, length)
    seen = batch(corpus, 0, 0, FITTED, length)
    counts = np.zeros((VOCABULARY, 10), int)
    np.add.at(counts, (seen["tokens"][:, 0], seen["labels"]), 1)
    by_root = counts.argmax(1)[examples["tokens"][:, 0]]
    shallow = depth_one(examples["tokens"])
    answers = {
        "majority": counts.sum(0).argmax(),
        "root operator": by_root,
        "depth one": np.where(shallow < 0, by_root, shallow),
    }
    return {name: float(np.mean(answer == examples["labels"])) for name, answer in answers.items()}


def depth_one(tokens):
    """The root's operation on the digits among its own arguments; -1 where it has none.

    Args:
      tokens: [rows, T], as in `trees`.

    Returns:
      int [rows].

    >>> depth_one(np.array([[12, 3, 11, 10, 10, 15, 5, 15]]))  # [MAX 2 [MIN 9 9 ] 4 ]
    array([4])
    """
    digits = tokens.astype(int) - ZERO
    own = (_levels(tokens) == 1) & (digits >= 0) & (digits < 10)
    count = own.sum(1)
    ranked = np.sort(np.where(own, digits, 10), 1)
    at = lambda place: np.take_along_axis(ranked, np.maximum(place, 0)[:, None], 1)[:, 0]  # noqa: E731
    answers = {
        "MIN": at(0 * count),
        "MAX": at(count - 1),
        "MED": (at((count - 1) // 2) + at(count // 2)) // 2,
        "SM": (digits * own).sum(1) % 10,
    }
    value = np.select([tokens[:, 0] == OPERATIONS[name] for name in answers], list(answers.values()))
    return np.where(count, value, -1)


def written(tokens):
    """A row of tokens as text.

    >>> written([12, 3, 11, 10, 8, 15, 5, 15, 0, 0])
    '[MAX 2 [MIN 9 7 ] 4 ]'
    """
    words = {ZERO + digit: str(digit) for digit in range(10)} | {CLOSE: "]"}
    words |= {token: f"[{name}" for name, token in OPERATIONS.items()}
    return " ".join(words[int(token)] for token in tokens if token != PADDING)


def trees(rng, count, min_length, length, max_depth, max_args):
    """Draws `count` trees, all at once level by level, and keeps those of the wanted length.

    The original draws one node after the other. Which node is drawn when does not change how likely a tree is, and a
    tree that has grown too long is left as it is: that it will not be kept is certain.

    Args:
      rng: a `np.random.Generator`.
      count: trees to draw; fewer are kept.
      min_length: a kept tree has more tokens, the brackets that close counted.
      length: T; a kept tree has fewer.
      max_depth: levels, digits of the last one included.
      max_args: the most arguments of an operation.

    Returns:
      {"tokens" uint8 [kept, T], padded with 0, "sizes" int32 [kept], "labels" int32 [kept], the values}.

    >>> found = trees(np.random.default_rng(0), 20, min_length=4, length=16, max_depth=3, max_args=3)
    >>> [(written(row), int(label)) for row, label in zip(found["tokens"], found["labels"])]
    [('[SM 0 [MAX 2 4 ] 5 ]', 9), ('[MED 6 2 [SM 4 4 0 ] ]', 6), ('[SM [SM 0 1 ] 3 ]', 4)]
    """
    sizes, levels = _grown(rng, count, min_length, length, max_depth, max_args)
    symbols, widths, labels = _filled(rng, levels)
    tokens = np.zeros((sizes.size, length), np.uint8)
    begins = np.zeros(sizes.size, int)
    inward = [*widths[1:], np.zeros(0, int)]
    for (tree, arguments), symbol, width, narrower in zip(levels, symbols, widths, inward, strict=True):
        inner = np.flatnonzero(arguments)
        tokens[tree, begins] = symbol
        tokens[tree[inner], begins[inner] + width[inner] - 1] = CLOSE
        firsts = np.cumsum(arguments[inner]) - arguments[inner]
        offsets = np.cumsum(narrower) - narrower  # of a node from the first of its level
        begins = offsets + np.repeat(begins[inner] + 1 - offsets[firsts], arguments[inner])
    return {"tokens": tokens, "sizes": sizes.astype(np.int32), "labels": labels.astype(np.int32)}


def _grown(rng, count, min_length, length, max_depth, max_args):
    """The shapes of the trees that are kept.

    Returns:
      (sizes int [kept], a list of levels: (tree int [nodes], arguments int [nodes], 0 for a digit)). The arguments of a
      level's operations, one operation after the other, are the nodes of the next.
    """
    sizes, tree, levels = np.ones(count, int), np.arange(count), []
    for depth in range(1, max_depth + 1):
        arguments = np.zeros(tree.size, int)
        if depth < max_depth:
            inner = np.flatnonzero(rng.random(tree.size, np.float32) < OPERATION_SHARE)
            arguments[inner] = rng.integers(2, max_args, inner.size, endpoint=True)
            # A node counted as one token: as an operation it has a second one, and its arguments.
            sizes += np.bincount(tree[inner], arguments[inner] + 1, count).astype(int)
        levels.append((tree, arguments))
        tree = np.repeat(tree, np.where(sizes[tree] < length, arguments, 0))
        if not tree.size:
            break
    kept = (sizes > min_length) & (sizes < length)
    number = np.cumsum(kept) - 1
    return sizes[kept], [(number[tree[kept[tree]]], arguments[kept[tree]]) for tree, arguments in levels]


def _filled(rng, levels):
    """Draws operations and digits from the last level to the root, and works out what they give.

    Returns:
      (symbols, a list of the token of each node, widths, a list of how many tokens each node's part of the tree has,
      values int [kept] of the roots).
    """
    symbols, widths, values, width = [], [], np.zeros(0, int), np.zeros(0, int)
    for _, arguments in reversed(levels):
        inner = np.flatnonzero(arguments)
        symbol = rng.integers(0, 10, arguments.size)  # a digit is its own value
        value, narrower, width = symbol.copy(), width, np.ones(arguments.size, int)
        symbol += ZERO
        firsts = np.cumsum(arguments[inner]) - arguments[inner]
        symbol[inner] = rng.integers(OPERATIONS["MIN"], OPERATIONS["SM"], inner.size, endpoint=True)
        value[inner] = _applied(symbol[inner], values, firsts, arguments[inner])
        width[inner] = 2 + np.add.reduceat(narrower, firsts)
        values = value
        symbols.insert(0, symbol)
        widths.insert(0, width)
    return symbols, widths, values


def _applied(operations, values, firsts, counts):
    """Each operation's value; its arguments are `counts` of the `values`, from `firsts` on."""
    group = np.repeat(np.arange(counts.size), counts)
    ranked = np.sort(group * 10 + values) % 10  # within each group
    median = (ranked[firsts + (counts - 1) // 2] + ranked[firsts + counts // 2]) // 2
    choices = {
        "MIN": ranked[firsts],
        "MAX": ranked[firsts + counts - 1],
        "MED": median,
        "SM": np.add.reduceat(values, firsts) % 10,
    }
    return np.select([operations == OPERATIONS[name] for name in choices], list(choices.values()))


def _one_side(rng, corpus, rows, length, held_out):
    """The first `rows` trees of the wanted length that are on this side of the split, as `trees`."""
    least = _least(corpus, length)
    parts, kept, found, drawn = [], 0, 0, 0
    while kept < rows:
        count = min(BLOCK, int(1.1 * (rows - kept) * (drawn + 8) / (kept + 1)) + 8)
        part = trees(rng, count, least, length, corpus.max_depth, corpus.max_args)
        digests = (hashlib.sha256(row[:size]).digest() for row, size in zip(part["tokens"], part["sizes"], strict=True))
        side = np.array([(digest[0] % HELD_OUT == 0) == held_out for digest in digests], bool)
        parts.append({name: array[side] for name, array in part.items()})
        kept, found, drawn = kept + side.sum(), found + side.size, drawn + count
        if drawn > RAREST * (found + 10):
            raise ValueError(
                f"config.data: not one tree in {RAREST:,} has more than {least} and fewer than {length} tokens with "
                f"max_depth={corpus.max_depth}, max_args={corpus.max_args}; want more of these, or a smaller length"
            )
    return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}


def _least(corpus, length):
    """What the trees of a length are longer than."""
    return max(1, corpus.min_length * length // corpus.length)


@functools.lru_cache(maxsize=8)
def _judged(corpus, length):
    rng = np.random.Generator(np.random.Philox(key=[VALIDATION_SEED, 0]))
    examples = _one_side(rng, corpus, corpus.validation_examples, length, held_out=True)
    read_only(examples.values())
    return examples


def _levels(tokens):
    """How many operations are open at each token, those that it opens or closes included."""
    opened = (tokens >= OPERATIONS["MIN"]) & (tokens <= OPERATIONS["SM"])
    closed = np.pad(tokens[:, :-1] == CLOSE, ((0, 0), (1, 0)))
    return (opened.astype(np.int32) - closed).cumsum(1)
