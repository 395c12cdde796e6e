"""The mean of a metric over validation pieces, and how sure it is."""

import numpy as np


def ratio(amounts, sizes):
    """A ratio of two sums over pieces, such as bits per byte or right answers per question, and its standard error.

        r = sum a_i / sum n_i,    se^2 = m / (m - 1) * sum (a_i - r n_i)^2 / (sum n_i)^2

    Cochran 1977, "Sampling Techniques", section 6.4 (the ratio estimate), without the finite-population correction.
    Questions about one file are alike: what is drawn at random is the file, not the question.

    Args:
      amounts: [pieces], such as the bits that coding each piece took.
      sizes: [pieces], such as the bytes in each.

    Returns:
      (mean, standard error); the error is None for a single piece, which has no spread.

    >>> ratio([10.0, 65.0], [10, 20])[0]
    2.5
    """
    amounts, sizes = np.asarray(amounts, np.float64), np.asarray(sizes, np.float64)
    mean = amounts.sum() / sizes.sum()
    if amounts.size == 1:
        return float(mean), None
    spread = np.square(amounts - mean * sizes).sum() * amounts.size / (amounts.size - 1)
    return float(mean), float(np.sqrt(spread) / sizes.sum())
