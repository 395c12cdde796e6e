"""Semantic segmentation of generated scenes: which shape each pixel belongs to, and the mean intersection over union.

Discs, squares, triangles, rings and crosses of random place, size, turn and colour lie over one another on a noisy
canvas. Colours say nothing about the class, and the middle of a large disc looks like that of a large square: to label
a pixel a model must see the outline around it. Everything is generated, so there is no file and nothing to learn by
heart.
"""

import dataclasses
import functools
import hashlib

import jax.numpy as jnp
import numpy as np

from tasks.images import SIZE, UNIT, tokens
from tasks.text import cross_entropy

__all__ = ["SIZE", "UNIT", "tokens"]  # as they are in `tasks.images`

METRIC = {"name": "validation mean IoU", "higher_is_better": True}
MODELS = ("swin", "axial")
VOCABULARY = 0  # images are no tokens
DATA = ("name", "image_size", "num_shapes", "noise", "validation_images")
JUDGEMENT = 1  # last word of Philox's counter for the scenes of the judgement; those of training count from 0
PICTURES = 6  # validation scenes in the report
RADII = 0.12, 0.3  # of a shape's outer circle, as shares of the canvas
STD = 12**-0.5  # of a colour, which is uniform in 0..1
BINS, BASELINE_SCENES = 8, 1024  # the colour baseline: steps a channel, training scenes that it counts


def _disc(x, y):
    return x**2 + y**2 <= 1


def _square(x, y):
    return np.maximum(abs(x), abs(y)) <= 0.5**0.5


def _triangle(x, y):  # equilateral, one corner up
    return (y <= 0.5) & (3**0.5 * abs(x) - y <= 1)


def _ring(x, y):
    distance = x**2 + y**2
    return (distance <= 1) & (distance >= 0.25)


def _cross(x, y):
    x, y = abs(x), abs(y)
    return (np.minimum(x, y) <= 0.25) & (np.maximum(x, y) <= 0.95)


# Class -> whether a point, in coordinates in which the outer circle has radius 1 around 0, belongs to the shape.
SHAPES = {"disc": _disc, "square": _square, "triangle": _triangle, "ring": _ring, "cross": _cross}
CLASSES = ("background", *SHAPES)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What scenes are like; they are drawn when they are asked for.

    Attributes:
      num_shapes: the most shapes on a canvas; their number is uniform from 1.
      noise: standard deviation added to every channel of every pixel; colours are in 0..1.
      validation_images: so many scenes are judged.
      image_size: rows and columns.
      sha256: fingerprint of what is drawn, so that a run never goes on with another generator's scenes.
    """

    num_shapes: int
    noise: float
    validation_images: int
    image_size: int
    sha256: str


def load(config) -> Corpus:
    """The corpus of `config.data`: `name` "scenes", `image_size`, `num_shapes`, `noise`, `validation_images`.

    Raises:
      ValueError: another name, or no size.
    """
    if config.name != "scenes":
        raise ValueError(f"config.data.name={config.name!r}: unknown, want scenes")
    if config.image_size < 1:
        raise ValueError("config.data.image_size=0: scenes can have any size; write --config.data.image_size=32")
    corpus = Corpus(config.num_shapes, config.noise, config.validation_images, config.image_size, "")
    digest = hashlib.sha256(repr(corpus).encode())
    for stream, rows in ((_judgement, corpus.validation_images), (functools.partial(_step, 0, 0), 1)):
        digest.update(draw(stream(), corpus, rows, corpus.image_size)["labels"])
        layout = layouts(stream(), rows, corpus.num_shapes)
        for name in ("colors", "canvas"):  # rounded, and not the noise: last bits may depend on the machine
            digest.update(np.round(layout[name], 3))
    return dataclasses.replace(corpus, sha256=digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and what a pixel's colour alone tells."""
    return {
        "sha256": corpus.sha256,
        "classes": list(CLASSES),
        "image_size": corpus.image_size,
        "validation_images": corpus.validation_images,
        "validation_examples": corpus.validation_images,
        "baselines": baselines(corpus, length),
    }


def fields(corpus):
    """The model takes colours, and answers with one score for each class at each pixel."""
    return {"model.channels": 3, "model.num_classes": len(CLASSES), "model.head": "pixels"}


def batch(corpus, seed, step, batch_size, length):
    """New scenes, a pure function of (seed, step).

    Returns:
      {"images" float32 [batch_size, length, length, 3], normalised, "labels" uint8 [batch_size, length, length]}.
    """
    return draw(_step(seed, step), corpus, batch_size, length)


def validation(corpus, length):
    """The same scenes each time, of a part of the generator's numbers that no training step reaches.

    Returns:
      (as `batch`, owners [rows]: each scene is a piece of its own). Another `length` shows the same shapes, sampled at
      other points.
    """
    return draw(_judgement(), corpus, corpus.validation_images, length), np.arange(corpus.validation_images)


def draw(rng, corpus, rows, length):
    """Scenes, painted shape over shape, all rows at once.

    Args:
      rng: a NumPy generator.
      corpus: `Corpus`.
      rows: how many.
      length: rows and columns of each.

    Returns:
      As `batch`.
    """
    layout = layouts(rng, rows, corpus.num_shapes)
    middles = (np.arange(length, dtype=np.float32) + 0.5) / length
    labels = np.zeros((rows, length, length), np.uint8)
    images = np.broadcast_to(layout["canvas"][:, None, None], (rows, length, length, 3)).copy()
    for shape in range(corpus.num_shapes):
        for label, inside in enumerate(SHAPES.values(), 1):
            chosen = np.flatnonzero(layout["labels"][:, shape] == label)
            place = {name: layout[name][chosen, shape, None, None] for name in ("x", "y", "radius", "cos", "sin")}
            x, y = (middles - place["x"]) / place["radius"], (middles[:, None] - place["y"]) / place["radius"]
            turned = place["cos"] * x + place["sin"] * y, place["cos"] * y - place["sin"] * x
            scene, row, column = np.nonzero(inside(*turned))
            labels[chosen[scene], row, column] = label
            images[chosen[scene], row, column] = layout["colors"][chosen[scene], shape]
    images += corpus.noise * rng.standard_normal(images.shape, np.float32)
    return {"images": (images - 0.5) / np.float32(STD), "labels": labels}


