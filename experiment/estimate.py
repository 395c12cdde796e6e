"""The mean of a metric over validation pieces, and how sure it is."""

import numpy as np


def ratio(amounts, sizes):
    """A ratio of two sums over pieces, such as bits per byte or right answers per question, and its standard error.

        r = sum a_i / sum n_i,    se^2 = m / (m - 1) * sum (a_i - r n_i)^2 / (sum n_i)^2

    Cochran 1977, "Sampling Techniques", section 6.4 (the ratio estimate), without the finite-population correction.
    Questions about one file are alike: what is drawn at random is the file, not the question.

    Of several columns it is the mean of their ratios, such as the mean over classes of intersection over union; a
    column in which every size is 0 is left out. The error then sums each piece's pull on that mean, K columns together:

        e_i = 1 / K sum_k (a_ik - r_k n_ik) / sum_i n_ik,    se^2 = m / (m - 1) * sum e_i^2

    Args:
      amounts: [pieces] or [pieces, K], such as the bits that coding each piece took.
      sizes: likewise, such as the bytes in each.

    Returns:
      (mean, standard error); the error is None for a single piece, which has no spread.

    >>> ratio([10.0, 65.0], [10, 20])[0]
    2.5
    """
    mean, pulls = _pulls(amounts, sizes)
    return mean, _standard_error(pulls)


def difference(one, other):
    """How much larger one ratio is than another on the same pieces, and the standard error of that.

    Pieces pull on both ratios, mostly the same way, so this is far sharper than the two errors apart. The sizes need
    not be the same: unions depend on the answers.

    Args:
      one: (amounts, sizes), as `ratio` takes them.
      other: likewise.

    Returns:
      (difference, standard error or None), as `ratio`.

    >>> difference(([1.0, 4.0], [2, 4]), ([1.0, 3.0], [2, 4]))[0]
    0.16666666666666674
    """
    (mean, pulls), (other_mean, other_pulls) = _pulls(*one), _pulls(*other)
    return mean - other_mean, _standard_error(pulls - other_pulls)


def over_seeds(values):
    """The mean of one number a seed, and its standard error; None for a single seed, which has no spread.

    >>> over_seeds([1.0, 3.0])
    (2.0, 1.0)
    """
    spread = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(np.mean(values)), spread


def per_piece(rows, owners):
    """Sums of rows over the pieces that they come from, in float64: [rows, ...] and int [rows] -> [pieces, ...].

    >>> per_piece(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 0])).tolist()
    [5.0, 2.0]
    """
    sums = np.zeros((owners.max(initial=-1) + 1, *rows.shape[1:]))
    np.add.at(sums, owners, rows)
    return sums


def _pulls(amounts, sizes):
    """The mean of the columns' ratios, and what each piece adds to it, [pieces]."""
    amounts, sizes = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (amounts, sizes))
    asked = sizes.any(0)
    amounts, sizes = amounts[:, asked], sizes[:, asked]
    ratios = amounts.sum(0) / sizes.sum(0)
    return float(ratios.mean()), ((amounts - ratios * sizes) / sizes.sum(0)).mean(1)


def _standard_error(pulls):
    if len(pulls) == 1:
        return None
    return float(np.sqrt(np.square(pulls).sum() * len(pulls) / (len(pulls) - 1)))
