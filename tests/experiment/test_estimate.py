"""The error bar: pieces weigh by their size, and it covers the truth as often as it says."""

import math

import numpy as np
import pytest

from experiment.estimate import difference, ratio


def test_weights_pieces_by_their_bytes():
    mean, stderr = ratio([10.0, 60.0], [10, 20])
    assert mean == 70 / 30
    residuals = np.array([10 - 70 / 3, 60 - 140 / 3])
    assert stderr == pytest.approx(math.sqrt(2 * np.square(residuals).sum()) / 30)


def test_equal_pieces_give_the_plain_standard_error():
    bits = np.array([3.0, 4.0, 8.0, 9.0, 11.0])
    mean, stderr = ratio(bits * 13, np.full(5, 13))
    assert mean == pytest.approx(bits.mean())
    assert stderr == pytest.approx(bits.std(ddof=1) / math.sqrt(5))


def test_error_bar_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        sizes = rng.integers(50, 2000, size=60)
        bits = sizes * rng.normal(2.0, 0.3, size=60)
        mean, stderr = ratio(bits, sizes)
        hits += abs(mean - 2.0) < 1.96 * stderr
    assert 0.90 < hits / 400 < 0.98  # 95% with a standard deviation of 1.1%


def test_one_piece_has_no_spread():
    assert ratio([12.0], [4]) == (3.0, None)


class TestSeveralColumns:
    def test_is_the_mean_of_the_ratios_of_columns_that_were_asked(self):
        amounts, sizes = [[1.0, 3.0, 0.0], [1.0, 0.0, 0.0]], [[2.0, 4.0, 0.0], [2.0, 2.0, 0.0]]
        assert ratio(amounts, sizes)[0] == pytest.approx((2 / 4 + 3 / 6) / 2)

    def test_one_column_is_the_plain_ratio(self):
        amounts, sizes = np.array([10.0, 65.0, 3.0]), np.array([10.0, 20.0, 7.0])
        assert ratio(amounts[:, None], sizes[:, None]) == ratio(amounts, sizes)

    def test_difference_is_paired_though_sizes_differ(self):
        rng = np.random.default_rng(1)
        sizes = rng.integers(20, 90, (2, 200, 3)).astype(float)  # unions depend on the answers
        shares = np.clip(rng.normal(0.6, 0.1, (200, 3)) + rng.normal(0, 0.02, (2, 200, 3)) + [[[0.05]], [[0.0]]], 0, 1)
        one, other = zip(sizes * shares, sizes, strict=True)
        gap, stderr = difference(one, other)
        assert difference(other, one) == (-gap, stderr)
        draws = rng.integers(0, 200, (2000, 200))
        gaps = [ratio(one[0][d], one[1][d])[0] - ratio(other[0][d], other[1][d])[0] for d in draws]
        assert stderr == pytest.approx(np.std(gaps), rel=0.06)

    def test_error_is_that_of_the_bootstrap(self):
        rng = np.random.default_rng(0)
        sizes = rng.integers(20, 90, (200, 3)).astype(float)
        amounts = sizes * np.clip(rng.normal([0.4, 0.6, 0.8], 0.1, (200, 3)) + rng.normal(0, 0.1, (200, 1)), 0, 1)
        draws = rng.integers(0, 200, (2000, 200))
        spread = np.std([ratio(amounts[draw], sizes[draw])[0] for draw in draws])
        assert ratio(amounts, sizes)[1] == pytest.approx(spread, rel=0.06)  # 2000 draws: 1.6%, three times that
