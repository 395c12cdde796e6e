"""Associative recall: every answer by reading the row, places and filler as the published generator has them."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks.associative import KINDS, draw_induction, draw_mqar, reach


def mqar_data(**changes):
    return ConfigDict({"vocabulary": 61, "num_pairs": 5, "power": 0.01, "filler": "zero"} | changes)


def mqar(rows=300, length=43, seed=0, **changes):
    return draw_mqar(np.random.default_rng(seed), rows, length, mqar_data(**changes))


class TestMqar:
    @pytest.mark.parametrize("filler", ["zero", "random"])
    @pytest.mark.parametrize("length, num_pairs, vocabulary", [(20, 5, 12), (43, 5, 61), (4, 1, 4), (64, 12, 128)])
    def test_every_answer_is_the_value_that_followed_the_key(self, length, num_pairs, vocabulary, filler):
        tokens, targets, depth = mqar(length=length, num_pairs=num_pairs, vocabulary=vocabulary, filler=filler)
        assert tokens.shape == targets.shape == (300, length) and tokens.dtype == targets.dtype == np.int32
        assert np.isnan(depth).all() and depth.shape == (300,)
        for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
            values = {row[2 * i]: row[2 * i + 1] for i in range(num_pairs)}
            assert len(values) == len(set(values.values())) == num_pairs
            assert all(1 <= key < vocabulary // 2 <= value < vocabulary for key, value in values.items())
            places = [place for place, target in enumerate(asked) if target != -1]
            assert sorted(row[place] for place in places) == sorted(values)  # each key once
            assert all(asked[place] == values[row[place]] for place in places)
            assert all(place >= 2 * num_pairs and place % 2 == 0 for place in places)

    def test_fillers(self):
        zeros, targets, _ = mqar(filler="zero")
        rest = (targets < 0) & (np.arange(43) >= 10)
        assert (zeros[rest] == 0).all()
        tokens, targets, _ = mqar(filler="random")
        drawn = np.bincount(tokens[(targets < 0) & (np.arange(43) >= 10)], minlength=61)
        expected = drawn.sum() / 61
        assert drawn.size == 61 and (np.abs(drawn - expected) < 5 * expected**0.5).all()  # five deviations
        with pytest.raises(ValueError, match="config.data.filler='noise': unknown to mqar, want one of zero, random"):
            mqar(filler="noise")
        with pytest.raises(ValueError, match="config.data.filler=''"):
            KINDS["mqar"].least(mqar_data(filler=""))

    def test_keys_and_values_are_uniform_at_every_place(self):
        tokens = mqar(rows=6000, vocabulary=23)[0]  # keys 1 to 10, values 11 to 22
        for place in range(10):
            counts = np.bincount(tokens[:, place], minlength=23)[1:11] if place % 2 == 0 else None
            counts = np.bincount(tokens[:, place], minlength=23)[11:] if counts is None else counts
            expected = 6000 / len(counts)
            assert counts.sum() == 6000 and (np.abs(counts - expected) < 5 * expected**0.5).all()

    @pytest.mark.parametrize("power", [0.01, 0.5, 1.0, 2.0])
    def test_slots_are_drawn_one_after_the_other_by_the_power_law(self, power):
        """The first pair's by p(g) itself; the second's by what is left, summed over all first ones."""
        rows, length = 20_000, 22
        tokens, targets, _ = mqar(rows=rows, length=length, num_pairs=2, power=power)
        shares = np.arange(1, 10) ** (power - 1.0)
        shares /= shares.sum()
        second = [sum(shares[f] * shares[g] / (1 - shares[f]) for f in range(9) if f != g) for g in range(9)]
        for pair, wanted in ((0, shares), (1, np.array(second))):
            places = ((tokens == tokens[:, [2 * pair]]) & (targets >= 0)).argmax(1)
            counts = np.bincount((places - 4) // 2, minlength=9)
            assert (np.abs(counts - rows * wanted) < 5 * (rows * wanted) ** 0.5 + 1).all()

    def test_same_generator_same_rows(self):
        for a, b in zip(mqar(seed=3), mqar(seed=3), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (mqar(seed=3).tokens != mqar(seed=4).tokens).any()

    def test_least_length_vocabulary_and_baselines(self):
        kind, data = KINDS["mqar"], mqar_data()
        assert (kind.least(data), kind.tokens(data)) == (20, 12)
        found = kind.baselines(data, 43)
        assert (found["one of the row's values"], found["any value"]) == (1 / 5, 1 / 31) and len(found) == 3
        assert set(kind.reads) == {"num_pairs", "power", "filler"}

    def test_who_knows_the_places_alone_gets_what_its_baseline_says(self):
        name = "value of the pair most often asked at this place"
        two = ConfigDict({"vocabulary": 64, "num_pairs": 2, "power": 0.01, "filler": "zero"})
        first = 1 / (1 + 2 ** (0.01 - 1))  # of two slots, so that one of two pairs is right with it, or none
        assert KINDS["mqar"].baselines(two, 8)[name] == pytest.approx(first, abs=0.02)
        data, rng = mqar_data(), np.random.default_rng(1)
        slots = np.arange(1, 12) ** (data.power - 1.0)
        drawn = np.array([rng.choice(11, 5, replace=False, p=slots / slots.sum()) for _ in range(6000)])
        counts = np.array([[(drawn[:3000, pair] == slot).sum() for pair in range(5)] for slot in range(11)])
        share = (counts.argmax(1)[drawn[3000:]] == np.arange(5)).mean()
        assert KINDS["mqar"].baselines(data, 33)[name] == pytest.approx(share, abs=0.015) and share > 0.25

    @pytest.mark.parametrize("window", [0, 3, 8, 20, 60])
    def test_reach_counts_values_within_the_window(self, window):
        tokens, targets, _ = mqar(filler="random")
        seen = total = 0
        for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
            for place, target in enumerate(asked):
                if target != -1:
                    total += 1
                    seen += target in row[max(1, place - window) : 10] and place - window <= row.index(target, 0, 10)
        assert reach(tokens, targets, window) == pytest.approx(seen / total)


class TestInduction:
    @pytest.mark.parametrize("length, vocabulary", [(3, 3), (4, 7), (29, 17)])
    def test_the_answer_followed_the_special_token(self, length, vocabulary):
        tokens, targets, depth = draw_induction(
            np.random.default_rng(0), 500, length, ConfigDict({"vocabulary": vocabulary})
        )
        assert tokens.dtype == targets.dtype == np.int32 and depth.dtype == np.float32
        assert tokens.max() == vocabulary - 1
        for row, asked, place in zip(tokens.tolist(), targets.tolist(), depth.tolist(), strict=True):
            assert row.count(0) == 2 and row[-1] == 0
            assert asked == [-1] * (length - 1) + [row[row.index(0) + 1]]
            assert place == pytest.approx(row.index(0) / max(1, length - 3))

    def test_places_and_answers_are_uniform(self):
        tokens, targets, depth = draw_induction(np.random.default_rng(0), 8000, 12, ConfigDict({"vocabulary": 9}))
        for counts, size in ((np.bincount((tokens == 0).argmax(1)), 10), (np.bincount(targets[:, -1])[1:], 8)):
            expected = 8000 / size
            assert len(counts) == size and (np.abs(counts - expected) < 5 * expected**0.5).all()
        assert depth.min() == 0 and depth.max() == 1

    def test_guessing_a_token_of_the_row_is_as_good_as_the_baseline_says(self):
        data = ConfigDict({"vocabulary": 9})
        tokens, targets, _ = draw_induction(np.random.default_rng(0), 20_000, 12, data)
        hits = tokens[:, :-1] == targets[:, -1:]  # the special token is no answer, and no guess
        wanted = KINDS["induction"].baselines(data, 12)
        assert hits.sum(1).mean() / 10 == pytest.approx(wanted["one of the row's tokens"], abs=0.005)
        assert wanted["any token"] == 1 / 8 and KINDS["induction"].least(data) == KINDS["induction"].tokens(data) == 3
