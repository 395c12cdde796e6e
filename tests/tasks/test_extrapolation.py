"""Windows beyond training: every byte once at every length, contexts by hand, bits by a slow sum."""

import hashlib
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import text
from tasks.extrapolation import STRETCHES, baselines, profile, sliding, stream, windows


def corpus_of(*sizes, seed=0):
    """Files of these sizes; no byte stands twice in the first 256."""
    rng = np.random.default_rng(seed)
    content = np.resize(rng.permutation(256), sum(sizes)).astype(np.uint8)
    pieces = np.split(content, np.cumsum(sizes)[:-1])
    train = rng.integers(0, 256, 211, np.uint8)
    return text.Corpus(train, {f"file {i}": piece for i, piece in enumerate(pieces)}, "")


def counted(examples):
    """(place in the stream of each byte that is predicted, how many bytes it is predicted from), by plain loops.

    Windows are found again in the stream by their content.
    """
    found = []
    whole = b"".join(piece.tobytes() for piece in corpus_of(31, 7, 101).validation.values())
    for row in range(len(examples["tokens"])):
        begin, end = examples["begins"][row], examples["ends"][row]
        start = whole.index(examples["tokens"][row, : end + 1].tobytes())
        found += [(start + place + 1, place + 1) for place in range(begin, end)]
    return found


@pytest.mark.parametrize("cut", [windows, sliding])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 29, 47, 137, 138])
def test_every_byte_but_the_first_is_predicted_once(cut, length):
    examples, owners = cut(corpus_of(31, 7, 101), length)
    assert examples["tokens"].shape == (len(owners), length + 1) and examples["tokens"].dtype == np.uint8
    assert sorted(place for place, _ in counted(examples)) == list(range(1, 139))


@pytest.mark.parametrize("length", [4, 5, 16, 29])
def test_sliding_windows_give_three_quarters_of_their_length_to_all_but_the_first_bytes(length):
    for place, context in counted(sliding(corpus_of(31, 7, 101), length)[0]):
        assert context == place if place <= length else length - length // 4 < context <= length


def test_windows_side_by_side_begin_anew(length=5):
    assert {context for _, context in counted(windows(corpus_of(31, 7, 101), length)[0])} == {1, 2, 3, 4, 5}
    for place, context in counted(windows(corpus_of(31, 7, 101), length)[0]):
        assert context == (place - 1) % length + 1


@pytest.mark.parametrize("cut", [windows, sliding])
def test_error_bars_are_over_the_same_stretches_at_every_length(cut):
    corpus = corpus_of(1601)
    for length in (1, 10, 100):
        examples, owners = cut(corpus, length)
        sizes = np.bincount(owners, examples["ends"] - examples["begins"])
        assert len(sizes) == STRETCHES and sizes.sum() == 1600
        assert np.abs(sizes - 100).max() <= length
    assert len(np.unique(cut(corpus, 400)[1])) == 4 and len(cut(corpus, 1600)[1]) == 1


@pytest.mark.parametrize("cut", [windows, sliding])
def test_less_text_than_a_window_is_refused(cut):
    with pytest.raises(ValueError, match="T = 139 is beyond the 138 bytes of validation text to predict"):
        cut(corpus_of(31, 7, 101), 139)


def test_profile_is_the_bits_of_each_counted_byte():
    table = np.random.default_rng(1).normal(size=(256, 256))
    examples, _ = sliding(corpus_of(31, 7, 101), 11)
    rows = profile(lambda tokens, rng: jnp.asarray(table, jnp.float32)[tokens], examples)
    nats, counts, bits, sizes = (np.asarray(each) for each in rows)
    assert nats.shape == (len(examples["ends"]), 11) and (counts == sizes).all() and sizes.sum() == 138
    for row, tokens in enumerate(examples["tokens"].astype(int)):
        for place in range(11):
            scores = table[tokens[place]]
            wanted = math.log(np.exp(scores).sum()) - scores[tokens[place + 1]]
            inside = examples["begins"][row] <= place < examples["ends"][row]
            assert sizes[row, place] == inside
            assert nats[row, place] == pytest.approx(wanted if inside else 0, abs=1e-5)
    np.testing.assert_allclose(bits, nats / math.log(2), rtol=1e-6)


def test_baselines_are_on_the_bytes_that_are_judged():
    corpus = corpus_of(31, 7, 101)
    found, content = baselines(corpus), stream(corpus)
    counts = np.full(256, text.ALPHA)
    for byte in corpus.train:
        counts[byte] += 1
    wanted = -np.mean([math.log2(counts[byte] / counts.sum()) for byte in content[1:]])
    assert found["uniform"] == 8 and found["unigram"] == pytest.approx(wanted)


def printed(length=64):
    """Fingerprints of the windows of Python's own library."""
    corpus = text.load(
        ConfigDict({"name": "python_stdlib", "path": "", "dir": "", "length": 64, "validation_bytes": 4096})
    )
    cuts = (cut(corpus, length)[0]["tokens"] for cut in (windows, sliding))
    return [hashlib.sha256(tokens.tobytes()).hexdigest() for tokens in cuts]


def test_same_in_another_process():
    code = "from tests.tasks.test_extrapolation import printed; print(*printed())"
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == printed()
