"""Copying: what was read is to be written again, all of it, or only what is not blank.

`copying`: Arjovsky, Shah and Bengio 2016, "Unitary Evolution Recurrent Neural Networks", arXiv:1511.06464, section 4.1.
`selective_copying`: the denoising task of Jing et al. 2019, "Gated Orthogonal Recurrent Units", arXiv:1706.02761, as Gu
and Dao 2023, "Mamba", arXiv:2312.00752, section 4.1, name it. `duplication`: Kitaev, Kaiser and Levskaya 2020,
"Reformer", arXiv:2001.04451, section 5.

A decoder is told the right answers so far (teacher forcing): at each asked place the target is the token that comes
next. The recurrent networks of the first two papers read a blank there instead.
"""

import numpy as np

from tasks.recall_rows import Kind, Rows, asked_at_the_end, different

BLANK, DELIMITER = 0, 1  # of copying and selective_copying; symbols are the tokens from 2 on
START = 0  # of duplication, before each of the two halves; symbols are the tokens from 1 on


def draw_copying(rng, rows, length, data):
    """Symbols, blanks, a delimiter: after it the symbols are to be written in their order.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T: n symbols, T - 2n blanks, the delimiter, and the first n - 1 symbols again.
      data: `vocabulary` V, with V - 2 symbols (the paper's V is 10), and `num_symbols` n (the paper's is 10).

    Returns:
      `Rows`, with n questions each, at the last n places; no `depth`.

    >>> from ml_collections import ConfigDict
    >>> data = ConfigDict({"vocabulary": 10, "num_symbols": 3})
    >>> tokens, targets, _ = draw_copying(np.random.default_rng(0), 1, 8, data)
    >>> tokens.tolist(), targets.tolist()
    ([[8, 7, 6, 0, 0, 1, 8, 7]], [[-1, -1, -1, -1, -1, 8, 7, 6]])
    """
    symbols = _symbols(rng, rows, data)
    return _copies(symbols, np.broadcast_to(np.arange(data.num_symbols), symbols.shape), length)


def draw_selective_copying(rng, rows, length, data):
    """As `draw_copying`, but the symbols stand at random places among the blanks, still in their order.

    >>> from ml_collections import ConfigDict
    >>> data = ConfigDict({"vocabulary": 10, "num_symbols": 3})
    >>> tokens, targets, _ = draw_selective_copying(np.random.default_rng(0), 1, 10, data)
    >>> tokens.tolist(), targets[:, -3:].tolist()
    ([[0, 0, 8, 7, 6, 0, 0, 1, 8, 7]], [[8, 7, 6]])
    """
    count = data.num_symbols
    symbols = _symbols(rng, rows, data)
    return _copies(symbols, np.sort(different(rng, rows, length - count, count), axis=1), length)


def draw_duplication(rng, rows, length, data):
    """0w0w: random symbols between two start tokens, then the same ones again.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T, of which w has T/2 - 1; an odd length ends with one more start token, where nothing is asked.
      data: `vocabulary` V, with V - 1 symbols.

    Returns:
      `Rows`, with a question for each symbol of the second w, from the second 0 on; no `depth`.

    >>> from ml_collections import ConfigDict
    >>> tokens, targets, _ = draw_duplication(np.random.default_rng(0), 1, 8, ConfigDict({"vocabulary": 10}))
    >>> tokens.tolist(), targets.tolist()
    ([[0, 8, 6, 5, 0, 8, 6, 5]], [[-1, -1, -1, -1, 8, 6, 5, -1]])
    """
    half = length // 2
    word = rng.integers(1, data.vocabulary, (rows, half - 1), dtype=np.int32)
    tokens = np.full((rows, length), START, np.int32)
    targets = np.full((rows, length), -1, np.int32)
    tokens[:, 1:half] = tokens[:, half + 1 : 2 * half] = targets[:, half : 2 * half - 1] = word
    return Rows(tokens, targets, np.full(rows, np.nan, np.float32))


def _symbols(rng, rows, data):
    return rng.integers(DELIMITER + 1, data.vocabulary, (rows, data.num_symbols), dtype=np.int32)


def _copies(symbols, places, length):
    """`Rows` of symbols [rows, n] that stand at `places` [rows, n] and are asked for at the end."""
    rows, count = symbols.shape
    before = np.full((rows, length - count + 1), BLANK, np.int32)
    np.put_along_axis(before, places, symbols, axis=1)
    before[:, -1] = DELIMITER
    return asked_at_the_end(before, symbols)


def _guesses(count, kinds):
    """Shares of right answers of who writes any of `kinds` symbols, or one of the `count` symbols that were read."""
    return {"one of the row's symbols": 1 / count + (1 - 1 / count) / kinds, "any symbol": 1 / kinds}


def _copying_baselines(data, length):
    return _guesses(data.num_symbols, data.vocabulary - 2)


def _duplication_baselines(data, length):
    return _guesses(length // 2 - 1, data.vocabulary - 1)


KINDS = {
    name: Kind(draw, lambda data: 2 * data.num_symbols, _copying_baselines, ("num_symbols",), tokens=lambda data: 4)
    for name, draw in (("copying", draw_copying), ("selective_copying", draw_selective_copying))
} | {"duplication": Kind(draw_duplication, lambda data: 4, _duplication_baselines, tokens=lambda data: 3)}
