"""Text in windows of any length: how a language model does beyond the length it was trained at, place by place.

Press et al. 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
arXiv:2108.12409: models trained on windows of L bytes are judged on windows of L_valid >= L. In windows that do not
overlap, the first bytes have next to nothing to be predicted from, the "early token curse" (Press et al. 2021,
Shortformer, arXiv:2012.15832): longer windows look better for having fewer such bytes, also where a model makes no use
of what lies far back. Sliding windows give every byte about the same context and take that gain away.

This is no task to train on: `eval.py` asks it of models of the task "text". Validation files are joined to one stream,
in their order, so that windows may be longer than a file. Every byte of it after the first is predicted exactly once at
every length, the last window being shorter: numbers at two lengths are about the very same bytes.
"""

import math

import jax.numpy as jnp
import numpy as np

from tasks import text

METRIC = text.METRIC
MODELS = text.MODELS
STRETCHES = 16  # the error bar is the spread over so many stretches of the stream, the same ones at every length
STRIDES = 4  # sliding windows move by a quarter of their length


def stream(corpus):
    """The validation files of a `tasks.text.Corpus`, one after the other, uint8 [bytes]."""
    return np.concatenate(list(corpus.validation.values()))


def windows(corpus, length):
    """Windows side by side: a byte is predicted from the bytes before it in its window, `length` at most.

    Args:
      corpus: a `tasks.text.Corpus`.
      length: T, the bytes that a window gives to predict from.

    Returns:
      ({"tokens" uint8 [windows, T + 1], padded with 0, "begins" int32 [windows], the first place whose prediction
      counts, "ends" int32 [windows], the first one after it that does not}, owners int [windows], the stretch of the
      stream that a window lies in).

    Raises:
      ValueError: less text than one window.

    >>> corpus = text.Corpus(None, {"a": np.arange(4, dtype=np.uint8), "b": np.arange(4, 7, dtype=np.uint8)}, "")
    >>> examples, _ = windows(corpus, 4)
    >>> examples["tokens"].tolist(), examples["ends"].tolist()
    ([[0, 1, 2, 3, 4], [4, 5, 6, 0, 0]], [4, 2])
    """
    return _cut(stream(corpus), length, stride=length)


def sliding(corpus, length):
    """Windows that overlap: every byte but the first `length` has more than three quarters of a window before it.

    A window moves by a quarter of its length, and of all windows but the first only that last quarter counts.

    Args:
      corpus: as `windows` takes it.
      length: likewise.

    Returns:
      As `windows`.

    Raises:
      ValueError: less text than one window.

    >>> examples, _ = sliding(text.Corpus(None, {"a": np.arange(7, dtype=np.uint8)}, ""), 4)
    >>> examples["tokens"].tolist(), examples["begins"].tolist()
    ([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]], [0, 3, 3])
    """
    return _cut(stream(corpus), length, stride=max(1, length // STRIDES))


def profile(model, examples):
    """Nats, bytes, bits and bytes at each place of each window, [windows, T] float32, from a decoder."""
    tokens = examples["tokens"].astype(jnp.int32)
    nats = text.cross_entropy(model(tokens[:, :-1], rng=None), tokens[:, 1:])
    places = jnp.arange(nats.shape[1])
    counted = (places >= examples["begins"][:, None]) & (places < examples["ends"][:, None])
    nats, sizes = jnp.where(counted, nats, 0), counted.astype(jnp.float32)
    return nats, sizes, nats / math.log(2), sizes


def baselines(corpus):
    """Bits per byte of models that know almost nothing, as `tasks.text.baselines`, on the bytes of the stream."""
    return text.baselines(text.Corpus(corpus.train, {"stream": stream(corpus)}, corpus.sha256))


def _cut(content, length, stride):
    """Windows that begin every `stride` bytes; each counts what none before it did."""
    count = content.size - 1  # bytes to predict
    if count < length:
        raise ValueError(
            f"T = {length} is beyond the {count} bytes of validation text to predict; "
            "train with a larger config.data.validation_bytes, or on more text"
        )
    starts = np.arange(0, count - (length - stride), stride)
    places = starts[:, None] + np.arange(length + 1)
    tokens = np.where(places < content.size, content[np.minimum(places, count)], 0).astype(np.uint8)
    begins = np.where(starts == 0, 0, length - stride)
    ends = np.minimum(length, count - starts)
    stretch = max(length, -(-count // STRETCHES))
    _, owners = np.unique((starts + begins) // stretch, return_inverse=True)
    return {"tokens": tokens, "begins": begins.astype(np.int32), "ends": ends.astype(np.int32)}, owners
