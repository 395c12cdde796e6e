"""Associative recall: what followed this token when it came before?

`mqar`, multi-query associative recall: Arora, Eyuboglu et al. 2023, "Zoology: Measuring and Improving Recall in
Efficient Language Models", arXiv:2312.04927, section 4, as its published generator draws it. `induction`: Olsson et al.
2022, "In-context Learning and Induction Heads", arXiv:2209.11895, as one token asked once: Fu et al. 2022, "Hungry
Hungry Hippos", arXiv:2212.14052, table 1.
"""

import numpy as np

from tasks.recall_rows import Kind, Rows, smallest

FILLERS = ("zero", "random")  # figure 2 of Zoology has zeros, its generator's default is random tokens
SPECIAL = 0  # of `induction`
GUESSED = 2**22  # slots drawn, in all, to know which pair is asked for at a place


def draw_mqar(rng, rows, length, data):
    """Pairs of a key and a value, then every key once more, each at a place of its own: which value does it have?

    Of a vocabulary of V tokens keys are those of [1, V/2) and values those of [V/2, V), both drawn without replacement.
    N pairs take the first 2N tokens. The slot g = 1, 2, ... of a query is the place 2N + 2 (g - 1); slots are drawn one
    after the other, in the order of the pairs and without replacement, with p(g) proportional to g^(power - 1). The
    value is asked for at the query's own place. Everything else is filler: 0, or any token of the vocabulary. As in the
    published generator a random filler may happen to be a key; nothing is asked there, and a key's value is what
    follows it among the first 2N tokens. An odd length, which that generator refuses, ends with one more filler.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T, at least 4N.
      data: `vocabulary` V, `num_pairs` N, `power` (0.01 in the paper; 1 = uniform, at most 4), `filler`, of FILLERS.

    Returns:
      `Rows`; no `depth`, for the places are many.

    Raises:
      ValueError: another filler.

    >>> from ml_collections import ConfigDict
    >>> data = ConfigDict({"vocabulary": 8, "num_pairs": 2, "power": 0.01, "filler": "zero"})
    >>> tokens, targets, _ = draw_mqar(np.random.default_rng(0), 1, 9, data)
    >>> tokens.tolist(), targets.tolist()
    ([[1, 7, 3, 6, 1, 0, 3, 0, 0]], [[-1, -1, -1, -1, 7, -1, 6, -1, -1]])
    """
    _check_filler(data)
    vocabulary, count = data.vocabulary, data.num_pairs
    half, context = vocabulary // 2, 2 * count
    keys = 1 + _without_replacement(rng, rows, np.ones(half - 1), count)
    values = half + _without_replacement(rng, rows, np.ones(vocabulary - half), count)
    slots = np.arange(1, (length - context) // 2 + 1)
    places = context + 2 * _without_replacement(rng, rows, slots ** (data.power - 1), count)
    if data.filler == "random":
        tokens = rng.integers(0, vocabulary, (rows, length), dtype=np.int32)
    else:
        tokens = np.zeros((rows, length), np.int32)
    targets = np.full((rows, length), -1, np.int32)
    tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
    np.put_along_axis(tokens, places, keys, axis=1)
    np.put_along_axis(targets, places, values, axis=1)
    return Rows(tokens, targets, np.full(rows, np.nan, np.float32))


def draw_induction(rng, rows, length, data):
    """Random tokens, one special token among them and at the end again: what followed it?

    The special token is 0, the others are drawn from [1, V), each place by itself; its first place is drawn from all
    that leave room for a follower before the end, of which the first is depth 0 and the last depth 1.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T, at least 3.
      data: `vocabulary` V.

    Returns:
      `Rows`, with one question each, at the last place.

    >>> from ml_collections import ConfigDict
    >>> tokens, targets, depth = draw_induction(np.random.default_rng(0), 1, 7, ConfigDict({"vocabulary": 9}))
    >>> tokens.tolist(), targets[:, -1].tolist(), depth.tolist()
    ([[0, 6, 5, 3, 3, 1, 0]], [6], [0.0])
    """
    tokens = rng.integers(1, data.vocabulary, (rows, length), dtype=np.int32)
    places = rng.integers(0, length - 2, (rows, 1))
    np.put_along_axis(tokens, places, SPECIAL, axis=1)
    tokens[:, -1] = SPECIAL
    targets = np.full((rows, length), -1, np.int32)
    targets[:, -1:] = np.take_along_axis(tokens, places + 1, axis=1)
    return Rows(tokens, targets, (places[:, 0] / max(1, length - 3)).astype(np.float32))


def reach(tokens, targets, window):
    """Share of the queries of `mqar` whose value stands at most `window` tokens before them.

    Through L layers that each attend to the w tokens before, a query learns of the pairs whose key stands at most L w
    tokens before it, and of no others: those of `window` = L w - 1, for the value stands one behind the key.

    Args:
      tokens: int [rows, T], of `mqar`.
      targets: int [rows, T].
      window: how many tokens.

    >>> reach(np.array([[3, 5, 1, 6, 3, 0, 0, 0, 1]]), np.array([[-1, -1, -1, -1, 5, -1, -1, -1, 6]]), 3)
    0.5
    """
    rows, places = np.nonzero(targets >= 0)
    context = 2 * (len(places) // len(targets))
    answers = tokens[rows, 1:context:2] == targets[rows, places][:, None]
    return float((places - (2 * answers.argmax(1) + 1) <= window).mean())


def _mqar_baselines(data, length):
    values = data.vocabulary - data.vocabulary // 2
    return {
        "one of the row's values": 1 / data.num_pairs,
        "value of the pair most often asked at this place": _by_place(data, length),
        "any value": 1 / values,
    }


def _by_place(data, length):
    """Share of right answers of who knows the places alone: early slots are taken by early pairs.

    The pair most often asked for in each slot of drawn rows, judged on as many others.
    """
    count, slots = data.num_pairs, (length - 2 * data.num_pairs) // 2
    rows = min(8192, max(64, GUESSED // slots))
    weights = np.arange(1, slots + 1) ** (data.power - 1)
    seen, asked = np.split(_without_replacement(np.random.Generator(np.random.Philox(0)), 2 * rows, weights, count), 2)
    counts = np.zeros((slots, count), int)
    np.add.at(counts, (seen, np.arange(count)), 1)
    return float((counts.argmax(1)[asked] == np.arange(count)).mean())


def _induction_baselines(data, length):
    """A random token of the row is the answer's own, or another that happens to be equal."""
    ordinary, chance = length - 2, 1 / (data.vocabulary - 1)
    return {"one of the row's tokens": 1 / ordinary + (1 - 1 / ordinary) * chance, "any token": chance}


def _least_mqar(data):
    _check_filler(data)
    return 4 * data.num_pairs


def _check_filler(data):
    if data.filler not in FILLERS:
        raise ValueError(f"config.data.filler={data.filler!r}: unknown to mqar, want one of {', '.join(FILLERS)}")


def _without_replacement(rng, rows, weights, count):
    """int [rows, count]: in each row `count` different indices of `weights`, drawn one after the other.

    The first of several exponential clocks to ring is each with a probability proportional to its rate, and those that
    go on remember nothing: the order of ringing is that of successive draws without replacement.
    """
    clocks = rng.standard_exponential((rows, len(weights)), dtype=np.float32) / weights.astype(np.float32)
    return smallest(clocks, count)


KINDS = {
    "mqar": Kind(
        draw_mqar,
        _least_mqar,
        _mqar_baselines,
        ("num_pairs", "power", "filler"),
        tokens=lambda data: 2 * data.num_pairs + 2,
    ),
    "induction": Kind(draw_induction, lambda data: 3, _induction_baselines, tokens=lambda data: 3),
}
