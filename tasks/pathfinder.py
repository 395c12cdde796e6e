"""Pathfinder and Path-X: are two dots joined by a dashed contour? An encoder reads the picture as a row of pixels.

Linsley et al. 2018, arXiv:1805.08315, as Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.5, read it:
grey values, row by row, T = 32 x 32 tokens, or 128 x 128 for Path-X, with contours of 14 paddles. `tasks.contours`
draws each picture when it is asked for: there is no file, no picture comes twice, and none is both trained and judged
on but by a chance that is nil.

Pictures of both labels have two long contours and two dots on ends of them, so that no count and no single place tells
them apart. The dots together do, as published: a contour that starts at one dot and keeps its direction for a while is
more likely to end at some places, and in some directions, than others, the more the shorter it is. What that is worth
without following it is a baseline, below which no model has been shown to trace anything.
"""

import dataclasses
import functools
import hashlib
import math

import jax.numpy as jnp
import numpy as np

from tasks.contours import LONGEST, draw
from tasks.rollout import look
from tasks.text import UNIT, class_scores, tokens

__all__ = ["UNIT", "tokens"]  # as they are in `tasks.text`

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
VOCABULARY = 256  # grey values
DATA = ("name", "length", "contour_length", "num_distractors", "validation_examples")
SIZE = "length"
CLASSES = ("apart", "joined")
SMALLEST = 16  # rows and columns; below, hardly anything finds room beside two dots
VALIDATION_SEED = 0  # the same pictures are judged on every time
JUDGED = 1  # last word of Philox's counter for these; training counts from 0 and never comes to it
FITTED = 2048  # training pictures that the baselines know
NEIGHBOURS = 31  # of these, that a picture is likened to
DISTANCES = (0.25, 0.5)  # of the side, between groups
PICTURES = 8  # in the report
MAPPED = 4096  # tokens, at most, whose attention is drawn over a picture: the maps have T^2 numbers a head


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is drawn; the pictures themselves are drawn when they are asked for.

    Attributes:
      contour_length: paddles of each of the two long contours.
      num_distractors: shorter contours, as many as find room.
      validation_examples: pictures that are judged.
      sha256: fingerprint of what is drawn, so that a run never goes on with another generator's pictures.
    """

    contour_length: int
    num_distractors: int
    validation_examples: int
    sha256: str


def load(config) -> Corpus:
    """The corpus of `config.data`.

    Args:
      config: `name` "pathfinder", `length` T, the square of the pictures' side, `contour_length`, `num_distractors` and
        `validation_examples`; see `Corpus`.

    Raises:
      ValueError: another name, a length that is no square, contours that do not fit.
    """
    if config.name != "pathfinder":
        raise ValueError(f"config.data.name={config.name!r}: unknown, want pathfinder")
    side_of(config.length)
    if not 2 <= config.contour_length <= LONGEST:
        raise ValueError(f"config.data.contour_length={config.contour_length}: want 2 to {LONGEST} paddles")
    corpus = Corpus(config.contour_length, config.num_distractors, config.validation_examples, "")
    digest = hashlib.sha256(repr((config.length, *dataclasses.astuple(corpus))).encode())
    try:
        drawn = batch(corpus, seed=0, step=0, batch_size=8, length=config.length), validation(corpus, config.length)[0]
    except ValueError as error:
        raise ValueError(f"config.data.contour_length={config.contour_length}: {error}; want fewer paddles") from error
    for part in drawn:
        digest.update(part["tokens"])
        digest.update(part["labels"])
    return dataclasses.replace(corpus, sha256=digest.hexdigest())


def side_of(length):
    """Rows, and columns, of a picture of so many pixels.

    >>> side_of(1024)
    32

    Raises:
      ValueError: the length is no square, or too small for two dots.
    """
    side = math.isqrt(length)
    if side**2 != length or side < SMALLEST:
        wanted = max(side, SMALLEST) ** 2
        raise ValueError(f"config.data.length={length}: want the square of {SMALLEST} or more, such as {wanted}")
    return side


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and baselines on pictures of `length`."""
    return {
        "sha256": corpus.sha256,
        "pieces": "images",
        "classes": list(CLASSES),
        "side": side_of(length),
        "validation_examples": corpus.validation_examples,
        "baselines": baselines(corpus, length),
    }


def fields(corpus):
    """The model answers with one score for each class."""
    return {"model.num_classes": len(CLASSES)}


def batch(corpus, seed, step, batch_size, length):
    """Pictures of a training step, a pure function of (seed, step); of an odd number one label has one more.

    Returns:
      {"tokens" uint8 [batch_size, T], grey values row by row, "labels" int32 [batch_size], 1 = joined}.
    """
    return _examples(_draw(corpus, np.random.Philox(key=[seed, step]), batch_size, length))


