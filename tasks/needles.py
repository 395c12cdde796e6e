"""Needles in a haystack: rows of tokens that hide a few answers somewhere in a lot of noise, asked for at the end.

`passkey` is Mohtashami and Jaggi 2023, "Landmark Attention", arXiv:2305.16300, section 4.2. The others are Hsieh et al.
2024, "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv:2404.06654, section 3, with one
token for a word or a number and several for a UUID. Of its thirteen tasks two, questions about paragraphs (`qa_1`,
`qa_2`), need natural language and are left out; counting words is in `tasks.needle_words`.

The alphabet of V tokens: three marks, then in equal parts keys, values, and what the noise is made of, so that keys and
values stand in needles alone. Needles are a mark, key and value; at the end come a mark, the keys that are asked for,
a mark, and the values, of which a decoder is told those before (teacher forcing).

As published, `vt` has one chain and `niah_multivalue` one key: who copies all variables, or all values, in the order in
which they stand in the row gets everything right, and needs neither to follow a chain nor to look at a key.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from tasks import needle_words
from tasks.recall_rows import Kind, asked_at_the_end, different, in_random_order

NEEDLE, QUERY, ANSWER = MARKS = 0, 1, 2
SENTENCES = 5  # in the published noise, which repeats them: each is one token here
PASSKEY = 5  # digits of the published pass key
UUID = 4  # tokens of a key or a value that is a UUID
HOPS = 4  # of `vt`: so many variables are copies
TRACKING = 3  # tokens of its needles
TRACKING_TAIL = 3 + HOPS  # two marks, the value, and all variables but the last


class Setting(NamedTuple):
    """What the published yaml file varies between kinds of needles.

    Attributes:
      haystack: "repeat", the same few tokens over and over; "random", tokens of the noise, in place of essays;
        "needle", other needles, as many as fit.
      keys: needles with different keys; with "needle" as many as fit.
      values: needles, and values, of each key.
      queries: keys that are asked for.
      key_tokens: length of a key.
      value_tokens: length of a value.
    """

    haystack: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_tokens: int = 1
    value_tokens: int = 1

    @property
    def size(self):
        """Tokens of a needle."""
        return 1 + self.key_tokens + self.value_tokens

    @property
    def tail(self):
        """Tokens after the haystack: two marks, the asked keys, and all tokens of the answer but the last."""
        return 1 + self.queries * (self.key_tokens + self.values * self.value_tokens)

    def needles(self, length):
        """How many needles a row of `length` tokens has."""
        return (length - self.tail) // self.size if self.haystack == "needle" else self.keys * self.values


SETTINGS = {
    "passkey": Setting("repeat", key_tokens=0, value_tokens=PASSKEY),
    "niah_single_1": Setting("repeat"),
    "niah_single_2": Setting("random"),
    "niah_single_3": Setting("random", value_tokens=UUID),
    "niah_multikey_1": Setting("random", keys=4),
    "niah_multikey_2": Setting("needle"),
    "niah_multikey_3": Setting("needle", key_tokens=UUID, value_tokens=UUID),
    "niah_multivalue": Setting("random", values=4),
    "niah_multiquery": Setting("random", keys=4, queries=4),
}


def alphabet(vocabulary):
    """First token of the keys, of the values and of the noise; there are as many keys as values.

    >>> alphabet(256)
    (3, 87, 171)
    """
    share = (vocabulary - len(MARKS)) // 3
    return len(MARKS), len(MARKS) + share, len(MARKS) + 2 * share


def draw_needles(setting, rng, rows, length, data):
    """Needles at random places of a haystack, and a question about one or more of them.

    Needles do not overlap; all ways to place them are as likely. Of several values of one key (`niah_multivalue`) the
    answer gives all in the order they stand in; of several keys (`niah_multiquery`) in the order of the question.
    Values of different needles differ, but for "needle" haystacks, where a key other than the one asked for may also
    come twice, as there are more needles than keys. Noise fills up what is too short for one more needle.

    Args:
      setting: `Setting`.
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T.
      data: `vocabulary` V.

    Returns:
      `Rows`; `depth` is where the needle begins, over the last place where it could; NaN where several are asked for.

    >>> from ml_collections import ConfigDict
    >>> rng, data = np.random.default_rng(3), ConfigDict({"vocabulary": 33})
    >>> tokens, targets, depth = draw_needles(SETTINGS["niah_single_1"], rng, 1, 12, data)
    >>> tokens.tolist(), targets[:, -1].tolist(), depth.tolist()
    ([[23, 24, 25, 0, 11, 16, 24, 25, 26, 1, 11, 2]], [16], [0.5])
    """
    first_key, first_value, _ = alphabet(data.vocabulary)
    hay, count = length - setting.tail, setting.needles(length)
    if setting.haystack == "needle":
        asked = rng.integers(0, count, (rows, 1))
        keys, values = _crowd(rng, rows, count, asked, first_value - first_key, setting)
        places = np.broadcast_to(setting.size * np.arange(count), (rows, count))
        depth = asked[:, 0] / max(1, count - 1)
    else:
        keys, values, asked = _few(rng, rows, first_value - first_key, setting)
        places = _scatter(rng, rows, hay, count, setting.size)
        one = np.take_along_axis(places, asked, axis=1)[:, 0] / max(1, hay - setting.size)
        depth = one if asked.shape[1] == 1 else None
    keys, values = first_key + keys, first_value + values
    needles = np.concatenate([np.full((rows, count, 1), NEEDLE), keys, values], axis=2)
    tokens = _noise(rng, rows, hay, data.vocabulary, setting.haystack)
    _put(tokens, places, needles)
    asked_keys = np.take_along_axis(keys, asked[:, : setting.queries, None], axis=1)
    answers = np.take_along_axis(values, asked[:, :, None], axis=1)
    return _asking(tokens, asked_keys, answers, depth)


def draw_tracking(rng, rows, length, data):
    """Variable tracking: a variable gets a value, four more one after the other a copy; who has the value?

    The needles of one chain, mark, variable, and value or variable copied, stand in repeated noise in their order; the
    value is asked for, and the answer gives all five variables, again in the order of the chain. Five different
    variables are drawn from the keys.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T.
      data: `vocabulary` V.

    Returns:
      `Rows`; no `depth`, for five places are asked for.
    """
    first_key, first_value, first_noise = alphabet(data.vocabulary)
    hay = length - TRACKING_TAIL
    variables = first_key + different(rng, rows, first_value - first_key, HOPS + 1)
    value = rng.integers(first_value, first_noise, (rows, 1))
    needles = np.stack(
        [np.full_like(variables, NEEDLE), variables, np.concatenate([value, variables[:, :-1]], axis=1)], axis=2
    )
    tokens = _noise(rng, rows, hay, data.vocabulary, "repeat")
    _put(tokens, _scatter(rng, rows, hay, HOPS + 1, TRACKING), needles)
    return _asking(tokens, value, variables)


def _few(rng, rows, total, setting):
    """Needles that differ: keys and values [rows, needles, tokens], and those asked for [rows, answers]."""
    names = different(rng, rows, total, setting.keys)[:, :, None] if setting.key_tokens else np.zeros((rows, 1, 0), int)
    keys = np.tile(names, (1, setting.values, 1))
    if setting.keys * setting.values == 1:
        values = rng.integers(0, total, (rows, 1, setting.value_tokens))
        return keys, values, np.zeros((rows, 1), int)
    values = different(rng, rows, total, setting.keys * setting.values)[:, :, None]
    if setting.values > 1:
        return keys, values, np.broadcast_to(np.arange(setting.values), (rows, setting.values))
    return keys, values, different(rng, rows, setting.keys, setting.queries)


def _crowd(rng, rows, count, asked, total, setting):
    """A haystack of needles, of which the one asked for [rows, 1] has a key that no other has: keys and values."""
    keys = rng.integers(0, total, (rows, count, setting.key_tokens))
    values = rng.integers(0, total, (rows, count, setting.value_tokens))
    taken = (keys == np.take_along_axis(keys, asked[:, :, None], axis=1)).all(2)
    np.put_along_axis(taken, asked, False, axis=1)
    row, needle = np.nonzero(taken)
    keys[row, needle, -1] = (keys[row, needle, -1] + rng.integers(1, total, len(row))) % total
    return keys, values


def _scatter(rng, rows, hay, count, size):
    """int [rows, count], ascending: where needles of `size` tokens begin that do not overlap, uniform over all ways."""
    free = hay - count * (size - 1)  # each needle as one token
    if count == 1:
        return rng.integers(0, free, (rows, 1))
    return np.sort(different(rng, rows, free, count), axis=1) + (size - 1) * np.arange(count)


def _noise(rng, rows, hay, vocabulary, haystack):
    """int32 [rows, hay] without needles."""
    first = alphabet(vocabulary)[2]
    if haystack == "random":
        return rng.integers(first, vocabulary, (rows, hay), dtype=np.int32)
    cycle = first + np.arange(hay, dtype=np.int32) % min(SENTENCES, vocabulary - first)
    return np.tile(cycle, (rows, 1))


def _put(tokens, places, needles):
    """Writes needles [rows, count, size] over the tokens from places [rows, count] on."""
    rows, _, size = needles.shape
    where = (places[:, :, None] + np.arange(size)).reshape(rows, -1)
    np.put_along_axis(tokens, where, needles.reshape(rows, -1).astype(np.int32), axis=1)


def _asking(tokens, asked, answers, depth=None):
    """`Rows` of haystacks [rows, hay], with what is asked for [rows, ...] and the answers [rows, ...] behind."""
    asked, answers = (part.reshape(len(tokens), -1) for part in (asked, answers))
    query, answer = (np.full((len(tokens), 1), mark) for mark in (QUERY, ANSWER))
    return asked_at_the_end(np.concatenate([tokens, query, asked, answer], axis=1), answers, depth)


def _least(setting, data):
    return setting.tail + setting.size * setting.keys * setting.values


def _baselines(setting, data, length):
    """Guessing any value, or any of the value tokens in the row, of which one is the right one and others may equal it.

    Where several are asked for, those told already can be left out of the guess. A row with one value of one token has
    none of these baselines: they would be the whole task.
    """
    first_key, first_value, _ = alphabet(data.vocabulary)
    total, count = first_value - first_key, setting.needles(length) * setting.value_tokens
    found = {"any value": 1 / total}
    if count > 1:
        equal = 0 if setting.keys * setting.values > 1 else 1 / total
        hit = [1 / left + (1 - 1 / left) * equal for left in range(count, 0, -1)]  # of so many that are left
        answers = setting.queries * setting.values * setting.value_tokens
        found["one of the row's values"] = hit[0]
        if answers > 1:
            found["one of the row's values not yet told"] = sum(hit[:answers]) / answers
    return found


def _tracking_baselines(data, length):
    first_key, first_value, _ = alphabet(data.vocabulary)
    return {
        "any variable": 1 / (first_value - first_key),
        "one of the row's variables": 1 / (HOPS + 1),
        "one of the row's variables not yet told": in_random_order(HOPS + 1),
    }


def _smallest(different_tokens):
    """Vocabulary with so many keys and values."""
    return len(MARKS) + 3 * different_tokens


KINDS = (
    {
        name: Kind(
            partial(draw_needles, setting),
            partial(_least, setting),
            partial(_baselines, setting),
            tokens=lambda data, setting=setting: _smallest(max(2, setting.keys * setting.values)),
        )
        for name, setting in SETTINGS.items()
    }
    | {
        "vt": Kind(
            draw_tracking,
            lambda data: TRACKING_TAIL + TRACKING * (HOPS + 1),
            _tracking_baselines,
            tokens=lambda data: _smallest(HOPS + 1),
        )
    }
    | needle_words.KINDS
)
