"""Copying: a slow reader of each row finds the answers, places and symbols are uniform."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks.copying import KINDS


def drawn(name, rows=300, length=31, vocabulary=11, num_symbols=5, seed=0):
    data = ConfigDict({"vocabulary": vocabulary, "num_symbols": num_symbols})
    return KINDS[name].draw(np.random.default_rng(seed), rows, length, data)


class TestCopying:
    @pytest.mark.parametrize("name", ["copying", "selective_copying"])
    @pytest.mark.parametrize("length, count", [(2, 1), (10, 5), (11, 5), (31, 5), (64, 13)])
    def test_the_answers_are_the_symbols_in_their_order(self, name, length, count):
        tokens, targets, depth = drawn(name, length=length, num_symbols=count)
        assert tokens.shape == targets.shape == (300, length) and tokens.dtype == targets.dtype == np.int32
        assert np.isnan(depth).all()
        for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
            end = row.index(1)
            symbols = [token for token in row[:end] if token != 0]
            assert end == length - count and len(symbols) == count and min(symbols) >= 2
            assert row[end + 1 :] == symbols[:-1]
            assert asked == [-1] * end + symbols
            if name == "copying":
                assert row[:count] == symbols

    @pytest.mark.parametrize("name", ["copying", "selective_copying"])
    def test_symbols_are_uniform(self, name):
        targets = drawn(name, rows=4000).targets[:, -5:]
        for column in targets.T:
            counts = np.bincount(column, minlength=11)
            assert counts[:2].sum() == 0 and (np.abs(counts[2:] - 4000 / 9) < 5 * (4000 / 9) ** 0.5).all()

    def test_places_of_selective_copying_are_uniform(self):
        """Each place holds a symbol in 5 of 26 rows, each pair of places in 5 * 4 of 26 * 25."""
        held = (drawn("selective_copying", rows=8000).tokens[:, :26] >= 2).astype(float)
        singly, both = 8000 * 5 / 26, 8000 * 20 / 650
        assert (np.abs(held.sum(0) - singly) < 5 * singly**0.5).all()
        pairs = held.T @ held
        assert (np.abs(pairs[~np.eye(26, dtype=bool)] - both) < 5.5 * both**0.5).all()


class TestDuplication:
    @pytest.mark.parametrize("length", [4, 5, 8, 31, 64])
    def test_the_second_word_is_the_first(self, length):
        tokens, targets, depth = drawn("duplication", length=length)
        assert tokens.dtype == targets.dtype == np.int32 and np.isnan(depth).all()
        half = length // 2
        for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
            word = row[1:half]
            assert row == [0, *word, 0, *word] + [0] * (length % 2) and min(word) >= 1
            asked_at = [place for place, target in enumerate(asked) if target != -1]
            assert asked_at == list(range(half, 2 * half - 1))
            assert all(asked[place] == row[place + 1] for place in asked_at)

    def test_symbols_are_uniform(self):
        counts = np.bincount(drawn("duplication", rows=2000).tokens[:, 1:15].ravel(), minlength=11)
        expected = 28_000 / 10
        assert counts[0] == 0 and (np.abs(counts[1:] - expected) < 5 * expected**0.5).all()


@pytest.mark.parametrize(
    "name, count, kinds", [("copying", 5, 9), ("selective_copying", 5, 9), ("duplication", 14, 10)]
)
def test_guessing_is_as_good_as_the_baselines_say(name, count, kinds):
    rows = drawn(name, rows=20_000)
    answers = rows.targets[rows.targets >= 0].reshape(20_000, count)
    guess = np.random.default_rng(1).permuted(answers, axis=1)  # a symbol of the row for each place, none in its order
    data = ConfigDict({"vocabulary": 11, "num_symbols": 5})
    wanted = KINDS[name].baselines(data, 31)
    assert (guess == answers).mean() == pytest.approx(wanted["one of the row's symbols"], abs=0.005)
    assert wanted["any symbol"] == 1 / kinds


@pytest.mark.parametrize("name", KINDS)
def test_same_generator_same_rows(name):
    for a, b in zip(drawn(name, seed=3), drawn(name, seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (drawn(name, seed=3).tokens != drawn(name, seed=4).tokens).any()


def test_least_lengths_and_vocabularies():
    data = ConfigDict({"vocabulary": 11, "num_symbols": 5})
    assert {name: (kind.least(data), kind.tokens(data), kind.reads) for name, kind in KINDS.items()} == {
        "copying": (10, 4, ("num_symbols",)), "selective_copying": (10, 4, ("num_symbols",)), "duplication": (4, 3, ())
    }  # fmt: skip
