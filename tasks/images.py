"""Image classification: which class an image belongs to, and the share of right answers."""

import dataclasses
import functools
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from tasks import augment
from tasks.image_files import SOURCES, Images
from tasks.rollout import look
from tasks.source import check_read, source_of

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("vit", "swin", "axial")
VOCABULARY = 0  # images are no tokens
DATA = ("name", "path", "dir", "image_size", "crop", "flip", "mixup", "label_smoothing")
SIZE, UNIT = "image_size", "images"
ORDER = 1  # last word of Philox's counter for the order of the images; the augmentation of a batch counts from 0
PICTURES = 8  # validation images in the report
BASELINE_PIXELS = 1024  # numbers that the linear baseline sees of an image: larger ones are shrunk to so many
RIDGE = 0.01  # weight of the squared coefficients, per training image, on pixels of unit variance
CHUNK = 4096  # images that a baseline holds as floats at once


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Labelled images in two parts, and what training does to its own.

    Attributes:
      classes: their names.
      train: `Images` to learn from.
      validation: `Images` the metric is computed on.
      mean: float32 [channels], of the training pixels in 0..1.
      std: float32 [channels], likewise.
      crop: pixels that a training image may move.
      flip: whether it may be mirrored.
      mixup: alpha, or 0.
      label_smoothing: in [0, 1).
      sha256: fingerprint of the images and their labels.
    """

    classes: tuple[str, ...]
    train: Images
    validation: Images
    mean: np.ndarray
    std: np.ndarray
    crop: int
    flip: bool
    mixup: float
    label_smoothing: float
    sha256: str

    @property
    def image_size(self):
        """Rows, and columns, of the images."""
        return self.train.pixels.shape[1]


def load(config) -> Corpus:
    """Reads the images that `config.data` names, all of them into memory, a byte a number.

    Args:
      config: `name` (one of SOURCES), `path` (a folder of the user's own with one folder a class; non-empty replaces
        the default source), `dir` (folder that holds the published files), `image_size` (0 = as the files have it;
        else they are resized), `crop`, `flip`, `mixup` and `label_smoothing` (see `tasks.augment`; 0 or False = off).

    Returns:
      The corpus, the same for the same files, in any process.

    Raises:
      ValueError: unknown source, settings that the source does not take, altered or incomplete files, an image that
        does not read.
      OSError: a file that cannot be read.
    """
    source = source_of(config, SOURCES, "digits")
    check_read(config, source, ("path", "dir"), {"path": ("path",), "digits": ()}.get(source, ("dir",)))
    classes, *halves = SOURCES[source](config)
    size = config.image_size or halves[0].pixels.shape[1]
    if config.crop >= size:
        raise ValueError(f"config.data.crop={config.crop}: want less than the image_size of {size}")
    train, validation = (Images(augment.resize(half.pixels, size), half.labels) for half in halves)
    return corpus_of(classes, train, validation, config.crop, config.flip, config.mixup, config.label_smoothing)


def corpus_of(classes, train, validation, *settings):
    """The corpus of two halves of `Images`, uint8 [images, rows, columns, channels].

    Args:
      classes: their names.
      train: to learn from.
      validation: to judge by.
      *settings: crop, flip, mixup and label_smoothing, as `Corpus` has them.
    """
    digest = hashlib.sha256("\n".join(classes).encode())
    for half in (train, validation):
        digest.update(repr(half.pixels.shape).encode())
        digest.update(half.pixels)
        digest.update(half.labels)
    return Corpus(classes, train, validation, *_mean_and_std(train.pixels), *settings, digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and baselines on images of `length`."""
    return {
        "sha256": corpus.sha256,
        "classes": list(corpus.classes),
        "image_size": corpus.image_size,
        "channels": len(corpus.mean),
        "train_images": len(corpus.train.labels),
        "validation_images": len(corpus.validation.labels),
        "validation_examples": len(corpus.validation.labels),
        "baselines": baselines(corpus, length),
    }


def tokens(length):
    """An example has `length` x `length` pixels."""
    return length**2


def fields(corpus):
    """The model takes images with the channels of these, and answers with one score for each class."""
    return {
        "data.image_size": corpus.image_size,
        "model.channels": len(corpus.mean),
        "model.num_classes": len(corpus.classes),
        "model.head": "classes",
    }


def batch(corpus, seed, step, batch_size, length):
    """Training images of a step: every epoch shows each image once, in an order of its own. Pure in (seed, step).

    Position p = step batch_size + row of the training is image p mod n of the order of epoch p // n. Philox is a
    counter-based generator: keyed by (seed, epoch) for the order and by (seed, step) for the augmentation it needs no
    state, so training goes on after a stop without replaying anything.

    Returns:
      {"images" float32 [batch_size, length, length, channels], normalised, "targets" float32 [batch_size, classes],
      which sum to 1, "labels" int32 [batch_size]}; under mixup the label is that of the first of the two images.
    """
    count = len(corpus.train.labels)
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _order(seed, int(epoch), count)[places[epochs == epoch]]
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    images = augment.random_crop(augment.resize(corpus.train.pixels[rows], length), corpus.crop, rng)
    if corpus.flip:
        images = augment.random_flip(images, rng)
    labels = corpus.train.labels[rows]
    targets = augment.soft_targets(labels, len(corpus.classes), corpus.label_smoothing)
    images, targets = augment.mixup(_normalized(corpus, images), targets, corpus.mixup, rng)
    return {"images": images, "targets": targets, "labels": labels}