def validation(corpus, length):
    """The same pictures each time; at another length, of that side, with contours of as many paddles.

    Returns:
      (as `batch`, owners [rows]: each picture is a piece of its own).
    """
    return _judged(corpus, length)[0], np.arange(corpus.validation_examples)


def groups(corpus, length):
    """The judgement by the distance of the two dots, and by the right answer."""
    examples, cues = _judged(corpus, length)
    near, far = DISTANCES
    labels = [f"below {near:g} of the side", f"{near:g} to {far:g}", f"{far:g} or more"]
    return {
        "distance of the dots": (labels, np.digitize(cues[:, 0] / side_of(length), DISTANCES)),
        "dots": (list(CLASSES), examples["labels"]),
    }


def score(model, examples, rng=None):
    """Nats, 1 for each picture, 1 for a right answer, and 1 for each picture, from an encoder that scores classes."""
    return class_scores(model(examples["tokens"].astype(jnp.int32), rng=rng), examples["labels"])


def baselines(corpus, length):
    """Accuracy without following a contour, on exactly the pictures the variants are judged on.

    "majority" gives the answer most frequent in training. The others know more than a model is told, but only of the
    dots: they give the answer most frequent among the NEIGHBOURS training pictures that are most alike in the "distance
    of the dots", or in that, in the two angles between the way from dot to dot and the paddles at the dots, and in the
    angle between these two ("paddles at the dots").
    """
    drawing = _draw(corpus, np.random.Philox(key=[VALIDATION_SEED, 0]), FITTED, length)
    examples, cues = _judged(corpus, length)
    answers = {"majority": drawing.labels.mean() > 0.5}
    for name, columns in (("distance of the dots", slice(1)), ("paddles at the dots", slice(None))):
        answers[name] = _as_neighbours(_cues(drawing)[:, columns], drawing.labels, cues[:, columns])
    return {name: float(np.mean(answer == examples["labels"])) for name, answer in answers.items()}


def pictures(model, corpus, length):
    """What a model answers to a few pictures of both classes, and which pixels it looks at.

    Args:
      model: also has `attention_maps(tokens)`, a list of [B, N, T, T], and `before`, how many vectors stand before the
        tokens.
      corpus: the corpus.
      length: T.

    Returns:
      {"images" float32 [n, side, side, 1] in 0..1, "labels" int32 [n]} and what `tasks.rollout.look` finds, above
      MAPPED tokens without "maps".
    """
    examples, side = _judged(corpus, length)[0], side_of(length)
    half = PICTURES // 2
    order = np.argsort(examples["labels"], kind="stable")
    rows = np.unique(np.concatenate([order[:half], order[::-1][:half]]))
    structure = {"special": model.before, "class_token": model.before > 0}
    found = look(model, jnp.asarray(examples["tokens"][rows], jnp.int32), mapped=length <= MAPPED, **structure)
    images = examples["tokens"][rows].reshape(-1, side, side, 1).astype(np.float32) / 255
    return {"images": images, "labels": examples["labels"][rows]} | found


def _draw(corpus, bits, rows, length):
    return draw(np.random.Generator(bits), rows, side_of(length), corpus.contour_length, corpus.num_distractors)


def _examples(drawing):
    return {"tokens": drawing.images.reshape(len(drawing.images), -1), "labels": drawing.labels}


def _cues(drawing):
    """float32 [n, 4]: the distance of the two dots, in pixels, and the cosines of "paddles at the dots"."""
    along = []
    for dot, paddle in enumerate((0, -1)):  # of the contour that starts, or ends, there
        long = drawing.paddles[:, :2, paddle]
        which = np.linalg.norm(long[:, :, dot] - drawing.dots[:, None, dot], axis=-1).argmin(1)
        along.append(np.diff(long[np.arange(len(long)), which], axis=1)[:, 0])
    way = drawing.dots[:, 1] - drawing.dots[:, 0]
    cosines = [_cosine(way, along[0]), _cosine(way, along[1]), _cosine(*along)]
    return np.stack([np.linalg.norm(way, axis=1), *cosines], 1)


def _cosine(a, b):
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-6)


def _as_neighbours(known, labels, asked):
    """The label that most of the NEIGHBOURS rows of `known` nearest to each row of `asked` have; of features alike."""
    known, asked = ((each / known.std(0)).astype(np.float32) for each in (known, asked))
    distance = (known**2).sum(1) - 2 * asked @ known.T
    nearest = np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return labels[nearest].mean(1) > 0.5


@functools.lru_cache(maxsize=2)
def _judged(corpus, length):
    """(The examples of the judgement, their `_cues`); kept, because several functions ask for them."""
    bits = np.random.Philox(key=[VALIDATION_SEED, 0], counter=[0, 0, 0, JUDGED])
    drawing = _draw(corpus, bits, corpus.validation_examples, length)
    return _examples(drawing), _cues(drawing)
