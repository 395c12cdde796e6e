"""Images as sequences of pixels: the class of an image that a model reads one grey pixel after the other.

The "Image" task of Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.4: an image becomes one row of
its grey pixels, line by line, a token for each of 256 values. What stands above a pixel comes a whole line earlier, and
nothing tells the model so. Theirs are the 32 x 32 pixels of CIFAR-10, T = 1,024; the default here is smaller.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tasks import images
from tasks.image_files import SOURCES, Images
from tasks.source import check_read, source_of
from tasks.text import class_scores, tokens

__all__ = ["tokens"]  # as it is in `tasks.text`

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("encoder",)
VOCABULARY = 256  # values of a pixel
DATA = ("name", "path", "dir", "length")
SIZE, UNIT = "length", "tokens"
LUMA = (2989, 5870, 1140)  # ten thousandths of red, green and blue
CHUNK = 4096  # images whose colours are weighed at once


def load(config) -> images.Corpus:
    """Reads the images that `config.data` names, all of them into memory, in grey.

    Args:
      config: `name` (one of SOURCES), `path` (a folder of the user's own with one folder a class; non-empty replaces
        the default source), `dir` (folder that holds the published files), `length` T, rows times columns; the images
        of a folder are resized to that.

    Returns:
      The corpus, with one channel and nothing that changes images in training; the same for the same files, in any
      process.

    Raises:
      ValueError: unknown source, settings that the source does not take, a length that is not that of the images,
        altered or incomplete files, an image that does not read.
      OSError: a file that cannot be read.
    """
    source = source_of(config, SOURCES, "digits")
    check_read(config, source, ("path", "dir"), {"path": ("path",), "digits": ()}.get(source, ("dir",)))
    side = math.isqrt(config.length)
    if side**2 != config.length:
        raise ValueError(
            f"config.data.length={config.length}: want rows times columns of a square, {side**2} or {(side + 1) ** 2}"
        )
    classes, *halves = SOURCES[source](ConfigDict(config.to_dict() | {"image_size": side}))
    rows, columns = halves[0].pixels.shape[1:3]
    if (rows, columns) != (side, side):
        raise ValueError(
            f"config.data.length={config.length}: the images of {source} have {rows} x {columns} pixels; "
            f"write --config.data.length={rows * columns}"
        )
    train, validation = (Images(grey(half.pixels)[..., None], half.labels) for half in halves)
    unchanged = 0, False, 0.0, 0.0  # no crop, flip, mixup or label_smoothing
    return images.corpus_of(classes, train, validation, *unchanged)


def grey(pixels):
    """Colours as shades of grey, weighed as the published task weighs them.

        floor(255.5 / 255 (0.2989 R + 0.5870 G + 0.1140 B))

    As `tf.image.rgb_to_grayscale` has it, but in integers: its float32 is off by one for about one colour in 80,000.

    Args:
      pixels: uint8 [images, rows, columns, 3], or 1 channel, which stays as it is.

    Returns:
      uint8 [images, rows, columns].

    >>> grey(np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], np.uint8)).tolist()
    [[[76, 149, 29, 255]]]
    """
    if pixels.shape[-1] == 1:
        return pixels[..., 0]
    shades = np.empty(pixels.shape[:-1], np.uint8)
    for start in range(0, len(pixels), CHUNK):
        chunk = slice(start, start + CHUNK)
        shades[chunk] = pixels[chunk].astype(np.int64) @ np.array(LUMA) * 511 // (510 * 10_000)
    return shades


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and baselines on its images."""
    return {
        "sha256": corpus.sha256,
        "classes": list(corpus.classes),
        "pieces": "images",
        "train_images": len(corpus.train.labels),
        "validation_images": len(corpus.validation.labels),
        "validation_examples": len(corpus.validation.labels),
        "baselines": images.baselines(corpus, _side(corpus, length)),
    }


def fields(corpus):
    """The model answers with one score for each class."""
    return {"model.num_classes": len(corpus.classes)}


def batch(corpus, seed, step, batch_size, length):
    """Training images drawn at random, a pure function of (seed, step).

    Returns:
      {"tokens" uint8 [batch_size, T], pixels line by line, "labels" int32 [batch_size]}.

    Raises:
      ValueError: a length that is not that of the images.
    """
    _side(corpus, length)
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    return _rows(corpus.train, rng.integers(0, len(corpus.train.labels), size=batch_size))


def validation(corpus, length):
    """Every image of the judgement.

    Returns:
      (as `batch`, owners [rows]: each image is a piece of its own).

    Raises:
      ValueError: a length that is not that of the images.
    """
    _side(corpus, length)
    rows = np.arange(len(corpus.validation.labels))
    return _rows(corpus.validation, rows), rows


def score(model, examples, rng=None):
    """Nats, 1 for each image, 1 for a right answer, and 1 for each image, from an encoder that scores classes."""
    return class_scores(model(examples["tokens"].astype(jnp.int32), rng=rng), examples["labels"])


def pictures(model, corpus, length):
    """What an encoder answers to a few validation images, and which of their pixels it looks at: `images.pictures`."""
    return images.pictures(_OfImages(model, corpus), corpus, _side(corpus, length))


@dataclasses.dataclass(frozen=True)
class _OfImages:
    """An encoder of pixels that takes normalised images, as the corpus has them: what `images.pictures` wants."""

    encoder: object
    corpus: images.Corpus

    @property
    def special(self):
        """Vectors before the first pixel: one with pool="cls"."""
        return int(self.encoder.config.pool == "cls")

    @property
    def class_token(self):
        """Whether that vector is the one read out."""
        return True if self.special else None

    def __call__(self, pixels):
        return self.encoder(self._tokens(pixels))

    def attention_maps(self, pixels):
        """[B, N, T, T] of each layer."""
        return self.encoder.attention_maps(self._tokens(pixels))

    def _tokens(self, pixels):
        shades = 255 * (pixels * self.corpus.std + self.corpus.mean)
        return jnp.round(shades).astype(jnp.int32).reshape(len(pixels), -1)


def _rows(half, rows):
    return {"tokens": half.pixels[rows].reshape(len(rows), -1), "labels": half.labels[rows]}


def _side(corpus, length):
    """Rows, and columns, of images of `length` pixels."""
    if length != corpus.image_size**2:
        raise ValueError(
            f"length={length}: images of {corpus.image_size} x {corpus.image_size} have {corpus.image_size**2} pixels"
        )
    return corpus.image_size