def layouts(rng, rows, num_shapes):
    """What is where: float32 and int arrays whose first two axes are scenes and their shapes, the uppermost last.

    Returns:
      {"labels" [rows, num_shapes], 0 where there is no shape, "x", "y" of the middle, "radius" of the outer circle, all
      as shares of the canvas, "cos", "sin" of its turn, "colors" [rows, num_shapes, 3], "canvas" [rows, 3]}.
    """
    uniform = lambda low, high, *shape: rng.uniform(low, high, (rows, *shape)).astype(np.float32)  # noqa: E731
    count = rng.integers(1, num_shapes + 1, (rows, 1))
    labels = np.where(np.arange(num_shapes) < count, rng.integers(1, len(CLASSES), (rows, num_shapes)), 0)
    canvas = uniform(0, 1, 3)
    # A quarter or more away from the canvas in every channel, round the end; uniform, like the canvas, for every class.
    colors = (canvas[:, None] + uniform(0.25, 0.75, num_shapes, 3)) % 1
    turns = rng.uniform(0, 2 * np.pi, (rows, num_shapes))
    return {
        "labels": labels,
        "x": uniform(0.1, 0.9, num_shapes),
        "y": uniform(0.1, 0.9, num_shapes),
        "radius": uniform(*RADII, num_shapes),
        "cos": np.cos(turns).astype(np.float32),  # of float64, so that all machines round to the same outlines
        "sin": np.sin(turns).astype(np.float32),
        "colors": colors,
        "canvas": canvas,
    }


def score(model, examples, rng=None):
    """Nats and pixels of each scene, and for each class the pixels in both and in either of label and answer.

        IoU_c = sum over scenes of |label = c and answer = c| / sum over scenes of |label = c or answer = c|

    The metric is the mean over the classes, the canvas among them (Everingham et al. 2010, "The PASCAL Visual Object
    Classes Challenge", section 4.1.3).
    """
    labels = examples["labels"].astype(jnp.int32)
    logits = model(examples["images"], rng=rng).astype(jnp.float32)
    loss = cross_entropy(logits, labels)
    metric, weight = overlaps(labels, logits.argmax(-1))
    return loss.sum((1, 2)), jnp.ones_like(loss).sum((1, 2)), metric, weight


def overlaps(labels, answers):
    """Intersections and unions of each class in pixels: int [B, rows, columns] twice -> float32 [B, classes] twice.

    >>> both, either = overlaps(jnp.array([[[0, 1, 1]]]), jnp.array([[[0, 0, 1]]]))
    >>> both[0, :2].tolist(), either[0, :2].tolist()
    ([1.0, 1.0], [2.0, 2.0])
    """
    classes = jnp.arange(len(CLASSES))
    labels, answers = labels[..., None] == classes, answers[..., None] == classes
    return tuple(found.sum((1, 2), dtype=jnp.float32) for found in (labels & answers, labels | answers))


def pictures(model, corpus, length):
    """A few scenes of the judgement and what a model makes of them.

    Returns:
      {"images" float32 [n, length, length, 3] in 0..1, "labels" [n, length, length], "answers" [n, length, length]}.
    """
    examples = {name: array[:PICTURES] for name, array in validation(corpus, length)[0].items()}
    answers = model(jnp.asarray(examples["images"])).argmax(-1).astype(jnp.int32)
    return {"images": np.clip(_colors(examples["images"]), 0, 1), "labels": examples["labels"], "answers": answers}


def baselines(corpus, length):
    """Mean IoU of models that see one pixel, on exactly the scenes the variants are judged on.

    "canvas" answers background everywhere, "color" the class most frequent among training pixels of about that colour.
    """
    examples, _ = validation(corpus, length)
    seen = batch(corpus, 0, 0, BASELINE_SCENES, length)
    counts = np.zeros((BINS**3, len(CLASSES)), np.int64)
    np.add.at(counts, (_bins(seen["images"]), seen["labels"]), 1)
    answers = {"canvas": np.zeros_like(examples["labels"]), "color": counts.argmax(1)[_bins(examples["images"])]}
    return {name: _mean_iou(examples["labels"], answer) for name, answer in answers.items()}


def _step(seed, step):
    return np.random.Generator(np.random.Philox(key=[seed, step]))


def _judgement():
    return np.random.Generator(np.random.Philox(key=[0, 0], counter=[0, 0, 0, JUDGEMENT]))


def _mean_iou(labels, answers):
    """Over the classes that occur in a label or an answer, as the variants are judged."""
    both, either = (np.asarray(found).sum(0, dtype=np.float64) for found in overlaps(labels, answers))
    return float(np.mean(both[either > 0] / either[either > 0]))


def _colors(images):
    return images * np.float32(STD) + np.float32(0.5)


def _bins(images):
    steps = np.clip(_colors(images) * BINS, 0, BINS - 1).astype(np.int64)
    return functools.reduce(lambda index, channel: index * BINS + channel, np.moveaxis(steps, -1, 0))
