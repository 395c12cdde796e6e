"""Rewriting: targets that are the sources backwards, batches that repeat, and a judgement nobody trained on."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import rewriting
from tasks.rewriting import HELD_OUT, LETTERS, START


def data_config(**changes):
    return ConfigDict({"name": "reversed", "path": "", "dir": "", "length": 16, "validation_bytes": 1000} | changes)


@pytest.fixture(scope="module")
def corpus():
    return rewriting.load(data_config())


def drawn(corpus, seed=0, step=0, length=16, rows=400):
    return rewriting.batch(corpus, seed, step, rows, length)


@pytest.mark.parametrize("length", [1, 2, 16])
def test_the_target_is_the_source_backwards(corpus, length):
    for examples in (drawn(corpus, length=length), rewriting.validation(corpus, length)[0]):
        assert examples["source"].shape == examples["target"].shape and examples["source"].shape[1] == length
        for source, target in zip(examples["source"].tolist(), examples["target"].tolist(), strict=True):
            assert target == list(reversed(source))


def test_batches_repeat_by_seed_and_step(corpus):
    draws = [drawn(corpus, seed, step)["source"].tobytes() for seed in (0, 1) for step in (0, 1) for _ in range(2)]
    assert draws[::2] == draws[1::2] and len(set(draws)) == 4


@pytest.mark.parametrize("length", [1, 2, 16])
def test_no_source_is_on_both_sides(corpus, length):
    """Not by luck: with one letter there are only 32 sources, and both sides see all of theirs."""
    train = drawn(corpus, length=length)["source"]
    held = rewriting.validation(corpus, length)[0]["source"]
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in held}
    assert (train.sum(1, dtype=int) % HELD_OUT != 0).all() and (held.sum(1, dtype=int) % HELD_OUT == 0).all()
    if length == 1:
        assert len(np.unique(train)) + len(np.unique(held)) == LETTERS


def test_every_letter_is_as_likely_at_every_place(corpus):
    letters = drawn(corpus, rows=8000, length=3)["source"]
    for column in letters.T:
        expected = 8000 / LETTERS
        assert (np.abs(np.bincount(column, minlength=LETTERS) - expected) < 5 * expected**0.5).all()  # five deviations


def test_the_judgement_is_the_same_each_time_and_as_large_as_asked_for(corpus):
    for length, rows in ((16, 62), (1000, 1), (2000, 1)):
        first, owners = rewriting.validation(corpus, length)
        assert first["source"].shape == (rows, length) and owners.tolist() == list(range(rows))
        np.testing.assert_array_equal(rewriting.validation(corpus, length)[0]["source"], first["source"])


def test_describes_itself(corpus):
    assert rewriting.describe(corpus, 16) == {
        "sha256": corpus.sha256, "letters": LETTERS, "validation_examples": 62, "baselines": {"chance": 1 / 32}
    }  # fmt: skip
    assert rewriting.load(data_config()) == corpus
    assert rewriting.load(data_config(length=17)).sha256 != corpus.sha256
    assert rewriting.fields(corpus) == {}


def test_score_counts_letters_and_the_decoder_reads_only_what_came_before(corpus):
    examples, _ = rewriting.validation(corpus, 7)
    table = np.random.default_rng(0).normal(size=(LETTERS + 1, LETTERS + 1)).astype(np.float32)
    read = []

    def model(source, target, rng):
        np.testing.assert_array_equal(source, examples["source"])
        read.append(np.asarray(target))
        return jax.numpy.asarray(table)[target]

    loss, count, right, weight = rewriting.score(model, examples)
    assert (read[0][:, 0] == START).all()
    np.testing.assert_array_equal(read[0][:, 1:], examples["target"][:, :-1])
    logits = table[read[0]].astype(np.float64)
    truth = np.take_along_axis(logits, examples["target"][..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(loss, (np.log(np.exp(logits).sum(-1)) - truth).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(right, (logits.argmax(-1) == examples["target"]).sum(1))
    assert count.tolist() == weight.tolist() == [7] * len(weight)


@pytest.mark.parametrize("changes, message", [
    ({"name": "sorted"}, "config.data.name='sorted': unknown, want reversed"),
    ({"path": "a.txt"}, "config.data.path='a.txt': the letters are generated; drop it"),
    ({"dir": "data"}, "config.data.dir='data': the letters are generated; drop it"),
])  # fmt: skip
def test_refuses_what_it_would_not_read(changes, message):
    with pytest.raises(ValueError, match=message):
        rewriting.load(data_config(**changes))