def validation(corpus, length):
    """Every image of the judgement as it is, resized where `length` asks for another size.

    Returns:
      (as `batch`, with targets of 0 and 1; owners [rows]: each image is a piece of its own).
    """
    images = _normalized(corpus, augment.resize(corpus.validation.pixels, length))
    labels = corpus.validation.labels
    targets = augment.soft_targets(labels, len(corpus.classes), 0)
    return {"images": images, "targets": targets, "labels": labels}, np.arange(len(labels))


def score(model, examples, rng=None):
    """Nats, 1 for each image, 1 for a right answer, and 1 for each image, from a model that scores classes.

    loss = - sum_c target_c log softmax(logits)_c
    """
    logits = model(examples["images"], rng=rng).astype(jnp.float32)
    right = (logits.argmax(-1) == examples["labels"]).astype(jnp.float32)
    one = jnp.ones_like(right)
    return -(examples["targets"] * jax.nn.log_softmax(logits)).sum(-1), one, right, one


def pictures(model, corpus, length):
    """What a model answers to a few validation images of different classes, and which of their pixels it looks at.

    Args:
      model: also has `attention_maps(images)`, a list of [B, N, T, T]. Its `special` tokens, its `class_token` and its
        `maps_per_residual` are as `tasks.rollout` has them; none, none and 1 where it does not say.
      corpus: the corpus.
      length: rows and columns.

    Returns:
      {"images" float32 [n, length, length, channels] in 0..1, "labels" int32 [n]} and what `tasks.rollout.look` finds.
    """
    _, first = np.unique(corpus.validation.labels, return_index=True)
    rows = first[np.linspace(0, len(first) - 1, min(PICTURES, len(first))).round().astype(int)]
    pixels = augment.resize(corpus.validation.pixels[rows], length)
    structure = {"special": getattr(model, "special", 0), "maps_per_residual": getattr(model, "maps_per_residual", 1)}
    structure["class_token"] = getattr(model, "class_token", None) is not None
    shown = {"images": pixels.astype(np.float32) / 255, "labels": corpus.validation.labels[rows]}
    return shown | look(model, jnp.asarray(_normalized(corpus, pixels)), **structure)


def baselines(corpus, length):
    """Accuracy of models without a network, on exactly the images the variants are judged on.

    "majority" gives the class most frequent in training, "nearest mean" the class whose mean training image is nearest,
    "linear" the largest of one ridge regression a class on the pixels; both see images of at most BASELINE_PIXELS
    numbers. The last two are closed forms of the same sums over the training images, X^T X and X^T Y.
    """
    side = min(length, math.isqrt(BASELINE_PIXELS // len(corpus.mean)))
    gram, sums = 0, 0
    for pixels, labels in _chunks(corpus, corpus.train, side):
        gram = gram + pixels.T @ pixels
        sums = sums + pixels.T @ np.eye(len(corpus.classes), dtype=np.float32)[labels]
    counts = sums[-1]  # the last feature is 1
    means = sums / counts
    gram, sums = gram.astype(np.float64), sums.astype(np.float64)
    weights = np.linalg.solve(gram + RIDGE * counts.sum() * np.eye(len(gram)), sums).astype(np.float32)
    right = {"majority": 0, "nearest mean": 0, "linear": 0}
    for pixels, labels in _chunks(corpus, corpus.validation, side):
        right["majority"] += (labels == counts.argmax()).sum()
        right["nearest mean"] += (labels == (2 * pixels @ means - (means**2).sum(0)).argmax(1)).sum()
        right["linear"] += (labels == (pixels @ weights).argmax(1)).sum()
    return {name: float(found / len(corpus.validation.labels)) for name, found in right.items()}


def _chunks(corpus, images, side):
    """(float32 [CHUNK, features], the last one 1; labels [CHUNK]) of all images, shrunk to `side`."""
    for start in range(0, len(images.labels), CHUNK):
        pixels = _normalized(corpus, augment.resize(images.pixels[start : start + CHUNK], side))
        rows = pixels.reshape(len(pixels), -1)
        yield np.append(rows, np.ones_like(rows[:, :1]), axis=1), images.labels[start : start + CHUNK]


def _normalized(corpus, pixels):
    """float32, of mean 0 and variance 1 over the training images, channel by channel."""
    return pixels * (1 / (255 * corpus.std)) - corpus.mean / corpus.std


def _mean_and_std(pixels):
    """Of each channel in 0..1; sums of integers, so that they are exact in any order."""
    count = pixels[..., 0].size
    mean = pixels.sum((0, 1, 2), dtype=np.int64) / count
    square = np.einsum("nhwc,nhwc->c", pixels, pixels, dtype=np.int64) / count
    std = np.sqrt(np.maximum(square - mean**2, 1))  # a channel without contrast is not blown up
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _order(seed, epoch, count):
    """The order of `count` images in an epoch; a pure function, kept because every step of the epoch asks for it."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, ORDER])).permutation(count)
